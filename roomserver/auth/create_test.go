package auth_test

import (
	"bytes"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// wantCreate expects an outcome for a create event alone.
func wantCreate(t *testing.T, version string, change func(*event.Proto), content obj, rule string) {
	t.Helper()
	v, _ := event.Lookup(version)
	r := &room{t: t, v: v}
	p := r.proto(alice, "m.room.create", new(string), content)
	if change != nil {
		change(&p)
	}
	if got := ruleOf(t, auth.Check(r.build(p), auth.Events{})); got != rule {
		t.Errorf("version %s, create %v: rule %s, want %s", version, content, got, rule)
	}
}

func TestRoomsAreCreated(t *testing.T) {
	for _, v := range event.Versions() {
		creator := obj{"creator": alice}
		// spec: rooms/v11#authorisation-rules 1.1
		wantCreate(t, v.Name, func(p *event.Proto) {
			p.PrevEvents = []id.EventID{"$before:a.example"}
			p.ReferenceHashes = map[id.EventID]string{}
		}, creator, "1.1")
		// spec: rooms/v11#authorisation-rules 1.2
		if !v.RoomIDIsCreateHash {
			wantCreate(t, v.Name, func(p *event.Proto) { p.RoomID = "!room:b.example" }, creator, "1.2")
		} else {
			// spec: rooms/v12#authorisation-rules 1.2
			// Neither Build nor Parse lets such an event through, so it comes as if stored.
			r := &room{t: t, v: v}
			raw := r.build(r.proto(alice, "m.room.create", new(string), creator)).JSON()
			raw = bytes.Replace(raw, []byte(`"sender"`), []byte(`"room_id":"!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","sender"`), 1)
			ev, err := event.ParseStored(v, "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", raw)
			if err != nil {
				t.Fatal(err)
			}
			if got := ruleOf(t, auth.Check(ev, auth.Events{})); got != "1.2" {
				t.Errorf("a create event with room_id: rule %s, want 1.2", got)
			}
		}
		// spec: rooms/v11#authorisation-rules 1.3
		wantCreate(t, v.Name, nil, obj{"creator": alice, "room_version": "unheard-of"}, "1.3")
		wantCreate(t, v.Name, nil, obj{"creator": alice, "room_version": 11}, "1.3")
		wantCreate(t, v.Name, nil, obj{"creator": alice, "room_version": v.Name}, "allow")
		// spec: rooms/v10#authorisation-rules 1.4
		// spec: rooms/v11#authorisation-rules 1.4
		rule := "1.4"
		if v.CreatorFromSender {
			rule = "allow"
		}
		wantCreate(t, v.Name, nil, obj{}, rule)
	}
	// spec: rooms/v12#authorisation-rules 1.4
	for _, additional := range []any{"@bob:b.example", obj{}, nil, []any{1}, []any{"bob"}, []any{"@bob:b.example", "@bob"}, []any{"@bob:not a server"}} {
		wantCreate(t, "12", nil, obj{"additional_creators": additional}, "1.4")
		wantCreate(t, "11", nil, obj{"additional_creators": additional}, "allow")
	}
	// spec: rooms/v12#authorisation-rules 1.5
	wantCreate(t, "12", nil, obj{"additional_creators": []any{}}, "allow")
	wantCreate(t, "12", nil, obj{"additional_creators": []any{"@bob:b.example", "@Carol!:c.example:8448"}}, "allow")
}

func TestCreators(t *testing.T) {
	for version, want := range map[string][]id.UserID{
		"1": {bob}, "10": {bob}, "11": {alice}, "12": {alice, carol},
	} {
		r := newRoom(t, version, obj{"creator": bob, "additional_creators": []any{carol}})
		if got := auth.Creators(r.Get("m.room.create", "")); !slices.Equal(got, want) {
			t.Errorf("version %s: the creators are %v, want %v", version, got, want)
		}
	}
	if got := auth.RoomVersion(newRoom(t, "12", nil).Get("m.room.create", "")); got != "12" {
		t.Errorf("the room version is %q", got)
	}
}

// A version 12 room is what its create event hashes to.
//
// spec: rooms/v12#authorisation-rules 2
func TestEventNeedsItsRoomsCreateEvent(t *testing.T) {
	here, there := joinedRoom(t, "12", bob), newRoom(t, "12", obj{"m.federate": false})
	ev := here.message(bob)
	stranger := there.Get("m.room.create", "")
	for name, create := range map[string]*event.Event{"none": nil, "another room's": stranger, "no create event": here.message(alice)} {
		if got := ruleOf(t, auth.CheckAuthEvents(ev, here.cited(ev), create, nil)); got != "2" {
			t.Errorf("with %s: rule %s, want 2", name, got)
		}
	}
	if got := ruleOf(t, auth.Check(ev, auth.Events(append(here.cited(ev), stranger)))); got != "2" {
		t.Errorf("rule %s, want 2", got)
	}
	if got := ruleOf(t, auth.Check(ev, auth.Events(here.cited(ev)))); got != "2" {
		t.Errorf("rule %s, want 2", got)
	}
	create := here.Get("m.room.create", "")
	refused := func(ev *event.Event) bool { return ev == create }
	if got := ruleOf(t, auth.CheckAuthEvents(ev, here.cited(ev), create, refused)); got != "2" {
		t.Errorf("with a rejected create event: rule %s, want 2", got)
	}
	here.want(ev, "allow")
}

// spec: rooms/v11#authorisation-rules 3
func TestRoomsThatDoNotFederate(t *testing.T) {
	for _, v := range event.Versions() {
		rule := "3"
		if v.RoomIDIsCreateHash {
			rule = "4" // spec: rooms/v12#authorisation-rules 4
		}
		for _, federates := range []any{true, "false", nil, 0} {
			r := newRoom(t, v.Name, obj{"m.federate": federates})
			r.send(r.member(alice, alice, "join"))
			r.send(r.state0(alice, "m.room.join_rules", obj{"join_rule": "public"}))
			r.want(r.member(bob, bob, "join"), "allow")
		}
		r := newRoom(t, v.Name, obj{"m.federate": false})
		r.send(r.member(alice, alice, "join"))
		r.send(r.state0(alice, "m.room.join_rules", obj{"join_rule": "public"}))
		r.want(r.member(bob, bob, "join"), rule)
		r.want(r.member(dan, dan, "join"), "allow")
	}
}
