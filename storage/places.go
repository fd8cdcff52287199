package storage

import "chancery/storage/sql"

// Place is where an event stands in its room's chain cover.
type Place struct{ Event, Chain, Index int64 }

// PlaceLink says that From has To, and all before it, in its auth chain; Event is not used.
type PlaceLink struct{ From, To Place }

// InsertPlace stores an event's place and the links that leave it.
func (tx Tx) InsertPlace(room int64, p Place, links []PlaceLink) {
	tx.Exec(`INSERT INTO event_places (event, room, chain, idx) VALUES ($1, $2, $3, $4)`, p.Event, room, p.Chain, p.Index)
	for _, l := range links {
		tx.Exec(`INSERT INTO chain_links (room, from_chain, from_idx, to_chain, to_idx) VALUES ($1, $2, $3, $4, $5)`,
			room, l.From.Chain, l.From.Index, l.To.Chain, l.To.Index)
	}
}

// CopyPlaces stores many places and links at once.
func (tx Tx) CopyPlaces(room int64, places []Place, links []PlaceLink) error {
	rows := make([][]any, len(places))
	for i, p := range places {
		rows[i] = []any{p.Event, room, p.Chain, p.Index}
	}
	if err := tx.CopyIn("event_places", []string{"event", "room", "chain", "idx"}, rows); err != nil {
		return err
	}
	rows = make([][]any, len(links))
	for i, l := range links {
		rows[i] = []any{room, l.From.Chain, l.From.Index, l.To.Chain, l.To.Index}
	}
	return tx.CopyIn("chain_links", []string{"room", "from_chain", "from_idx", "to_chain", "to_idx"}, rows)
}

func scanPlace(r *sql.Rows) (Place, error) {
	var p Place
	err := r.Scan(&p.Event, &p.Chain, &p.Index)
	return p, err
}

// PlacesOf finds where events stand.
func (tx Tx) PlacesOf(events []int64) ([]Place, error) {
	return sql.Collect(tx.Tx, scanPlace, `SELECT event, chain, idx FROM event_places WHERE event = ANY($1)`, events)
}

// PlacesIn lists the events of the same part of some chains.
func (tx Tx) PlacesIn(room int64, chains []int64, first, last int64, limit int) ([]Place, error) {
	return sql.Collect(tx.Tx, scanPlace, `SELECT event, chain, idx FROM event_places
		WHERE room = $1 AND chain = ANY($2) AND idx >= $3 AND idx <= $4 ORDER BY chain, idx LIMIT $5`, room, chains, first, last, limit)
}

// ChainLengths gives the highest index of chains; Event is 0.
func (tx Tx) ChainLengths(room int64, chains []int64) ([]Place, error) {
	return sql.Collect(tx.Tx, scanPlace, `SELECT 0, chain, max(idx) FROM event_places
		WHERE room = $1 AND chain = ANY($2) GROUP BY chain`, room, chains)
}

func scanLink(r *sql.Rows) (PlaceLink, error) {
	var l PlaceLink
	err := r.Scan(&l.From.Chain, &l.From.Index, &l.To.Chain, &l.To.Index)
	return l, err
}

// LinksFrom lists the links that leave chains.
func (tx Tx) LinksFrom(room int64, chains []int64) ([]PlaceLink, error) {
	return sql.Collect(tx.Tx, scanLink, `SELECT from_chain, from_idx, to_chain, to_idx FROM chain_links
		WHERE room = $1 AND from_chain = ANY($2)`, room, chains)
}

// LinksTo lists the links from other chains into the same part of some chains. SQLite is told by which index: it would
// read all links of the room.
func (tx Tx) LinksTo(room int64, chains []int64, first, last int64, limit int) ([]PlaceLink, error) {
	return sql.Collect(tx.Tx, scanLink, `SELECT from_chain, from_idx, to_chain, to_idx FROM chain_links `+
		tx.Pair(``, `INDEXED BY chain_links_to `)+
		`WHERE room = $1 AND to_chain = ANY($2) AND to_idx >= $3 AND to_idx <= $4 AND from_chain <> to_chain LIMIT $5`,
		room, chains, first, last, limit)
}
