package event

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery"

	"maunium.net/go/mautrix/id"
)

const (
	domain = "domain"
	keyID  = "ed25519:1"
)

// key is the one of the spec's vectors.
// spec: appendices#signing-key
var key = func() ed25519.PrivateKey {
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		panic(err)
	}
	return ed25519.NewKeyFromSeed(seed)
}()

var public = key.Public().(ed25519.PublicKey)

var then = time.UnixMilli(1790000000000)

func ptr(s string) *string { return &s }

// roomOf is a room ID in the version's form.
func roomOf(v *Version) id.RoomID {
	if v.RoomIDIsCreateHash {
		return "!Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"
	}
	return "!room:domain"
}

func eventOf(v *Version, name string) id.EventID {
	if v.EventIDFormat == IDFromSender {
		return id.EventID("$" + name + ":domain")
	}
	return id.EventID("$" + (name + strings.Repeat("A", 43))[:43])
}

func proto(v *Version, typ string, stateKey *string, content string) Proto {
	p := Proto{
		RoomID: roomOf(v), Sender: "@alice:domain", Type: typ, StateKey: stateKey, Content: json.RawMessage(content),
		PrevEvents: []id.EventID{eventOf(v, "prev")}, AuthEvents: []id.EventID{eventOf(v, "auth1"), eventOf(v, "auth2")}, Depth: 7,
	}
	if v.EventFormat == FormatReferences {
		p.ReferenceHashes = map[id.EventID]string{}
		for _, e := range append(p.PrevEvents, p.AuthEvents...) {
			p.ReferenceHashes[e] = "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"
		}
	}
	if typ == typeCreate && v.RoomIDIsCreateHash {
		p.RoomID = ""
	}
	return p
}

func build(t testing.TB, v *Version, typ string, stateKey *string, content string) *Event {
	t.Helper()
	e, err := Build(v, proto(v, typ, stateKey, content), domain, keyID, key, then)
	if err != nil {
		t.Fatalf("version %s: %v", v.Name, err)
	}
	return e
}

// with changes top-level members of an event's JSON; a nil value removes the key.
func with(t testing.TB, e *Event, changes map[string]any) []byte {
	t.Helper()
	var m map[string]any
	d := json.NewDecoder(bytes.NewReader(e.JSON()))
	d.UseNumber()
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	for k, v := range changes {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// rehash makes the content hash right again and signs, as a peer would that means it.
func rehash(t testing.TB, v *Version, raw []byte) []byte {
	t.Helper()
	c, err := CanonicalLenient(raw)
	if err != nil {
		t.Fatal(err)
	}
	top, err := members(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	typ, _ := text(top.get("type"))
	out, _ := v.seal(top.with("hashes", []byte("{}")).with("signatures", []byte("{}")), typ, domain, keyID, key)
	return out
}

func wantCode(t *testing.T, err error, code chancery.Code) {
	t.Helper()
	if !chancery.IsCode(err, code) {
		t.Errorf("got %v, want %s", err, code)
	}
}

// spec: appendices#json-signing and appendices#event-signing
func TestSigningVectorsOfTheSpec(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{}`, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"},
		{`{"one":1,"two":"Two"}`, "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"},
	} {
		raw, err := Canonical([]byte(c.in))
		if err != nil {
			t.Fatal(err)
		}
		if got := base64.RawStdEncoding.EncodeToString(ed25519.Sign(key, raw)); got != c.want {
			t.Errorf("%s is signed %s, want %s", c.in, got, c.want)
		}
	}
	for _, c := range []struct{ in, want string }{
		{`{ "room_id": "!x:domain", "sender": "@a:domain", "origin": "domain", "origin_server_ts": 1000000, "signatures": {}, "hashes": {},
			"type": "X", "content": {}, "prev_events": [], "auth_events": [], "depth": 3, "unsigned": { "age_ts": 1000000 } }`,
			`{"auth_events":[],"content":{},"depth":3,"hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},"origin":"domain","origin_server_ts":1000000,"prev_events":[],"room_id":"!x:domain","sender":"@a:domain","signatures":{"domain":{"ed25519:1":"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}},"type":"X","unsigned":{"age_ts":1000000}}`},
		{`{ "content": { "body": "Here is the message content" }, "event_id": "$0:domain", "origin": "domain", "origin_server_ts": 1000000,
			"type": "m.room.message", "room_id": "!r:domain", "sender": "@u:domain", "signatures": {}, "unsigned": { "age_ts": 1000000 } }`,
			`{"content":{"body":"Here is the message content"},"event_id":"$0:domain","hashes":{"sha256":"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"},"origin":"domain","origin_server_ts":1000000,"room_id":"!r:domain","sender":"@u:domain","signatures":{"domain":{"ed25519:1":"Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA"}},"type":"m.room.message","unsigned":{"age_ts":1000000}}`},
	} {
		raw, err := Canonical([]byte(c.in))
		if err != nil {
			t.Fatal(err)
		}
		top, err := members(raw, nil)
		if err != nil {
			t.Fatal(err)
		}
		typ, _ := text(top.get("type"))
		got, _ := v1.seal(top.with("hashes", nil), typ, domain, keyID, key)
		if string(got) != c.want {
			t.Errorf("signed event is\n%s, want\n%s", got, c.want)
		}
	}
	// What the first vector signs is a version 3 event; ours must read and verify it.
	e, err := Parse(v3, []byte(`{"auth_events":[],"content":{},"depth":3,"hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},"origin":"domain","origin_server_ts":1000000,"prev_events":[],"room_id":"!x:domain","sender":"@a:domain","signatures":{"domain":{"ed25519:1":"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}},"type":"X","unsigned":{"age_ts":1000000}}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := VerifySignature(e, domain, keyID, public); err != nil || e.Redacted() {
		t.Errorf("the spec's event: redacted %v, %v", e.Redacted(), err)
	}
}

