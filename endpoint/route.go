// Package endpoint turns rows of a table into an HTTP API: it finds the row for a request,
// authenticates, limits, decodes path, query and body into a struct by tags, calls the
// function of the row and renders its answer or its error. It knows nothing of rooms or
// users; what an access token or a signature means is told by an Authenticator.
package endpoint

import (
	"context"
	"net/http"
	"time"

	"maunium.net/go/mautrix/id"
)

// Names of the spec's APIs as they stand in Route.API.
const (
	ClientServer = "client-server"
	ServerServer = "server-server"
)

// Route is one row of a table: one operation of an API.
type Route struct {
	API     string     // "client-server", "server-server" or a name of our own, such as "admin"
	ID      string     // the operationId of the OpenAPI
	Method  string     // "GET" answers HEAD too
	Path    string     // as in the OpenAPI: "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}"
	Auth    Auth       // whom the operation wants to know
	Limit   LimitClass // "" is unlimited
	Handler Handler    // Handle(f), Raw(f) or Planned()

	// Aliases are further paths of the same operation. A parameter that an alias does not
	// have is the empty string.
	Aliases []string
	// AnsweredBy names the row that answers in place of this one: the spec gives some pairs
	// of operations one method and path (inviteUser and inviteBy3PID). Handler is empty then.
	AnsweredBy string
	// MaxBody bounds the request's body in bytes. 0 is DefaultMaxBody. Raw handlers bound their own.
	MaxBody int64
	// LongPoll lifts the time limit of requests: for long polls, and for files, which take as
	// long as the line of the client.
	LongPoll bool
}

// DefaultMaxBody is what a body may hold where its row does not say otherwise. An event has
// at most 65,536 bytes, but as JSON with every character escaped it is six times that.
const DefaultMaxBody = 1 << 20

// Auth says whom an operation wants to know.
type Auth string

const (
	None            Auth = "none"             // nobody; a token that is sent is not looked at
	Optional        Auth = "optional"         // whoever sends a token is known, and a wrong token is an error
	User            Auth = "user"             // a user who is not a guest
	UserOrGuest     Auth = "user or guest"    // any user
	AppService      Auth = "appservice"       // an application service by its as_token
	ServerSignature Auth = "server signature" // another homeserver by X-Matrix
)

// Caller is who asks, as the authentication found it.
type Caller struct {
	User       id.UserID
	Device     id.DeviceID
	Token      int64 // number of the access token, 0 for none
	Guest      bool
	Admin      bool
	Suspended  bool   // may read, and write only what the spec allows a suspended user
	AppService string // ID of the application service whose as_token was used
	Origin     string // name of the homeserver that signed the request
	IP         string // the client's address, behind trusted proxies the one they tell
	UserAgent  string
}

// Authenticator knows what a token or a signature means. It is asked only when the row wants
// it and, for access tokens, only when the request carries one (see AccessToken); what the row
// demands of the result (no guest, an application service) is checked by this package. body is
// read only for ServerSignature, which covers it. IP and UserAgent are filled afterwards.
type Authenticator interface {
	Authenticate(ctx context.Context, r *http.Request, body []byte) (Caller, error)
}

// Handler is what a row does. Its zero value is of no use.
type Handler struct {
	planned bool
	input   *plan
	call    func(ctx context.Context, in any) (any, error)
	raw     func(w http.ResponseWriter, r *http.Request, c Caller) error
}

// Handle makes a Handler of a function. In is decoded by the tags of its fields:
//
//	path:"roomId"    a parameter of the path
//	query:"limit"    a parameter of the query: string, integer, float, bool, []string or a pointer to one;
//	                 default:"10" when it is not there
//	header:"X-Name"  a header, of the same types
//	token:""         the access token, for rows that authenticate nobody but answer an application service (login)
//	origin:""        the name of the server that signed the request (string)
//	body:"json"      the whole body: a struct, a map, or a json.RawMessage, which keeps it byte for byte
//	body:"inline"    the same on an embedded struct
//
// A field of type Caller is filled with who asks. required:"true" on a parameter, or beside
// the json tag of a member of the body, makes its absence M_MISSING_PARAM. Any number of fields
// may take the body. A json.RawMessage must be an object unless it says body:"json,any". An empty body counts
// as {} but for PUT; with body:"json,optional" there too. With body:"json,pieces" the raw JSON in the body's
// members is not looked at: the handler reads each piece by itself, with DecodeJSON. An exported field without a
// source is a mistake and panics when the table is made.
//
// Out is encoded by its json tags (omitempty as in encoding/json; nil slices are [], nil maps {}).
// A nil Out is {}. Out may be a json.RawMessage, and may have a method Status() int, and
// Header(http.Header) to set headers. One with a method WriteJSON(io.Writer) error writes itself, piece by piece.
func Handle[In, Out any](f func(ctx context.Context, in *In) (*Out, error)) Handler {
	return Handler{
		input: planFor[In](),
		call: func(ctx context.Context, in any) (any, error) {
			out, err := f(ctx, in.(*In))
			if err != nil {
				return nil, err
			}
			if out == nil {
				return nil, nil
			}
			return out, nil
		},
	}
}

// Raw makes a Handler of a function that reads and writes HTTP itself: media, pages, streams.
// Parameters of the path are in r.PathValue, unescaped. An error that is returned before
// anything was written is rendered like any other.
func Raw(f func(w http.ResponseWriter, r *http.Request, c Caller) error) Handler {
	return Handler{raw: f}
}

// Planned makes the Handler of an operation that stands in the table but not yet in the code:
// it answers 404 M_UNRECOGNIZED, before authentication, as if the row were not there.
func Planned() Handler { return Handler{planned: true} }

// IsZero says that the Handler was never given.
func (h Handler) IsZero() bool { return !h.planned && h.call == nil && h.raw == nil }

// Planned says whether the row is not built yet.
func (r Route) Planned() bool { return r.Handler.planned }

// Operation is the row's name in logs and metrics: "c2s/sendMessage".
func (r Route) Operation() string {
	switch r.API {
	case ClientServer:
		return "c2s/" + r.ID
	case ServerServer:
		return "s2s/" + r.ID
	}
	return r.API + "/" + r.ID
}

type routeKey struct{}

// RouteOf gives the row that a request found: for an Authenticator that treats some
// operations differently (a locked user may still log out).
func RouteOf(ctx context.Context) (Route, bool) {
	r, ok := ctx.Value(routeKey{}).(*Route)
	if !ok {
		return Route{}, false
	}
	return *r, true
}

// DefaultTimeout is how long a request may take that is no long poll.
const DefaultTimeout = 90 * time.Second

// Alias gives a row further paths.
func Alias(paths ...string) func(*Route) {
	return func(r *Route) { r.Aliases = append(r.Aliases, paths...) }
}

// MaxBody bounds a row's body otherwise than DefaultMaxBody.
func MaxBody(bytes int64) func(*Route) { return func(r *Route) { r.MaxBody = bytes } }

// LongPoll lifts the time limit of a row.
func LongPoll() func(*Route) { return func(r *Route) { r.LongPoll = true } }

// AnsweredBy leaves a row to another one of the same method and path; its Handler is Handler{}.
func AnsweredBy(id string) func(*Route) { return func(r *Route) { r.AnsweredBy = id } }

// Row makes a row as the tables write it, one on a line.
func Row(api, id, method, path string, auth Auth, limit LimitClass, h Handler, more ...func(*Route)) Route {
	r := Route{API: api, ID: id, Method: method, Path: path, Auth: auth, Limit: limit, Handler: h}
	for _, set := range more {
		set(&r)
	}
	return r
}
