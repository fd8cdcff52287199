package storage

import (
	"encoding/json"
	"math/rand/v2"
	"time"

	"chancery/storage/sql"
)

// EDU is a piece of ephemeral data for another server that must not get lost.
type EDU struct {
	ID      int64 // given when it is queued
	Type    string
	Content json.RawMessage
	Subject string // of those with the same one the latest is enough; empty: none
}

// QueueEDU leaves EDUs for another server in the outbox, which is woken with the commit. They are
// sent in this order, again and again until the server has them, or has let too many wait. Their numbers follow the
// clock, but whatever that says each is above those that wait: clocks of two processes differ, and one may be put back.
func (tx Tx) QueueEDU(destination string, edus ...EDU) {
	if len(edus) == 0 {
		return
	}
	size := 0
	for _, e := range edus {
		tx.Exec(`INSERT INTO edus (destination, id, type, content, subject)
			SELECT $1, CASE WHEN t.top < $2 THEN $2 ELSE t.top + 1 END, $3, $4, $5
			FROM (SELECT COALESCE(max(id), 0) AS top FROM edus WHERE destination = $1) t`,
			sql.Text(destination), time.Now().UnixMicro(), e.Type, sql.Text(string(e.Content)), sql.Text(e.Subject))
		size += len(e.Content)
	}
	// Looking costs as much as is there, so not every EDU makes us look; a large one sooner.
	if rand.IntN(128) <= len(edus)+size>>10 {
		tx.boundEDUs(destination, edusCoalesced, maxEDUs, maxEDUBytes)
	}
	tx.Announce(Fact{Kind: sql.FactOutgoing, Extra: destination})
}

// What waits for a server that does not answer is bounded.
const (
	edusCoalesced = 200 // where more wait, only the latest of each subject is kept
	maxEDUs       = 20_000
	maxEDUBytes   = 64 << 20
)

// boundEDUs deletes what need not, or cannot, be kept for a server: of more than some EDUs all but the latest
// of each subject, and then the oldest while there are more than most or more than so many bytes.
func (tx Tx) boundEDUs(destination string, some, most int, bytes int64) {
	to := sql.Text(destination)
	tx.Exec(`DELETE FROM edus WHERE destination = $1 AND subject <> ''
		AND EXISTS (SELECT 1 FROM edus WHERE destination = $1 LIMIT 1 OFFSET $2)
		AND id NOT IN (SELECT max(id) FROM edus WHERE destination = $1 AND subject <> '' GROUP BY subject)`, to, some)
	tx.Exec(`INSERT INTO edus (destination, id, type, content, subject) SELECT $1, 0, $4, '{}', '' WHERE EXISTS
		(SELECT 1 FROM edus WHERE destination = $1 AND subject <> '' AND id <= (`+edusTooMany+`))
		ON CONFLICT (destination, id) DO NOTHING`, to, most, bytes, EDUListsLost)
	tx.Exec(`DELETE FROM edus WHERE destination = $1 AND id > 0 AND id <= (`+edusTooMany+`)`, to, most, bytes)
}

// edusTooMany is the newest EDU of those that a server has too many of.
const edusTooMany = `SELECT max(id) FROM
	(SELECT id, ROW_NUMBER() OVER (ORDER BY id DESC) AS place, SUM(octet_length(content)) OVER (ORDER BY id DESC) AS bytes
		FROM edus WHERE destination = $1) x WHERE place > $2 OR bytes > $3`

// EDUListsLost is no EDU but a mark, with ID 0, that updates of device lists for a server were deleted before it
// had them: it is to be told of all lists when it answers again. A server that is gone costs no more than that.
const EDUListsLost = "chancery.lists_lost"

// EDUs lists the next EDUs for a server, in their order.
func (tx Tx) EDUs(destination string, limit int) ([]EDU, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (EDU, error) {
		var e EDU
		var content string
		err := r.Scan(&e.ID, &e.Type, &content)
		e.Content = json.RawMessage(sql.Untext(content))
		return e, err
	}, `SELECT id, type, content FROM edus WHERE destination = $1 ORDER BY id LIMIT $2`,
		sql.Text(destination), limit)
}

