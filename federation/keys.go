package federation

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"chancery"
)

type nothingIn struct{}

type versionOut struct {
	Server versionServer `json:"server"`
}

type versionServer struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// spec: s2s/getVersion
func (s *Server) version(context.Context, *nothingIn) (*versionOut, error) {
	release := s.Release
	if release == "" {
		release = "development"
	}
	return &versionOut{versionServer{"Chancery", release}}, nil
}

// serverKeys are the keys that we sign with.
//
// spec: s2s/getServerKey
func (s *Server) serverKeys(context.Context, *nothingIn) (*json.RawMessage, error) {
	keys, err := s.Keys.ServerKeys(time.Now())
	return &keys, err
}

type keysQueryIn struct {
	Server string `path:"serverName"`
	Until  int64  `query:"minimum_valid_until_ts"`
}

type keysQueryOut struct {
	Keys []json.RawMessage `json:"server_keys"`
}

// keysQuery tells the keys of another server, as its notary.
//
// spec: s2s/perspectivesKeyQuery
func (s *Server) keysQuery(ctx context.Context, in *keysQueryIn) (*keysQueryOut, error) {
	return s.notarise(ctx, map[string]int64{in.Server: in.Until})
}

type keysBatchIn struct {
	Body struct {
		Servers map[string]map[string]struct {
			Until int64 `json:"minimum_valid_until_ts"`
		} `json:"server_keys" required:"true"`
	} `body:"json"`
}

// maxNotarised bounds the servers that one request makes us ask.
const maxNotarised = 100

// spec: s2s/bulkPerspectivesKeyQuery
func (s *Server) keysBatch(ctx context.Context, in *keysBatchIn) (*keysQueryOut, error) {
	if len(in.Body.Servers) > maxNotarised {
		return nil, chancery.InvalidParam("at most %d servers can be asked for at once", maxNotarised)
	}
	wanted := make(map[string]int64, len(in.Body.Servers))
	for server, keys := range in.Body.Servers {
		wanted[server] = 0
		for _, k := range keys {
			wanted[server] = max(wanted[server], k.Until)
		}
	}
	return s.notarise(ctx, wanted)
}

// notarise gathers key lists side by side; a server without one is left out.
func (s *Server) notarise(ctx context.Context, servers map[string]int64) (*keysQueryOut, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var mu sync.Mutex // guards out
	out := &keysQueryOut{Keys: []json.RawMessage{}}
	slots := make(chan struct{}, 8)
	var all sync.WaitGroup
	for server, until := range servers {
		slots <- struct{}{}
		if ctx.Err() != nil { // no more are asked than can be told of
			break
		}
		all.Go(func() {
			defer func() { <-slots }()
			at := time.Now()
			if until > 0 {
				at = time.UnixMilli(until)
			}
			var list json.RawMessage
			err := guarded(s.Log, "vouch for keys", func() (err error) {
				list, err = s.Ring.Published(ctx, server, at)
				return err
			})
			if err != nil || len(list) == 0 {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out.Keys = append(out.Keys, list)
		})
	}
	all.Wait()
	return out, nil
}
