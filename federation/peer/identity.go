package peer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"maunium.net/go/mautrix/id"

	"chancery"
)

// Identity servers know which address belongs to which user. They are no homeservers: they are asked where a
// client says, over HTTPS, through the guard, and with the client's own token.
//
// spec: is#association-lookup
const (
	identityTimeout = 10 * time.Second
	identityBytes   = 256 << 10
)

// Contact is an address by which somebody may be found.
type Contact struct {
	Server  string // the identity server
	Token   string // the client's for it
	Medium  string
	Address string
}

// LookUp asks an identity server whose an address is; empty when it does not know.
//
// spec: is/getHashDetails, is/lookupUsersV2
func (c *Client) LookUp(ctx context.Context, of Contact) (id.UserID, error) {
	var details struct {
		Pepper     string   `json:"lookup_pepper"`
		Algorithms []string `json:"algorithms"`
	}
	if err := c.askIdentity(ctx, of, "GET", "hash_details", nil, &details); err != nil {
		return "", err
	}
	if !slices.Contains(details.Algorithms, "sha256") {
		return "", unreachable(of.Server, errors.New("the identity server wants addresses in the clear"))
	}
	address := of.Address
	if of.Medium == "email" {
		address = strings.ToLower(address) // spec: is#security-considerations
	}
	sum := sha256.Sum256([]byte(address + " " + of.Medium + " " + details.Pepper))
	hash := base64.RawURLEncoding.EncodeToString(sum[:])
	var found struct {
		Mappings map[string]id.UserID `json:"mappings"`
	}
	err := c.askIdentity(ctx, of, "POST", "lookup", map[string]any{"addresses": []string{hash}, "algorithm": "sha256", "pepper": details.Pepper}, &found)
	return found.Mappings[hash], err
}

// InviteKey is a key that an identity server may sign the answer to an invite with.
type InviteKey struct {
	Key string `json:"public_key"`
	URL string `json:"key_validity_url,omitempty"`
}

// StoredInvite is an invite that an identity server keeps until somebody proves to own the address.
type StoredInvite struct {
	Token       string      `json:"token"`
	Keys        []InviteKey `json:"public_keys"`
	DisplayName string      `json:"display_name"`
}

// StoreInvite has an identity server keep an invite, and tell whom it is for. about says what it may show them.
//
// spec: is/storeInviteV2
func (c *Client) StoreInvite(ctx context.Context, to Contact, room id.RoomID, sender id.UserID, about map[string]string) (*StoredInvite, error) {
	body := map[string]any{"medium": to.Medium, "address": to.Address, "room_id": room, "sender": sender}
	for k, v := range about {
		if v != "" {
			body[k] = v
		}
	}
	out := &StoredInvite{}
	if err := c.askIdentity(ctx, to, "POST", "store-invite", body, out); err != nil {
		return nil, err
	}
	if out.Token == "" || len(out.Token) > 255 || len(out.Keys) == 0 || len(out.Keys) > 10 {
		return nil, unreachable(to.Server, errors.New("the answer holds no token and keys"))
	}
	return out, nil
}

// KeyIsValid asks where a key names whether it still is.
//
// spec: is/isPubKeyValidV2, c2s#third-party-invites
func (c *Client) KeyIsValid(ctx context.Context, validity, key string) (bool, error) {
	target, err := url.Parse(validity)
	if err != nil || target.Scheme != "https" || target.Host == "" {
		return false, unreachable(validity, errors.New("that is no address to ask whether a key is valid"))
	}
	query := target.Query()
	query.Set("public_key", key)
	target.RawQuery = query.Encode()
	var out struct {
		Valid bool `json:"valid"`
	}
	err = c.askPlain(ctx, target.Host, "GET", target.String(), "", nil, &out)
	return out.Valid, err
}

func (c *Client) askIdentity(ctx context.Context, of Contact, method, endpoint string, body, out any) error {
	if !ValidServerName(of.Server) {
		return &Error{Destination: of.Server, visible: chancery.InvalidParam("%.100q is no name of an identity server", of.Server)}
	}
	return c.askPlain(ctx, of.Server, method, "https://"+of.Server+"/_matrix/identity/v2/"+endpoint, of.Token, body, out)
}

func (c *Client) askPlain(ctx context.Context, server, method, target, token string, body, out any) error {
	ctx, cancel := context.WithTimeout(ctx, identityTimeout)
	defer cancel()
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode the request: %w", err)
		}
		reader = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, reader)
	if err != nil {
		return unreachable(server, err)
	}
	req.Header.Set("User-Agent", c.agent)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := c.plain.Do(req)
	if err != nil {
		return unreachable(server, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return refusal(server, res)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, identityBytes+1))
	if err == nil && len(text) > identityBytes {
		err = ErrAnswerTooLarge
	}
	if err == nil {
		err = Decode(text, out)
	}
	if err != nil {
		return unreachable(server, err)
	}
	return nil
}

// ExchangeThirdPartyInvite asks the server of whoever invited by an address for a proper invite of a user who has
// proved that it is theirs.
//
// spec: s2s/exchangeThirdPartyInvite
func (c *Client) ExchangeThirdPartyInvite(ctx context.Context, destination string, room id.RoomID, event json.RawMessage) error {
	return c.Do(ctx, destination, "PUT", at(v1, "exchange_third_party_invite", string(room)), event, nil, Opts{})
}
