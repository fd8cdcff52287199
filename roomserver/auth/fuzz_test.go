package auth_test

import (
	"encoding/json"
	"strings"
	"testing"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// Whatever a peer writes into the contents that the rules read, there is a verdict and no panic.
// The contents come as if stored, so also what is not canonical reaches the rules.
func FuzzContents(f *testing.F) {
	deep := strings.Repeat(`{"users":`, 2000) + "{}" + strings.Repeat("}", 2000)
	for _, content := range []string{
		`{}`, `{"membership":"join"}`, `{"membership":{"join":1}}`, deep,
		`{"users":{"@bob:b.example":1e999},"events":[],"notifications":null,"ban":99999999999999999999999999}`,
		`{"users":{"@bob:b.example":50,"@bob:b.example":100,"":1},"ban":"  +007 ","kick":-0,"invite":"-"}`,
		`{"join_rule":["public"],"allow":[[],{"type":1},{"type":"m.room_membership","room_id":{}}]}`,
		`{"membership":"invite","third_party_invite":{"signed":{"mxid":"@bob:b.example","token":"tok","signatures":{"a":{"ed25519:":"AAAA"}}}}}`,
		`{"public_key":"","public_keys":[{"public_key":7},[],"x"]}`,
		`{"membership":"join","join_authorised_via_users_server":"@"}`,
		`{"creator":[],"m.federate":{},"additional_creators":[{}],"room_version":{}}`,
		`{"membership":"\ud800","users":{"\u0000":1}}`,
	} {
		for kind := range 5 {
			f.Add([]byte(content), uint8(kind), uint8(11))
		}
	}
	rooms := map[string]*room{}
	for _, v := range event.Versions() {
		rooms[v.Name] = joinedRoom(f, v.Name, bob)
	}
	f.Fuzz(func(t *testing.T, content []byte, kind, version uint8) {
		var object map[string]json.RawMessage
		if json.Unmarshal(content, &object) != nil || object == nil {
			t.Skip()
		}
		all := event.Versions()
		v := all[int(version)%len(all)]
		base := rooms[v.Name]
		typ := []string{"m.room.power_levels", "m.room.member", "m.room.join_rules", "m.room.third_party_invite", "m.room.create"}[int(kind)%5]
		key := map[string]string{"m.room.member": string(bob), "m.room.third_party_invite": "tok"}[typ]
		base.t = t
		r := &room{t: t, v: v, state: map[auth.Key]*event.Event{}, last: base.last, depth: base.depth}
		for k, ev := range base.state {
			r.state[k] = ev
		}
		// An event of this content is judged, and then others are judged in a room that has it.
		if typ == "m.room.create" {
			r.last = nil
		}
		odd := withContent(t, r.stateAt(alice, typ, key, obj{"this": "is replaced"}), content)
		_ = r.check(odd)
		if typ == "m.room.create" {
			_ = auth.Creators(odd)
			_ = auth.RoomVersion(odd)
			_ = auth.Check(base.message(bob), auth.Events{odd, r.Get("m.room.member", string(bob))})
			return
		}
		r.state[auth.Key{Type: typ, StateKey: key}] = odd
		for _, ev := range []*event.Event{
			r.message(bob), r.power(alice, obj{"ban": 70, "users": obj{string(bob): 5}}), r.member(alice, bob, "ban"),
			r.member(bob, bob, "knock"), r.authorisedJoin(alice), r.member(carol, carol, "join"),
			r.stateAt(alice, "m.room.member", string(bob), obj{"membership": "invite", "third_party_invite": obj{"signed": signedInvite(bob, "tok")}}),
		} {
			_ = r.check(ev)
		}
		p := auth.PowerLevelsOf(r.Get("m.room.create", ""), r.Get("m.room.power_levels", ""))
		if p.Of(bob).Cmp(p.Of(bob)) != 0 || p.Notification("room").Cmp(p.Ban()) != -p.Ban().Cmp(p.Notification("room")) {
			t.Error("levels are not ordered")
		}
		_ = auth.AllowRooms(r.Get("m.room.join_rules", ""))
	})
}

// withContent is the event with another content, as if it had been stored so.
func withContent(t *testing.T, ev *event.Event, content []byte) *event.Event {
	t.Helper()
	raw := strings.Replace(string(ev.JSON()), string(ev.Content()), string(content), 1)
	odd, err := event.ParseStored(ev.Version(), ev.ID(), []byte(raw))
	if err != nil {
		t.Skip()
	}
	return odd
}