func TestVersionsDifferAsTheSpecSays(t *testing.T) {
	flag := map[string]struct {
		get         func(*Version) bool
		first, last int
	}{
		"references":       {func(v *Version) bool { return v.EventFormat == FormatReferences }, 1, 2},
		"ID from sender":   {func(v *Version) bool { return v.EventIDFormat == IDFromSender }, 1, 2},
		"base64 ID":        {func(v *Version) bool { return v.EventIDFormat == IDBase64 }, 3, 3},
		"URL-safe ID":      {func(v *Version) bool { return v.EventIDFormat == IDURLSafe }, 4, 12},
		"resolution 1":     {func(v *Version) bool { return v.StateResolution == StateV1 }, 1, 1},
		"resolution 2":     {func(v *Version) bool { return v.StateResolution == StateV2 }, 2, 11},
		"resolution 2.1":   {func(v *Version) bool { return v.StateResolution == StateV21 }, 12, 12},
		"redaction rule":   {func(v *Version) bool { return v.RedactionAuthRule }, 1, 2},
		"aliases":          {func(v *Version) bool { return v.SpecialCaseAliases }, 1, 5},
		"key validity":     {func(v *Version) bool { return v.EnforceKeyValidity }, 5, 12},
		"strict JSON":      {func(v *Version) bool { return v.StrictCanonicalJSON }, 6, 12},
		"notifications":    {func(v *Version) bool { return v.LimitNotificationsPL }, 6, 12},
		"knock":            {func(v *Version) bool { return v.Knock }, 7, 12},
		"restricted":       {func(v *Version) bool { return v.Restricted }, 8, 12},
		"knock_restricted": {func(v *Version) bool { return v.KnockRestricted }, 10, 12},
		"integer levels":   {func(v *Version) bool { return v.IntegerPowerLevels }, 10, 12},
		"creator":          {func(v *Version) bool { return v.CreatorFromSender }, 11, 12},
		"redacts":          {func(v *Version) bool { return v.RedactsInContent }, 11, 12},
		"creators":         {func(v *Version) bool { return v.PrivilegedCreators }, 12, 12},
		"room ID":          {func(v *Version) bool { return v.RoomIDIsCreateHash }, 12, 12},
		"no create":        {func(v *Version) bool { return v.CreateNotInAuthEvents }, 12, 12},
	}
	for i, v := range Versions() {
		if found, ok := Lookup(fmt.Sprint(i + 1)); !ok || found != v || !v.Stable {
			t.Errorf("version %d is %v", i+1, found)
		}
		for name, f := range flag {
			if got, want := f.get(v), i+1 >= f.first && i+1 <= f.last; got != want {
				t.Errorf("version %s, %s: %v, want %v", v.Name, name, got, want)
			}
		}
	}
	if _, ok := Lookup("13"); ok || len(Versions()) != 12 {
		t.Error("there are twelve versions")
	}
}

