package clientapi

import (
	"context"

	"chancery"
	"chancery/config"
	"chancery/endpoint"
)

// specVersions are the versions of the spec whose client-server API we answer. Clients switch
// abilities on by them, so a version is added here when what it brings stands.
var specVersions = []string{"r0.6.1", "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
	"v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19"}

// unstableFeatures are abilities that clients look for by a flag; only what is true stands here.
var unstableFeatures = map[string]bool{
	"org.matrix.e2e_cross_signing": true, // Element shows its encryption settings only with it
}

type versionsIn struct{}

type versionsOut struct {
	Versions []string        `json:"versions"`
	Unstable map[string]bool `json:"unstable_features"`
}

// versions says which versions of the spec this server speaks.
//
// spec: c2s/getVersions
func (s *Server) versions(context.Context, *versionsIn) (*versionsOut, error) {
	return &versionsOut{Versions: specVersions, Unstable: unstableFeatures}, nil
}

// WellKnown are the rows by which clients find the server and its people. They need nothing but
// the configuration, and the key of the server as a policy server: both listeners answer them.
func WellKnown(cfg *config.Config, policyKey func() (key string, ok bool)) []endpoint.Route {
	w := wellKnown{cfg, policyKey}
	return []endpoint.Route{
		c2s("getWellknown", "GET", "/.well-known/matrix/client", none, unlimited, endpoint.Handle(w.client)),
		c2s("getWellknownSupport", "GET", "/.well-known/matrix/support", none, unlimited, endpoint.Handle(w.support)),
		c2s("getWellknownPolicy", "GET", "/.well-known/matrix/policy_server", none, unlimited, endpoint.Handle(w.policyServer)),
	}
}

type wellKnown struct {
	cfg       *config.Config
	policyKey func() (string, bool)
}

type wellKnownIn struct{}

type clientOut struct {
	Homeserver struct {
		BaseURL string `json:"base_url"`
	} `json:"m.homeserver"`
}

// spec: c2s/getWellknown
func (w wellKnown) client(context.Context, *wellKnownIn) (*clientOut, error) {
	var out clientOut
	out.Homeserver.BaseURL = w.cfg.ClientURL()
	if !w.cfg.WellKnown.Client || out.Homeserver.BaseURL == "" {
		return nil, chancery.NotFound("this server does not tell its address")
	}
	return &out, nil
}

// spec: c2s/getWellknownSupport
func (w wellKnown) support(context.Context, *wellKnownIn) (*config.Support, error) {
	support := w.cfg.WellKnown.Support
	if len(support.Contacts) == 0 && support.SupportPage == "" {
		return nil, chancery.NotFound("this server names nobody to ask")
	}
	return &support, nil
}

type policyIn struct{}

type policyOut struct {
	Keys struct {
		Ed25519 string `json:"ed25519"`
	} `json:"public_keys"`
}

// policyServer publishes the key of this server as a policy server.
//
// spec: c2s/getWellknownPolicy
func (w wellKnown) policyServer(context.Context, *policyIn) (*policyOut, error) {
	key, ok := w.policyKey()
	if !ok {
		return nil, chancery.NotFound("this server is no policy server")
	}
	var out policyOut
	out.Keys.Ed25519 = key
	return &out, nil
}
