//go:build goolm

package interop

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/test/homeserver"
	"chancery/test/notice"
)

//go:embed js/package.json
var packages string

//go:embed js/*.mjs
var programs embed.FS

// browser gives a folder with the client library of Element Web, in the user's cache.
func browser(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir := filepath.Join(cache, "chancery-interop", fmt.Sprintf("js-%x", sha256.Sum256([]byte(packages)))[:20])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	done := filepath.Join(dir, "complete")
	if _, err := os.Stat(done); err != nil {
		notice.Print("install the client library")
		write(t, filepath.Join(dir, "package.json"), packages)
		cmd := exec.Command("npm", "install", "--no-audit", "--no-fund", "--no-package-lock")
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("install the client library: %v\n%s", err, out)
		}
		write(t, done, "")
	}
	files, err := programs.ReadDir("js")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := programs.ReadFile("js/" + file.Name())
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, file.Name()), string(text))
	}
	return dir
}

// People with the client library of Element Web and its cryptography in Rust, on one server of ours and on two.
func TestBrowserClients(t *testing.T) {
	if os.Getenv("CHANCERY_INTEROP") == "" {
		t.Skip("clients in JavaScript are met by make interop")
	}
	dir := browser(t)
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		for _, program := range []string{"conversation", "people"} {
			t.Run(program+" on one server", func(t *testing.T) {
				a := ours(t, ca, fresh())
				run(t, dir, program, a, a)
			})
			t.Run(program+" on two servers", func(t *testing.T) { run(t, dir, program, ours(t, ca, fresh()), ours(t, ca, fresh())) })
		}
	})
}

// run lets a program tell its steps on two servers, or on the same one.
func run(t *testing.T, dir, program string, a, b *server) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "node", program+".mjs", a.URL, b.URL)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "\ndone\n") {
		t.Fatalf("the program failed: %v", err)
	}
}
