package largeroom

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/test/homeserver"

	"github.com/tidwall/sjson"
	"maunium.net/go/mautrix/id"
)

// serve answers as one of the servers. They all know the whole room.
func (r *Room) serve(s *homeserver.Peer) {
	on := func(pattern string, answer func(w http.ResponseWriter, req *http.Request)) {
		kind := strings.Split(pattern[strings.Index(pattern, "/federation/"):], "/")[3]
		s.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			r.mu.Lock()
			r.requests[kind]++
			r.mu.Unlock()
			if r.Intercept != nil && r.Intercept(kind, w, req) {
				return
			}
			w.Header().Set("Content-Type", "application/json")
			answer(w, req)
		}))
	}
	on("GET /_matrix/federation/v1/make_join/{room}/{user}", r.makeJoin)
	on("PUT /_matrix/federation/v2/send_join/{room}/{event}", func(w http.ResponseWriter, req *http.Request) { r.sendJoin(s, w, req) })
	on("GET /_matrix/federation/v1/state_ids/{room}", func(w http.ResponseWriter, req *http.Request) { r.stateBefore(w, req, true) })
	on("GET /_matrix/federation/v1/state/{room}", func(w http.ResponseWriter, req *http.Request) { r.stateBefore(w, req, false) })
	on("GET /_matrix/federation/v1/event/{event}", func(w http.ResponseWriter, req *http.Request) { r.oneEvent(s, w, req) })
	on("GET /_matrix/federation/v1/backfill/{room}", func(w http.ResponseWriter, req *http.Request) { r.backfill(s, w, req) })
	on("POST /_matrix/federation/v1/get_missing_events/{room}", r.missing)
	on("GET /_matrix/federation/v1/timestamp_to_event/{room}", r.near)
	on("GET /_matrix/federation/v1/event_auth/{room}/{event}", r.eventAuth)
	on("PUT /_matrix/federation/v1/send/{txn}", r.receive)
	on("GET /_matrix/federation/v1/user/devices/{user}", func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(w, `{"user_id":%q,"stream_id":1,"devices":[]}`, req.PathValue("user"))
	})
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errcode":%q,"error":"no"}`, code)
}

func (r *Room) makeJoin(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	user := req.PathValue("user")
	content := json.RawMessage(`{"membership":"join"}`)
	last := r.order[len(r.order)-1]
	proposal := map[string]any{"type": "m.room.member", "sender": user, "state_key": user, "room_id": r.ID, "content": content,
		"depth": last.Depth() + 1, "origin_server_ts": time.Now().UnixMilli(), "prev_events": []id.EventID{last.ID()}}
	auths := []id.EventID{}
	for _, k := range auth.Needed(r.Version, "m.room.member", &user, id.UserID(user), content) {
		if v, ok := r.state[k]; ok {
			auths = append(auths, v)
		}
	}
	proposal["auth_events"] = auths
	text, err := json.Marshal(map[string]any{"room_version": r.Version.Name, "event": proposal})
	if err != nil {
		panic(err)
	}
	w.Write(text)
}

func (r *Room) sendJoin(s *homeserver.Peer, w http.ResponseWriter, req *http.Request) {
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	ev, err := event.Parse(r.Version, raw)
	if err != nil || ev.RoomID() != r.ID || string(ev.ID()) != req.PathValue("event") {
		refuse(w, http.StatusBadRequest, "M_INVALID_PARAM")
		return
	}
	omit := req.URL.Query().Get("omit_members") == "true"
	r.mu.Lock()
	index := len(r.order)
	if at, known := r.at[ev.ID()]; known {
		index = at
	} else {
		r.append(ev)
		r.signal()
	}
	state := r.before(index)
	servers := serversIn(state)
	if omit {
		state = slices.DeleteFunc(state, func(e *event.Event) bool { return e.Type() == "m.room.member" })
	}
	chain := r.chain(append(slices.Clone(state), ev))
	if omit {
		chain = slices.DeleteFunc(chain, func(e *event.Event) bool { return slices.Contains(state, e) })
	}
	r.mu.Unlock()
	out := bufio.NewWriterSize(w, 64<<10)
	names, _ := json.Marshal(servers) // strings always can be
	fmt.Fprintf(out, `{"origin":%q,"members_omitted":%v,"servers_in_room":%s,"event":%s,`, s.Name, omit, names, ev.JSON())
	list(out, "state", state, (*event.Event).JSON)
	out.WriteByte(',')
	list(out, "auth_chain", chain, (*event.Event).JSON)
	out.WriteByte('}')
	out.Flush()
	http.NewResponseController(w).Flush()
	r.mu.Lock()
	r.answered = time.Now()
	r.mu.Unlock()
}

