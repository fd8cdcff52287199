package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"chancery/cmd/chancery/operator"
	"chancery/roomserver"
	"chancery/roomserver/auth"
	"chancery/roomserver/state"

	"maunium.net/go/mautrix/id"
)

const roomUsage = `usage: chancery room explain ROOM EVENT [--json] [--config FILE] [--data DIR] [--server-name NAME]
       chancery room rebuild-state ROOM [--apply] [--json] [--config FILE] [--data DIR] [--server-name NAME]`

func runRoom(ctx context.Context, args []string, t terminal) error {
	flags := flag.NewFlagSet("room", flag.ContinueOnError)
	var from configFlags
	from.add(flags)
	asJSON := flags.Bool("json", false, "")
	apply := flags.Bool("apply", false, "")
	words, err := parse(flags, args)
	if err != nil {
		return err
	}
	asked := len(words) == 3 && words[0] == "explain" && !*apply
	if !asked && (len(words) != 2 || words[0] != "rebuild-state") {
		return badUsage("%s", roomUsage)
	}
	cfg, err := from.load(t)
	if err != nil {
		return err
	}
	if asked {
		x, err := operator.Explain(ctx, cfg, version, id.RoomID(words[1]), id.EventID(words[2]))
		if err != nil {
			return fmt.Errorf("the event cannot be explained: %w", err)
		}
		if *asJSON {
			return printJSON(t.out, x)
		}
		explain(page{t.out}, x)
		return nil
	}
	found, err := operator.Rebuild(ctx, cfg, version, id.RoomID(words[1]), *apply)
	if err != nil {
		return fmt.Errorf("the state is as it was: %w", err)
	}
	if *asJSON {
		return printJSON(t.out, found)
	}
	rebuilt(page{t.out}, found)
	return nil
}

// rebuilt prints what a rebuild found, for a person.
func rebuilt(p page, found *roomserver.Rebuilt) {
	p.line("room %s: the states of %d events were resolved again", found.Room, found.Events)
	if found.Trusted > 0 {
		p.line("of %d of them the state before is as another server gave it", found.Trusted)
	}
	for _, v := range found.Judged {
		p.line("  %s now: %s", v.Now, words(v.Brief))
	}
	if found.Differ == 0 && len(found.Changes) == 0 {
		p.line("all of it is as it is stored")
		return
	}
	p.line("%d events have another state than is stored, and the room's state differs in %d pieces", found.Differ, len(found.Changes))
	name := func(b *roomserver.Brief) string {
		if b == nil {
			return "nothing"
		}
		return words(*b)
	}
	for _, c := range found.Changes {
		p.line("  %s %q", c.Type, c.StateKey)
		p.line("    is stored as  %s", name(c.Was))
		p.line("    resolves to   %s", name(c.Is))
	}
	if found.Applied {
		p.line("the room has moved to what it resolves to")
	} else {
		p.line("nothing was changed; --apply moves the room")
	}
}

func printJSON(w io.Writer, v any) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	return out.Encode(v)
}

// page is what is read on a terminal.
type page struct{ io.Writer }

