package serve

import (
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
