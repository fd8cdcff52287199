package auth_test

import (
	"encoding/json"
	"testing"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// The numbers of the rules on power levels differ only in what stands before them.
func inPower(v1, v10, v12 string) in {
	return in{"1-5": "10." + v1, "6-9": "9." + v1, "10-11": "9." + v10, "12": "10." + v12}
}

// changed puts content over what mods sets, so that a story has one difference to tell.
func (r *room) changed(by obj, users obj) obj {
	r.t.Helper()
	var content obj
	if err := json.Unmarshal(r.Get("m.room.power_levels", "").Content(), &content); err != nil {
		r.t.Fatal(err)
	}
	if content["users"] == nil {
		content["users"] = map[string]any{}
	}
	for user, level := range users {
		if level == nil {
			delete(content["users"].(map[string]any), user)
			continue
		}
		content["users"].(map[string]any)[user] = level
	}
	for key, value := range by {
		if value == nil {
			delete(content, key)
			continue
		}
		content[key] = value
	}
	return content
}

func TestTheFormOfPowerLevels(t *testing.T) {
	form := func(content obj) func(*room) *event.Event {
		return func(r *room) *event.Event { return r.power(alice, content) }
	}
	tellAll(t, []story{
		// spec: rooms/v10#authorisation-rules 9.1
		{"a level as a string", form(obj{"ban": "50"}), in{"1-9": "allow", "10-11": "9.1", "12": "10.1"}},
		{"a level as a string with sign, zeros and spaces", form(obj{"ban": " +0050 "}), in{"1-9": "allow", "10-11": "9.1", "12": "10.1"}},
		{"a level that is no number", form(obj{"ban": "fifty"}), inPower("1", "1", "1")},
		{"a level as a float in a string", form(obj{"ban": "50.5"}), inPower("1", "1", "1")},
		{"a level as a boolean", form(obj{"ban": true}), inPower("1", "1", "1")},
		{"a level as null", form(obj{"ban": nil}), in{"1-9": "allow", "10-11": "9.1", "12": "10.1"}},
		{"a level as an object", form(obj{"users_default": obj{}}), inPower("1", "1", "1")},
		// spec: rooms/v5#mroompower_levels-events-accept-values-as-floats
		{"a level as a float", form(obj{"ban": json.Number("50.9")}), in{"1-5": "allow"}},
		{"a level as a float with exponent", form(obj{"ban": json.Number("5.114698E4")}), in{"1-5": "allow"}},
		// spec: rooms/v10#authorisation-rules 9.2
		{"events is not an object", form(obj{"events": []int{1}}), inPower("1", "2", "2")},
		{"the level of an event as a string", form(obj{"events": obj{"m.room.name": "5"}}), in{"1-9": "allow", "10-11": "9.2", "12": "10.2"}},
		{"the level of an event is no number", form(obj{"events": obj{"m.room.name": "five"}}), inPower("1", "2", "2")},
		{"the level of a notification is no number", form(obj{"notifications": obj{"room": obj{}}}),
			in{"1-5": "allow", "6-9": "9.1", "10-11": "9.2", "12": "10.2"}},
		// spec: rooms/v1#authorisation-rules 10.1
		// spec: rooms/v10#authorisation-rules 9.3
		{"users is not an object", form(obj{"users": []string{string(alice)}}), inPower("1", "3", "3")},
		{"users holds what is no user", form(obj{"users": obj{"alice": 50}}), inPower("1", "3", "3")},
		{"users holds a user of no server", form(obj{"users": obj{"@alice:": 50}}), inPower("1", "3", "3")},
		{"users holds a user of the historical grammar", form(obj{"users": obj{"@Älice!:b.example": 50}}), in{"1-12": "allow"}},
		{"users holds a user without localpart", form(obj{"users": obj{"@:b.example": 50}}), in{"1-12": "allow"}},
		{"a user's level as a string", form(obj{"users": obj{string(bob): "50"}}), in{"1-9": "allow", "10-11": "9.3", "12": "10.3"}},
		{"a user's level is no number", form(obj{"users": obj{string(bob): "fifty"}}), inPower("1", "3", "3")},
		{"a user's level as null", form(obj{"users": obj{string(bob): nil}}), inPower("1", "3", "3")},
		// spec: rooms/v12#authorisation-rules 10.4
		{"users holds the creator", form(obj{"users": obj{string(alice): 100}}), in{"1-11": "allow", "12": "10.4"}},
		{"users holds an additional creator", func(r *room) *event.Event {
			*r = *newRoom(r.t, r.v.Name, obj{"additional_creators": []string{string(bob)}})
			r.send(r.member(alice, alice, "join"))
			return r.power(alice, obj{"users": obj{string(bob): 100}})
		}, in{"10-11": "allow", "12": "10.4"}},
		// spec: rooms/v12#authorisation-rules 10.5
		{"the first power levels may be anything", form(obj{"users_default": 900, "events": obj{"m.room.name": 1000}}), in{"1-12": "allow"}},
	})
}

// spec: rooms/v5#mroompower_levels-events-accept-values-as-floats
func TestFloatsAreCutAtThePoint(t *testing.T) {
	for _, version := range []string{"1", "2", "3", "4", "5"} {
		r := joinedRoom(t, version)
		r.want(r.power(alice, obj{"users": obj{string(bob): json.Number("1e400")}}), "10.1")
		p := r.send(r.power(alice, obj{
			"ban":   json.Number("1e300"),
			"kick":  json.Number("5.114698E4"),
			"users": obj{string(alice): json.Number("1e300"), string(bob): json.Number("50.57"), string(carol): json.Number("-0.5")},
		}))
		levels := auth.PowerLevelsOf(r.Get("m.room.create", ""), p)
		for user, want := range map[string]int64{"@bob:b.example": 50, "@carol:c.example": 0} {
			if got, ok := levels.Of(id.UserID(user)).Number(); !ok || got != want {
				t.Errorf("version %s: the level of %s is %d, want %d", version, user, got, want)
			}
		}
		if got, _ := levels.Kick().Number(); got != 51146 {
			t.Errorf("version %s: the kick level is %d, want 51146", version, got)
		}
		if !levels.Of(alice).AtLeast(levels.Ban()) || levels.Of(bob).AtLeast(levels.Ban()) {
			t.Errorf("version %s: 1e300 is not above 50", version)
		}
	}
}

func TestPowerLevelsChange(t *testing.T) {
	// Bob has 50 and changes what mods set; before is what he finds.
	change := func(before, by, users obj) func(*room) *event.Event {
		return func(r *room) *event.Event {
			r.mods(before)
			return r.power(bob, r.changed(by, users))
		}
	}
	tellAll(t, []story{
		// spec: rooms/v12#authorisation-rules 10.6
		{"nothing changes", change(obj{"ban": 100, "events": obj{"m.room.name": 70}}, nil, nil), in{"1-12": "allow"}},
		{"an added level at the sender's", change(nil, obj{"invite": 50}, nil), in{"1-12": "allow"}},
		{"an added level below a default above the sender's", change(obj{"state_default": 0}, obj{"ban": 1}, nil), in{"1-12": "allow"}},
		{"an added level above the sender's", change(nil, obj{"invite": 51}, nil), inPower("3.2", "5.2", "6.2")},
		{"a level raised above the sender's", change(obj{"kick": 50}, obj{"kick": 51}, nil), inPower("3.2", "5.2", "6.2")},
		{"a level lowered from above the sender's", change(obj{"kick": 51}, obj{"kick": 50}, nil), inPower("3.1", "5.1", "6.1")},
		{"a level removed from above the sender's", change(obj{"redact": 51}, obj{"redact": nil}, nil), inPower("3.1", "5.1", "6.1")},
		{"a level removed from the sender's", change(obj{"redact": 50}, obj{"redact": nil}, nil), in{"1-12": "allow"}},
		{"users_default raised above the sender's", change(obj{"users_default": 0}, obj{"users_default": 100}, nil), inPower("3.2", "5.2", "6.2")},
		// spec: rooms/v9#mroompower_levels-events-accept-values-as-strings
		{"the same level in another form", change(obj{"ban": 100}, obj{"ban": "100"}, nil), in{"1-9": "allow"}},
		// spec: rooms/v12#authorisation-rules 10.7
		{"an event's level lowered from above the sender's", change(obj{"events": obj{"m.room.name": 51}}, obj{"events": obj{"m.room.name": 50}}, nil),
			inPower("4.1", "6.1", "7.1")},
		{"an event's level removed from above the sender's", change(obj{"events": obj{"m.room.name": 51}}, obj{"events": obj{}}, nil),
			inPower("4.1", "6.1", "7.1")},
		{"all events' levels removed from above the sender's", change(obj{"events": obj{"m.room.name": 51}}, obj{"events": nil}, nil),
			inPower("4.1", "6.1", "7.1")},
		{"an event's level changed at the sender's", change(obj{"events": obj{"m.room.name": 50}}, obj{"events": obj{"m.room.name": 0}}, nil), in{"1-12": "allow"}},
		// spec: rooms/v6#authorisation-rules 9.4
		{"a notification lowered from above the sender's", change(obj{"notifications": obj{"room": 51}}, obj{"notifications": obj{"room": 1}}, nil),
			in{"1-5": "allow", "6-9": "9.4.1", "10-11": "9.6.1", "12": "10.7.1"}},
		// spec: rooms/v12#authorisation-rules 10.8
		{"an event's level added above the sender's", change(nil, obj{"events": obj{"m.room.name": 51}}, nil), inPower("5.1", "7.1", "8.1")},
		{"an event's level raised above the sender's", change(obj{"events": obj{"m.room.name": 5}}, obj{"events": obj{"m.room.name": 51}}, nil),
			inPower("5.1", "7.1", "8.1")},
		{"an event's level added below the default", change(nil, obj{"events": obj{"m.room.name": 1}}, nil), in{"1-12": "allow"}},
		// spec: rooms/v6#authorisation-rules 9.5
		{"a notification raised above the sender's", change(nil, obj{"notifications": obj{"room": 51}}, nil),
			in{"1-5": "allow", "6-9": "9.5.1", "10-11": "9.7.1", "12": "10.8.1"}},
		// spec: rooms/v12#authorisation-rules 10.9
		{"an equal demoted", func(r *room) *event.Event {
			r.mods(nil)
			r.levels(nil, obj{string(bob): 50, string(carol): 50})
			return r.power(bob, r.changed(nil, obj{string(carol): 49}))
		}, inPower("6.1", "8.1", "9.1")},
		{"an equal removed", func(r *room) *event.Event {
			r.mods(nil)
			r.levels(nil, obj{string(bob): 50, string(carol): 50})
			return r.power(bob, r.changed(nil, obj{string(carol): nil}))
		}, inPower("6.1", "8.1", "9.1")},
		{"a lower user promoted to the sender's level", func(r *room) *event.Event {
			r.mods(nil)
			r.levels(nil, obj{string(bob): 50, string(carol): 49})
			return r.power(bob, r.changed(nil, obj{string(carol): 50}))
		}, in{"1-12": "allow"}},
		{"oneself demoted", change(nil, nil, obj{string(bob): 49}), in{"1-12": "allow"}},
		{"oneself removed", change(nil, nil, obj{string(bob): nil}), in{"1-12": "allow"}},
		{"the creator demoted by a moderator", change(nil, nil, obj{string(alice): 0}), inPower("6.1", "8.1", "4")},
		// spec: rooms/v12#authorisation-rules 10.10
		{"a user added above the sender", change(nil, nil, obj{string(carol): 51}), inPower("7.1", "9.1", "10.1")},
		{"oneself promoted", change(nil, nil, obj{string(bob): 51}), inPower("7.1", "9.1", "10.1")},
		{"a user added at the sender's level", change(nil, nil, obj{string(carol): 50}), in{"1-12": "allow"}},
		// spec: rooms/v12#authorisation-rules 10.6
		{"the creator sets any number", func(r *room) *event.Event {
			r.levels(obj{"events": obj{"m.room.tombstone": 150}, "notifications": obj{"room": 150}}, obj{string(bob): 150})
			return r.power(alice, obj{"ban": int64(1)<<53 - 1})
		}, in{"12": "allow"}},
	})
}

// gomatrixserverlib leaves users_default out and lets a moderator give everybody 100.
//
// spec: rooms/v11#authorisation-rules 9.5.2
func TestModeratorCannotRaiseUsersDefaultAboveThemselves(t *testing.T) {
	for version, rule := range map[string]string{"11": "9.5.2", "12": "10.6.2"} {
		r := joinedRoom(t, version)
		r.mods(obj{"users_default": 0})
		r.want(r.power(bob, r.changed(obj{"users_default": 100}, nil)), rule)
		r.want(r.power(bob, r.changed(obj{"users_default": 50}, nil)), "allow")
	}
}

// gomatrixserverlib refuses a change from a value equal to the sender's level, and takes a
// creator's level for 0.
//
// spec: rooms/v11#authorisation-rules 9.6.1
// spec: rooms/v12#authorisation-rules 10.7.1
func TestNotificationsAtTheSendersLevelMayBeChanged(t *testing.T) {
	for _, version := range versionsFrom("6") {
		r := joinedRoom(t, version)
		r.mods(obj{"notifications": obj{"room": 50}})
		r.want(r.power(bob, r.changed(obj{"notifications": obj{"room": 40}}, nil)), "allow")
		r.want(r.power(alice, r.changed(obj{"notifications": obj{"room": 99}}, nil)), "allow")
	}
}

// gomatrixserverlib gives the creator almost the highest number, and compares entries that are
// not there by their defaults.
//
// spec: c2s#mroompower_levels
// spec: rooms/v11#authorisation-rules 9.7
func TestWithoutPowerLevelsTheCreatorHas100(t *testing.T) {
	for _, v := range event.Versions() {
		r := joinedRoom(t, v.Name, bob)
		p := auth.PowerLevelsOf(r.Get("m.room.create", ""), nil)
		n, isNumber := p.Of(alice).Number()
		if v.PrivilegedCreators == isNumber || isNumber && n != 100 {
			t.Errorf("version %s: the creator has %s", v.Name, p.Of(alice))
		}
		if got := p.Of(bob); got.Cmp(auth.LevelOf(0)) != 0 {
			t.Errorf("version %s: another user has %s", v.Name, got)
		}
		// Bob has 25. The default for the topic is 50, but there is no entry that he changes.
		r.levels(obj{"events": obj{"m.room.power_levels": 25}}, obj{string(bob): 25})
		r.want(r.power(bob, r.changed(obj{"events": obj{"m.room.power_levels": 25, "m.room.topic": 10}}, nil)), "allow")
		r.want(r.power(bob, r.changed(obj{"ban": 10}, nil)), "allow")
	}
}

// spec: rooms/v12#authorisation-rules
func TestCreatorsAreAboveEveryNumber(t *testing.T) {
	r := newRoom(t, "12", obj{"additional_creators": []string{string(bob)}})
	pl := r.power(alice, obj{"users": obj{string(carol): int64(1)<<53 - 1, string(alice): 0}})
	p := auth.PowerLevelsOf(r.Get("m.room.create", ""), pl)
	if p.Of(alice).Cmp(p.Of(carol)) <= 0 || p.Of(carol).Cmp(p.Of(bob)) >= 0 || p.Of(alice).Cmp(p.Of(bob)) != 0 {
		t.Errorf("alice %s, bob %s, carol %s", p.Of(alice), p.Of(bob), p.Of(carol))
	}
	if _, isNumber := p.Of(bob).Number(); isNumber {
		t.Error("a creator's level is a number")
	}
}

// spec: s2s#definitions
func TestDefaultsOfPowerLevels(t *testing.T) {
	r := joinedRoom(t, "11")
	create := r.Get("m.room.create", "")
	empty := r.power(alice, obj{})
	full := r.power(alice, obj{
		"users_default": 1, "events_default": 2, "state_default": 3, "ban": 4, "redact": 5, "kick": 6, "invite": 7,
		"users": obj{string(bob): 8}, "events": obj{"m.room.name": 9}, "notifications": obj{"room": 10},
	})
	for _, c := range []struct {
		what              string
		none, empty, full int64
		of                func(auth.PowerLevels) auth.Level
	}{
		{"bob", 0, 0, 8, func(p auth.PowerLevels) auth.Level { return p.Of(bob) }},
		{"alice", 100, 0, 1, func(p auth.PowerLevels) auth.Level { return p.Of(alice) }},
		{"users_default", 0, 0, 1, auth.PowerLevels.UsersDefault},
		{"events_default", 0, 0, 2, auth.PowerLevels.EventsDefault},
		{"state_default", 50, 50, 3, auth.PowerLevels.StateDefault},
		{"ban", 50, 50, 4, auth.PowerLevels.Ban},
		{"redact", 50, 50, 5, auth.PowerLevels.Redact},
		{"kick", 50, 50, 6, auth.PowerLevels.Kick},
		{"invite", 0, 0, 7, auth.PowerLevels.Invite},
		{"m.room.name", 50, 50, 9, func(p auth.PowerLevels) auth.Level { return p.ForEvent("m.room.name", true) }},
		{"m.room.topic", 50, 50, 3, func(p auth.PowerLevels) auth.Level { return p.ForEvent("m.room.topic", true) }},
		{"m.room.message", 0, 0, 2, func(p auth.PowerLevels) auth.Level { return p.ForEvent("m.room.message", false) }},
		{"notifications.room", 50, 50, 10, func(p auth.PowerLevels) auth.Level { return p.Notification("room") }},
	} {
		for _, at := range []struct {
			of   *event.Event
			want int64
		}{{nil, c.none}, {empty, c.empty}, {full, c.full}} {
			if got := c.of(auth.PowerLevelsOf(create, at.of)); got.Cmp(auth.LevelOf(at.want)) != 0 {
				t.Errorf("%s is %s, want %d", c.what, got, at.want)
			}
		}
	}
}

// What was parsed of an event is kept by the event, not by its ID: a redacted copy has the same
// ID and says something else.
//
// spec: rooms/v9#redactions
func TestRedactedPowerLevelsAreReadAnew(t *testing.T) {
	r := joinedRoom(t, "9")
	pl := r.power(alice, obj{"invite": 70, "ban": 60})
	redacted, err := pl.Redact()
	if err != nil {
		t.Fatal(err)
	}
	create := r.Get("m.room.create", "")
	for range 2 {
		if got, _ := auth.PowerLevelsOf(create, pl).Invite().Number(); got != 70 {
			t.Errorf("the invite level is %d, want 70", got)
		}
		p := auth.PowerLevelsOf(create, redacted)
		if got, _ := p.Invite().Number(); got != 0 {
			t.Errorf("the redacted invite level is %d, want 0", got)
		}
		if got, _ := p.Ban().Number(); got != 60 {
			t.Errorf("the redacted ban level is %d, want 60", got)
		}
	}
}
