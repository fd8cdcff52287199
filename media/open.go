package media

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/blob"

	"go.uber.org/zap"
)

// Want names a file, and says how far to go for it.
type Want struct {
	Origin, ID string
	Wait       time.Duration // for a file that is not uploaded yet
	LocalOnly  bool          // do not fetch it from its server
	PublicOnly bool          // the asker is not known: only what is from before the freeze
}

const (
	// DefaultWait is how long we wait for a file that is not uploaded yet, where nobody says.
	DefaultWait = 20 * time.Second
	maxWait     = time.Minute
	// pollEvery finds a file that was uploaded through another process.
	pollEvery = 2 * time.Second
	// seenEvery is how exactly the last access is known.
	seenEvery = time.Hour
)

// Open gives a file: ours, or another server's, which is fetched when it is not here.
//
// spec: c2s/getContentAuthed
func (s *Server) Open(ctx context.Context, w Want) (*File, error) {
	v, err := s.find(ctx, w)
	if err != nil {
		return nil, err
	}
	f, err := s.open(ctx, v)
	if errors.Is(err, blob.ErrNotFound) && v.Origin != s.ServerName && !w.LocalOnly && s.Peers != nil {
		if v, err = s.fetch(ctx, w); err != nil {
			return nil, err
		}
		f, err = s.open(ctx, v)
	}
	if errors.Is(err, blob.ErrNotFound) {
		s.Log.Error("the content of a file is lost", zap.String("origin", v.Origin), zap.String("media", v.ID), zap.String("hash", v.Hash))
		return nil, notFound().Because(err)
	}
	return f, err
}

// find gives the row of a file whose content should be here.
func (s *Server) find(ctx context.Context, w Want) (storage.Media, error) {
	if !mediaID.MatchString(w.ID) || !peer.ValidServerName(w.Origin) {
		return storage.Media{}, notFound()
	}
	v, ok, err := s.row(ctx, w.Origin, w.ID)
	if err != nil {
		return v, err
	}
	if !ok && w.Origin != s.ServerName && !w.LocalOnly && !w.PublicOnly && s.Peers != nil {
		return s.fetch(ctx, w)
	}
	if !ok || v.QuarantinedBy != "" {
		return v, notFound()
	}
	if v.Hash == "" {
		if v, err = s.await(ctx, w); err != nil {
			return v, err
		}
	}
	if w.PublicOnly && !v.Public {
		// spec: c2s#content-repo-client-behaviour (the freeze)
		return v, chancery.NotFound("this file is only for users who are signed in")
	}
	s.see(v)
	return v, nil
}

func (s *Server) row(ctx context.Context, origin, mediaID string) (v storage.Media, ok bool, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		v, ok, err = tx.Media(origin, mediaID)
		return err
	})
	if err != nil {
		return v, false, fmt.Errorf("look for a file: %w", err)
	}
	return v, ok, nil
}

func (s *Server) open(ctx context.Context, v storage.Media) (*File, error) {
	body, size, err := s.Blobs.Get(ctx, v.Hash)
	if err != nil {
		return nil, fmt.Errorf("open the file: %w", err)
	}
	return &File{ReadSeekCloser: body, Hash: v.Hash, Size: size, Type: v.Type, Name: v.Name}, nil
}

// here finds a file of another server that was fetched and may be given.
func (s *Server) here(ctx context.Context, w Want) (storage.Media, bool) {
	v, ok, err := s.row(ctx, w.Origin, w.ID)
	if err != nil || !ok || v.QuarantinedBy != "" {
		return v, false
	}
	f, err := s.open(ctx, v)
	if err != nil {
		return v, false
	}
	f.Close()
	return v, true
}

// see notes the access, without anybody waiting for it.
func (s *Server) see(v storage.Media) {
	now := s.now().UnixMilli()
	if now-v.LastAccess < seenEvery.Milliseconds() {
		return
	}
	s.DB.Submit(nil, func(tx storage.Tx) error {
		tx.SeeMedia(v.Origin, v.ID, now)
		return nil
	}, func(err error) { s.Log.Warn("an access to media was not noted", zap.Error(err)) })
}

