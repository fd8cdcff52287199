package sql

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/zap"
)

// A dead client must not hold the lock of positions, nor a row, for the two hours TCP allows.
const sessionSettings = `
	SET tcp_keepalives_idle = 5; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3;
	SET tcp_user_timeout = 20000;
	SET lock_timeout = 10000; SET statement_timeout = 60000;
	SET idle_in_transaction_session_timeout = 20000;
	SET client_min_messages = warning`

const voidOID = 2278 // what a lock answers

const (
	lockFacts   int64 = 0x63686e6366616374 // "chncfact"
	lockMigrate int64 = 0x63686e636d696772 // "chncmigr"
)

type postgresEngine struct {
	config *pgx.ConnConfig
	pool   *pgxpool.Pool // readers
	write  *postgresSession
	side   sync.Mutex // guards sideConn: number blocks and checks, so that they never wait for a reader
	conn   *pgx.Conn
	types  sync.Map // table -> map[column]type
	log    *zap.Logger
}

func openPostgreSQL(ctx context.Context, o Options) (*postgresEngine, error) {
	config, err := pgxpool.ParseConfig(o.URL)
	if err != nil {
		return nil, fmt.Errorf("read the database URL: %w", err)
	}
	config.MaxConns = int32(max(o.MaxConnections-2, 1)) // the writer and the side connection are the other two
	config.MaxConnIdleTime = 5 * time.Minute
	config.ConnConfig.ConnectTimeout = min(max(config.ConnConfig.ConnectTimeout, 5*time.Second), 30*time.Second)
	config.ConnConfig.RuntimeParams["client_encoding"] = "UTF8" // so that refuse can speak to any database
	config.AfterConnect = prepareSession
	e := &postgresEngine{config: config.ConnConfig, log: o.Log}
	if e.write, err = e.connectWriter(ctx); err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	if err := e.refuse(ctx); err != nil {
		e.write.close()
		return nil, err
	}
	if e.pool, err = pgxpool.NewWithConfig(ctx, config); err != nil {
		e.write.close()
		return nil, err
	}
	return e, nil
}

func prepareSession(ctx context.Context, conn *pgx.Conn) error {
	var sync string
	if err := conn.QueryRow(ctx, `SHOW synchronous_commit`, pgx.QueryExecModeSimpleProtocol).Scan(&sync); err != nil {
		return err
	}
	settings := sessionSettings
	if sync != "on" && sync != "remote_apply" { // what is acknowledged is on disk
		settings += `; SET synchronous_commit = on`
	}
	_, err := conn.PgConn().Exec(ctx, settings).ReadAll()
	return err
}

// refuse says why this server must not be used.
func (e *postgresEngine) refuse(ctx context.Context) error {
	var fsync, encoding string
	err := e.write.conn.QueryRow(ctx, `SELECT current_setting('fsync'), current_setting('server_encoding')`).Scan(&fsync, &encoding)
	switch {
	case err != nil:
		return err
	case fsync != "on":
		return errors.New("PostgreSQL runs with fsync=off and may lose what it acknowledged: switch it on")
	case encoding != "UTF8":
		return fmt.Errorf("the database's encoding is %s: create it with ENCODING 'UTF8'", encoding)
	}
	return nil
}

