package eventlog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/storage/sql"
	"chancery/test/port"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// ledger is SQL as the log sees it: commit order is position order.
type ledger struct {
	mu    sync.Mutex
	facts []sql.Fact
	epoch int64
	down  bool
	reads atomic.Int64 // rows given by FactsAfter
	asks  atomic.Int64 // questions, also those it could not answer
}

const day0 = 1_790_000_000_000_000 // positions start at Unix time in microseconds

func newLedger() *ledger {
	return &ledger{epoch: 1, facts: []sql.Fact{{Pos: day0, Kind: sql.FactEpoch}}}
}

func (s *ledger) commit(n int) []sql.Fact {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range n {
		pos := s.facts[len(s.facts)-1].Pos + 1
		s.facts = append(s.facts, sql.Fact{Pos: pos, Kind: sql.FactEvent, Room: pos % 7, Event: pos, User: "@a:b"})
	}
	return slices.Clone(s.facts[len(s.facts)-n:])
}

// restore rolls back to pos and begins a new epoch.
func (s *ledger) restore(pos int64) []sql.Fact {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.facts = slices.DeleteFunc(s.facts, func(f sql.Fact) bool { return f.Pos > pos })
	s.epoch++
	jump := sql.Fact{Pos: pos + 1_000_000_000, Kind: sql.FactEpoch}
	s.facts = append(s.facts, jump)
	return []sql.Fact{jump}
}

func (s *ledger) setDown(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// asked waits until the log has asked so many times more, so that it has seen what is there now.
func (s *ledger) asked(t *testing.T, times int64) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for until := s.asks.Load() + times; s.asks.Load() < until; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the log asks no more")
		}
	}
}

func (s *ledger) FactsAfter(_ context.Context, pos int64, limit int) ([]sql.Fact, error) {
	s.asks.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return nil, errors.New("database is down")
	}
	i, found := slices.BinarySearchFunc(s.facts, pos, func(f sql.Fact, pos int64) int { return int(f.Pos - pos) })
	if found {
		i++
	}
	rows := slices.Clone(s.facts[i:min(i+limit, len(s.facts))])
	s.reads.Add(int64(len(rows)))
	return rows, nil
}

func (s *ledger) MaxPos(context.Context) (int64, error) {
	s.asks.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.down {
		return 0, errors.New("database is down")
	}
	return s.facts[len(s.facts)-1].Pos, nil
}

func (s *ledger) Epoch() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

func (s *ledger) all(after int64) []sql.Fact {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.facts), func(f sql.Fact) bool { return f.Pos <= after })
}

// witness reads the log and remembers what it was told.
type witness struct {
	mu   sync.Mutex
	told []sql.Fact
	stop context.CancelFunc
	done chan error
}

func read(t testing.TB, l *Log, from int64) *witness {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &witness{stop: cancel, done: make(chan error, 1)}
	go func() {
		w.done <- l.Read(ctx, "witness", from, func(_ context.Context, facts []sql.Fact) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.told = append(w.told, facts...)
			return nil
		})
	}()
	t.Cleanup(cancel)
	return w
}

func (w *witness) seen() []sql.Fact {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.told)
}

// end is the witness's cursor after it stopped.
func (w *witness) end(t testing.TB) int64 {
	t.Helper()
	w.stop()
	if err := <-w.done; !errors.Is(err, context.Canceled) {
		t.Fatalf("Read returned %v", err)
	}
	told := w.seen()
	return told[len(told)-1].Pos
}

// patience is how long a test waits for what must come: the machine may have more to do.
const patience = 2 * time.Minute

