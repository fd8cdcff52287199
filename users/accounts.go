package users

import (
	"context"
	"net/http"
	"strings"

	"chancery"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// NewAccount is an account to be made.
type NewAccount struct {
	Name     string // as the person wrote it; empty: we choose one
	Password string
	Admin    bool
	Guest    bool // the name and the password are not looked at
}

// UserID says what the user ID of a name would be, or why there can be none. Capitals become
// small letters, as people write names.
//
// spec: appendices#user-identifiers
func (s *Server) UserID(name string) (id.UserID, error) {
	localpart := lower(name)
	if localpart == "" {
		return "", invalidName("the user name is empty")
	}
	for _, c := range []byte(localpart) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._=-/+", c) >= 0) {
			return "", invalidName("a user name has only the characters a-z, 0-9, '.', '_', '=', '-', '/' and '+'")
		}
	}
	// User IDs that begin so are for bridges and bots.
	if localpart[0] == '_' {
		return "", invalidName("a user name does not begin with '_'")
	}
	user := id.NewUserID(localpart, s.ServerName)
	if len(user) > 255 {
		return "", invalidName("the user name is too long")
	}
	return user, nil
}

func invalidName(text string) error {
	return chancery.Errorf(http.StatusBadRequest, chancery.CodeInvalidUsername, "%s", text)
}

func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

var errInUse = chancery.Errorf(http.StatusBadRequest, chancery.CodeUserInUse, "there is already a user of this name")

// Available says whether an account of a name can be made, by an error when not.
//
// spec: c2s/checkUsernameAvailability
func (s *Server) Available(ctx context.Context, name string) error {
	user, err := s.UserID(name)
	if err != nil {
		return err
	}
	_, ok, err := s.Account(ctx, user)
	if err == nil && ok {
		err = errInUse
	}
	return err
}

// Account finds the account of one of our users.
func (s *Server) Account(ctx context.Context, user id.UserID) (v storage.Account, ok bool, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		v, ok, err = tx.Account(string(user))
		return err
	})
	return v, ok, err
}

// Create makes an account and, when device is not nil, signs it in.
//
// spec: c2s/register
func (s *Server) Create(ctx context.Context, a NewAccount, device *NewDevice) (Tokens, error) {
	row := storage.Account{Created: now(), Admin: a.Admin, Guest: a.Guest}
	user, err := s.nameFor(a)
	if err != nil {
		return Tokens{}, err
	}
	if !a.Guest {
		if err := checkPassword(a.Password); err != nil {
			return Tokens{}, err
		}
		if row.Password, err = s.passwords.hash(ctx, a.Password); err != nil {
			return Tokens{}, err
		}
	}
	row.User = string(user)
	tokens := Tokens{User: user}
	if device != nil {
		if err := device.check(); err != nil {
			return Tokens{}, err
		}
		tokens = s.tokensFor(user, *device)
	}
	err = s.DB.Write(ctx, []string{row.User}, func(tx storage.Tx) error {
		made, err := tx.InsertAccount(row)
		if err != nil {
			return err
		}
		if !made {
			return errInUse
		}
		if device != nil {
			return openDevice(tx, user, *device, tokens)
		}
		return nil
	})
	if err != nil {
		return Tokens{}, err
	}
	s.Log.Info("account made", zap.Stringer("user", user), zap.Bool("admin", a.Admin), zap.Bool("guest", a.Guest))
	return tokens, nil
}

func (s *Server) nameFor(a NewAccount) (id.UserID, error) {
	switch {
	case a.Guest:
		return s.UserID("guest-" + lower(string(newDeviceID())))
	case a.Name == "":
		return s.UserID(lower(string(newDeviceID())))
	}
	return s.UserID(a.Name)
}

func (s *Server) tokensFor(user id.UserID, d NewDevice) Tokens {
	if d.ID == "" {
		d.ID = newDeviceID()
	}
	return newTokens(user, d.ID, d.Refreshable)
}

