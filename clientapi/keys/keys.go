// Package keys is the part of the client-server API for end-to-end encryption: keys of devices
// and people, to-device messages, backups of room keys. What the server keeps and tells of them is
// known to users; what they encrypt is known to clients alone.
package keys

import (
	"context"
	"encoding/json"
	"time"

	"chancery"
	"chancery/clientapi/uia"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about keys.
type API struct {
	DB    *storage.DB
	Users *users.Server
	UIA   *uia.Sessions
}

type None struct{}

type UploadIn struct {
	Caller endpoint.Caller
	Body   users.KeyUpload `body:"json"`
}

type UploadOut struct {
	Counts map[string]int64 `json:"one_time_key_counts"`
}

// Upload publishes keys of the caller's device.
//
// spec: c2s/uploadKeys
func (a *API) Upload(ctx context.Context, in *UploadIn) (*UploadOut, error) {
	counts, err := a.Users.UploadKeys(ctx, in.Caller.User, in.Caller.Device, in.Body)
	if err != nil {
		return nil, err
	}
	return &UploadOut{counts}, nil
}

type QueryIn struct {
	Caller endpoint.Caller
	Body   struct {
		Timeout int64          `json:"timeout"`
		Devices users.KeyQuery `json:"device_keys" required:"true"`
	} `body:"json"`
}

// Query gives the keys of users' devices.
//
// spec: c2s/queryKeys
func (a *API) Query(ctx context.Context, in *QueryIn) (*users.Keys, error) {
	for user := range in.Body.Devices {
		if err := checkUser(user); err != nil {
			return nil, err
		}
	}
	return a.Users.QueryKeys(ctx, in.Caller.User, in.Body.Devices, milliseconds(in.Body.Timeout))
}

func checkUser(user id.UserID) error {
	if _, _, err := user.Parse(); err != nil {
		return chancery.InvalidParam("%q is no user ID", user)
	}
	return nil
}

func milliseconds(ms int64) time.Duration {
	return time.Duration(min(max(ms, 0), 3_600_000)) * time.Millisecond
}

type ClaimIn struct {
	Body struct {
		Timeout int64           `json:"timeout"`
		Claims  users.KeyClaims `json:"one_time_keys" required:"true"`
	} `body:"json"`
}

type ClaimOut struct {
	Failures map[string]users.Failure `json:"failures"`
	Keys     peer.OneTimeKeys         `json:"one_time_keys"`
}

// Claim takes one-time keys of others' devices.
//
// spec: c2s/claimKeys
func (a *API) Claim(ctx context.Context, in *ClaimIn) (*ClaimOut, error) {
	for user := range in.Body.Claims {
		if err := checkUser(user); err != nil {
			return nil, err
		}
	}
	keys, failures, err := a.Users.ClaimKeys(ctx, in.Body.Claims, milliseconds(in.Body.Timeout))
	if err != nil {
		return nil, err
	}
	return &ClaimOut{failures, keys}, nil
}

type SigningIn struct {
	Caller endpoint.Caller
	Body   struct {
		users.CrossSigningUpload
		Auth json.RawMessage `json:"auth"`
	} `body:"json"`
}

// UploadSigning publishes the caller's cross-signing keys. Keys that replace others, or join
// them, are confirmed by the user.
//
// spec: c2s/uploadCrossSigningKeys
func (a *API) UploadSigning(ctx context.Context, in *SigningIn) (*None, error) {
	change, err := a.Users.CheckCrossSigning(ctx, in.Caller.User, in.Body.CrossSigningUpload)
	if err != nil {
		return nil, err
	}
	if change.Confirm && in.Caller.AppService == "" {
		err := a.UIA.Check(ctx, uia.Request{
			Caller: in.Caller, Operation: "uploadCrossSigningKeys", Auth: in.Body.Auth, Flows: uia.ByPassword,
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, a.Users.MakeCrossSigning(ctx, change)
}

type SignaturesIn struct {
	Caller endpoint.Caller
	Body   users.SignedKeys `body:"json"`
}

type SignaturesOut struct {
	Failures map[id.UserID]map[string]users.Failure `json:"failures"`
}

// UploadSignatures publishes the caller's signatures on keys.
//
// spec: c2s/uploadCrossSigningSignatures
func (a *API) UploadSignatures(ctx context.Context, in *SignaturesIn) (*SignaturesOut, error) {
	for user := range in.Body {
		if err := checkUser(user); err != nil {
			return nil, err
		}
	}
	failures, err := a.Users.UploadSignatures(ctx, in.Caller.User, in.Body)
	if err != nil {
		return nil, err
	}
	return &SignaturesOut{failures}, nil
}

type SendIn struct {
	Caller endpoint.Caller
	Type   string `path:"eventType"`
	TxnID  string `path:"txnId"`
	Body   struct {
		Messages users.Messages `json:"messages" required:"true"`
	} `body:"json"`
}

// Send sends messages to devices.
//
// spec: c2s/sendToDevice
func (a *API) Send(ctx context.Context, in *SendIn) (*None, error) {
	return nil, a.Users.SendToDevice(ctx, in.Caller.User, in.Caller.Device, in.Type, in.TxnID, in.Body.Messages)
}
