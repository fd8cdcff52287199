package sql

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

//go:embed migrations/*.sql
var ownMigrations embed.FS

// migration is one numbered file. Its first line says its kind: after an "-- expand" the
// previous release goes on running, a "-- contract" takes away what it needs. A line
// "-- requires 0.4" names the oldest release that may run afterwards.
type migration struct {
	part     string // "sql" for the engine's, "storage" for the tables'
	number   int64
	name     string
	kind     string
	requires string
	text     string
	checksum string
}

var migrationName = regexp.MustCompile(`^(\d{4})_([a-z0-9_]+)\.sql$`)

func readMigrations(part string, files fs.FS) ([]migration, error) {
	var all []migration
	err := fs.WalkDir(files, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(p) != ".sql" {
			return err
		}
		name := migrationName.FindStringSubmatch(path.Base(p))
		if name == nil {
			return fmt.Errorf("migration %s: the name is not NNNN_name.sql", p)
		}
		text, err := fs.ReadFile(files, p)
		if err != nil {
			return err
		}
		m := migration{part: part, name: name[2], text: string(text)}
		m.number, _ = strconv.ParseInt(name[1], 10, 64)
		sum := sha256.Sum256(text)
		m.checksum = hex.EncodeToString(sum[:])
		for i, line := range strings.Split(m.text, "\n") {
			line = strings.TrimSpace(line)
			if i == 0 {
				m.kind = strings.TrimPrefix(line, "-- ")
			}
			if after, ok := strings.CutPrefix(line, "-- requires "); ok {
				m.requires = strings.TrimSpace(after)
			}
		}
		if m.kind != "expand" && m.kind != "contract" {
			return fmt.Errorf("migration %s: the first line is neither \"-- expand\" nor \"-- contract\"", p)
		}
		all = append(all, m)
		return nil
	})
	slices.SortFunc(all, func(a, b migration) int { return int(a.number - b.number) })
	for i := 1; i < len(all); i++ {
		if all[i].number == all[i-1].number {
			return nil, fmt.Errorf("two migrations have the number %04d", all[i].number)
		}
	}
	return all, err
}

const migrationsTable = `CREATE TABLE IF NOT EXISTS migrations (
	part TEXT NOT NULL, number BIGINT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
	requires TEXT NOT NULL, checksum TEXT NOT NULL, applied BIGINT NOT NULL, PRIMARY KEY (part, number))`

// migrate runs what is missing, each file in one transaction, one process at a time.
func (db *DB) migrate(ctx context.Context, o Options) error {
	all, err := readMigrations("sql", ownMigrations)
	if err != nil {
		return err
	}
	if o.Migrations != nil {
		more, err := readMigrations("storage", o.Migrations)
		if err != nil {
			return err
		}
		all = append(all, more...)
	}
	s, err := db.writer(ctx)
	if err != nil {
		return err
	}
	translate := schemaForSQLite
	if db.OnPostgreSQL() {
		translate = schemaForPostgreSQL
		// A lock of the session: it spans all files. Waiting may take as long as the other's work.
		if err := s.script(ctx, fmt.Sprintf(`SET lock_timeout = 0; SET statement_timeout = 0; SELECT pg_advisory_lock(%d)`, lockMigrate)); err != nil {
			return fmt.Errorf("wait for another process that migrates: %w", err)
		}
		defer func() {
			if err := s.script(context.Background(), fmt.Sprintf(`SELECT pg_advisory_unlock(%d); %s`, lockMigrate, sessionSettings)); err != nil {
				s.close() // closing it releases the lock too
			}
		}()
	}
	if err := s.script(ctx, translate(migrationsTable)); err != nil {
		return fmt.Errorf("create the table of migrations: %w", err)
	}
	applied, err := db.applied(ctx, s)
	if err != nil {
		return err
	}
	if err := mayRun(applied, all, o.Release); err != nil {
		return err
	}
	for _, m := range all {
		if _, ok := applied[key(m)]; ok {
			continue
		}
		if err := db.apply(ctx, s, m, translate(m.text)); err != nil {
			return fmt.Errorf("migration %s %04d_%s: %w", m.part, m.number, m.name, err)
		}
		db.log.Info("migrated", zap.String("part", m.part), zap.Int64("number", m.number), zap.String("name", m.name))
	}
	return nil
}

func key(m migration) string { return fmt.Sprintf("%s/%04d", m.part, m.number) }

func (db *DB) applied(ctx context.Context, s session) (map[string]migration, error) {
	applied := map[string]migration{}
	err := db.inside(ctx, s, func(tx *Tx) error {
		list, err := Collect(tx, func(r *Rows) (m migration, err error) {
			err = r.Scan(&m.part, &m.number, &m.name, &m.kind, &m.requires, &m.checksum)
			return m, err
		}, `SELECT part, number, name, kind, requires, checksum FROM migrations ORDER BY part, number`)
		for _, m := range list {
			applied[key(m)] = m
		}
		return err
	})
	return applied, err
}

// mayRun refuses a program that is too old for the database, and files that were changed
// after they had been applied.
func mayRun(applied map[string]migration, ours []migration, release string) error {
	known := map[string]bool{}
	for _, m := range ours {
		known[key(m)] = true
		if a, ok := applied[key(m)]; ok && a.checksum != m.checksum {
			return fmt.Errorf("migration %s_%s was changed after it had been applied to this database", key(m), m.name)
		}
	}
	for k, m := range applied {
		if m.requires != "" && release != "" && older(release, m.requires) {
			return fmt.Errorf("this database needs release %s or newer, this is %s", m.requires, release)
		}
		if !known[k] && m.kind == "contract" && (m.requires == "" || release == "") {
			return fmt.Errorf("this database was changed by a newer release (%s_%s) with which this one cannot work", k, m.name)
		}
	}
	return nil
}

// older compares releases such as 0.9.1 and 0.10 number by number.
func older(a, b string) bool {
	x, y := strings.Split(strings.TrimPrefix(a, "v"), "."), strings.Split(strings.TrimPrefix(b, "v"), ".")
	for i := range max(len(x), len(y)) {
		m, n := part(x, i), part(y, i)
		if m != n {
			return m < n
		}
	}
	return false
}

func part(list []string, i int) (n int) {
	if i < len(list) {
		digits, _, _ := strings.Cut(list[i], "-")
		n, _ = strconv.Atoi(digits)
	}
	return n
}

func (db *DB) apply(ctx context.Context, s session, m migration, script string) error {
	return db.inside(ctx, s, func(tx *Tx) error {
		if err := s.flush(); err != nil { // BEGIN
			return err
		}
		if err := s.script(ctx, script); err != nil {
			return err
		}
		tx.Exec(`INSERT INTO migrations (part, number, name, kind, requires, checksum, applied) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
			m.part, m.number, m.name, m.kind, m.requires, m.checksum, time.Now())
		return nil
	})
}

// inside runs fn in a transaction of the writing session, before the committer runs.
func (db *DB) inside(ctx context.Context, s session, fn func(*Tx) error) error {
	if err := s.begin(ctx, true); err != nil {
		s.rollback()
		return err
	}
	tx := &Tx{db: db, s: s, ctx: ctx, write: true}
	err := tx.finish(fn(tx))
	if err == nil {
		_, err = s.commit(nil)
	}
	if err != nil {
		s.rollback()
	}
	return err
}
