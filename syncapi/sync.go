package syncapi

import (
	"context"
	"encoding/json"
	"time"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver/page"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

type syncIn struct {
	Caller        endpoint.Caller
	Filter        string `query:"filter"`
	Since         string `query:"since"`
	FullState     bool   `query:"full_state"`
	SetPresence   string `query:"set_presence"`
	Timeout       int64  `query:"timeout"`
	StateAfter    bool   `query:"use_state_after"`
	StateAfterOld bool   `query:"org.matrix.msc4222.use_state_after"`
}

// A long poll waits at most this long, whatever the client asks for.
const maxTimeout = 5 * time.Minute

// query is one request, understood.
type query struct {
	user        id.UserID
	device      id.DeviceID
	since       page.Sync
	incremental bool // since says something; else everything is told
	filter      *filter
	full        bool   // the whole state of every room
	after       string // the name under which the state at the timeline's end is told; "": at its start
}

// sync tells what happened since a token, and waits when nothing did.
//
// spec: c2s/sync, c2s#syncing
func (s *Server) sync(ctx context.Context, in *syncIn) (*json.RawMessage, error) {
	q, err := s.understand(ctx, in)
	if err != nil {
		return nil, err
	}
	listener, done, err := s.watch.listen(ctx, string(q.user))
	if err != nil {
		return nil, err
	}
	defer done()
	if err := s.acknowledge(ctx, q); err != nil {
		return nil, err
	}
	timeout := min(time.Duration(max(in.Timeout, 0))*time.Millisecond, maxTimeout)
	if !q.incremental || q.full {
		timeout = 0
	}
	late := time.NewTimer(timeout)
	defer late.Stop()
	s.watch.catchUp(ctx)
	for over := timeout == 0; ; {
		something, end, changed := s.watch.news(listener, q)
		if something {
			out, empty, err := s.answer(ctx, listener, q)
			if err != nil || !empty || over {
				return out, err
			}
			continue // the token moved on: look again, and wait
		}
		if over {
			q.since.Pos = end
			return s.nothing(ctx, listener, q)
		}
		select {
		case <-changed:
		case <-late.C:
			over = true
		case <-s.stopped:
			over = true
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// understand reads a request. Nothing is done before it is understood.
func (s *Server) understand(ctx context.Context, in *syncIn) (*query, error) {
	q := &query{user: in.Caller.User, device: in.Caller.Device, full: in.FullState}
	switch {
	case in.StateAfter:
		q.after = "state_after"
	case in.StateAfterOld:
		q.after = "org.matrix.msc4222.state_after"
	}
	switch in.SetPresence {
	case "", "online", "offline", "unavailable":
	default:
		return nil, chancery.InvalidParam("set_presence must be online, offline or unavailable")
	}
	if in.Timeout < 0 {
		return nil, chancery.InvalidParam("the timeout is negative")
	}
	var err error
	if q.filter, err = s.filter(ctx, string(q.user), in.Filter); err != nil {
		return nil, err
	}
	if in.Since != "" {
		if q.since, err = page.ParseSync(in.Since); err != nil {
			return nil, err
		}
		if q.incremental, err = s.goesOn(ctx, q.since); err != nil {
			return nil, err
		}
	}
	if !q.incremental {
		q.since = page.Sync{}
	}
	q.since.Epoch = s.DB.Epoch()
	s.Users.Synced(q.user, q.device, in.SetPresence)
	return q, nil
}

// goesOn says whether what happened since a token can be told. A token of an older epoch goes on when it
// is no younger than what was restored; one that names what is lost, or is older than what is kept, gets
// everything anew.
func (s *Server) goesOn(ctx context.Context, since page.Sync) (bool, error) {
	if since.Epoch == s.DB.Epoch() && since.Pos >= s.Tail.Start() {
		return true, nil
	}
	goesOn := false
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		first, err := tx.FirstPos()
		if err != nil {
			return err
		}
		if since.Pos < first-1 {
			return nil
		}
		epochs, err := tx.Epochs()
		if err != nil {
			return err
		}
		for _, e := range epochs { // the newest first
			if e.Number == since.Epoch {
				goesOn = true
				return nil
			}
			if since.Pos > e.Restored {
				return nil
			}
		}
		return nil // of an epoch that we do not know
	})
	return goesOn, err
}
