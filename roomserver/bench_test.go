package roomserver_test

import (
	"context"
	"encoding/json"
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

// BenchmarkReceive takes transactions of 50 messages from another server, with their signatures: events/s is for
// one core, by the CPU time of the whole process. It is the room's first server, or one that joined it.
func BenchmarkReceive(b *testing.B) {
	for _, joined := range []bool{false, true} {
		b.Run(fmt.Sprint("joined=", joined), func(b *testing.B) {
			eachEngine(b, func(b *testing.B, o sql.Options) { receiveMessages(b, o, joined) })
		})
	}
}

func receiveMessages(b *testing.B, o sql.Options, joined bool) {
	s, from := beside(b, o)
	room := newRoom(b, s, "12")
	last := from.join(b, s, room).ID()
	auth := authIDs(b, s, "12", room, last)
	if joined {
		s = joinedElsewhere(b, s, room, last)
	}
	const each = 50
	transactions := make([][]json.RawMessage, b.N)
	for i := range transactions {
		for range each {
			ev := from.message(b, "12", room, []id.EventID{last}, auth, "The committee will meet at noon on Thursday.")
			last = ev.ID()
			transactions[i] = append(transactions[i], ev.JSON())
		}
	}
	before := cpuTime()
	b.ResetTimer()
	for _, pdus := range transactions {
		for v, err := range s.Receive(b.Context(), from.name, pdus) {
			if err != nil {
				b.Fatalf("%s: %v", v, err)
			}
		}
	}
	b.StopTimer()
	cpu := cpuTime() - before
	events := float64(each * b.N)
	b.ReportMetric(float64(cpu.Microseconds())/events, "cpu-µs/event")
	b.ReportMetric(events/cpu.Seconds(), "events/cpu-s")
}

func eachEngine(b *testing.B, bench func(*testing.B, sql.Options)) {
	b.Run("sqlite", func(b *testing.B) { bench(b, sqltest.SQLite(b)) })
	b.Run("postgres", func(b *testing.B) { bench(b, sqltest.PostgreSQL(b)) })
}
