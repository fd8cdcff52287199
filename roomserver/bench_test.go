package roomserver_test

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"

	"chancery/roomserver"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// BenchmarkSend appends messages to 20 rooms: one after the other, and so many at once that they share transactions.
func BenchmarkSend(b *testing.B) {
	for _, senders := range []int{1, 64, 100} {
		b.Run(fmt.Sprint("senders=", senders), func(b *testing.B) {
			eachEngine(b, func(b *testing.B, o sql.Options) {
				s := engine(b, o)
				rooms := make([]id.RoomID, 20)
				for i := range rooms {
					rooms[i] = newRoom(b, s, "11")
				}
				body := content(map[string]any{"body": "The committee will meet at noon on Thursday.", "msgtype": "m.text"})
				var n atomic.Int64
				b.SetParallelism(max(senders/runtime.GOMAXPROCS(0), 1))
				before := s.DB.Commits()
				b.ResetTimer()
				defer func() {
					b.ReportMetric(float64(n.Load())/b.Elapsed().Seconds(), "events/s")
					b.ReportMetric(float64(n.Load())/float64(s.DB.Commits()-before), "events/transaction")
				}()
				one := func() {
					i := n.Add(1)
					_, err := s.Send(context.Background(), roomserver.NewEvent{Room: rooms[i%20], Sender: alice, Type: "m.room.message", Content: body,
						Once: &roomserver.Once{Device: id.DeviceID(fmt.Sprint("D", i%64)), Txn: fmt.Sprint(i)}})
					if err != nil {
						b.Error(err)
					}
				}
				if senders == 1 {
					for b.Loop() {
						one()
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						one()
					}
				})
			})
		})
	}
}

func eachEngine(b *testing.B, bench func(*testing.B, sql.Options)) {
	b.Run("sqlite", func(b *testing.B) { bench(b, sqltest.SQLite(b)) })
	b.Run("postgres", func(b *testing.B) { bench(b, sqltest.PostgreSQL(b)) })
}
