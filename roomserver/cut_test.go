package roomserver_test

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql/sqltest"

	"github.com/jackc/pgx/v5"
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// cuts is a way to the database that breaks now and then: what was sent is lost, arrives late, or arrives
// without its answer.
type cuts struct {
	to    string
	every atomic.Int64 // of so many pieces sent one is cut; 0: none
	made  atomic.Int64
}

func (c *cuts) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go c.carry(conn)
	}
}

func (c *cuts) carry(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", c.to)
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		piece := make([]byte, 64<<10)
		for {
			n, err := server.Read(piece)
			if err != nil {
				client.Close()
				return
			}
			if _, err := client.Write(piece[:n]); err != nil {
				return // the server goes on with what it was sent
			}
		}
	}()
	piece := make([]byte, 64<<10)
	for age := 0; ; age++ {
		n, err := client.Read(piece)
		if err != nil {
			return
		}
		// A connection that is being made is left alone.
		if every := c.every.Load(); every > 0 && age > 15 && rand.Int64N(every) == 0 {
			c.made.Add(1)
			client.Close()
			switch rand.IntN(3) {
			case 0:
				return
			case 1: // it arrives when the client has long been connected anew
				time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
			}
			server.Write(piece[:n])
			time.Sleep(200 * time.Millisecond)
			return
		}
		if _, err := server.Write(piece[:n]); err != nil {
			return
		}
	}
}

// order.md 6: a commit whose outcome is not known may still happen after the room was read again. Senders who
// repeat what failed find each message there once, and the room is one line of events.
func TestCommitsOfUnknownOutcome(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	plain := o.URL
	direct, err := url.Parse(plain)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	way := &cuts{to: direct.Host}
	go way.serve(l)
	direct.Host = l.Addr().String()
	o.URL = direct.String()
	s := engine(t, o)
	rooms := []id.RoomID{newRoom(t, s, "12"), newRoom(t, s, "12")}

	way.every.Store(4)
	const senders, messages = 6, 30
	var all sync.WaitGroup
	for sender := range senders {
		all.Go(func() {
			for i := range messages {
				say := roomserver.NewEvent{Room: rooms[sender%2], Sender: alice, Type: "m.room.message",
					Content: content(map[string]any{"body": fmt.Sprint(sender, " ", i)}),
					Once:    &roomserver.Once{Device: "D", Endpoint: "send", Txn: fmt.Sprint(sender, " ", i)}}
				for try := 0; ; try++ {
					if _, err := s.Send(t.Context(), say); err == nil {
						break
					} else if try == 100 {
						t.Errorf("%d %d: %v", sender, i, err)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	all.Wait()
	way.every.Store(0)
	time.Sleep(300 * time.Millisecond) // what is late arrives

	for n, room := range rooms {
		count := map[string]int{}
		var events []storage.Event
		var ends []int64
		for try := 0; ; try++ { // the first reads may meet connections that were cut
			err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
				row, _, err := tx.Room(string(room))
				if err != nil {
					return err
				}
				if ends, err = tx.Extremities(row.NID); err != nil {
					return err
				}
				events, err = tx.EventsAbove(row.NID, 0, 1<<62, 10_000)
				return err
			})
			if err == nil {
				break
			} else if try == 10 {
				t.Fatal(err)
			}
		}
		for i, ev := range events {
			if ev.Type == "m.room.message" {
				count[gjson.GetBytes(ev.JSON, "content.body").Str]++
			}
			if i == 0 {
				continue
			}
			var prev []string
			for _, p := range gjson.GetBytes(ev.JSON, "prev_events").Array() {
				prev = append(prev, p.Str)
			}
			if !slices.Equal(prev, []string{events[i-1].ID}) {
				t.Errorf("room %d: event %d builds on %v, before it stands %s", n, i, prev, events[i-1].ID)
			}
		}
		if len(ends) != 1 || ends[0] != events[len(events)-1].NID {
			t.Errorf("room %d ends with %v", n, ends)
		}
		for sender := n; sender < senders; sender += 2 {
			for i := range messages {
				if c := count[fmt.Sprint(sender, " ", i)]; c != 1 {
					t.Errorf("message %d of sender %d is there %d times", i, sender, c)
				}
			}
		}
	}
	conn, err := pgx.Connect(t.Context(), plain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var fence int64
	if err := conn.QueryRow(t.Context(), `SELECT max(fence) FROM fences`).Scan(&fence); err != nil || fence < 2 {
		t.Errorf("the highest fence is %d, %v: none was raised", fence, err)
	}
	t.Logf("%d connections were cut", way.made.Load())
	if way.made.Load() < 5 {
		t.Error("too few for a test")
	}
}
