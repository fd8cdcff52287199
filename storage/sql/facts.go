package sql

import "context"

const insertFact = `INSERT INTO facts (pos, kind, room, event, ord, root, user_id, device_id, extra)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`

func factArgs(f *Fact) []any {
	return []any{f.Pos, int64(f.Kind), f.Room, f.Event, f.Ord, f.Root, Text(f.User), Text(f.Device), Text(f.Extra)}
}

// factColumns are the facts as arrays, for one statement.
func factColumns(facts []*Fact) []any {
	n := len(facts)
	kind, room, event, ord, root := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	user, device, extra := make([]string, n), make([]string, n), make([]string, n)
	for i, f := range facts {
		kind[i], room[i], event[i], ord[i], root[i] = int64(f.Kind), f.Room, f.Event, f.Ord, f.Root
		user[i], device[i], extra[i] = Text(f.User), Text(f.Device), Text(f.Extra)
	}
	return []any{kind, room, event, ord, root, user, device, extra}
}

// FactsAfter gives the facts above a position, in order and without leaving one out.
func (db *DB) FactsAfter(ctx context.Context, pos int64, limit int) (facts []Fact, err error) {
	err = db.Read(ctx, func(tx *Tx) error {
		facts, err = tx.FactsAfter(pos, limit)
		return err
	})
	if len(facts) > 0 {
		db.saw(facts[len(facts)-1].Pos)
	}
	return facts, err
}

// FactsAfter gives the facts above a position that this snapshot sees.
func (tx *Tx) FactsAfter(pos int64, limit int) ([]Fact, error) {
	return Collect(tx, func(r *Rows) (f Fact, err error) {
		err = r.Scan(&f.Pos, &f.Kind, &f.Room, &f.Event, &f.Ord, &f.Root, &f.User, &f.Device, &f.Extra)
		f.User, f.Device, f.Extra = Untext(f.User), Untext(f.Device), Untext(f.Extra)
		return f, err
	}, `SELECT pos, kind, room, event, ord, root, user_id, device_id, extra FROM facts
		WHERE pos > $1 ORDER BY pos LIMIT $2`, pos, limit)
}

// TrimFacts deletes the oldest facts below a position, at most limit of them, and tells how
// many. The last row always stays: the next position is counted from it.
func (tx *Tx) TrimFacts(below int64, limit int) (int64, error) {
	return tx.ExecRows(`DELETE FROM facts WHERE pos IN (SELECT pos FROM facts
		WHERE pos < $1 AND pos < (SELECT max(pos) FROM facts) ORDER BY pos LIMIT $2)`, below, limit)
}
