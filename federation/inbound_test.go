package federation

import (
	"fmt"
	"testing"
)

// Transactions that wait hold no more memory than they may, of one server and of all, and what is done makes place.
func TestWaitingTransactionsAreBoundedInMemory(t *testing.T) {
	const each = 16 << 20
	var in inbound
	taken := map[string][]*originTurn{}
	bring := func(origin string, bytes int) bool {
		o, ok := in.enter(origin, bytes)
		if ok {
			taken[origin] = append(taken[origin], o)
		}
		return ok
	}
	for i := range 20 {
		for bring(fmt.Sprint("s", i), each) {
		}
	}
	if n := len(taken["s0"]) * each; n != maxWaitingBytes {
		t.Errorf("of one server %d bytes wait", n)
	}
	if in.bytes != maxAllWaitingBytes {
		t.Errorf("of all %d bytes wait", in.bytes)
	}
	if len(in.origins) != len(taken) {
		t.Errorf("%d servers are remembered, want the %d of which something waits", len(in.origins), len(taken))
	}
	in.leave("s0", taken["s0"][0], each)
	if !bring("honest", 1000) {
		t.Error("there is no place after one is done")
	}
	for origin, list := range taken {
		for i, o := range list {
			switch {
			case origin == "honest":
				in.leave(origin, o, 1000)
			case origin != "s0" || i > 0:
				in.leave(origin, o, each)
			}
		}
	}
	if in.bytes != 0 || len(in.origins) != 0 {
		t.Errorf("at the end %d bytes of %d servers wait", in.bytes, len(in.origins))
	}
}
