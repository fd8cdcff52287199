//go:build goolm

package interop

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/test/homeserver"
	"chancery/test/notice"
)

// story is told twice, with the room at home on our server and on the other one.
type story struct {
	name string
	tell func(t *testing.T, home, away *server)
}

var stories = slices.Concat(versions("1", "6", "10", "11", "12"), []story{
	{"knock", knock},
	{"restricted", restricted},
	{"encrypted", encrypted},
	{"upgrade", upgrade},
	{"late reader", lateReader},
	{"history for members", historyForMembers},
	{"rejoin after a gap", rejoin},
	{"both at once", bothAtOnce},
	{"moderation", moderation},
	{"server ACL", serverACL},
	{"last member removed", lastMemberRemoved},
	{"invitations", invitations},
	{"directory", directory},
	{"profile", profile},
	{"ephemeral", ephemeral},
	{"media", mediaFiles},
	{"room of many", roomOfMany},
	{"notary", notary},
	{"event at a time", eventAtTime},
	{"space", space},
	{"openid", openid},
	{"1,000 while away", thousandWhileAway},
})

// peers starts each server that is at hand, with a database as ours has it where it can.
func peers(t *testing.T) map[string]func(t testing.TB, ca *homeserver.CA, database string) *server {
	all := map[string]func(testing.TB, *homeserver.CA, string) *server{}
	if os.Getenv("SYNAPSE") != "off" {
		all["synapse"] = synapse
	}
	if binary := os.Getenv("DENDRITE"); binary != "" {
		if _, err := os.Stat(binary); err != nil {
			t.Fatalf("DENDRITE: %v", err)
		}
		all["dendrite"] = func(t testing.TB, ca *homeserver.CA, database string) *server {
			return dendrite(t, ca, binary, database)
		}
	} else {
		notice.Print("without Dendrite: DENDRITE=/path/to/binary makes it a peer")
	}
	return all
}

func TestInterop(t *testing.T) {
	if os.Getenv("CHANCERY_INTEROP") == "" {
		t.Skip("real peers are met by make interop")
	}
	for name, start := range peers(t) {
		t.Run(name, func(t *testing.T) {
			homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
				ca := homeserver.NewCA(t)
				our, other := ours(t, ca, fresh()), start(t, ca, fresh())
				for _, s := range stories {
					tell(t, s, "our room", our, other)
					tell(t, s, "their room", other, our)
				}
				if log := os.Getenv("INTEROP_LOGS"); log != "" {
					keep(t, "chancery.log", write(t, our.Dir+".log", our.Log()))
				}
			})
		})
	}
}

func tell(t *testing.T, s story, where string, home, away *server) {
	t.Run(s.name+"/"+where, func(t *testing.T) {
		for _, at := range []*server{home, away} {
			for lacked, why := range at.lacks {
				if matches(lacked, s.name, where) {
					t.Skipf("%s: %s", at.software, why)
				}
			}
		}
		began := time.Now()
		s.tell(t, home, away)
		t.Logf("told in %v", time.Since(began).Round(time.Millisecond))
	})
}

// matches says whether "story" or "story/where" names this telling.
func matches(lacked, name, where string) bool {
	of, at, split := strings.Cut(lacked, "/")
	return of == name && (!split || at == where)
}
