// Package client asks a server over the client-server API as a test does. It also serves that API of the parts of a
// homeserver that a test is about, without the rest of it, and holds every answer against the OpenAPI.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/tidwall/gjson"
)

// Where the operations are.
const (
	V1 = "/_matrix/client/v1"
	V3 = "/_matrix/client/v3"
)

// J is a JSON object.
type J = map[string]any

// Answer is what a request got.
type Answer struct {
	Status int
	Header http.Header
	Text   string
}

// Get reads a part of the answer, by a path such as "rooms.join".
func (a Answer) Get(path string) gjson.Result { return gjson.Get(a.Text, path) }

// At reads a part of the answer by names, which may have dots, and places in lists.
func (a Answer) At(path ...any) gjson.Result {
	part := gjson.Parse(a.Text)
	for _, step := range path {
		switch step := step.(type) {
		case string:
			part = part.Get(gjson.Escape(step))
		case int:
			list := part.Array()
			if step < 0 || step >= len(list) {
				return gjson.Result{}
			}
			part = list[step]
		default:
			panic(fmt.Sprintf("%v is no name and no place", step))
		}
	}
	return part
}

// Value is a part of the answer as encoding/json reads it, nil where there is none.
func (a Answer) Value(path ...any) any { return a.At(path...).Value() }

// Str is a text in the answer, empty where there is none.
func (a Answer) Str(path ...any) string { return a.At(path...).Str }

// List is a list in the answer, as encoding/json reads it.
func (a Answer) List(path ...any) []any {
	list, _ := a.Value(path...).([]any)
	return list
}

// Code is the error's code, empty for a success.
func (a Answer) Code() string { return a.Get("errcode").Str }

func (a Answer) String() string { return fmt.Sprintf("%d %.500s", a.Status, a.Text) }

// Request is what is asked.
type Request struct {
	Token, Method, URL string
	Body               any // nil, bytes or a string that are sent as they are, or anything that becomes JSON
	Header             http.Header
}

// Do sends a request.
func Do(ctx context.Context, client *http.Client, in Request) (Answer, error) {
	var body io.Reader
	switch b := in.Body.(type) {
	case nil:
	case string:
		body = bytes.NewReader([]byte(b))
	case []byte:
		body = bytes.NewReader(b)
	default:
		text, err := json.Marshal(b)
		if err != nil {
			return Answer{}, err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, in.Method, in.URL, body)
	if err != nil {
		return Answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if in.Token != "" {
		req.Header.Set("Authorization", "Bearer "+in.Token)
	}
	for name, values := range in.Header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	return Send(client, req)
}

// Send sends a request that is made already.
func Send(client *http.Client, req *http.Request) (Answer, error) {
	resp, err := client.Do(req)
	if err != nil {
		return Answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return Answer{resp.StatusCode, resp.Header, string(text)}, err
}

// Room is the path of an operation on a room.
func Room(room string, rest ...string) string {
	path := V3 + "/rooms/" + url.PathEscape(room)
	for _, part := range rest {
		path += "/" + url.PathEscape(part)
	}
	return path
}
