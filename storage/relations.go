package storage

import "chancery/storage/sql"

// Annotation finds the annotation with a key that a sender has made of an event.
func (tx Tx) Annotation(room int64, target, typ, sender, key string) (event int64, ok bool, err error) {
	err = tx.QueryRow(`SELECT event FROM relations
		WHERE room = $1 AND target = $2 AND rel_type = 'm.annotation' AND type = $3 AND sender = $4 AND agg_key = $5 LIMIT 1`,
		room, sql.Text(target), sql.Text(typ), sql.Text(sender), sql.Text(key)).Scan(&event)
	return found(event, err)
}

// RelTypesTo lists by which types other events relate to some events of a room.
func (tx Tx) RelTypesTo(room int64, targets []string) (map[string][]string, error) {
	types := map[string][]string{}
	rows, err := tx.Query(`SELECT DISTINCT target, rel_type FROM relations WHERE room = $1 AND target = ANY($2)`, room, escaped(targets))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var target, relType string
		if err := rows.Scan(&target, &relType); err != nil {
			return nil, err
		}
		target, relType = sql.Untext(target), sql.Untext(relType)
		types[target] = append(types[target], relType)
	}
	return types, rows.Err()
}

// Edit is a replacement of an event by its sender.
type Edit struct {
	Target string
	Event  int64
}

// LatestEdits lists the latest replacements of some events, newest first for each, a few: which of them
// holds is for their content to say. A replacement has the sender and the type of what it replaces and is
// no state.
func (tx Tx) LatestEdits(room int64, targets []string) ([]Edit, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Edit, error) {
		var v Edit
		err := r.Scan(&v.Target, &v.Event)
		v.Target = sql.Untext(v.Target)
		return v, err
	}, `SELECT x.target, x.event FROM (
			SELECT r.target, r.event, ROW_NUMBER() OVER (PARTITION BY r.target ORDER BY e.ts DESC, e.event_id DESC) AS place
			FROM relations r JOIN events e ON e.nid = r.event JOIN events o ON o.event_id = r.target
			WHERE r.room = $1 AND r.target = ANY($2) AND r.rel_type = 'm.replace' AND e.status = 0 AND e.ord IS NOT NULL
				AND e.state_key IS NULL AND o.state_key IS NULL AND o.room = $1 AND o.sender = e.sender AND o.type = e.type
		) x WHERE x.place <= 3 ORDER BY x.target, x.place`, room, escaped(targets))
}

// Reference says that an event refers to another.
type Reference struct {
	Target, EventID string
	Event           int64
}

// References lists the events that refer to some events, oldest first.
func (tx Tx) References(room int64, targets []string, limit int) ([]Reference, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Reference, error) {
		var v Reference
		err := r.Scan(&v.Target, &v.EventID, &v.Event)
		v.Target, v.EventID = sql.Untext(v.Target), sql.Untext(v.EventID)
		return v, err
	}, `SELECT r.target, e.event_id, e.nid FROM relations r JOIN events e ON e.nid = r.event
		WHERE r.room = $1 AND r.target = ANY($2) AND r.rel_type = 'm.reference' AND e.status = 0 AND e.ord IS NOT NULL
		ORDER BY e.ord LIMIT $3`, room, escaped(targets), limit)
}

// Thread is a thread in short.
type Thread struct {
	Root   string
	Count  int64
	Latest int64 // place of its latest event
}

func scanThread(r *sql.Rows) (Thread, error) {
	var v Thread
	err := r.Scan(&v.Root, &v.Count, &v.Latest)
	v.Root = sql.Untext(v.Root)
	return v, err
}

// Threads gives the threads that begin at some events, as far as they are below a place; what some users say is
// left out.
func (tx Tx) Threads(room int64, roots, ignored []string, below int64) ([]Thread, error) {
	return sql.Collect(tx.Tx, scanThread, `SELECT r.target, count(*), max(e.ord) FROM relations r JOIN events e ON e.nid = r.event
		WHERE r.room = $1 AND r.target = ANY($2) AND r.rel_type = 'm.thread' AND e.status = 0 AND e.ord < $4
			AND NOT (r.sender = ANY($3)) GROUP BY r.target`, room, escaped(roots), escaped(ignored), below)
}

// ThreadsIn says in which of some threads a user took part.
func (tx Tx) ThreadsIn(room int64, roots []string, user string) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT target FROM relations
		WHERE room = $1 AND target = ANY($2) AND rel_type = 'm.thread' AND sender = $3`, room, escaped(roots), sql.Text(user))
}

// EventsAt finds accepted events by their place.
func (tx Tx) EventsAt(room int64, ords []int64) ([]Event, error) {
	return tx.selectEvents(`WHERE e.room = $1 AND e.ord = ANY($2) AND e.status = 0`, room, ords)
}

func escaped(texts []string) []string {
	out := make([]string, len(texts))
	for i, v := range texts {
		out[i] = sql.Text(v)
	}
	return out
}

// FactsBegin is the lowest position that is kept.
func (tx Tx) FactsBegin() (pos int64, err error) {
	err = tx.QueryRow(`SELECT COALESCE(min(pos), 0) FROM facts`).Scan(&pos)
	return pos, err
}

// RelatedEventsOf lists accepted events related to any of some events, by place; relType and typ may be empty.
func (tx Tx) RelatedEventsOf(room int64, targets []string, relType, typ string, below, above int64, limit int, newestFirst bool) ([]Event, error) {
	order := `ORDER BY e.ord`
	if newestFirst {
		order = `ORDER BY e.ord DESC`
	}
	return tx.selectEvents(`JOIN relations r ON r.event = e.nid
		WHERE r.room = $1 AND r.target = ANY($2) AND (r.rel_type = $3 OR $3 = '') AND (r.type = $4 OR $4 = '')
		AND e.status = 0 AND e.ord < $5 AND e.ord > $6 `+order+` LIMIT $7`,
		room, escaped(targets), sql.Text(relType), sql.Text(typ), below, above, limit)
}

// RelatedIDs lists events that relate to any of some events.
func (tx Tx) RelatedIDs(room int64, targets []string, limit int) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT e.event_id FROM relations r JOIN events e ON e.nid = r.event
		WHERE r.room = $1 AND r.target = ANY($2) AND e.status = 0 ORDER BY e.nid LIMIT $3`, room, escaped(targets), limit)
}

// ThreadsBelow lists the threads of a room whose latest event is below a place, latest first. With a
// participant, only those that they began or said something in. What ignored users say does not count.
func (tx Tx) ThreadsBelow(room, below int64, participant string, ignored []string, limit int) ([]Thread, error) {
	return sql.Collect(tx.Tx, scanThread, `SELECT r.target, count(*), max(e.ord) FROM relations r JOIN events e ON e.nid = r.event
		WHERE r.room = $1 AND r.rel_type = 'm.thread' AND e.status = 0 AND e.ord IS NOT NULL AND NOT (r.sender = ANY($4))
			AND ($3 = '' OR EXISTS (SELECT 1 FROM relations p WHERE p.room = r.room AND p.target = r.target
					AND p.rel_type = 'm.thread' AND p.sender = $3)
				OR EXISTS (SELECT 1 FROM events o WHERE o.event_id = r.target AND o.room = r.room AND o.sender = $3))
		GROUP BY r.target HAVING max(e.ord) < $2 ORDER BY max(e.ord) DESC LIMIT $5`,
		room, below, sql.Text(participant), escaped(ignored), limit)
}
