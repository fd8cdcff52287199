package federation_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver"

	"maunium.net/go/mautrix/id"
)

// Rooms in the directory of another server are found page by page.
//
// spec: s2s/getPublicRooms, s2s/queryPublicRooms
func TestTheDirectoryOfAnotherServer(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		publish := func(state map[string]any, members ...id.UserID) id.RoomID {
			room := b.room(b.user("bob"), state)
			for _, m := range members {
				if err := b.rooms.Join(t.Context(), roomserver.Join{Room: room, User: m}); err != nil {
					t.Fatal(err)
				}
			}
			if err := b.rooms.Publish(t.Context(), room, true); err != nil {
				t.Fatal(err)
			}
			return room
		}
		html := map[string]any{"mimetype": "text/html", "body": "<b>markup</b>"}
		large := publish(map[string]any{"m.room.name": map[string]any{"name": "Large"}, "m.room.canonical_alias": map[string]any{"alias": "no alias"},
			"m.room.topic": map[string]any{"topic": "old words", "m.topic": map[string]any{"m.text": []any{html, map[string]any{"body": "plain words"}}}}},
			b.user("carol"), b.user("dora"))
		middle := publish(map[string]any{"m.room.name": map[string]any{"name": "Middle"}}, b.user("carol"))
		small := publish(map[string]any{"m.room.topic": map[string]any{"topic": "just words", "m.topic": map[string]any{"m.text": []any{html}}}})
		b.room(b.user("bob"), nil) // which is not published
		far := func(q peer.PublicRoomsQuery) *roomserver.Directory {
			t.Helper()
			d, err := a.rooms.FarDirectory(t.Context(), b.name, q)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		rooms := func(d *roomserver.Directory, want ...id.RoomID) {
			t.Helper()
			ok := len(d.Chunk) == len(want)
			for i := range want {
				ok = ok && d.Chunk[i].RoomID == want[i]
			}
			if !ok {
				t.Errorf("rooms %+v, want %v", d.Chunk, want)
			}
		}
		all := far(peer.PublicRoomsQuery{})
		rooms(all, large, middle, small)
		if all.Total == nil || *all.Total != 3 || all.NextBatch != "" || all.PrevBatch != "" || all.Chunk[0].Joined != 3 || all.Chunk[0].Topic != "plain words" ||
			all.Chunk[0].CanonicalAlias != "" || all.Chunk[2].Topic != "just words" {
			t.Errorf("the whole directory: %+v", all)
		}
		first := far(peer.PublicRoomsQuery{Limit: 2})
		rooms(first, large, middle)
		second := far(peer.PublicRoomsQuery{Limit: 2, Since: first.NextBatch})
		rooms(second, small)
		rooms(far(peer.PublicRoomsQuery{Limit: 2, Since: second.PrevBatch}), large, middle)
		for filter, want := range map[string][]id.RoomID{
			`{}`: {large, middle, small}, `{"generic_search_term":"WORDS"}`: {large, small}, `{"generic_search_term":"` + string(middle) + `"}`: {middle},
			`{"room_types":["m.space"]}`: nil, `{"room_types":[null]}`: {large, middle, small},
		} {
			rooms(far(peer.PublicRoomsQuery{Filter: []byte(filter)}), want...)
		}
		rooms(far(peer.PublicRoomsQuery{ThirdPartyInstance: "irc"}))
		for _, q := range []peer.PublicRoomsQuery{{Since: "nonsense"}, {Since: "-1"}, {Filter: []byte(`{"generic_search_term":5}`)}, {Filter: []byte(`"x"`)}} {
			if _, err := a.rooms.FarDirectory(t.Context(), b.name, q); peer.StatusOf(err) != 400 && !chancery.IsCode(err, chancery.CodeBadJSON) && !chancery.IsCode(err, chancery.CodeInvalidParam) {
				t.Errorf("%+v: %v", q, err)
			}
		}
		if _, err := a.rooms.FarDirectory(t.Context(), "no name", peer.PublicRoomsQuery{}); !chancery.IsCode(err, chancery.CodeInvalidParam) {
			t.Errorf("a server of no name: %v", err)
		}
		b.fed.Config.Directory.Public = false
		if _, err := a.rooms.FarDirectory(t.Context(), b.name, peer.PublicRoomsQuery{}); !chancery.IsCode(err, chancery.CodeForbidden) {
			t.Errorf("a directory that is shown to nobody: %v", err)
		}
	})
}

// Of what another server says only rooms in their right form reach our users.
//
// spec: s2s/getPublicRooms
func TestADirectoryOfNonsense(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/publicRooms") {
				return false
			}
			io.WriteString(w, `{"chunk":[7,null,"x",[],{},{"room_id":5},{"room_id":"#x:y"},{"room_id":"!`+strings.Repeat("x", 300)+`:y"},
				{"room_id":"!good:y","name":{"a":1},"num_joined_members":-4,"world_readable":"yes","canonical_alias":"x","more":"words"}],"next_batch":"n"}`)
			return true
		}
		d, err := a.rooms.FarDirectory(t.Context(), b.name, peer.PublicRoomsQuery{})
		if err != nil || d.NextBatch != "n" || len(d.Chunk) != 1 || d.Chunk[0] != (roomserver.Summary{RoomID: "!good:y", JoinRule: "public"}) {
			t.Errorf("%+v, %v", d, err)
		}
	})
}
