package endpoint

import (
	"net/http/httptest"
	"strings"
	"testing"
)

// What the adapter costs a request: path, query, body in, JSON out.
func BenchmarkHandle(b *testing.B) {
	api := echoAPI()
	h := New(api)
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", "/v3/rooms/!room:a.example/x/key?limit=10", strings.NewReader(`{"msgtype":"m.text","body":"hello there"}`))
		h.ServeHTTP(httptest.NewRecorder(), r)
	}
}
