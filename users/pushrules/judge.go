package pushrules

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Event is what the rules read of an event.
type Event interface {
	ID() id.EventID
	RoomID() id.RoomID
	Sender() id.UserID
	Type() string
	StateKey() (string, bool)
	Content() json.RawMessage
	JSON() []byte
}

// Place is the room as it is at the event.
type Place struct {
	Members int64 // joined
	// MayNotify says whether the sender has the power level that the room's power levels ask of who notifies by
	// a key; of "room" when it is used to mention everybody. Nil: nobody may.
	MayNotify func(key string) bool
}

// Reader is a member whose rules are asked.
type Reader struct {
	User        id.UserID
	DisplayName string   // in the room
	Rules       *Ruleset // nil: the default ones
}

// Outcome is what an event means for a user.
type Outcome struct {
	Notify    bool
	Highlight bool
	Actions   []json.RawMessage // of the rule that matched; nil when none did
}

// Notification is an outcome that is not the event's default one.
type Notification struct {
	User      id.UserID
	Notify    bool
	Highlight bool
}

// everybody are the default rules without those that are about the one who reads.
var everybody = func() Ruleset {
	all := defaultRules("")
	all.Override = slices.DeleteFunc(all.Override, func(r Rule) bool {
		return r.ID == ".m.rule.invite_for_me" || r.ID == ".m.rule.is_user_mention"
	})
	all.compile()
	return all
}()

// Default says whether the default rules notify of an event, whoever reads it.
func Default(ev Event, p Place) bool {
	return everybody.judge(ev, p, "", "").Notify
}

// Named lists whom an event concerns by name, so that their outcome may not be the default one even by the
// default rules; all is true when it highlights for everybody.
func Named(ev Event, p Place) (users []id.UserID, all bool) {
	if everybody.judge(ev, p, "", "").Highlight {
		return nil, true
	}
	if key, ok := ev.StateKey(); ok && ev.Type() == "m.room.member" {
		users = append(users, id.UserID(key))
	}
	users = slices.AppendSeq(users, maps.Keys(mentioned(ev)))
	slices.Sort(users)
	return slices.Compact(users), false // the member may be mentioned too
}

// Judge asks the rules of some members and gives the outcomes that are not the default one. The sender is
// never notified.
//
// spec: c2s#push-rules
func Judge(ev Event, p Place, readers []Reader) []Notification {
	usual := everybody.judge(ev, p, "", "")
	named := mentioned(ev)
	var list []Notification
	for _, r := range readers {
		if r.User == ev.Sender() {
			continue
		}
		is := judgeOne(ev, p, r, usual, named)
		if is.Notify != usual.Notify || is.Highlight {
			list = append(list, Notification{User: r.User, Notify: is.Notify, Highlight: is.Highlight})
		}
	}
	return list
}

// For says what an event means for one reader.
func For(ev Event, p Place, r Reader) Outcome {
	return judgeOne(ev, p, r, everybody.judge(ev, p, "", ""), mentioned(ev))
}

// judgeOne is cheap for who has the default rules: an event may have thousands of readers.
func judgeOne(ev Event, p Place, r Reader, usual Outcome, named map[id.UserID]bool) Outcome {
	if r.Rules != nil {
		return r.Rules.judge(ev, p, r.User, r.DisplayName)
	}
	switch {
	case notice.holds(ev, p, ""):
		return usual // before the rules that are about the reader
	case ev.Type() == "m.room.member":
		if key, ok := ev.StateKey(); ok && strings.EqualFold(key, string(r.User)) && invited.holds(ev, p, "") {
			return outcome(raw(notify, sound))
		}
		return usual
	}
	if named[r.User] {
		return outcome(raw(notify, sound, highlight))
	}
	return usual
}

// mentioned lists whom an event mentions.
//
// spec: c2s#user-and-room-mentions
func mentioned(ev Event) map[id.UserID]bool {
	list := gjson.GetBytes(ev.Content(), `m\.mentions.user_ids`)
	if !list.IsArray() {
		return nil
	}
	users := map[id.UserID]bool{}
	for _, v := range list.Array() {
		if v.Type == gjson.String {
			users[id.UserID(v.Str)] = true
		}
	}
	return users
}

var (
	notice  = &compile(raw(match("content.msgtype", "m.notice")))[0]
	invited = &compile(raw(match("content.membership", "invite")))[0]
)

// judge finds the first rule that matches.
func (r *Ruleset) judge(ev Event, p Place, user id.UserID, displayname string) Outcome {
	for _, kind := range Kinds {
		rules, _ := r.Of(kind)
		for i := range *rules {
			v := &(*rules)[i]
			if v.Enabled && v.matches(kind, ev, p, displayname) {
				return outcome(v.Actions)
			}
		}
	}
	return Outcome{}
}

func outcome(actions []json.RawMessage) Outcome {
	o := Outcome{Actions: actions}
	for _, a := range actions {
		v := gjson.ParseBytes(a)
		switch {
		case v.Type == gjson.String && v.Str == "notify":
			o.Notify = true
		case v.Get("set_tweak").Str == "highlight":
			value := v.Get("value")
			o.Highlight = !value.Exists() || value.Type == gjson.True
		}
	}
	// What nobody is told of is not highlighted in a count either.
	o.Highlight = o.Highlight && o.Notify
	return o
}

func (r *Rule) matches(kind Kind, ev Event, p Place, displayname string) bool {
	switch kind {
	case Room:
		return string(ev.RoomID()) == r.ID
	case Sender:
		return string(ev.Sender()) == r.ID
	case Content:
		body := gjson.GetBytes(ev.Content(), "body")
		return r.Pattern != nil && body.Type == gjson.String && matchWords(*r.Pattern, body.Str)
	}
	compiled := r.compiled
	if compiled == nil {
		compiled = compile(r.Conditions)
	}
	for i := range compiled {
		if !compiled[i].holds(ev, p, displayname) {
			return false
		}
	}
	return true
}
