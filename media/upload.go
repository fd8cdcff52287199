package media

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"chancery"
	"chancery/storage"
	"chancery/storage/blob"

	"maunium.net/go/mautrix/id"
)

// Upload is a file on its way in.
type Upload struct {
	User id.UserID
	Type string // Content-Type, as the client said it
	Name string
	Body io.Reader
}

const (
	// reservedFor is how long an ID waits for its file.
	//
	// spec: c2s/createContent (recommended: 24 hours)
	reservedFor = 24 * time.Hour
	// maxReserved is how many IDs of a user wait at once.
	maxReserved = 50
)

// newID gives an ID that nobody can guess: knowing it is what opens the file.
func newID() string {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Upload keeps a file under a new ID. When it returns, the file is on disk and its row is committed.
//
// spec: c2s/uploadContent
func (s *Server) Upload(ctx context.Context, in Upload) (mediaID string, err error) {
	v, err := s.take(ctx, in)
	if err != nil {
		return "", err
	}
	v.Origin, v.ID, v.User = s.ServerName, newID(), string(in.User)
	err = s.keep(ctx, v.Hash, func(tx storage.Tx) error {
		_, err := tx.InsertMedia(v)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("keep the uploaded file: %w", err)
	}
	return v.ID, nil
}

// Reserve gives an ID whose file is uploaded later, and until when.
//
// spec: c2s/createContent
func (s *Server) Reserve(ctx context.Context, user id.UserID) (mediaID string, expires time.Time, err error) {
	now := s.now()
	expires = now.Add(reservedFor)
	v := storage.Media{Origin: s.ServerName, ID: newID(), User: string(user), Created: now.UnixMilli(),
		LastAccess: now.UnixMilli(), Expires: expires.UnixMilli()}
	err = s.DB.Write(ctx, []string{"media " + v.User}, func(tx storage.Tx) error {
		n, err := tx.ReservedMedia(v.User, now.UnixMilli())
		if err != nil {
			return err
		}
		if n >= maxReserved {
			return chancery.LimitExceeded(time.Minute)
		}
		_, err = tx.InsertMedia(v)
		return err
	})
	if err != nil {
		return "", time.Time{}, fmt.Errorf("reserve a media ID: %w", err)
	}
	return v.ID, expires, nil
}

// Fill uploads the file of a reserved ID. Only who reserved it may, and only once.
//
// spec: c2s/uploadContentToMXC
func (s *Server) Fill(ctx context.Context, origin, mediaID string, in Upload) error {
	if err := s.fillable(ctx, origin, mediaID, in.User); err != nil {
		return err
	}
	v, err := s.take(ctx, in)
	if err != nil {
		return err
	}
	v.Origin, v.ID = origin, mediaID
	err = s.keep(ctx, v.Hash, func(tx storage.Tx) error {
		filled, err := tx.FillMedia(v, s.now().UnixMilli())
		if err == nil && !filled {
			return alreadyUploaded()
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("keep the uploaded file: %w", err)
	}
	s.arrived(mediaID)
	return nil
}

// fillable says why an ID cannot be filled, before a byte of the file is read.
func (s *Server) fillable(ctx context.Context, origin, name string, user id.UserID) error {
	if origin != s.ServerName || !mediaID.MatchString(name) {
		return notReserved()
	}
	v, ok, err := s.row(ctx, origin, name)
	switch {
	case err != nil:
		return err
	case !ok || v.Hash == "" && v.Expires <= s.now().UnixMilli():
		return notReserved()
	case v.User != string(user):
		return chancery.Forbidden("another user reserved this media ID")
	case v.Hash != "":
		return alreadyUploaded()
	}
	return nil
}

func notReserved() *chancery.Error {
	return chancery.NotFound("the media ID was not reserved, or not in time")
}

func alreadyUploaded() *chancery.Error {
	return chancery.Errorf(http.StatusConflict, chancery.CodeCannotOverwriteMedia, "the file was uploaded already")
}

// take reads a file to its end into the blob store.
func (s *Server) take(ctx context.Context, in Upload) (storage.Media, error) {
	now := s.now().UnixMilli()
	v := storage.Media{Type: cleanType(in.Type), Name: cleanName(in.Name), Created: now, LastAccess: now}
	body := &reading{r: in.Body}
	var err error
	v.Hash, v.Size, err = s.Blobs.Put(ctx, body, s.MaxBytes)
	switch {
	case errors.Is(err, blob.ErrTooLarge):
		return v, chancery.TooLarge("files may have at most %d bytes", s.MaxBytes)
	case err != nil && body.failed != nil:
		return v, chancery.Errorf(http.StatusBadRequest, chancery.CodeUnknown, "the file did not arrive whole").Because(err)
	case err != nil:
		return v, fmt.Errorf("store the file: %w", err)
	}
	return v, nil
}

// reading remembers that it was the sender who failed, not our disk.
type reading struct {
	r      io.Reader
	failed error
}

func (r *reading) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.failed = err
	}
	return n, err
}

// keep commits rows that name a content which Put has stored.
func (s *Server) keep(ctx context.Context, hash string, write func(storage.Tx) error) error {
	s.content.RLock()
	defer s.content.RUnlock()
	// The same content may have been forgotten since Put found it there.
	f, _, err := s.Blobs.Get(ctx, hash)
	if errors.Is(err, blob.ErrNotFound) {
		return chancery.Errorf(http.StatusServiceUnavailable, chancery.CodeUnknown, "try again").Because(err)
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return s.DB.Write(ctx, nil, write)
}
