//go:build goolm

package interop

import (
	"slices"
	"testing"
)

func public(t *testing.T, home, away *server, alice, bob *user, more J) string {
	t.Helper()
	body := J{"preset": "public_chat"}
	for key, value := range more {
		body[key] = value
	}
	id := alice.CreateRoom(body)
	bob.Join(id, home.Name)
	becomes(t, alice, id, bob.ID, "join")
	return id
}

// A moderator of the other server rules.
func moderation(t *testing.T, home, away *server) {
	for _, version := range []string{"6", "10", "12"} {
		alice, bob, carol, dan := home.user(t, "alice"), away.user(t, "bob"), home.user(t, "carol"), away.user(t, "dan")
		levels := J{bob.ID: 60}
		if version != "12" {
			levels[alice.ID] = 100
		}
		id := public(t, home, away, alice, bob, J{"room_version": version, "power_level_content_override": J{"users": levels}})
		carol.Join(id)
		dan.Join(id, home.Name)
		becomes(t, bob, id, carol.ID, "join")
		sin := carol.Send(id, "a sin")
		sees(t, bob, id, sin)
		bob.OK("PUT", room(id, "redact", sin, "r"+version), J{})
		bob.OK("POST", room(id, "ban"), J{"user_id": carol.ID, "reason": "sins"})
		becomes(t, alice, id, carol.ID, "ban")
		if a := carol.Ask("POST", "/_matrix/client/v3/join/"+id, J{}); a.Status != 403 {
			t.Errorf("a banned user's join got %s", a)
		}
		if home.redacts(t, version) {
			eventually(t, "the sin is redacted at home", func() bool {
				return alice.Ask("GET", room(id, "event", sin), nil).Get("content").Raw == "{}"
			})
		}
		bob.OK("POST", room(id, "unban"), J{"user_id": carol.ID})
		becomes(t, alice, id, carol.ID, "leave")
		carol.Join(id)
		becomes(t, bob, id, carol.ID, "join")
		alice.OK("POST", room(id, "kick"), J{"user_id": dan.ID})
		becomes(t, bob, id, dan.ID, "leave")
		dan.Join(id, home.Name)
		becomes(t, alice, id, dan.ID, "join")
		agree(t, id, alice, bob)
		sameHistory(t, id, alice, bob, false)
	}
}

// spec: s2s#server-access-control-lists-acls
func serverACL(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id, elsewhere := public(t, home, away, alice, bob, nil), public(t, home, away, alice, bob, nil)
	say(bob, id, []string{"before"})
	reads(t, alice, id, bob.ID, []string{"before"})
	// The ACL allows addresses and shuts out nobody; then it shuts out addresses, which both servers' names are.
	alice.OK("PUT", room(id, "state", "m.room.server_acl", ""), J{"allow": []string{"*"}, "deny": []string{"evil.example"}, "allow_ip_literals": true})
	agree(t, id, alice, bob)
	say(bob, id, []string{"allowed"})
	reads(t, alice, id, bob.ID, []string{"before", "allowed"})
	alice.OK("PUT", room(id, "state", "m.room.server_acl", ""), J{"allow": []string{"*"}, "deny": []string{away.Name, "127.0.0.1"}, "allow_ip_literals": true})
	agree(t, id, alice, bob)
	shut := bob.Ask("PUT", room(id, "send", "m.room.message", "shut"), J{"msgtype": "m.text", "body": "shut out"})
	if shut.Status == 200 {
		// What the other side of the wall does to itself is its own affair, but it does not come over it.
		sees(t, alice, elsewhere, bob.Send(elsewhere, "said afterwards"))
		if got := bodies(t, alice, id, bob.ID); slices.Contains(got, "shut out") {
			t.Error("a message came in over the ACL")
		}
	}
	carol := away.user(t, "carol")
	if a := carol.Ask("POST", "/_matrix/client/v3/join/"+id+"?via="+home.Name+"&server_name="+home.Name, J{}); a.Status == 200 && membership(alice, id, carol.ID) == "join" {
		t.Error("a join came in over the ACL")
	}
}