// DeleteEDUs removes EDUs that a server has.
func (tx Tx) DeleteEDUs(destination string, ids []int64) {
	tx.Exec(`DELETE FROM edus WHERE destination = $1 AND id = ANY($2)`, sql.Text(destination), ids)
}

// DestinationsWithEDUs lists the servers for which EDUs wait.
func (tx Tx) DestinationsWithEDUs() ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT destination FROM edus`)
}

// TrimEDUs deletes what could not be delivered in all the time up to then, some at once.
func (tx Tx) TrimEDUs(before time.Time, limit int) (int64, error) {
	tx.Exec(`INSERT INTO edus (destination, id, type, content, subject)
		SELECT DISTINCT destination, 0, $3, '{}', '' FROM
			(SELECT destination, subject FROM edus WHERE id > 0 AND id < $1 ORDER BY id LIMIT $2) x WHERE subject <> ''
		ON CONFLICT (destination, id) DO NOTHING`, before.UnixMicro(), limit, EDUListsLost)
	return tx.ExecRows(`DELETE FROM edus WHERE id IN (SELECT id FROM edus WHERE id > 0 AND id < $1 ORDER BY id LIMIT $2)`,
		before.UnixMicro(), limit)
}

// Destination is what the outbox remembers of a server over a restart.
type Destination struct {
	Name     string
	Behind   bool
	Acked    int64
	SentPos  int64 // how far the transaction under way goes: its last event
	SentEDU  int64 // and its last EDU
	Failures int
	RetryAt  int64
}

// Destinations lists the servers that are owed something or do not answer.
func (tx Tx) Destinations() ([]Destination, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Destination, error) {
		var d Destination
		err := r.Scan(&d.Name, &d.Behind, &d.Acked, &d.SentPos, &d.SentEDU, &d.Failures, &d.RetryAt)
		return d, err
	}, `SELECT name, behind, acked, sent_pos, sent_edu, failures, retry_at FROM destinations`)
}

// SetDestination stores what the outbox remembers of a server.
func (tx Tx) SetDestination(d Destination) {
	tx.Exec(`INSERT INTO destinations (name, behind, acked, sent_pos, sent_edu, failures, retry_at) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (name) DO UPDATE SET behind = excluded.behind, acked = excluded.acked,
			sent_pos = excluded.sent_pos, sent_edu = excluded.sent_edu, failures = excluded.failures, retry_at = excluded.retry_at`,
		d.Name, d.Behind, d.Acked, d.SentPos, d.SentEDU, d.Failures, d.RetryAt)
}

// DeleteDestinations forgets servers that have everything.
func (tx Tx) DeleteDestinations(names []string) {
	tx.Exec(`DELETE FROM destinations WHERE name = ANY($1)`, names)
}

// MoveCursor moves a reader's cursor from where the reader left it; false when it stands elsewhere:
// another instance is at work.
func (tx Tx) MoveCursor(name string, was, is int64) (bool, error) {
	if was == 0 {
		n, err := tx.ExecRows(`INSERT INTO cursors (name, pos) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`, name, is)
		return n > 0, err
	}
	n, err := tx.ExecRows(`UPDATE cursors SET pos = $3 WHERE name = $1 AND pos = $2`, name, was, is)
	return n > 0, err
}

// ServerSets reads sets of servers by number; unknown ones are left out.
func (tx Tx) ServerSets(nids []int64) (map[int64][]string, error) {
	sets := make(map[int64][]string, len(nids))
	rows, err := tx.Query(`SELECT nid, servers FROM server_sets WHERE nid = ANY($1)`, nids)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var nid int64
		var text string
		if err := rows.Scan(&nid, &text); err != nil {
			return nil, err
		}
		var servers []string
		if err := json.Unmarshal([]byte(text), &servers); err != nil {
			return nil, err
		}
		sets[nid] = servers
	}
	return sets, rows.Err()
}

// HeadsFor lists the newest open ends, of each room some, of rooms that we and a server are in, of rooms above a number
// and of some at a time: last is the last room looked at, 0 when there are no more. They say what a server has missed
// without saying when.
func (tx Tx) HeadsFor(server, own string, above int64, limit, each int) (heads []Fact, last int64, err error) {
	rooms, err := sql.Collect(tx.Tx, scanInt, `SELECT nid FROM rooms WHERE nid > $1 ORDER BY nid LIMIT $2`, above, limit)
	if err != nil || len(rooms) == 0 {
		return nil, 0, err
	}
	heads, err = sql.Collect(tx.Tx, func(r *sql.Rows) (f Fact, err error) {
		err = r.Scan(&f.Room, &f.Event)
		return f, err
	}, `SELECT room, event FROM
		(SELECT x.room, x.event, ROW_NUMBER() OVER (PARTITION BY x.room ORDER BY x.event DESC) AS place FROM extremities x WHERE x.room = ANY($1)
		AND (EXISTS (SELECT 1 FROM members m WHERE m.room = x.room AND m.membership = 'join' AND m.server = $2)
			OR EXISTS (SELECT 1 FROM partial_servers p WHERE p.room = x.room AND p.server = $2))
		AND EXISTS (SELECT 1 FROM members m WHERE m.room = x.room AND m.membership = 'join' AND m.server = $3)) ends
		WHERE place <= $4 ORDER BY room, event DESC`, rooms, server, own, each)
	return heads, rooms[len(rooms)-1], err
}

// OwnEventFacts lists the facts of events of ours after a position, in order: they name who gets them.
func (tx Tx) OwnEventFacts(after int64, limit int) ([]Fact, error) {
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE pos > $1 AND kind = $2 AND extra <> '' ORDER BY pos LIMIT $3`, after, int16(sql.FactEvent), limit)
}