// await waits for the file of a reserved ID.
func (s *Server) await(ctx context.Context, w Want) (storage.Media, error) {
	wait := time.NewTimer(min(max(w.Wait, 0), maxWait))
	defer wait.Stop()
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	file := s.expect(w.ID)
	defer s.leave(w.ID, file)
	here := file.here
	for {
		v, ok, err := s.row(ctx, w.Origin, w.ID)
		switch {
		case err != nil:
			return v, err
		case !ok:
			return v, notFound() // it has expired
		case v.Hash != "":
			return v, nil
		}
		select {
		case <-here:
			here = nil // a row that is not there now will not come by waiting on this
		case <-poll.C:
		case <-wait.C:
			return v, notYetUploaded()
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// An arrival is closed when the file of a reserved ID is here. It is forgotten with its last waiter.
type arrival struct {
	here    chan struct{}
	waiters int
}

func (s *Server) expect(mediaID string) *arrival {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.awaits[mediaID]
	if a == nil {
		a = &arrival{here: make(chan struct{})}
		s.awaits[mediaID] = a
	}
	a.waiters++
	return a
}

func (s *Server) leave(mediaID string, a *arrival) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a.waiters--; a.waiters == 0 && s.awaits[mediaID] == a {
		delete(s.awaits, mediaID)
	}
}

func (s *Server) arrived(mediaID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.awaits[mediaID]; a != nil {
		close(a.here)
		delete(s.awaits, mediaID)
	}
}

// fetch gets a file from its server and keeps it. Who wants the same file waits for the same
// download, which goes on when one of them leaves.
func (s *Server) fetch(ctx context.Context, w Want) (storage.Media, error) {
	done := s.fetching.DoChan(w.Origin+"/"+w.ID, func() (_ any, err error) {
		defer func() { // a goroutine of its own: no file of another server may end the process
			if p := recover(); p != nil {
				err = fmt.Errorf("panic while fetching a file of %s: %v", w.Origin, p)
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		defer cancel()
		if v, ok := s.here(ctx, w); ok {
			return v, nil // another download has ended since the caller looked
		}
		return s.download(ctx, w)
	})
	select {
	case r := <-done:
		v, _ := r.Val.(storage.Media)
		return v, r.Err
	case <-ctx.Done():
		return storage.Media{}, ctx.Err()
	}
}

// fetchTime bounds a download, the waiting for its turn included.
const fetchTime = 6 * time.Minute

func (s *Server) download(ctx context.Context, w Want) (v storage.Media, err error) {
	if err := s.fetches.Acquire(ctx, 1); err != nil {
		return v, err
	}
	defer s.fetches.Release(1)
	remote, err := s.Peers.MediaDownload(ctx, w.Origin, w.ID, peer.MediaLimits{Wait: min(max(w.Wait, time.Second), maxWait), MaxBytes: s.MaxBytes})
	if err != nil {
		return v, fetchError(err)
	}
	defer remote.Body.Close()
	now := s.now().UnixMilli()
	v = storage.Media{Origin: w.Origin, ID: w.ID, Type: cleanType(remote.ContentType), Name: cleanName(remoteName(remote.Disposition)),
		Created: now, LastAccess: now}
	body := &reading{r: remote.Body}
	v.Hash, v.Size, err = s.Blobs.Put(ctx, body, s.MaxBytes)
	switch {
	case errors.Is(err, blob.ErrTooLarge):
		return v, fetchError(peer.ErrAnswerTooLarge)
	case err != nil && body.failed != nil:
		return v, fetchError(body.failed)
	case err != nil:
		return v, fmt.Errorf("store a fetched file: %w", err)
	}
	err = s.keep(ctx, v.Hash, func(tx storage.Tx) error {
		inserted, err := tx.InsertMedia(v)
		if err == nil && !inserted {
			tx.ReplaceMedia(v)
		}
		return err
	})
	if err != nil {
		return v, fmt.Errorf("keep a fetched file: %w", err)
	}
	return v, nil
}

// remoteName is the file name in another server's Content-Disposition.
//
// spec: c2s/getContentAuthed
func remoteName(disposition string) string {
	_, params, err := mime.ParseMediaType(disposition)
	if err != nil {
		return ""
	}
	return params["filename"]
}

// fetchError is what our client hears of a download that failed.
//
// spec: c2s#content-repo-security-considerations (502 M_TOO_LARGE)
func fetchError(err error) error {
	var refused *peer.Error
	errors.As(err, &refused)
	switch {
	case errors.Is(err, peer.ErrAnswerTooLarge),
		refused != nil && refused.Code == chancery.CodeTooLarge:
		return chancery.Errorf(http.StatusBadGateway, chancery.CodeTooLarge, "the file is too large to be fetched").Because(err)
	case refused != nil && refused.Code == chancery.CodeNotYetUploaded:
		return notYetUploaded().Because(err)
	case refused != nil && refused.Status == http.StatusNotFound:
		return notFound().Because(err)
	case errors.Is(err, context.DeadlineExceeded):
		return chancery.Errorf(http.StatusGatewayTimeout, chancery.CodeUnknown, "the file did not arrive in time").Because(err)
	}
	return chancery.Errorf(http.StatusBadGateway, chancery.CodeUnknown, "the file could not be fetched from its server").Because(err)
}