// A server whose last member is removed learns of it.
func lastMemberRemoved(t *testing.T, home, away *server) {
	for _, deed := range []string{"kick", "ban"} {
		alice, bob := home.user(t, "alice"), away.user(t, "bob")
		id := public(t, home, away, alice, bob, nil)
		// On its way it would meet the ban: the room would fork, and where the states are resolved after the ban is
		// lifted, bob's join would win.
		sees(t, alice, id, bob.Send(id, "here"))
		alice.OK("POST", room(id, deed), J{"user_id": bob.ID, "reason": deed})
		eventually(t, "bob's client is told of the "+deed, func() bool {
			return bob.Sync("").Get("rooms.join").Map()[id].Raw == "" && !joined(bob, id)
		})
		if deed == "ban" {
			if a := bob.Ask("POST", "/_matrix/client/v3/join/"+id+"?via="+home.Name+"&server_name="+home.Name, J{}); a.Status == 200 {
				t.Errorf("a banned user's join got %s", a)
			}
			alice.OK("POST", room(id, "unban"), J{"user_id": bob.ID})
		}
		alice.Send(id, "without bob")
		bob.Join(id, home.Name)
		becomes(t, alice, id, bob.ID, "join")
		agree(t, id, alice, bob)
	}
}

func joined(u *user, id string) bool {
	for _, each := range u.OK("GET", "/_matrix/client/v3/joined_rooms", nil).Get("joined_rooms").Array() {
		if each.Str == id {
			return true
		}
	}
	return false
}

// Invites are accepted, rejected and taken back over federation.
func invitations(t *testing.T, home, away *server) {
	for _, version := range []string{"1", "6", "10", "11", "12"} {
		if version == "12" && !home.can(t, "invites to version 12") {
			continue
		}
		alice, bob, carol, dan := home.user(t, "alice"), away.user(t, "bob"), away.user(t, "carol"), away.user(t, "dan")
		id := alice.CreateRoom(J{"preset": "private_chat", "room_version": version, "name": "by invitation", "is_direct": true, "invite": []string{bob.ID, carol.ID, dan.ID}})
		for _, u := range []*user{bob, carol, dan} {
			invited(t, u, id)
		}
		bob.Join(id)
		becomes(t, alice, id, bob.ID, "join")
		carol.OK("POST", room(id, "leave"), J{})
		if away.can(t, "ends of invites") {
			gone(t, carol, id)
		}
		becomes(t, alice, id, carol.ID, "leave")
		alice.OK("POST", room(id, "kick"), J{"user_id": dan.ID})
		if away.can(t, "ends of invites") {
			gone(t, dan, id)
		}
		// Dendrite, which had carol refuse through us, learns of that with the next event.
		becomes(t, bob, id, dan.ID, "leave")
		becomes(t, bob, id, carol.ID, "leave")
		alice.Invite(id, carol.ID)
		invited(t, carol, id)
		// Synapse refuses her join ("duplicate auth_events") between the invite that it signed and the same in a
		// transaction, for it names both the invite and the leave before it, which its state still has.
		becomes(t, bob, id, carol.ID, "invite")
		carol.Join(id)
		becomes(t, alice, id, carol.ID, "join")
		bob.OK("POST", room(id, "leave"), J{})
		carol.OK("POST", room(id, "leave"), J{})
		becomes(t, alice, id, bob.ID, "leave")
		becomes(t, alice, id, carol.ID, "leave")
	}
	// An invite whose room nobody of the other server is in, of the invited server's only user, rejected.
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id := alice.CreateRoom(J{"preset": "private_chat", "invite": []string{bob.ID}})
	invited(t, bob, id)
	bob.OK("POST", room(id, "leave"), J{})
	becomes(t, alice, id, bob.ID, "leave")
	gone(t, bob, id)
}
