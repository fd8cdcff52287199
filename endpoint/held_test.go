package endpoint

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Of IPv6 everybody has more addresses than could be counted: limits are for networks.
func TestAnIPv6NetworkIsOneCaller(t *testing.T) {
	limits := NewLimits(map[LimitClass]Budget{LimitSend: {PerSecond: 0.0001, Burst: 1}})
	for _, c := range []struct {
		ip      string
		allowed bool
	}{
		{"2001:db8:0:1::1", true}, {"2001:db8:0:1:ffff::2", false}, {"2001:db8:0:2::1", true},
		{"192.0.2.1", true}, {"192.0.2.2", true}, {"192.0.2.1", false}, {"a Unix socket", true}, {"fe80::1%eth0", true}, {"fe80::2%eth1", false},
	} {
		if err := limits.allow(LimitSend, Caller{IP: c.ip}); (err == nil) != c.allowed {
			t.Errorf("%s: %v", c.ip, err)
		}
	}
}

type textIn struct {
	Body struct {
		A string `json:"a"`
	} `body:"json"`
}

// Bodies that are only announced take no memory, and those that come are bounded, all together and of each address.
func TestBodiesAreBoundedInMemory(t *testing.T) {
	var working func()
	api := API{Auth: known, Routes: []Route{row("PUT", "/x", None, Handle(func(context.Context, *textIn) (*nothing, error) {
		working()
		return nil, nil
	}), MaxBody(16<<20))}}
	s := New(api).(*server)
	srv := httptest.NewServer(s)
	defer srv.Close()
	all := func() int64 {
		s.bodies.mu.Lock()
		defer s.bodies.mu.Unlock()
		return s.bodies.all
	}
	await := func(what string, n int64) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); all() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d bytes are held, want %d", what, all(), n)
			}
		}
	}
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const many = 100
	var open []net.Conn
	for range many {
		c, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
		fmt.Fprintf(c, "PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{", 16<<20)
	}
	await("announced", many)
	if grown := heap() - before; grown > 100<<20 {
		t.Errorf("%d bodies of which one byte has come hold %d MB", many, grown>>20)
	}
	for _, c := range open {
		c.Close()
	}
	await("given up", 0)

	working = func() { t.Error("too much is taken") }
	put := func() int {
		req, err := http.NewRequest("PUT", srv.URL+"/x", strings.NewReader(`{"a":"`+strings.Repeat("x", 1000)+`"}`))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if !s.bodies.hold("127.0.0.1", maxHeldBy-500) {
		t.Fatal("an address cannot hold what it may")
	}
	if status := put(); status != http.StatusTooManyRequests {
		t.Errorf("one more of the address: %d", status)
	}
	s.bodies.free("127.0.0.1", maxHeldBy-500)
	for i := range maxHeld / maxHeldBy {
		if !s.bodies.hold(fmt.Sprint("other", i), maxHeldBy) {
			t.Fatal("all addresses together cannot hold what they may")
		}
	}
	if status := put(); status != http.StatusTooManyRequests {
		t.Errorf("one more of all: %d", status)
	}
	for i := range maxHeld / maxHeldBy {
		s.bodies.free(fmt.Sprint("other", i), maxHeldBy)
	}
	ran := false
	working = func() {
		if ran = true; all() != 1008 {
			t.Errorf("while it is worked on, %d bytes are held", all())
		}
	}
	if status := put(); status != http.StatusOK || !ran {
		t.Errorf("when there is room: %d", status)
	}
	await("all is done", 0)
	if len(s.bodies.by) > 0 {
		t.Errorf("left are %v", s.bodies.by)
	}
}
