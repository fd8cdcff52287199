package peer

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery"
)

// memory is a KeyStore for tests.
type memory struct {
	mu   sync.Mutex
	keys map[string]ServerKey
}

func (m *memory) LoadKeys(_ context.Context, server string) (out []ServerKey, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range m.keys {
		if key.Server == server {
			out = append(out, key)
		}
	}
	return out, nil
}

func (m *memory) SaveKeys(_ context.Context, keys, gone []ServerKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range gone {
		delete(m.keys, key.Server+" "+key.ID)
	}
	if m.keys == nil {
		m.keys = map[string]ServerKey{}
	}
	for _, key := range keys {
		m.keys[key.Server+" "+key.ID] = key
	}
	return nil
}

// ringOf is the key ring of server name, which already knows the keys of others.
func ringOf(t testing.TB, name string, others ...*Keys) *KeyRing {
	t.Helper()
	own := &Keys{ServerName: name, Signing: []SigningKey{NewSigningKey()}}
	c, err := New(Options{ServerName: name, Key: own.Key(), AllowPrivate: true, Resolver: &names{}})
	must(t, err)
	t.Cleanup(c.Close)
	store := &memory{}
	for _, other := range others {
		list, err := other.ServerKeys(time.Now())
		must(t, err)
		keys, _, err := readKeyList(other.ServerName, list, time.Now())
		must(t, err)
		must(t, store.SaveKeys(t.Context(), keys, nil))
	}
	return NewKeyRing(c, own, store, nil)
}

// publisher is a server that publishes its keys.
type publisher struct {
	keys  *Keys
	down  atomic.Bool
	asked atomic.Int64
	now   func() time.Time
	spoil func(json.RawMessage) json.RawMessage
}

func publish(t testing.TB, ca *authority, host string) *publisher {
	p := &publisher{now: time.Now}
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/_matrix/key/v2/server" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		p.asked.Add(1)
		if p.down.Load() {
			w.WriteHeader(502)
			return
		}
		list, err := p.keys.ServerKeys(p.now())
		if err != nil {
			t.Error(err)
		}
		if p.spoil != nil {
			list = p.spoil(list)
		}
		answerJSON(w, 200, string(list))
	}, host)
	p.keys = &Keys{ServerName: host + ":" + port, Signing: []SigningKey{NewSigningKey()}}
	return p
}

// ourRing is the key ring of "us.example", with a clock that the test sets.
func ourRing(t testing.TB, ca *authority, store KeyStore, notaries ...string) (*KeyRing, *atomic.Int64) {
	c, own := ca.us(t, &names{}, nil)
	var ahead atomic.Int64
	c.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	return NewKeyRing(c, own, store, notaries), &ahead
}

// Whoever has many names could fill the disk with the keys of each: a request alone leaves nothing there.
func TestOnlyKeysOfWhatIsKeptAreStored(t *testing.T) {
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	store := &memory{}
	r, _ := ourRing(t, ca, store)
	ask := func(key SigningKey) {
		t.Helper()
		header := SignRequest(key, p.keys.ServerName, "us.example", "GET", "/", nil)
		_, err := r.VerifyRequest(t.Context(), Request{Method: "GET", URI: "/", Authorization: []string{header}})
		must(t, err)
	}
	ask(p.keys.Signing[0])
	_, err := r.Published(t.Context(), p.keys.ServerName, time.Time{})
	must(t, err)
	if len(store.keys) != 0 {
		t.Errorf("stored are %v", store.keys)
	}
	object, err := p.keys.Sign([]byte(`{"a":"x"}`))
	must(t, err)
	must(t, r.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now()))
	if n := p.asked.Load(); len(store.keys) != 1 || n != 1 {
		t.Errorf("stored are %v, after asking %d times", store.keys, n)
	}
	// From then on what changes is stored, whoever made us ask.
	p.keys.Signing = append(p.keys.Signing, NewSigningKey())
	ask(p.keys.Signing[1])
	if len(store.keys) != 2 {
		t.Errorf("stored are %v", store.keys)
	}
}

func TestKeysAreFetchedOnce(t *testing.T) {
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	store := &memory{}
	r, _ := ourRing(t, ca, store)
	object, err := p.keys.Sign([]byte(`{"b":1,"a":"x","unsigned":{"age":1}}`))
	must(t, err)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if err := r.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now()); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := p.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
	p.down.Store(true)
	again, _ := ourRing(t, ca, store) // a restart while the server is down
	must(t, again.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now()))
	changed := strings.Replace(string(object), `"x"`, `"y"`, 1)
	if err := r.VerifyJSON(t.Context(), p.keys.ServerName, []byte(changed), time.Now()); err == nil {
		t.Error("a changed object passes")
	}
	unsigned := strings.Replace(string(object), `"age":1`, `"age":2`, 1)
	must(t, r.VerifyJSON(t.Context(), p.keys.ServerName, []byte(unsigned), time.Now()))
}

