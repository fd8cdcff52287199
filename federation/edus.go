package federation

import (
	"context"

	"chancery/federation/peer"
)

// receiveEDUs takes the EDUs of a transaction. One that is wrong is passed over; an error means that
// something which must be kept was not, and the whole transaction has to come again.
//
// spec: s2s#edus
func (s *Server) receiveEDUs(ctx context.Context, origin string, edus []peer.EDU) error {
	return nil
}
