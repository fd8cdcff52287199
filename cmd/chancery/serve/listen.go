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
		if err := srv.Shutdown(last); err != nil {
			if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
				return srv.Close()
			}
			return fmt.Errorf("stop listening: %w", err)
		}
		return nil
	})
}