// serversIn lists the servers that have somebody in the room.
func serversIn(state []*event.Event) (servers []string) {
	in := map[string]bool{}
	for _, ev := range state {
		if key, _ := ev.StateKey(); ev.Type() == "m.room.member" && ev.Membership() == "join" {
			in[id.UserID(key).Homeserver()] = true
		}
	}
	return slices.Sorted(maps.Keys(in))
}

// before is the state before the event at a place. The room's history is one line.
func (r *Room) before(index int) []*event.Event {
	at := map[auth.Key]*event.Event{}
	for _, e := range r.order[:index] {
		if key, ok := e.StateKey(); ok {
			at[auth.Key{Type: e.Type(), StateKey: key}] = e
		}
	}
	state := make([]*event.Event, 0, len(at))
	for _, e := range r.order[:index] {
		if key, ok := e.StateKey(); ok && at[auth.Key{Type: e.Type(), StateKey: key}] == e {
			state = append(state, e)
		}
	}
	return state
}

// chain is the auth chain of events.
func (r *Room) chain(of []*event.Event) []*event.Event {
	in := map[id.EventID]bool{}
	var walk, out []*event.Event
	walk = slices.Clone(of)
	for len(walk) > 0 {
		e := walk[len(walk)-1]
		walk = walk[:len(walk)-1]
		for _, v := range e.AuthEvents() {
			if at, ok := r.at[v]; ok && !in[v] {
				in[v] = true
				out = append(out, r.order[at])
				walk = append(walk, r.order[at])
			}
		}
	}
	return out
}

func list[T any](out *bufio.Writer, name string, events []*event.Event, part func(*event.Event) T) {
	fmt.Fprintf(out, "%q:[", name)
	for i, e := range events {
		if i > 0 {
			out.WriteByte(',')
		}
		switch v := any(part(e)).(type) {
		case []byte:
			out.Write(v)
		case id.EventID:
			fmt.Fprintf(out, "%q", v)
		}
	}
	out.WriteByte(']')
}

func (r *Room) stateBefore(w http.ResponseWriter, req *http.Request, ids bool) {
	r.mu.Lock()
	index, ok := r.at[id.EventID(req.URL.Query().Get("event_id"))]
	if !ok {
		r.mu.Unlock()
		refuse(w, http.StatusNotFound, "M_NOT_FOUND")
		return
	}
	state := r.before(index)
	chain := r.chain(state)
	r.mu.Unlock()
	out := bufio.NewWriterSize(w, 64<<10)
	defer out.Flush()
	out.WriteByte('{')
	// The state comes before what it stands on, as other servers send it.
	if ids {
		list(out, "pdu_ids", state, (*event.Event).ID)
		out.WriteByte(',')
		list(out, "auth_chain_ids", chain, (*event.Event).ID)
	} else {
		list(out, "pdus", state, (*event.Event).JSON)
		out.WriteByte(',')
		list(out, "auth_chain", chain, (*event.Event).JSON)
	}
	out.WriteByte('}')
}

func (r *Room) find(v id.EventID) *event.Event {
	if at, ok := r.at[v]; ok {
		return r.order[at]
	}
	return nil
}

func (r *Room) pdus(s *homeserver.Peer, w io.Writer, events []*event.Event) {
	out := bufio.NewWriter(w)
	defer out.Flush()
	fmt.Fprintf(out, `{"origin":%q,"origin_server_ts":%d,`, s.Name, time.Now().UnixMilli())
	list(out, "pdus", events, (*event.Event).JSON)
	out.WriteByte('}')
}

func (r *Room) oneEvent(s *homeserver.Peer, w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	e := r.find(id.EventID(req.PathValue("event")))
	r.mu.Unlock()
	if e == nil {
		refuse(w, http.StatusNotFound, "M_NOT_FOUND")
		return
	}
	r.pdus(s, w, []*event.Event{e})
}

