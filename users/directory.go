package users

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const maxFound = 200 // users in one answer

// Search finds users by the beginnings of words in their display names and user IDs, best first; limited says
// that there may be more.
//
// spec: c2s/searchUserDirectory
func (s *Server) Search(ctx context.Context, user id.UserID, term string, limit int) (found []storage.Person, limited bool, err error) {
	if limit <= 0 {
		limit = 10
	}
	limit = min(limit, maxFound)
	q := newQuery(term)
	type ranked struct {
		storage.Person
		rank int
	}
	var all []ranked
	better := func(a, b ranked) int { return cmp.Or(cmp.Compare(a.rank, b.rank), cmp.Compare(a.User, b.User)) }
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		all, limited = nil, false
		seenAll, err := tx.People(string(user), s.ServerName, strings.TrimSpace(term), func(p storage.Person) {
			rank, ok := q.rank(p)
			if !ok {
				return
			}
			all = append(all, ranked{p, rank})
			if len(all) > 4*limit {
				slices.SortFunc(all, better)
				all, limited = all[:limit], true
			}
		})
		limited = limited || !seenAll
		return err
	})
	if err != nil {
		return nil, false, err
	}
	slices.SortFunc(all, better)
	if len(all) > limit {
		all, limited = all[:limit], true
	}
	found = make([]storage.Person, len(all))
	for i, v := range all {
		found[i] = v.Person
	}
	return found, limited, nil
}

// query is what somebody looks for.
type query struct {
	whole string
	words []string // each with a space before it
}

func newQuery(term string) query {
	q := query{whole: fold(strings.TrimSpace(term))}
	for _, w := range words(term) {
		q.words = append(q.words, " "+w)
	}
	return q
}

// rank says how well a person matches: 0 is best.
func (q query) rank(p storage.Person) (rank int, ok bool) {
	user, name := fold(p.User), fold(p.DisplayName)
	localpart := strings.TrimPrefix(user, "@")
	localpart, _, _ = strings.Cut(localpart, ":")
	switch {
	case q.whole == "":
		return 0, false
	case q.whole == user || q.whole == localpart || q.whole == name:
		return 0, true
	case strings.HasPrefix(name, q.whole) || strings.HasPrefix(localpart, q.whole) || strings.HasPrefix(user, q.whole):
		return 1, true
	}
	if len(q.words) > 0 {
		folded := foldName(id.UserID(p.User), p.DisplayName)
		missing := func(w string) bool { return !strings.Contains(folded, w) }
		if !slices.ContainsFunc(q.words, missing) {
			return 2, true
		}
	}
	return 3, strings.Contains(localpart, q.whole) || strings.Contains(name, q.whole)
}

// MutualRooms lists the rooms in which two users are, in order.
//
// spec: c2s/getMutualRooms
func (s *Server) MutualRooms(ctx context.Context, a, b id.UserID) (rooms []string, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		rooms, err = tx.SharedRooms(string(a), string(b))
		return err
	})
	return rooms, err
}
