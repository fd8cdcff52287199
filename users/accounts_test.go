package users

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery"
	"chancery/config"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

const word = "correct horse"

// house is one process of a server; trace hears its statements.
func house(t *testing.T, o sql.Options) *Server {
	t.Helper()
	db, err := storage.Open(context.WithoutCancel(t.Context()), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	cfg := config.Default()
	cfg.ServerName, cfg.Passwords.Cost = "agency.example", "low"
	return New(Options{DB: db, ServerName: cfg.ServerName, Config: cfg})
}

func (s *Server) made(t *testing.T, name string, d NewDevice) Tokens {
	t.Helper()
	tokens, err := s.Create(t.Context(), NewAccount{Name: name, Password: word}, &d)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

func (s *Server) knows(t *testing.T, tokens Tokens) bool {
	t.Helper()
	_, err := s.Authenticate(t.Context(), tokens.Access, false)
	if err != nil && !chancery.IsCode(err, chancery.CodeUnknownToken) {
		t.Fatal(err)
	}
	return err == nil
}

// statements counts those of one database.
type statements struct {
	mu  sync.Mutex
	all []string
}

func (s *statements) hear(q string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, q)
}

func (s *statements) since() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all = nil
	return all
}

func TestKnownTokenNeedsNoSQL(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		var heard statements
		o := fresh()
		o.Trace = heard.hear
		s := house(t, o)
		alice := s.made(t, "alice", NewDevice{})
		if !s.knows(t, alice) {
			t.Fatal("the token is not good")
		}
		// The watch over the epoch asks once a second; nothing of accounts may be among it.
		heard.since()
		for range 100 {
			if !s.knows(t, alice) {
				t.Fatal("the token is not good")
			}
		}
		for _, q := range heard.since() {
			if strings.Contains(q, "access_tokens") || strings.Contains(q, "accounts") {
				t.Fatalf("a known token was asked for: %s", q)
			}
		}
	})
}

// spec: c2s#using-access-tokens
func TestEndedSessionIsGoneInEveryProcess(t *testing.T) {
	server := sqltest.PostgreSQL(t)
	here, there := house(t, server), house(t, server)
	var facts []storage.Fact
	here.DB.OnCommit(func(f []storage.Fact) { facts = append(facts, f...) })
	alice := here.made(t, "alice", NewDevice{ID: "PHONE"})
	if !here.knows(t, alice) || !there.knows(t, alice) {
		t.Fatal("the token is not good in both")
	}
	facts = nil
	if err := here.Logout(t.Context(), alice.User, alice.Device); err != nil {
		t.Fatal(err)
	}
	if here.knows(t, alice) {
		t.Fatal("the process that ended it still knows the token")
	}
	if len(facts) == 0 {
		t.Fatal("nothing was told")
	}
	for _, f := range facts {
		there.Heard(f)
	}
	if there.knows(t, alice) {
		t.Fatal("the other process still knows the token")
	}
}

// A session that was read before it ended must not be kept after it ended.
func TestNothingOldIsKeptWhileSessionsEnd(t *testing.T) {
	var c sessions
	begun := c.begin()
	c.forget("@alice:agency.example")
	c.put("hash", &Session{User: "@alice:agency.example"}, begun)
	if c.get("hash") != nil {
		t.Fatal("what was read before the change was kept")
	}
	c.put("hash", &Session{User: "@alice:agency.example"}, c.begin())
	if c.get("hash") == nil {
		t.Fatal("what was read after it was not kept")
	}
}

func TestHeldSessionsAreBoundedAndAlwaysFoundToForget(t *testing.T) {
	var c sessions
	name := func(i int) string { return fmt.Sprintf("@u%d:agency.example", i%500) }
	for i := range 3 * sessionTable {
		c.put(fmt.Sprint(i), &Session{User: id.UserID(name(i))}, c.begin())
		c.get(fmt.Sprint(i - sessionTable/2)) // takes one of the elder along
	}
	if n := len(c.young.tokens) + len(c.elder.tokens); n > 2*sessionTable {
		t.Fatalf("%d sessions are held", n)
	}
	for i := range 500 {
		c.forget(name(i))
	}
	for i := range 3 * sessionTable {
		if c.get(fmt.Sprint(i)) != nil {
			t.Fatalf("session %d is still held", i)
		}
	}
}

