package storage

import (
	"encoding/json"
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
				if _, err = tx.TrimInbox("@a:x", "A", c.most, c.bytes); err != nil {
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
