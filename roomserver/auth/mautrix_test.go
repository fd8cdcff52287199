package auth_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// mautrix' eventauth exists only with encoding/json/v2, so the comparison with it is built and run
// as a test of its own. Its output is shown; without the go command this fails.
func TestAgreesWithMautrix(t *testing.T) {
	if os.Getenv("GOEXPERIMENT") != "" {
		t.Skip("this is the run with the experiment")
	}
	cmd := exec.Command("go", "test", "-run", "Oracle", "-v", ".")
	cmd.Env = append(os.Environ(), "GOEXPERIMENT=jsonv2", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatalf("go test with GOEXPERIMENT=jsonv2: %v", err)
	}
	if !strings.Contains(string(out), "--- PASS: TestOracleAgreesOnRandomRooms") {
		t.Error("the comparison did not run")
	}
}
