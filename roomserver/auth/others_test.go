package auth_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

func TestMembersSendEvents(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v1#authorisation-rules 6
		// spec: rooms/v11#authorisation-rules 5
		// spec: rooms/v12#authorisation-rules 6
		{"an outsider speaks", func(r *room) *event.Event { return r.message(bob) }, in{"1-5": "6", "6-11": "5", "12": "6"}},
		{"the invited do not speak", func(r *room) *event.Event {
			r.send(r.member(alice, bob, "invite"))
			return r.message(bob)
		}, in{"1-5": "6", "6-11": "5", "12": "6"}},
		{"the banned do not speak", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			r.send(r.member(alice, bob, "ban"))
			return r.message(bob)
		}, in{"1-5": "6", "6-11": "5", "12": "6"}},
		{"who left does not speak", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			r.send(r.member(bob, bob, "leave"))
			return r.message(bob)
		}, in{"1-5": "6", "6-11": "5", "12": "6"}},
		// spec: rooms/v11#authorisation-rules 10
		{"a member speaks", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.message(bob)
		}, in{"1-12": "allow"}},

		// spec: rooms/v1#authorisation-rules 7.1
		// spec: rooms/v11#authorisation-rules 6.1
		// spec: rooms/v12#authorisation-rules 7.1
		{"inviting a third party takes the invite level", func(r *room) *event.Event {
			r.mods(obj{"invite": 51})
			return r.stateAt(bob, "m.room.third_party_invite", "tok", obj{})
		}, in{"1-5": "7.1", "6-11": "6.1", "12": "7.1"}},
		{"inviting a third party takes the invite level alone", func(r *room) *event.Event {
			r.mods(obj{"invite": 50, "state_default": 100})
			return r.stateAt(bob, "m.room.third_party_invite", "tok", obj{})
		}, in{"1-12": "allow"}},

		// spec: rooms/v1#authorisation-rules 8
		// spec: rooms/v11#authorisation-rules 7
		// spec: rooms/v12#authorisation-rules 8
		{"state takes 50 by default", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.state0(bob, "m.room.topic", obj{"topic": "bob's"})
		}, in{"1-5": "8", "6-11": "7", "12": "8"}},
		{"a message that takes more than the sender has", func(r *room) *event.Event {
			r.mods(obj{"events": obj{"m.room.message": 51}})
			return r.message(bob)
		}, in{"1-5": "8", "6-11": "7", "12": "8"}},
		{"a message that takes what the sender has", func(r *room) *event.Event {
			r.mods(obj{"events": obj{"m.room.message": 50}, "events_default": 100})
			return r.message(bob)
		}, in{"1-12": "allow"}},
		{"a state event is not sent at the level of messages", func(r *room) *event.Event {
			r.mods(obj{"events_default": 0, "state_default": 60})
			return r.state0(bob, "m.room.message", obj{})
		}, in{"1-5": "8", "6-11": "7", "12": "8"}},
		{"the creator without power levels sends state", func(r *room) *event.Event {
			return r.state0(alice, "m.room.topic", obj{"topic": "alice's"})
		}, in{"1-12": "allow"}},
		{"the creator sends what takes the highest number", func(r *room) *event.Event {
			r.levels(obj{"events": obj{"m.room.tombstone": int64(1)<<53 - 1}}, nil)
			return r.state0(alice, "m.room.tombstone", obj{})
		}, in{"12": "allow"}},

		// spec: rooms/v1#authorisation-rules 9
		// spec: rooms/v11#authorisation-rules 8
		// spec: rooms/v12#authorisation-rules 9
		{"state in another user's name", func(r *room) *event.Event {
			return r.stateAt(alice, "m.room.topic", string(bob), obj{})
		}, in{"1-5": "9", "6-11": "8", "12": "9"}},
		{"state in one's own name", func(r *room) *event.Event {
			return r.stateAt(alice, "m.room.topic", string(alice), obj{})
		}, in{"1-12": "allow"}},

		// spec: rooms/v1#authorisation-rules 4.1
		{"aliases that are no state", func(r *room) *event.Event {
			return r.build(r.proto(alice, "m.room.aliases", nil, obj{}))
		}, in{"1-5": "4.1", "6-12": "allow"}},
		// spec: rooms/v1#authorisation-rules 4.2
		{"aliases of another server", func(r *room) *event.Event {
			return r.stateAt(alice, "m.room.aliases", "b.example", obj{})
		}, in{"1-5": "4.2", "6-12": "allow"}},
		// spec: rooms/v1#authorisation-rules 4.3
		{"aliases of a server without members", func(r *room) *event.Event {
			return r.stateAt(bob, "m.room.aliases", "b.example", obj{})
		}, in{"1-5": "allow", "6-11": "5", "12": "6"}},
	})
}

