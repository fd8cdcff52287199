package storage

import (
	"encoding/json"

	"chancery/storage/sql"
)

// AccountData is what a user keeps here under a type, globally or for a room.
type AccountData struct {
	User    string
	Room    int64 // 0: global
	Type    string
	Content json.RawMessage
}

const accountDataColumns = `user_id, room, type, content`

func scanAccountData(r *sql.Rows) (AccountData, error) {
	var v AccountData
	var content string
	err := r.Scan(&v.User, &v.Room, &v.Type, &content)
	v.User, v.Type, v.Content = sql.Untext(v.User), sql.Untext(v.Type), json.RawMessage(sql.Untext(content))
	return v, err
}

// AccountData finds one piece of a user's account data. Push rules are not among it: see PushRules.
func (tx Tx) AccountData(user string, room int64, typ string) (content json.RawMessage, ok bool, err error) {
	var text string
	err = tx.QueryRow(`SELECT content FROM account_data WHERE user_id = $1 AND room = $2 AND type = $3`,
		sql.Text(user), room, sql.Text(typ)).Scan(&text)
	return found(json.RawMessage(sql.Untext(text)), err)
}

// AccountDataOf lists a user's account data of some rooms (0: global), in no order.
func (tx Tx) AccountDataOf(user string, rooms []int64) ([]AccountData, error) {
	return sql.Collect(tx.Tx, scanAccountData,
		`SELECT `+accountDataColumns+` FROM account_data WHERE user_id = $1 AND room = ANY($2)`, sql.Text(user), rooms)
}

// AllAccountData lists all of a user's account data, in no order.
func (tx Tx) AllAccountData(user string) ([]AccountData, error) {
	return sql.Collect(tx.Tx, scanAccountData,
		`SELECT `+accountDataColumns+` FROM account_data WHERE user_id = $1`, sql.Text(user))
}

// SetAccountData stores one piece of account data.
func (tx Tx) SetAccountData(v AccountData) {
	tx.Exec(`INSERT INTO account_data (`+accountDataColumns+`) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, room, type) DO UPDATE SET content = excluded.content`,
		sql.Text(v.User), v.Room, sql.Text(v.Type), sql.Text(string(v.Content)))
}

// CountAccountData counts the types a user keeps for a room, or globally.
func (tx Tx) CountAccountData(user string, room int64) (n int64, err error) {
	err = tx.QueryRow(`SELECT count(*) FROM account_data WHERE user_id = $1 AND room = $2`, sql.Text(user), room).Scan(&n)
	return n, err
}

// PushRules reads how a user's push rules differ from the default ones; nil when they do not.
func (tx Tx) PushRules(user string) (rules json.RawMessage, err error) {
	var text string
	err = tx.QueryRow(`SELECT rules FROM push_rules WHERE user_id = $1`, sql.Text(user)).Scan(&text)
	if _, ok, err := found(text, err); err != nil || !ok {
		return nil, err
	}
	return json.RawMessage(sql.Untext(text)), nil
}

// SetPushRules stores how a user's push rules differ from the default ones.
func (tx Tx) SetPushRules(user string, rules json.RawMessage) {
	tx.Exec(`INSERT INTO push_rules (user_id, rules) VALUES ($1, $2)
		ON CONFLICT (user_id) DO UPDATE SET rules = excluded.rules`, sql.Text(user), sql.Text(string(rules)))
}

// RuleOwner is a member with push rules of their own.
type RuleOwner struct {
	User        string
	DisplayName string // in the room
	Rules       json.RawMessage
}

// RuleOwners lists the room's joined members whose push rules differ from the default ones, in no order.
func (tx Tx) RuleOwners(room int64) ([]RuleOwner, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (RuleOwner, error) {
		var v RuleOwner
		var rules string
		err := r.Scan(&v.User, &v.DisplayName, &rules)
		v.User, v.DisplayName, v.Rules = sql.Untext(v.User), sql.Untext(v.DisplayName), json.RawMessage(sql.Untext(rules))
		return v, err
	}, `SELECT m.user_id, m.displayname, p.rules FROM members m JOIN push_rules p ON p.user_id = m.user_id
		WHERE m.room = $1 AND m.membership = 'join'`, room)
}

