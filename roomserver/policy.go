package roomserver

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// policyServer is who recommends a room's events.
//
// spec: s2s#policy-servers, msc4284
type policyServer struct {
	name string
	key  ed25519.PublicKey
}

// policyKeyID is always that of a policy server's key.
//
// spec: s2s#validating-policy-server-signatures
const policyKeyID = "ed25519:policy_server"

// How long a policy server has, and how long we remember what it said.
const (
	policyWait      = 10 * time.Second
	opinionTime     = 10 * time.Minute
	noOpinionTime   = 30 * time.Second // after it did not answer
	opinionsBytes   = 2 << 20
	opinionsAtOnce  = 8
	maxOpinionTries = 3
)

// policyServer finds the server that the room's current state names, nil where there is none: it must have a
// member in the room.
//
// spec: s2s#determining-if-a-policy-server-is-enabled-in-a-room
func (r *room) policyServer() (*policyServer, error) {
	found, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.policy", ""}})
	if err != nil {
		return nil, err
	}
	ev := found[Key{"m.room.policy", ""}]
	if ev == nil {
		return nil, nil
	}
	p := policyServerIn(ev.Event)
	if p == nil || r.servers[p.name] == 0 {
		return nil, nil
	}
	return p, nil
}

func policyServerIn(ev *event.Event) *policyServer {
	content := gjson.ParseBytes(ev.Content())
	name, key := text(content.Get("via")), text(content.Get("public_keys.ed25519"))
	if name == "" || key == "" {
		return nil
	}
	public, err := base64.RawStdEncoding.DecodeString(strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(key, "=")))
	if err != nil || len(public) != ed25519.PublicKeySize {
		public = nil // the room uses a policy server, and nothing that it signs holds
	}
	return &policyServer{name, public}
}

// Every event needs its word, but for the one that names it: else a room could not free itself.
func needsOpinion(ev *event.Event) bool { return !ev.IsState("m.room.policy", "") }

func (p *policyServer) recommends(ev *event.Event) bool {
	return p.key != nil && event.VerifySignature(ev, p.name, policyKeyID, p.key) == nil
}

// unasked says that a policy server must be asked of an event, outside the room's turn.
type unasked struct {
	server *policyServer
	ev     *event.Event
}

func (u *unasked) Error() string {
	return fmt.Sprintf("%s was not asked of %s", u.server.name, u.ev.ID())
}

// opinion is what a policy server said of an event.
type opinion struct {
	signature string
	err       error
	until     time.Time
}

func (p *policyServer) opinionKey(ev *event.Event) string {
	return p.name + " " + string(p.key) + " " + string(ev.ID())
}

func (s *Server) opinionOf(p *policyServer, ev *event.Event) *opinion {
	o, ok := s.opinions.Get(p.opinionKey(ev))
	if !ok || time.Now().After(o.until) {
		return nil
	}
	return o
}

// recommended gives an event with the signature of the room's policy server, where the room uses one. Its error
// is *unasked when the server must be asked first, and what the server said when it refused.
//
// spec: s2s#validating-policy-server-signatures
func (r *room) recommended(ev *event.Event) (*event.Event, error) {
	p, err := r.policyServer()
	if err != nil || p == nil || !needsOpinion(ev) || p.recommends(ev) {
		return ev, err
	}
	if p.name == r.s.ServerName {
		key := r.s.policyKey()
		if key == nil || !p.key.Equal(key.Public()) {
			return nil, &notRecommended{p.name, chancery.Errorf(400, chancery.CodeForbidden, "the room names this server as its policy server with a key that is not this server's")}
		}
		return ev.Sign(p.name, policyKeyID, key) // it is checked here by what it is checked by for others
	}
	o := r.s.opinionOf(p, ev)
	switch {
	case o == nil:
		return nil, &unasked{server: p, ev: ev}
	case o.err != nil:
		return nil, &notRecommended{p.name, o.err}
	}
	return ev.AddSignature(p.name, policyKeyID, o.signature)
}

// notRecommended says that a policy server did not sign an event.
type notRecommended struct {
	server string
	cause  error
}

func (n *notRecommended) Error() string { return n.server + " does not recommend the event" }

func (n *notRecommended) Unwrap() error { return n.cause }

// clientError is what a client is told whose event is not recommended.
func clientError(err error) error {
	if no := (*notRecommended)(nil); errors.As(err, &no) {
		return no.cause
	}
	return err
}

