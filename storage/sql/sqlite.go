package sql

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"
	"zombiezen.com/go/sqlite"
)

const (
	walTruncate     = 64 << 20
	checkpointEvery = 500 * time.Millisecond
)

// sqliteEngine is a file with one writing connection and a pool of reading ones.
type sqliteEngine struct {
	path  string
	write *sqliteSession
	reads chan *sqliteSession // nil: not opened yet
	texts translations
	check *sqlite.Conn // checkpoints, so that they never hold up the writer's own connection
	cut   time.Time    // when the write-ahead log was last cut off, or that was tried
	end   chan struct{}
	log   *zap.Logger
}

func openSQLite(o Options) (*sqliteEngine, error) {
	e := &sqliteEngine{path: o.Path, log: o.Log, reads: make(chan *sqliteSession, o.MaxConnections), end: make(chan struct{})}
	conn, err := e.connect()
	if err != nil {
		return nil, err
	}
	e.write = &sqliteSession{e: e, conn: conn}
	if e.check, err = e.connect(); err != nil {
		conn.Close()
		return nil, err
	}
	e.check.SetBusyTimeout(time.Second) // as long as a read may take: writers wait meanwhile
	for range o.MaxConnections {
		e.reads <- nil
	}
	return e, nil
}

func (e *sqliteEngine) connect() (*sqlite.Conn, error) {
	conn, err := sqlite.OpenConn(e.path, sqlite.OpenReadWrite, sqlite.OpenCreate, sqlite.OpenWAL)
	if err != nil {
		return nil, fmt.Errorf("open the database file %s: %w", e.path, err)
	}
	conn.SetBusyTimeout(20 * time.Second)
	for _, pragma := range []string{
		`PRAGMA synchronous = FULL`, // an acknowledged commit survives a power loss
		`PRAGMA wal_autocheckpoint = 0`,
		`PRAGMA cache_size = -8000`,
		`PRAGMA temp_store = MEMORY`,
	} {
		if err := runScript(conn, pragma); err != nil {
			conn.Close()
			return nil, fmt.Errorf("%s: %w", pragma, err)
		}
	}
	return conn, nil
}

func (e *sqliteEngine) writer(context.Context) (session, error) { return e.write, nil }

func (e *sqliteEngine) reader(ctx context.Context) (session, func(), error) {
	select {
	case s := <-e.reads:
		if s == nil {
			conn, err := e.connect()
			if err == nil {
				err = runScript(conn, `PRAGMA query_only = ON`)
			}
			if err != nil {
				e.reads <- nil
				return nil, nil, err
			}
			s = &sqliteSession{e: e, conn: conn}
		}
		return s, func() { e.reads <- s }, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-e.end:
		return nil, nil, ErrClosed
	}
}

// close waits for the readers; the last connection leaves a checkpointed file.
func (e *sqliteEngine) close() {
	close(e.end)
	for range cap(e.reads) {
		if s := <-e.reads; s != nil {
			s.conn.Close()
		}
	}
	e.check.Close()
	e.write.conn.Close()
}

// checkpoint moves the WAL into the file without waiting for anybody; a WAL that grew large
// is cut off, which waits for readers.
func (e *sqliteEngine) checkpoint() {
	mode := "PASSIVE"
	if info, err := os.Stat(e.path + "-wal"); err == nil && info.Size() > walTruncate && time.Since(e.cut) > 10*time.Second {
		e.cut = time.Now()
		mode = "TRUNCATE"
	}
	if err := runScript(e.check, `PRAGMA wal_checkpoint(`+mode+`)`); err != nil {
		e.log.Warn("checkpoint failed", zap.String("mode", mode), zap.Error(err))
	}
}

type sqliteSession struct {
	e     *sqliteEngine
	conn  *sqlite.Conn
	count int
}

func (s *sqliteSession) begin(ctx context.Context, write bool) error {
	s.count = 0
	s.conn.SetInterrupt(ctx.Done())
	if write {
		return s.simple(`BEGIN IMMEDIATE`)
	}
	return s.simple(`BEGIN`)
}

func (s *sqliteSession) simple(query string) error {
	stmt, err := s.conn.Prepare(query)
	if err != nil {
		return err
	}
	_, err = stmt.Step()
	if err == nil {
		err = stmt.Reset()
	}
	return err
}

func (s *sqliteSession) prepare(query string, args []any) (*sqlite.Stmt, error) {
	s.count++
	stmt, err := s.conn.Prepare(s.e.texts.forSQLite(query))
	if err != nil {
		return nil, err
	}
	if n := stmt.BindParamCount(); n != len(args) {
		return nil, fmt.Errorf("%d parameters, %d arguments", n, len(args))
	}
	return stmt, bindSQLite(stmt, args)
}

func bindSQLite(stmt *sqlite.Stmt, args []any) error {
	for i, a := range args {
		switch v := a.(type) {
		case nil:
			stmt.BindNull(i + 1)
		case int64:
			stmt.BindInt64(i+1, v)
		case float64:
			stmt.BindFloat(i+1, v)
		case bool:
			stmt.BindBool(i+1, v)
		case string:
			if strings.IndexByte(v, 0) >= 0 { // as PostgreSQL does: a missing Text must not go unseen
				return fmt.Errorf("$%d: text holds U+0000 that was not escaped", i+1)
			}
			stmt.BindText(i+1, v)
		case []byte:
			stmt.BindBytes(i+1, v)
		default: // a set, for json_each
			text, err := json.Marshal(v)
			if err != nil {
				return err
			}
			stmt.BindText(i+1, string(text))
		}
	}
	return nil
}

