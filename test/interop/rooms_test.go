//go:build goolm

package interop

import (
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"chancery/test/homeserver"
)

// versions tells of an ordinary room of each version: joins and invites both ways, messages, edits, reactions,
// redactions, state.
func versions(list ...string) []story {
	var out []story
	for _, version := range list {
		out = append(out, story{"version " + version, func(t *testing.T, home, away *server) { ordinary(t, home, away, version) }})
	}
	return out
}

func ordinary(t *testing.T, home, away *server, version string) {
	alice, bob, carol, dan := home.user(t, "alice"), away.user(t, "bob"), away.user(t, "carol"), home.user(t, "dan")
	id := alice.CreateRoom(J{"preset": "public_chat", "room_version": version, "name": "version " + version,
		"power_level_content_override": J{"invite": 0}})
	bob.Join(id, home.Name)
	becomes(t, alice, id, bob.ID, "join")
	first := alice.Send(id, "from home")
	second := bob.Send(id, "from away")
	sees(t, bob, id, first)
	sees(t, alice, id, second)

	// An invite of the room's server to the other, and one of the other server's user back.
	if version == "12" && !home.can(t, "invites to version 12") {
		carol.Join(id, home.Name)
	} else {
		alice.Invite(id, carol.ID)
		if text := invited(t, carol, id).Raw; away.can(t, "names of invites") && !strings.Contains(text, "version "+version) {
			t.Errorf("the invite does not name the room: %s", text)
		}
		carol.Join(id)
	}
	if version != "12" || away.can(t, "invites to version 12") {
		bob.Invite(id, dan.ID)
		invited(t, dan, id)
	}
	dan.Join(id)
	becomes(t, bob, id, dan.ID, "join")

	edit := bob.SendEvent(id, "m.room.message", J{"msgtype": "m.text", "body": "* edited", "m.new_content": J{"msgtype": "m.text", "body": "edited"},
		"m.relates_to": J{"rel_type": "m.replace", "event_id": second}})
	like := alice.SendEvent(id, "m.reaction", J{"m.relates_to": J{"rel_type": "m.annotation", "event_id": second, "key": "👍"}})
	sees(t, alice, id, edit)
	sees(t, bob, id, like)
	for at, u := range map[*server]*user{home: alice, away: bob} {
		if at.can(t, "bundled edits") {
			eventually(t, u.ID+" sees the edit with its message", func() bool {
				return u.Ask("GET", room(id, "event", second), nil).Get(`unsigned.m\.relations.m\.replace.event_id`).Str == edit
			})
		}
		reactions := "/_matrix/client/v1/rooms/" + url.PathEscape(id) + "/relations/" + url.PathEscape(second) + "/m.annotation"
		eventually(t, u.ID+" sees the reaction", func() bool { return u.Ask("GET", reactions, nil).Get("chunk.0.event_id").Str == like })
	}
	bob.OK("PUT", room(id, "redact", second, homeserver.Txn()), J{"reason": "no"})
	alice.OK("PUT", room(id, "redact", edit, homeserver.Txn()), J{})
	for _, event := range []string{second, edit} {
		for at, u := range map[*server]*user{home: alice, away: bob} {
			if !at.redacts(t, version) {
				continue
			}
			eventually(t, u.ID+" sees the redaction", func() bool {
				ev := u.Ask("GET", room(id, "event", event), nil)
				return ev.Get("content").Raw == "{}" && ev.Get("unsigned.redacted_because").Exists()
			})
		}
	}
	alice.OK("PUT", room(id, "state", "m.room.topic", ""), J{"topic": "all of it"})
	power := alice.OK("GET", room(id, "state", "m.room.power_levels", ""), nil)
	levels := J{}
	for key, value := range power.Get("users").Map() {
		levels[key] = value.Int()
	}
	levels[bob.ID] = 50
	alice.OK("PUT", room(id, "state", "m.room.power_levels", ""), J{"users": levels, "state_default": 50})
	eventually(t, "bob's power is known at his server", func() bool {
		return bob.Ask("GET", room(id, "state", "m.room.power_levels", ""), nil).Get("users").Map()[bob.ID].Int() == 50
	})
	bob.OK("PUT", room(id, "state", "m.room.name", ""), J{"name": "bob's name"})
	carol.OK("POST", room(id, "leave"), J{})
	becomes(t, alice, id, carol.ID, "leave")
	agree(t, id, alice, bob)
	sameHistory(t, id, alice, bob, false)
}

