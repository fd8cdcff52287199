// Package notice lets a test say something that the reader of a passing `go test ./...` sees:
// that it runs without PostgreSQL, or without the specification. The go command hides what a
// passing test prints, and a check that is quietly not made looks like one that passed.
package notice

import (
	"bytes"
	"fmt"
	"os"
)

// Print shows one line. It goes to the standard error of the go command that runs the test, and
// to the test's own where the parent is something else (a debugger, the test binary alone).
func Print(format string, args ...any) {
	line := "--- NOTE: " + fmt.Sprintf(format, args...) + "\n"
	if out, err := parentStderr(); err == nil {
		_, err = out.WriteString(line)
		if closeErr := out.Close(); err == nil && closeErr == nil {
			return
		}
	}
	fmt.Fprint(os.Stderr, line)
}

// parentStderr opens the go command's standard error. Only Linux offers it, and not where it is a socket;
// a plain file would be written by both at places of their own, so it is left alone.
func parentStderr() (*os.File, error) {
	parent := fmt.Sprintf("/proc/%d", os.Getppid())
	name, err := os.ReadFile(parent + "/comm")
	if err != nil {
		return nil, err
	}
	if string(bytes.TrimSpace(name)) != "go" {
		return nil, fmt.Errorf("the parent process is %q", name)
	}
	info, err := os.Stat(parent + "/fd/2")
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() {
		return nil, fmt.Errorf("standard error is a file")
	}
	return os.OpenFile(parent+"/fd/2", os.O_WRONLY, 0)
}
