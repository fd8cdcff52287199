package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMisspeltVariablesAreNoticed(t *testing.T) {
	got := Misspelt([]string{"CHANCERY_SERVR_NAME=a", "CHANCERY_SERVER_NAME=a", "CHANCERY_PORT=tcp://10.0.0.1:80", "CHANCERY_SERVICE_HOST=10.0.0.1", "SERVER_NAME=a"})
	if want := []string{"CHANCERY_SERVR_NAME is no setting; did you mean CHANCERY_SERVER_NAME?"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// What a start would refuse the check refuses too, with the line and the file.
func TestCertificatesAreRead(t *testing.T) {
	file := filepath.Join(t.TempDir(), "garbage.pem")
	if err := os.WriteFile(file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"federation: {tls_cert: " + file + ", tls_key: " + file + "}": ":1: federation.tls_cert: " + file + " and " + file + " cannot be used: failed to find any PEM data",
		"federation: {trusted_ca: [" + file + "]}":                    ":1: federation.trusted_ca: " + file + " holds no certificate",
	} {
		if _, err := Load(Source{File: write(t, text)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