// redacts is a redaction of an event.
func (r *room) redacts(sender id.UserID, target id.EventID) *event.Event {
	r.t.Helper()
	p := r.proto(sender, "m.room.redaction", nil, obj{})
	p.Redacts = target
	return r.build(p)
}

func TestRedactions(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v1#authorisation-rules 11.1
		{"a moderator redacts another server's event", func(r *room) *event.Event {
			r.mods(nil)
			return r.redacts(bob, r.message(alice).ID())
		}, in{"1-12": "allow"}},
		// spec: rooms/v1#authorisation-rules 11.2
		{"a member redacts an event of their own server", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.redacts(bob, r.message(bob).ID())
		}, in{"1-12": "allow"}},
		// spec: rooms/v1#authorisation-rules 11.3
		// spec: rooms/v3#handling-redactions
		{"a member redacts another server's event", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.redacts(bob, r.message(alice).ID())
		}, in{"1-2": "11.3", "3-12": "allow"}},
		{"redactions take a level like other events", func(r *room) *event.Event {
			r.mods(obj{"events": obj{"m.room.redaction": 51}})
			return r.redacts(bob, r.message(bob).ID())
		}, in{"1-5": "8", "6-11": "7", "12": "8"}},
	})
}

// spec: rooms/v3#handling-redactions
func TestRedactionsTakeEffect(t *testing.T) {
	for _, version := range versionsFrom("3") {
		r := joinedRoom(t, version, carol, dan)
		r.mods(obj{"redact": 50})
		p := auth.PowerLevelsOf(r.Get("m.room.create", ""), r.Get("m.room.power_levels", ""))
		for _, c := range []struct {
			by, of id.UserID
			want   bool
		}{
			{bob, carol, true},  // the redact level
			{carol, bob, false}, // neither
			{carol, carol, true},
			{dan, alice, true}, // the same server
			{alice, bob, true},
		} {
			target := r.message(c.of)
			if got := auth.CanRedact(r.redacts(c.by, target.ID()), target, p); got != c.want {
				t.Errorf("version %s: %s redacts an event of %s: %t", version, c.by, c.of, got)
			}
		}
	}
	here, there := joinedRoom(t, "12"), newRoom(t, "12", obj{"other": true})
	target := there.state0(alice, "m.room.topic", obj{})
	if auth.CanRedact(here.redacts(alice, target.ID()), target, auth.PowerLevelsOf(here.Get("m.room.create", ""), nil)) {
		t.Error("a redaction takes effect in another room")
	}
}

var identityKey = ed25519.NewKeyFromSeed([]byte("the key of an identity server..."))

// signedInvite is what an identity server signs for bob.
func signedInvite(mxid id.UserID, token string) obj {
	message, err := event.Canonical([]byte(fmt.Sprintf(`{"mxid":%q,"token":%q}`, mxid, token)))
	if err != nil {
		panic(err)
	}
	signature := base64.RawStdEncoding.EncodeToString(ed25519.Sign(identityKey, message))
	return obj{"mxid": mxid, "token": token, "signatures": obj{"id.example": obj{"ed25519:0": signature}}}
}

