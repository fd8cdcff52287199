package roomserver

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// AddressInvite is an invite of somebody whose user ID is not known, by an address that an identity server knows.
type AddressInvite struct {
	Room    id.RoomID
	Sender  id.UserID
	Contact peer.Contact
	Names   map[string]string // of the sender, for the message to the invited: sender_display_name, sender_avatar_url
}

// FindInvited asks the identity server whose an address is; empty when it does not know yet.
//
// spec: c2s/inviteBy3PID
func (s *Server) FindInvited(ctx context.Context, c peer.Contact) (id.UserID, error) {
	user, err := s.Peer.LookUp(ctx, c)
	if err != nil {
		return "", asAnswer(err)
	}
	if user != "" && !event.ValidUserID(string(user)) {
		return "", chancery.Errorf(502, chancery.CodeUnknown, "the identity server names somebody who is no user")
	}
	return user, nil
}

// InviteAddress invites whoever proves to own an address: the identity server keeps the invite, and the room has its keys.
//
// spec: c2s/inviteBy3PID, c2s#third-party-invites
func (s *Server) InviteAddress(ctx context.Context, inv AddressInvite) error {
	about, err := s.mayInvite(ctx, inv)
	if err != nil {
		return err
	}
	stored, err := s.Peer.StoreInvite(ctx, inv.Contact, inv.Room, inv.Sender, about)
	if err != nil {
		return asAnswer(err)
	}
	content, err := json.Marshal(map[string]any{"display_name": stored.DisplayName, "key_validity_url": stored.Keys[0].URL,
		"public_key": stored.Keys[0].Key, "public_keys": stored.Keys})
	if err != nil {
		return err
	}
	_, err = s.Send(ctx, NewEvent{Room: inv.Room, Sender: inv.Sender, Type: "m.room.third_party_invite", StateKey: &stored.Token, Content: content})
	return err
}

// mayInvite looks before somebody is written to whether the sender may invite, and gives what is told of the room.
func (s *Server) mayInvite(ctx context.Context, inv AddressInvite) (about map[string]string, err error) {
	err = s.in(ctx, inv.Room, func(r *room) error {
		if err := r.mustBeIn(inv.Sender); err != nil {
			return err
		}
		pl, err := r.powerLevels(state.Root(r.row.Root))
		if err != nil {
			return err
		}
		if !pl.Of(inv.Sender).AtLeast(pl.Invite()) {
			return chancery.Forbidden("you may not invite to this room")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(inv.Room))
		if err != nil || !ok {
			return err
		}
		room, err := s.Reader.summary(tx, row)
		about = map[string]string{"room_name": room.Name, "room_alias": room.CanonicalAlias, "room_avatar_url": room.AvatarURL,
			"room_join_rules": room.JoinRule, "room_type": room.RoomType}
		for k, v := range inv.Names {
			about[k] = v
		}
		return err
	})
	return about, err
}

// Proof is what an identity server signed: that a user owns the address that an invite is for.
type Proof struct {
	Room   id.RoomID
	Sender id.UserID // who invited
	User   id.UserID
	Signed json.RawMessage
}

// AcceptAddressInvite makes of an invite by an address one of a user of ours: by an event of our own where we are in the
// room, else by asking the server of who invited.
//
// spec: s2s#third-party-invites
func (s *Server) AcceptAddressInvite(ctx context.Context, p Proof) error {
	if !s.IsLocal(p.User) || gjson.GetBytes(p.Signed, "mxid").Str != string(p.User) {
		return chancery.Forbidden("the proof is not for this user")
	}
	here := false
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		rows, _, err := roomsWith(tx, s.ServerName, []id.RoomID{p.Room})
		// Where we do not know yet who is in the room, we cannot tell whether who invited still is.
		here = len(rows) > 0 && (!rows[0].Partial || s.IsLocal(p.Sender))
		return err
	})
	if err != nil {
		return err
	}
	if here {
		return s.exchange(ctx, p)
	}
	server := p.Sender.Homeserver()
	switch {
	case !event.ValidUserID(string(p.Sender)) || s.IsLocal(p.Sender) || !strings.HasPrefix(string(p.Room), "!"):
		return chancery.NotFound("unknown room")
	case !p.isSigned():
		return chancery.Forbidden("the proof is not signed")
	case s.strangers.is(server, time.Now()): // we cannot look ourselves whether the proof holds, and anybody may bring one
		return chancery.LimitExceeded(s.strangers.pause)
	}
	content := map[string]any{"membership": "invite", "third_party_invite": map[string]any{"display_name": "", "signed": p.Signed}}
	body, err := json.Marshal(map[string]any{"type": "m.room.member", "room_id": p.Room, "sender": p.Sender, "state_key": p.User, "content": content})
	if err != nil {
		return err
	}
	s.strangers.note(server, time.Now())
	if err := s.Peer.ExchangeThirdPartyInvite(ctx, server, p.Room, body); err != nil {
		return asAnswer(err)
	}
	s.strangers.forget(server)
	return nil
}

