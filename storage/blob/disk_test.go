package blob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
)

const helloHash = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"

func openDisk(t *testing.T, dir string) *Disk {
	t.Helper()
	d, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// files lists every regular file below the directory, relative to it.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var names []string
	err := filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			name, _ := filepath.Rel(dir, path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestPutGetDelete(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir)
	ctx := t.Context()
	hash, size, err := d.Put(ctx, strings.NewReader("hello"), 5)
	if err != nil || hash != helloHash || size != 5 {
		t.Fatalf("Put: %s %d %v", hash, size, err)
	}
	if got := files(t, dir); len(got) != 1 || got[0] != filepath.Join("2c", "f2", helloHash) {
		t.Fatalf("on disk: %v", got)
	}
	d = openDisk(t, dir) // a restart keeps it
	f, size, err := d.Get(ctx, hash)
	if err != nil || size != 5 {
		t.Fatalf("Get: %d %v", size, err)
	}
	if _, err := f.Seek(1, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(f); string(got) != "ello" {
		t.Fatalf("read %q", got)
	}
	_ = f.Close()
	for range 2 {
		if err := d.Delete(ctx, hash); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := d.Get(ctx, hash); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Get after Delete: %v", err)
	}
	if hash, size, err := d.Put(ctx, strings.NewReader(""), 0); err != nil || size != 0 || len(hash) != 64 {
		t.Fatalf("empty content: %s %d %v", hash, size, err)
	}
}

func TestFailedPutLeavesNothing(t *testing.T) {
	broken := errors.New("connection lost")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]struct {
		ctx  context.Context
		in   io.Reader
		want error
	}{
		"one byte over the limit": {t.Context(), strings.NewReader("123456"), ErrTooLarge},
		"endless":                 {t.Context(), endless{}, ErrTooLarge},
		"breaks off":              {t.Context(), io.MultiReader(strings.NewReader("123"), iotest.ErrReader(broken)), broken},
		"breaks off at the limit": {t.Context(), io.MultiReader(strings.NewReader("12345"), iotest.ErrReader(broken)), broken},
		"caller has gone":         {cancelled, strings.NewReader("123"), context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if _, _, err := openDisk(t, dir).Put(c.ctx, c.in, 5); !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if left := files(t, dir); len(left) != 0 {
				t.Fatalf("left behind: %v", left)
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A process killed between write and rename leaves an unfinished file and no content; the next
// start sweeps it and keeps what was finished.
func TestKilledBeforeRename(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir)
	if _, _, err := d.Put(t.Context(), strings.NewReader("hello"), 10); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(d.unfinished(), "put-123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	d = openDisk(t, dir)
	if got := files(t, dir); len(got) != 1 {
		t.Fatalf("after the restart: %v", got)
	}
	if _, _, err := d.Put(t.Context(), strings.NewReader("more"), 10); err != nil {
		t.Fatal(err)
	}
}

// A file cut short by a failing disk is replaced when its content comes again.
func TestDamagedContentIsReplaced(t *testing.T) {
	d := openDisk(t, t.TempDir())
	hash, _, err := d.Put(t.Context(), strings.NewReader("hello"), 10)
	if err != nil {
		t.Fatal(err)
	}
	path, _ := d.path(hash)
	if err := os.Truncate(path, 2); err != nil {
		t.Fatal(err)
	}
	if _, _, err := d.Put(t.Context(), strings.NewReader("hello"), 10); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "hello" {
		t.Fatalf("content is %q", got)
	}
}

func TestSameContentAtOnce(t *testing.T) {
	dir := t.TempDir()
	d := openDisk(t, dir)
	content := bytes.Repeat([]byte("chancery"), 10_000)
	var puts sync.WaitGroup
	for range 8 {
		puts.Go(func() {
			hash, _, err := d.Put(t.Context(), bytes.NewReader(content), 1<<20)
			if err != nil {
				t.Error(err)
				return
			}
			f, _, err := d.Get(t.Context(), hash)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = f.Close() }()
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) {
				t.Errorf("read %d bytes, %v", len(got), err)
			}
		})
	}
	puts.Wait()
	if got := files(t, dir); len(got) != 1 {
		t.Fatalf("on disk: %v", got)
	}
}

func TestHashIsNoPath(t *testing.T) {
	d := openDisk(t, t.TempDir())
	for _, bad := range []string{"", "..", "../../etc/passwd", strings.ToUpper(helloHash), helloHash[:63] + "/", helloHash + "0"} {
		if _, _, err := d.Get(t.Context(), bad); !errors.Is(err, ErrBadHash) {
			t.Errorf("Get(%q): %v", bad, err)
		}
		if err := d.Delete(t.Context(), bad); !errors.Is(err, ErrBadHash) {
			t.Errorf("Delete(%q): %v", bad, err)
		}
	}
}