func TestLogoutsAndLoginsAtOnce(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := house(t, fresh())
		s.made(t, "alice", NewDevice{})
		user := id.UserID("@alice:agency.example")
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for range 5 {
					tokens, err := s.SignIn(t.Context(), user, NewDevice{ID: "SAME"})
					if err != nil {
						t.Error(err)
						return
					}
					s.knows(t, tokens)
					if err := s.Logout(t.Context(), user, "SAME"); err != nil {
						t.Error(err)
						return
					}
					if s.knows(t, tokens) {
						t.Error("a token outlives its logout")
						return
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestPasswordIsKeptAtTodaysCost(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := house(t, fresh())
		alice := s.made(t, "alice", NewDevice{})
		before, _, err := s.Account(t.Context(), alice.User)
		if err != nil {
			t.Fatal(err)
		}
		s.passwords.cost.passes++ // an operator changed it
		if err := s.CheckPassword(t.Context(), alice.User, "wrong"); !chancery.IsCode(err, chancery.CodeForbidden) {
			t.Fatalf("a wrong password: %v", err)
		}
		if err := s.CheckPassword(t.Context(), alice.User, word); err != nil {
			t.Fatal(err)
		}
		after, _, err := s.Account(t.Context(), alice.User)
		if err != nil || after.Password == before.Password || !strings.Contains(after.Password, "t=2,") {
			t.Fatalf("kept as %s, before as %s (%v)", after.Password, before.Password, err)
		}
		if err := s.CheckPassword(t.Context(), alice.User, word); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStoredHashThatIsNoneIsNoPassword(t *testing.T) {
	p := newPasswords(true)
	for _, stored := range []string{"x", "$argon2id$v=19$m=99999999,t=1,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=8,t=0,p=1$AAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=8,t=1,p=1$AAAA$", "$2b$12$abc", "$argon2id$v=16$m=8,t=1,p=1$AAAA$AAAA"} {
		if right, _, err := p.check(t.Context(), stored, "x"); right || err == nil {
			t.Errorf("%s: right %v, %v", stored, right, err)
		}
	}
	if right, _, err := p.check(t.Context(), "", "x"); right || err != nil {
		t.Errorf("no account: right %v, %v", right, err)
	}
}

// Whether there is such a user must not show in the time an answer takes.
func TestUnknownUsersCostAsMuchAsOthers(t *testing.T) {
	p := newPasswords(false)
	stored, err := p.hash(t.Context(), word)
	if err != nil {
		t.Fatal(err)
	}
	took := func(stored string) time.Duration {
		start := time.Now()
		if _, _, err := p.check(t.Context(), stored, "wrong"); err != nil {
			t.Fatal(err)
		}
		return time.Since(start)
	}
	// The fastest of several counts; where the machine has other work to do, of more.
	known, unknown := time.Hour, time.Hour
	for i := range 50 {
		known, unknown = min(known, took(stored)), min(unknown, took(""))
		if i >= 4 && unknown >= known/2 {
			return
		}
	}
	t.Fatalf("an unknown user is answered in %v, a known one in %v", unknown, known)
}

func TestDevicesAreSeenInBatches(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := house(t, fresh())
		tokens := s.made(t, "alice", NewDevice{ID: "PHONE", IP: "192.0.2.1"})
		v, err := s.Authenticate(t.Context(), tokens.Access, false)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Millisecond) // it was seen when it signed in
		s.Saw(v, "192.0.2.2", "one")
		s.Saw(v, "192.0.2.3", "two") // too soon to be noted
		s.flushSeen(t.Context())
		d, err := s.Device(t.Context(), tokens.User, "PHONE")
		if err != nil || d.LastSeenIP != "192.0.2.2" || d.UserAgent != "one" || d.LastSeen <= d.Created {
			t.Fatalf("seen as %+v, %v", d, err)
		}
	})
}

func TestExpiredTokensAreTrimmed(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := house(t, fresh())
		kept := s.made(t, "alice", NewDevice{})
		old, err := s.SignIn(t.Context(), kept.User, NewDevice{Refreshable: true})
		if err != nil {
			t.Fatal(err)
		}
		token, _, err := s.OpenIDToken(t.Context(), kept.User)
		if err != nil {
			t.Fatal(err)
		}
		err = s.DB.Write(t.Context(), []string{"test"}, func(tx storage.Tx) error {
			tx.TrimTokens(now()+2*openIDLifetime.Milliseconds(), now()+2*accessLifetime.Milliseconds())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Heard(storage.Fact{Kind: sql.FactAccount, User: string(kept.User)})
		if s.knows(t, old) || !s.knows(t, kept) {
			t.Fatal("the expired token should be gone, the other stay")
		}
		if _, ok, err := s.OpenIDUser(t.Context(), token); ok || err != nil {
			t.Fatalf("the OpenID token is still there, %v", err)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	s := New(Options{ServerName: "agency.example"})
	token := newToken(accessToken)
	s.sessions.put(hashToken(token), &Session{User: "@alice:agency.example"}, s.sessions.begin())
	for b.Loop() {
		if _, err := s.Authenticate(b.Context(), token, false); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPassword(b *testing.B) {
	p := newPasswords(false)
	for b.Loop() {
		if _, err := p.hash(b.Context(), word); err != nil {
			b.Fatal(err)
		}
	}
}
