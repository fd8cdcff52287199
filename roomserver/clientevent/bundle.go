package clientevent

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"

	"chancery/roomserver"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

const (
	relReplace   = "m.replace"
	relReference = "m.reference"
	relThread    = "m.thread"
)

// bundle aggregates for each event what other events say of it.
//
// spec: c2s#aggregations-of-child-events
func (f *formatter) bundle(events []*roomserver.Stored, extra []beside, how bundling) error {
	targets := make([]string, len(events))
	for i, ev := range events {
		targets[i] = string(ev.ID())
	}
	types, err := f.tx.RelTypesTo(f.room.NID, targets)
	if err != nil {
		return fmt.Errorf("read relations: %w", err)
	}
	if len(types) == 0 {
		return nil
	}
	var threads map[id.EventID]*thread
	if how == everything {
		if threads, err = f.threads(events, types); err != nil {
			return err
		}
	}
	edits, err := f.edits(events, types)
	if err != nil {
		return err
	}
	references, err := f.references(types)
	if err != nil {
		return err
	}
	for i, ev := range events {
		all := map[string]any{}
		if v, ok := edits[ev.ID()]; ok {
			all[relReplace] = v
		}
		if v, ok := references[ev.ID()]; ok {
			all[relReference] = map[string]any{"chunk": v}
		}
		if v, ok := threads[ev.ID()]; ok {
			all[relThread] = v
		}
		if len(all) == 0 {
			continue
		}
		if extra[i].relations, err = json.Marshal(all); err != nil {
			return fmt.Errorf("encode relations: %w", err)
		}
	}
	return nil
}

func having(types map[string][]string, relType string) []string {
	var targets []string
	for target, has := range types {
		for _, t := range has {
			if t == relType {
				targets = append(targets, target)
			}
		}
	}
	return targets
}

// edits finds the latest valid replacement of each event. The content of the event itself is left as it
// is; what was redacted has no replacement, and a replacement none of its own.
//
// spec: c2s#server-side-aggregation-of-mreplace-relationships, c2s#validity-of-replacement-events
func (f *formatter) edits(events []*roomserver.Stored, types map[string][]string) (map[id.EventID]json.RawMessage, error) {
	edited := having(types, relReplace)
	if len(edited) == 0 {
		return nil, nil
	}
	original := make(map[id.EventID]*roomserver.Stored, len(events))
	for _, ev := range events {
		original[ev.ID()] = ev
	}
	candidates, err := f.tx.LatestEdits(f.room.NID, edited)
	if err != nil {
		return nil, fmt.Errorf("read edits: %w", err)
	}
	nids := make([]int64, len(candidates))
	for i, c := range candidates {
		nids[i] = c.Event
	}
	found, err := f.rd.ByNumber(f.tx, f.room, nids)
	if err != nil {
		return nil, err
	}
	seen, err := f.visible(found)
	if err != nil {
		return nil, err
	}
	var latest []*roomserver.Stored
	var of []id.EventID
	taken := map[id.EventID]bool{}
	for _, c := range candidates {
		target := id.EventID(c.Target)
		edit := found[c.Event]
		if edit == nil || !seen[c.Event] || taken[target] || !replaces(edit, original[target]) {
			continue
		}
		taken[target] = true
		latest, of = append(latest, edit), append(of, target)
	}
	formatted, err := f.format(latest, nothing)
	if err != nil {
		return nil, err
	}
	out := make(map[id.EventID]json.RawMessage, len(latest))
	for i, target := range of {
		out[target] = formatted[i]
	}
	return out, nil
}

// visible says which of some events the viewer may see: what others said when the viewer was not there any
// more is not told beside what they may see.
//
// spec: c2s#room-history-visibility
func (f *formatter) visible(events map[int64]*roomserver.Stored) (map[int64]bool, error) {
	until := f.viewer.Until
	if until == 0 {
		until = math.MaxInt64
	}
	list := slices.Collect(maps.Values(events))
	shown, err := f.rd.Visible(f.tx, f.room, roomserver.Viewer{User: f.viewer.User, Until: until}, list)
	seen := make(map[int64]bool, len(shown))
	for _, ev := range shown {
		seen[ev.NID] = true
	}
	return seen, err
}

func replaces(edit, original *roomserver.Stored) bool {
	if original == nil || original.RedactedBy != "" || edit.RedactedBy != "" {
		return false
	}
	if gjson.GetBytes(original.Content(), `m\.relates_to.rel_type`).Str == relReplace {
		return false
	}
	// That of an encrypted event is inside.
	return edit.Type() == "m.room.encrypted" || gjson.GetBytes(edit.Content(), `m\.new_content`).IsObject()
}

const (
	maxReferences = 5000
	maxJudged     = 500 // of those that have to be read to know whether the viewer may see them
)