func (e *postgresEngine) connect(ctx context.Context) (*pgx.Conn, error) {
	conn, err := pgx.ConnectConfig(ctx, e.config.Copy())
	if err != nil {
		return nil, err
	}
	if err := prepareSession(ctx, conn); err != nil {
		conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

func (e *postgresEngine) connectWriter(ctx context.Context) (*postgresSession, error) {
	conn, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	return &postgresSession{e: e, conn: conn, used: time.Now()}, nil
}

// idleFor is how long a connection may have been idle and be believed to stand. A first write that is sent into one that
// has been cut, mostly as long as nobody wrote, has an outcome that nobody knows; the pool asks after the same time.
const idleFor = time.Second

// writer gives the one writing session, connected again when it was lost.
func (e *postgresEngine) writer(ctx context.Context) (session, error) {
	if e.write != nil && time.Since(e.write.used) > idleFor {
		asked, cancel := context.WithTimeout(ctx, 5*time.Second)
		if err := e.write.conn.Ping(asked); err != nil {
			closeConn(e.write.conn)
		}
		cancel()
	}
	if e.write != nil && !e.write.broken() {
		return e.write, nil
	}
	if e.write != nil {
		e.write.close()
		e.write = nil
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		s, err := e.connectWriter(ctx)
		if err == nil {
			e.log.Info("connected to PostgreSQL again")
			e.write = s
			return s, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
		case <-time.After(wait):
		}
	}
}

func (e *postgresEngine) reader(ctx context.Context) (session, func(), error) {
	c, err := e.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	return &postgresSession{e: e, conn: c.Conn(), read: true}, c.Release, nil
}

// aside runs fn with a connection of its own that no reader and no group can hold. What fn does may be done twice: it
// runs again when the connection turns out to be lost.
func (e *postgresEngine) aside(ctx context.Context, fn func(*pgx.Conn) error) (err error) {
	e.side.Lock()
	defer e.side.Unlock()
	for range 2 {
		if e.conn == nil || e.conn.IsClosed() {
			if e.conn, err = e.connect(ctx); err != nil {
				e.conn = nil
				return err
			}
		}
		if err = fn(e.conn); err == nil || !e.conn.IsClosed() || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (e *postgresEngine) close() {
	e.pool.Close()
	if e.write != nil {
		e.write.close()
	}
	e.side.Lock()
	defer e.side.Unlock()
	if e.conn != nil {
		closeConn(e.conn)
	}
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn.Close(ctx)
}

// postgresSession queues statements and sends them in one flush with what needs an answer.
type postgresSession struct {
	e      *postgresEngine
	conn   *pgx.Conn
	ctx    context.Context
	read   bool
	queue  *pgx.Batch
	count  int
	mark   int  // length of the queue at the savepoint
	wrote  bool // something after the savepoint has left
	failed bool
	used   time.Time // when the last transaction ended
}

func (s *postgresSession) begin(ctx context.Context, write bool) error {
	s.ctx, s.queue, s.count, s.mark, s.wrote, s.failed = ctx, &pgx.Batch{}, 0, 0, false, false
	if write {
		s.queue.Queue(`BEGIN`)
	} else {
		s.queue.Queue(`BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY`)
	}
	return nil
}

func (s *postgresSession) add(query string, args []any) {
	s.count++
	s.queue.Queue(query, args...)
}

func (s *postgresSession) exec(query string, args []any) error {
	s.add(query, args)
	if s.queue.Len() >= 500 { // bounded memory, and the server begins to work
		return s.flush()
	}
	return nil
}

// send sends the queue and reads the answers of all but the last statement.
func (s *postgresSession) send() (pgx.BatchResults, error) {
	if s.queue.Len() > s.mark {
		s.wrote = true
	}
	b := s.queue
	s.queue, s.mark = &pgx.Batch{}, 0
	br := s.conn.SendBatch(s.ctx, b)
	for range b.Len() - 1 {
		if _, err := br.Exec(); err != nil {
			s.failed = true
			br.Close()
			return nil, err
		}
	}
	return br, nil
}

func (s *postgresSession) flush() error {
	_, err := s.flushRows()
	return err
}

func (s *postgresSession) flushRows() (int64, error) {
	if s.queue.Len() == 0 {
		return 0, nil
	}
	br, err := s.send()
	if err != nil {
		return 0, err
	}
	tag, err := br.Exec()
	if e := br.Close(); err == nil {
		err = e
	}
	if err != nil {
		s.failed = true
	}
	return tag.RowsAffected(), err
}

func (s *postgresSession) execRows(query string, args []any) (int64, error) {
	s.add(query, args)
	return s.flushRows()
}

// query leaves wrote as it was when only reads were added: a function that has read and then
// refuses does not spoil its group. A query that changes rows begins with another word.
func (s *postgresSession) query(query string, args []any) (cursor, error) {
	own := s.queue.Len() > s.mark || !selects(query)
	wrote := s.wrote
	s.add(query, args)
	br, err := s.send()
	s.wrote = wrote || own
	if err != nil {
		return nil, err
	}
	rows, err := br.Query()
	if err != nil {
		s.failed = true
		br.Close()
		return nil, err
	}
	return &postgresCursor{s: s, br: br, rows: rows}, nil
}

func selects(query string) bool {
	query = strings.TrimSpace(query)
	return len(query) > 6 && strings.EqualFold(query[:6], "SELECT")
}

// copyIn sends columns as arrays: one statement that stays in the pipeline. COPY into a
// temporary table would cost two answers more and rows in the catalogue.
func (s *postgresSession) copyIn(table string, columns []string, rows [][]any, onConflict string) error {
	types, err := s.columnTypes(table)
	if err != nil {
		return err
	}
	params := make([]string, len(columns))
	args := make([]any, len(columns))
	for i, name := range columns {
		t, ok := types[name]
		if !ok {
			return fmt.Errorf("table %s has no column %s", table, name)
		}
		if args[i], err = columnOf(rows, i, t); err != nil {
			return fmt.Errorf("column %s: %w", name, err)
		}
		params[i] = fmt.Sprintf("$%d::%s[]", i+1, t)
	}
	return s.exec(`INSERT INTO `+table+` (`+strings.Join(columns, ", ")+`) SELECT * FROM unnest(`+
		strings.Join(params, ", ")+`)`+onConflict, args)
}

func (s *postgresSession) columnTypes(table string) (map[string]string, error) {
	if known, ok := s.e.types.Load(table); ok {
		return known.(map[string]string), nil
	}
	c, err := s.query(`SELECT attname::text, format_type(atttypid, NULL) FROM pg_attribute
		WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped`, []any{table})
	if err != nil {
		return nil, err
	}
	types := map[string]string{}
	for {
		more, err := c.next()
		if err != nil || !more {
			if e := c.close(); err == nil {
				err = e
			}
			if err == nil && len(types) == 0 {
				err = fmt.Errorf("there is no table %s", table)
			}
			if err != nil {
				return nil, err
			}
			s.e.types.Store(table, types)
			return types, nil
		}
		name, _ := c.value(0)
		kind, _ := c.value(1)
		n, _ := name.string()
		types[n], _ = kind.string()
	}
}

// columnOf is one column of the rows as an array of the type that the table has.
func columnOf(rows [][]any, i int, kind string) (any, error) {
	switch kind {
	case "bigint", "integer", "smallint":
		return column[int64](rows, i)
	case "text":
		return column[string](rows, i)
	case "boolean":
		return column[bool](rows, i)
	case "bytea":
		all := make([][]byte, len(rows))
		for n, row := range rows {
			if row[i] == nil {
				continue
			}
			b, ok := row[i].([]byte)
			if !ok {
				return nil, fmt.Errorf("row %d: %T is no bytes", n, row[i])
			}
			all[n] = b
		}
		return all, nil
	}
	return nil, fmt.Errorf("type %s is not common to both engines", kind)
}

func column[T any](rows [][]any, i int) ([]*T, error) {
	all, values := make([]*T, len(rows)), make([]T, len(rows))
	for n, row := range rows {
		if row[i] == nil {
			continue
		}
		v, ok := row[i].(T)
		if !ok {
			return nil, fmt.Errorf("row %d: %T does not fit", n, row[i])
		}
		values[n] = v
		all[n] = &values[n]
	}
	return all, nil
}

func (s *postgresSession) savepoint() error {
	s.mark, s.wrote = s.queue.Len(), false
	return nil
}

// rollbackTo forgets what one function has queued. There are no savepoints: more than 64 in a
// transaction overflow PostgreSQL's cache and slow down everybody who reads.
func (s *postgresSession) rollbackTo() bool {
	if s.failed || s.wrote || s.broken() {
		return false
	}
	s.queue.QueuedQueries = s.queue.QueuedQueries[:s.mark]
	return true
}

func (s *postgresSession) statements() int { return s.count }
func (s *postgresSession) broken() bool    { return s.conn.IsClosed() }
func (s *postgresSession) close()          { closeConn(s.conn) }

// placeFacts gives positions: after the lock, as a statement of its own, so that its snapshot
// sees every fact committed before.
const placeFacts = `INSERT INTO facts (pos, kind, room, event, ord, root, user_id, device_id, extra)
	SELECT m.top + f.i, f.kind, f.room, f.event, f.ord, f.root, f.user_id, f.device_id, f.extra
	FROM (SELECT max(pos) AS top FROM facts) m,
		unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[])
		WITH ORDINALITY AS f (kind, room, event, ord, root, user_id, device_id, extra, i)
	RETURNING pos`

// commit ends the transaction. What is still queued, the lock, the facts and COMMIT leave in
// one flush: the lock is held for the commit only.
func (s *postgresSession) commit(facts []*Fact) (unknown bool, err error) {
	if s.read && s.queue.Len() > 0 && s.count == 0 { // nothing was asked, so nothing was begun
		return false, nil
	}
	defer func() { s.used = time.Now() }()
	before := s.queue.Len()
	if len(facts) > 0 {
		s.queue.Queue(`SELECT pg_advisory_xact_lock($1)`, lockFacts)
		s.queue.Queue(placeFacts, factColumns(facts)...)
	}
	s.queue.Queue(`COMMIT`)
	n := s.queue.Len()
	b := s.queue
	s.queue, s.mark, s.wrote = &pgx.Batch{}, 0, true
	br := s.conn.SendBatch(s.ctx, b)
	for i := range n {
		var err error
		switch {
		case len(facts) > 0 && i == before+1:
			err = readPositions(br, facts)
		default:
			var tag pgconn.CommandTag
			if tag, err = br.Exec(); err == nil && i == n-1 && tag.String() != "COMMIT" {
				err = fmt.Errorf("COMMIT answered %s", tag)
			}
		}
		if err != nil {
			s.failed = true
			br.Close()
			return s.outcomeUnknown(err), err
		}
	}
	if err := br.Close(); err != nil {
		s.e.log.Warn("end of a committed pipeline", zap.Error(err))
	}
	return false, nil
}

// outcomeUnknown: an error the server tells stops the pipeline before COMMIT; a connection that
// is lost tells nothing.
func (s *postgresSession) outcomeUnknown(err error) bool {
	var told *pgconn.PgError
	if errors.As(err, &told) && told.Severity == "ERROR" {
		return false
	}
	return s.broken()
}

func readPositions(br pgx.BatchResults, facts []*Fact) error {
	rows, err := br.Query()
	if err != nil {
		return err
	}
	defer rows.Close()
	var first int64 = math.MaxInt64
	n := 0
	for rows.Next() {
		var pos int64
		if err := rows.Scan(&pos); err != nil {
			return err
		}
		first = min(first, pos)
		n++
	}
	if err := rows.Err(); err != nil {
		return err
	}
	if n != len(facts) {
		return fmt.Errorf("%d of %d facts got a position", n, len(facts))
	}
	for i, f := range facts {
		f.Pos = first + int64(i)
	}
	return nil
}

func (s *postgresSession) rollback() {
	s.queue = nil
	if s.broken() || s.conn.PgConn().TxStatus() == 'I' {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := s.conn.Exec(ctx, `ROLLBACK`); err != nil {
		s.close()
	}
	s.used = time.Now()
}

func (s *postgresSession) script(ctx context.Context, text string) error {
	_, err := s.conn.PgConn().Exec(ctx, text).ReadAll()
	return err
}

type postgresCursor struct {
	s    *postgresSession
	br   pgx.BatchResults
	rows pgx.Rows
}

func (c *postgresCursor) next() (bool, error) {
	if c.rows.Next() {
		return true, nil
	}
	return false, c.rows.Err()
}

func (c *postgresCursor) columns() int { return len(c.rows.FieldDescriptions()) }

func (c *postgresCursor) close() error {
	c.rows.Close()
	err := c.rows.Err()
	if e := c.br.Close(); err == nil {
		err = e
	}
	if err != nil {
		c.s.failed = true
	}
	return err
}

func (c *postgresCursor) value(i int) (value, error) {
	raw, f := c.rows.RawValues()[i], c.rows.FieldDescriptions()[i]
	if raw == nil {
		return value{}, nil
	}
	bin := f.Format == pgtype.BinaryFormatCode
	switch f.DataTypeOID {
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.NameOID, pgtype.UnknownOID, pgtype.BPCharOID:
		return value{kind: isText, bytes: raw}, nil
	case pgtype.Int8OID:
		if bin {
			return value{kind: isInt, int: int64(binary.BigEndian.Uint64(raw))}, nil
		}
	case pgtype.Int4OID:
		if bin {
			return value{kind: isInt, int: int64(int32(binary.BigEndian.Uint32(raw)))}, nil
		}
	case pgtype.Int2OID:
		if bin {
			return value{kind: isInt, int: int64(int16(binary.BigEndian.Uint16(raw)))}, nil
		}
	case pgtype.BoolOID:
		if bin {
			return value{kind: isInt, int: int64(raw[0])}, nil
		}
	case pgtype.ByteaOID:
		if bin {
			return value{kind: isBytes, bytes: raw}, nil
		}
	case voidOID:
		return value{}, nil
	}
	return c.convert(raw, f)
}

// convert takes numbers that PostgreSQL widens, such as sum() of BIGINT.
func (c *postgresCursor) convert(raw []byte, f pgconn.FieldDescription) (value, error) {
	types := c.s.conn.TypeMap()
	if f.DataTypeOID == pgtype.BoolOID {
		var b bool
		err := types.Scan(f.DataTypeOID, f.Format, raw, &b)
		if b {
			return value{kind: isInt, int: 1}, err
		}
		return value{kind: isInt}, err
	}
	var n int64
	if types.Scan(f.DataTypeOID, f.Format, raw, &n) == nil {
		return value{kind: isInt, int: n}, nil
	}
	var x float64
	if err := types.Scan(f.DataTypeOID, f.Format, raw, &x); err != nil {
		return value{}, fmt.Errorf("type %d is not common to both engines: %w", f.DataTypeOID, err)
	}
	return value{kind: isFloat, float: x}, nil
}
