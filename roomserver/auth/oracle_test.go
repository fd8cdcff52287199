//go:build goexperiment.jsonv2

package auth_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/federation/eventauth"
	"maunium.net/go/mautrix/federation/pdu"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// The same random events are judged by our rules and by mautrix' eventauth, which was written by
// others from the same specification. Where the two differ, explain names the part of the
// specification that says why; a difference without such a reason fails.

var oracleRooms = flag.Int("oracle.rooms", 12, "random rooms of each version to compare with mautrix")

// toPDU is an event in mautrix' form. Versions 1 and 2 differ from that in the form of references
// alone, which the rules do not look at.
func toPDU(t testing.TB, ev *event.Event) *pdu.PDU {
	t.Helper()
	p := &pdu.PDU{}
	if ev.Version().EventFormat == event.FormatIDs {
		if err := json.Unmarshal(ev.JSON(), p); err != nil {
			t.Fatalf("mautrix does not read %s: %v", ev.JSON(), err)
		}
	} else {
		*p = pdu.PDU{
			AuthEvents: ev.AuthEvents(), PrevEvents: ev.PrevEvents(), Content: []byte(ev.Content()), Depth: ev.Depth(),
			OriginServerTS: ev.OriginServerTS(), RoomID: ev.RoomID(), Sender: ev.Sender(), Type: ev.Type(),
		}
		if key, ok := ev.StateKey(); ok {
			p.StateKey = &key
		}
	}
	p.InternalMeta.EventID = ev.ID()
	return p
}

var errPanic = errors.New("mautrix panics")

// theirs is mautrix' opinion, with the auth events from a state or, where that is nil, from the event.
func theirs(t testing.TB, ev *event.Event, state auth.State, known map[id.EventID]*event.Event) (err error) {
	v := ev.Version()
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	var fromState []*pdu.PDU
	if state != nil {
		fromState = []*pdu.PDU{}
		for _, k := range auth.NeededBy(ev) {
			if found := state.Get(k.Type, k.StateKey); found != nil {
				fromState = append(fromState, toPDU(t, found))
			}
		}
	}
	get := func(ids []id.EventID) ([]*pdu.PDU, error) {
		out := make([]*pdu.PDU, len(ids))
		for i, eventID := range ids {
			if found := known[eventID]; found != nil {
				out[i] = toPDU(t, found)
			}
		}
		return out, nil
	}
	key := id.SigningKey(base64.RawStdEncoding.EncodeToString(signingKey.Public().(ed25519.PublicKey)))
	getKey := func(string, id.KeyID, time.Time) (id.SigningKey, time.Time, error) {
		return key, time.UnixMilli(1 << 42), nil
	}
	return eventauth.Authorize(id.RoomVersion(v.Name), toPDU(t, ev), fromState, get, getKey)
}