func TestWhatIsBuiltIsParsed(t *testing.T) {
	for _, v := range Versions() {
		for _, c := range []struct {
			typ     string
			key     *string
			content string
		}{
			{"m.room.message", nil, `{"msgtype":"m.text","body":"grüß dich \u0000 \"x\""}`},
			{"m.room.member", ptr("@bob:other"), `{"membership":"invite","displayname":"Bob"}`},
			{"m.room.create", ptr(""), `{"room_version":"` + v.Name + `","creator":"@alice:domain"}`},
			{"org.example\u0000", ptr("k\u0000\"é"), ``},
		} {
			built := build(t, v, c.typ, c.key, c.content)
			parsed, err := Parse(v, built.JSON())
			if err != nil {
				t.Fatalf("version %s: %v", v.Name, err)
			}
			if !reflect.DeepEqual(built, parsed) {
				t.Errorf("version %s: built\n%+v, parsed\n%+v", v.Name, built, parsed)
			}
			stored, err := ParseStored(v, built.ID(), built.JSON())
			if err != nil || !reflect.DeepEqual(built, stored) {
				t.Errorf("version %s: stored\n%+v (%v), want\n%+v", v.Name, stored, err, built)
			}
			if again, err := Canonical(built.JSON()); err != nil || !bytes.Equal(again, built.JSON()) {
				t.Errorf("version %s: the JSON of an event is not canonical: %s", v.Name, built.JSON())
			}
			state, isState := built.StateKey()
			if isState != (c.key != nil) || isState && (state != *c.key || !built.IsState(c.typ, *c.key)) || built.IsState("x", "") {
				t.Errorf("version %s: state key %q %v", v.Name, state, isState)
			}
			if built.Type() != c.typ || built.Sender() != "@alice:domain" || built.Depth() != 7 ||
				built.OriginServerTS() != then.UnixMilli() || len(built.PrevEvents()) != 1 || len(built.AuthEvents()) != 2 ||
				built.AuthEvents()[1] != eventOf(v, "auth2") || built.Size() != len(built.JSON()) || built.Version() != v || built.Redacted() {
				t.Errorf("version %s: %+v", v.Name, built)
			}
			if err := VerifySignature(parsed, domain, keyID, public); err != nil {
				t.Errorf("version %s: %v", v.Name, err)
			}
		}
	}
	if m := build(t, v11, typeMember, ptr("@bob:other"), `{"membership":"ban"}`).Membership(); m != "ban" {
		t.Errorf("membership is %q", m)
	}
	if m := build(t, v11, typeMember, nil, `{"membership":"ban"}`).Membership(); m != "" {
		t.Errorf("a member event without state key has membership %q", m)
	}
}