// spec: c2s#knocking-on-rooms
func knock(t *testing.T, home, away *server) {
	for _, version := range []string{"7", "10", "12"} {
		alice, bob, carol := home.user(t, "alice"), away.user(t, "bob"), away.user(t, "carol")
		id := alice.CreateRoom(J{"preset": "private_chat", "room_version": version, "name": "door",
			"initial_state": []J{{"type": "m.room.join_rules", "state_key": "", "content": J{"join_rule": "knock"}}}})
		via := "?" + url.Values{"via": {home.Name}, "server_name": {home.Name}}.Encode()
		for _, u := range []*user{bob, carol} {
			u.OK("POST", "/_matrix/client/v3/knock/"+url.PathEscape(id)+via, J{"reason": "please"})
			becomes(t, alice, id, u.ID, "knock")
			eventually(t, u.ID+" sees the knock in sync", func() bool {
				return strings.Contains(u.Sync("").Get("rooms.knock").Map()[id].Raw, "door")
			})
		}
		alice.Invite(id, bob.ID)
		invited(t, bob, id)
		bob.Join(id, home.Name)
		becomes(t, alice, id, bob.ID, "join")
		// Carol is turned away, knocks again and goes by herself.
		alice.OK("POST", room(id, "kick"), J{"user_id": carol.ID})
		eventually(t, "carol's knock is over", func() bool { return !carol.Sync("").Get("rooms.knock").Map()[id].Exists() })
		carol.OK("POST", "/_matrix/client/v3/knock/"+url.PathEscape(id)+via, J{})
		becomes(t, alice, id, carol.ID, "knock")
		carol.OK("POST", room(id, "leave"), J{})
		becomes(t, alice, id, carol.ID, "leave")
		agree(t, id, alice, bob)
	}
}

// spec: c2s#restricted-rooms
func restricted(t *testing.T, home, away *server) {
	for _, version := range []string{"8", "10", "11", "12"} {
		for _, rule := range []string{"restricted", "knock_restricted"} {
			if rule == "knock_restricted" && version == "8" {
				continue // since version 10
			}
			alice, bob, carol, dan := home.user(t, "alice"), away.user(t, "bob"), away.user(t, "carol"), home.user(t, "dan")
			club := alice.CreateRoom(J{"preset": "public_chat", "room_version": version})
			id := alice.CreateRoom(J{"preset": "private_chat", "room_version": version, "initial_state": []J{{"type": "m.room.join_rules", "state_key": "",
				"content": J{"join_rule": rule, "allow": []J{{"type": "m.room_membership", "room_id": club}}}}}})
			join := "/_matrix/client/v3/join/" + url.PathEscape(id) + "?" + url.Values{"via": {home.Name}, "server_name": {home.Name}}.Encode()
			if a := bob.Ask("POST", join, J{}); a.Status != 403 {
				t.Errorf("version %s, %s: a stranger's join got %s", version, rule, a)
			}
			bob.Join(club, home.Name)
			becomes(t, alice, club, bob.ID, "join")
			bob.OK("POST", join, J{})
			becomes(t, alice, id, bob.ID, "join")
			if by := bob.OK("GET", room(id, "state", "m.room.member", bob.ID), nil).Get("join_authorised_via_users_server").Str; by != alice.ID {
				t.Errorf("version %s, %s: the join was authorised by %q", version, rule, by)
			}
			// The other server's next user, and one of the home server after the other server has come in.
			carol.Join(club, home.Name)
			becomes(t, alice, club, carol.ID, "join")
			carol.OK("POST", join, J{})
			dan.Join(club)
			dan.OK("POST", join, J{})
			becomes(t, alice, id, carol.ID, "join")
			becomes(t, bob, id, dan.ID, "join")
			agree(t, id, alice, bob)
		}
	}
}

// spec: c2s#room-upgrades
func upgrade(t *testing.T, home, away *server) {
	for _, to := range [][2]string{{"6", "10"}, {"10", "11"}, {"11", "12"}, {"12", "12"}} {
		alice, bob := home.user(t, "alice"), away.user(t, "bob")
		id := alice.CreateRoom(J{"preset": "public_chat", "room_version": to[0], "name": "old"})
		bob.Join(id, home.Name)
		becomes(t, alice, id, bob.ID, "join")
		next := alice.OK("POST", room(id, "upgrade"), J{"new_version": to[1]}).Get("replacement_room").Str
		eventually(t, "bob sees the tombstone", func() bool {
			return bob.Ask("GET", room(id, "state", "m.room.tombstone", ""), nil).Get("replacement_room").Str == next
		})
		bob.Join(next, home.Name)
		create := bob.OK("GET", room(next, "state", "m.room.create", ""), nil)
		if create.Get("predecessor.room_id").Str != id || create.Get("room_version").Str != to[1] {
			t.Errorf("upgrade from %s to %s: the new room's create event is %s", to[0], to[1], create)
		}
		becomes(t, alice, next, bob.ID, "join")
		agree(t, next, alice, bob)
		// Dendrite tells nobody how it closes the old room, and others ask for it when something builds on that.
		sees(t, bob, id, alice.Send(id, "moved"))
		agree(t, id, alice, bob)
	}
}