// ill is a store that breaks on whatever it is to keep.
type ill struct{ memory }

func (*ill) SaveKeys(context.Context, []ServerKey, []ServerKey) error {
	panic("these keys are too much")
}

// A panic over the keys of a server, which are fetched for all who wait, ends only the fetch.
func TestPanicOverKeysFailsTheFetch(t *testing.T) {
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	r, _ := ourRing(t, ca, &ill{})
	object, err := p.keys.Sign([]byte(`{"a":1}`))
	must(t, err)
	_ = r.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now()) // the keys may be known already when the store breaks
	if _, err := r.Published(t.Context(), "q.example", time.Time{}); err == nil {
		t.Error("a server that is not there has published keys")
	}
	if n := p.asked.Load(); n != 1 {
		t.Errorf("the server was asked %d times", n)
	}
}

func TestKeyRotation(t *testing.T) {
	// spec: s2s#publishing-keys
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	r, ahead := ourRing(t, ca, &memory{})
	name := p.keys.ServerName
	before := time.Now()
	old := p.keys.Key()
	signedBefore, err := p.keys.Sign([]byte(`{}`))
	must(t, err)
	must(t, r.VerifyJSON(t.Context(), name, signedBefore, before))

	fresh := NewSigningKey()
	p.keys.Signing = []SigningKey{fresh}
	p.keys.Old = []OldKey{{old.ID, old.Public(), before.Add(time.Minute)}}
	signedAfter, err := p.keys.Sign([]byte(`{}`))
	must(t, err)
	must(t, r.VerifyJSON(t.Context(), name, signedAfter, time.Now())) // its key is unknown: asked for at once
	keys, err := r.Keys(t.Context(), name, []string{old.ID, fresh.ID}, time.Time{})
	must(t, err)
	if len(keys) != 2 || keys[old.ID].Expired.IsZero() || !keys[fresh.ID].Expired.IsZero() {
		t.Fatalf("after the rotation: %+v", keys)
	}
	must(t, r.VerifyJSON(t.Context(), name, signedBefore, before)) // old events stay good
	ahead.Store(int64(time.Hour))
	if err := r.VerifyJSON(t.Context(), name, signedBefore, before.Add(time.Hour)); err == nil {
		t.Error("an old key signs an event after its end")
	}
	auth := SignRequest(old, name, "us.example", "GET", "/", nil)
	if _, err := r.VerifyRequest(t.Context(), Request{"GET", "/", nil, []string{auth}}); !chancery.IsCode(err, chancery.CodeUnauthorized) {
		t.Errorf("an old key signs requests: %v", err)
	}
	auth = SignRequest(fresh, name, "us.example", "GET", "/", nil)
	if origin, err := r.VerifyRequest(t.Context(), Request{"GET", "/", nil, []string{auth}}); err != nil || origin != name {
		t.Errorf("the new key signs no requests: %v", err)
	}
}

func TestKeysRunOut(t *testing.T) {
	// spec: rooms/v5#signing-key-validity-period
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	p.now = func() time.Time { return time.Now().Add(365 * 24 * time.Hour) } // "valid for a year"
	r, ahead := ourRing(t, ca, nil)
	name, key := p.keys.ServerName, p.keys.Key()
	payload := []byte(`{}`)
	signature := map[string]string{key.ID: encodeBase64(ed25519.Sign(key.Private, payload))}
	thing := func(at time.Duration, enforce bool) SignedThing {
		return SignedThing{name, payload, signature, time.Now().Add(at), enforce}
	}
	errs := r.VerifyEvents(t.Context(), []SignedThing{thing(0, true), thing(8*24*time.Hour, true), thing(8*24*time.Hour, false), thing(6*24*time.Hour, true)})
	if errs[0] != nil || errs[1] == nil || errs[2] != nil || errs[3] != nil {
		t.Errorf("now, in 8 days, in 8 days without the rule, in 6 days: %v", errs)
	}
	p.down.Store(true)
	ahead.Store(int64(8 * 24 * time.Hour))
	auth := SignRequest(key, name, "us.example", "GET", "/", nil)
	if _, err := r.VerifyRequest(t.Context(), Request{"GET", "/", nil, []string{auth}}); err == nil {
		t.Error("a key that was confirmed 8 days ago still signs requests")
	}
	p.down.Store(false)
	ahead.Add(int64(time.Minute))
	if _, err := r.VerifyRequest(t.Context(), Request{"GET", "/", nil, []string{auth}}); err != nil {
		t.Errorf("the key was not confirmed again: %v", err)
	}
}

