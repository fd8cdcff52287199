package uia

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"chancery"
	"chancery/endpoint"

	"maunium.net/go/mautrix/id"
)

// people knows alice with the password "right".
type people struct{ limited bool }

func (people) LocalUser(name string) (id.UserID, bool) {
	return id.UserID("@" + name + ":agency.example"), !strings.Contains(name, ":")
}

func (p people) CheckPassword(_ context.Context, user id.UserID, password string) error {
	switch {
	case p.limited:
		return chancery.LimitExceeded(1)
	case user != "@alice:agency.example" || password != "right":
		return chancery.Forbidden("wrong")
	}
	return nil
}

var alice = endpoint.Caller{User: "@alice:agency.example", Device: "PHONE"}

const byAlice = `"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"}`

func asks(t *testing.T, err error) (code chancery.Code, session string, completed []string) {
	t.Helper()
	e := chancery.As(err)
	if err == nil || e.Status != 401 {
		t.Fatalf("wanted a 401, got %v", err)
	}
	session, _ = e.Extra["session"].(string)
	completed, _ = e.Extra["completed"].([]string)
	if session == "" || e.Extra["flows"] == nil || e.Extra["params"] == nil {
		t.Fatalf("the 401 lacks something: %v", e.Extra)
	}
	return e.Code, session, completed
}

// spec: c2s#user-interactive-authentication-api
func TestStagesAreCompletedInOrder(t *testing.T) {
	s := New(people{})
	try := func(auth string) error {
		return s.Check(t.Context(), Request{Caller: alice, Operation: "op", Auth: json.RawMessage(auth), Flows: []Flow{{Password, Dummy}}})
	}
	code, session, completed := asks(t, try(""))
	if code != "" || completed != nil {
		t.Fatalf("the first answer accuses: %s %v", code, completed)
	}
	if code, _, _ := asks(t, try(fmt.Sprintf(`{"type":"m.login.dummy","session":%q}`, session))); code != chancery.CodeUnrecognized {
		t.Fatalf("the second stage was taken first: %s", code)
	}
	code, same, _ := asks(t, try(fmt.Sprintf(`{%s,"password":"wrong","session":%q}`, byAlice, session)))
	if code != chancery.CodeForbidden || same != session {
		t.Fatalf("a wrong password: %s, session %s then %s", code, session, same)
	}
	if _, _, completed := asks(t, try(fmt.Sprintf(`{%s,"password":"right","session":%q}`, byAlice, session))); len(completed) != 1 || completed[0] != Password {
		t.Fatalf("completed: %v", completed)
	}
	// completed stages cannot be retried: the answer is the same whatever is said
	if _, _, completed := asks(t, try(fmt.Sprintf(`{%s,"password":"wrong","session":%q}`, byAlice, session))); len(completed) != 1 {
		t.Fatalf("completed after trying it again: %v", completed)
	}
	if err := try(fmt.Sprintf(`{"type":"m.login.dummy","session":%q}`, session)); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := asks(t, try(fmt.Sprintf(`{"type":"m.login.dummy","session":%q}`, session))); code != chancery.CodeUnauthorized {
		t.Fatalf("a session was good twice: %s", code)
	}
}

func TestOneRequestMayBeEnough(t *testing.T) {
	s := New(people{})
	for _, auth := range []string{`{` + byAlice + `,"password":"right"}`, `{"type":"m.login.password","user":"alice","password":"right"}`, `{"type":"m.login.password","password":"right"}`} {
		if err := s.Check(t.Context(), Request{Caller: alice, Operation: "op", Auth: json.RawMessage(auth), Flows: ByPassword}); err != nil {
			t.Errorf("%s: %v", auth, err)
		}
	}
}

func TestSessionIsForOneUserDeviceOperationAndBody(t *testing.T) {
	s := New(people{})
	first := Request{Caller: alice, Operation: "op", Body: json.RawMessage(`{"a":1,"b":2}`), Flows: ByPassword}
	_, session, _ := asks(t, s.Check(t.Context(), first))
	auth := json.RawMessage(fmt.Sprintf(`{%s,"password":"right","session":%q}`, byAlice, session))
	for name, change := range map[string]func(*Request){
		"operation": func(r *Request) { r.Operation = "other" },
		"device":    func(r *Request) { r.Caller.Device = "TABLET" },
		"user":      func(r *Request) { r.Caller.User = "@mallory:agency.example" },
		"body":      func(r *Request) { r.Body = json.RawMessage(`{"a":1,"b":3}`) },
	} {
		r := first
		r.Auth = auth
		change(&r)
		if code, other, _ := asks(t, s.Check(t.Context(), r)); code != chancery.CodeUnauthorized || other == session {
			t.Errorf("another %s: %s, session %s", name, code, other)
		}
	}
	r := first
	r.Auth, r.Body = auth, json.RawMessage(`{"b":2, "auth":{}, "a":1}`)
	if err := s.Check(t.Context(), r); err != nil {
		t.Fatalf("the same body in another order: %v", err)
	}
}

func TestFaultsOfTheRequestAreNoStages(t *testing.T) {
	for _, c := range []struct {
		users people
		auth  string
		code  chancery.Code
	}{
		{people{}, `"x"`, chancery.CodeBadJSON},
		{people{}, `{"type":1}`, chancery.CodeBadJSON},
		{people{}, `{"type":"m.login.password","identifier":{"type":"m.id.user"},"password":"x"}`, chancery.CodeMissingParam},
		{people{limited: true}, `{"type":"m.login.password","password":"x"}`, chancery.CodeLimitExceeded},
	} {
		err := New(c.users).Check(t.Context(), Request{Caller: alice, Operation: "op", Auth: json.RawMessage(c.auth), Flows: ByPassword})
		if !chancery.IsCode(err, c.code) {
			t.Errorf("%s: %v, want %s", c.auth, err, c.code)
		}
	}
}

func TestSessionsAreBounded(t *testing.T) {
	s := New(people{})
	for range 3 * table {
		asks(t, s.Check(t.Context(), Request{Operation: "register", Flows: []Flow{{Dummy}}}))
	}
	if n := len(s.young) + len(s.elder); n > table {
		t.Fatalf("%d sessions are held", n)
	}
}