func (r *Room) backfill(s *homeserver.Peer, w http.ResponseWriter, req *http.Request) {
	limit, _ := strconv.Atoi(req.URL.Query().Get("limit"))
	r.mu.Lock()
	var out []*event.Event
	for _, v := range req.URL.Query()["v"] {
		if at, ok := r.at[id.EventID(v)]; ok {
			for at >= 0 && len(out) < min(limit, 100) {
				out = append(out, r.order[at])
				at--
			}
		}
	}
	r.mu.Unlock()
	r.pdus(s, w, out)
}

func (r *Room) missing(w http.ResponseWriter, req *http.Request) {
	var in struct {
		Earliest []id.EventID `json:"earliest_events"`
		Latest   []id.EventID `json:"latest_events"`
		Limit    int          `json:"limit"`
	}
	if err := json.NewDecoder(req.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON")
		return
	}
	r.mu.Lock()
	var found []*event.Event
	for _, v := range in.Latest {
		at, ok := r.at[v]
		for at--; ok && at >= 0 && len(found) < in.Limit && !slices.Contains(in.Earliest, r.order[at].ID()); at-- {
			found = append(found, r.order[at])
		}
	}
	r.mu.Unlock()
	slices.Reverse(found)
	out := bufio.NewWriter(w)
	defer out.Flush()
	out.WriteByte('{')
	list(out, "events", found, (*event.Event).JSON)
	out.WriteByte('}')
}

// near finds the event nearest to a time.
func (r *Room) near(w http.ResponseWriter, req *http.Request) {
	ts, _ := strconv.ParseInt(req.URL.Query().Get("ts"), 10, 64)
	r.mu.Lock()
	defer r.mu.Unlock()
	var found *event.Event
	for _, ev := range r.order {
		at := ev.OriginServerTS()
		if req.URL.Query().Get("dir") == "b" && at <= ts && (found == nil || at >= found.OriginServerTS()) ||
			req.URL.Query().Get("dir") == "f" && at >= ts && (found == nil || at < found.OriginServerTS()) {
			found = ev
		}
	}
	if found == nil {
		refuse(w, http.StatusNotFound, "M_NOT_FOUND")
		return
	}
	fmt.Fprintf(w, `{"event_id":%q,"origin_server_ts":%d}`, found.ID(), found.OriginServerTS())
}

func (r *Room) eventAuth(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	e := r.find(id.EventID(req.PathValue("event")))
	if e == nil {
		e = r.made[id.EventID(req.PathValue("event"))]
	}
	var chain []*event.Event
	if e != nil {
		chain = r.chain([]*event.Event{e})
	}
	r.mu.Unlock()
	if e == nil {
		refuse(w, http.StatusNotFound, "M_NOT_FOUND")
		return
	}
	out := bufio.NewWriter(w)
	defer out.Flush()
	out.WriteByte('{')
	list(out, "auth_chain", chain, (*event.Event).JSON)
	out.WriteByte('}')
}

// receive takes a transaction. What it holds is only remembered: a test adds to the room what it wants there.
func (r *Room) receive(w http.ResponseWriter, req *http.Request) {
	var in struct {
		PDUs []json.RawMessage `json:"pdus"`
		EDUs []json.RawMessage `json:"edus"`
	}
	if err := json.NewDecoder(req.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "M_NOT_JSON")
		return
	}
	results := `{"pdus":{}}`
	r.mu.Lock()
	for _, raw := range in.PDUs {
		if ev, err := event.Parse(r.Version, raw); err == nil {
			r.received[ev.ID()] = raw
			if r.Live && r.find(ev.ID()) == nil {
				r.append(ev)
			}
			results, _ = sjson.Set(results, "pdus."+strings.ReplaceAll(string(ev.ID()), ".", `\.`), map[string]any{})
		}
	}
	r.edus = append(r.edus, in.EDUs...)
	r.signal()
	r.mu.Unlock()
	io.WriteString(w, results)
}

func (r *Room) signal() {
	close(r.arrived)
	r.arrived = make(chan struct{})
}

// Adopt puts an event that a server of ours sent into the room: those that come after build on it.
func (r *Room) Adopt(eventID id.EventID) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	ev, err := event.Parse(r.Version, r.received[eventID])
	if err == nil {
		r.append(ev)
	}
	return err
}

// Whole answers with the state as a good server does, for a test that spoils it.
func (r *Room) Whole(w http.ResponseWriter, req *http.Request) { r.stateBefore(w, req, false) }

// One answers with an event as a good server does.
func (r *Room) One(w http.ResponseWriter, req *http.Request) { r.oneEvent(r.Servers[0], w, req) }
