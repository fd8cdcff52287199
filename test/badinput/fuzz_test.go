package badinput

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"chancery/clientapi"
	"chancery/endpoint"
	"chancery/federation"
	"chancery/federation/peer"
	"chancery/test/homeserver"
)

// Whatever stands in the parameters of whichever path of both APIs: the server answers, and finds no fault in itself.
func FuzzPathParameters(f *testing.F) {
	s := homeserver.Start(f, homeserver.Options{})
	p := homeserver.NewPeer(f, s.CA)
	alice := s.Register(f, "alice")
	room := alice.CreateRoom(J{"preset": "public_chat"})
	event := alice.Send(room, "good")
	var routes []endpoint.Route
	for _, r := range slices.Concat((&clientapi.Server{Config: s.Config}).Routes(), (&federation.Server{Config: s.Config}).Routes()) {
		if r.AnsweredBy == "" && !r.Planned() && strings.Contains(r.Path, "{") && !slices.Contains(leaves, r.ID) {
			routes = append(routes, r)
		}
	}
	for i := range routes {
		f.Add(uint16(i), room, event, "m.x")
		f.Add(uint16(i), alice.ID, "\x00", "%2F/..")
	}
	f.Fuzz(func(t *testing.T, op uint16, a, b, c string) {
		r := routes[int(op)%len(routes)]
		values := []string{a, b, c}
		path := pathParameter.ReplaceAllStringFunc(r.Path, func(name string) string {
			value := reachable(values[0], s.Name)
			values = append(values[1:], values[0])
			if name == "{serverName}" && peer.ValidServerName(value) {
				value = nowhere
			}
			return url.PathEscape(value)
		})
		var body any
		if r.Method == "PUT" || r.Method == "POST" {
			body = J{}
		}
		var answer homeserver.Answer
		if r.API == endpoint.ClientServer {
			var err error
			if answer, err = alice.As(t).Try(t.Context(), r.Method, path, body); err != nil {
				t.Fatalf("%s: %s %q: %v", r.ID, r.Method, path, err)
			}
		} else {
			answer = p.As(t).Ask(s, homeserver.Signed{Method: r.Method, Path: path, Body: body})
		}
		if fault := wrong(answer); fault != "" {
			t.Fatalf("%s: %s %q: %s: %s", r.ID, r.Method, path, fault, answer)
		}
	})
}

// reachable puts ours or nowhere in the place of a server in an ID: others would be asked of the name service.
func reachable(value, ours string) string {
	before, server, is := strings.Cut(value, ":")
	if !is || server == ours {
		return value
	}
	return before + ":" + nowhere
}
