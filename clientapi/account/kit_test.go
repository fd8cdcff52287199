package account_test

import (
	"fmt"
	"testing"

	"chancery/config"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/client"
	"chancery/users"
)

const (
	v3       = client.V3
	v1       = client.V1
	password = client.Password
)

type (
	object = client.J
	answer = client.Answer
	person = client.Person
)

// server is a homeserver as far as accounts go.
type server struct{ *client.Accounts }

func eachEngine(t *testing.T, change func(*config.Config), test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(&server{client.ServeAccounts(t, fresh(), change)}) })
}

// serveSQLite is for what does not reach the database.
func serveSQLite(t *testing.T, change func(*config.Config)) *server {
	t.Helper()
	return &server{client.ServeAccounts(t, sqltest.SQLite(t), change)}
}

func (s *server) whoami(p person) int {
	return s.Ask(p.Token, "GET", v3+"/account/whoami", nil).Status
}

func (s *server) admin(name string) person {
	s.T.Helper()
	if _, err := s.Users.Create(s.T.Context(), users.NewAccount{Name: name, Password: password, Admin: true}, nil); err != nil {
		s.T.Fatal(err)
	}
	return s.Login(name, nil)
}

func many(n int) string { return fmt.Sprintf("%0*d", n, 0) }
