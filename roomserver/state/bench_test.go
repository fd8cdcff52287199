package state

import (
	"fmt"
	"syscall"
	"testing"
)

// reportCPU tells the CPU time of an operation, which other work on the machine does not change.
func reportCPU(b *testing.B) {
	var start syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &start)
	b.Cleanup(func() {
		var end syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &end)
		spent := end.Utime.Nano() + end.Stime.Nano() - start.Utime.Nano() - start.Stime.Nano()
		b.ReportMetric(float64(spent)/1e6/float64(b.N), "cpu-ms/op")
	})
}

// crowd is a room in which each of many members has joined anew in one of two forks.
func crowd(b *testing.B, version string, conflicted int) (*world, [][]int64, stateMap) {
	w := newWorld(b, version, 12)
	s := w.found(w.levels(map[string]int{alice: 100}))
	forks := make([][]int64, 2)
	for i := range conflicted / 2 {
		user := fmt.Sprintf("@user%d:b", i)
		for fork := range forks {
			forks[fork] = append(forks[fork], w.add(s, proto{sender: user, typ: "m.room.member", key: user,
				content: fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, fork)}))
		}
	}
	w.atlas.store(w.cover)
	return w, forks, s
}

func BenchmarkResolveMembers(b *testing.B) {
	for _, version := range []string{"11", "12"} {
		for _, conflicted := range []int{1000, 10_000} {
			b.Run(fmt.Sprintf("v%s/%d", version, conflicted), func(b *testing.B) {
				w, sets, agreed := crowd(b, version, conflicted)
				reportCPU(b)
				for b.Loop() {
					got, err := Resolve(w.v, sets, w.input(agreed))
					if err != nil || len(got) != conflicted/2 {
						b.Fatal(len(got), err)
					}
				}
			})
		}
	}
}

func BenchmarkResolveChainedPowerLevels(b *testing.B) {
	for _, version := range []string{"11", "12"} {
		b.Run("v"+version, func(b *testing.B) {
			w, states := chainedLevels(b, version, 30)
			agreed, sets := split(states)
			reportCPU(b)
			for b.Loop() {
				if _, err := Resolve(w.v, sets, w.input(agreed)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The whole way: two roots of a room of 30,000, compared, resolved and set.
func BenchmarkResolveSmallForkInALargeRoom(b *testing.B) {
	for _, version := range []string{"11", "12"} {
		b.Run("v"+version, func(b *testing.B) {
			w, states := largeRoom(b, version, 30_000)
			shelf := newShelf()
			a := NewArray(1, shelf, NewCache(64<<20), shelf.next)
			slots := newSlots()
			roots := make([]Root, len(states))
			for i, s := range states {
				changes := make(map[int64]int64, len(s))
				for k, nid := range s {
					changes[slots.of(k)] = nid
				}
				if i == 0 {
					roots[0] = mustSet(b, a, 0, changes)
				} else {
					roots[i] = mustSet(b, a, roots[0], changes)
				}
				for k, slot := range slots.byKey { // what only the first has
					if s[k] == 0 {
						roots[i] = mustSet(b, a, roots[i], map[int64]int64{slot: 0})
					}
				}
			}
			shelf.store(a)
			reportCPU(b)
			for b.Loop() {
				c, err := a.Conflicts(roots...)
				if err != nil {
					b.Fatal(err)
				}
				in := w.input(nil)
				in.Agreed = a.Agreed(roots[0], c, slots.find)
				got, err := Resolve(w.v, c.Sets, in)
				if err != nil {
					b.Fatal(err)
				}
				changes := make(map[int64]int64)
				for k, nid := range got {
					changes[slots.of(k)] = nid
				}
				mustSet(b, a, roots[0], changes)
				shelf.store(a)
			}
		})
	}
}
