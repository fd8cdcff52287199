package clientapi

import (
	"sync"

	"chancery/clientapi/account"
	"chancery/clientapi/device"
	"chancery/clientapi/media"
	"chancery/clientapi/room"
	"chancery/clientapi/uia"
)

// parts are the sub-APIs, made once for a Server when its table is first asked for.
type parts struct {
	once    sync.Once
	uia     *uia.Sessions
	account *account.API
	device  *device.API
	room    *room.API
	media   *media.API
}

func (s *Server) makeParts() {
	s.once.Do(func() {
		s.uia = uia.New(s.Users)
		s.account = &account.API{Users: s.Users, UIA: s.uia, Config: s.Config}
		s.device = &device.API{Users: s.Users, UIA: s.uia}
		s.media = &media.API{Files: s.Media}
		s.room = &room.API{Config: s.Config, DB: s.DB, Reader: s.Reader, Rooms: s.Rooms, Log: s.Log}
	})
}
