// Package serve wires the components into one server and runs them. It is the whole of
// `chancery serve` but for reading flags, so that tests start real servers in their process.
package serve

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"chancery/clientapi"
	"chancery/cmd/chancery/operator"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation"
	"chancery/federation/peer"
	"chancery/media"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/blob"
	"chancery/storage/eventlog"
	"chancery/storage/sql"
	"chancery/syncapi"
	"chancery/users"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// Components are what a process may run.
var Components = []string{"clientapi", "syncapi", "federation", "roomserver", "users"}

// Options say what to serve.
type Options struct {
	Config  *config.Config
	Only    []string // components; empty: all
	Release string
	Log     *zap.Logger
	// Ready is called when the client listener is open, with the addresses that were bound.
	Ready func(Addresses)
	// Trace is told every SQL statement, and Around stands before each API with its table: for tests, which
	// count the ones and hold the answers of the others against the specification.
	Trace  func(statement string)
	Around func(api string, routes []endpoint.Route, prefixes map[string]string, next http.Handler) http.Handler
}

// Addresses are what the listeners were bound to.
type Addresses struct {
	Client, Federation []net.Addr
}

// Run serves until ctx ends, then flushes and stops. A start that cannot succeed says so in one sentence and
// leaves nothing behind.
func Run(ctx context.Context, o Options) (err error) {
	if len(o.Only) == 0 {
		o.Only = Components
	}
	s := &server{Options: o, cfg: o.Config, lost: make(chan error, 1)}
	defer func() {
		for _, undo := range slices.Backward(s.undo) {
			undo()
		}
	}()
	for _, step := range []func(context.Context) error{s.openData, s.openLog, s.makeComponents, s.follow, s.own, s.listen} {
		if err := step(ctx); err != nil && ctx.Err() != nil {
			s.Log.Info("stopped before it was up", zap.NamedError("during", err))
			return nil
		} else if err != nil {
			return err
		}
	}
	return s.run(ctx)
}

type server struct {
	Options
	cfg  *config.Config
	undo []func() // in reverse, when the server ends

	keys   *peer.Keys
	nats   *eventlog.NATS
	db     *storage.DB
	log    *eventlog.Log
	peer   *peer.Client
	reader *roomserver.Reader
	rooms  *roomserver.Server
	users  *users.Server
	media  *media.Server
	sync   *syncapi.Server
	fed    *federation.Server
	outbox *federation.Outbox
	client *clientapi.Server

	registry *prometheus.Registry
	metrics  *endpoint.Metrics
	limits   *endpoint.Limits
	ready    atomic.Bool // everything was up once
	healthy  probe
	lost     chan error // the database went back under us: nothing may be served from memory any more

	clientListen, fedListen, metricsListen, operatorListen []net.Listener
}

func (s *server) runs(component string) bool { return slices.Contains(s.Only, component) }

// openData makes the data directory ours alone, reads the signing key and opens the database. A first start that
// fails takes the directory away again: no key or database stays behind that nobody has ever used.
func (s *server) openData(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(filepath.Clean(s.cfg.DataDir)), 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	made := os.Mkdir(s.cfg.DataDir, 0o700)
	if made != nil && !errors.Is(made, os.ErrExist) {
		return fmt.Errorf("make the data directory: %w", made)
	}
	unlock, err := sql.LockDir(s.cfg.DataDir)
	if err != nil {
		return err
	}
	s.undo = append(s.undo, unlock)
	// Another process may have had the directory between our making and our locking it.
	if there, err := os.ReadDir(s.cfg.DataDir); err != nil {
		return fmt.Errorf("read the data directory: %w", err)
	} else if made == nil && len(there) == 1 {
		s.undo = append(s.undo, func() {
			if !s.ready.Load() {
				os.RemoveAll(s.cfg.DataDir)
			}
		})
	}
	if s.keys, err = peer.LoadKeys(s.cfg.KeyFile(), s.cfg.ServerName); err != nil {
		return fmt.Errorf("read the signing key: %w", err)
	}
	if s.nats, err = eventlog.Start(ctx, eventlog.NATSOptions{URL: s.cfg.NATS.URL, Credentials: s.cfg.NATS.Credentials,
		Replicas: s.cfg.NATS.Replicas, Dir: filepath.Join(s.cfg.DataDir, "log"), Log: s.Log.Named("nats")}); err != nil {
		return fmt.Errorf("start the log: %w", err)
	}
	s.undo = append(s.undo, s.nats.Close)
	options := operator.Database(s.cfg, s.Release, s.Log.Named("storage"))
	options.Trace = s.Trace
	if s.db, err = storage.Open(ctx, options); err != nil {
		return err
	}
	s.undo = append(s.undo, func() { s.db.Close() })
	if err := s.db.Belong(ctx, s.cfg.ServerName); err != nil {
		return err
	}
	s.db.OnLost(s.stopFor)
	return nil
}

