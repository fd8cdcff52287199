package serve

import (
	"context"
	"encoding/base64"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
)

// keyStore keeps the keys of other servers in the database.
type keyStore struct{ db *storage.DB }

func (k keyStore) LoadKeys(ctx context.Context, server string) (keys []peer.ServerKey, err error) {
	err = k.db.Read(ctx, func(tx storage.Tx) error {
		rows, err := tx.ServerKeys(server)
		for _, row := range rows {
			public, err := base64.RawStdEncoding.DecodeString(row.Key)
			if err != nil {
				return err
			}
			keys = append(keys, peer.ServerKey{Server: row.Server, ID: row.ID, Public: public,
				ValidUntil: fromMillis(row.ValidUntil), Expired: fromMillis(row.Expired)})
		}
		return err
	})
	return keys, err
}

func (k keyStore) SaveKeys(ctx context.Context, keys, gone []peer.ServerKey) error {
	return k.db.Write(ctx, nil, func(tx storage.Tx) error {
		for _, v := range gone {
			tx.DeleteServerKey(v.Server, v.ID)
		}
		for _, v := range keys {
			tx.SetServerKey(storage.ServerKey{Server: v.Server, ID: v.ID, Key: base64.RawStdEncoding.EncodeToString(v.Public),
				ValidUntil: toMillis(v.ValidUntil), Expired: toMillis(v.Expired)})
		}
		return nil
	})
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

func toMillis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
