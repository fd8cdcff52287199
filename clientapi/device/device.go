// Package device is the part of the client-server API about a user's own devices. What goes
// with a device when it is removed is known to users.
package device

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/clientapi/uia"
	"chancery/endpoint"
	"chancery/storage"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about devices.
type API struct {
	Users *users.Server
	UIA   *uia.Sessions
}

// device is one as clients see it.
type device struct {
	ID       id.DeviceID `json:"device_id"`
	Name     string      `json:"display_name,omitempty"`
	LastIP   string      `json:"last_seen_ip,omitempty"`
	LastSeen int64       `json:"last_seen_ts,omitempty"`
}

func show(d storage.Device) device {
	return device{ID: id.DeviceID(d.ID), Name: d.Name, LastIP: d.LastSeenIP, LastSeen: d.LastSeen}
}

type ListIn struct {
	Caller endpoint.Caller
}

type ListOut struct {
	Devices []device `json:"devices"`
}

// List gives all devices of the caller.
//
// spec: c2s/getDevices
func (a *API) List(ctx context.Context, in *ListIn) (*ListOut, error) {
	rows, err := a.Users.Devices(ctx, in.Caller.User)
	if err != nil {
		return nil, err
	}
	out := &ListOut{Devices: make([]device, len(rows))}
	for i, d := range rows {
		out.Devices[i] = show(d)
	}
	return out, nil
}

type GetIn struct {
	Caller endpoint.Caller
	Device id.DeviceID `path:"deviceId"`
}

// Get gives one device of the caller.
//
// spec: c2s/getDevice
func (a *API) Get(ctx context.Context, in *GetIn) (*device, error) {
	d, err := a.Users.Device(ctx, in.Caller.User, in.Device)
	if err != nil {
		return nil, err
	}
	out := show(d)
	return &out, nil
}

type UpdateIn struct {
	Caller endpoint.Caller
	Device id.DeviceID `path:"deviceId"`
	Body   struct {
		Name *string `json:"display_name"`
	} `body:"json"`
}

type None struct{}

// Update gives a device another name.
//
// spec: c2s/updateDevice
func (a *API) Update(ctx context.Context, in *UpdateIn) (*None, error) {
	if in.Body.Name == nil {
		_, err := a.Users.Device(ctx, in.Caller.User, in.Device) // nothing to change, but it must be there
		return nil, err
	}
	return nil, a.Users.RenameDevice(ctx, in.Caller.User, in.Device, *in.Body.Name)
}

type DeleteIn struct {
	Caller endpoint.Caller
	Device id.DeviceID `path:"deviceId"`
	Body   struct {
		Auth json.RawMessage `json:"auth"`
	} `body:"json"`
}

// Delete removes a device of the caller.
//
// spec: c2s/deleteDevice
func (a *API) Delete(ctx context.Context, in *DeleteIn) (*None, error) {
	if in.Caller.AppService == "" {
		err := a.UIA.Check(ctx, uia.Request{
			Caller: in.Caller, Operation: "deleteDevice " + string(in.Device), Auth: in.Body.Auth, Flows: uia.ByPassword,
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, a.Users.DeleteDevices(ctx, in.Caller.User, []id.DeviceID{in.Device})
}

type DeleteManyIn struct {
	Caller endpoint.Caller
	Body   struct {
		Auth    json.RawMessage `json:"auth"`
		Devices []id.DeviceID   `json:"devices" required:"true"`
	} `body:"json"`
	Text json.RawMessage `body:"json"`
}

// One request removes at most so many devices: it is one transaction.
const mostDevices = 500

// DeleteMany removes devices of the caller.
//
// spec: c2s/deleteDevices
func (a *API) DeleteMany(ctx context.Context, in *DeleteManyIn) (*None, error) {
	if len(in.Body.Devices) > mostDevices {
		return nil, chancery.InvalidParam("at most %d devices at once", mostDevices)
	}
	if in.Caller.AppService == "" {
		err := a.UIA.Check(ctx, uia.Request{
			Caller: in.Caller, Operation: "deleteDevices", Auth: in.Body.Auth, Body: in.Text, Flows: uia.ByPassword,
		})
		if err != nil {
			return nil, err
		}
	}
	return nil, a.Users.DeleteDevices(ctx, in.Caller.User, in.Body.Devices)
}
