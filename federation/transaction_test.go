package federation

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"

	"chancery"
	"chancery/endpoint"
	"chancery/federation/peer"

	"go.uber.org/zap"
)

// A panic while a transaction is taken, here for want of a database, fails that transaction and no more.
func TestPanicFailsTheTransaction(t *testing.T) {
	s := &Server{Log: zap.NewNop()}
	answer, err := s.sendTransaction(t.Context(), &transactionIn{Origin: "evil.example", TxnID: "1"})
	if answer != nil || chancery.As(err).Status != 500 {
		t.Errorf("got %v and %v", answer, err)
	}
	if len(s.inbound.origins) > 0 {
		t.Error("the server's turn is still taken")
	}
}

// What is read of a transaction is what its sender signed, or it is not read: of a body that two parsers read differently,
// no piece comes out that reads otherwise than the signed bytes.
//
// spec: s2s#request-authentication
func FuzzTransaction(f *testing.F) {
	for _, s := range []string{
		`{"pdus":[{"a":1}],"edus":[{"edu_type":"m.typing","content":{}}]}`, `{"pdus":[{"a":1,"a":2},{"b":3}]}`, `{"pdus":[],"pdus":[{}]}`,
		`{"pdus":[{"a":1}],"p\u0064us":[]}`, `{"PDUs":[{}],"edus":[{"\u0061":-0,"b":[{"c":1,"c":1}]}]}`, `{"edus":[null,5,"x",[]],"pdus":null}`,
		`{"pdus":[{"s":"\ud800"}]}`, "{\"pdus\":[\"\xff\"]}", `[]`, `null`, `{"pdus":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}`,
	} {
		f.Add(s)
	}
	f.Add(`{"pdus":[` + strings.Repeat("0,", 200) + `{}],"edus":{}}`)
	f.Add(`{"pdus":[` + strings.Repeat("0,", 200) + `{}]}`)
	var read *transactionBody
	h := endpoint.New(endpoint.API{Routes: []endpoint.Route{
		s2s("sendTransaction", "PUT", "/{txnId}", none, endpoint.Unlimited, endpoint.Handle(func(_ context.Context, in *transactionIn) (*nothingOut, error) {
			read = &in.Body
			return nil, nil
		})),
	}})
	f.Fuzz(func(t *testing.T, body string) {
		read = nil
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("PUT", "/1", strings.NewReader(body)))
		if w.Code >= 500 || (read == nil) != (w.Code >= 400) {
			t.Fatalf("%q: %d %s", body, w.Code, w.Body)
		}
		var strict transactionBody
		if endpoint.DecodeJSON([]byte(body), &strict) == nil && body[0] == '{' && read == nil {
			t.Fatalf("%q is refused", body)
		}
		canonical, err := peer.CanonicalJSON([]byte(body))
		if err != nil || read == nil {
			return // nobody can have signed it, or nothing is read
		}
		var members map[string]json.RawMessage
		if err := json.Unmarshal(canonical, &members); err != nil {
			t.Fatal(err)
		}
		for name, pieces := range map[string][]json.RawMessage{"pdus": read.PDUs, "edus": read.EDUs} {
			var signed []json.RawMessage
			if members[name] != nil {
				if err := json.Unmarshal(members[name], &signed); err != nil {
					t.Fatal(err)
				}
			}
			if min(len(signed), maxEDUs+1) != len(pieces) {
				t.Fatalf("%q: %d %s are read, %d signed", body, len(pieces), name, len(signed))
			}
			for i, piece := range pieces {
				var any json.RawMessage
				if endpoint.DecodeJSON(piece, &any) != nil {
					continue
				}
				if is, err := peer.CanonicalJSON(piece); err != nil || !bytes.Equal(is, signed[i]) {
					t.Errorf("%q: %s is read where %s is signed (%v)", body, is, signed[i], err)
				}
			}
		}
	})
}
