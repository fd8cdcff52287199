// Package userdirectory is the part of the client-server API about finding people.
package userdirectory

import (
	"context"
	"encoding/base64"
	"slices"

	"chancery"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about finding people.
type API struct {
	Users *users.Server
}

type SearchIn struct {
	Caller endpoint.Caller
	Body   struct {
		Term  string `json:"search_term" required:"true"`
		Limit *int64 `json:"limit"`
	} `body:"json"`
}

type Person struct {
	User        id.UserID `json:"user_id"`
	DisplayName string    `json:"display_name,omitempty"`
	AvatarURL   string    `json:"avatar_url,omitempty"`
}

type SearchOut struct {
	Results []Person `json:"results"`
	Limited bool     `json:"limited"`
}

// Search finds people.
//
// spec: c2s/searchUserDirectory
func (a *API) Search(ctx context.Context, in *SearchIn) (*SearchOut, error) {
	limit := 0
	if in.Body.Limit != nil {
		if *in.Body.Limit < 0 {
			return nil, chancery.InvalidParam("the limit is negative")
		}
		limit = int(min(*in.Body.Limit, 1<<20))
	}
	if len(in.Body.Term) > 1000 {
		return nil, chancery.InvalidParam("the search term is too long")
	}
	found, limited, err := a.Users.Search(ctx, in.Caller.User, in.Body.Term, limit)
	if err != nil {
		return nil, err
	}
	out := &SearchOut{Results: make([]Person, len(found)), Limited: limited}
	for i, p := range found {
		out.Results[i] = Person{User: id.UserID(p.User), DisplayName: p.DisplayName, AvatarURL: p.AvatarURL}
	}
	return out, nil
}

type MutualIn struct {
	Caller endpoint.Caller
	User   id.UserID `query:"user_id" required:"true"`
	From   string    `query:"from"`
}

type MutualOut struct {
	Joined []string `json:"joined"`
	Count  int      `json:"count"`
	Next   string   `json:"next_batch,omitempty"`
}

const mutualPage = 500

// Mutual lists the rooms in which the caller and another user are.
//
// spec: c2s/getMutualRooms
func (a *API) Mutual(ctx context.Context, in *MutualIn) (*MutualOut, error) {
	if _, _, err := in.User.Parse(); err != nil || len(in.User) > 255 || in.User == in.Caller.User {
		return nil, chancery.InvalidParam("user_id is another user's ID")
	}
	from, err := base64.RawURLEncoding.DecodeString(in.From)
	if err != nil || in.From != "" && (len(from) == 0 || from[0] != '!') {
		return nil, chancery.InvalidParam("from is no token of ours")
	}
	rooms, err := a.Users.MutualRooms(ctx, in.Caller.User, in.User)
	if err != nil {
		return nil, err
	}
	out := &MutualOut{Count: len(rooms)}
	// The token is the last room that was given.
	at, there := slices.BinarySearch(rooms, string(from))
	if there {
		at++
	}
	out.Joined = rooms[at:]
	if len(out.Joined) > mutualPage {
		out.Joined = out.Joined[:mutualPage]
		out.Next = base64.RawURLEncoding.EncodeToString([]byte(out.Joined[mutualPage-1]))
	}
	return out, nil
}
