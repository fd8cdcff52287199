package roomserver

import (
	"chancery/roomserver/auth"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/users/pushrules"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Heard takes in a fact that the log tells: somebody's push rules changed, so hot rooms ask again who has
// rules of their own; or a new epoch began.
func (s *Server) Heard(f storage.Fact) {
	if f.Kind == sql.FactAccountData && f.Room == 0 && f.Extra == "m.push_rules" {
		s.rules.Add(1)
	}
	if f.Kind == sql.FactEpoch {
		select {
		case s.lost.wake <- struct{}{}:
		default:
		}
	}
}

// ruleOwners are the local members of a room whose push rules differ from the default ones.
type ruleOwners struct {
	at   int64 // the server's count of changed rules when they were read
	list []pushrules.Reader
}

// noteNotifications judges the event by push rules: one bit for the default rules, and a row for each of our
// members for whom it means something else. So a message costs the same for 5 members and for 5,000.
//
// spec: c2s#push-rules
func (r *room) noteNotifications(a *addition) error {
	place := pushrules.Place{Members: r.joined, MayNotify: func(key string) bool { return r.mayNotify(a.Sender(), key) }}
	a.notify = pushrules.Default(a.Event, place)
	readers, err := r.ownersOfRules()
	if err != nil {
		return err
	}
	named, all := pushrules.Named(a.Event, place)
	more, err := r.localReaders(named, all, readers)
	if err != nil {
		return err
	}
	thread := "main"
	if rel := gjson.GetBytes(a.Content(), `m\.relates_to`); rel.Get("rel_type").Str == "m.thread" && rel.Get("event_id").Str != "" {
		thread = rel.Get("event_id").Str
	}
	for _, n := range pushrules.Judge(a.Event, place, append(more, readers...)) {
		a.notifications = append(a.notifications, storage.Notification{User: string(n.User), Room: r.row.NID, Ord: a.Ord, Event: a.NID,
			Notify: n.Notify, Highlight: n.Highlight, Thread: thread})
	}
	return nil
}

func (r *room) mayNotify(sender id.UserID, key string) bool {
	found, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.create", ""}, {"m.room.power_levels", ""}})
	if err != nil {
		return false
	}
	as := authState{found}
	pl := auth.PowerLevelsOf(as.Get("m.room.create", ""), as.Get("m.room.power_levels", ""))
	return pl.Of(sender).AtLeast(pl.Notification(key))
}

// ownersOfRules lists who has rules of their own; it is read again when somebody's rules or one of our
// memberships changed.
func (r *room) ownersOfRules() ([]pushrules.Reader, error) {
	at := r.s.rules.Load()
	if r.owners != nil && r.owners.at == at {
		return r.owners.list, nil
	}
	owners := &ruleOwners{at: at}
	err := r.read(func(tx storage.Tx) error {
		rows, err := tx.RuleOwners(r.row.NID)
		for _, row := range rows {
			changes, err := pushrules.Parse(row.Rules)
			if err != nil {
				return err
			}
			user := id.UserID(row.User)
			owners.list = append(owners.list, pushrules.Reader{User: user, DisplayName: row.DisplayName, Rules: changes.Ruleset(user)})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	r.owners = owners
	return owners.list, nil
}

// localReaders are our members among those an event names, without those who are asked anyway.
func (r *room) localReaders(named []id.UserID, all bool, asked []pushrules.Reader) ([]pushrules.Reader, error) {
	if !all && len(named) == 0 || r.servers[r.s.ServerName] == 0 {
		return nil, nil
	}
	is := make(map[id.UserID]bool, len(asked))
	for _, a := range asked {
		is[a.User] = true
	}
	var local []string
	for _, u := range named {
		if r.s.IsLocal(u) && !is[u] {
			local = append(local, string(u))
		}
	}
	if !all && len(local) == 0 {
		return nil, nil
	}
	var readers []pushrules.Reader
	err := r.read(func(tx storage.Tx) (err error) {
		var members []storage.Member
		if all {
			members, err = tx.LocalMembers(r.row.NID, r.s.ServerName, []string{"join"})
		} else {
			members, err = tx.MembersOf(r.row.NID, local)
		}
		for _, m := range members {
			if user := id.UserID(m.User); m.Membership == "join" && !is[user] {
				readers = append(readers, pushrules.Reader{User: user, DisplayName: m.DisplayName})
			}
		}
		return err
	})
	return readers, err
}