func (p page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// explain prints an explanation for a person. Members are counted, but for those that the event is about.
func explain(p page, x *roomserver.Explanation) {
	p.line("room %s, version %s", x.Room, x.Version)
	p.line("event")
	p.event(x.Event)
	p.line("prev events")
	p.events(x.Prev)
	p.line("auth events")
	p.events(x.Auth)
	if x.Before == nil {
		p.line("its place in the room is not known: it came with a state or an auth chain")
	} else {
		p.state(x)
	}
	p.line("judgements")
	p.line("  the list of its auth events is %s", x.By.List)
	p.judgement("by its auth events", x.By.OwnAuth)
	p.judgement("by the state before it", x.By.Before)
	p.judgement("by the room's present state (on receipt the one of then decided whether it fails softly)", x.By.Now)
	p.line("  so it is %s", x.Event.Status)
	if x.Merge != nil {
		p.line("resolution of the state before it, of %d states", len(x.Merge.Sets))
		p.merge(x.Merge)
	}
	if x.After != nil {
		p.line("when it came, the room's state was resolved over %d open ends, and moved by more than the event", len(x.After.Sets))
		p.merge(x.After)
	}
}

func (p page) state(x *roomserver.Explanation) {
	how := "after its prev events"
	if x.Given {
		how = "as another server gave it, since prev events were not here"
	} else if x.Merge != nil {
		how = "resolved from those after its prev events, see below"
	}
	p.line("state before it: %d events, %s", len(x.Before), how)
	members := map[string]int{}
	for _, b := range x.Before {
		about := b.StateKey != nil && (*b.StateKey == string(x.Event.Sender) || x.Event.StateKey != nil && *x.Event.StateKey == *b.StateKey)
		if b.Type != "m.room.member" || about {
			p.event(b)
		} else {
			members[b.Membership]++
		}
	}
	for _, membership := range slices.Sorted(maps.Keys(members)) {
		p.line("  and %d others with membership %s", members[membership], membership)
	}
}

func (p page) events(list []roomserver.Brief) {
	for _, b := range list {
		p.event(b)
	}
	if len(list) == 0 {
		p.line("  none")
	}
}

func (p page) event(b roomserver.Brief) { p.line("  %s", words(b)) }

func words(b roomserver.Brief) string {
	if b.Type == "" {
		return fmt.Sprintf("%s  %s", b.ID, b.Status)
	}
	var what strings.Builder
	fmt.Fprintf(&what, "%s  %s", b.ID, b.Type)
	if b.StateKey != nil {
		fmt.Fprintf(&what, " %q", *b.StateKey)
	}
	if b.Membership != "" {
		fmt.Fprintf(&what, " %s", b.Membership)
	}
	fmt.Fprintf(&what, "  by %s, %s, depth %d, %s", b.Sender, time.UnixMilli(b.TS).UTC().Format("2006-01-02 15:04:05.000"), b.Depth, b.Status)
	return what.String()
}

func (p page) judgement(by string, said []auth.Said) {
	if len(said) == 0 {
		p.line("  %s: not asked", by)
		return
	}
	p.line("  %s:", by)
	p.rules("    ", said)
}

// rules prints those that apply with their text; of the others the numbers.
func (p page) rules(indent string, said []auth.Said) {
	var passed []string
	flush := func() {
		if len(passed) > 0 {
			p.line("%srules %s go on", indent, strings.Join(passed, ", "))
		}
		passed = nil
	}
	for _, s := range said {
		switch s.Says {
		case "goes on":
			passed = append(passed, s.Rule)
		case "rejects":
			flush()
			p.line("%srule %s rejects: %q (%s)", indent, s.Rule, s.Text, s.Why)
		default:
			flush()
			p.line("%srule %s %s: %q", indent, s.Rule, s.Says, s.Text)
		}
	}
	flush()
}

func (p page) merge(m *roomserver.Merge) {
	p.line("  state resolution %s", m.Algorithm)
	for i, set := range m.Sets {
		p.line("  conflicted in state %d", i+1)
		p.indented(set)
	}
	for _, part := range []struct {
		name string
		list []roomserver.Brief
	}{{"auth difference", m.Difference}, {"conflicted subgraph", m.Subgraph}, {"full conflicted set", m.Full}} {
		if len(part.list) > 0 {
			p.line("  %s", part.name)
			p.indented(part.list)
		}
	}
	if m.Mainline != nil {
		p.line("  the mainline goes down from %s", words(*m.Mainline))
	}
	order := ""
	for i, t := range m.Tried {
		if t.Order != order {
			order = t.Order
			if order == state.Unasked {
				p.line("  taken without a question")
			} else {
				p.line("  tried %s", order)
			}
		}
		verdict := "refused"
		if t.Allowed {
			verdict = "allowed"
		}
		switch {
		case t.Off:
			verdict += ", off the mainline"
		case t.Mainline != nil:
			verdict += fmt.Sprintf(", mainline position %d", *t.Mainline)
		}
		p.line("    %d. %s: %s", i+1, verdict, words(t.Brief))
		p.rules("         ", t.Said)
	}
	p.line("  result")
	for _, r := range m.Result {
		if r.Event == nil {
			p.line("    %s %q: nothing", r.Type, r.StateKey)
			continue
		}
		p.line("    %s %q: %s", r.Type, r.StateKey, words(*r.Event))
	}
	if m.AsStored {
		p.line("  the replay comes to the state that is stored")
	} else {
		p.line("  THE REPLAY DIFFERS from the state that is stored")
	}
}

func (p page) indented(list []roomserver.Brief) {
	for _, b := range list {
		p.line("    %s", words(b))
	}
	if len(list) == 0 {
		p.line("    nothing")
	}
}