// Who joins late reads back to the first event, as the room's server has it.
func lateReader(t *testing.T, home, away *server) {
	for _, version := range []string{"6", "11", "12"} {
		alice, bob := home.user(t, "alice"), away.user(t, "bob")
		id := alice.CreateRoom(J{"preset": "public_chat", "room_version": version})
		want := texts("before", 130)
		say(alice, id, want[:60])
		alice.OK("PUT", room(id, "state", "m.room.topic", ""), J{"topic": "half"})
		say(alice, id, want[60:])
		bob.Join(id, home.Name)
		becomes(t, alice, id, bob.ID, "join")
		reads(t, bob, id, alice.ID, want)
		sameHistory(t, id, alice, bob, true)
		agree(t, id, alice, bob)
	}
}

// spec: c2s#room-history-visibility
func historyForMembers(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id := alice.CreateRoom(J{"preset": "public_chat", "initial_state": []J{{"type": "m.room.history_visibility", "state_key": "", "content": J{"history_visibility": "joined"}}}})
	say(alice, id, texts("secret", 5))
	bob.Join(id, home.Name)
	becomes(t, alice, id, bob.ID, "join")
	want := texts("open", 5)
	say(alice, id, want)
	reads(t, bob, id, alice.ID, want)
	agree(t, id, alice, bob)
}

// Whoever comes back reads what was said meanwhile.
func rejoin(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id := alice.CreateRoom(J{"preset": "public_chat"})
	bob.Join(id, home.Name)
	becomes(t, alice, id, bob.ID, "join")
	want := texts("together", 5)
	say(alice, id, want)
	reads(t, bob, id, alice.ID, want)
	bob.OK("POST", room(id, "leave"), J{})
	becomes(t, alice, id, bob.ID, "leave")
	missed := texts("without bob", 60)
	say(alice, id, missed)
	alice.OK("PUT", room(id, "state", "m.room.topic", ""), J{"topic": "new"})
	bob.Join(id, home.Name)
	becomes(t, alice, id, bob.ID, "join")
	after := texts("again", 5)
	say(alice, id, after)
	reads(t, bob, id, alice.ID, slices.Concat(want, missed, after))
	agree(t, id, alice, bob)
}

// Both servers write state and messages at the same time: the room forks and comes together.
func bothAtOnce(t *testing.T, home, away *server) {
	for _, version := range []string{"1", "6", "11", "12"} {
		alice, bob := home.user(t, "alice"), away.user(t, "bob")
		levels := J{bob.ID: 100}
		if version != "12" {
			levels[alice.ID] = 100
		}
		id := alice.CreateRoom(J{"preset": "public_chat", "room_version": version, "power_level_content_override": J{"users": levels}})
		bob.Join(id, home.Name)
		becomes(t, alice, id, bob.ID, "join")
		var talk sync.WaitGroup
		for u, name := range map[*user]string{alice: "alice", bob: "bob"} {
			talk.Go(func() {
				for i, text := range texts(name, 20) {
					u.Send(id, text)
					if i%5 == 0 {
						u.OK("PUT", room(id, "state", "m.room.topic", ""), J{"topic": text})
						u.OK("PUT", room(id, "state", "org.example.thing", name), J{"i": i})
					}
				}
			})
		}
		talk.Wait()
		last := alice.Send(id, "last")
		sees(t, bob, id, last)
		agree(t, id, alice, bob)
		for _, u := range []*user{alice, bob} {
			reads(t, u, id, alice.ID, append(texts("alice", 20), "last"))
			reads(t, u, id, bob.ID, texts("bob", 20))
		}
		sameHistory(t, id, alice, bob, false)
	}
}

// A room that holds many is joined while the members are still on their way.
//
// spec: s2s/sendJoinV2
func roomOfMany(t *testing.T, home, away *server) {
	for _, version := range []string{"10", "12"} {
		alice, bob := home.user(t, "alice"), away.user(t, "bob")
		id := alice.CreateRoom(J{"preset": "public_chat", "room_version": version})
		var members []string
		for range 60 { // of a room of few we leave no members out
			u := home.user(t, "member")
			u.Join(id)
			members = append(members, u.ID)
		}
		say(alice, id, texts("many", 10))
		bob.Join(id, home.Name)
		mine := bob.Send(id, "at once")
		sees(t, alice, id, mine)
		if home.can(t, "partial joins") && away.can(t, "partial joins") {
			away.becomesWhole(t, id)
		}
		eventually(t, "bob sees all members", func() bool {
			return len(bob.Ask("GET", room(id, "members")+"?membership=join", nil).Get("chunk").Array()) == len(members)+2
		})
		agree(t, id, alice, bob)
		reads(t, bob, id, alice.ID, texts("many", 10))
	}
}
