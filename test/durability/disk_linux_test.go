package durability

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/test/homeserver"

	"golang.org/x/sys/unix"
)

// limitFiles lets no file that a process writes grow above a size, as a full disk would; 0 lifts that.
func limitFiles(t *testing.T, pid int, size uint64) {
	t.Helper()
	var now unix.Rlimit
	err := unix.Prlimit(pid, unix.RLIMIT_FSIZE, nil, &now)
	if now.Cur = size; size == 0 {
		now.Cur = now.Max
	}
	if err == nil {
		err = unix.Prlimit(pid, unix.RLIMIT_FSIZE, &now, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// When the disk is full, writes and /health say so and everything else goes on; nothing that was acknowledged is lost, and
// when there is room again no restart is needed.
func TestTheDiskIsFull(t *testing.T) {
	s := homeserver.Start(t, homeserver.Options{Process: true})
	alice := s.Register(t, "alice")
	room := alice.CreateRoom(J{"preset": "public_chat"})
	watch := newWatcher(t, alice, room, alice.Sync("").Get("next_batch").Str)
	healthy(t, s, http.StatusOK)

	var largest int64
	files, err := filepath.Glob(filepath.Join(s.Dir, "chancery.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		largest = max(largest, info.Size())
	}
	limitFiles(t, s.Pid(), uint64(largest)+256<<10)
	var sent, refused []string
	filler := strings.Repeat("x", 8<<10)
	say := func(body string) homeserver.Answer {
		t.Helper()
		return alice.Ask("PUT", homeserver.Room(room, "send", "m.room.message", body), J{"msgtype": "m.text", "body": body, "filler": filler})
	}
	for i := 0; len(refused) < 5; i++ {
		if i == 1000 {
			t.Fatal("the disk is never full")
		}
		body := fmt.Sprint("message ", i)
		switch a := say(body); {
		case a.Status == http.StatusOK:
			sent = append(sent, body)
		case a.Status >= 500 && a.Code() != "":
			refused = append(refused, body)
		default:
			t.Fatalf("a full disk is told as %s", a)
		}
	}
	healthy(t, s, http.StatusServiceUnavailable)
	history(t, alice, room)
	if file, err := alice.Try(t.Context(), "POST", "/_matrix/media/v3/upload?filename=x", strings.Repeat(filler, int(largest>>13)+100)); err != nil || file.Status < 500 {
		t.Errorf("a file for which there is no room: %s %v", file, err)
	}

	limitFiles(t, s.Pid(), 0)
	healthy(t, s, http.StatusOK)
	for _, body := range refused {
		if a := say(body); a.Status != http.StatusOK {
			t.Errorf("there is room again, and yet: %s", a)
		}
	}
	all := append(sent, refused...)
	watch.sawAll(all)
	t.Logf("%d messages before the disk was full", len(sent))
	s.Kill()
	s.Start()
	times := map[string]int{}
	for _, ev := range history(t, alice, room) {
		times[ev.Get("content.body").Str]++
	}
	for _, body := range all {
		if times[body] != 1 {
			t.Errorf("%q stands %d times in the history", body, times[body])
		}
	}
}