// explain says why our verdict is right where mautrix has the other one; "" if nothing does.
func explain(ev *event.Event, state auth.State, ours, theirs error) string {
	v := ev.Version()
	content := gjson.ParseBytes(ev.Content())
	rule := ""
	var rejection *auth.Rejection
	if errors.As(ours, &rejection) {
		rule = rejection.Rule
	}
	switch {
	case errors.Is(theirs, errPanic) && ev.Type() == "m.room.power_levels":
		// It follows the nil of the new value where another user's entry is removed.
		// spec: rooms/v12#authorisation-rules 10.9
		return "mautrix panics: entries are removed from users"

	case v.SpecialCaseAliases && ev.Type() == "m.room.aliases":
		// spec: rooms/v1#authorisation-rules 4
		return "mautrix has no rule for aliases"

	case v.RedactionAuthRule && rule == "11.3":
		// spec: rooms/v1#authorisation-rules 11
		return "mautrix has no rule for redactions"

	case !v.LimitNotificationsPL && ours == nil && ev.Type() == "m.room.power_levels" && content.Get("notifications").Exists() ||
		!v.LimitNotificationsPL && ours == nil && state.Get("m.room.power_levels", "") != nil && ev.Type() == "m.room.power_levels" &&
			gjson.GetBytes(state.Get("m.room.power_levels", "").Content(), "notifications").Exists():
		// spec: rooms/v6#authorisation-rules 9.4
		return "mautrix looks at notifications before version 6"

	case !v.IntegerPowerLevels && ev.Type() == "m.room.power_levels" && theirs == nil && strings.HasSuffix(rule, "0.1") ||
		!v.IntegerPowerLevels && ev.Type() == "m.room.power_levels" && theirs == nil && rule == "9.1":
		// spec: rooms/v9#mroompower_levels-events-accept-values-as-strings
		return "mautrix takes booleans for levels and passes over what is no level"

	case !v.Restricted && ev.Type() == "m.room.member" && content.Get("join_authorised_via_users_server").Exists() &&
		errors.Is(theirs, eventauth.ErrNotSignedByAuthoriser):
		// spec: rooms/v8#authorisation-rules 4.2
		return "mautrix asks for the authoriser's signature before version 8"

	case v.Restricted && theirs == nil && (rule == "4.2.1" || rule == "5.2.1"):
		// spec: rooms/v8#authorisation-rules 4.2.1
		return "mautrix takes an authoriser that is no user ID for none, or one of an impossible server for a user"

	case ours == nil && content.Get("third_party_invite").Exists() && errors.Is(theirs, eventauth.ErrThirdPartyInviteNotSigned):
		// It looks for the public keys in the member event.
		// spec: rooms/v11#authorisation-rules 4.4.1.7
		return "mautrix finds no keys of third-party invites"

	case theirs == nil && ev.Type() == "m.room.member" && state.Get("m.room.join_rules", "") != nil &&
		gjson.GetBytes(state.Get("m.room.join_rules", "").Content(), "join_rule").Type != gjson.String:
		// spec: rooms/v11#authorisation-rules 4.3.7
		return "mautrix takes a join rule that is no string for invite"

	case theirs == nil && ev.Type() == "m.room.create" && rule == "1.3":
		// spec: rooms/v11#authorisation-rules 1.3
		return "mautrix looks at the version it is told, not at the one in content"

	case theirs == nil && ev.Type() == "m.room.create" && rule == "1.4" && v.PrivilegedCreators:
		// spec: appendices#server-name
		return "mautrix does not look at the server name of an additional creator"

	case theirs == nil && (rule == "9.3" || rule == "10.3"):
		// spec: appendices#server-name
		return "mautrix does not look at the server name of a key of users"

	case ours == nil && ev.Type() == "m.room.member" && len(ev.PrevEvents()) == 1 && len(ev.AuthEvents()) > 1 &&
		ev.PrevEvents()[0] == state.Get("m.room.create", "").ID():
		// spec: rooms/v11#authorisation-rules 4.3.1
		return "mautrix wants no other auth events at the creator's first join"
	}
	return ""
}

// gamble builds random rooms.
type gamble struct {
	*room
	*rand.Rand
	past  []map[auth.Key]*event.Event
	known map[id.EventID]*event.Event
}

var players = []id.UserID{alice, bob, carol, dan, "@eve:e.example", "@frank:f.example"}

func pick[T any](g *gamble, from ...T) T { return from[g.IntN(len(from))] }

// chance is true once in n.
func (g *gamble) chance(n int) bool { return g.IntN(n) == 0 }

func (g *gamble) level() any {
	n := pick(g, 0, 0, 1, 25, 49, 50, 50, 51, 75, 100, 100, 101, -1, -50)
	if g.chance(40) {
		return pick[any](g, "50", " 100 ", "+25", "x", "", "1.5", true, false, nil, []any{}, obj{"a": 1}, int64(1)<<53-1)
	}
	if !g.v.StrictCanonicalJSON && g.chance(30) {
		return pick(g, json.Number("50.9"), json.Number("1e2"), json.Number("-0.5"))
	}
	return n
}

// mutate changes a few entries of a map of levels.
func (g *gamble) mutate(in any, keys []string) any {
	m, ok := in.(map[string]any)
	if !ok {
		m = map[string]any{}
	}
	if g.chance(60) {
		return pick[any](g, "none", []any{}, nil, 5)
	}
	for range g.IntN(3) {
		key := keys[g.IntN(len(keys))]
		if g.chance(4) {
			delete(m, key)
		} else {
			m[key] = g.level()
		}
	}
	return m
}