// stopFor ends the server: positions that clients hold would be used twice if it went on.
func (s *server) stopFor(err error) {
	select {
	case s.lost <- err:
	default:
	}
}

// openLog begins to tell what is committed. A log that has told more than the database has means that the
// database was rolled back: a new epoch begins before anything is served.
func (s *server) openLog(ctx context.Context) (err error) {
	if told, err := eventlog.Newest(ctx, s.nats, s.db.Epoch()); err != nil {
		s.Log.Warn("could not compare the log with the database", zap.Error(err))
	} else if top, err := s.db.MaxPos(ctx); err != nil {
		return err
	} else if told > top {
		if err := s.db.BeginEpoch(ctx, "the log has told more than the database has"); err != nil {
			return fmt.Errorf("begin a new epoch: %w", err)
		}
	}
	s.log, err = eventlog.Open(ctx, s.nats, s.db, eventlog.Options{Log: s.Log.Named("log"),
		Rewound: func(told, end int64) {
			s.stopFor(fmt.Errorf("the database went back from position %d to %d: it was restored or failed over while we ran", told, end))
		}})
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	s.undo = append(s.undo, s.log.Close)
	s.db.OnCommit(s.log.Publish)
	return nil
}

// follow tells the components what this and other processes did, as far as they keep it in memory.
func (s *server) follow(context.Context) error {
	s.undo = append(s.undo, s.log.Tail().OnFacts(func(facts []storage.Fact) {
		for _, f := range facts {
			s.users.Heard(f)
			s.rooms.Heard(f)
			if f.Kind == sql.FactRedaction {
				s.reader.Forget(f.Room, f.Event)
			}
		}
	}))
	return nil
}

// Memory for events and state nodes read from SQL.
const readerBytes = 48 << 20

func (s *server) makeComponents(context.Context) (err error) {
	s.registry = prometheus.NewRegistry()
	s.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	s.metrics = endpoint.NewMetrics(s.registry)
	if s.cfg.RateLimits.Enabled {
		s.limits = endpoint.NewLimits(nil)
	}
	if s.peer, err = peer.New(peer.Options{ServerName: s.cfg.ServerName, Key: s.keys.Key(), TrustedCA: s.cfg.Federation.TrustedCA,
		AllowPrivate: s.cfg.Federation.AllowPrivateAddresses, RetryMin: s.cfg.Federation.RetryMin, Log: s.Log.Named("peer"),
		UserAgent: "Chancery/" + cmp.Or(s.Release, "development"), Changed: func(d peer.Destination) { s.outbox.BackoffChanged(d) }}); err != nil {
		return err
	}
	s.undo = append(s.undo, s.peer.Close)
	ring := peer.NewKeyRing(s.peer, s.keys, keyStore{s.db}, s.cfg.Federation.Notaries)
	key := s.keys.Key()
	s.reader = roomserver.NewReader(readerBytes)
	s.rooms = roomserver.New(roomserver.Options{PolicyServer: s.cfg.WellKnown.PolicyServer, DB: s.db, Reader: s.reader, ServerName: s.cfg.ServerName, KeyID: key.ID, Key: key.Private,
		Peer: s.peer, Keys: ring, DefaultVersion: s.cfg.Rooms.DefaultVersion, Exists: s.exists, Metrics: s.registry, Log: s.Log.Named("rooms")})
	s.users = users.New(users.Options{DB: s.db, ServerName: s.cfg.ServerName, Config: s.cfg, Log: s.Log.Named("users"),
		Peer: s.peer, Rooms: s.reader, NATS: s.nats.Conn(), OnDeactivate: s.leaveRooms, OnProfile: s.showProfile})
	s.sync = syncapi.New(syncapi.Options{DB: s.db, Reader: s.reader, Tail: s.log.Tail(), Users: s.users, NATS: s.nats.Conn(),
		ServerName: s.cfg.ServerName, Presence: s.cfg.Presence.Enabled, Log: s.Log.Named("sync")})
	blobs, err := blob.Open(filepath.Join(s.cfg.DataDir, "media"))
	if err != nil {
		return fmt.Errorf("open the media store: %w", err)
	}
	s.media = media.New(media.Options{DB: s.db, Blobs: blobs, Peers: s.peer, ServerName: s.cfg.ServerName,
		MaxBytes: int64(s.cfg.Media.MaxUpload), Log: s.Log.Named("media")})
	s.outbox = federation.NewOutbox(federation.OutboxOptions{DB: s.db, Facts: s.log, Peer: s.peer, Users: s.users,
		Presence: s.cfg.Presence.Enabled && s.cfg.Presence.Federate, ServerName: s.cfg.ServerName, Log: s.Log.Named("outbox")})
	s.fed = &federation.Server{Config: s.cfg, DB: s.db, Reader: s.reader, Rooms: s.rooms, Users: s.users, Media: s.media, Keys: s.keys, Ring: ring,
		Release: s.Release, Limits: s.limits, Metrics: s.metrics, Log: s.Log.Named("federation")}
	s.client = &clientapi.Server{Config: s.cfg, DB: s.db, Reader: s.reader, Rooms: s.rooms, Users: s.users, Peer: s.peer,
		NATS: s.nats.Conn(), Media: s.media, Sync: s.sync.Sync(), Limits: s.limits, Metrics: s.metrics, Log: s.Log.Named("clientapi")}
	return nil
}

