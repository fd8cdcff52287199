package storage

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// Neither a device that never syncs nor a server that never answers fills the disk.
func TestWhatNobodyFetchesIsBounded(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		write := func(fn func(Tx) error) {
			t.Helper()
			if err := db.Write(t.Context(), nil, fn); err != nil {
				t.Fatal(err)
			}
		}
		content := json.RawMessage(`{"a":"` + strings.Repeat("x", 92) + `"}`) // 100 bytes
		write(func(tx Tx) error {
			for _, device := range []string{"A", "B"} {
				for range 10 {
					tx.AddToDevice(ToDevice{User: "@a:x", Device: device, Sender: "@b:x", Type: "m", Content: content}, 0)
				}
			}
			return nil
		})
		for _, c := range []struct {
			most  int
			bytes int64
			full  int
			left  int
		}{{10, 1000, 0, 10}, {8, 1000, 1, 8}, {10, 550, 1, 5}, {0, 0, 1, 0}} {
			var full []ToDevice
			var left []ToDevice
			write(func(tx Tx) (err error) {
				if full, err = tx.FullInboxes(c.most, c.bytes); err != nil {
					return err
				}
				if err = tx.TrimInbox("@a:x", "A", int64(c.most), c.bytes, func(sender string) string { return sender }); err != nil {
					return err
				}
				left, err = tx.ToDevice("@a:x", "A", 0, 100)
				return err
			})
			is := slices.ContainsFunc(full, func(v ToDevice) bool { return v.Device == "A" })
			if is != (c.full > 0) || len(left) != c.left || len(left) > 0 && left[len(left)-1].Number != 10 {
				t.Errorf("at most %d and %d bytes: full %v, left %v", c.most, c.bytes, full, left)
			}
		}
		var other []ToDevice
		var kept []EDU
		write(func(tx Tx) (err error) {
			if other, err = tx.ToDevice("@a:x", "B", 0, 100); err != nil {
				return err
			}
			for range 5 {
				tx.QueueEDU("dead.example", EDU{Type: "m.direct_to_device", Content: content},
					EDU{Type: "m.device_list_update", Content: content, Subject: "@a:x"}, EDU{Type: "m.device_list_update", Content: content, Subject: "@b:x"})
			}
			tx.QueueEDU("other.example", EDU{Type: "m.device_list_update", Content: content, Subject: "@a:x"})
			return nil
		})
		if len(other) != 10 {
			t.Errorf("the other inbox has %d messages left", len(other))
		}
		for _, c := range []struct {
			some, most int
			bytes      int64
			left       int
		}{{15, 15, 1500, 15}, {14, 15, 1500, 7}, {100, 6, 1500, 6}, {100, 6, 450, 4}, {100, 1, 1500, 2}} { // at last a mark remains beside the latest
			write(func(tx Tx) (err error) {
				tx.boundEDUs("dead.example", c.some, c.most, c.bytes)
				kept, err = tx.EDUs("dead.example", 100)
				return err
			})
			if len(kept) != c.left || kept[len(kept)-1].Type != "m.device_list_update" {
				t.Errorf("over %d, at most %d and %d bytes: %d left: %v", c.some, c.most, c.bytes, len(kept), kept)
			}
		}
		write(func(tx Tx) (err error) {
			kept, err = tx.EDUs("other.example", 100)
			return err
		})
		if len(kept) != 1 {
			t.Errorf("another server's EDUs: %v", kept)
		}
	})
}

// Who floods a device, or a room, or us with transactions, makes place by their own.
func TestAFloodPushesOutOnlyItself(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		write := func(fn func(Tx) error) {
			t.Helper()
			if err := db.Write(t.Context(), nil, fn); err != nil {
				t.Fatal(err)
			}
		}
		server := func(sender string) string { return sender[strings.Index(sender, ":")+1:] }
		add := func(sender, size string) {
			write(func(tx Tx) error {
				tx.AddToDevice(ToDevice{User: "@a:x", Device: "A", Sender: sender, Type: "m", Content: json.RawMessage(`"` + size + `"`)}, 0)
				return nil
			})
		}
		left := func(most, bytes int64) (by map[string]int) {
			by = map[string]int{}
			write(func(tx Tx) error {
				if err := tx.TrimInbox("@a:x", "A", most, bytes, server); err != nil {
					return err
				}
				list, err := tx.ToDevice("@a:x", "A", 0, 1000)
				for _, m := range list {
					by[server(m.Sender)]++
				}
				return err
			})
			return by
		}
		add("@b:honest", "first of all")
		for i := range 30 {
			add(fmt.Sprintf("@m%d:flood", i%7), "x")
			if i%10 == 0 {
				add("@c:chatty", "xx")
			}
		}
		for _, c := range []struct {
			most, bytes int64
			want        map[string]int
		}{{100, 1 << 20, map[string]int{"honest": 1, "chatty": 3, "flood": 30}}, {10, 1 << 20, map[string]int{"honest": 1, "chatty": 3, "flood": 6}},
			{5, 1 << 20, map[string]int{"honest": 1, "chatty": 2, "flood": 2}}, {5, 20, map[string]int{"chatty": 1, "flood": 2}}} {
			if by := left(c.most, c.bytes); !maps.Equal(by, c.want) {
				t.Errorf("of at most %d and %d bytes are left %v, want %v", c.most, c.bytes, by, c.want)
			}
		}

		write(func(tx Tx) error {
			tx.InsertReceivedTransaction("honest", "1", json.RawMessage(`{}`), 1)
			for i := range 3 * keptTransactions {
				tx.InsertReceivedTransaction("flood", fmt.Sprint(i), json.RawMessage(`{}`), int64(i))
			}
			tx.boundReceivedTransactions("flood")
			return nil
		})
		write(func(tx Tx) error {
			var kept, oldest int64
			if err := tx.QueryRow(`SELECT count(*), min(ts) FROM received_transactions WHERE origin = 'flood'`).Scan(&kept, &oldest); err != nil {
				return err
			}
			_, ok, err := tx.ReceivedTransaction("honest", "1")
			if kept != keptTransactions || oldest != 2*keptTransactions || !ok {
				t.Errorf("%d transactions are kept since %d, another server's: %v", kept, oldest, ok)
			}
			return err
		})

		waiting := func(tx Tx, room int64) (ids []string) {
			list, err := tx.UnjudgedIn(room, 100)
			if err != nil {
				t.Error(err)
			}
			for _, u := range list {
				ids = append(ids, u.ID)
			}
			return ids
		}
		write(func(tx Tx) error {
			for i, u := range []Unjudged{{Room: 1, ID: "old", Origin: "honest"}, {Room: 1, ID: "f1", Origin: "flood"}, {Room: 1, ID: "f2", Origin: "flood"},
				{Room: 2, ID: "h2", Origin: "honest"}, {Room: 2, ID: "h3", Origin: "honest"}} {
				u.Since, u.JSON = int64(i), []byte(`{}`)
				tx.AddUnjudged(u)
			}
			if err := tx.DropOldestUnjudged(1); err != nil { // of the flood, which has the most there
				return err
			}
			if here := waiting(tx, 1); !slices.Equal(here, []string{"f2", "old"}) {
				t.Errorf("there wait %v", here)
			}
			if err := tx.DropOldestUnjudged(0); err != nil { // of who has the most in all
				return err
			}
			if one, two := waiting(tx, 1), waiting(tx, 2); !slices.Equal(one, []string{"f2"}) || !slices.Equal(two, []string{"h3", "h2"}) {
				t.Errorf("there wait %v and %v", one, two)
			}
			return nil
		})
	})
}