// LocalUser reads a user ID or a localpart of ours as people sign in with it.
func (s *Server) LocalUser(name string) (user id.UserID, ok bool) {
	if strings.HasPrefix(name, "@") {
		localpart, server, err := id.UserID(name).Parse()
		if err != nil || server != s.ServerName {
			return "", false
		}
		name = localpart
	}
	if name == "" || len(name) > 255 {
		return "", false
	}
	return id.NewUserID(lower(name), s.ServerName), true
}

var errWrongPassword = chancery.Forbidden("wrong user name or password")

// CheckPassword says whether a password is the user's, by a M_FORBIDDEN when not. It takes
// the same time for users who are not there.
func (s *Server) CheckPassword(ctx context.Context, user id.UserID, password string) error {
	if err := s.attempts.take(string(user)); err != nil {
		return err
	}
	row, _, err := s.Account(ctx, user)
	if err != nil {
		return err
	}
	right, dated, err := s.passwords.check(ctx, row.Password, password)
	if err != nil {
		return err
	}
	if !right {
		return errWrongPassword
	}
	s.attempts.giveBack(string(user))
	if dated {
		s.rehash(ctx, row, password)
	}
	return nil
}

// rehash keeps a password at today's cost. It is only an improvement: a failure is no fault of the caller.
func (s *Server) rehash(ctx context.Context, row storage.Account, password string) {
	fresh, err := s.passwords.hash(ctx, password)
	if err == nil {
		err = s.DB.Write(ctx, []string{row.User}, func(tx storage.Tx) error {
			current, ok, err := tx.Account(row.User)
			if err != nil || !ok || current.Password != row.Password {
				return err
			}
			current.Password = fresh
			tx.UpdateAccount(current)
			return nil
		})
	}
	if err != nil {
		s.Log.Warn("keeping a password at today's cost failed", zap.String("user", row.User), zap.Error(err))
	}
}

// SignIn opens a device for a user who has proved who they are.
//
// spec: c2s/login
func (s *Server) SignIn(ctx context.Context, user id.UserID, d NewDevice) (Tokens, error) {
	if err := d.check(); err != nil {
		return Tokens{}, err
	}
	tokens := s.tokensFor(user, d)
	err := s.change(ctx, user, func(tx storage.Tx) error {
		return s.signIn(tx, user, d, tokens)
	})
	if err != nil {
		return Tokens{}, err
	}
	return tokens, nil
}

func (s *Server) signIn(tx storage.Tx, user id.UserID, d NewDevice, tokens Tokens) error {
	row, ok, err := tx.Account(string(user))
	switch {
	case err != nil:
		return err
	case !ok:
		return errWrongPassword
	case row.Deactivated:
		return errDeactivated
	case row.Locked:
		return errLocked
	}
	if d.ID != "" {
		keys, err := tx.CrossSigningKeys([]string{row.User})
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.Public == string(d.ID) {
				return chancery.Forbidden("this device ID is the ID of a cross-signing key")
			}
		}
	}
	return openDevice(tx, user, d, tokens)
}

var (
	errDeactivated = chancery.Errorf(http.StatusForbidden, chancery.CodeUserDeactivated, "this account is deactivated")
	// spec: c2s#account-locking
	errLocked = chancery.Errorf(http.StatusUnauthorized, chancery.CodeUserLocked, "this account is locked").With("soft_logout", true)
)

