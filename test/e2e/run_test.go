//go:build !goolm

package e2e

import (
	"os/exec"
	"strings"
	"testing"

	"chancery/test/notice"
)

// The clients' cryptography needs a build tag, which `go test ./...` does not give.
func TestEncryptedConversations(t *testing.T) {
	goCommand, err := exec.LookPath("go")
	if err != nil {
		t.Fatalf("the go command is needed to build the clients: %v", err)
	}
	cmd := exec.Command(goCommand, "test", "-tags", "goolm", "-v", ".")
	out, err := cmd.CombinedOutput()
	t.Logf("%s\n%s", strings.Join(cmd.Args, " "), out)
	if err != nil {
		t.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	if !strings.Contains(string(out), "--- PASS: TestConversationOfTwoServers") {
		t.Fatal("the tests of the encrypted conversation did not run")
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "--- NOTE: ") {
			notice.Print("%s", strings.TrimSpace(strings.TrimPrefix(line, "--- NOTE: ")))
		}
	}
}
