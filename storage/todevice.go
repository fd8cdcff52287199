package storage

import (
	"encoding/json"
	"maps"
	"math"
	"slices"

	"chancery/storage/sql"
)

// ToDevice is a message that waits for one of our devices.
type ToDevice struct {
	User    string
	Device  string
	Number  int64 // given when it is stored
	Sender  string
	Type    string
	Content json.RawMessage
}

// AddToDevice stores a message and tells its device. floor is the highest position (MaxPos) that
// the transaction sees.
//
// Numbers are the device's own and not positions: a position is known only after the commit, and
// a fact is trimmed after a month while a message may wait for longer. The row of the inbox is
// locked from here to the commit, so for one device the order of numbers is the order of commits,
// whatever process wrote: who has read up to a number misses nothing below it. A number is never
// below the positions of before, so that a restored database does not give a number again that
// a token has seen (an epoch begins with a jump of the positions).
func (tx Tx) AddToDevice(v ToDevice, floor int64) {
	user, device := sql.Text(v.User), sql.Text(v.Device)
	tx.Exec(`INSERT INTO to_device_inboxes (user_id, device_id, last) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, device_id) DO UPDATE SET
			last = CASE WHEN to_device_inboxes.last < excluded.last THEN excluded.last ELSE to_device_inboxes.last + 1 END`,
		user, device, floor+1)
	tx.Exec(`INSERT INTO to_device (user_id, device_id, number, sender, type, content)
		SELECT user_id, device_id, last, $3, $4, $5 FROM to_device_inboxes WHERE user_id = $1 AND device_id = $2`,
		user, device, sql.Text(v.Sender), sql.Text(v.Type), jsonText(v.Content))
	tx.Announce(Fact{Kind: sql.FactToDevice, User: v.User, Device: v.Device})
}

// ToDevice lists the messages of a device above a number, in their order.
func (tx Tx) ToDevice(user, device string, above int64, limit int) ([]ToDevice, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (ToDevice, error) {
		v := ToDevice{User: user, Device: device}
		var text string
		err := r.Scan(&v.Number, &v.Sender, &v.Type, &text)
		v.Sender, v.Type, v.Content = sql.Untext(v.Sender), sql.Untext(v.Type), textJSON(text)
		return v, err
	}, `SELECT number, sender, type, content FROM to_device WHERE user_id = $1 AND device_id = $2 AND number > $3
		ORDER BY number LIMIT $4`, sql.Text(user), sql.Text(device), above, limit)
}

// DeleteToDevice removes the messages of a device up to a number.
func (tx Tx) DeleteToDevice(user, device string, upTo int64) {
	tx.Exec(`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND number <= $3`, sql.Text(user), sql.Text(device), upTo)
}

// MarkSent remembers that a message was sent; first is false when it was before.
func (tx Tx) MarkSent(origin, sender, sentID string, ts int64) (first bool, err error) {
	n, err := tx.ExecRows(`INSERT INTO to_device_sent (origin, sender, sent_id, ts) VALUES ($1, $2, $3, $4)
		ON CONFLICT (origin, sender, sent_id) DO NOTHING`, sql.Text(origin), sql.Text(sender), sql.Text(sentID), ts)
	return n > 0, err
}

// TrimSent forgets what was sent before a time, some at once.
func (tx Tx) TrimSent(before int64, limit int) (int64, error) {
	return tx.ExecRows(`DELETE FROM to_device_sent WHERE ts < $1 AND ts <= (SELECT max(ts) FROM
		(SELECT ts FROM to_device_sent WHERE ts < $1 ORDER BY ts LIMIT $2) x)`, before, limit)
}

// TrimInbox deletes messages of a device where there are more than most, or more than so many bytes: the oldest of those who
// sent the most. from says of a sender to whom its messages are charged.
func (tx Tx) TrimInbox(user, device string, most, bytes int64, from func(sender string) string) error {
	u, d := sql.Text(user), sql.Text(device)
	var count, size int64
	if err := tx.QueryRow(`SELECT count(*), COALESCE(SUM(octet_length(content)), 0) FROM to_device WHERE user_id = $1 AND device_id = $2`,
		u, d).Scan(&count, &size); err != nil || count <= most && size <= bytes {
		return err
	}
	type message struct {
		number, size int64
		from         string
	}
	all, err := sql.Collect(tx.Tx, func(r *sql.Rows) (m message, err error) {
		var sender string
		err = r.Scan(&m.number, &m.size, &sender)
		m.from = from(sql.Untext(sender))
		return m, err
	}, `SELECT number, octet_length(content), sender FROM to_device WHERE user_id = $1 AND device_id = $2 ORDER BY number DESC`, u, d)
	if err != nil {
		return err
	}
	counts, sizes := map[string]int64{}, map[string]int64{}
	for _, m := range all {
		counts[m.from]++
		sizes[m.from] += m.size
	}
	fairCount, fairSize := fair(counts, most), fair(sizes, bytes)
	clear(counts)
	clear(sizes)
	var gone []int64
	for _, m := range all {
		counts[m.from]++
		sizes[m.from] += m.size
		if counts[m.from] > fairCount || sizes[m.from] > fairSize {
			gone = append(gone, m.number)
		}
	}
	tx.Exec(`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND number = ANY($3)`, u, d, gone)
	return nil
}

// fair is the most that each may have so that all together have no more than total: who has less leaves the rest to the others.
func fair(of map[string]int64, total int64) int64 {
	left := int64(len(of))
	for _, v := range slices.Sorted(maps.Values(of)) {
		if v*left > total {
			return total / left
		}
		total -= v
		left--
	}
	return math.MaxInt64
}

// FullInboxes lists devices for which more than most messages wait, or more than so many bytes.
func (tx Tx) FullInboxes(most int, bytes int64) ([]ToDevice, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (ToDevice, error) {
		var v ToDevice
		err := r.Scan(&v.User, &v.Device)
		v.User, v.Device = sql.Untext(v.User), sql.Untext(v.Device)
		return v, err
	}, `SELECT user_id, device_id FROM to_device GROUP BY user_id, device_id
		HAVING count(*) > $1 OR SUM(octet_length(content)) > $2 LIMIT 100`, most, bytes)
}