// spec: rooms/v12#event-format
func TestRoomIDOfVersion12IsTheCreateEvents(t *testing.T) {
	create := build(t, v12, typeCreate, ptr(""), `{"room_version":"12"}`)
	if create.RoomID() != id.RoomID("!"+string(create.ID()[1:])) || bytes.Contains(create.JSON(), []byte("room_id")) {
		t.Errorf("room %s of create event %s: %s", create.RoomID(), create.ID(), create.JSON())
	}
	for name, f := range map[string]func() (*Event, error){
		"redacted": create.Redact,
		"signed":   func() (*Event, error) { return create.Sign("other", keyID, key) },
		"stored":   func() (*Event, error) { return ParseStored(v12, create.ID(), create.JSON()) },
		"received": func() (*Event, error) { return Parse(v12, create.JSON()) },
		"tampered": func() (*Event, error) { return Parse(v12, with(t, create, map[string]any{"more": 1})) },
	} {
		e, err := f()
		if err != nil || e.RoomID() != create.RoomID() || e.ID() != create.ID() {
			t.Errorf("%s: %v, %+v", name, err, e)
		}
	}
	// spec: rooms/v12#authorisation-rules 1.2
	_, err := Parse(v12, rehash(t, v12, with(t, create, map[string]any{"room_id": create.RoomID()})))
	wantCode(t, err, chancery.CodeInvalidParam)
	_, err = Parse(v12, rehash(t, v12, with(t, create, map[string]any{"room_id": ""})))
	wantCode(t, err, chancery.CodeInvalidParam)
	p := proto(v12, typeCreate, ptr(""), `{}`)
	p.RoomID = roomOf(v12)
	_, err = Build(v12, p, domain, keyID, key, then)
	wantCode(t, err, chancery.CodeInvalidParam)

	message := build(t, v12, "m.room.message", nil, `{}`)
	_, err = Parse(v12, rehash(t, v12, with(t, message, map[string]any{"room_id": nil})))
	wantCode(t, err, chancery.CodeBadJSON)
	for _, room := range []string{"!room:domain", "!short", "$" + string(roomOf(v12)[1:]), string(roomOf(v12)) + "A", "!" + strings.Repeat("/", 43)} {
		_, err = Parse(v12, rehash(t, v12, with(t, message, map[string]any{"room_id": room})))
		wantCode(t, err, chancery.CodeInvalidParam)
	}
}

