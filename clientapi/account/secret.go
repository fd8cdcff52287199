package account

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"time"

	"chancery"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// A nonce is good for this time. It names its own end and is sealed with the secret, so any
// process of the server knows it and nothing is kept; told twice it makes no second account.
const nonceLifetime = time.Minute

type NonceIn struct{}

type NonceOut struct {
	Nonce string `json:"nonce"`
}

// Nonce begins a registration by the shared secret.
func (a *API) Nonce(context.Context, *NonceIn) (*NonceOut, error) {
	if a.Config.Registration.SharedSecret == "" {
		return nil, chancery.Unrecognized()
	}
	head := make([]byte, 16)
	binary.BigEndian.PutUint64(head, uint64(time.Now().Add(nonceLifetime).UnixMilli()))
	_, _ = rand.Read(head[8:]) // never fails
	return &NonceOut{hex.EncodeToString(append(head, a.seal(head)...))}, nil
}

func (a *API) seal(head []byte) []byte {
	h := hmac.New(sha256.New, []byte(a.Config.Registration.SharedSecret))
	h.Write([]byte("nonce\x00"))
	h.Write(head)
	return h.Sum(nil)[:16]
}

func (a *API) goodNonce(nonce string) bool {
	b, err := hex.DecodeString(nonce)
	if err != nil || len(b) != 32 || !hmac.Equal(b[16:], a.seal(b[:16])) {
		return false
	}
	return time.Now().UnixMilli() < int64(binary.BigEndian.Uint64(b))
}

type SecretIn struct {
	Caller endpoint.Caller
	Body   struct {
		Nonce      string      `json:"nonce" required:"true"`
		Username   string      `json:"username" required:"true"`
		Password   string      `json:"password" required:"true"`
		Admin      bool        `json:"admin"`
		Name       string      `json:"displayname"`
		UserType   *string     `json:"user_type"`
		MAC        string      `json:"mac" required:"true"`
		DeviceID   id.DeviceID `json:"device_id"`
		DeviceName string      `json:"initial_device_display_name"`
		NoLogin    bool        `json:"inhibit_login"`
	} `body:"json"`
}

// maxName is how long the display name of a new account may be.
const maxName = 255

// RegisterBySecret makes an account for a tool that knows the shared secret, an
// administrator's too, whether registration is open or not.
func (a *API) RegisterBySecret(ctx context.Context, in *SecretIn) (*signedIn, error) {
	if a.Config.Registration.SharedSecret == "" {
		return nil, chancery.Unrecognized()
	}
	b := &in.Body
	if !a.goodNonce(b.Nonce) {
		return nil, chancery.InvalidParam("the nonce is not, or no longer, good")
	}
	if !a.goodMAC(in) {
		return nil, chancery.Forbidden("the mac is wrong")
	}
	if len(b.Name) > maxName {
		return nil, chancery.InvalidParam("the display name is longer than %d bytes", maxName)
	}
	var device *users.NewDevice
	if !b.NoLogin {
		device = &users.NewDevice{ID: b.DeviceID, Name: b.DeviceName, IP: in.Caller.IP, UserAgent: in.Caller.UserAgent}
	}
	tokens, err := a.Users.Create(ctx, users.NewAccount{Name: b.Username, Password: b.Password, Admin: b.Admin}, device)
	if err != nil {
		return nil, err
	}
	if b.Name != "" {
		name, err := json.Marshal(b.Name)
		if err != nil {
			return nil, err
		}
		if err := a.Users.SetProfileField(ctx, tokens.User, "displayname", name); err != nil {
			return nil, err
		}
	}
	return a.signedIn(tokens), nil
}

func (a *API) goodMAC(in *SecretIn) bool {
	role := "notadmin"
	if in.Body.Admin {
		role = "admin"
	}
	h := hmac.New(sha1.New, []byte(a.Config.Registration.SharedSecret))
	h.Write([]byte(in.Body.Nonce + "\x00" + in.Body.Username + "\x00" + in.Body.Password + "\x00" + role))
	if in.Body.UserType != nil {
		h.Write([]byte("\x00" + *in.Body.UserType))
	}
	got, err := hex.DecodeString(in.Body.MAC)
	return err == nil && hmac.Equal(got, h.Sum(nil))
}