// wants waits until the witness was told exactly these facts, each once and in order.
func (w *witness) wants(t testing.TB, want []sql.Fact) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		got := w.seen()
		if len(got) >= len(want) || time.Now().After(deadline) {
			if !slices.Equal(got, want) {
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Fatalf("fact %d of %d is %d, want %d", i, len(got), got[i].Pos, want[i].Pos)
					}
				}
				t.Fatalf("%d facts told within %v, want %d", len(got), patience, len(want))
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func embedded(t testing.TB, dir string) *NATS {
	t.Helper()
	n, err := Start(t.Context(), NATSOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

// outside is a NATS server such as an agency runs beside us.
type outside struct {
	*server.Server
	port int
	dir  string
}

func startOutside(t testing.TB, port int, dir string) *outside {
	t.Helper()
	return &outside{Server: startServer(t, server.Options{Port: port, JetStream: true, StoreDir: dir}), dir: dir, port: port}
}

func startServer(t testing.TB, o server.Options) *server.Server {
	t.Helper()
	o.Host, o.NoSigs, o.NoLog = "127.0.0.1", true, true
	s, err := server.NewServer(&o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("NATS server did not start")
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// An operator learns at the start, not in a log full of warnings, that the NATS that was named cannot do what we need.
func TestNATSWithoutJetStreamIsRefused(t *testing.T) {
	s := startServer(t, server.Options{Port: -1})
	n, err := Start(t.Context(), NATSOptions{URL: s.ClientURL()})
	if err == nil {
		n.Close()
		t.Fatal("it was taken")
	}
	if !strings.Contains(err.Error(), "runs without JetStream") {
		t.Fatal(err)
	}
}

func connect(t testing.TB, s *outside) *NATS {
	t.Helper()
	n, err := Start(t.Context(), NATSOptions{URL: s.ClientURL()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func open(t testing.TB, n *NATS, source Source, o Options) *Log {
	t.Helper()
	l, err := Open(t.Context(), n, source, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// Two processes write at once, their publishes overtake each other and some are lost.
// Readers in both, and in a third that only reads, are told everything once and in order.
func TestConcurrentPublishersLosePublishes(t *testing.T) {
	s := startOutside(t, -1, t.TempDir())
	source := newLedger()
	o := Options{Poll: 100 * time.Millisecond, Batch: 50}
	a, b, c := open(t, connect(t, s), source, o), open(t, connect(t, s), source, o), open(t, connect(t, s), source, o)
	var hooked []sql.Fact // only the head's goroutine writes it, and it is read after the end is known
	c.Tail().OnFacts(func(facts []sql.Fact) { hooked = append(hooked, facts...) })
	var readers []*witness
	for _, l := range []*Log{a, b, c} {
		readers = append(readers, read(t, l, day0), read(t, l, 0))
	}
	var writers sync.WaitGroup
	for i, l := range []*Log{a, b, a, b, a, b} {
		writers.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for range 200 {
				facts := source.commit(1 + random.IntN(5))
				if random.IntN(10) == 0 {
					continue // killed between commit and publish
				}
				if random.IntN(4) == 0 {
					time.Sleep(time.Duration(random.IntN(2000)) * time.Microsecond)
				}
				l.Publish(facts)
				if random.IntN(10) == 0 {
					l.Publish(facts) // told twice
				}
			}
		})
	}
	writers.Wait()
	for i, w := range readers {
		w.wants(t, source.all([]int64{day0, 0}[i%2]))
	}
	c.Close()
	if !slices.Equal(hooked, source.all(day0)) {
		t.Fatalf("the hook was told %d facts, want %d in order", len(hooked), len(source.all(day0)))
	}
}

// A publish that is lost with nothing after it is found by the comparison with SQL.
func TestLastPublishIsLost(t *testing.T) {
	source := newLedger()
	l := open(t, embedded(t, t.TempDir()), source, Options{Poll: 50 * time.Millisecond})
	w := read(t, l, day0)
	source.commit(3)
	w.wants(t, source.all(day0))
}

// A gap below a fact that was told is closed from SQL at once, not at the next comparison.
func TestGapIsReadAtOnce(t *testing.T) {
	source := newLedger()
	l := open(t, embedded(t, t.TempDir()), source, Options{Poll: time.Hour})
	w := read(t, l, day0)
	source.commit(1)
	l.Publish(source.commit(1))
	w.wants(t, source.all(day0))
}

// What stands above a gap is never given out while SQL cannot say what lies between.
func TestGapWaitsForSQL(t *testing.T) {
	source := newLedger()
	l := open(t, embedded(t, t.TempDir()), source, Options{Poll: 20 * time.Millisecond})
	w := read(t, l, day0)
	source.setDown(true)
	source.commit(1)
	l.Publish(source.commit(1))
	source.asked(t, 5)
	if told := w.seen(); len(told) != 0 {
		t.Fatalf("told %d facts across a gap", len(told))
	}
	source.setDown(false)
	w.wants(t, source.all(day0))
}

// The embedded server's directory is only a convenience: whatever becomes of it, the
// process starts and readers go on from their cursors.
func TestStreamDirectoryIsLostOrDamaged(t *testing.T) {
	damage := map[string]func(t *testing.T, dir string){
		"kept":    func(*testing.T, string) {},
		"deleted": func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)) },
		"a file":  func(t *testing.T, dir string) { must(t, os.RemoveAll(dir)); must(t, os.WriteFile(dir, nil, 0o600)) },
		"halved": func(t *testing.T, dir string) {
			eachFile(t, dir, func(path string, size int64) { must(t, os.Truncate(path, size/2)) })
		},
		"emptied": func(t *testing.T, dir string) {
			eachFile(t, dir, func(path string, _ int64) { must(t, os.Truncate(path, 0)) })
		},
		"noise": func(t *testing.T, dir string) {
			random := rand.NewChaCha8([32]byte{1})
			eachFile(t, dir, func(path string, size int64) {
				b := make([]byte, size)
				_, _ = random.Read(b)
				must(t, os.WriteFile(path, b, 0o600))
			})
		},
	}
	for name, destroy := range damage {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "log")
			source := newLedger()
			o := Options{Poll: 100 * time.Millisecond, Warm: 1, ReplayAbove: 10}
			n := embedded(t, dir)
			l := open(t, n, source, o)
			first := read(t, l, day0)
			for range 100 {
				l.Publish(source.commit(3))
			}
			first.wants(t, source.all(day0))
			cursor := first.end(t)
			l.Close()
			n.Close()

			destroy(t, dir)
			n = embedded(t, dir)
			l = open(t, n, source, o)
			again, history := read(t, l, cursor), read(t, l, 0)
			for range 100 {
				l.Publish(source.commit(3))
			}
			again.wants(t, source.all(cursor))
			history.wants(t, source.all(0))
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eachFile(t *testing.T, dir string, do func(path string, size int64)) {
	t.Helper()
	files := 0
	must(t, filepath.Walk(dir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			files++
			do(path, info.Size())
		}
		return err
	}))
	if files == 0 {
		t.Fatal("the stream left no files to damage")
	}
}

// While NATS is away, readers go on from SQL; when it is back on its address, by the wire.
func TestNATSStopsAndComesBack(t *testing.T) {
	dir := t.TempDir()
	port, err := strconv.Atoi(port.Free(t))
	must(t, err)
	s := startOutside(t, port, dir)
	source := newLedger()
	near, far := connect(t, s), connect(t, s)
	writer := open(t, near, source, Options{Poll: 50 * time.Millisecond})
	reader := open(t, far, source, Options{Poll: 50 * time.Millisecond})
	own, other := read(t, writer, day0), read(t, reader, day0)
	writer.Publish(source.commit(2))
	other.wants(t, source.all(day0))

	s.Shutdown()
	s.WaitForShutdown()
	for range 50 {
		writer.Publish(source.commit(2))
	}
	own.wants(t, source.all(day0))
	other.wants(t, source.all(day0))
	if late, err := Open(t.Context(), far, source, Options{}); err != nil {
		t.Fatalf("the log does not open while NATS is away: %v", err)
	} else {
		late.Close()
	}

	startOutside(t, port, t.TempDir()) // and its disk is gone
	deadline := time.Now().Add(patience)
	for !near.Conn().IsConnected() || !far.Conn().IsConnected() {
		if time.Now().After(deadline) {
			t.Fatal("the connections do not come back")
		}
		time.Sleep(5 * time.Millisecond)
	}
	must(t, near.Conn().Flush())
	must(t, far.Conn().Flush())
	wire := open(t, far, source, Options{Poll: time.Hour}) // hears nothing but the wire
	live := read(t, wire, wire.Tail().End())
	must(t, far.Conn().Flush())
	from := wire.Tail().End()
	writer.Publish(source.commit(2))
	live.wants(t, source.all(from))
	other.wants(t, source.all(day0))
	for { // the stream is there again
		if newest, err := Newest(t.Context(), far, 1); err == nil && newest > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the stream was not made again")
		}
		writer.Publish(source.commit(1))
		time.Sleep(20 * time.Millisecond)
	}
}

// A reader far behind is served by the stream; SQL gives only what the stream never had.
func TestReplayFromStream(t *testing.T) {
	dir := t.TempDir()
	source := newLedger()
	n := embedded(t, dir)
	l := open(t, n, source, Options{Poll: time.Hour})
	lost := 0
	for i := range 2000 {
		facts := source.commit(10)
		if i%100 == 50 {
			lost += len(facts)
			continue
		}
		l.Publish(facts)
	}
	l.Close()
	l = open(t, n, source, Options{Poll: time.Hour, Warm: 1, ReplayAbove: 100})
	before := source.reads.Load()
	cursor := int64(day0 + 5005) // in the midst of a commit
	read(t, l, cursor).wants(t, source.all(cursor))
	if rows := source.reads.Load() - before; rows < 100 || rows > int64(len(source.all(cursor)))*3/4 {
		t.Fatalf("SQL gave %d rows of %d; %d facts of 20,000 are not in the stream", rows, len(source.all(cursor)), lost)
	}
}

// After a restore positions jump; the jump is no gap, and the old epoch's stream goes.
func TestNewEpoch(t *testing.T) {
	source := newLedger()
	n := embedded(t, t.TempDir())
	o := Options{Poll: 50 * time.Millisecond}
	l := open(t, n, source, o)
	l.Publish(source.commit(100))
	kept := int64(day0 + 60)
	l.Close()
	must(t, n.Conn().Flush())
	if newest, err := Newest(t.Context(), n, 1); err != nil || newest != day0+100 {
		t.Fatalf("the stream's newest position is %d (%v), want %d", newest, err, day0+100)
	}

	source.restore(kept)
	l = open(t, n, source, o)
	w := read(t, l, kept-10)
	l.Publish(source.commit(5))
	w.wants(t, source.all(kept-10))
	if newest, err := Newest(t.Context(), n, 1); err != nil || newest != 0 {
		t.Fatalf("the old epoch's stream is still there (%d, %v)", newest, err)
	}

	// An epoch that begins while we run is followed, too.
	l.Publish(source.restore(w.end(t)))
	w2 := read(t, l, 0)
	l.Publish(source.commit(5))
	w2.wants(t, source.all(0))
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		l.Publish(source.commit(1))
		if newest, _ := Newest(t.Context(), n, 3); newest > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is told in the new epoch's stream")
		}
	}
}

