package federation_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

func TestTwoServersShareARoom(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		t.Run(version, func(t *testing.T) {
			pair(t, func(t *testing.T, a, b *node) {
				alice, bob := a.user("alice"), b.user("bob")
				room := a.roomOf(version, alice, nil)
				a.say(alice, room, "before")
				b.join(bob, room, a)
				if got := a.membership(room, bob); got != "join" {
					t.Fatalf("at the first server bob is %q", got)
				}
				var want []string
				for i := range 20 {
					for _, body := range []string{fmt.Sprint("a", i), fmt.Sprint("b", i)} {
						if body[0] == 'a' {
							a.say(alice, room, body)
						} else {
							b.say(bob, room, body)
						}
						want = append(want, body)
					}
				}
				slices.Sort(want)
				for _, n := range []*node{a, b} {
					eventually(t, n.name+" has all messages once", func() bool {
						got := slices.DeleteFunc(n.said(room), func(s string) bool { return s == "before" })
						slices.Sort(got)
						return slices.Equal(got, want)
					})
				}
			})
		})
	}
}

func TestInvitesReachTheOtherServerAndCanBeRefused(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "invite"}})
		if err := b.rooms.Join(t.Context(), roomserver.Join{User: bob, Room: room, Via: []string{a.name}}); err == nil {
			t.Fatal("bob came in without an invite")
		}
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		if got := a.membership(room, bob); got != "invite" {
			t.Fatalf("bob is %q", got)
		}
		if err := b.rooms.Leave(t.Context(), bob, room, nil); err != nil {
			t.Fatal(err)
		}
		if got := a.membership(room, bob); got != "leave" {
			t.Fatalf("after refusing bob is %q", got)
		}
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		b.join(bob, room, a)
		b.say(bob, room, "here")
		eventually(t, "the message arrives", func() bool { return slices.Contains(a.said(room), "here") })
		if err := b.rooms.Leave(t.Context(), bob, room, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the leaving arrives", func() bool { return a.membership(room, bob) == "leave" })
	})
}

// What we hold of invites and knocks in a room that we are not in is over once we are in it: from then on the room
// tells where our users stand.
func TestPendingMembershipsEndInARoomThatWeEntered(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob, carol, dan, erin := a.user("alice"), b.user("bob"), b.user("carol"), b.user("dan"), b.user("erin")
		room := a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "knock"}})
		for _, u := range []id.UserID{bob, carol, dan} {
			if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: u}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.rooms.Knock(t.Context(), roomserver.Join{User: erin, Room: room, Via: []string{a.name}}); err != nil {
			t.Fatal(err)
		}
		pending := func(u id.UserID) (all []storage.Invite) {
			t.Helper()
			if err := b.db.Read(t.Context(), func(tx storage.Tx) (err error) {
				all, err = tx.InvitesOf(string(u))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return all
		}
		for u, want := range map[id.UserID]string{bob: "invite", carol: "invite", dan: "invite", erin: "knock"} {
			if got := pending(u); len(got) != 1 || got[0].Membership != want {
				t.Fatalf("%s has %d pending, want one %s", u, len(got), want)
			}
		}
		b.join(bob, room, a)
		for u, want := range map[id.UserID]string{bob: "join", carol: "invite", dan: "invite", erin: "knock"} {
			eventually(t, fmt.Sprintf("%s is %q, by the room alone", u, want), func() bool { return b.membership(room, u) == want && len(pending(u)) == 0 })
		}
		if err := b.rooms.Leave(t.Context(), carol, room, nil); err != nil {
			t.Fatal(err)
		}
		for _, u := range []id.UserID{dan, erin} {
			if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: u, Membership: "leave"}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the refusal arrives", func() bool { return b.membership(room, u) == "leave" })
		}
		eventually(t, "carol's leaving arrives", func() bool { return a.membership(room, carol) == "leave" })
	})
}

