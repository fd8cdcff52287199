package users

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"chancery/storage"
)

const (
	seenEvery = 3 * time.Minute  // a device is noted at most this often
	seenFlush = 20 * time.Second // and written this long after at the latest
	seenTable = 10_000           // devices noted and not written yet
	seenPiece = 500              // rows of one transaction
)

// sightings are devices seen and not written yet.
type sightings struct {
	mu      sync.Mutex // guards waiting
	waiting map[[2]string]storage.Device
}

// Saw notes that a session was used. It never waits: the writing is Run's.
func (s *Server) Saw(v *Session, ip, userAgent string) {
	at := time.Now()
	last := v.seen.Load()
	if at.UnixMilli()-last < seenEvery.Milliseconds() || !v.seen.CompareAndSwap(last, at.UnixMilli()) {
		return
	}
	s.sightings.mu.Lock()
	defer s.sightings.mu.Unlock()
	if len(s.sightings.waiting) >= seenTable {
		return // the next sighting will do
	}
	if s.sightings.waiting == nil {
		s.sightings.waiting = map[[2]string]storage.Device{}
	}
	s.sightings.waiting[[2]string{string(v.User), string(v.Device)}] = storage.Device{
		User: string(v.User), ID: string(v.Device), LastSeen: at.UnixMilli(), LastSeenIP: ip, UserAgent: short(userAgent),
	}
}

// flushSeen writes what is waiting. A failure is not worth trying again.
func (s *Server) flushSeen(ctx context.Context) {
	s.sightings.mu.Lock()
	waiting := s.sightings.waiting
	s.sightings.waiting = nil
	s.sightings.mu.Unlock()
	rows := make([]storage.Device, 0, len(waiting))
	for _, d := range waiting {
		rows = append(rows, d)
	}
	slices.SortFunc(rows, func(a, b storage.Device) int {
		return strings.Compare(a.User+"\x00"+a.ID, b.User+"\x00"+b.ID)
	})
	for piece := range slices.Chunk(rows, seenPiece) {
		keys := make([]string, len(piece))
		for i, d := range piece {
			keys[i] = d.User
		}
		err := s.DB.Write(ctx, slices.Compact(keys), func(tx storage.Tx) error {
			for _, d := range piece {
				tx.SeeDevice(d)
			}
			return nil
		})
		if err != nil {
			s.Log.Warn("noting when devices were seen failed", zap.Int("devices", len(piece)), zap.Error(err))
			return
		}
	}
}

// short bounds what a client says of itself.
func short(userAgent string) string {
	const most = 255
	if len(userAgent) > most {
		return userAgent[:most]
	}
	return userAgent
}
