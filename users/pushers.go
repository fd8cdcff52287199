package users

import (
	"context"
	"encoding/json"
	"net/url"

	"chancery"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const (
	maxPushKey = 512 // spec: c2s/postPusher
	maxAppID   = 64  // spec: c2s/postPusher
	maxPusher  = 16 << 10
	maxPushers = 100
)

// Pusher is where a user wants to be notified, as clients read it.
type Pusher struct {
	Key        string          `json:"pushkey"`
	Kind       string          `json:"kind"`
	AppID      string          `json:"app_id"`
	AppName    string          `json:"app_display_name"`
	DeviceName string          `json:"device_display_name"`
	ProfileTag string          `json:"profile_tag,omitempty"`
	Lang       string          `json:"lang"`
	Data       json.RawMessage `json:"data"`
}

// Pushers lists the pushers of one of our users.
//
// spec: c2s/getPushers
func (s *Server) Pushers(ctx context.Context, user id.UserID) ([]Pusher, error) {
	list := []Pusher{}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		rows, err := tx.PushersOf(string(user))
		if err != nil {
			return err
		}
		list = list[:0]
		for _, row := range rows {
			var p Pusher
			if err := json.Unmarshal(row.Pusher, &p); err != nil {
				return err
			}
			list = append(list, p)
		}
		return nil
	})
	return list, err
}

// SetPusher makes a pusher, or changes it. Without others, other users' pushers to the same place go:
// the device has another owner now.
//
// spec: c2s/postPusher
func (s *Server) SetPusher(ctx context.Context, user id.UserID, device id.DeviceID, p Pusher, others bool) error {
	if err := p.check(); err != nil {
		return err
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(text) > maxPusher {
		return chancery.TooLarge("the pusher is too large")
	}
	// Pushers of other users may go: whoever changes those of one place comes one after the other.
	keys := []string{string(user), "pusher " + p.AppID + " " + p.Key}
	return s.DB.Write(ctx, keys, func(tx storage.Tx) error {
		rows, err := tx.PushersOf(string(user))
		if err != nil {
			return err
		}
		if len(rows) >= maxPushers {
			return chancery.TooLarge("there are too many pushers")
		}
		if !others {
			tx.DeletePushersOfOthers(string(user), p.AppID, p.Key)
		}
		tx.SetPusher(storage.Pusher{User: string(user), AppID: p.AppID, Key: p.Key, Device: string(device), Created: now(), Pusher: text})
		return nil
	})
}

func (p *Pusher) check() error {
	if len(p.Key) > maxPushKey || len(p.AppID) > maxAppID {
		return chancery.InvalidParam("app_id has at most %d bytes and pushkey %d", maxAppID, maxPushKey)
	}
	switch p.Kind {
	case "http":
		var data struct {
			URL string `json:"url"`
		}
		if json.Unmarshal(p.Data, &data) != nil || data.URL == "" {
			return chancery.MissingParam("data.url is missing")
		}
		u, err := url.Parse(data.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.Path != "/_matrix/push/v1/notify" {
			return chancery.InvalidParam("data.url is an HTTPS URL with the path /_matrix/push/v1/notify")
		}
	case "email":
		return chancery.InvalidParam("this server sends no notifications by mail")
	default:
		return chancery.InvalidParam("there is no such kind of pushers")
	}
	return nil
}

// DeletePusher removes a pusher.
//
// spec: c2s/postPusher
func (s *Server) DeletePusher(ctx context.Context, user id.UserID, appID, key string) error {
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		tx.DeletePusher(string(user), appID, key)
		return nil
	})
}
