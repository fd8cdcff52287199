package roomserver

import (
	"context"
	"time"

	"chancery/storage"
)

// Report keeps what a user reports of a room, an event or a user, for those who moderate this server.
//
// spec: c2s#reporting-content
func (s *Server) Report(ctx context.Context, r storage.Report) error {
	r.TS = time.Now().UnixMilli()
	return s.DB.Write(ctx, []string{"reports"}, func(tx storage.Tx) error { return tx.InsertReport(r) })
}
