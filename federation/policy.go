package federation

import (
	"context"
	"encoding/json"
)

type policySignIn struct {
	Origin string          `origin:""`
	Event  json.RawMessage `body:"json"`
}

// policySign recommends an event, where this server is the policy server of its room.
//
// spec: s2s/askPolicyServerToSign
func (s *Server) policySign(ctx context.Context, in *policySignIn) (*map[string]map[string]string, error) {
	signatures, err := s.Rooms.Recommend(ctx, in.Origin, in.Event)
	if err != nil {
		return nil, err
	}
	return &signatures, nil
}