// An event that ended an earlier membership may come after the invite that followed it.
func TestAnInviteOutlivesWhatIsOlder(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		last := func() (text []byte) {
			if err := a.db.Read(t.Context(), func(tx storage.Tx) error {
				row, _, err := tx.Room(string(room))
				if err != nil {
					return err
				}
				rows, err := tx.EventsBelow(row.NID, 1<<62, -1<<62, 1)
				text = rows[0].JSON
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return text
		}
		change := func(membership string) []byte {
			if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: bob, Membership: membership}); err != nil {
				t.Fatal(err)
			}
			return last()
		}
		invited := func() string {
			var v storage.Invite
			if err := b.db.Read(t.Context(), func(tx storage.Tx) (err error) {
				v, _, err = tx.Invite(string(bob), string(room))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return v.Membership
		}
		change("ban")
		old := change("leave")
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		b.rooms.Receive(t.Context(), a.name, rawList(old))
		if got := invited(); got != "invite" {
			t.Fatalf("after the older leave bob has %q", got)
		}
		b.rooms.Receive(t.Context(), a.name, rawList(change("leave")))
		if got := invited(); got != "leave" {
			t.Fatalf("after the invite was taken back bob has %q", got)
		}
	})
}

func TestAKickReachesTheServerThatItPutsOut(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: bob, Membership: "ban"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bob's server knows that he is banned", func() bool { return b.membership(room, bob) == "ban" })
	})
}

// Who may ask about the event that put them out may not ask beside it about what came later.
//
// spec: c2s#room-history-visibility
func TestWhoWasPutOutIsToldOfNothingLater(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: bob, Membership: "leave"}); err != nil {
			t.Fatal(err)
		}
		kick, later := a.stateID(room, "m.room.member", string(bob)), a.say(alice, room, "secret")
		if pdus, err := b.peer.Backfill(t.Context(), a.name, room, 10, []id.EventID{kick}); err != nil || len(pdus) < 3 {
			t.Errorf("what led to the kick: %d events, %v", len(pdus), err)
		}
		for _, from := range [][]id.EventID{{later}, {kick, later}, {later, kick}, {kick, "$unknown"}} {
			if pdus, err := b.peer.Backfill(t.Context(), a.name, room, 10, from); peer.StatusOf(err) != 403 {
				t.Errorf("backfill: %s, %v", pdus, err)
			}
			if events, err := b.peer.GetMissingEvents(t.Context(), a.name, room, peer.MissingEvents{Latest: from, Limit: 10}); peer.StatusOf(err) != 403 {
				t.Errorf("get_missing_events: %s, %v", events, err)
			}
		}
	})
}

// A server that has left a room still gives what it said last to those who were there, and has nothing more to say of the room.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func TestALeftRoomIsPast(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.whole(room)
		a.deaf.Store(true)
		last := b.say(bob, room, "goodbye")
		if err := b.rooms.Leave(t.Context(), bob, room, nil); err != nil {
			t.Fatal(err)
		}
		left := b.stateID(room, "m.room.member", string(bob))
		opts := peer.Opts{IgnoreBackoff: true}
		a.deaf.Store(false)
		if raw, err := a.peer.GetMissingEvents(t.Context(), b.name, room, peer.MissingEvents{Latest: []id.EventID{left}, Limit: 1}); err != nil || len(raw) != 1 || !strings.Contains(string(raw[0]), "goodbye") {
			t.Errorf("before the leave came %s, %v", raw, err)
		}
		if _, err := a.peer.GetStateIDs(t.Context(), b.name, room, last); err != nil {
			t.Errorf("the state before it: %v", err)
		}
		var out any
		err := a.peer.Do(t.Context(), b.name, "GET", "/_matrix/federation/v1/timestamp_to_event/"+url.PathEscape(string(room))+"?dir=b&ts=9999999999999", nil, &out, opts)
		if peer.StatusOf(err) != 404 {
			t.Errorf("the event nearest to now: %v %v", out, err)
		}
	})
}

