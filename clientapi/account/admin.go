package account

import (
	"context"

	"chancery"
	"chancery/endpoint"

	"maunium.net/go/mautrix/id"
)

type UserIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
}

type connection struct {
	IP        string `json:"ip"`
	LastSeen  int64  `json:"last_seen"`
	UserAgent string `json:"user_agent"`
}

type whoIsSession struct {
	Connections []connection `json:"connections"`
}

type whoIsDevice struct {
	Sessions []whoIsSession `json:"sessions"`
}

type WhoIsOut struct {
	User    id.UserID              `json:"user_id"`
	Devices map[string]whoIsDevice `json:"devices"`
}

// WhoIs says from where a user's devices were last here, to the user and to administrators.
//
// spec: c2s/getWhoIs
func (a *API) WhoIs(ctx context.Context, in *UserIn) (*WhoIsOut, error) {
	if in.User != in.Caller.User {
		if !in.Caller.Admin {
			return nil, chancery.Forbidden("only an administrator may look at others")
		}
		if _, err := a.account(ctx, in.User); err != nil {
			return nil, err
		}
	}
	devices, err := a.Users.Devices(ctx, in.User)
	if err != nil {
		return nil, err
	}
	out := &WhoIsOut{User: in.User, Devices: map[string]whoIsDevice{}}
	for _, d := range devices {
		seen := connection{d.LastSeenIP, d.LastSeen, d.UserAgent}
		out.Devices[d.ID] = whoIsDevice{[]whoIsSession{{[]connection{seen}}}}
	}
	return out, nil
}

// account is one of ours that is not deactivated. Whether the caller may know of it is asked before.
func (a *API) account(ctx context.Context, user id.UserID) (*target, error) {
	if !a.Users.IsLocal(user) {
		return nil, chancery.InvalidParam("this user is not of this server")
	}
	row, ok, err := a.Users.Account(ctx, user)
	if err != nil {
		return nil, err
	}
	if !ok || row.Deactivated {
		return nil, chancery.NotFound("there is no such user")
	}
	return &target{row.Admin, row.Suspended, row.Locked}, nil
}

type target struct{ admin, suspended, locked bool }

// moderated finds whom an administrator wants to lock or suspend: no other administrator.
func (a *API) moderated(ctx context.Context, in *UserIn) (*target, error) {
	if !in.Caller.Admin {
		return nil, chancery.Forbidden("only an administrator may do this")
	}
	t, err := a.account(ctx, in.User)
	if err != nil {
		return nil, err
	}
	if t.admin {
		return nil, chancery.Forbidden("this account is an administrator's")
	}
	return t, nil
}

type SuspendedOut struct {
	Suspended bool `json:"suspended"`
}

// Suspended says whether a user is suspended.
//
// spec: c2s/getAdminSuspendUser
func (a *API) Suspended(ctx context.Context, in *UserIn) (*SuspendedOut, error) {
	t, err := a.moderated(ctx, in)
	if err != nil {
		return nil, err
	}
	return &SuspendedOut{t.suspended}, nil
}

type SuspendIn struct {
	UserIn
	Body struct {
		Suspended bool `json:"suspended" required:"true"`
	} `body:"json"`
}

// Suspend suspends a user or ends that.
//
// spec: c2s/setAdminSuspendUser
func (a *API) Suspend(ctx context.Context, in *SuspendIn) (*SuspendedOut, error) {
	if _, err := a.moderated(ctx, &in.UserIn); err != nil {
		return nil, err
	}
	if err := a.Users.SetSuspended(ctx, in.User, in.Body.Suspended); err != nil {
		return nil, err
	}
	return &SuspendedOut{in.Body.Suspended}, nil
}

type LockedOut struct {
	Locked bool `json:"locked"`
}

// Locked says whether a user is locked out.
//
// spec: c2s/getAdminLockUser
func (a *API) Locked(ctx context.Context, in *UserIn) (*LockedOut, error) {
	t, err := a.moderated(ctx, in)
	if err != nil {
		return nil, err
	}
	return &LockedOut{t.locked}, nil
}

type LockIn struct {
	UserIn
	Body struct {
		Locked bool `json:"locked" required:"true"`
	} `body:"json"`
}

// Lock locks a user out or lets them in again.
//
// spec: c2s/setAdminLockUser
func (a *API) Lock(ctx context.Context, in *LockIn) (*LockedOut, error) {
	if _, err := a.moderated(ctx, &in.UserIn); err != nil {
		return nil, err
	}
	if err := a.Users.SetLocked(ctx, in.User, in.Body.Locked); err != nil {
		return nil, err
	}
	return &LockedOut{in.Body.Locked}, nil
}