func TestFalseKeyLists(t *testing.T) {
	ca := newAuthority(t)
	other := NewSigningKey()
	for name, spoil := range map[string]func(p *publisher, list json.RawMessage) json.RawMessage{
		"of another server": func(_ *publisher, _ json.RawMessage) json.RawMessage {
			list, _ := (&Keys{ServerName: "victim.example", Signing: []SigningKey{other}}).ServerKeys(time.Now())
			return list
		},
		"unsigned": func(_ *publisher, list json.RawMessage) json.RawMessage {
			var m map[string]json.RawMessage
			_ = json.Unmarshal(list, &m)
			delete(m, "signatures")
			out, _ := json.Marshal(m)
			return out
		},
		"changed": func(_ *publisher, list json.RawMessage) json.RawMessage {
			return json.RawMessage(strings.Replace(string(list), `"valid_until_ts":`, `"valid_until_ts":1`, 1))
		},
		"signed by a key it does not name": func(p *publisher, list json.RawMessage) json.RawMessage {
			var m map[string]json.RawMessage
			_ = json.Unmarshal(list, &m)
			delete(m, "signatures")
			plain, _ := json.Marshal(m)
			out, _ := SignJSON(p.keys.ServerName, other, plain)
			return out
		},
		"no JSON":   func(*publisher, json.RawMessage) json.RawMessage { return json.RawMessage(`<html>`) },
		"too large": func(_ *publisher, l json.RawMessage) json.RawMessage { return append(l, make([]byte, maxKeyList)...) },
	} {
		p := publish(t, ca, "p.example")
		p.spoil = func(list json.RawMessage) json.RawMessage { return spoil(p, list) }
		r, _ := ourRing(t, ca, &memory{})
		object, err := p.keys.Sign([]byte(`{}`))
		must(t, err)
		for range 3 {
			if err := r.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now()); err == nil {
				t.Errorf("a key list %s is believed", name)
			}
		}
		if n := p.asked.Load(); n != 1 {
			t.Errorf("%s: asked %d times in a moment", name, n)
		}
	}
}

// A server that shows other keys each time it is asked fills neither memory nor the store, and its newest keys hold.
func TestKeysWithoutEndAreForgotten(t *testing.T) {
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	store := &memory{}
	r, _ := ourRing(t, ca, store)
	for range 6 {
		p.keys.Signing, p.keys.Old = nil, nil
		for range maxKeys / 2 {
			p.keys.Signing = append(p.keys.Signing, NewSigningKey())
			old := NewSigningKey()
			p.keys.Old = append(p.keys.Old, OldKey{ID: old.ID, Public: old.Public(), Expired: time.Now()})
		}
		object, err := p.keys.Sign([]byte(`{}`))
		must(t, err)
		must(t, r.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now()))
		if known, _ := r.servers.get(p.keys.ServerName); len(known.keys) > 2*maxKeys || len(known.keys) != len(store.keys) {
			t.Fatalf("%d keys are in memory, %d are stored", len(known.keys), len(store.keys))
		}
	}
}

func TestNotary(t *testing.T) {
	// spec: s2s#querying-keys-through-another-server
	ca := newAuthority(t)
	silent := &Keys{ServerName: "127.0.0.1:1", Signing: []SigningKey{NewSigningKey()}} // nobody listens there
	var notary *Keys
	forged := false
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		list, err := notary.ServerKeys(time.Now())
		if r.Method == "POST" {
			if list, err = silent.ServerKeys(time.Now()); err == nil && !forged {
				list, err = notary.Notarise(list)
			}
			list = json.RawMessage(fmt.Sprintf(`{"server_keys":[%s]}`, list))
		}
		if err != nil {
			t.Error(err)
		}
		answerJSON(w, 200, string(list))
	}, "notary.example")
	notary = &Keys{ServerName: "notary.example:" + port, Signing: []SigningKey{NewSigningKey()}}
	object, err := silent.Sign([]byte(`{}`))
	must(t, err)
	for _, forged = range []bool{false, true} {
		r, _ := ourRing(t, ca, nil, notary.ServerName)
		if err := r.VerifyJSON(t.Context(), silent.ServerName, object, time.Now()); (err != nil) != forged {
			t.Errorf("not signed by the notary: %v; %v", forged, err)
		}
	}
}

