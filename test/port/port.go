// Package port finds ports for servers of tests that are known by their address before they listen, or while they
// are down.
package port

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// Free is Find for a test.
func Free(t testing.TB) string {
	t.Helper()
	port, err := Find()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Find finds a port of 127.0.0.1 at which nobody listens. It lies below those that the system gives to outgoing
// connections: of these, one of another test could hold it while the server is not there.
func Find() (port string, err error) {
	for range 1000 {
		port = strconv.Itoa(15_000 + rand.IntN(17_000))
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+port); err == nil {
			return port, l.Close()
		}
	}
	return "", err
}
