package keys_test

import (
	"testing"

	"chancery/config"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/client"
)

const (
	v3       = client.V3
	password = client.Password
)

type (
	object = client.J
	answer = client.Answer
	person = client.Person
)

// server is a homeserver as far as keys go.
type server struct{ *client.Accounts }

func eachEngine(t *testing.T, change func(*config.Config), test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(&server{client.ServeAccounts(t, fresh(), change)}) })
}
