package users

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"time"

	"chancery"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const (
	// An access token that can be refreshed is good for this time; others do not expire.
	accessLifetime = time.Hour
	// An expired access token is known for this time: its client may sign in again with its keys.
	expiredLifetime = 30 * 24 * time.Hour
	// spec: c2s/generateLoginToken
	loginLifetime  = 2 * time.Minute
	openIDLifetime = time.Hour
)

// newToken makes a token that nobody guesses. Its first letters say what it is to whoever
// finds it where it should not be.
func newToken(kind string) string {
	return kind + base64.RawURLEncoding.EncodeToString(random(32))
}

const (
	accessToken  = "cha_"
	refreshToken = "chr_"
	loginToken   = "chl_"
	openIDToken  = "cho_"
)

// hashToken is what is stored of a token. A token has 256 random bits, so a fast hash is enough.
func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// tokenNumber numbers a token by its hash.
func tokenNumber(hash string) int64 {
	b, err := hex.DecodeString(hash)
	if err != nil || len(b) < 8 {
		panic("users: a token's hash is no hash")
	}
	return int64(binary.BigEndian.Uint64(b)>>1) | 1
}

// Tokens are what a client gets when it signs in.
type Tokens struct {
	User    id.UserID
	Device  id.DeviceID
	Access  string
	Refresh string        // empty: the access token does not expire
	Expires time.Duration // 0: never
}

// issue makes the tokens of a device in tx. replaces is the hash of the refresh token they
// were given for, or "".
func issue(tx storage.Tx, t Tokens, replaces string) {
	row := storage.Token{Hash: hashToken(t.Access), User: string(t.User), Device: string(t.Device), Created: now(), Replaces: replaces}
	if t.Refresh != "" {
		row.Expires = row.Created + t.Expires.Milliseconds()
		tx.InsertRefreshToken(storage.Token{Hash: hashToken(t.Refresh), User: row.User, Device: row.Device, Created: row.Created, Replaces: replaces})
	}
	tx.InsertAccessToken(row)
}

func newTokens(user id.UserID, device id.DeviceID, refreshable bool) Tokens {
	t := Tokens{User: user, Device: device, Access: newToken(accessToken)}
	if refreshable {
		t.Refresh, t.Expires = newToken(refreshToken), accessLifetime
	}
	return t
}

// Refresh gives new tokens for a refresh token. That one stays good until one of the new ones
// is used, for the answer may never reach the client.
//
// spec: c2s#refreshing-access-tokens
func (s *Server) Refresh(ctx context.Context, token string) (Tokens, error) {
	hash := hashToken(token)
	var row storage.Token
	var ok bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		row, ok, err = tx.RefreshToken(hash)
		return err
	})
	if err != nil {
		return Tokens{}, err
	}
	if !ok {
		return Tokens{}, chancery.UnknownToken(false)
	}
	user := id.UserID(row.User)
	tokens := newTokens(user, id.DeviceID(row.Device), true)
	err = s.change(ctx, user, func(tx storage.Tx) error {
		// Read again: it may have been used or ended meanwhile.
		row, ok, err := tx.RefreshToken(hash)
		if err != nil {
			return err
		}
		if !ok {
			return chancery.UnknownToken(false)
		}
		if row.Replaces != "" {
			tx.Supersede(row.User, row.Device, row.Replaces)
		}
		tx.DropSuccessors(hash)
		issue(tx, tokens, hash)
		return nil
	})
	if err != nil {
		return Tokens{}, err
	}
	return tokens, nil
}

// supersede ends what an access token was given for, when that access token is first used.
func (s *Server) supersede(ctx context.Context, row storage.Token) error {
	return s.change(ctx, id.UserID(row.User), func(tx storage.Tx) error {
		_, ok, err := tx.Session(row.Hash)
		if err != nil {
			return err
		}
		if !ok {
			return chancery.UnknownToken(false)
		}
		tx.Supersede(row.User, row.Device, row.Replaces)
		return nil
	})
}

// LoginToken makes a token by which another device of the user may sign in once.
//
// spec: c2s/generateLoginToken
func (s *Server) LoginToken(ctx context.Context, user id.UserID) (token string, good time.Duration, err error) {
	token = newToken(loginToken)
	expires := now() + loginLifetime.Milliseconds()
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		tx.InsertLoginToken(hashToken(token), string(user), expires)
		return nil
	})
	return token, loginLifetime, err
}

// OpenIDToken makes a token by which the user can prove to a third party who they are.
//
// spec: c2s/requestOpenIdToken
func (s *Server) OpenIDToken(ctx context.Context, user id.UserID) (token string, good time.Duration, err error) {
	token = newToken(openIDToken)
	expires := now() + openIDLifetime.Milliseconds()
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		tx.InsertOpenIDToken(hashToken(token), string(user), expires)
		return nil
	})
	return token, openIDLifetime, err
}

// OpenIDUser says whose an OpenID token is; ok is false when it is not, or no longer, good.
//
// spec: s2s/exchangeOpenIdToken
func (s *Server) OpenIDUser(ctx context.Context, token string) (user id.UserID, ok bool, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		name, found, err := tx.OpenIDUser(hashToken(token), now())
		user, ok = id.UserID(name), found
		return err
	})
	return user, ok, err
}

// Logout ends the session of a device, and the device with it.
//
// spec: c2s/logout
func (s *Server) Logout(ctx context.Context, user id.UserID, device id.DeviceID) error {
	return s.DeleteDevices(ctx, user, []id.DeviceID{device})
}

// LogoutAll ends every session of a user.
//
// spec: c2s/logout_all
func (s *Server) LogoutAll(ctx context.Context, user id.UserID) error {
	err := s.change(ctx, user, func(tx storage.Tx) error {
		tx.DeleteTokensOfOthers(string(user), "")
		return nil
	})
	if err != nil {
		return err
	}
	return s.deleteOtherDevices(ctx, user, "")
}
