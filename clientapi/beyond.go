package clientapi

import "chancery/endpoint"

// adminAPI is the Route.API of what tools expect beyond the specification.
const adminAPI = "admin"

// beyondSpec are the rows that no specification has; tools know them by these names.
func (s *Server) beyondSpec() []endpoint.Route {
	return []endpoint.Route{
		endpoint.Row(adminAPI, "registrationNonce", "GET", "/_synapse/admin/v1/register", none, limitRegister, endpoint.Handle(s.account.Nonce)),
		endpoint.Row(adminAPI, "registerBySecret", "POST", "/_synapse/admin/v1/register", none, limitRegister, endpoint.Handle(s.account.RegisterBySecret)),
	}
}
