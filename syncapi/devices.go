package syncapi

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"chancery/roomserver/state"
	"chancery/storage"
)

// An answer has at most so many to-device messages; the next one has more.
const maxToDevice = 100

// acknowledge removes the to-device messages that the token says the client has.
//
// spec: c2s#server-behaviour-7
func (s *Server) acknowledge(ctx context.Context, q *query) error {
	if err := s.Users.DeleteToDevice(ctx, q.user, q.device, q.since.ToDevice); err != nil {
		return fmt.Errorf("remove to-device messages: %w", err)
	}
	return nil
}

// writeToDevice writes the messages that wait for the device.
//
// spec: c2s#extensions-to-sync
func (a *answer) writeToDevice(body *writer) error {
	if a.q.device == "" {
		return nil
	}
	if a.q.incremental && !a.news.toDevice && a.q.since.Pos >= a.l.from && !a.s.watch.owed(a.l, a.q.device, a.q.since.ToDevice) {
		return nil
	}
	events, last, more, err := a.s.Users.ToDevice(a.tx, a.q.user, a.q.device, a.q.since.ToDevice, maxToDevice)
	if err != nil {
		return fmt.Errorf("read to-device messages: %w", err)
	}
	a.next.toDevice, a.next.more = last, more
	if len(events) > 0 {
		body.events("to_device", events)
	}
	return nil
}

// meet notes with whom the user shares a room since the token, and with whom no longer, because of what
// changed in a room that they are in.
func (a *answer) meet(j *joined) {
	if a.news.all {
		return
	}
	a.tracked = append(a.tracked, moved{j.row, j.base.root, rootOf(j.row), j.away, false, j.news != nil && j.news.members, j.news != nil && j.news.whole})
}

// part notes that the user may share no room any more with those who were in a room that they left.
func (a *answer) part(j *joined) {
	if a.news.all {
		return
	}
	a.tracked = append(a.tracked, moved{j.row, j.base.root, rootOf(j.row), false, true, true, false})
}

// moved is a room in which memberships changed.
type moved struct {
	room       storage.Room
	was, is    state.Root
	came, went bool // the user themself
	members    bool
	whole      bool // most of the members were not known before
}

// writeDeviceLists tells whose devices changed, or are new to the user, and whose do not matter any more.
//
// spec: c2s#e2e-extensions-to-sync, c2s#tracking-the-device-list-for-a-user
func (a *answer) writeDeviceLists(body *writer) error {
	if a.news.all {
		return nil
	}
	met, lost, err := a.meetings()
	if err != nil {
		return err
	}
	own := string(a.q.user)
	candidates := map[string]bool{}
	for _, users := range []map[string]bool{met, lost, a.news.devices} {
		maps.Copy(candidates, users)
	}
	ownNews := met[own] || a.news.devices[own] // the user's other devices share the room too
	delete(candidates, own)
	sharing := map[string]bool{}
	if len(candidates) > 0 {
		found, err := a.tx.SharingAmong(own, slices.Collect(maps.Keys(candidates)))
		if err != nil {
			return fmt.Errorf("read with whom the user shares rooms: %w", err)
		}
		for _, u := range found {
			sharing[u] = true
		}
	}
	changed, left := []string{}, []string{}
	for u := range candidates {
		switch {
		case sharing[u] && (met[u] || a.news.devices[u]):
			changed = append(changed, u)
		case !sharing[u] && lost[u]:
			left = append(left, u)
		}
	}
	if ownNews {
		changed = append(changed, own)
	}
	if len(changed)+len(left) == 0 {
		return nil
	}
	slices.Sort(changed)
	slices.Sort(left)
	body.value("device_lists", map[string][]string{"changed": changed, "left": left})
	return nil
}

// meetings finds who came into a room of the user's since the token, and who went from one.
func (a *answer) meetings() (met, lost map[string]bool, err error) {
	if a.met != nil {
		return a.met, a.lost, nil
	}
	met, lost = map[string]bool{}, map[string]bool{}
	for _, m := range a.tracked {
		if !m.members {
			continue
		}
		if err := a.compareMembers(m, met, lost); err != nil {
			return nil, nil, err
		}
	}
	a.met, a.lost = met, lost
	return met, lost, nil
}

// compareMembers finds who came and who went. Where the user came, all who are there are new to them;
// where they went, all who were there are lost.
func (a *answer) compareMembers(m moved, met, lost map[string]bool) error {
	if m.came {
		m.was = 0
	}
	if m.whole && m.was != 0 { // who was taken for a member, and is none
		if err := a.joinedIn(m.room, m.was, lost); err != nil {
			return err
		}
		m.came = true
	}
	if m.came || m.went {
		root, into := m.is, met
		if m.went {
			root, into = m.was, lost
		}
		if root == 0 {
			return nil
		}
		return a.joinedIn(m.room, root, into)
	}
	if m.was == m.is {
		return nil
	}
	changed, gone, err := a.s.Reader.Differences(a.tx, m.room, m.was, m.is)
	if err != nil {
		return fmt.Errorf("compare members: %w", err)
	}
	var users []string
	for _, ev := range changed {
		if isMember(ev) {
			users = append(users, keyOf(ev).StateKey)
		}
	}
	for _, slot := range gone {
		if slot.Type == "m.room.member" {
			lost[slot.StateKey] = true
		}
	}
	if len(users) == 0 {
		return nil
	}
	before, err := a.wereJoined(m, users)
	if err != nil {
		return err
	}
	for _, ev := range changed {
		if !isMember(ev) {
			continue
		}
		user, joined := keyOf(ev).StateKey, ev.Membership() == "join"
		switch {
		case joined && !before[user]:
			met[user] = true
		case !joined && before[user]:
			lost[user] = true
		}
	}
	return nil
}

// joinedIn collects who is joined in a state.
func (a *answer) joinedIn(room storage.Room, root state.Root, into map[string]bool) error {
	members, err := a.s.Reader.StateOfType(a.tx, room, root, "m.room.member")
	if err != nil {
		return fmt.Errorf("read members: %w", err)
	}
	for _, ev := range members {
		if ev.Membership() == "join" {
			into[keyOf(ev).StateKey] = true
		}
	}
	return nil
}

func (a *answer) wereJoined(m moved, users []string) (map[string]bool, error) {
	joined := map[string]bool{}
	if m.was == 0 {
		return joined, nil
	}
	members, err := a.s.Reader.StateKeys(a.tx, m.room, m.was, "m.room.member", users)
	if err != nil {
		return nil, fmt.Errorf("read former members: %w", err)
	}
	for _, ev := range members {
		joined[keyOf(ev).StateKey] = ev.Membership() == "join"
	}
	return joined, nil
}

// countKeys counts the device's one-time keys, unless nothing has changed since they were counted.
func (a *answer) countKeys() error {
	if a.q.device == "" {
		a.next.keys = &storage.KeyCounts{OneTime: map[string]int64{}, UnusedFallback: []string{}}
		return nil
	}
	if keys, ok := a.s.watch.keysOf(a.l, a.q.device); ok {
		a.next.keys = keys
		return nil
	}
	keys, err := a.s.Users.KeyCounts(a.tx, a.q.user, a.q.device)
	if err != nil {
		return fmt.Errorf("count one-time keys: %w", err)
	}
	a.next.keys = &keys
	return nil
}
