package users

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strconv"

	"chancery"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const maxFilter = 64 << 10

// DefineFilter stores a filter and gives its ID. The same filter has the same ID.
//
// spec: c2s/defineFilter
func (s *Server) DefineFilter(ctx context.Context, user id.UserID, filter json.RawMessage) (filterID string, err error) {
	if len(filter) > maxFilter {
		return "", chancery.TooLarge("a filter has at most %d bytes", maxFilter)
	}
	sum := sha256.Sum256(filter)
	hash := hex.EncodeToString(sum[:])
	var number int64
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		var ok bool
		number, ok, err = tx.FilterByHash(string(user), hash)
		if err != nil || ok {
			return err
		}
		last, err := tx.LastFilter(string(user))
		if err != nil {
			return err
		}
		number = last + 1
		tx.InsertFilter(string(user), number, hash, filter)
		return nil
	})
	return strconv.FormatInt(number, 10), err
}

// Filter reads a filter by its ID.
//
// spec: c2s/getFilter
func (s *Server) Filter(ctx context.Context, user id.UserID, filterID string) (filter json.RawMessage, err error) {
	unknown := chancery.NotFound("there is no such filter")
	number, err := strconv.ParseInt(filterID, 10, 64)
	if err != nil {
		return nil, unknown
	}
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		var ok bool
		filter, ok, err = tx.Filter(string(user), number)
		if err == nil && !ok {
			err = unknown
		}
		return err
	})
	return filter, err
}
