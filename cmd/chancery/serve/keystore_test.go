package serve

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// Keys of other servers come back as they were stored, whatever they are called, and are gone when they are forgotten.
func TestKeysOfOthersAreKeptAndForgotten(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		store, public := keyStore{db}, peer.NewSigningKey().Public()
		at := time.UnixMilli(1)
		keys := []peer.ServerKey{{Server: "a.example", ID: "ed25519:1", Public: public, ValidUntil: at},
			{Server: "a.example", ID: "ed25519:\x00", Public: public, Expired: at}, {Server: "b.example", ID: "ed25519:1", Public: public, ValidUntil: at}}
		load := func(want ...peer.ServerKey) {
			t.Helper()
			got, err := store.LoadKeys(t.Context(), "a.example")
			if err != nil {
				t.Fatal(err)
			}
			slices.SortFunc(got, func(x, y peer.ServerKey) int { return strings.Compare(y.ID, x.ID) })
			if !slices.EqualFunc(got, want, func(x, y peer.ServerKey) bool {
				return x.ID == y.ID && x.Public.Equal(y.Public) && x.ValidUntil.Equal(y.ValidUntil) && x.Expired.Equal(y.Expired)
			}) {
				t.Errorf("loaded are %+v, want %+v", got, want)
			}
		}
		if err := store.SaveKeys(t.Context(), keys, nil); err != nil {
			t.Fatal(err)
		}
		load(keys[:2]...)
		if err := store.SaveKeys(t.Context(), nil, keys[1:2]); err != nil {
			t.Fatal(err)
		}
		load(keys[0])
	})
}
