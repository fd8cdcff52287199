package eventlog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/zap"
)

// NATSOptions says which NATS carries the log.
type NATSOptions struct {
	URL         string // an external server or cluster; empty: one inside this process
	Credentials string // a credentials file for the external server
	Replicas    int    // copies of the stream in an external cluster; 0 means 1
	Dir         string // where the embedded server keeps its stream
	Log         *zap.Logger
}

const (
	maxPayload  = 1 << 20  // NATS' own limit; facts are split far below it
	maxMemory   = 32 << 20 // JetStream in memory, embedded: we keep nothing there
	maxDisk     = 1 << 30  // JetStream on disk, embedded: every epoch's stream together
	dialTimeout = 5 * time.Second
)

// NATS is the connection that the parts of a server talk over: the log, typing, presence,
// questions between processes. Nothing in it is needed to find what was committed.
type NATS struct {
	conn     *nats.Conn
	embedded *server.Server
	replicas int
	log      *zap.Logger
	close    sync.Once
}

// Start connects to NATS, or starts it inside this process when no URL is given. An external
// server must answer now; once it has, the connection is taken up again for ever.
// An embedded server listens on no port, and a stream directory that it cannot read is
// moved aside: it holds nothing that SQL does not.
func Start(ctx context.Context, o NATSOptions) (*NATS, error) {
	n := &NATS{replicas: max(o.Replicas, 1), log: o.Log}
	if n.log == nil {
		n.log = zap.NewNop()
	}
	if o.URL == "" {
		if err := n.startEmbedded(ctx, o.Dir); err != nil {
			return nil, err
		}
		return n, nil
	}
	options := append(n.connOptions(), nats.Timeout(dialTimeout))
	if o.Credentials != "" {
		options = append(options, nats.UserCredentials(o.Credentials))
	}
	conn, err := nats.Connect(o.URL, options...)
	if err != nil {
		return nil, fmt.Errorf("reach NATS at %s: %w", o.URL, err)
	}
	if err := needJetStream(ctx, conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("NATS at %s carries no log: %w", o.URL, err)
	}
	n.conn = conn
	return n, nil
}

// needJetStream refuses a NATS that was set up without JetStream. One whose JetStream does not answer just now
// will do: until it does, readers ask SQL.
func needJetStream(ctx context.Context, conn *nats.Conn) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	_, err = js.AccountInfo(ctx)
	if errors.Is(err, jetstream.ErrJetStreamNotEnabled) || errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount) {
		return errors.New("it runs without JetStream (nats-server -js)")
	}
	return nil
}

// Conn is for plain NATS: typing, presence, questions and answers.
func (n *NATS) Conn() *nats.Conn { return n.conn }

// Close sends what is waiting, and stops an embedded server once its stream is on disk.
func (n *NATS) Close() {
	n.close.Do(func() {
		if n.conn != nil {
			if n.conn.IsConnected() {
				_ = n.conn.FlushTimeout(time.Second) // what does not arrive is in SQL
			}
			n.conn.Close()
		}
		if n.embedded != nil {
			n.embedded.Shutdown()
			n.embedded.WaitForShutdown()
		}
	})
}

func (n *NATS) connOptions() []nats.Option {
	return []nats.Option{
		nats.Name("chancery"),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.PingInterval(10 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.ReconnectBufSize(1 << 20), // an outage loses publishes, not memory
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				n.log.Warn("NATS connection lost", zap.Error(err))
			}
		}),
		nats.ReconnectHandler(func(c *nats.Conn) {
			n.log.Info("NATS connection is back", zap.String("server", c.ConnectedServerName()))
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			n.log.Warn("NATS", zap.String("subject", subject), zap.Error(err))
		}),
	}
}

// startEmbedded tries the directory as it is, and once more with an empty one.
func (n *NATS) startEmbedded(ctx context.Context, dir string) error {
	err := n.tryEmbedded(ctx, dir)
	if err == nil {
		return nil
	}
	aside := fmt.Sprintf("%s.broken-%s", filepath.Clean(dir), time.Now().UTC().Format("20060102T150405.000"))
	if _, statErr := os.Lstat(dir); statErr != nil {
		return fmt.Errorf("start the embedded NATS server: %w", err)
	}
	// One set aside is enough to look at; a directory that breaks at every start must not fill the disk.
	if old, _ := filepath.Glob(filepath.Clean(dir) + ".broken-*"); len(old) > 0 {
		for _, o := range old {
			_ = os.RemoveAll(o)
		}
	}
	if moveErr := os.Rename(dir, aside); moveErr != nil {
		return fmt.Errorf("start the embedded NATS server: %w", errors.Join(err, moveErr))
	}
	n.log.Warn("the log's stream directory could not be read and was set aside; facts are read from SQL",
		zap.String("directory", dir), zap.String("aside", aside), zap.Error(err))
	if err := n.tryEmbedded(ctx, dir); err != nil {
		return fmt.Errorf("start the embedded NATS server with an empty directory: %w", err)
	}
	return nil
}

func (n *NATS) tryEmbedded(ctx context.Context, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	bridge := &natsLog{log: n.log}
	s, err := server.NewServer(&server.Options{
		ServerName:             "chancery",
		DontListen:             true,
		NoSigs:                 true,
		MaxPayload:             maxPayload,
		JetStream:              true,
		JetStreamMaxMemory:     maxMemory,
		JetStreamMaxStore:      maxDisk,
		StoreDir:               dir,
		DisableJetStreamBanner: true,
	})
	if err != nil {
		return err
	}
	s.SetLoggerV2(bridge, false, false, false)
	var conn *nats.Conn
	defer func() {
		// A stream file that was cut or overwritten may make the server's recovery panic.
		if p := recover(); p != nil {
			err = fmt.Errorf("NATS server panicked: %v", p)
		}
		if err != nil {
			if conn != nil {
				conn.Close()
			}
			s.Shutdown()
			s.WaitForShutdown()
		}
	}()
	s.Start() // returns when the streams are read, since nothing listens
	if err := bridge.fatal(); err != nil {
		return err
	}
	if !s.JetStreamEnabled() || !s.ReadyForConnections(dialTimeout) {
		return errors.New("NATS server is not ready")
	}
	conn, err = nats.Connect("", append(n.connOptions(), nats.InProcessServer(s))...)
	if err != nil {
		return err
	}
	if err := listStreams(ctx, conn); err != nil {
		return fmt.Errorf("list its streams: %w", err)
	}
	n.conn, n.embedded = conn, s
	return nil
}

func listStreams(ctx context.Context, conn *nats.Conn) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	names := js.StreamNames(ctx)
	for range names.Name() {
	}
	return names.Err()
}

// natsLog lets the embedded server speak through our log: warnings and worse as they are,
// its chatter only when someone debugs.
type natsLog struct {
	log *zap.Logger
	mu  sync.Mutex // guards err
	err error
}

func (l *natsLog) fatal() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *natsLog) Noticef(format string, v ...any) {
	l.log.Debug("NATS server", zap.String("says", fmt.Sprintf(format, v...)))
}

func (l *natsLog) Warnf(format string, v ...any) {
	l.log.Warn("NATS server", zap.String("says", fmt.Sprintf(format, v...)))
}

func (l *natsLog) Errorf(format string, v ...any) {
	l.log.Error("NATS server", zap.String("says", fmt.Sprintf(format, v...)))
}

func (l *natsLog) Debugf(string, ...any) {}

func (l *natsLog) Tracef(string, ...any) {}

// Fatalf must not end the process: what is fatal to the stream is a detour for us.
func (l *natsLog) Fatalf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf(format, v...)
	}
}