func TestThirdPartyInvites(t *testing.T) {
	public := identityKey.Public().(ed25519.PublicKey)
	std, url := base64.RawStdEncoding.EncodeToString(public), base64.RawURLEncoding.EncodeToString(public)
	another := base64.RawStdEncoding.EncodeToString(signingKey.Public().(ed25519.PublicKey))
	offer := func(r *room, content obj) {
		r.t.Helper()
		r.send(r.stateAt(alice, "m.room.third_party_invite", "tok", content))
	}
	accept := func(r *room, sender id.UserID, invite any) *event.Event {
		r.t.Helper()
		return r.stateAt(sender, "m.room.member", string(bob), obj{"membership": "invite", "third_party_invite": invite})
	}
	rule := func(n string) in {
		return in{"1-5": "5.3.1." + n, "6-7": "4.3.1." + n, "8-11": "4.4.1." + n, "12": "5.4.1." + n}
	}
	with := func(offered, invite any) func(*room) *event.Event {
		return func(r *room) *event.Event {
			offer(r, offered.(obj))
			return accept(r, alice, invite)
		}
	}
	good := obj{"signed": signedInvite(bob, "tok")}
	tampered := signedInvite(bob, "tok")
	tampered["more"] = "than was signed"
	extra := signedInvite(bob, "tok")
	extra["unsigned"] = obj{"is": "not signed"}
	manyKeys := []any{}
	for range 400 {
		manyKeys = append(manyKeys, obj{"public_key": another})
	}
	manySignatures := signedInvite(bob, "tok")
	many := obj{}
	for i := range 300 {
		many[fmt.Sprintf("ed25519:%d", i)] = base64.RawStdEncoding.EncodeToString(make([]byte, ed25519.SignatureSize))
	}
	manySignatures["signatures"] = obj{"id.example": many}
	tellAll(t, []story{
		// spec: rooms/v11#authorisation-rules 4.4.1.1
		{"the invited user is banned", func(r *room) *event.Event {
			offer(r, obj{"public_key": std})
			r.send(r.member(alice, bob, "ban"))
			return accept(r, alice, good)
		}, rule("1")},
		// spec: rooms/v11#authorisation-rules 4.4.1.2
		{"nothing is signed", with(obj{"public_key": std}, obj{"display_name": "bob"}), rule("2")},
		{"the invite is no object", with(obj{"public_key": std}, "tok"), rule("2")},
		// spec: rooms/v11#authorisation-rules 4.4.1.3
		{"no token", with(obj{"public_key": std}, obj{"signed": obj{"mxid": bob}}), rule("3")},
		{"no mxid", with(obj{"public_key": std}, obj{"signed": obj{"token": "tok"}}), rule("3")},
		{"signed is no object", with(obj{"public_key": std}, obj{"signed": []any{1}}), rule("3")},
		// spec: rooms/v11#authorisation-rules 4.4.1.4
		{"another user was signed", with(obj{"public_key": std}, obj{"signed": signedInvite(carol, "tok")}), rule("4")},
		// spec: rooms/v11#authorisation-rules 4.4.1.5
		{"the room does not know the token", with(obj{"public_key": std}, obj{"signed": signedInvite(bob, "tik")}), rule("5")},
		// spec: rooms/v11#authorisation-rules 4.4.1.6
		{"another member passes the invite on", func(r *room) *event.Event {
			r.send(r.member(dan, dan, "join"))
			offer(r, obj{"public_key": std})
			return accept(r, dan, good)
		}, rule("6")},
		// spec: rooms/v11#authorisation-rules 4.4.1.7
		{"signed by the one key", with(obj{"public_key": std}, good), in{"1-12": "allow"}},
		{"signed by the one key in the URL-safe alphabet", with(obj{"public_key": url}, good), in{"1-12": "allow"}},
		{"signed by one of several keys", with(obj{"public_key": another, "public_keys": []any{1, obj{"public_key": "?"}, obj{"public_key": std}}}, good), in{"1-12": "allow"}},
		{"unsigned is not signed", with(obj{"public_key": std}, obj{"signed": extra}), in{"1-12": "allow"}},
		{"the inviter has left meanwhile", func(r *room) *event.Event {
			offer(r, obj{"public_key": std})
			r.send(r.member(alice, alice, "leave"))
			return accept(r, alice, good)
		}, in{"1-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.4.1.8
		{"signed by another key", with(obj{"public_key": another}, good), rule("8")},
		{"no key at all", with(obj{}, good), rule("8")},
		{"keys of the wrong types", with(obj{"public_key": 1, "public_keys": obj{"public_key": std}}, good), rule("8")},
		{"something was added", with(obj{"public_key": std}, obj{"signed": tampered}), rule("8")},
		{"signatures of the wrong types", with(obj{"public_key": std}, obj{"signed": obj{"mxid": bob, "token": "tok", "signatures": obj{"id.example": "x", "b": obj{"ed25519:0": 1}}}}), rule("8")},
		{"more keys than anybody checks", with(obj{"public_keys": manyKeys}, obj{"signed": manySignatures}), rule("8")},
	})
}

// A third-party invite of the largest size asks for no more than a bounded number of checks.
//
// spec: rooms/v11#authorisation-rules 4.4.1.7
func TestThirdPartyInviteCannotKeepUsBusy(t *testing.T) {
	r := joinedRoom(t, "12")
	keys := []any{}
	for i := range 700 {
		seed := make([]byte, ed25519.SeedSize)
		seed[0], seed[1] = byte(i), byte(i>>8)
		keys = append(keys, obj{"public_key": base64.RawStdEncoding.EncodeToString(ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))})
	}
	r.send(r.stateAt(alice, "m.room.third_party_invite", "tok", obj{"public_keys": keys}))
	signatures := obj{}
	for i := range 500 {
		signatures[fmt.Sprintf("ed25519:%d", i)] = base64.RawStdEncoding.EncodeToString(ed25519.Sign(signingKey, []byte{byte(i)}))
	}
	signed := obj{"mxid": bob, "token": "tok", "signatures": obj{"id.example": signatures}}
	ev := r.stateAt(alice, "m.room.member", string(bob), obj{"membership": "invite", "third_party_invite": obj{"signed": signed}})
	start := time.Now()
	if got := ruleOf(t, auth.Check(ev, r)); got != "5.4.1.8" {
		t.Errorf("rule %s, want 5.4.1.8", got)
	}
	took := time.Since(start)
	start = time.Now()
	for range 2000 {
		ed25519.Verify(signingKey.Public().(ed25519.PublicKey), []byte("x"), ed25519.Sign(signingKey, []byte("y")))
	}
	// Each key with each signature would be 350,000 checks.
	if most := 50 * time.Since(start); took > most {
		t.Errorf("the check took %v, 100,000 signatures take %v", took, most)
	}
}

// spec: c2s#mroomjoin_rules
func TestWhatTheEngineReads(t *testing.T) {
	r := joinedRoom(t, "12")
	rules := r.state0(alice, "m.room.join_rules", obj{"join_rule": "restricted", "allow": []any{
		obj{"type": "m.room_membership", "room_id": "!one:a.example"},
		obj{"type": "something.else", "room_id": "!two:a.example"},
		obj{"type": "m.room_membership"}, 7,
		obj{"type": "m.room_membership", "room_id": "!three:a.example"},
	}})
	if got := auth.JoinRule(rules); got != "restricted" {
		t.Errorf("the join rule is %q", got)
	}
	if got := fmt.Sprint(auth.AllowRooms(rules)); got != "[!one:a.example !three:a.example]" {
		t.Errorf("the rooms are %s", got)
	}
	if got := auth.JoinRule(nil); got != "invite" {
		t.Errorf("without an event the join rule is %q", got)
	}
	if got := auth.AllowRooms(nil); got != nil {
		t.Errorf("without an event the rooms are %v", got)
	}
	if got := auth.Membership(nil); got != "leave" {
		t.Errorf("without an event the membership is %q", got)
	}
	if got := auth.JoinAuthorisedVia(r.authorisedJoin(carol)); got != carol {
		t.Errorf("the join is authorised by %q", got)
	}
	old := joinedRoom(t, "7")
	if got := auth.JoinAuthorisedVia(old.authorisedJoin(carol)); got != "" {
		t.Errorf("before version 8 the join is authorised by %q", got)
	}
}
