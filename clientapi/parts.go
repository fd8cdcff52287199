package clientapi

import (
	"sync"

	"chancery/clientapi/account"
	"chancery/clientapi/accountdata"
	"chancery/clientapi/device"
	"chancery/clientapi/directory"
	"chancery/clientapi/keys"
	"chancery/clientapi/media"
	"chancery/clientapi/presence"
	"chancery/clientapi/profile"
	"chancery/clientapi/push"
	"chancery/clientapi/receipt"
	"chancery/clientapi/room"
	"chancery/clientapi/uia"
	"chancery/clientapi/userdirectory"
)

// parts are the sub-APIs, made once for a Server when its table is first asked for.
type parts struct {
	accountdata   *accountdata.API
	presence      *presence.API
	profile       *profile.API
	push          *push.API
	receipt       *receipt.API
	userdirectory *userdirectory.API
	once          sync.Once
	uia           *uia.Sessions
	account       *account.API
	device        *device.API
	room          *room.API
	directory     *directory.API
	media         *media.API
	keys          *keys.API
}

func (s *Server) makeParts() {
	s.once.Do(func() {
		s.accountdata = &accountdata.API{Users: s.Users}
		s.presence = &presence.API{Users: s.Users}
		s.profile = &profile.API{Users: s.Users, Limits: s.Limits}
		s.push = &push.API{Users: s.Users}
		s.receipt = &receipt.API{Users: s.Users}
		s.userdirectory = &userdirectory.API{Users: s.Users}
		s.uia = uia.New(s.Users)
		s.account = &account.API{Users: s.Users, UIA: s.uia, Config: s.Config}
		s.device = &device.API{Users: s.Users, UIA: s.uia}
		s.keys = &keys.API{DB: s.DB, Users: s.Users, UIA: s.uia}
		s.media = &media.API{Files: s.Media}
		s.room = &room.API{Config: s.Config, DB: s.DB, Reader: s.Reader, Rooms: s.Rooms, Log: s.Log}
		s.directory = &directory.API{Config: s.Config, DB: s.DB, Reader: s.Reader, Rooms: s.Rooms, Peer: s.Peer, Limits: s.Limits, Log: s.Log}
	})
}
