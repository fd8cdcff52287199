//go:build unix

package sql

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// LockDir keeps a data directory to one process. The lock ends with the process, however it ends.
func LockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another process uses the data directory %s", dir)
		}
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	// Another process may have removed the directory between the two calls.
	ours, err := f.Stat()
	if now, missing := os.Stat(f.Name()); err != nil || missing != nil || !os.SameFile(ours, now) {
		f.Close()
		return nil, fmt.Errorf("another process has just removed the data directory %s", dir)
	}
	return func() { f.Close() }, nil
}
