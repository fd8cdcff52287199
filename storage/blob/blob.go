// Package blob keeps media bytes, each content once under its SHA-256. It knows nothing of
// media IDs, users or quotas: who may see what stands in SQL.
package blob

import (
	"context"
	"errors"
	"io"
)

// ErrTooLarge says that there were more bytes than the limit; nothing was kept.
var ErrTooLarge = errors.New("more bytes than allowed")

// ErrNotFound says that no content has this hash.
var ErrNotFound = errors.New("no such content")

// ErrBadHash says that a string is no hash that Put has ever given.
var ErrBadHash = errors.New("not a content hash")

// Store keeps contents by hash. Putting a content twice keeps it once, and a content that Put
// has named is on disk: the row that refers to it may be committed.
type Store interface {
	// Put reads to the end and gives the lower-case hexadecimal SHA-256 and the size.
	Put(ctx context.Context, r io.Reader, limit int64) (hash string, size int64, err error)
	Get(ctx context.Context, hash string) (io.ReadSeekCloser, int64, error)
	// Delete is done, too, when there is nothing to delete.
	Delete(ctx context.Context, hash string) error
}
