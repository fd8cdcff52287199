package blob

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Disk keeps contents as files of a local directory, ab/cd/abcd..., and unfinished ones in tmp.
type Disk struct {
	dir string
}

var _ Store = (*Disk)(nil)

// Open makes the directory when it is not there and removes what a killed process left unfinished.
// One process at a time uses a directory.
func Open(dir string) (*Disk, error) {
	d := &Disk{dir: dir}
	if err := os.RemoveAll(d.unfinished()); err != nil {
		return nil, fmt.Errorf("sweep unfinished media: %w", err)
	}
	if err := os.MkdirAll(d.unfinished(), 0o700); err != nil {
		return nil, fmt.Errorf("make the media directory: %w", err)
	}
	return d, nil
}

func (d *Disk) unfinished() string { return filepath.Join(d.dir, "tmp") }

// path is two levels of 256 directories, so that none grows long.
func (d *Disk) path(hash string) (string, error) {
	if len(hash) != hex.EncodedLen(sha256.Size) {
		return "", ErrBadHash
	}
	for _, c := range hash {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return "", ErrBadHash
		}
	}
	return filepath.Join(d.dir, hash[:2], hash[2:4], hash), nil
}

// Put writes to an unfinished file, syncs it, and only then gives it its name, so a name
// always means the whole content.
func (d *Disk) Put(ctx context.Context, r io.Reader, limit int64) (hash string, size int64, err error) {
	f, err := os.CreateTemp(d.unfinished(), "put-*")
	if err != nil {
		return "", 0, fmt.Errorf("keep content: %w", err)
	}
	defer func() {
		_ = f.Close()           // closed already when all went well
		_ = os.Remove(f.Name()) // gone already when it was renamed
	}()
	sum := sha256.New()
	in := contextReader{ctx, r}
	size, err = io.Copy(io.MultiWriter(f, sum), io.LimitReader(in, limit))
	if err != nil {
		return "", 0, fmt.Errorf("keep content: %w", err)
	}
	if more, err := one(in); err != nil {
		return "", 0, fmt.Errorf("keep content: %w", err)
	} else if more {
		return "", 0, ErrTooLarge
	}
	hash = hex.EncodeToString(sum.Sum(nil))
	if err := d.name(f, hash, size); err != nil {
		return "", 0, fmt.Errorf("keep content: %w", err)
	}
	return hash, size, nil
}

// name makes an unfinished file the content of its hash. The same content put at the same
// time is renamed over an equal file.
func (d *Disk) name(f *os.File, hash string, size int64) error {
	path, err := d.path(hash)
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	// A file of another size is damaged: the new one takes its place.
	if info, err := os.Stat(path); err == nil && info.Size() == size {
		return syncDir(filepath.Dir(path)) // the one who wrote it may not have come so far
	}
	shard := filepath.Dir(path)
	if err := os.MkdirAll(shard, 0o700); err != nil {
		return err
	}
	err = os.Rename(f.Name(), path)
	if err != nil {
		return err
	}
	for _, dir := range []string{shard, filepath.Dir(shard), d.dir} {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// Get opens a content for reading.
func (d *Disk) Get(_ context.Context, hash string) (io.ReadSeekCloser, int64, error) {
	path, err := d.path(hash)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, ErrNotFound
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open content: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("open content: %w", err)
	}
	return f, info.Size(), nil
}

// Delete removes a content; who still refers to it is the caller's knowledge.
func (d *Disk) Delete(_ context.Context, hash string) error {
	path, err := d.path(hash)
	if err != nil {
		return err
	}
	err = os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete content: %w", err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("delete content: %w", err)
	}
	return nil
}

// contextReader stops a slow upload when its request has ended.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// one says whether there is another byte.
func one(r io.Reader) (bool, error) {
	_, err := io.ReadFull(r, make([]byte, 1))
	if errors.Is(err, io.EOF) {
		return false, nil
	}
	return err == nil, err
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Sync()
}