func TestBadEventsAreRefused(t *testing.T) {
	long := strings.Repeat("é", 128) // 128 characters, 256 bytes: bytes are what counts
	many := func(n int) []string { return slices.Repeat([]string{string(eventOf(v11, "x"))}, n) }
	for _, c := range []struct {
		name   string
		change map[string]any
		code   chancery.Code
	}{
		{"no type", map[string]any{"type": nil}, chancery.CodeBadJSON},
		{"type no string", map[string]any{"type": 1}, chancery.CodeBadJSON},
		{"type too long", map[string]any{"type": long}, chancery.CodeTooLarge},
		{"state key no string", map[string]any{"state_key": map[string]any{}}, chancery.CodeBadJSON},
		{"state key too long", map[string]any{"state_key": long}, chancery.CodeTooLarge},
		{"no sender", map[string]any{"sender": nil}, chancery.CodeBadJSON},
		{"empty sender", map[string]any{"sender": ""}, chancery.CodeBadJSON},
		{"sender too long", map[string]any{"sender": "@" + long + ":domain"}, chancery.CodeTooLarge},
		{"sender without domain", map[string]any{"sender": "@alice"}, chancery.CodeInvalidParam},
		{"sender with empty domain", map[string]any{"sender": "@alice:"}, chancery.CodeInvalidParam},
		{"sender with bad domain", map[string]any{"sender": "@alice:do main"}, chancery.CodeInvalidParam},
		{"sender with NUL", map[string]any{"sender": "@al\x00ice:domain"}, chancery.CodeInvalidParam},
		{"sender without sigil", map[string]any{"sender": "alice:domain"}, chancery.CodeInvalidParam},
		{"no room", map[string]any{"room_id": nil}, chancery.CodeBadJSON},
		{"bad room", map[string]any{"room_id": "room:domain"}, chancery.CodeInvalidParam},
		{"room without domain", map[string]any{"room_id": "!room"}, chancery.CodeInvalidParam},
		{"room too long", map[string]any{"room_id": "!" + long + ":domain"}, chancery.CodeTooLarge},
		{"no content", map[string]any{"content": nil}, chancery.CodeBadJSON},
		{"content no object", map[string]any{"content": []int{}}, chancery.CodeBadJSON},
		{"no depth", map[string]any{"depth": nil}, chancery.CodeBadJSON},
		{"depth no number", map[string]any{"depth": "7"}, chancery.CodeBadJSON},
		{"negative depth", map[string]any{"depth": -1}, chancery.CodeBadJSON},
		{"no time", map[string]any{"origin_server_ts": nil}, chancery.CodeBadJSON},
		{"time no number", map[string]any{"origin_server_ts": true}, chancery.CodeBadJSON},
		{"no prev_events", map[string]any{"prev_events": nil}, chancery.CodeBadJSON},
		{"prev_events no array", map[string]any{"prev_events": map[string]any{}}, chancery.CodeBadJSON},
		{"prev_events of numbers", map[string]any{"prev_events": []int{1}}, chancery.CodeBadJSON},
		{"prev_events of references", map[string]any{"prev_events": [][]any{{"$a", map[string]any{}}}}, chancery.CodeBadJSON},
		{"prev_events no IDs", map[string]any{"prev_events": []string{"x"}}, chancery.CodeInvalidParam},
		{"prev_events too long", map[string]any{"prev_events": []string{"$" + long}}, chancery.CodeTooLarge},
		{"21 prev_events", map[string]any{"prev_events": many(21)}, chancery.CodeInvalidParam},
		{"no auth_events", map[string]any{"auth_events": nil}, chancery.CodeBadJSON},
		{"11 auth_events", map[string]any{"auth_events": many(11)}, chancery.CodeInvalidParam},
		{"null auth_events", map[string]any{"auth_events": json.RawMessage("null")}, chancery.CodeBadJSON},
		{"too large", map[string]any{"content": map[string]any{"body": strings.Repeat("x", 65536)}}, chancery.CodeTooLarge},
		{"float", map[string]any{"content": map[string]any{"x": 1.5}}, chancery.CodeBadJSON},
		{"large integer", map[string]any{"content": map[string]any{"x": json.Number("9007199254740992")}}, chancery.CodeBadJSON},
	} {
		raw := rehash(t, v11, with(t, build(t, v11, "m.room.message", nil, `{"body":"hi"}`), c.change))
		_, err := Parse(v11, raw)
		if !chancery.IsCode(err, c.code) {
			t.Errorf("%s: got %v, want %s", c.name, err, c.code)
		}
	}
	good := build(t, v11, "m.room.message", nil, `{"body":"hi"}`)
	// spec: s2s/backfillRoom
	for _, change := range []map[string]any{{"prev_events": many(21)}, {"auth_events": many(11)}} {
		if _, err := ParsePast(v11, rehash(t, v11, with(t, good, change))); err != nil {
			t.Errorf("of the past: %v", err)
		}
	}
	for _, change := range []map[string]any{
		{"hashes": nil}, {"hashes": map[string]any{}}, {"hashes": map[string]any{"sha256": 1}}, {"hashes": "x"}, {"signatures": nil},
		{"signatures": []int{}}, {"signatures": map[string]any{"x": 1}}, {"signatures": map[string]any{"x": map[string]any{"ed25519:1": 1}}},
	} {
		_, err := Parse(v11, with(t, good, change))
		wantCode(t, err, chancery.CodeBadJSON)
	}
	for _, raw := range []string{``, `[]`, `null`, `"x"`, `{`, `{}`, `{}{}`, string(good.JSON()) + "x",
		strings.Replace(string(good.JSON()), `"depth":7`, `"depth":7,"depth":7`, 1),
		strings.Replace(string(good.JSON()), `"body":"hi"`, `"body":"hi","body":"ho"`, 1),
		strings.Replace(string(good.JSON()), `"body":"hi"`, `"body":"\ud800"`, 1),
		strings.Replace(string(good.JSON()), `"body":"hi"`, "\"body\":\"\xff\"", 1),
		strings.Replace(string(good.JSON()), `"body":"hi"`, `"body":`+strings.Repeat("[", 1001)+strings.Repeat("]", 1001), 1),
		strings.Replace(string(good.JSON()), `"depth":7`, `"depth":7,"unsigned":{"a":1,"a":2}`, 1),
		strings.Replace(string(good.JSON()), `"depth":7`, `"depth":7,"unsigned":{},"unsigned":{}`, 1),
		strings.Replace(string(good.JSON()), `"depth":7`, `"depth":7.0`, 1),
	} {
		_, err := Parse(v11, []byte(raw))
		wantCode(t, err, chancery.CodeBadJSON)
	}
	_, err := Parse(v11, bytes.Repeat([]byte(" "), maxRaw+1))
	wantCode(t, err, chancery.CodeTooLarge)
}