// exists says whether one of our users can be invited.
func (s *server) exists(ctx context.Context, user id.UserID) (bool, error) {
	account, ok, err := s.users.Account(ctx, user)
	return ok && !account.Deactivated, err
}

// showProfile puts a user's changed profile into a room.
func (s *server) showProfile(ctx context.Context, user id.UserID, room id.RoomID, content json.RawMessage) error {
	return s.rooms.Join(ctx, roomserver.Join{User: user, Room: room, Content: content})
}

// leaveRooms takes a deactivated user out of every room, and refuses what invites there are.
func (s *server) leaveRooms(ctx context.Context, user id.UserID) error {
	var rooms []id.RoomID
	err := s.db.Read(ctx, func(tx storage.Tx) error {
		members, err := tx.RoomsOf(string(user), []string{"join", "invite", "knock"})
		if err != nil {
			return err
		}
		nids := make([]int64, len(members))
		for i, m := range members {
			nids[i] = m.Room
		}
		rows, err := tx.Rooms(nids)
		if err != nil {
			return err
		}
		for _, r := range rows {
			rooms = append(rooms, id.RoomID(r.ID))
		}
		invites, err := tx.InvitesOf(string(user))
		for _, v := range invites {
			if v.Membership != "leave" {
				rooms = append(rooms, id.RoomID(v.RoomID))
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, room := range rooms {
		if err := s.rooms.Leave(ctx, user, room, nil); err != nil {
			return fmt.Errorf("leave %s: %w", room, err)
		}
	}
	return nil
}

// own takes the rooms' shards under a name that the data directory keeps.
func (s *server) own(ctx context.Context) error {
	if !s.runs("roomserver") {
		return nil
	}
	name, err := operator.OwnerName(s.cfg)
	if err != nil {
		return fmt.Errorf("name this process: %w", err)
	}
	return s.rooms.Own(ctx, name)
}

// runners are the goroutines of the components, each until its context ends.
func (s *server) runners() []func(context.Context) error {
	all := []func(context.Context) error{s.keepHouse}
	if s.runs("roomserver") {
		all = append(all, s.rooms.Run)
	}
	if s.runs("federation") {
		all = append(all, s.outbox.Run)
	}
	if s.runs("users") {
		all = append(all, s.users.Run, s.media.Run, func(ctx context.Context) error { return s.users.FollowRooms(ctx, s.log) })
	}
	return all
}

// keepHouse removes once an hour what is older than its time.
func (s *server) keepHouse(ctx context.Context) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.db.Trim(ctx, time.Now()); err != nil && ctx.Err() == nil {
				s.Log.Warn("could not trim the database", zap.Error(err))
			}
		}
	}
}

// listen binds the addresses; the client listener is the last to be served.
func (s *server) listen(context.Context) (err error) {
	bind := func(what string, addresses []string) ([]net.Listener, error) {
		bound, err := listen(what, addresses)
		for _, l := range bound {
			s.undo = append(s.undo, func() { l.Close() })
		}
		return bound, err
	}
	if s.cfg.Metrics.Listen != "" {
		if s.metricsListen, err = bind("metrics", []string{s.cfg.Metrics.Listen}); err != nil {
			return err
		}
	}
	if s.runs("users") {
		l, err := operator.Listen(s.cfg)
		if err != nil {
			return err
		}
		s.undo = append(s.undo, func() { l.Close() })
		s.operatorListen = []net.Listener{l}
	}
	if s.runs("federation") {
		if s.fedListen, err = bind("federation", s.cfg.Federation.Listen); err != nil {
			return err
		}
		if s.cfg.Federation.TLS {
			cert, err := certificate(s.cfg)
			if err != nil {
				return err
			}
			for i, l := range s.fedListen {
				s.fedListen[i] = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12,
					NextProtos: []string{"h2", "http/1.1"}})
			}
		}
	}
	if s.runs("clientapi") {
		if s.clientListen, err = bind("client", s.cfg.Client.Listen); err != nil {
			return err
		}
	}
	return nil
}