type reference struct {
	EventID string `json:"event_id"`
}

// spec: c2s#server-side-aggregation-of-mreference
func (f *formatter) references(types map[string][]string) (map[id.EventID][]reference, error) {
	referred := having(types, relReference)
	if len(referred) == 0 {
		return nil, nil
	}
	limit := maxReferences
	if f.viewer.Until != 0 {
		limit = maxJudged
	}
	found, err := f.tx.References(f.room.NID, referred, limit)
	if err != nil {
		return nil, fmt.Errorf("read references: %w", err)
	}
	if f.viewer.Until != 0 { // they are not in the room: what was said later may not be for them
		nids := make([]int64, len(found))
		for i, r := range found {
			nids[i] = r.Event
		}
		events, err := f.rd.ByNumber(f.tx, f.room, nids)
		if err != nil {
			return nil, err
		}
		seen, err := f.visible(events)
		if err != nil {
			return nil, err
		}
		found = slices.DeleteFunc(found, func(r storage.Reference) bool { return !seen[r.Event] })
	}
	out := map[id.EventID][]reference{}
	for _, r := range found {
		target := id.EventID(r.Target)
		out[target] = append(out[target], reference{r.EventID})
	}
	return out, nil
}

type thread struct {
	Count        int64           `json:"count"`
	Participated bool            `json:"current_user_participated"`
	Latest       json.RawMessage `json:"latest_event"`
}

// spec: c2s#server-side-aggregation-of-mthread-relationships
func (f *formatter) threads(events []*roomserver.Stored, types map[string][]string) (map[id.EventID]*thread, error) {
	roots := having(types, relThread)
	if len(roots) == 0 {
		return nil, nil
	}
	found, latest, err := f.threadsBelow(roots, math.MaxInt64)
	if err != nil {
		return nil, err
	}
	if f.viewer.Until != 0 { // of what goes on without them they hear what was said before they left
		open := map[string]bool{}
		for _, t := range found {
			open[t.Root] = latest[t.Latest] != nil
		}
		found = slices.DeleteFunc(found, func(t storage.Thread) bool { return !open[t.Root] })
		closed := slices.DeleteFunc(slices.Clone(roots), func(root string) bool { return open[root] })
		earlier, more, err := f.threadsBelow(closed, f.viewer.Until)
		if err != nil {
			return nil, err
		}
		found = append(found, earlier...)
		maps.Copy(latest, more)
	}
	taken, err := f.tx.ThreadsIn(f.room.NID, roots, string(f.viewer.User))
	if err != nil {
		return nil, err
	}
	in := map[string]bool{}
	for _, root := range taken {
		in[root] = true
	}
	for _, ev := range events {
		if ev.Sender() == f.viewer.User {
			in[string(ev.ID())] = true
		}
	}
	shown := slices.Collect(maps.Values(latest))
	// The latest event shows its own edits: nothing of a thread can begin another.
	formatted, err := f.format(shown, withoutThread)
	if err != nil {
		return nil, err
	}
	byOrd := map[int64]json.RawMessage{}
	for i, ev := range shown {
		byOrd[ev.Ord] = formatted[i]
	}
	out := map[id.EventID]*thread{}
	for _, t := range found {
		if text := byOrd[t.Latest]; text != nil {
			out[id.EventID(t.Root)] = &thread{Count: t.Count, Participated: in[t.Root], Latest: text}
		}
	}
	return out, nil
}

// threadsBelow reads threads up to a place, and the latest event of each, by place, that the viewer may see.
func (f *formatter) threadsBelow(roots []string, below int64) ([]storage.Thread, map[int64]*roomserver.Stored, error) {
	if len(roots) == 0 {
		return nil, nil, nil
	}
	found, err := f.tx.Threads(f.room.NID, roots, f.viewer.Ignored, below)
	if err != nil {
		return nil, nil, fmt.Errorf("read threads: %w", err)
	}
	ords := make([]int64, len(found))
	for i, t := range found {
		ords[i] = t.Latest
	}
	rows, err := f.tx.EventsAt(f.room.NID, ords)
	if err != nil {
		return nil, nil, err
	}
	events, err := f.rd.StoredRows(f.room, rows)
	if err != nil {
		return nil, nil, err
	}
	byNumber := make(map[int64]*roomserver.Stored, len(events))
	for _, ev := range events {
		byNumber[ev.NID] = ev
	}
	seen, err := f.visible(byNumber)
	if err != nil {
		return nil, nil, err
	}
	latest := make(map[int64]*roomserver.Stored, len(events))
	for _, ev := range events {
		if seen[ev.NID] {
			latest[ev.Ord] = ev
		}
	}
	return found, latest, nil
}