// ReceivedTransaction gives our answer to a transaction that another server sent before.
func (tx Tx) ReceivedTransaction(origin, txnID string) (answer json.RawMessage, ok bool, err error) {
	var text string
	err = tx.QueryRow(`SELECT answer FROM received_transactions WHERE origin = $1 AND txn_id = $2`,
		origin, sql.Text(txnID)).Scan(&text)
	text, ok, err = found(text, err)
	return json.RawMessage(sql.Untext(text)), ok, err
}

// InsertReceivedTransaction remembers our answer to a transaction. Of one server somewhat more than keptTransactions are kept.
func (tx Tx) InsertReceivedTransaction(origin, txnID string, answer json.RawMessage, ts int64) {
	tx.Exec(`INSERT INTO received_transactions (origin, txn_id, answer, ts) VALUES ($1, $2, $3, $4)
		ON CONFLICT (origin, txn_id) DO NOTHING`, origin, sql.Text(txnID), sql.Text(string(answer)), ts)
	// Looking costs as much as is there, so not every transaction makes us look.
	if rand.IntN(keptTransactions/8) == 0 {
		tx.boundReceivedTransactions(origin)
	}
}

// A server repeats the transaction that it has no answer to, and sends no other meanwhile.
const keptTransactions = 200

func (tx Tx) boundReceivedTransactions(origin string) {
	tx.Exec(`DELETE FROM received_transactions WHERE origin = $1 AND ts <
		(SELECT min(ts) FROM (SELECT ts FROM received_transactions WHERE origin = $1 ORDER BY ts DESC LIMIT $2) x)`, origin, keptTransactions)
}

// TrimReceivedTransactions forgets transactions received before a time, at most limit of them.
func (tx Tx) TrimReceivedTransactions(before int64, limit int) (int64, error) {
	return tx.ExecRows(`DELETE FROM received_transactions WHERE ts < $1 AND ts IN
		(SELECT ts FROM received_transactions WHERE ts < $1 ORDER BY ts LIMIT $2)`, before, limit)
}