// A database that is behind what was told must be noticed before positions are used again.
func TestRewoundDatabaseIsNoticed(t *testing.T) {
	source := newLedger()
	rewound := make(chan int64, 100)
	l := open(t, embedded(t, t.TempDir()), source, Options{
		Poll:    20 * time.Millisecond,
		Rewound: func(_, end int64) { rewound <- end },
	})
	l.Publish(source.commit(10))
	source.asked(t, 5)
	select {
	case end := <-rewound:
		t.Fatalf("rewound to %d without a cause", end)
	default:
	}
	source.mu.Lock()
	source.facts = source.facts[:5]
	source.mu.Unlock()
	select {
	case end := <-rewound:
		if end != day0+4 {
			t.Fatalf("rewound to %d, want %d", end, day0+4)
		}
	case <-time.After(patience):
		t.Fatal("nobody noticed")
	}
}

// A batch whose handling failed comes again, the same; ErrStop ends the reader.
func TestHandleFails(t *testing.T) {
	source := newLedger()
	l := open(t, embedded(t, t.TempDir()), source, Options{Poll: 50 * time.Millisecond})
	l.Publish(source.commit(3))
	if err := l.Tail().Wait(t.Context(), day0+2); err != nil {
		t.Fatal(err)
	}
	var calls [][]sql.Fact
	err := l.Read(t.Context(), "failing", day0, func(_ context.Context, facts []sql.Fact) error {
		calls = append(calls, facts)
		if len(calls) < 3 {
			return errors.New("database is busy")
		}
		return fmt.Errorf("cursor moved by another: %w", ErrStop)
	})
	if !errors.Is(err, ErrStop) || len(calls) != 3 {
		t.Fatalf("Read returned %v after %d calls", err, len(calls))
	}
	for _, c := range calls {
		if !slices.Equal(c, source.all(day0)) {
			t.Fatalf("a retry was given %v", c)
		}
	}
}