// isSigned says that somebody may have signed the proof: it names an invite, and holds a signature that can be one.
func (p Proof) isSigned() (found bool) {
	if gjson.GetBytes(p.Signed, "token").Str == "" {
		return false
	}
	gjson.GetBytes(p.Signed, "signatures").ForEach(func(_, keys gjson.Result) bool {
		keys.ForEach(func(id, signature gjson.Result) bool {
			sig, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(text(signature), "="))
			found = found || err == nil && len(sig) == ed25519.SignatureSize && strings.HasPrefix(id.Str, "ed25519:")
			return !found
		})
		return !found
	})
	return found
}

// ExchangeInvite makes of an invite by an address that one of our users sent a proper one, for the server of a user who
// has proved that the address is theirs.
//
// spec: s2s/exchangeThirdPartyInvite
func (s *Server) ExchangeInvite(ctx context.Context, origin string, p Proof) error {
	switch {
	case !s.IsLocal(p.Sender):
		return chancery.InvalidParam("the sender is none of ours")
	case !event.ValidUserID(string(p.User)) || p.User.Homeserver() != origin:
		return chancery.Forbidden("the user is not of your server")
	}
	err := s.inAs(ctx, caller{theirs, origin}, p.Room, func(r *room) error {
		if r.servers[s.ServerName] == 0 {
			return errUnknownRoom
		}
		return r.checkACL(origin)
	})
	if err != nil {
		return err
	}
	return s.exchange(ctx, p)
}

// exchange sends the invite, once the proof holds and its key still is valid.
//
// spec: s2s#verifying-the-invite
func (s *Server) exchange(ctx context.Context, p Proof) error {
	var by auth.InviteKey
	var display string
	already := false
	err := s.in(ctx, p.Room, func(r *room) error {
		member, err := r.member(p.User)
		if err != nil {
			return err
		}
		if already = member != nil && member.Membership() == "join"; already {
			return nil
		}
		key := Key{"m.room.third_party_invite", gjson.GetBytes(p.Signed, "token").Str}
		found, err := r.stateAt(state.Root(r.row.Root), []Key{key})
		if err != nil {
			return err
		}
		invite := found[key]
		if invite == nil || invite.Sender() != p.Sender {
			return chancery.Forbidden("the room has no such invite of this sender")
		}
		var ok bool
		if by, ok = auth.SignedBy(invite.Event, p.Signed); !ok {
			return chancery.Forbidden("the proof is not signed with a key of the invite")
		}
		display = text(gjson.GetBytes(invite.Content(), "display_name"))
		return nil
	})
	if err != nil || already {
		return err
	}
	if by.URL != "" {
		// No other server looks whether the key is valid: all must come to the same.
		if valid, err := s.Peer.KeyIsValid(ctx, by.URL, by.Key); err != nil {
			return chancery.Errorf(500, chancery.CodeUnknown, "the identity server does not say whether its key is valid").Because(err)
		} else if !valid {
			return chancery.Forbidden("the identity server's key is not valid any more")
		}
	}
	content, err := json.Marshal(map[string]any{"third_party_invite": map[string]any{"display_name": display, "signed": p.Signed}})
	if err != nil {
		return err
	}
	err = s.Invite(ctx, Invite{Room: p.Room, Sender: p.Sender, Target: p.User, Content: content})
	var malformed *auth.Rejection
	if errors.As(err, &malformed) {
		return chancery.Forbidden("the room does not allow the invite").Because(err)
	}
	return err
}
