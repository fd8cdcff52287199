package federation

import (
	"context"
	"net/http"

	"chancery/endpoint"
	"chancery/federation/peer"
)

// Authenticator knows which server made a request by the signature over it.
type Authenticator struct{ Keys *peer.KeyRing }

// Authenticate checks the request's signature, which covers its body.
//
// spec: s2s#request-authentication
func (a Authenticator) Authenticate(ctx context.Context, r *http.Request, body []byte) (endpoint.Caller, error) {
	origin, err := a.Keys.VerifyRequest(ctx, peer.Request{
		Method: r.Method, URI: r.RequestURI, Body: body, Authorization: r.Header.Values("Authorization"),
	})
	if err != nil {
		return endpoint.Caller{}, err
	}
	return endpoint.Caller{Origin: origin}, nil
}