// An embedded server listens nowhere, and is quiet.
func TestEmbeddedListensNowhere(t *testing.T) {
	core, lines := observer.New(zap.InfoLevel)
	n, err := Start(t.Context(), NATSOptions{Dir: t.TempDir(), Log: zap.New(core)})
	if err != nil {
		t.Fatal(err)
	}
	if addr := n.embedded.Addr(); addr != nil {
		t.Fatalf("listens on %v", addr)
	}
	if n.embedded.MonitorAddr() != nil || n.embedded.ClusterAddr() != nil {
		t.Fatal("has a monitoring or cluster port")
	}
	n.Close()
	for _, e := range lines.All() {
		t.Errorf("said %q %v", e.Message, e.ContextMap())
	}
}

func TestUnreachableNATSIsOneSentence(t *testing.T) {
	if _, err := Start(t.Context(), NATSOptions{URL: "nats://127.0.0.1:1"}); err == nil {
		t.Fatal("connected to nothing")
	}
}

// Nobody waits for a reader or for NATS when publishing, and memory stays bounded.
func TestPublishNeverBlocks(t *testing.T) {
	source := newLedger()
	l := open(t, embedded(t, t.TempDir()), source, Options{Poll: 50 * time.Millisecond, TailBytes: 100_000})
	release := make(chan struct{})
	l.Tail().OnFacts(func([]sql.Fact) { <-release })
	facts := source.commit(maxQueued + 50_000)
	published := make(chan struct{})
	go func() {
		for batch := range slices.Chunk(facts, 1000) {
			l.Publish(batch)
		}
		close(published)
	}()
	select {
	case <-published:
	case <-time.After(patience): // nobody takes anything: to wait for that would be to wait for ever
		t.Fatal("publishing waits for a reader")
	}
	l.mu.Lock()
	waiting := len(l.arrived)
	l.mu.Unlock()
	if waiting > maxQueued {
		t.Fatalf("%d facts wait in memory", waiting)
	}
	close(release)
	read(t, l, day0).wants(t, source.all(day0))
}

func BenchmarkPublishToHandle(b *testing.B) {
	for _, group := range []int{1, 100} {
		for _, where := range []string{"same process", "other process"} {
			b.Run(fmt.Sprintf("%s/group %d", where, group), func(b *testing.B) {
				s := startOutside(b, -1, b.TempDir())
				source := newLedger()
				l := open(b, connect(b, s), source, Options{})
				r := l
				if where == "other process" {
					r = open(b, connect(b, s), source, Options{})
				}
				handled := make(chan int64, 1024)
				go func() {
					_ = r.Read(b.Context(), "bench", day0, func(_ context.Context, facts []sql.Fact) error {
						handled <- facts[len(facts)-1].Pos
						return nil
					})
				}()
				for b.Loop() {
					facts := source.commit(group)
					l.Publish(facts)
					for <-handled < facts[len(facts)-1].Pos {
					}
				}
			})
		}
	}
}