// What other servers took into rooms of older versions is taken: 255 code points. What we make is not longer
// than 255 bytes in any version.
//
// spec: c2s#size-limits
func TestOlderRoomsHoldLongerFields(t *testing.T) {
	for _, v := range Versions() {
		e := build(t, v, "x", ptr(""), `{}`)
		for field, value := range map[string]string{"type": strings.Repeat("é", 255), "state_key": strings.Repeat("€", 255),
			"sender": "@" + strings.Repeat("é", 247) + ":domain"} {
			ev, err := Parse(v, rehash(t, v, with(t, e, map[string]any{field: value})))
			if v.ByteLimits {
				wantCode(t, err, chancery.CodeTooLarge)
			} else if err != nil || ev.Redacted() {
				t.Errorf("version %s: %s of 255 code points: %v", v.Name, field, err)
			}
			_, err = Parse(v, rehash(t, v, with(t, e, map[string]any{field: strings.Replace(value, "é", "éé", 1) + "€"})))
			wantCode(t, err, chancery.CodeTooLarge)
		}
		if v.ByteLimits != (slices.Index(Versions(), v) >= 10) {
			t.Errorf("version %s: limits in bytes: %v", v.Name, v.ByteLimits)
		}
	}
}

// spec: c2s#size-limits
func TestLimitsAreReached(t *testing.T) {
	for _, v := range Versions() {
		edge := strings.Repeat("é", 127) + "x" // 255 bytes
		build(t, v, edge, ptr(edge), `{}`)
		for _, c := range []struct {
			typ string
			key *string
		}{{edge + "x", nil}, {"x", ptr(edge + "x")}} {
			_, err := Build(v, proto(v, c.typ, c.key, `{}`), domain, keyID, key, then)
			wantCode(t, err, chancery.CodeTooLarge)
		}
		room := build(t, v, "m.room.message", nil, `{"body":""}`).Size()
		e := build(t, v, "m.room.message", nil, `{"body":"`+strings.Repeat("x", maxSize-room)+`"}`)
		if e.Size() != maxSize {
			t.Fatalf("version %s: the event has %d bytes", v.Name, e.Size())
		}
		// unsigned does not count: whoever relays the event may add to it.
		if _, err := Parse(v, with(t, e, map[string]any{"unsigned": map[string]any{"age": 1}})); err != nil {
			t.Errorf("version %s: an event of %d bytes: %v", v.Name, maxSize, err)
		}
		_, err := Build(v, proto(v, "m.room.message", nil, `{"body":"`+strings.Repeat("x", maxSize-room+1)+`"}`), domain, keyID, key, then)
		wantCode(t, err, chancery.CodeTooLarge)
		if e := chancery.As(err); e.Status != 413 {
			t.Errorf("status %d", e.Status)
		}
		_, err = Parse(v, rehash(t, v, with(t, e, map[string]any{"content": map[string]any{"body": strings.Repeat("x", maxSize-room+1)}})))
		wantCode(t, err, chancery.CodeTooLarge)
		_, err = e.Sign("another", keyID, key)
		wantCode(t, err, chancery.CodeTooLarge)
	}
}