func (g *gamble) powerLevels() obj {
	content := map[string]any{}
	if now := g.Get("m.room.power_levels", ""); now != nil && !g.chance(10) {
		dec := json.NewDecoder(strings.NewReader(string(now.Content())))
		dec.UseNumber()
		if err := dec.Decode(&content); err != nil {
			g.t.Fatal(err)
		}
	}
	names := []string{"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}
	for range g.IntN(3) {
		if key := pick(g, names...); g.chance(4) {
			delete(content, key)
		} else {
			content[key] = g.level()
		}
	}
	var users []string
	for _, user := range players {
		if user != alice || !g.v.PrivilegedCreators || g.chance(20) {
			users = append(users, string(user))
		}
	}
	if g.chance(10) {
		users = append(users, "nobody", "@no:server name", "@:a.example", "@x:")
	}
	if g.chance(2) {
		content["users"] = g.mutate(content["users"], users)
	}
	if g.chance(3) {
		content["events"] = g.mutate(content["events"], []string{"m.room.name", "m.room.message", "m.room.power_levels", "with.dot*", "m.room.redaction"})
	}
	if g.chance(4) {
		content["notifications"] = g.mutate(content["notifications"], []string{"room", "other"})
	}
	if g.Get("m.room.power_levels", "") == nil && !g.v.PrivilegedCreators {
		if users, ok := content["users"].(map[string]any); ok {
			users[string(alice)] = 100
		} else {
			content["users"] = obj{string(alice): 100}
		}
	}
	return content
}

// next is a random event.
func (g *gamble) next() *event.Event {
	sender := pick(g, players...)
	if g.chance(4) {
		sender = alice
	}
	for range 3 { // most are in the room
		if auth.Membership(g.Get("m.room.member", string(sender))) != "join" {
			sender = pick(g, players...)
		}
	}
	target := pick(g, players...)
	switch g.IntN(16) {
	case 0:
		return g.message(sender)
	case 1:
		return g.state0(sender, pick(g, "m.room.name", "m.room.topic", "with.dot*"), obj{"name": "x"})
	case 2:
		return g.stateAt(sender, "m.room.thing", string(pick(g, sender, target)), obj{})
	case 3, 4, 14:
		return g.power(sender, g.powerLevels())
	case 15: // moderators against each other
		content := g.powerLevels()
		if users, ok := content["users"].(map[string]any); ok && g.chance(2) {
			users[string(pick(g, carol, dan, players[4]))] = pick(g, 0, 24, 49, 50, 51, 101)
		}
		return g.power(pick(g, bob, carol, dan), content)
	case 5:
		rule := any(pick(g, "public", "public", "invite", "knock", "restricted", "knock_restricted", "private"))
		if g.chance(20) {
			rule = pick[any](g, 5, nil, []any{})
		}
		return g.state0(sender, "m.room.join_rules", obj{"join_rule": rule})
	case 6, 7:
		return g.member(sender, sender, pick(g, "join", "join", "join", "leave", "knock", "invite", "ban"))
	case 8:
		content := obj{"membership": "join", "join_authorised_via_users_server": pick(g, players...)}
		if g.chance(10) {
			content["join_authorised_via_users_server"] = pick[any](g, "a.example", 5, nil, "@x:no server", "")
		}
		if g.chance(10) {
			content["membership"] = pick(g, "leave", "knock", "invite")
		}
		ev := g.stateAt(sender, "m.room.member", string(sender), content)
		via, _ := content["join_authorised_via_users_server"].(id.UserID)
		if event.ValidUserID(string(via)) {
			signed, err := ev.Sign(event.Domain(string(via)), "ed25519:k", signingKey)
			if err != nil {
				g.t.Fatal(err)
			}
			ev = signed
		}
		return ev
	case 9, 10, 11:
		membership := any(pick(g, "invite", "invite", "leave", "leave", "ban", "ban", "join", "knock"))
		if g.chance(30) {
			membership = pick[any](g, "visit", 5, nil)
		}
		return g.stateAt(sender, "m.room.member", string(target), obj{"membership": membership})
	case 12:
		if g.chance(2) {
			public := identityKey.Public().(ed25519.PublicKey)
			return g.stateAt(sender, "m.room.third_party_invite", "tok", obj{"public_key": base64.RawStdEncoding.EncodeToString(public)})
		}
		invite := any(obj{"signed": signedInvite(target, pick(g, "tok", "tok", "tok", "tik"))})
		if g.chance(4) {
			invite = pick[any](g, obj{}, obj{"signed": obj{"mxid": target}}, 5)
		}
		return g.stateAt(sender, "m.room.member", string(target), obj{"membership": "invite", "third_party_invite": invite})
	}
	if g.chance(2) {
		return g.redacts(sender, g.last.ID())
	}
	return g.stateAt(sender, "m.room.aliases", event.Domain(string(pick(g, sender, target))), obj{"aliases": []string{}})
}

// tally counts what happened, so that a generator that produces only one kind of event is noticed.
type tally struct {
	allowed   int
	rules     map[string]int
	explained map[string]int
}

func (c *tally) compare(t testing.TB, ev *event.Event, state auth.State, ours, theirs error) {
	t.Helper()
	if ours == nil {
		c.allowed++
	} else {
		c.rules[ev.Version().Name+": "+ruleOf(t, ours)]++
	}
	if (ours == nil) == (theirs == nil) && !errors.Is(theirs, errPanic) {
		return
	}
	why := explain(ev, state, ours, theirs)
	if why == "" {
		t.Errorf("version %s, %s by %s %s: we say %v, mautrix %v\npower levels %s", ev.Version().Name, ev.Type(), ev.Sender(), ev.Content(), ours, theirs,
			contentOf(state.Get("m.room.power_levels", "")))
	}
	c.explained[why]++
}

func contentOf(ev *event.Event) string {
	if ev == nil {
		return "none"
	}
	return string(ev.Content())
}

func playRoom(t testing.TB, version string, seed uint64, steps int, c *tally) {
	pdu.UseInternalMetaForGetEventID = true // versions 1 and 2 have IDs that nothing computes
	g := &gamble{Rand: rand.New(rand.NewPCG(seed, 7)), known: map[id.EventID]*event.Event{}}
	create := obj{}
	switch {
	case g.chance(8):
		create["m.federate"] = false
	case g.chance(3):
		create["additional_creators"] = []any{bob}
	}
	g.room = newRoom(t, version, create)
	g.known[g.last.ID()] = g.last
	take := func(ev *event.Event) {
		g.known[ev.ID()] = ev
		g.past = append(g.past, maps.Clone(g.state))
		g.put(ev)
	}
	take(g.send(g.member(alice, alice, "join")))
	take(g.send(g.state0(alice, "m.room.join_rules", obj{"join_rule": pick(g, "public", "public", "invite", "restricted")})))
	if g.chance(2) { // a room in full swing
		take(g.send(g.state0(alice, "m.room.join_rules", obj{"join_rule": "public"})))
		for _, user := range players[1:5] {
			if ev := g.member(user, user, "join"); auth.Check(ev, g) == nil {
				take(ev)
			}
		}
		users := obj{string(bob): 50, string(carol): 50, string(dan): 25}
		if create["additional_creators"] != nil {
			delete(users, string(bob))
		}
		if !g.v.PrivilegedCreators {
			users[string(alice)] = 100
		}
		take(g.send(g.power(alice, obj{"users": users, "invite": 25, "events": obj{"m.room.power_levels": 25}})))
	}
	for range steps {
		ev := g.next()
		// By the auth events that it names.
		create := g.Get("m.room.create", "")
		cited := g.cited(ev)
		own := auth.Events(append(slices.Clone(cited), create))
		ours := auth.CheckAuthEvents(ev, cited, create, nil)
		if ours == nil {
			ours = auth.Check(ev, own)
		}
		c.compare(t, ev, own, ours, theirs(t, ev, nil, g.known))
		// By the room's state, and by some state that it had before.
		ours = auth.Check(ev, g)
		c.compare(t, ev, g, ours, theirs(t, ev, g, g.known))
		before := &room{t: t, v: g.v, state: g.past[g.IntN(len(g.past))]}
		c.compare(t, ev, before, auth.Check(ev, before), theirs(t, ev, before, g.known))
		if ours == nil {
			take(ev)
		}
	}
}

func TestOracleAgreesOnRandomRooms(t *testing.T) {
	c := &tally{rules: map[string]int{}, explained: map[string]int{}}
	for _, v := range event.Versions() {
		for seed := range *oracleRooms {
			playRoom(t, v.Name, uint64(seed), 80, c)
		}
	}
	rejected := 0
	for _, n := range c.rules {
		rejected += n
	}
	t.Logf("%d verdicts: %d allow, %d reject by %d different rules of all versions", c.allowed+rejected, c.allowed, rejected, len(c.rules))
	for _, why := range slices.Sorted(maps.Keys(c.explained)) {
		t.Logf("explained %5d times: %s", c.explained[why], why)
	}
	if c.allowed < rejected/10 || rejected < c.allowed/10 {
		t.Error("the random rooms are lopsided")
	}
	for _, rule := range []string{"12: 4", "12: 5.3.2", "12: 5.3.3", "12: 5.3.5.2", "12: 5.3.7", "12: 5.4.3", "12: 5.4.5", "12: 5.5.1", "12: 5.5.5", "12: 5.6.3",
		"12: 5.7.1", "12: 5.7.4", "12: 6", "12: 8", "12: 9", "12: 10.1", "12: 10.3", "12: 10.4", "12: 10.6.2", "12: 10.9.1", "12: 10.10.1"} {
		if c.rules[rule] == 0 {
			t.Errorf("no event was rejected by version %s", rule)
		}
	}
}

func TestOracleAgreesOnCreation(t *testing.T) {
	c := &tally{rules: map[string]int{}, explained: map[string]int{}}
	for _, v := range event.Versions() {
		for _, change := range []obj{
			{}, {"creator": alice}, {"creator": 5}, {"creator": alice, "room_version": "unheard-of"}, {"creator": alice, "room_version": v.Name},
			{"creator": alice, "additional_creators": []any{bob}}, {"creator": alice, "additional_creators": []any{"bob"}},
			{"creator": alice, "additional_creators": []any{5}}, {"creator": alice, "additional_creators": 5}, {"creator": alice, "additional_creators": []any{"@x:no server"}},
		} {
			for _, roomID := range []id.RoomID{"!room:a.example", "!room:b.example"} {
				for _, prev := range [][]id.EventID{nil, {"$before:a.example"}} {
					r := &room{t: t, v: v}
					p := r.proto(alice, "m.room.create", new(string), change)
					if p.PrevEvents = prev; !v.RoomIDIsCreateHash {
						p.RoomID = roomID
					}
					ev := r.build(p)
					c.compare(t, ev, auth.Events{}, auth.Check(ev, auth.Events{}), theirs(t, ev, auth.Events{}, nil))
				}
			}
		}
	}
	t.Logf("explained: %v", c.explained)
}

// The panic in mautrix is still there; when it is not, explain has a case too many.
func TestOraclePanicsWhereAnEntryIsRemoved(t *testing.T) {
	pdu.UseInternalMetaForGetEventID = true
	r := joinedRoom(t, "11")
	r.mods(nil)
	r.levels(nil, obj{string(bob): 50, string(carol): 50})
	ev := r.power(bob, r.changed(nil, obj{string(carol): nil}))
	if err := theirs(t, ev, r, nil); !errors.Is(err, errPanic) {
		t.Errorf("mautrix says %v", err)
	}
	r.want(ev, "9.8.1")
}

func FuzzOracle(f *testing.F) {
	f.Add(uint64(1), uint8(11))
	f.Fuzz(func(t *testing.T, seed uint64, version uint8) {
		all := event.Versions()
		playRoom(t, all[int(version)%len(all)].Name, seed, 40, &tally{rules: map[string]int{}, explained: map[string]int{}})
	})
}
