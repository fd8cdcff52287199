package upgrade

import (
	"net/url"
	"testing"
	"time"

	"chancery/test/homeserver"
)

type J = homeserver.J

const v3 = "/_matrix/client/v3/"

// settings gives a user something of each kind for a room.
func settings(u *homeserver.User, room string) {
	r := url.PathEscape(room)
	u.OK("PUT", v3+"pushrules/global/room/"+r, J{"actions": []string{}})
	u.OK("PUT", v3+"pushrules/global/override/mute", J{"actions": []string{}, "conditions": []J{{"kind": "event_match", "key": "room_id", "pattern": room}}})
	u.OK("PUT", v3+"user/"+u.ID+"/rooms/"+r+"/tags/m.favourite", J{"order": 0.5})
	u.OK("PUT", v3+"user/"+u.ID+"/account_data/m.direct", J{"@x:example.org": []string{room}, "@y:example.org": []string{"!other:x"}})
}

// told waits until /sync has told the user of all settings for the new room.
func told(t *testing.T, u *homeserver.User, since, next string) {
	t.Helper()
	var rules, tag, direct bool
	for deadline := time.Now().Add(time.Minute); !(rules && tag && direct); {
		if time.Now().After(deadline) {
			t.Fatalf("%s was told of rules %v, tag %v, direct %v", u.ID, rules, tag, direct)
		}
		a := u.OK("GET", homeserver.SyncPath(since, 1000), nil)
		since = a.Get("next_batch").Str
		for _, ev := range a.Get("account_data.events").Array() {
			switch ev.Get("type").Str {
			case "m.push_rules":
				room, override := false, false
				for _, rule := range ev.Get("content.global.room").Array() {
					room = room || rule.Get("rule_id").Str == next && len(rule.Get("actions").Array()) == 0
				}
				for _, rule := range ev.Get("content.global.override").Array() {
					override = override || rule.Get("conditions.0.pattern").Str == next
				}
				rules = rules || room && override
			case "m.direct":
				list := ev.Get(`content.@x\:example\.org`).Array()
				direct = direct || len(list) == 2 && list[1].Str == next
			}
		}
		for room, in := range a.Get("rooms.join").Map() {
			for _, ev := range in.Get("account_data.events").Array() {
				if room == next && ev.Get("type").Str == "m.tag" {
					tag = tag || ev.Get(`content.tags.m\.favourite.order`).Num == 0.5
				}
			}
		}
	}
}

// spec: c2s#room-upgrades
func TestSettingsGoWithTheRoom(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice, second, bob := a.Register(t, "alice"), a.Register(t, "second"), b.Register(t, "bob")
		for _, byHand := range []bool{false, true} {
			old := alice.CreateRoom(J{"preset": "public_chat", "room_version": "10"})
			second.Join(old)
			bob.Join(old, a.Name)
			all := []*homeserver.User{alice, second, bob}
			var since []string
			for _, u := range all {
				settings(u, old)
				since = append(since, u.Sync("").Get("next_batch").Str)
			}
			var next string
			if byHand {
				next = alice.CreateRoom(J{"preset": "public_chat", "creation_content": J{"predecessor": J{"room_id": old}}})
				alice.OK("PUT", v3+"rooms/"+url.PathEscape(old)+"/state/m.room.tombstone/", J{"body": "over", "replacement_room": next})
			} else {
				next = alice.OK("POST", v3+"rooms/"+url.PathEscape(old)+"/upgrade", J{"new_version": "11"}).Get("replacement_room").Str
			}
			for deadline := time.Now().Add(time.Minute); bob.Ask("GET", v3+"rooms/"+url.PathEscape(old)+"/state/m.room.tombstone/", nil).Get("replacement_room").Str != next; {
				if time.Now().After(deadline) {
					t.Fatal("bob's server does not hear of the tombstone")
				}
				time.Sleep(10 * time.Millisecond)
			}
			second.Join(next)
			bob.Join(next, a.Name)
			for i, u := range all {
				told(t, u, since[i], next)
			}
		}
		// A room that only says that it replaces another gets nothing of it.
		mine := alice.CreateRoom(J{"preset": "public_chat"})
		settings(second, mine)
		thief := alice.CreateRoom(J{"preset": "public_chat", "creation_content": J{"predecessor": J{"room_id": mine}}})
		second.Join(thief)
		real := alice.OK("POST", v3+"rooms/"+url.PathEscape(mine)+"/upgrade", J{"new_version": "12"}).Get("replacement_room").Str
		since := second.Sync("").Get("next_batch").Str
		second.Join(real)
		told(t, second, since, real)
		if got := second.OK("GET", v3+"user/"+second.ID+"/rooms/"+url.PathEscape(thief)+"/tags", nil).Get("tags").Raw; got != "{}" {
			t.Errorf("the room that lies has the tags %s", got)
		}
	})
}
