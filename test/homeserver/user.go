package homeserver

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"chancery/test/client"
)

// Texts are so many different texts.
func Texts(prefix string, n int) []string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = fmt.Sprint(prefix, " ", i)
	}
	return texts
}

// J is a JSON object.
type J = client.J

// User is one device of a user, with a plain client.
type User struct {
	ID, Device, Token string
	Server            *Server
	t                 testing.TB
}

// Answer is what a request got.
type Answer = client.Answer

// password of every user of a test.
const password = "correct horse battery staple"

// Register makes an account and signs it in.
func (s *Server) Register(t testing.TB, name string) *User {
	t.Helper()
	return s.signedIn(t, "/_matrix/client/v3/register", J{"username": name, "password": password, "auth": J{"type": "m.login.dummy"}})
}

// Login signs another device of a user in.
func (s *Server) Login(t testing.TB, name string) *User {
	t.Helper()
	return s.signedIn(t, "/_matrix/client/v3/login", J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": name}, "password": password})
}

func (s *Server) signedIn(t testing.TB, path string, body J) *User {
	t.Helper()
	u := &User{Server: s, t: t}
	a := u.OK("POST", path, body)
	u.ID, u.Device, u.Token = a.Get("user_id").Str, a.Get("device_id").Str, a.Get("access_token").Str
	return u
}

// As is the same device in another test, for subtests.
func (u *User) As(t testing.TB) *User {
	other := *u
	other.t = t
	return &other
}

// Password is what the user signs in with.
func (u *User) Password() string { return password }

// Try sends a request; body is nil, bytes or a string sent as they are, or anything that becomes JSON.
func (u *User) Try(ctx context.Context, method, path string, body any) (Answer, error) {
	return client.Do(ctx, u.Server.client, client.Request{Token: u.Token, Method: method, URL: u.Server.URL + path, Body: body})
}

// Ask sends a request that must get an answer.
func (u *User) Ask(method, path string, body any) Answer {
	u.t.Helper()
	a, err := u.Try(u.t.Context(), method, path, body)
	if err != nil {
		u.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// OK sends a request that must succeed.
func (u *User) OK(method, path string, body any) Answer {
	u.t.Helper()
	a := u.Ask(method, path, body)
	if a.Status != http.StatusOK {
		u.t.Fatalf("%s %.200s: %s", method, path, a)
	}
	return a
}

// Refused sends a request that must fail with this status and code.
func (u *User) Refused(status int, code, method, path string, body any) Answer {
	u.t.Helper()
	a := u.Ask(method, path, body)
	if a.Status != status || a.Code() != code {
		u.t.Errorf("%s %.200s: got %s, want %d %s", method, path, a, status, code)
	}
	return a
}

// CreateRoom makes a room.
func (u *User) CreateRoom(body J) string {
	u.t.Helper()
	return u.OK("POST", "/_matrix/client/v3/createRoom", body).Get("room_id").Str
}

// Join enters a room, over the server that is named if it is not known here.
func (u *User) Join(room string, via ...string) {
	u.t.Helper()
	u.OK("POST", "/_matrix/client/v3/join/"+url.PathEscape(room)+"?"+url.Values{"via": via, "server_name": via}.Encode(), J{})
}

// Invite invites another user.
func (u *User) Invite(room, user string) {
	u.t.Helper()
	u.OK("POST", Room(room, "invite"), J{"user_id": user})
}

// Txn is a new transaction ID.
func Txn() string { return client.Txn() }

// Send sends a text and gives the event's ID.
func (u *User) Send(room, text string) string {
	u.t.Helper()
	return u.SendEvent(room, "m.room.message", J{"msgtype": "m.text", "body": text})
}

// SendEvent sends any event.
func (u *User) SendEvent(room, kind string, content any) string {
	u.t.Helper()
	return u.OK("PUT", Room(room, "send", kind, Txn()), content).Get("event_id").Str
}

// Room is the path of an operation on a room.
func Room(room string, rest ...string) string { return client.Room(room, rest...) }

// SyncPath is the path of a sync with some timeout in milliseconds; no token is an initial one.
func SyncPath(since string, timeout int) string {
	q := url.Values{"timeout": {fmt.Sprint(timeout)}, "filter": {`{"room":{"timeline":{"limit":1000}}}`}}
	if since != "" {
		q.Set("since", since)
	}
	return "/_matrix/client/v3/sync?" + q.Encode()
}

// Sync asks for what happened after a token, at once.
func (u *User) Sync(since string) Answer {
	u.t.Helper()
	return u.OK("GET", SyncPath(since, 0), nil)
}
