package users

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const (
	maxToDevice   = 128 << 10          // bytes of one message
	maxInbox      = 20_000             // messages that wait for a device; those go of who sent the most
	maxInboxBytes = 64 << 20           // and their bytes
	maxEDUBytes   = 48 << 10           // of messages in one EDU
	sentLifetime  = 7 * 24 * time.Hour // for which a repetition is known
	maxMessageID  = 255
	doubtAgain    = time.Minute // after a list was fetched an unknown device is no reason to fetch it again so soon
	allDevices    = id.DeviceID("*")
	trimSentPiece = 1_000
)

// Messages are contents of to-device messages by receiver; the device may be "*".
type Messages map[id.UserID]map[id.DeviceID]json.RawMessage

// check refuses what is no message.
func (m Messages) check() error {
	for user, devices := range m {
		if _, _, err := user.Parse(); err != nil {
			return chancery.InvalidParam("messages are addressed to somebody who has no user ID")
		}
		for _, content := range devices {
			if err := checkMessage(content); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkMessage(content json.RawMessage) error {
	if len(content) > maxToDevice {
		return chancery.TooLarge("a to-device message is larger than %d bytes", maxToDevice)
	}
	if len(content) == 0 || content[0] != '{' {
		return chancery.BadJSON("the content of a to-device message is not an object")
	}
	return nil
}

// SendToDevice sends messages to devices, ours and others'. A repeated txnID of the device
// sends nothing again.
//
// spec: c2s/sendToDevice
func (s *Server) SendToDevice(ctx context.Context, sender id.UserID, device id.DeviceID, typ, txnID string, messages Messages) error {
	if err := messages.check(); err != nil {
		return err
	}
	local, edus, err := s.sortMessages(sender, typ, messages)
	if err != nil {
		return err
	}
	keys := append(usersOf(local), string(sender))
	for destination := range edus {
		keys = append(keys, destination)
	}
	slices.Sort(keys)
	return s.DB.Write(ctx, slices.Compact(keys), func(tx storage.Tx) error {
		first, err := tx.MarkSent("", string(sender)+"\x00"+string(device), typ+"\x00"+txnID, now())
		if err != nil || !first {
			return err
		}
		for _, destination := range slices.Sorted(maps.Keys(edus)) {
			tx.QueueEDU(destination, edus[destination]...)
		}
		return s.deliver(tx, sender, typ, local)
	})
}

func usersOf(m Messages) []string {
	users := make([]string, 0, len(m))
	for user := range m {
		users = append(users, string(user))
	}
	return users
}

// directToDevice is the content of an m.direct_to_device EDU.
//
// spec: s2s#send-to-device-messaging
type directToDevice struct {
	Sender    id.UserID `json:"sender"`
	Type      string    `json:"type"`
	MessageID string    `json:"message_id"`
	Messages  Messages  `json:"messages"`
}

// sortMessages parts what is for our users from EDUs for other servers, each of a bounded size.
func (s *Server) sortMessages(sender id.UserID, typ string, messages Messages) (local Messages, edus map[string][]storage.EDU, err error) {
	local, edus = Messages{}, map[string][]storage.EDU{}
	open, size := map[string]Messages{}, map[string]int{}
	closeEDU := func(server string) {
		var content []byte
		// Random, and stored with the EDU: it is the same in every attempt, and new after a restore.
		content, err = json.Marshal(directToDevice{sender, typ, rand.Text(), open[server]})
		edus[server] = append(edus[server], storage.EDU{Type: "m.direct_to_device", Content: content})
		delete(open, server)
		size[server] = 0
	}
	for _, user := range slices.Sorted(maps.Keys(messages)) {
		if s.IsLocal(user) {
			local[user] = messages[user]
			continue
		}
		server := user.Homeserver()
		for _, device := range slices.Sorted(maps.Keys(messages[user])) {
			content := messages[user][device]
			if size[server]+len(content) > maxEDUBytes && size[server] > 0 {
				if closeEDU(server); err != nil {
					return nil, nil, err
				}
			}
			if open[server] == nil {
				open[server] = Messages{}
			}
			if open[server][user] == nil {
				open[server][user] = map[id.DeviceID]json.RawMessage{}
			}
			open[server][user][device] = content
			size[server] += len(content) + len(user) + len(device)
		}
	}
	for _, server := range slices.Sorted(maps.Keys(open)) {
		if closeEDU(server); err != nil {
			return nil, nil, err
		}
	}
	return local, edus, nil
}

// deliver stores messages for those devices of our users that there are.
func (s *Server) deliver(tx storage.Tx, sender id.UserID, typ string, messages Messages) error {
	if len(messages) == 0 {
		return nil
	}
	users := usersOf(messages)
	slices.Sort(users)
	rows, err := tx.DeviceKeysOf(users)
	if err != nil {
		return err
	}
	there := map[id.UserID][]id.DeviceID{}
	for _, d := range rows {
		there[id.UserID(d.User)] = append(there[id.UserID(d.User)], id.DeviceID(d.Device))
	}
	floor, err := tx.MaxPos()
	if err != nil {
		return err
	}
	for _, user := range users {
		devices := there[id.UserID(user)]
		slices.Sort(devices) // inboxes are locked in one order
		for _, device := range devices {
			content, ok := messages[id.UserID(user)][device]
			if !ok {
				content, ok = messages[id.UserID(user)][allDevices]
			}
			if ok {
				tx.AddToDevice(storage.ToDevice{User: user, Device: string(device), Sender: string(sender), Type: typ, Content: content}, floor)
				// Looking costs as much as is there, so not every message makes us look; a large one sooner.
				if mathrand.IntN(128) <= len(content)>>10 {
					if err := s.trimInbox(tx, user, string(device)); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// trimInbox bounds what waits for a device. Whoever floods it loses messages, and nobody else: our users are told apart, and
// of others their servers, which can have as many users as they want.
func (s *Server) trimInbox(tx storage.Tx, user, device string) error {
	return tx.TrimInbox(user, device, maxInbox, maxInboxBytes, func(sender string) string {
		if s.IsLocal(id.UserID(sender)) {
			return sender
		}
		return id.UserID(sender).Homeserver()
	})
}

// ReceiveToDevice takes an m.direct_to_device EDU. When it returns without an error the messages
// are stored, once, however often the EDU comes.
//
// spec: s2s#send-to-device-messaging
func (s *Server) ReceiveToDevice(ctx context.Context, origin string, content json.RawMessage) error {
	var in directToDevice
	if err := peer.Decode(content, &in); err != nil {
		return chancery.BadJSON("m.direct_to_device is malformed").Because(err)
	}
	if in.Sender.Homeserver() != origin {
		return chancery.Forbidden("%s does not speak for the sender", origin)
	}
	if in.MessageID == "" || len(in.MessageID) > maxMessageID || in.Type == "" {
		return chancery.BadJSON("m.direct_to_device has no proper message_id or type")
	}
	local := Messages{}
	for user, devices := range in.Messages {
		if _, _, err := user.Parse(); err != nil || !s.IsLocal(user) {
			continue
		}
		// One message that is none takes no other with it.
		maps.DeleteFunc(devices, func(_ id.DeviceID, content json.RawMessage) bool { return checkMessage(content) != nil })
		if len(devices) > 0 {
			local[user] = devices
		}
	}
	from, doubted := senderOf(in.Type, local), false
	keys := append(usersOf(local), origin, string(in.Sender))
	slices.Sort(keys)
	err := s.DB.Write(ctx, slices.Compact(keys), func(tx storage.Tx) error {
		first, err := tx.MarkSent(origin, "", in.MessageID, now())
		if err != nil || !first {
			return err
		}
		if doubted, err = doubtList(tx, in.Sender, from); err != nil {
			return err
		}
		return s.deliver(tx, in.Sender, in.Type, local)
	})
	if err == nil && doubted {
		s.fetchLists()
	}
	return err
}

// senderDevice is what a message says of the device that sent it: its ID, or its Curve25519 key.
type senderDevice struct{ id, key string }

// senderOf looks into the messages of one EDU, all of which come from one device, for which that is.
//
// spec: c2s#mroomencrypted, c2s#mroom_key_request, c2s#msecretrequest, c2s#mkeyverificationrequest
func senderOf(typ string, messages Messages) (d senderDevice) {
	for _, devices := range messages {
		for _, content := range devices {
			var says struct {
				Requesting string `json:"requesting_device_id"`
				From       string `json:"from_device"`
				Key        string `json:"sender_key"`
			}
			if peer.Decode(content, &says) != nil {
				continue
			}
			switch {
			case typ == "m.room.encrypted":
				d.key = says.Key
			case typ == "m.room_key_request" || typ == "m.secret.request":
				d.id = says.Requesting
			case strings.HasPrefix(typ, "m.key.verification."):
				d.id = says.From
			}
			return d
		}
	}
	return d
}

// doubtList has the list of a sender fetched when it lacks the device that a message comes from: an update was
// lost. Without the device our user could not read the message, nor answer it.
func doubtList(tx storage.Tx, sender id.UserID, d senderDevice) (doubted bool, err error) {
	list, lacks, err := lacking(tx, sender, d)
	if lacks {
		doubt(tx, list)
	}
	return lacks, err
}

// lacking says that a device is not in the list that we keep of its user.
func lacking(tx storage.Tx, sender id.UserID, d senderDevice) (list storage.RemoteDeviceList, lacks bool, err error) {
	if d == (senderDevice{}) {
		return list, false, nil
	}
	list, ok, err := remoteList(tx, string(sender))
	if err != nil || !ok || list.Stale {
		return list, false, err
	}
	devices, err := tx.RemoteDevicesOf([]string{string(sender)})
	if err != nil {
		return list, false, err
	}
	for _, known := range devices {
		var of struct {
			Keys map[string]string `json:"keys"`
		}
		_ = peer.Decode(known.Keys, &of) // there may be none
		if d.id == known.Device || d.key != "" && of.Keys["curve25519:"+known.Device] == d.key {
			return list, false, nil
		}
	}
	return list, true, nil
}

// doubt has a list fetched again, which is not stale and so was fetched at RetryAt: not so soon that another server
// could keep us asking.
func doubt(tx storage.Tx, list storage.RemoteDeviceList) {
	tx.MarkDeviceListStale(list.User, list.Server, max(now(), list.RetryAt+doubtAgain.Milliseconds()))
}

// ToDevice lists the messages that wait for a device above a number, as /sync shows them. The
// token of the answer carries last, and the next /sync passes it as above and, because the client
// has what came before, to DeleteToDevice. last is a number of the device's own and not a position
// (storage.Tx.AddToDevice says why); without a token it is 0. With more, other messages wait and no
// fact will tell of them: the next /sync must not wait.
func (s *Server) ToDevice(tx storage.Tx, user id.UserID, device id.DeviceID, above int64, limit int) (events []json.RawMessage, last int64, more bool, err error) {
	rows, err := tx.ToDevice(string(user), string(device), above, limit+1)
	if err != nil {
		return nil, above, false, err
	}
	if more = len(rows) > limit; more {
		rows = rows[:limit]
	}
	last = above
	for _, m := range rows {
		event, err := json.Marshal(toDeviceEvent{m.Sender, m.Type, m.Content})
		if err != nil {
			return nil, above, false, err
		}
		events, last = append(events, event), m.Number
	}
	return events, last, more, nil
}

type toDeviceEvent struct {
	Sender  string          `json:"sender"`
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

// DeleteToDevice removes what a device has acknowledged. It is called by every /sync and
// writes only when there may be something to remove.
func (s *Server) DeleteToDevice(ctx context.Context, user id.UserID, device id.DeviceID, upTo int64) error {
	if upTo <= 0 || s.acknowledged.is(user, device, upTo) {
		return nil
	}
	err := s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		tx.DeleteToDevice(string(user), string(device), upTo)
		return nil
	})
	if err == nil {
		s.acknowledged.set(user, device, upTo)
	}
	return err
}

// acknowledged remembers up to where messages were removed, for the devices of late.
type acknowledged struct {
	mu           sync.Mutex // guards the rest
	young, elder map[inbox]int64
}

type inbox struct {
	user   id.UserID
	device id.DeviceID
}

const acknowledgedTable = 50_000

func (a *acknowledged) is(user id.UserID, device id.DeviceID, upTo int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := inbox{user, device}
	n, ok := a.young[at]
	if !ok {
		n = a.elder[at]
	}
	return n >= upTo
}

func (a *acknowledged) set(user id.UserID, device id.DeviceID, upTo int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.young == nil || len(a.young) >= acknowledgedTable {
		a.young, a.elder = map[inbox]int64{}, a.young
	}
	a.young[inbox{user, device}] = upTo
}

// trimToDevice forgets old transactions and shortens inboxes that nobody empties.
func (s *Server) trimToDevice(ctx context.Context) {
	var err error
	for n := int64(1); n > 0 && err == nil; {
		err = s.DB.Write(ctx, []string{"to-device"}, func(tx storage.Tx) (err error) {
			n, err = tx.TrimSent(now()-sentLifetime.Milliseconds(), trimSentPiece)
			return err
		})
	}
	for n := int64(1); n > 0 && err == nil; {
		err = s.DB.Write(ctx, []string{"claimed-keys"}, func(tx storage.Tx) (err error) {
			n, err = tx.TrimClaimedKeys(now()-claimedLifetime.Milliseconds(), trimSentPiece)
			return err
		})
	}
	var full []storage.ToDevice
	if err == nil {
		err = s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			full, err = tx.FullInboxes(maxInbox, maxInboxBytes)
			return err
		})
	}
	for _, v := range full {
		if err != nil {
			break
		}
		err = s.DB.Write(ctx, []string{v.User}, func(tx storage.Tx) error {
			return s.trimInbox(tx, v.User, v.Device)
		})
		s.Log.Warn("too many messages waited for a device, the oldest of who sent the most are gone", zap.String("user", v.User), zap.String("device", v.Device))
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("trimming to-device messages failed", zap.Error(err))
	}
}
