package users

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

const (
	maxProfile    = 64 << 10 // spec: c2s/setProfileField (M_PROFILE_TOO_LARGE)
	maxProfileKey = 255      // spec: c2s/setProfileField (M_KEY_TOO_LARGE)
)

// Profile gives the profile of one of our users.
//
// spec: c2s/getUserProfile, s2s/queryProfile
func (s *Server) Profile(ctx context.Context, user id.UserID) (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		account, ok, err := tx.Account(string(user))
		if err != nil {
			return err
		}
		if !ok || account.Deactivated {
			return chancery.NotFound("there is no such user")
		}
		row, ok, err := tx.Profile(string(user))
		if err == nil && ok {
			err = json.Unmarshal(row.Fields, &fields)
		}
		return err
	})
	return fields, err
}

// ProfileOf gives the profile of any user, or one field of it when key is not empty: that of a user of
// another server is asked there.
//
// spec: c2s/getUserProfile, c2s/getProfileField
func (s *Server) ProfileOf(ctx context.Context, user id.UserID, key string) (map[string]json.RawMessage, error) {
	var fields map[string]json.RawMessage
	var err error
	switch {
	case s.IsLocal(user):
		fields, err = s.Profile(ctx, user)
	case s.Peer == nil:
		err = chancery.NotFound("there is no such user")
	default:
		fields, err = s.Peer.QueryProfile(ctx, user.Homeserver(), user, key)
		fields = wellFormed(fields)
	}
	if err != nil || key == "" {
		return fields, err
	}
	value, ok := fields[key]
	if !ok {
		return nil, chancery.NotFound("the profile has no such field")
	}
	return map[string]json.RawMessage{key: value}, nil
}

// wellFormed leaves out what a peer must not put into the fields that the specification gives a type.
func wellFormed(fields map[string]json.RawMessage) map[string]json.RawMessage {
	for _, key := range []string{"displayname", "avatar_url", "m.tz"} {
		if value, ok := fields[key]; ok && (len(value) == 0 || value[0] != '"') {
			delete(fields, key)
		}
	}
	if fields == nil {
		return map[string]json.RawMessage{}
	}
	return fields
}

// MemberProfile is what the member events of one of our users say of them.
//
// spec: c2s#events-on-change-of-profile-information
func (s *Server) MemberProfile(ctx context.Context, user id.UserID) (displayname, avatarURL string, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		row, _, err := tx.Profile(string(user))
		displayname, avatarURL = row.DisplayName, row.AvatarURL
		return err
	})
	return displayname, avatarURL, err
}

// SetProfileField changes one field of a profile; a nil value removes it. Rooms are told soon after, where
// the field stands in member events.
//
// spec: c2s/setProfileField, c2s/deleteProfileField
func (s *Server) SetProfileField(ctx context.Context, user id.UserID, key string, value json.RawMessage) error {
	if err := checkProfileField(key, value); err != nil {
		return err
	}
	spreads := false
	err := s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		row, fields, err := profileForChange(tx, user)
		if err != nil {
			return err
		}
		was := row
		if value == nil {
			delete(fields, key)
		} else {
			fields[key] = value
		}
		if row.Fields, err = json.Marshal(fields); err != nil {
			return err
		}
		if value != nil && len(row.Fields) > maxProfile {
			return chancery.Errorf(http.StatusBadRequest, chancery.CodeProfileTooLarge, "a profile has at most 64 KiB")
		}
		if string(row.Fields) == string(was.Fields) {
			return nil
		}
		row.DisplayName, row.AvatarURL = text(fields["displayname"]), text(fields["avatar_url"])
		row.Folded = foldName(user, row.DisplayName)
		spreads = row.DisplayName != was.DisplayName || row.AvatarURL != was.AvatarURL
		if spreads {
			row.Spreading = max(was.Spreading+1, now())
		}
		tx.SetProfile(row)
		tx.Announce(storage.Fact{Kind: sql.FactProfile, User: string(user)})
		return nil
	})
	if err == nil && spreads {
		s.spreadSoon()
	}
	return err
}

func profileForChange(tx storage.Tx, user id.UserID) (storage.Profile, map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	account, ok, err := tx.Account(string(user))
	if err != nil {
		return storage.Profile{}, nil, err
	}
	if !ok || account.Deactivated {
		return storage.Profile{}, nil, chancery.NotFound("there is no such user")
	}
	row, ok, err := tx.Profile(string(user))
	if err == nil && ok {
		err = json.Unmarshal(row.Fields, &fields)
	}
	row.User = string(user)
	return row, fields, err
}

// checkProfileField knows which keys there may be and what those of the specification hold.
//
// spec: appendices#common-namespaced-identifier-grammar
func checkProfileField(key string, value json.RawMessage) error {
	if len(key) > maxProfileKey {
		return chancery.Errorf(http.StatusBadRequest, chancery.CodeKeyTooLarge, "the name of a profile field has at most 255 bytes")
	}
	switch key {
	case "displayname", "avatar_url", "m.tz":
		if value == nil {
			return nil
		}
		var v string
		if json.Unmarshal(value, &v) != nil || value[0] != '"' {
			return chancery.InvalidParam("%s must be a string", key)
		}
		if len(v) > maxMemberText {
			return chancery.InvalidParam("%s is too long", key)
		}
		if key == "avatar_url" && v != "" && !strings.HasPrefix(v, "mxc://") {
			return chancery.InvalidParam("avatar_url must be an mxc:// URI")
		}
		return nil
	}
	if !namespaced(key) {
		return chancery.InvalidParam("there can be no profile field of that name")
	}
	if len(value) > maxProfile {
		return chancery.Errorf(http.StatusBadRequest, chancery.CodeProfileTooLarge, "a profile has at most 64 KiB")
	}
	return nil
}

// Display names and avatars go into member events, which have little room.
const maxMemberText = 1000

// namespaced says whether a name is one of the common namespaced grammar with a dot in it.
func namespaced(name string) bool {
	if name == "" || name[0] < 'a' || name[0] > 'z' || !strings.Contains(name, ".") {
		return false
	}
	for _, c := range []byte(name) {
		if !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

func text(value json.RawMessage) string {
	var v string
	if json.Unmarshal(value, &v) != nil {
		return ""
	}
	return v
}