func TestNotaryCannotReplaceKeys(t *testing.T) {
	now := time.Now()
	a, b := NewSigningKey(), NewSigningKey()
	known := map[string]ServerKey{
		"1": {ID: "1", Public: a.Public(), ValidUntil: now}, "2": {ID: "2", Public: a.Public(), Expired: now},
	}
	found := []ServerKey{
		{ID: "1", Public: b.Public(), ValidUntil: now.Add(1)}, {ID: "2", Public: a.Public(), ValidUntil: now.Add(1)}, {ID: "3", Public: b.Public(), ValidUntil: now},
	}
	merged := mergeKeys(known, found, true)
	if !merged["1"].Public.Equal(a.Public()) || merged["2"].Expired.IsZero() || merged["3"].Public == nil {
		t.Errorf("by a notary: %+v", merged)
	}
	merged = mergeKeys(known, found, false)
	if !merged["1"].Public.Equal(b.Public()) || !merged["2"].Expired.IsZero() {
		t.Errorf("by the server itself: %+v", merged)
	}
}

func TestWeAreANotary(t *testing.T) {
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	r, ahead := ourRing(t, ca, nil)
	name := p.keys.ServerName
	check := func(when string) {
		t.Helper()
		list, err := r.Published(t.Context(), name, r.now())
		must(t, err)
		if _, _, err := readKeyList(name, list, r.now()); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		must(t, r.VerifyJSON(t.Context(), "us.example", list, r.now()))
	}
	check("fetched")
	check("remembered")
	if p.asked.Load() != 1 {
		t.Errorf("asked %d times", p.asked.Load())
	}
	ahead.Store(int64(20 * time.Hour))
	check("renewed after half its life")
	if p.asked.Load() != 2 {
		t.Errorf("asked %d times", p.asked.Load())
	}
	p.down.Store(true)
	ahead.Store(int64(40 * time.Hour))
	check("the server is silent")
	if _, err := r.Published(t.Context(), "127.0.0.1:1", r.now()); err == nil {
		t.Error("keys of a server that was never reached")
	}
}

func TestManyEventsAreVerifiedTogether(t *testing.T) {
	ca := newAuthority(t)
	var things []SignedThing
	var wrong []bool
	var servers []*publisher
	for i := range 5 {
		servers = append(servers, publish(t, ca, fmt.Sprintf("p%d.example", i)))
	}
	servers[4].down.Store(true)
	for i := range 400 {
		p := servers[i%5]
		payload := []byte(fmt.Sprintf(`{"n":%d}`, i))
		thing := SignedThing{p.keys.ServerName, payload, map[string]string{p.keys.Key().ID: encodeBase64(ed25519.Sign(p.keys.Key().Private, payload)), "x:1": "?"}, time.Now(), true}
		switch i % 7 {
		case 0:
			thing.Payload = []byte(`{}`)
		case 1:
			thing.Signatures = nil
		}
		things = append(things, thing)
		wrong = append(wrong, i%7 < 2 || i%5 == 4)
	}
	r, _ := ourRing(t, ca, &memory{})
	own := []byte(`{}`)
	things = append(things, SignedThing{"us.example", own, map[string]string{r.own.Key().ID: encodeBase64(ed25519.Sign(r.own.Key().Private, own))}, time.Now(), true})
	wrong = append(wrong, false)
	for i, err := range r.VerifyEvents(t.Context(), things) {
		if (err != nil) != wrong[i] {
			t.Errorf("%d: %v, should be wrong: %v", i, err, wrong[i])
		}
		if known := i%5 != 4; err != nil && known != errors.Is(err, ErrBadSignature) && i%7 != 1 {
			t.Errorf("%d: %v does not say whether asking again may help", i, err)
		}
	}
	for _, p := range servers {
		if n := p.asked.Load(); n != 1 {
			t.Errorf("%s was asked %d times", p.keys.ServerName, n)
		}
	}
}

func TestFewStrangersAreAskedAtOnce(t *testing.T) {
	ca := newAuthority(t)
	p := publish(t, ca, "p.example")
	r, _ := ourRing(t, ca, nil)
	object, err := p.keys.Sign([]byte(`{}`))
	must(t, err)
	in := Request{Method: "GET", URI: "/", Authorization: []string{
		SignRequest(p.keys.Key(), p.keys.ServerName, "us.example", "GET", "/", nil)}}
	for range maxStrangers {
		r.strangers <- struct{}{}
	}
	if _, err := r.VerifyRequest(t.Context(), in); !chancery.IsCode(err, chancery.CodeLimitExceeded) {
		t.Errorf("one stranger more: %v", err)
	}
	if n := p.asked.Load(); n != 0 {
		t.Errorf("it was asked %d times", n)
	}
	must(t, r.VerifyJSON(t.Context(), p.keys.ServerName, object, time.Now())) // what we want to know ourselves
	if _, err := r.VerifyRequest(t.Context(), in); err != nil {
		t.Errorf("known by now: %v", err)
	}
}
