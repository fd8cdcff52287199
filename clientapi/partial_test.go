package clientapi_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// within asks for something that may take only so long; 0 says that it took longer.
func (h *house) within(most time.Duration, user, method, path, body string) int {
	h.T.Helper()
	ctx, cancel := context.WithTimeout(h.T.Context(), most)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, h.URL+path, strings.NewReader(body))
	if err != nil {
		h.T.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+user)
	res, err := h.Client().Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return 0
	}
	if err != nil {
		h.T.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode
}

// setPartial has a room look as if members were still to come, or were all there.
func (h *house) setPartial(room id.RoomID, partial bool) {
	h.T.Helper()
	err := h.DB.Write(h.T.Context(), nil, func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		row.Partial = partial
		tx.UpdateRoom(row)
		tx.EndPartial(row.NID)
		if partial {
			return tx.BeginPartial(storage.PartialJoin{Room: row.NID, Join: 1, Server: "far"}, nil)
		}
		return nil
	})
	if err != nil {
		h.T.Fatal(err)
	}
}

// While members of a room are still to come, those in it wait for what depends on them: who replaces the room would let in
// whom it has banned. Nobody else waits.
//
// spec: msc3902, c2s#room-upgrades
func TestOnlyWhoIsInARoomWaitsForItsMembers(t *testing.T) {
	const short, ample = 300 * time.Millisecond, time.Minute
	h := build(t, sqliteOf(t))
	room := h.room(bob)
	rooms := v3 + "/rooms/" + string(room)
	h.setPartial(room, true)
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/state/m.room.member/@remi:far", ""},
		{"PUT", "/state/m.room.member/@remi:far", `{"membership":"ban"}`},
		{"POST", "/invite", `{"user_id":"@remi:far"}`},
		{"POST", "/kick", `{"user_id":"@remi:far"}`},
		{"POST", "/upgrade", `{"new_version":"12"}`},
	} {
		if status := h.within(ample, carol, c.method, rooms+c.path, c.body); status != 403 {
			t.Errorf("%s %s of somebody who is not in the room: %d", c.method, c.path, status)
		}
		if c.path == "/invite" {
			continue // the same wait as that for the ban, and another server to ask afterwards
		}
		if status := h.within(short, alice, c.method, rooms+c.path, c.body); status != 0 {
			t.Errorf("%s %s does not wait: %d", c.method, c.path, status)
		}
	}
	h.setPartial(room, false)
	h.want(alice, "POST", rooms+"/upgrade", `{"new_version":"12"}`, 200, "")
}
