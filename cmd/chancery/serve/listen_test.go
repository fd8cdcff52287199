package serve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
)

func TestTakenPortIsSaidInOneSentence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = listen("client", []string{"127.0.0.1:0", l.Addr().String()})
	want := fmt.Sprintf("the client listener cannot have %s: another process listens there", l.Addr())
	if err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

// Anybody may ask for /health: the database is asked seldom, and who asks learns of it within seconds.
func TestProbeAsksSeldom(t *testing.T) {
	var p probe
	asked, full := 0, errors.New("disk full")
	try := func(context.Context) error { asked++; return full }
	for range 5 {
		if err := p.ask(t.Context(), try); !errors.Is(err, full) {
			t.Fatal(err)
		}
	}
	if asked != 1 {
		t.Fatalf("asked %d times", asked)
	}
	p.at = p.at.Add(-probeEvery)
	full = nil
	if err := p.ask(t.Context(), try); err != nil || asked != 2 {
		t.Fatalf("%v after %d", err, asked)
	}
}
