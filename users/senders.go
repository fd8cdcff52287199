package users

import (
	"context"
	"encoding/json"
	"slices"

	"chancery/federation/peer"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// sendersPiece is how many events are looked at in one read.
const sendersPiece = 100

// sentBy is who sent a message, and by which device.
type sentBy struct {
	user   id.UserID
	device senderDevice
}

// doubtSenders has the lists of other servers' users fetched that lack a device from which an encrypted message in a room
// came: an update was lost, and what our users send now that device could not read. Messages need not say where they come
// from.
//
// spec: c2s#mroomencrypted
func (s *Server) doubtSenders(ctx context.Context, events []int64) error {
	for piece := range slices.Chunk(events, sendersPiece) {
		unknown := map[sentBy]bool{}
		err := s.DB.Read(ctx, func(tx storage.Tx) error {
			list, err := tx.EncryptedEvents(piece)
			if err != nil {
				return err
			}
			seen := map[sentBy]bool{}
			for _, ev := range list {
				by := sentBy{id.UserID(ev.Sender), roomSender(ev.JSON)}
				if s.IsLocal(by.user) || seen[by] {
					continue
				}
				seen[by] = true
				if _, lacks, err := lacking(tx, by.user, by.device); err != nil {
					return err
				} else if lacks {
					unknown[by] = true
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if len(unknown) == 0 {
			continue
		}
		var keys []string
		for by := range unknown {
			keys = append(keys, string(by.user))
		}
		slices.Sort(keys)
		err = s.DB.Write(ctx, slices.Compact(keys), func(tx storage.Tx) error {
			for by := range unknown {
				if _, err := doubtList(tx, by.user, by.device); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		s.fetchLists()
	}
	return nil
}

// roomSender reads which device an encrypted event says that it comes from.
func roomSender(event json.RawMessage) (d senderDevice) {
	var says struct {
		Content struct {
			Device string `json:"device_id"`
			Key    string `json:"sender_key"`
		} `json:"content"`
	}
	if peer.Decode(event, &says) != nil {
		return d
	}
	if d.id = says.Content.Device; d.id == "" {
		d.key = says.Content.Key
	}
	return d
}