// SignInByToken opens a device for whoever has a login token, and uses it up.
//
// spec: c2s#legacy-login
func (s *Server) SignInByToken(ctx context.Context, token string, d NewDevice) (Tokens, error) {
	if err := d.check(); err != nil {
		return Tokens{}, err
	}
	hash := hashToken(token)
	var tokens Tokens
	err := s.DB.Write(ctx, []string{"login_token " + hash}, func(tx storage.Tx) error {
		name, ok, err := tx.TakeLoginToken(hash, now())
		if err != nil {
			return err
		}
		if !ok {
			return chancery.Forbidden("the login token is not, or no longer, good")
		}
		tokens = s.tokensFor(id.UserID(name), d)
		accountChanged(tx, tokens.User)
		return s.signIn(tx, tokens.User, d, tokens)
	})
	if err != nil {
		return Tokens{}, err
	}
	s.sessions.forget(string(tokens.User))
	return tokens, nil
}

// SetPassword gives a user another password. But for the device keep, all their devices are
// removed when logout says so.
//
// spec: c2s/changePassword
func (s *Server) SetPassword(ctx context.Context, user id.UserID, password string, logout bool, keep id.DeviceID) error {
	if err := checkPassword(password); err != nil {
		return err
	}
	hash, err := s.passwords.hash(ctx, password)
	if err != nil {
		return err
	}
	err = s.changeAccount(ctx, user, func(tx storage.Tx, row *storage.Account) error {
		row.Password = hash
		// A token that was made under the old password opens a device as well as it.
		tx.DeleteShortTokens(row.User)
		if logout {
			tx.DeleteTokensOfOthers(row.User, string(keep))
		}
		return nil
	})
	if err != nil || !logout {
		return err
	}
	if err := s.deleteOtherDevices(ctx, user, keep); err != nil {
		// The password is another and the sessions are over: that is no failure to tell.
		s.Log.Warn("a user's other devices are not all removed", zap.Stringer("user", user), zap.Error(err))
	}
	return nil
}

// Deactivate ends an account: nobody can sign in again and its name is never given again.
// The user leaves their rooms soon after, see Options.OnDeactivate.
//
// spec: c2s/deactivateAccount
func (s *Server) Deactivate(ctx context.Context, user id.UserID, erase bool) error {
	err := s.changeAccount(ctx, user, func(tx storage.Tx, row *storage.Account) error {
		row.Password = ""
		row.Deactivated, row.Leaving = true, true
		row.Erased = row.Erased || erase
		tx.DeleteShortTokens(row.User)
		if erase {
			tx.EraseAccount(row.User)
		}
		tx.DeleteTokensOfOthers(row.User, "")
		return nil
	})
	if err != nil {
		return err
	}
	s.Log.Info("account deactivated", zap.Stringer("user", user), zap.Bool("erase", erase))
	if err := s.deleteOtherDevices(ctx, user, ""); err != nil {
		s.Log.Warn("a deactivated user's devices are not all removed yet", zap.Stringer("user", user), zap.Error(err)) // Run will
	}
	select {
	case s.leave <- struct{}{}:
	default: // it is to look anyway
	}
	return nil
}

// SetLocked locks an account, or opens it: its sessions stay and can do nothing.
//
// spec: c2s#account-locking
func (s *Server) SetLocked(ctx context.Context, user id.UserID, locked bool) error {
	return s.changeAccount(ctx, user, func(_ storage.Tx, row *storage.Account) error {
		row.Locked = locked
		return nil
	})
}

// SetSuspended suspends an account, or ends that: it can read and hardly write.
//
// spec: c2s#account-suspension
func (s *Server) SetSuspended(ctx context.Context, user id.UserID, suspended bool) error {
	return s.changeAccount(ctx, user, func(_ storage.Tx, row *storage.Account) error {
		row.Suspended = suspended
		return nil
	})
}

func (s *Server) changeAccount(ctx context.Context, user id.UserID, fn func(storage.Tx, *storage.Account) error) error {
	return s.change(ctx, user, func(tx storage.Tx) error {
		row, ok, err := tx.Account(string(user))
		if err != nil {
			return err
		}
		if !ok || row.Deactivated {
			return chancery.NotFound("there is no such user")
		}
		if err := fn(tx, &row); err != nil {
			return err
		}
		tx.UpdateAccount(row)
		return nil
	})
}
