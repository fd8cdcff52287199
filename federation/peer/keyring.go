package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
)

// KeyStore keeps the keys of others over a restart. SaveKeys replaces keys of the same server and ID, and forgets those
// that are gone.
type KeyStore interface {
	LoadKeys(ctx context.Context, server string) ([]ServerKey, error)
	SaveKeys(ctx context.Context, keys, gone []ServerKey) error
}

// KeyRing has the keys that other servers sign with. It looks in memory, in the store, asks the
// server, and then the notaries. A fetch that was of no use is not repeated for a while,
// whatever key IDs are thrown at us, and one fetch serves all who wait.
type KeyRing struct {
	client   *Client
	own      *Keys
	store    KeyStore // may be nil
	notaries []string
	log      *zap.Logger
	now      func() time.Time

	servers   *bounded[knownKeys]
	published *bounded[publication]
	flight    singleflight.Group
	strangers chan struct{} // fetches under way of servers never seen that somebody unknown made us ask
	cores     chan struct{} // held while signatures of events are checked
}

// knownKeys are never changed in place.
type knownKeys struct {
	keys   map[string]ServerKey
	loaded bool // what the store has is in keys
	stored bool // the store has what is in keys
	again  time.Time
	tries  int // fetches since one was of use
}

// publication is a key list as its server signed it, for those who ask us as a notary.
type publication struct {
	list           json.RawMessage
	fetched, until time.Time
}

const (
	fetchTimeout  = 10 * time.Second
	fetchPause    = 10 * time.Second // after a fetch that was of no use, doubling
	fetchPauseMax = time.Minute
	maxKeyList    = 128 << 10
	maxKnown      = 50_000  // servers and their keys in memory
	maxPublished  = 8 << 10 // KiB of lists in memory
	maxStrangers  = 32
)

// errStrangers refuses to ask one more server that we have never seen: anybody can name servers that do not
// answer, and everyone who waits for one costs us a connection and memory.
var errStrangers = errors.New("too many servers that we do not know are being asked for their keys")

