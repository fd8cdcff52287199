// Package sqltest runs a test on both engines. It starts one private PostgreSQL a test binary
// where PostgreSQL's programs are installed, as another user when we are root, and says in one
// visible line when it runs without.
package sqltest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/storage/sql"
)

// URLVariable names a PostgreSQL to use instead of a private one. Each test gets a database of
// its own there, dropped at its end.
const URLVariable = "CHANCERY_TEST_POSTGRES"

// Each runs a test on SQLite and on PostgreSQL. fresh gives the options of a new, empty
// database; opened again with the same options it is the same database.
func Each(t *testing.T, test func(t *testing.T, fresh func() sql.Options)) {
	t.Helper()
	t.Run("SQLite", func(t *testing.T) {
		test(t, func() sql.Options { return SQLite(t) })
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		server := Server(t)
		test(t, func() sql.Options { return server.Database(t) })
	})
}

// SQLite gives the options of a new SQLite database.
func SQLite(t testing.TB) sql.Options {
	t.Helper()
	return sql.Options{Path: filepath.Join(t.TempDir(), "chancery.db"), MaxConnections: 6}
}

// PostgreSQL gives the options of a new database; the test is skipped where there is none.
func PostgreSQL(t testing.TB) sql.Options {
	t.Helper()
	return Server(t).Database(t)
}

// Cluster is a PostgreSQL server.
type Cluster struct {
	URL string // of its first database

	bin, dir, data string
	port           string
	who            account
	process        *os.Process
	ended          <-chan error
}

var (
	once    sync.Once
	cluster *Cluster
	missing string
	number  atomic.Int64
)

// Server gives this binary's PostgreSQL; the test is skipped where there is none.
func Server(t testing.TB) *Cluster {
	t.Helper()
	once.Do(func() {
		if given := os.Getenv(URLVariable); given != "" {
			cluster = &Cluster{URL: given}
			return
		}
		bin := programs()
		if bin == "" {
			missing = "PostgreSQL is not installed: its tests do not run"
			visible(missing)
			return
		}
		var err error
		if cluster, err = start(bin); err != nil {
			missing = fmt.Sprintf("PostgreSQL is installed but does not start: %v", err)
		}
	})
	switch {
	case cluster != nil:
	case strings.Contains(missing, "does not start"):
		t.Fatal(missing) // a fault of the machine or of ours is not passed over
	default:
		t.Skip(missing)
	}
	return cluster
}

// visible writes past the test's own output, which is hidden where a test passes.
func visible(line string) {
	if tty, err := os.OpenFile("/dev/tty", os.O_WRONLY, 0); err == nil {
		defer tty.Close()
		fmt.Fprintln(tty, line)
		return
	}
	fmt.Fprintln(os.Stderr, line)
}

// Database makes a new database, dropped when the test ends.
func (c *Cluster) Database(t testing.TB) sql.Options {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	name := fmt.Sprintf("test_%d_%d_%d", os.Getpid(), time.Now().UnixNano()%1e9, number.Add(1))
	c.run(ctx, t, `CREATE DATABASE `+name+` TEMPLATE template0 ENCODING 'UTF8'`)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		c.run(ctx, t, `DROP DATABASE IF EXISTS `+name+` WITH (FORCE)`)
	})
	u, err := url.Parse(c.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return sql.Options{URL: u.String(), MaxConnections: 8}
}

func (c *Cluster) run(ctx context.Context, t testing.TB, statement string) {
	t.Helper()
	conn, err := pgx.Connect(ctx, c.URL)
	if err != nil {
		t.Fatalf("connect to the test server: %v", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}