// stopTime is what the components together get to flush and stop: with shutdownTime before it and the database's
// and the log's end after it, less than five seconds.
const stopTime = 2500 * time.Millisecond

// run serves until ctx ends. Requests end before the components that answer them, those before the log and
// the database.
func (s *server) run(ctx context.Context) error {
	components, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	below, belowCtx := errgroup.WithContext(components)
	for _, run := range s.runners() {
		below.Go(func() error { return run(belowCtx) })
	}
	front, frontCtx := errgroup.WithContext(ctx)
	front.Go(func() error { // a component that fails takes the listeners down
		select {
		case <-belowCtx.Done():
			return errComponent
		case err := <-s.lost:
			return err
		case <-frontCtx.Done():
			return nil
		}
	})
	if s.runs("syncapi") { // it answers the long polls as soon as we are told to stop: they would hold the listeners
		below.Go(func() error { return s.sync.Run(frontCtx) })
	}
	if s.metricsListen != nil {
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
		serveHTTP(frontCtx, front, s.metricsListen, mux)
	}
	if s.operatorListen != nil {
		serveHTTP(frontCtx, front, s.operatorListen, operator.Handler(s.users, s.rooms, s.Log.Named("operator")))
	}
	if s.fedListen != nil {
		serveHTTP(frontCtx, front, s.fedListen, s.beside(s.around(endpoint.ServerServer, s.fed.Routes(), nil, s.fed.Handler())))
	}
	if s.clientListen != nil {
		serveHTTP(frontCtx, front, matrixErrors(s.clientListen), s.beside(s.around(endpoint.ClientServer, s.client.Routes(), clientapi.OldPaths, s.client.Handler()), s.fed.Public()...))
	}
	s.ready.Store(true)
	if s.Ready != nil {
		s.Ready(s.addresses())
	}
	err := front.Wait()
	stop()
	done := make(chan error, 1)
	go func() { done <- below.Wait() }()
	select {
	case belowErr := <-done:
		if belowErr != nil && !errors.Is(belowErr, context.Canceled) {
			return fmt.Errorf("serve: %w", belowErr)
		}
	case <-time.After(stopTime):
		s.Log.Warn("some components did not stop in time")
	}
	if err != nil && !errors.Is(err, errComponent) {
		return fmt.Errorf("serve: %w", err)
	}
	s.Log.Info("stopped")
	return nil
}

func (s *server) around(api string, routes []endpoint.Route, prefixes map[string]string, next http.Handler) http.Handler {
	if s.Around == nil {
		return next
	}
	return s.Around(api, routes, prefixes, next)
}

var errComponent = errors.New("a component ended")

func (s *server) addresses() (a Addresses) {
	for _, l := range s.clientListen {
		a.Client = append(a.Client, l.Addr())
	}
	for _, l := range s.fedListen {
		a.Federation = append(a.Federation, l.Addr())
	}
	return a
}
