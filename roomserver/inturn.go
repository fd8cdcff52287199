package roomserver

import (
	"context"
	"fmt"
	"time"
)

// silence is how long a server may say nothing until the next one is asked too.
const silence = 3 * time.Second

// inTurn asks servers one after the other: the next one when an answer was of no use, or when there is none for a
// while. A slow server's answer still counts when it comes. It ends when use has taken an answer, or all have
// answered.
func inTurn[T any](ctx context.Context, servers []string, ask func(context.Context, string) (T, error), use func(string, T, error) (taken bool)) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type said struct {
		server string
		answer T
		err    error
	}
	answers := make(chan said, len(servers)) // whoever answers too late is not waited for
	asked, open := 0, 0
	next := func() {
		if asked == len(servers) {
			return
		}
		server := servers[asked]
		asked, open = asked+1, open+1
		go func() {
			a := said{server: server}
			defer func() { // no answer may end the process
				if p := recover(); p != nil {
					a.err = fmt.Errorf("panic over the answer of %s: %v", server, p)
				}
				answers <- a
			}()
			a.answer, a.err = ask(ctx, server)
		}()
	}
	next()
	for open > 0 {
		quiet := time.NewTimer(silence)
		select {
		case a := <-answers:
			quiet.Stop()
			open--
			if use(a.server, a.answer, a.err) {
				return
			}
			next()
		case <-quiet.C:
			next()
		}
	}
}
