package federation

import (
	"context"

	"chancery"
	"chancery/config"
	"chancery/endpoint"
)

// WellKnown is the row by which other servers find this one. It needs nothing but the
// configuration: both listeners answer it.
func WellKnown(cfg *config.Config) []endpoint.Route {
	return []endpoint.Route{
		s2s("getWellKnown", "GET", "/.well-known/matrix/server", none, endpoint.Unlimited, endpoint.Handle(wellKnown{cfg}.server)),
	}
}

type wellKnown struct{ cfg *config.Config }

type wellKnownIn struct{}

type wellKnownOut struct {
	Server string `json:"m.server"`
}

// spec: s2s/getWellKnown
func (w wellKnown) server(context.Context, *wellKnownIn) (*wellKnownOut, error) {
	if w.cfg.WellKnown.Server == "" {
		return nil, chancery.NotFound("this server is found without a well-known file")
	}
	return &wellKnownOut{Server: w.cfg.WellKnown.Server}, nil
}