// spec: rooms/v6#canonical-json, rooms/v1#canonical-json
func TestFloatsPassUpToVersion5(t *testing.T) {
	for _, v := range Versions() {
		for _, content := range []string{`{"a":1.5}`, `{"a":9007199254740992}`, `{"a":-0}`, `{"a":1e3}`} {
			_, err := Build(v, proto(v, "x", nil, content), domain, keyID, key, then)
			if v.StrictCanonicalJSON {
				wantCode(t, err, chancery.CodeBadJSON)
			} else if err != nil {
				t.Errorf("version %s: %v", v.Name, err)
			}
		}
	}
	e := build(t, v5, "x", nil, `{}`)
	raw := rehash(t, v5, bytes.Replace(e.JSON(), []byte(`"depth":7`), []byte(`"depth":7.0`), 1))
	if e, err := Parse(v5, raw); err != nil || e.Depth() != 7 {
		t.Errorf("depth 7.0 in version 5: %v", err)
	}
	// unsigned is no part of the event, so floats in it harm nobody.
	e = build(t, v11, "x", nil, `{}`)
	if _, err := Parse(v11, bytes.Replace(e.JSON(), []byte(`"type"`), []byte(`"unsigned":{"age":1.5},"type"`), 1)); err != nil {
		t.Errorf("a float in unsigned: %v", err)
	}
}

// spec: s2s#validating-hashes-and-signatures-on-received-events
func TestATamperedEventIsRedactedOnReceipt(t *testing.T) {
	for _, v := range Versions() {
		e := build(t, v, typeMember, ptr("@alice:domain"), `{"membership":"join","displayname":"Alice"}`)
		want, err := e.Redact()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(v, bytes.Replace(e.JSON(), []byte("Alice"), []byte("Mallory"), 1))
		if err != nil || !got.Redacted() || got.ID() != e.ID() || !bytes.Equal(got.JSON(), want.JSON()) || got.Membership() != "join" {
			t.Errorf("version %s: %v, %s", v.Name, err, got.JSON())
		}
		if err := VerifySignature(got, domain, keyID, public); err != nil {
			t.Errorf("version %s: %v", v.Name, err)
		}
		// An essential field changed: another ID, and no signature holds.
		got, err = Parse(v, bytes.Replace(e.JSON(), []byte(`"join"`), []byte(`"ban"`), 1))
		if err != nil {
			t.Fatal(err)
		}
		if err := VerifySignature(got, domain, keyID, public); err == nil || v.EventIDFormat != IDFromSender && got.ID() == e.ID() {
			t.Errorf("version %s: a changed membership still verifies", v.Name)
		}
	}
}

func TestTransportKeysAreLeftOut(t *testing.T) {
	e := build(t, v11, "m.room.message", nil, `{"age":1,"unsigned":{}}`)
	got, err := Parse(v11, with(t, e, map[string]any{"unsigned": map[string]any{"a": 1}, "age": 5, "age_ts": 7, "outlier": true, "destinations": []string{"x"}}))
	if err != nil || !bytes.Equal(got.JSON(), e.JSON()) || got.ID() != e.ID() || got.Redacted() {
		t.Errorf("%v: %s", err, got.JSON())
	}
	// Any other key is part of the event: the content hash covers it.
	more := rehash(t, v11, with(t, e, map[string]any{"org.example": 1}))
	if got, err = Parse(v11, more); err != nil || got.Redacted() || !bytes.Equal(got.JSON(), more) {
		t.Errorf("%v: %s", err, got.JSON())
	}
}