// Filter reads a filter that a user defined.
func (tx Tx) Filter(user string, id int64) (filter json.RawMessage, ok bool, err error) {
	var text string
	err = tx.QueryRow(`SELECT filter FROM filters WHERE user_id = $1 AND id = $2`, sql.Text(user), id).Scan(&text)
	return found(json.RawMessage(sql.Untext(text)), err)
}

// FilterByHash finds the number of a filter that the user defined before.
func (tx Tx) FilterByHash(user, hash string) (id int64, ok bool, err error) {
	err = tx.QueryRow(`SELECT id FROM filters WHERE user_id = $1 AND hash = $2`, sql.Text(user), hash).Scan(&id)
	return found(id, err)
}

// LastFilter is the highest number of a user's filters, 0 when there are none.
func (tx Tx) LastFilter(user string) (id int64, err error) {
	err = tx.QueryRow(`SELECT COALESCE(max(id), 0) FROM filters WHERE user_id = $1`, sql.Text(user)).Scan(&id)
	return id, err
}

// InsertFilter stores a filter, and forgets those that are far older.
func (tx Tx) InsertFilter(user string, id int64, hash string, filter json.RawMessage) {
	tx.Exec(`INSERT INTO filters (user_id, id, hash, filter) VALUES ($1, $2, $3, $4)`,
		sql.Text(user), id, hash, sql.Text(string(filter)))
	tx.Exec(`DELETE FROM filters WHERE user_id = $1 AND id <= $2`, sql.Text(user), id-keptFilters)
}

const keptFilters = 1000

// Pusher is where a user wants to be notified.
type Pusher struct {
	User    string
	AppID   string
	Key     string
	Device  string
	Created int64
	Pusher  json.RawMessage
}

const pusherColumns = `user_id, app_id, push_key, device, created, pusher`

func scanPusher(r *sql.Rows) (Pusher, error) {
	var v Pusher
	var text string
	err := r.Scan(&v.User, &v.AppID, &v.Key, &v.Device, &v.Created, &text)
	v.User, v.AppID, v.Key, v.Device = sql.Untext(v.User), sql.Untext(v.AppID), sql.Untext(v.Key), sql.Untext(v.Device)
	v.Pusher = json.RawMessage(sql.Untext(text))
	return v, err
}

// PushersOf lists a user's pushers, eldest first.
func (tx Tx) PushersOf(user string) ([]Pusher, error) {
	return sql.Collect(tx.Tx, scanPusher,
		`SELECT `+pusherColumns+` FROM pushers WHERE user_id = $1 ORDER BY created, app_id, push_key`, sql.Text(user))
}

// SetPusher stores a pusher.
func (tx Tx) SetPusher(v Pusher) {
	tx.Exec(`INSERT INTO pushers (`+pusherColumns+`) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (user_id, app_id, push_key) DO UPDATE SET device = excluded.device, pusher = excluded.pusher`,
		sql.Text(v.User), sql.Text(v.AppID), sql.Text(v.Key), sql.Text(v.Device), v.Created, sql.Text(string(v.Pusher)))
}

// DeletePusher removes a user's pusher.
func (tx Tx) DeletePusher(user, appID, key string) {
	tx.Exec(`DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND push_key = $3`, sql.Text(user), sql.Text(appID), sql.Text(key))
}

// DeletePushersOfOthers removes the pushers to one place of all users but one.
func (tx Tx) DeletePushersOfOthers(user, appID, key string) {
	tx.Exec(`DELETE FROM pushers WHERE app_id = $2 AND push_key = $3 AND user_id <> $1`, sql.Text(user), sql.Text(appID), sql.Text(key))
}

// DeletePushers removes what a device set.
func (tx Tx) DeletePushers(user, device string) {
	tx.Exec(`DELETE FROM pushers WHERE user_id = $1 AND device = $2`, sql.Text(user), sql.Text(device))
}
