package users

import (
	"cmp"
	"context"
	"crypto/rand"
	"slices"

	"chancery"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const (
	maxDeviceID   = 255
	maxDeviceName = 255
)

// NewDevice is what a client says of the device it signs in on.
type NewDevice struct {
	ID          id.DeviceID // empty: we choose one
	Name        string      // only for a device that is not there yet
	Refreshable bool        // the client can refresh its tokens
	IP          string
	UserAgent   string
}

func (d NewDevice) check() error {
	if len(d.ID) > maxDeviceID {
		return chancery.InvalidParam("device_id is longer than %d bytes", maxDeviceID)
	}
	return checkDeviceName(d.Name)
}

func checkDeviceName(name string) error {
	if len(name) > maxDeviceName {
		return chancery.InvalidParam("the display name of a device is longer than %d bytes", maxDeviceName)
	}
	return nil
}

// newDeviceID is ten capital letters, as clients show it to people.
func newDeviceID() id.DeviceID {
	b := random(10)
	for i := range b {
		for b[i] >= 26*9 { // no letter is likelier than another
			_, _ = rand.Read(b[i : i+1])
		}
		b[i] = 'A' + b[i]%26
	}
	return id.DeviceID(b)
}

// openDevice makes the device in tx, or takes the one that is there: its old tokens end.
//
// spec: c2s#relationship-between-access-tokens-and-devices
func openDevice(tx storage.Tx, user id.UserID, d NewDevice, t Tokens) error {
	at := now()
	made, err := tx.InsertDevice(storage.Device{
		User: string(user), ID: string(t.Device), Name: d.Name, Created: at,
		LastSeen: at, LastSeenIP: d.IP, UserAgent: short(d.UserAgent),
	})
	if err != nil {
		return err
	}
	if made {
		if err := deviceListChanged(tx, user, t.Device); err != nil {
			return err
		}
	} else {
		tx.DeleteTokens(string(user), string(t.Device))
	}
	issue(tx, t, "")
	return nil
}

// Devices lists a user's devices, the newest last.
//
// spec: c2s/getDevices
func (s *Server) Devices(ctx context.Context, user id.UserID) ([]storage.Device, error) {
	var list []storage.Device
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		list, err = tx.DevicesOf(string(user))
		return err
	})
	slices.SortFunc(list, func(a, b storage.Device) int {
		return cmp.Or(cmp.Compare(a.Created, b.Created), cmp.Compare(a.ID, b.ID))
	})
	return list, err
}

// Device finds one of a user's devices.
//
// spec: c2s/getDevice
func (s *Server) Device(ctx context.Context, user id.UserID, device id.DeviceID) (storage.Device, error) {
	var d storage.Device
	var ok bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		d, ok, err = tx.Device(string(user), string(device))
		return err
	})
	if err == nil && !ok {
		err = chancery.NotFound("there is no such device")
	}
	return d, err
}

// RenameDevice gives a device another display name; peers are told.
//
// spec: c2s/updateDevice
func (s *Server) RenameDevice(ctx context.Context, user id.UserID, device id.DeviceID, name string) error {
	if err := checkDeviceName(name); err != nil {
		return err
	}
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		ok, err := tx.RenameDevice(string(user), string(device), name)
		if err != nil {
			return err
		}
		if !ok {
			return chancery.NotFound("there is no such device")
		}
		return deviceListChanged(tx, user, device)
	})
}

// One transaction removes so many devices: each takes a dozen statements, and peers are told of each.
const devicePiece = 50

// DeleteDevices removes devices with their tokens, keys and messages; what is not there is
// removed already.
//
// spec: c2s/deleteDevices
func (s *Server) DeleteDevices(ctx context.Context, user id.UserID, devices []id.DeviceID) error {
	for piece := range slices.Chunk(devices, devicePiece) {
		err := s.change(ctx, user, func(tx storage.Tx) error {
			var gone []id.DeviceID
			for _, d := range piece {
				ok, err := tx.DeleteDevice(string(user), string(d))
				if err != nil {
					return err
				}
				if ok {
					gone = append(gone, d)
				}
			}
			if len(gone) > 0 {
				return deviceListChanged(tx, user, gone...)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteOtherDevices removes all devices of a user but one. Their tokens were ended before, in
// one piece.
func (s *Server) deleteOtherDevices(ctx context.Context, user id.UserID, but id.DeviceID) error {
	rows, err := s.Devices(ctx, user)
	if err != nil {
		return err
	}
	var others []id.DeviceID
	for _, d := range rows {
		if d.ID != string(but) {
			others = append(others, id.DeviceID(d.ID))
		}
	}
	return s.DeleteDevices(ctx, user, others)
}