func (s *sqliteSession) exec(query string, args []any) error {
	stmt, err := s.prepare(query, args)
	if err != nil {
		return err
	}
	for {
		more, err := stmt.Step()
		if err != nil {
			return err
		}
		if !more {
			return stmt.Reset()
		}
	}
}

func (s *sqliteSession) execRows(query string, args []any) (int64, error) {
	if err := s.exec(query, args); err != nil {
		return 0, err
	}
	return int64(s.conn.Changes()), nil
}

func (s *sqliteSession) query(query string, args []any) (cursor, error) {
	stmt, err := s.prepare(query, args)
	if err != nil {
		return nil, err
	}
	return &sqliteCursor{stmt: stmt, n: stmt.ColumnCount()}, nil
}

// copyIn runs one prepared INSERT a row: faster here than long lists of VALUES.
func (s *sqliteSession) copyIn(table string, columns []string, rows [][]any, onConflict string) error {
	query := `INSERT INTO ` + table + ` (` + strings.Join(columns, ", ") + `) VALUES (?` +
		strings.Repeat(", ?", len(columns)-1) + `)` + onConflict
	for _, row := range rows {
		if err := s.exec(query, row); err != nil {
			return err
		}
	}
	return nil
}

func (s *sqliteSession) savepoint() error { return s.simple(`SAVEPOINT one`) }

// rollbackTo undoes one function. An interrupt, a full disk and some other errors have rolled
// back the whole transaction before we come here: then nothing of the group stands.
func (s *sqliteSession) rollbackTo() bool {
	if s.conn.AutocommitEnabled() {
		return false
	}
	return s.simple(`ROLLBACK TO one`) == nil && s.simple(`RELEASE one`) == nil
}

func (s *sqliteSession) flush() error    { return nil }
func (s *sqliteSession) statements() int { return s.count }
func (s *sqliteSession) broken() bool    { return false }
func (s *sqliteSession) close()          {}

func (s *sqliteSession) commit(facts []*Fact) (unknown bool, err error) {
	if len(facts) > 0 {
		if err := s.place(facts); err != nil {
			return false, fmt.Errorf("give facts their positions: %w", err)
		}
	}
	err = s.simple(`COMMIT`)
	if err == nil {
		s.conn.SetInterrupt(nil)
		return false, nil
	}
	// A failed fsync may or may not have reached the disk.
	return sqlite.ErrCode(err).ToPrimary() == sqlite.ResultIOErr, err
}

func (s *sqliteSession) place(facts []*Fact) error {
	stmt, err := s.prepare(`SELECT max(pos) FROM facts`, nil)
	if err != nil {
		return err
	}
	if _, err := stmt.Step(); err != nil {
		return err
	}
	top := stmt.ColumnInt64(0)
	if err := stmt.Reset(); err != nil {
		return err
	}
	for i, f := range facts {
		f.Pos = top + int64(i) + 1
		if err := s.exec(insertFact, factArgs(f)); err != nil {
			return err
		}
	}
	return nil
}

func (s *sqliteSession) rollback() {
	s.conn.SetInterrupt(nil)
	if s.conn.AutocommitEnabled() {
		return
	}
	if err := s.simple(`ROLLBACK`); err != nil {
		s.e.log.Error("rollback failed", zap.Error(err))
	}
}

func (s *sqliteSession) script(_ context.Context, text string) error {
	return runScript(s.conn, text)
}

func runScript(conn *sqlite.Conn, text string) error {
	for !onlyComments(text) {
		stmt, rest, err := conn.PrepareTransient(text)
		if err != nil {
			return err
		}
		used := text[:len(text)-rest]
		for more := true; more && err == nil; {
			more, err = stmt.Step()
		}
		if e := stmt.Finalize(); err == nil {
			err = e
		}
		if err != nil {
			return fmt.Errorf("%s: %w", oneLine(used), err)
		}
		if rest == 0 {
			return nil
		}
		text = text[len(text)-rest:]
	}
	return nil
}

// onlyComments says that no statement is left: SQLite prepares nothing from it.
func onlyComments(text string) bool {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "--") {
			return false
		}
	}
	return true
}

type sqliteCursor struct {
	stmt *sqlite.Stmt
	n    int
}

func (c *sqliteCursor) next() (bool, error) { return c.stmt.Step() }
func (c *sqliteCursor) columns() int        { return c.n }
func (c *sqliteCursor) close() error        { return c.stmt.Reset() }

func (c *sqliteCursor) value(i int) (value, error) {
	switch c.stmt.ColumnType(i) {
	case sqlite.TypeInteger:
		return value{kind: isInt, int: c.stmt.ColumnInt64(i)}, nil
	case sqlite.TypeFloat:
		return value{kind: isFloat, float: c.stmt.ColumnFloat(i)}, nil
	case sqlite.TypeText:
		return value{kind: isText, text: c.stmt.ColumnText(i)}, nil
	case sqlite.TypeBlob:
		b := make([]byte, c.stmt.ColumnLen(i))
		c.stmt.ColumnBytes(i, b)
		return value{kind: isBytes, bytes: b}, nil
	case sqlite.TypeNull:
		return value{}, nil
	}
	return value{}, errors.New("unknown column type")
}
