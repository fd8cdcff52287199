package auth_test

import (
	"fmt"
	"testing"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// large is a room with many users in its power levels.
func large(b *testing.B) *room {
	r := joinedRoom(b, "12", bob)
	users := obj{string(bob): 50}
	for i := range 500 {
		users[fmt.Sprintf("@user%d:b.example", i)] = 10
	}
	r.levels(obj{"events": obj{"m.room.name": 50, "m.room.tombstone": 150}}, users)
	return r
}

func benchmark(b *testing.B, r *room, ev *event.Event) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		if err := auth.Check(ev, r); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheckMessage(b *testing.B) {
	r := large(b)
	benchmark(b, r, r.message(bob))
}

func BenchmarkCheckMember(b *testing.B) {
	r := large(b)
	b.Run("join", func(b *testing.B) { benchmark(b, r, r.member(carol, carol, "join")) })
	b.Run("invite", func(b *testing.B) { benchmark(b, r, r.member(bob, carol, "invite")) })
	b.Run("ban", func(b *testing.B) { benchmark(b, r, r.member(bob, carol, "ban")) })
}

// The auth events of a member event in a room, as a peer's event is asked about first.
func BenchmarkCheckAuthEvents(b *testing.B) {
	r := large(b)
	ev := r.member(bob, carol, "invite")
	cited, create := r.cited(ev), r.Get("m.room.create", "")
	b.ReportAllocs()
	for b.Loop() {
		if err := auth.CheckAuthEvents(ev, cited, create, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// Power levels are read once per event, not once per check.
func BenchmarkPowerLevelsChange(b *testing.B) {
	r := large(b)
	benchmark(b, r, r.power(alice, obj{"ban": 60}))
}
