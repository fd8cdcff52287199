package federation_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery/config"
	"chancery/federation"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/eventlog"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/conformance"
	"chancery/test/port"
	"chancery/users"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// authority signs the certificates of all servers of a test.
type authority struct {
	pool *x509.CertPool
	cert tls.Certificate // for 127.0.0.1
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	make := func(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	from, to := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	caTemplate := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca := make(caTemplate, caTemplate, caKey, caKey)
	leaf := make(&x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: from, NotAfter: to, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}},
		ca, key, caKey)
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	return authority{pool, tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
}

// node is a server of the test: everything but the client APIs. It can be stopped and started again.
type node struct {
	t         testing.TB
	authority authority
	open      sql.Options
	dir       string
	name      string
	retry     time.Duration
	notaries  []string
	places    int // requests of the outbox at once, 0: as always
	log       *zap.Logger
	keys      *peer.Keys

	db     *storage.DB
	rooms  *roomserver.Server
	users  *users.Server
	reader *roomserver.Reader
	fed    *federation.Server
	outbox *federation.Outbox
	peer   *peer.Client
	ring   *peer.KeyRing
	deaf   atomic.Bool                                   // answers nobody, as if it were down
	before func(http.ResponseWriter, *http.Request) bool // answers in place of the node; set before there is traffic
	gate   atomic.Pointer[chan struct{}]                 // transactions wait for it
	taken  atomic.Int64
	stop   func()
}

func newNode(t testing.TB, a authority, open sql.Options) *node {
	t.Helper()
	n := &node{t: t, authority: a, open: open, dir: t.TempDir(), retry: 100 * time.Millisecond, log: zap.NewNop()}
	if os.Getenv("FEDERATION_LOG") != "" {
		n.log = zaptest.NewLogger(t)
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+port.Free(t))
	if err != nil {
		t.Fatal(err)
	}
	n.name = l.Addr().String()
	if n.keys, err = peer.LoadKeys(filepath.Join(n.dir, "signing.key"), n.name); err != nil {
		t.Fatal(err)
	}
	n.start(l)
	t.Cleanup(func() { n.halt() })
	return n
}

// again starts a node that was halted, under the same address.
func (n *node) again() {
	n.t.Helper()
	var l net.Listener
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if l, err = net.Listen("tcp", n.name); err == nil {
			break
		}
	}
	if err != nil {
		n.t.Fatal(err)
	}
	n.start(l)
}

func (n *node) start(l net.Listener) {
	t := n.t
	t.Helper()
	fatal := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	log := n.log.Named(n.name)
	nats, err := eventlog.Start(ctx, eventlog.NATSOptions{Dir: filepath.Join(n.dir, "log")})
	fatal(err)
	n.db, err = storage.Open(ctx, n.open)
	fatal(err)
	facts, err := eventlog.Open(ctx, nats, n.db, eventlog.Options{})
	fatal(err)
	n.db.OnCommit(facts.Publish)
	var outbox atomic.Pointer[federation.Outbox]
	n.peer, err = peer.New(peer.Options{ServerName: n.name, Key: n.keys.Key(), RootCAs: n.authority.pool, AllowPrivate: true,
		RetryMin: n.retry, Log: log, Changed: func(d peer.Destination) {
			if o := outbox.Load(); o != nil {
				o.BackoffChanged(d)
			}
		}})
	fatal(err)
	n.ring = peer.NewKeyRing(n.peer, n.keys, nil, n.notaries)
	n.reader = roomserver.NewReader(8 << 20)
	n.rooms = roomserver.New(roomserver.Options{DB: n.db, Reader: n.reader, ServerName: n.name, KeyID: n.keys.Key().ID, Key: n.keys.Key().Private,
		Peer: n.peer, Keys: n.ring, DefaultVersion: "12", PolicyServer: true, Log: log})
	fatal(n.rooms.Own(ctx, "test"))
	cfg := config.Default()
	cfg.ServerName, cfg.Presence.Federate, cfg.Directory.Public = n.name, true, true
	n.users = users.New(users.Options{Config: cfg, DB: n.db, ServerName: n.name, Log: log, Peer: n.peer, NATS: nats.Conn()})
	n.outbox = federation.NewOutbox(federation.OutboxOptions{DB: n.db, Facts: facts, Peer: n.peer, Users: n.users, Presence: true,
		ServerName: n.name, Log: log})
	if n.places > 0 {
		n.outbox.Places(n.places, 50*time.Millisecond)
	}
	outbox.Store(n.outbox)
	n.fed = &federation.Server{Config: cfg, DB: n.db, Reader: n.reader, Rooms: n.rooms, Users: n.users, Keys: n.keys, Ring: n.ring, Log: log}
	check := conformance.Middleware(t, conformance.Load(t, "server-server"), n.fed.Routes(), nil)
	handler := check(n.fed.Handler())
	srv := &http.Server{ErrorLog: stdlog.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n.deaf.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if n.before != nil && n.before(w, r) {
			return
		}
		if strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/send/") {
			if gate := n.gate.Load(); gate != nil {
				<-*gate
			}
			n.taken.Add(1)
		}
		handler.ServeHTTP(w, r)
	})}
	go srv.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{n.authority.cert}, NextProtos: []string{"h2", "http/1.1"}}))
	var g errgroup.Group
	g.Go(func() error { return n.outbox.Run(ctx) })
	g.Go(func() error { return n.rooms.Run(ctx) })
	g.Go(func() error { return n.users.Run(ctx) })
	n.stop = func() {
		srv.Close()
		cancel()
		if err := g.Wait(); err != nil {
			t.Errorf("%s stopped: %v", n.name, err)
		}
		n.peer.Close()
		facts.Close()
		n.db.Close()
		nats.Close()
	}
}