// NewKeyRing makes a key ring that asks through client. Own keys need no asking. Notaries are
// asked when a server itself does not answer.
func NewKeyRing(client *Client, own *Keys, store KeyStore, notaries []string) *KeyRing {
	return &KeyRing{
		client: client, own: own, store: store, notaries: notaries, log: client.log,
		now: func() time.Time { return client.now() },
		// How many keys a server has, and how long its list is, is its own choice.
		servers:   newWeighed(maxKnown, func(k knownKeys) int { return 1 + len(k.keys) }),
		published: newWeighed(maxPublished, func(p publication) int { return 1 + len(p.list)>>10 }),
		strangers: make(chan struct{}, maxStrangers),
		cores:     make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// Keys gives those of the named keys of server that are known, or can be found, and that were valid
// at the given time; the zero time asks for them whenever they were valid.
//
// spec: s2s#retrieving-server-keys
func (r *KeyRing) Keys(ctx context.Context, server string, keyIDs []string, at time.Time) (map[string]ServerKey, error) {
	good := func(k ServerKey) bool { return at.IsZero() || k.validAt(at) }
	keys, err := r.obtain(ctx, server, need{
		ids: keyIDs, until: at,
		met: func(keys map[string]ServerKey) bool {
			return !slices.ContainsFunc(keyIDs, func(id string) bool { k, ok := keys[id]; return !ok || !good(k) })
		},
	})
	found := map[string]ServerKey{}
	for _, id := range keyIDs {
		if key, ok := keys[id]; ok && good(key) {
			found[id] = key
		}
	}
	if len(found) > 0 || len(keyIDs) == 0 {
		err = nil
	}
	return found, err
}

// need says which keys of a server are wanted.
type need struct {
	ids      []string
	until    time.Time                       // when they have to be valid
	met      func(map[string]ServerKey) bool // is there no reason to ask further?
	speaking bool                            // the server is making a request to us, so it is up
	anyone   bool                            // whoever makes us ask has not said who they are: nothing is stored for them
}

// obtain gives all keys of server that can be had, going on to the next source while the need is
// not met. The error says why a source failed, when the need was not met.
func (r *KeyRing) obtain(ctx context.Context, server string, n need) (map[string]ServerKey, error) {
	if server == r.own.ServerName {
		return r.ownKeys(), nil
	}
	if !ValidServerName(server) {
		return nil, fmt.Errorf("%.100q is not a valid server name", server)
	}
	kept := func(known knownKeys) bool { return n.anyone || known.stored || len(known.keys) == 0 || r.store == nil }
	known, _ := r.servers.get(server)
	if n.met(known.keys) && kept(known) {
		return known.keys, nil
	}
	if !known.loaded && r.store != nil {
		known = r.load(ctx, server)
		if n.met(known.keys) && kept(known) {
			return known.keys, nil
		}
	}
	if !n.met(known.keys) && r.now().Before(known.again) {
		return known.keys, fmt.Errorf("%w: %s was asked a moment ago", errNoKey, server)
	}
	// One fetch for all who wait, which lives on when the first of them gives up.
	done := r.flight.DoChan(server, func() (_ any, err error) {
		defer func() { // a goroutine of its own: no list of keys may end the process
			if p := recover(); p != nil {
				r.log.Error("panic while asking for keys", zap.String("server", server), zap.Any("panic", p), zap.Stack("stack"))
				err = fmt.Errorf("panic: %v", p)
			}
		}()
		if n.anyone && len(known.keys) == 0 {
			select {
			case r.strangers <- struct{}{}:
				defer func() { <-r.strangers }()
			default:
				return nil, errStrangers
			}
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*fetchTimeout+time.Duration(len(r.notaries))*fetchTimeout)
		defer cancel()
		err = r.fetch(ctx, server, n)
		if !n.anyone {
			r.keep(ctx, server)
		}
		return nil, err
	})
	select {
	case result := <-done:
		known, _ = r.servers.get(server)
		return known.keys, result.Err
	case <-ctx.Done():
		return known.keys, ctx.Err()
	}
}

func (r *KeyRing) ownKeys() map[string]ServerKey {
	keys := make(map[string]ServerKey, len(r.own.Signing)+len(r.own.Old))
	for _, k := range r.own.Signing {
		keys[k.ID] = ServerKey{Server: r.own.ServerName, ID: k.ID, Public: k.Public(), ValidUntil: r.now().Add(maxValidity)}
	}
	for _, k := range r.own.Old {
		keys[k.ID] = ServerKey{Server: r.own.ServerName, ID: k.ID, Public: k.Public, Expired: k.Expired}
	}
	return keys
}

// load brings what the store has into memory.
func (r *KeyRing) load(ctx context.Context, server string) knownKeys {
	stored, err := r.store.LoadKeys(ctx, server)
	if err != nil {
		r.log.Warn("keys of a server could not be read from storage", zap.String("server", server), zap.Error(err))
	}
	return r.servers.change(server, func(known knownKeys, _ bool) (knownKeys, bool) {
		if known.loaded || err != nil {
			return known, true
		}
		keys := map[string]ServerKey{}
		for _, key := range stored {
			keys[key.ID] = key
		}
		maps.Copy(keys, known.keys)
		known.keys, known.loaded = keys, true
		known.stored = known.stored || len(stored) > 0
		return known, true
	})
}

// fetch asks the server, and the notaries while that does not help.
func (r *KeyRing) fetch(ctx context.Context, server string, n need) error {
	known, _ := r.servers.get(server)
	if n.met(known.keys) || r.now().Before(known.again) {
		return nil // somebody's fetch ended just before ours began
	}
	err := r.fetchDirect(ctx, server, n.speaking)
	known, _ = r.servers.get(server)
	for _, notary := range r.notaries {
		if n.met(known.keys) {
			break
		}
		if notary == server || notary == r.own.ServerName {
			continue
		}
		if nErr := r.fetchFromNotary(ctx, notary, server, n); nErr != nil {
			err = errors.Join(err, nErr)
		}
		known, _ = r.servers.get(server)
	}
	met := n.met(known.keys)
	if !met && errors.Is(err, ErrBackedOff) && len(r.notaries) == 0 {
		return err // nobody was asked
	}
	r.servers.change(server, func(known knownKeys, _ bool) (knownKeys, bool) {
		if met { // a server may change its key again a moment later
			known.again, known.tries = time.Time{}, 0
			return known, true
		}
		known.again = r.now().Add(min(fetchPause<<min(known.tries, 8), fetchPauseMax))
		known.tries++
		return known, true
	})
	if met {
		return nil
	}
	if err == nil {
		err = fmt.Errorf("%w: %s does not name it", errNoKey, server)
	}
	return err
}

// fetchDirect asks the server itself. Its TLS certificate vouches for its name, its signature for
// having the keys.
//
// spec: s2s/getServerKey
func (r *KeyRing) fetchDirect(ctx context.Context, server string, speaking bool) error {
	var published json.RawMessage
	err := r.client.Do(ctx, server, "GET", "/_matrix/key/v2/server", nil, &published,
		Opts{Unsigned: true, Timeout: fetchTimeout, MaxBytes: maxKeyList, IgnoreBackoff: speaking})
	if err != nil {
		return err
	}
	keys, until, err := readKeyList(server, published, r.now())
	if err != nil {
		return err
	}
	r.published.set(server, publication{published, r.now(), until})
	r.learn(ctx, server, keys, false)
	return nil
}

// keep stores the keys of a server whose word is wanted longer than for a request: it signed what we keep. Of others
// there may be as many as somebody has names.
func (r *KeyRing) keep(ctx context.Context, server string) {
	if r.store == nil {
		return
	}
	var keys []ServerKey
	r.servers.change(server, func(known knownKeys, _ bool) (knownKeys, bool) {
		if !known.stored && len(known.keys) > 0 {
			keys, known.stored = slices.Collect(maps.Values(known.keys)), true
		}
		return known, true
	})
	r.save(ctx, server, keys, nil)
}

// save stores keys. When it fails they are stored with the next.
func (r *KeyRing) save(ctx context.Context, server string, keys, gone []ServerKey) {
	if len(keys) == 0 {
		return
	}
	if err := r.store.SaveKeys(ctx, keys, gone); err != nil {
		r.log.Warn("keys of a server could not be stored", zap.String("server", server), zap.Error(err))
		r.servers.change(server, func(known knownKeys, _ bool) (knownKeys, bool) {
			known.stored = false
			return known, true
		})
	}
}

// learn keeps keys in memory, and in the store where others of the server are.
func (r *KeyRing) learn(ctx context.Context, server string, keys []ServerKey, fromNotary bool) {
	var changed, gone []ServerKey
	stored := false
	r.servers.change(server, func(known knownKeys, _ bool) (knownKeys, bool) {
		merged := mergeKeys(known.keys, keys, fromNotary)
		for id, key := range merged {
			old, ok := known.keys[id]
			if !ok || !old.Public.Equal(key.Public) || !old.ValidUntil.Equal(key.ValidUntil) || !old.Expired.Equal(key.Expired) {
				changed = append(changed, key)
			}
		}
		for id, key := range known.keys {
			if _, ok := merged[id]; !ok {
				gone = append(gone, key)
			}
		}
		known.keys, stored = merged, known.stored
		return known, true
	})
	if stored {
		r.save(ctx, server, changed, gone)
	}
}

// fetchFromNotary asks another server for its copy of server's key list.
//
// spec: s2s/bulkPerspectivesKeyQuery
func (r *KeyRing) fetchFromNotary(ctx context.Context, notary, server string, n need) error {
	until := n.until
	if until.IsZero() {
		until = r.now()
	}
	criteria := map[string]any{}
	for _, id := range n.ids {
		criteria[id] = map[string]int64{"minimum_valid_until_ts": until.UnixMilli()}
	}
	var answer struct {
		Lists []json.RawMessage `json:"server_keys"`
	}
	body := map[string]any{"server_keys": map[string]any{server: criteria}}
	err := r.client.Do(ctx, notary, "POST", "/_matrix/key/v2/query", body, &answer,
		Opts{Unsigned: true, Timeout: fetchTimeout, MaxBytes: 8 * maxKeyList})
	if err != nil {
		return fmt.Errorf("ask the notary %s: %w", notary, err)
	}
	for _, list := range answer.Lists {
		keys, _, err := readKeyList(server, list, r.now())
		if err != nil {
			return fmt.Errorf("notary %s: %w", notary, err)
		}
		if err := r.VerifyJSON(ctx, notary, list, r.now()); err != nil {
			return fmt.Errorf("notary %s: %w", notary, err)
		}
		r.learn(ctx, server, keys, true)
	}
	return nil
}

// Published gives server's key list with our signature as a notary. The copy we have is good for
// half of its lifetime; after that the server is asked, and if it is silent the copy still serves.
//
// spec: s2s/getServerKey
func (r *KeyRing) Published(ctx context.Context, server string, minimumValidUntil time.Time) (json.RawMessage, error) {
	if server == r.own.ServerName {
		return r.own.ServerKeys(r.now())
	}
	if !ValidServerName(server) {
		return nil, fmt.Errorf("%.100q is not a valid server name", server)
	}
	have, ok := r.published.get(server)
	half := have.fetched.Add(have.until.Sub(have.fetched) / 2)
	if !ok || r.now().After(half) || have.until.Before(minimumValidUntil) {
		// The pause between two fetches holds here too: anybody may ask us.
		_, err := r.obtain(ctx, server, need{anyone: true, met: func(map[string]ServerKey) bool {
			now, ok := r.published.get(server)
			return ok && now.fetched.After(have.fetched)
		}})
		if have, ok = r.published.get(server); !ok {
			return nil, err
		}
	}
	return r.own.Notarise(have.list)
}

// ed25519Only leaves out key IDs of algorithms we do not know.
func ed25519Only(signatures map[string]string) []string {
	var ids []string
	for id := range signatures {
		if strings.HasPrefix(id, "ed25519:") {
			ids = append(ids, id)
		}
	}
	return ids
}