// A server that has left a room cannot tell any more who is in it.
//
// spec: s2s#restricted-rooms
func TestNobodyIsLetInByARoomThatWeHaveLeft(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, charlie := a.user("alice"), b.user("charlie")
		club := a.room(alice, nil)
		b.join(charlie, club, a)
		b.whole(club)
		room := b.room(charlie, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "restricted",
			"allow": []any{map[string]any{"type": "m.room_membership", "room_id": club}}}})
		mayJoin := func() error {
			_, err := b.rooms.MakeMembership(t.Context(), a.name, room, alice, "join", []string{"12"})
			return err
		}
		if err := mayJoin(); err != nil {
			t.Fatalf("a member of the club: %v", err)
		}
		if err := b.rooms.Leave(t.Context(), charlie, club, nil); err != nil {
			t.Fatal(err)
		}
		if err := mayJoin(); !chancery.IsCode(err, chancery.CodeUnableToAuthoriseJoin) {
			t.Errorf("a member of the club when we were in it: %v", err)
		}
	})
}

// spec: s2s/sendJoinV2
func TestWhatIsNoJoinIsNamedSo(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		made, err := b.peer.MakeJoin(t.Context(), a.name, room, bob, []id.RoomVersion{"12"})
		if err != nil {
			t.Fatal(err)
		}
		auths := gjson.GetBytes(made.Event, "auth_events")
		var cited []id.EventID
		for _, v := range auths.Array() {
			cited = append(cited, id.EventID(v.Str))
		}
		prev := []id.EventID{id.EventID(gjson.GetBytes(made.Event, "prev_events.0").Str)}
		ours, theirs := b.invite("12", room, bob, bob, prev, cited), b.invite("12", room, alice, alice, prev, cited)
		for what, ev := range map[string]*event.Event{"an invite": ours, "of a user of another server": theirs} {
			_, err := b.peer.SendJoin(t.Context(), a.name, room, ev.ID(), ev.JSON(), false)
			if peer.StatusOf(err) != 400 || !chancery.IsCode(err, chancery.CodeInvalidParam) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

// A server that is not in the room, or not any more, does not keep us from asking the others.
//
// spec: c2s/knockRoom
func TestKnockingTriesTheNextServer(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		elsewhere := newNode(t, a.authority, sqliteOf(t))
		room := a.room(a.user("alice"), map[string]any{"m.room.join_rules": map[string]any{"join_rule": "knock"}})
		if err := b.rooms.Knock(t.Context(), roomserver.Join{User: b.user("bob"), Room: room, Via: []string{elsewhere.name, a.name}}); err != nil {
			t.Fatal(err)
		}
		if got := a.membership(room, b.user("bob")); got != "knock" {
			t.Errorf("bob is %q", got)
		}
	})
}

// A room whose first server is gone can be joined by who knows somebody with its keys.
//
// spec: s2s#querying-keys-through-another-server
func TestARoomOutlivesTheServerThatMadeIt(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice := a.user("alice")
		room := a.room(alice, nil)
		b.join(b.user("bob"), room, a)
		b.whole(room)
		c := newNode(t, a.authority, sqliteOf(t))
		a.deaf.Store(true)
		join := roomserver.Join{User: c.user("carol"), Room: room, Via: []string{b.name}}
		if err := c.rooms.Join(t.Context(), join); err == nil {
			t.Fatal("the create event was believed without a key")
		}
		c.halt()
		c.notaries = []string{b.name}
		c.again()
		if err := c.rooms.Join(t.Context(), join); err != nil {
			t.Fatal(err)
		}
		if got := c.membership(room, alice); got != "join" {
			t.Errorf("who made the room is %q", got)
		}
	})
}

func TestKnocking(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "knock"}})
		if err := b.rooms.Knock(t.Context(), roomserver.Join{User: bob, Room: room, Via: []string{a.name}}); err != nil {
			t.Fatal(err)
		}
		if got := a.membership(room, bob); got != "knock" {
			t.Fatalf("bob is %q", got)
		}
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		b.join(bob, room, a)
	})
}