// halt stops the node; again starts it with what it stored.
func (n *node) halt() {
	if n.stop != nil {
		n.stop()
		n.stop = nil
	}
}

func (n *node) user(name string) id.UserID { return id.UserID("@" + name + ":" + n.name) }

// pair is two servers that trust each other's certificates, on both engines.
func pair(t *testing.T, test func(t *testing.T, a, b *node)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		ca := newAuthority(t)
		test(t, newNode(t, ca, fresh()), newNode(t, ca, fresh()))
	})
}

// onSQLite is pair where the database plays no part.
func onSQLite(t *testing.T, test func(t *testing.T, a, b *node)) {
	ca := newAuthority(t)
	test(t, newNode(t, ca, sqltest.SQLite(t)), newNode(t, ca, sqltest.SQLite(t)))
}

func content(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

// room makes a room of version 12 with further state beside its power levels.
func (n *node) room(creator id.UserID, state map[string]any) id.RoomID {
	return n.roomOf("12", creator, state)
}

func (n *node) roomOf(version string, creator id.UserID, state map[string]any) id.RoomID {
	n.t.Helper()
	empty, me := "", string(creator)
	levels := map[string]any{"users": map[string]any{me: 100}}
	if version == "12" {
		levels = map[string]any{}
	}
	events := []roomserver.NewEvent{
		{Type: "m.room.member", StateKey: &me, Content: content(map[string]any{"membership": "join"})},
		{Type: "m.room.power_levels", StateKey: &empty, Content: content(levels)},
	}
	if state["m.room.join_rules"] == nil {
		events = append(events, roomserver.NewEvent{Type: "m.room.join_rules", StateKey: &empty, Content: content(map[string]any{"join_rule": "public"})})
	}
	for typ, v := range state {
		events = append(events, roomserver.NewEvent{Type: typ, StateKey: &empty, Content: content(v)})
	}
	create := map[string]any{"room_version": version}
	if v, _ := event.Lookup(version); !v.CreatorFromSender {
		create["creator"] = creator
	}
	room, err := n.rooms.CreateRoom(n.t.Context(), roomserver.Create{Creator: creator, Version: version, Content: content(create), Events: events})
	if err != nil {
		n.t.Fatal(err)
	}
	return room
}

func (n *node) join(user id.UserID, room id.RoomID, via *node) {
	n.t.Helper()
	if err := n.rooms.Join(n.t.Context(), roomserver.Join{User: user, Room: room, Via: []string{via.name}}); err != nil {
		n.t.Fatalf("%s joins: %v", user, err)
	}
}

func (n *node) say(user id.UserID, room id.RoomID, body string) id.EventID {
	n.t.Helper()
	sent, err := n.rooms.Send(n.t.Context(), roomserver.NewEvent{Room: room, Sender: user, Type: "m.room.message",
		Content: content(map[string]any{"msgtype": "m.text", "body": body})})
	if err != nil {
		n.t.Fatalf("%s says %q: %v", user, body, err)
	}
	return sent.ID
}

// said lists the messages of the room in their order.
func (n *node) said(room id.RoomID) []string {
	n.t.Helper()
	var bodies []string
	err := n.db.Read(context.Background(), func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(room))
		if err != nil || !ok {
			return err
		}
		events, err := tx.EventsAbove(row.NID, 0, 1<<62, 10_000)
		for _, ev := range events {
			if ev.Type == "m.room.message" {
				var v struct{ Content struct{ Body string } }
				if err := json.Unmarshal(ev.JSON, &v); err != nil {
					return err
				}
				bodies = append(bodies, v.Content.Body)
			}
		}
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return bodies
}

// membership reads the current state.
func (n *node) membership(room id.RoomID, user id.UserID) (membership string) {
	n.t.Helper()
	err := n.db.Read(context.Background(), func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(room))
		if err != nil || !ok {
			return err
		}
		m, _, err := tx.Member(row.NID, string(user))
		membership = m.Membership
		return err
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return membership
}

// eventually waits until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute) // the machine may have more to do
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("in a minute it did not happen that %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func rawList(texts ...[]byte) (list []json.RawMessage) {
	for _, text := range texts {
		list = append(list, text)
	}
	return list
}

func sqliteOf(t testing.TB) sql.Options { return sqltest.SQLite(t) }

// pdu is an event as it goes to other servers.
func (n *node) pdu(eventID id.EventID) (text []byte) {
	n.t.Helper()
	if err := n.db.Read(context.Background(), func(tx storage.Tx) error {
		ev, ok, err := tx.Event(string(eventID))
		if err == nil && !ok {
			err = fmt.Errorf("%s is not there", eventID)
		}
		text = ev.JSON
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return text
}

func stateRoot(row storage.Room) state.Root { return state.Root(row.Root) }

// addressHash is how an identity server is asked for an address.
func addressHash(address string) string {
	sum := sha256.Sum256([]byte(address + " email pepper"))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
