package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// shutdownTime is what requests under way get when the server is told to stop; the rest of
// five seconds is for the components below.
const shutdownTime = 2 * time.Second

// listen binds exactly the addresses, all or none.
func listen(what string, addresses []string) ([]net.Listener, error) {
	var bound []net.Listener
	for _, address := range addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			for _, l := range bound {
				l.Close()
			}
			return nil, fmt.Errorf("the %s listener cannot have %s: %w", what, address, reason(err))
		}
		bound = append(bound, l)
	}
	return bound, nil
}

// reason is the cause of a failed bind without the layers around it.
func reason(err error) error {
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return errors.New("another process listens there")
	case errors.As(err, &errno):
		return errno
	}
	return err
}

// serveHTTP answers on the listeners until ctx ends, then lets requests under way finish.
func serveHTTP(ctx context.Context, g *errgroup.Group, listeners []net.Listener, h http.Handler) {
	// Requests live longer than ctx, which only says that no more are taken: long polls are
	// told to end by the component that holds them.
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       3 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          stdlog.New(io.Discard, "", 0), // what peers do wrong with TLS and HTTP is not our log
	}
	busy := &busy{conns: map[net.Conn]bool{}}
	srv.ConnState = busy.note
	for _, l := range listeners {
		g.Go(func() error {
			if err := srv.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.Addr(), err)
			}
			return nil
		})
	}
	g.Go(func() error {
		<-ctx.Done()
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		stopped := make(chan error, 1)
		go func() { stopped <- srv.Shutdown(last) }()
		tick := time.NewTicker(idleTick)
		defer tick.Stop()
		for {
			select {
			case err := <-stopped:
				if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
					return srv.Close()
				} else if err != nil {
					return fmt.Errorf("stop listening: %w", err)
				}
				return nil
			case <-tick.C:
				// A connection of HTTP/2 would stay open for two seconds after its last answer.
				if busy.none() {
					return srv.Close()
				}
			}
		}
	})
}

// idleTick is how long connections without requests have to tell their clients that they end.
const idleTick = 50 * time.Millisecond

// busy are the connections with requests under way.
type busy struct {
	mu    sync.Mutex // guards conns; a leaf
	conns map[net.Conn]bool
}

func (b *busy) note(c net.Conn, s http.ConnState) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s == http.StateActive {
		b.conns[c] = true
	} else {
		delete(b.conns, c)
	}
}

func (b *busy) none() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns) == 0
}