func TestProperties(t *testing.T) {
	r := rand.New(rand.NewSource(2))
	for range 3000 {
		v := versions[r.Intn(len(versions))]
		e := randomEvent(t, r, v)
		redacted, err := e.Redact()
		if err != nil {
			t.Fatal(err)
		}
		twice, err := redacted.Redact()
		if err != nil || !reflect.DeepEqual(redacted, twice) {
			t.Fatalf("redacting twice differs: %s, %s", redacted.JSON(), twice.JSON())
		}
		received, err := Parse(v, redacted.JSON())
		if err != nil || received.ID() != e.ID() || !bytes.Equal(received.JSON(), redacted.JSON()) {
			t.Fatalf("the redacted copy of %s is received as %v (%v)", e.JSON(), received, err)
		}
		signed, err := redacted.Sign("other.example", "ed25519:é\"", key)
		if err != nil || signed.ID() != e.ID() || !signed.Redacted() || !bytes.Equal(signed.SignedBytes(), e.SignedBytes()) {
			t.Fatalf("signing changed %s: %v", e.JSON(), err)
		}
		for _, s := range []struct{ server, key string }{{domain, keyID}, {"other.example", "ed25519:é\""}} {
			if err := VerifySignature(signed, s.server, s.key, public); err != nil {
				t.Fatal(err)
			}
		}
		if again, err := Parse(v, signed.JSON()); err != nil || again.ID() != e.ID() || !bytes.Equal(again.JSON(), signed.JSON()) {
			t.Fatalf("%s is read as %v (%v)", signed.JSON(), again, err)
		}
		for _, raw := range [][]byte{Client(e, nil, true), Client(e, []byte(`{"age":1}`), false), e.Stripped()} {
			if !json.Valid(raw) {
				t.Fatalf("no JSON: %s", raw)
			}
		}
	}
}

// randomEvent makes an event of a type that redaction knows, with keys of all types' contents.
func randomEvent(t testing.TB, r *rand.Rand, v *Version) *Event {
	types := []string{"m.room.message", "m.room.member", "m.room.create", "m.room.join_rules", "m.room.power_levels", "m.room.aliases",
		"m.room.history_visibility", "m.room.redaction", "m.room.third_party_invite"}
	values := []string{`1`, `"x"`, `null`, `{}`, `[]`, `{"signed":{"mxid":"@a:b"},"x":1}`, `{"@u:d":100,"a\"b":[1,{"z":1,"a":2}]}`, `"é\n\u0000"`, `true`, `-3`}
	content := map[string]json.RawMessage{}
	keys := []string{"membership", "creator", "join_rule", "allow", "ban", "events", "events_default", "invite", "kick", "redact", "state_default",
		"users", "users_default", "aliases", "history_visibility", "redacts", "third_party_invite", "join_authorised_via_users_server", "body", "\n", "é"}
	for _, k := range keys {
		if r.Intn(3) == 0 {
			content[k] = json.RawMessage(values[r.Intn(len(values))])
		}
	}
	raw, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	p := proto(v, types[r.Intn(len(types))], nil, string(raw))
	if r.Intn(2) == 0 {
		p.StateKey = ptr([]string{"", "@bob:other", "\x00é\""}[r.Intn(3)])
	}
	if p.Type == typeRedaction && r.Intn(2) == 0 {
		p.Redacts = eventOf(v, "redacted")
	}
	p.Depth = r.Int63n(maxInteger)
	e, err := Build(v, p, domain, keyID, key, time.UnixMilli(r.Int63n(maxInteger)))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestADamagedStoreIsAnErrorNotAPanic(t *testing.T) {
	for _, v := range []*Version{v1, v12} {
		e := build(t, v, typeMember, ptr("@b\"\\:c"), `{"membership":"join","x":[[],{"y":"\\"}]}`)
		for i := range e.JSON() {
			if _, err := ParseStored(v, e.ID(), bytes.Clone(e.JSON()[:i])); err == nil {
				t.Fatalf("the first %d bytes of an event are read as one", i)
			}
			for _, c := range []byte(`"\{}[],:0`) {
				raw := bytes.Clone(e.JSON())
				raw[i] = c
				if d, err := ParseStored(v, e.ID(), raw); err == nil { // whatever it became, its accessors work
					d.NeedsSignaturesOf()
					d.Signatures()
					d.SignedBytes()
					Client(d, nil, true)
				}
			}
		}
	}
}

// An object whose keys are out of order is moved once it is read, so nesting multiplies the
// work: a peer must not make us spend more than milliseconds on the worst event it may send.
func TestDeepUnorderedJSONIsCheap(t *testing.T) {
	raw := strings.Repeat(`{"b":1,"a":`, 900) + `"` + strings.Repeat("x", maxRaw-20000) + `"` + strings.Repeat("}", 900)
	start := time.Now()
	if _, err := Canonical([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %v", took)
	} else {
		t.Logf("took %v", took)
	}
}
