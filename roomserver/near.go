package roomserver

import (
	"context"
	"time"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// nearTime is how long a server has to find an event by time.
const nearTime = 10 * time.Second

// Nearest asks other servers for the event of a room that is nearest to a time (milliseconds), forwards or backwards, until
// one names one that is less than so far from it; 0: at whatever distance. heard is false when no server answers.
// That the event is there, and of that time, is the server's word until it has been backfilled.
//
// spec: s2s/getEventByTimestamp
func (s *Server) Nearest(ctx context.Context, roomID id.RoomID, ts int64, forwards bool, within int64) (distance int64, found, heard bool, err error) {
	servers, err := s.otherServers(ctx, roomID)
	if err != nil {
		return 0, false, false, err
	}
	direction, sign := "b", int64(-1)
	if forwards {
		direction, sign = "f", 1
	}
	for _, server := range servers[:min(len(servers), helpers)] {
		short, cancel := context.WithTimeout(ctx, nearTime)
		_, at, err := s.Peer.TimestampToEvent(short, server, roomID, ts, direction)
		cancel()
		if err != nil && !knowsNot(err) {
			s.Log.Debug("timestamp_to_event failed", zap.String("server", server), zap.Error(err))
			continue
		}
		heard = true
		if distance = sign * (at - ts); err == nil && distance >= 0 && (within == 0 || distance < within) {
			return distance, true, true, nil
		}
	}
	return 0, false, heard, nil
}