// withOpinion repeats work that turns out to need the word of a policy server, once that was asked, and what failed with
// an earlier event of the room.
func (s *Server) withOpinion(ctx context.Context, work func() error) error {
	for range maxOpinionTries {
		err := evenSo(work)
		u := (*unasked)(nil)
		if !errors.As(err, &u) {
			return err
		}
		if err := s.ask(ctx, u); err != nil {
			return err
		}
	}
	return chancery.Errorf(503, chancery.CodeUnknown, "the room changes its policy server faster than it can be asked")
}

// ask asks a policy server of an event. Its error is that of our caller who has gone; what the server says, or
// that it says nothing, is found in opinions.
//
// spec: s2s#asking-for-a-policy-server-signature-on-an-event
func (s *Server) ask(ctx context.Context, u *unasked) error {
	return s.fills.once(ctx, "policy "+u.server.opinionKey(u.ev), func() error {
		if s.opinionOf(u.server, u.ev) != nil {
			return nil
		}
		asking, cancel := context.WithTimeout(ctx, policyWait)
		defer cancel()
		o := &opinion{until: time.Now().Add(opinionTime)}
		o.signature, o.err = s.askPolicyServer(asking, u)
		if err := ctx.Err(); err != nil {
			return err
		}
		if o.err != nil {
			s.Log.Info("a policy server does not recommend an event", zap.String("server", u.server.name), zap.String("room", string(u.ev.RoomID())),
				zap.String("event", string(u.ev.ID())), zap.Error(o.err))
		}
		if e := (*chancery.Error)(nil); o.err != nil && (!errors.As(o.err, &e) || e.Status == 429 || e.Status >= 500) {
			o.until = time.Now().Add(noOpinionTime)
		}
		s.opinions.Put(u.server.opinionKey(u.ev), o, 400)
		return nil
	})
}

func (s *Server) askPolicyServer(ctx context.Context, u *unasked) (string, error) {
	signatures, err := s.Peer.PolicySign(ctx, u.server.name, u.ev.JSON())
	if err != nil {
		return "", fromPolicyServer(err)
	}
	signature := signatures[u.server.name][policyKeyID]
	signed, err := u.ev.AddSignature(u.server.name, policyKeyID, signature)
	if err != nil {
		return "", err
	}
	if !u.server.recommends(signed) {
		return "", chancery.Errorf(500, chancery.CodeUnknown, "the room's policy server does not sign with the key that the room names")
	}
	return signature, nil
}

// fromPolicyServer: what it says is told to the client as it is, but for what would mean something else there.
//
// spec: s2s#validating-policy-server-signatures
func fromPolicyServer(err error) error {
	e, said := (*chancery.Error)(nil), (*peer.Error)(nil)
	if errors.As(err, &said) && errors.As(err, &e) && e.Status < 500 {
		verbatim := *e
		verbatim.Message = said.Message
		return &verbatim
	}
	// No 502: another server whose join we take would hold us for broken.
	return chancery.Errorf(500, chancery.CodeUnknown, "the room's policy server cannot be asked").Because(err)
}

// askAll asks of many events side by side. What could not be asked is found so by who looks.
func (s *Server) askAll(ctx context.Context, all []*unasked) {
	var g errgroup.Group
	g.SetLimit(opinionsAtOnce)
	for _, u := range all {
		g.Go(func() error { return s.guarded("ask a policy server", func() error { return s.ask(ctx, u) }) })
	}
	_ = g.Wait() // our caller has gone: the next look says so
}

