package keys

import (
	"context"

	"chancery/endpoint"
	"chancery/roomserver/page"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

type ChangesIn struct {
	Caller endpoint.Caller
	From   string `query:"from" required:"true"`
	To     string `query:"to" required:"true"`
}

type ChangesOut struct {
	Changed []id.UserID `json:"changed"`
	Left    []id.UserID `json:"left"`
}

// Changes lists the users whose keys are to be asked for again, between two tokens of /sync.
//
// spec: c2s/getKeysChanges
func (a *API) Changes(ctx context.Context, in *ChangesIn) (*ChangesOut, error) {
	from, err := page.ParseSync(in.From)
	if err != nil {
		return nil, err
	}
	to, err := page.ParseSync(in.To)
	if err != nil {
		return nil, err
	}
	out := &ChangesOut{}
	err = a.DB.Read(ctx, func(tx storage.Tx) (err error) {
		out.Changed, out.Left, err = a.Users.DeviceListChanges(tx, in.Caller.User, from.Pos, to.Pos)
		return err
	})
	return out, err
}