// unaskedOf gives those events of the past of which the room's policy server must be asked: not of those that are part of
// its state already, nor of one whose content was taken from it.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 7
func (r *room) unaskedOf(events []*event.Event) (list []*unasked, err error) {
	known, err := r.eventsByID(idsOf(events))
	if err != nil {
		return nil, err
	}
	for _, ev := range events {
		if ev.Redacted() || known[ev.ID()] != nil {
			continue
		}
		if _, err := r.recommended(ev); errors.As(err, new(*notRecommended)) {
			continue
		} else if u := (*unasked)(nil); errors.As(err, &u) {
			list = append(list, u)
		} else if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// askPast asks of the past, no longer than of one event: a policy server that is slow must not take it away.
func (s *Server) askPast(ctx context.Context, list []*unasked) {
	ctx, cancel := context.WithTimeout(ctx, policyWait)
	defer cancel()
	s.askAll(ctx, list)
}

// refusedOrNot: an event of the past that the room's policy server refuses fails softly. Where it said nothing the event
// stands, since nobody would ask again.
func (r *room) refusedOrNot(ev *event.Event) (*event.Event, storage.EventStatus, error) {
	if ev.Redacted() {
		return ev, storage.Accepted, nil
	}
	signed, err := r.recommended(ev)
	switch no := (*notRecommended)(nil); {
	case errors.As(err, &no) && no.isRefusal():
		return ev, r.softFailure(ev, no), nil
	case errors.As(err, &no), errors.As(err, new(*unasked)):
		return ev, storage.Accepted, nil
	}
	return signed, storage.Accepted, err
}

// isRefusal says that the policy server looked at the event and does not want it.
func (n *notRecommended) isRefusal() bool {
	e := (*chancery.Error)(nil)
	return errors.As(n.cause, &e) && e.Status >= 400 && e.Status < 500 && e.Status != 404 && e.Status != 429
}

// policyKey is the key with which this server recommends events, nil when it is no policy server. It is another
// key than that which signs its requests, and comes from it, so that there is one secret to keep.
//
// spec: s2s#validating-policy-server-signatures
func (s *Server) policyKey() ed25519.PrivateKey {
	if !s.PolicyServer {
		return nil
	}
	seed, err := hkdf.Key(sha256.New, s.Key.Seed(), nil, "matrix policy server", ed25519.SeedSize)
	if err != nil {
		panic("roomserver: " + err.Error()) // no hash gives less
	}
	return ed25519.NewKeyFromSeed(seed)
}

// PolicyKey is the public key of this server as a policy server.
//
// spec: c2s/getWellknownPolicy
func (s *Server) PolicyKey() (key string, ok bool) {
	if s == nil {
		return "", false // a table that is only looked at has no rooms
	}
	private := s.policyKey()
	if private == nil {
		return "", false
	}
	return base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)), true
}

var errNoPolicyServer = chancery.NotFound("this server is not the policy server of that room")

// Recommend signs an event as the policy server of its room, for a server that is about to send it. It recommends
// whatever is not sent by somebody barred: by the room's rules each server judges itself, with what it
// knows of the room, and it may know more than we do.
//
// spec: s2s/askPolicyServerToSign
func (s *Server) Recommend(ctx context.Context, origin string, raw []byte) (signatures map[string]map[string]string, err error) {
	key := s.policyKey()
	if key == nil {
		return nil, errNoPolicyServer
	}
	roomID := id.RoomID(gjson.GetBytes(raw, "room_id").Str)
	version, err := s.versionOf(ctx, roomID)
	if IsUnknownRoom(err) {
		return nil, errNoPolicyServer
	}
	if err != nil {
		return nil, err
	}
	ev, err := event.Parse(version, raw)
	if err != nil {
		return nil, err
	}
	if ev.Redacted() {
		return nil, chancery.BadJSON("the event's hash does not match")
	}
	err = s.inAs(ctx, caller{theirs, origin}, roomID, func(r *room) error {
		p, err := r.policyServer()
		if err != nil {
			return err
		}
		if p == nil || p.name != s.ServerName || !p.key.Equal(key.Public()) {
			return errNoPolicyServer
		}
		if err := r.checkACL(origin); err != nil {
			return err
		}
		if err := r.checkACL(ev.Sender().Homeserver()); err != nil {
			return err
		}
		sender, err := r.member(ev.Sender())
		if err != nil {
			return err
		}
		if sender != nil && sender.Membership() == "ban" {
			return chancery.Errorf(400, chancery.CodeForbidden, "the sender is banned from the room")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	// Last: nobody has us fetch keys for a room whose policy server we are not.
	if errs := s.verify(ctx, []*event.Event{ev}); errs[0] != nil {
		return nil, chancery.Errorf(400, chancery.CodeForbidden, "the event's signature does not hold").Because(errs[0])
	}
	signed, err := ev.Sign(s.ServerName, policyKeyID, key)
	if err != nil {
		return nil, err
	}
	return map[string]map[string]string{s.ServerName: {policyKeyID: signed.Signatures()[s.ServerName][policyKeyID]}}, nil
}

// softFailure is the status of an event that is not recommended.
func (r *room) softFailure(ev *event.Event, why error) storage.EventStatus {
	r.s.Log.Info("event failed softly", zap.String("event", string(ev.ID())), zap.Error(why))
	return storage.SoftFailed
}
