package durability

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/test/homeserver"

	"github.com/nats-io/nats-server/v2/server"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// within opens the database of a server that is down.
func within(t *testing.T, o sql.Options, do func(db *storage.DB, rooms *roomserver.Server)) {
	t.Helper()
	db, err := storage.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rooms := roomserver.New(roomserver.Options{DB: db, Reader: roomserver.NewReader(8 << 20), ServerName: "test", Log: zap.NewNop()})
	if err := rooms.Own(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	do(db, rooms)
	if err := db.ReleaseShards(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
}

// harm has the events of a room after somebody's join, and the room, stand on the state before it.
func harm(t *testing.T, db *storage.DB, room, user string) {
	t.Helper()
	err := db.Write(t.Context(), nil, func(tx storage.Tx) error {
		row, ok, err := tx.Room(room)
		if err != nil || !ok {
			return fmt.Errorf("the room is there: %v, %w", ok, err)
		}
		m, ok, err := tx.Member(row.NID, user)
		if err != nil || !ok {
			return fmt.Errorf("the member is there: %v, %w", ok, err)
		}
		joins, err := tx.Events([]int64{m.Event})
		if err != nil {
			return err
		}
		join := joins[0]
		later, err := tx.EventsAbove(row.NID, *join.Ord, 1<<62, 10_000)
		if err != nil {
			return err
		}
		for _, ev := range later {
			tx.MoveEvent(ev.NID, join.RootBefore, join.RootBefore)
		}
		row.Root = join.RootBefore
		tx.UpdateRoom(row)
		tx.DeleteMember(row.NID, user)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

const inOrder = "all of it is as it is stored"

// However often the server is killed while a room's state is rebuilt, the next attempt ends it, also without NATS.
func TestKilledWhileStateIsRebuilt(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		dir := t.TempDir()
		n := startNATS(t, server.RANDOM_PORT, dir)
		port := n.Addr().(*net.TCPAddr).Port
		t.Cleanup(func() { stopNATS(n) })
		where := fresh()
		s := homeserver.Start(t, homeserver.Options{Database: where, Process: true, Settings: map[string]string{"CHANCERY_NATS_URL": "nats://127.0.0.1:" + strconv.Itoa(port)}})
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(room)
		for i := range 600 {
			alice.OK("PUT", homeserver.Room(room, "send", "m.room.message", fmt.Sprint(i)), J{"msgtype": "m.text", "body": "x"})
		}
		s.Stop()
		o := sql.Options{URL: where, Path: filepath.Join(s.Dir, "chancery.db"), MaxConnections: 4}
		within(t, o, func(db *storage.DB, _ *roomserver.Server) { harm(t, db, room, bob.ID) })
		s.Start()
		rebuild := func(ctx context.Context, flags ...string) string {
			out, err := s.Verb(ctx, append([]string{"room", "rebuild-state", room}, flags...)...)
			if err != nil && ctx.Err() == nil && s.Running() {
				t.Logf("rebuild-state %v: %v %s", flags, err, out)
			}
			return out
		}
		began := time.Now()
		if look := rebuild(t.Context()); strings.Contains(look, inOrder) {
			t.Fatalf("the room was harmed and nobody sees it: %s", look)
		}
		looking := time.Since(began)
		cut := 0
		for range 4 {
			ctx, cancel := context.WithCancel(t.Context())
			said := make(chan string, 1)
			go func() { said <- rebuild(ctx, "--apply") }()
			time.Sleep(time.Duration(rand.Int64N(int64(2 * looking))))
			s.Kill()
			cancel()
			if out := <-said; !strings.Contains(out, "moved") && !strings.Contains(out, inOrder) {
				cut++
			}
			s.Start()
			alice.Send(room, "in use")
		}
		stopNATS(n)
		rebuild(t.Context(), "--apply")
		if got := rebuild(t.Context()); !strings.Contains(got, inOrder) {
			t.Errorf("after %d kills and one attempt to the end: %s", cut, got)
		}
		if got := alice.OK("GET", homeserver.Room(room, "state", "m.room.member", bob.ID), nil).Get("membership").Str; got != "join" {
			t.Errorf("bob is %q", got)
		}
		if next := alice.OK("POST", homeserver.Room(room, "upgrade"), J{"new_version": "11"}).Get("replacement_room").Str; next == "" {
			t.Error("without NATS no room is replaced")
		}
		t.Logf("%d of 4 attempts were cut short; a look takes %v", cut, looking)
		n = startNATS(t, port, dir)
	})
}

// collectHere names the room whose unused state the test binary collects when it is run as the process that is killed.
const collectHere = "DURABILITY_COLLECT"

func TestCollectUntilKilled(t *testing.T) {
	room, place, ok := strings.Cut(os.Getenv(collectHere), " ")
	if !ok {
		t.Skip("this is run by TestKilledWhileStateIsCollected")
	}
	url, path, _ := strings.Cut(place, " ")
	tell := func(statement string) {
		if strings.Contains(statement, "DELETE FROM state_nodes") {
			fmt.Println("removing")
		}
	}
	within(t, sql.Options{URL: url, Path: path, MaxConnections: 4, Trace: tell}, func(_ *storage.DB, rooms *roomserver.Server) {
		for {
			if _, err := rooms.Collect(t.Context(), id.RoomID(room)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A process that is killed while it collects unused state has taken nothing that is used, and the next one takes the rest.
func TestKilledWhileStateIsCollected(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		where := fresh()
		s := homeserver.Start(t, homeserver.Options{Database: where, Process: true})
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(room)
		for i := range 40 {
			alice.OK("PUT", homeserver.Room(room, "state", "org.example.state", fmt.Sprint(i)), J{"n": i})
		}
		s.Stop()
		o := sql.Options{URL: where, Path: filepath.Join(s.Dir, "chancery.db"), MaxConnections: 4}
		nodes := func(db *storage.DB) (n int) {
			if err := db.Read(t.Context(), func(tx storage.Tx) error {
				return tx.QueryRow(`SELECT count(*) FROM state_nodes`).Scan(&n)
			}); err != nil {
				t.Fatal(err)
			}
			return n
		}
		const unused = 20_000
		used := 0
		within(t, o, func(db *storage.DB, rooms *roomserver.Server) {
			if _, err := rooms.Collect(t.Context(), id.RoomID(room)); err != nil {
				t.Fatal(err)
			}
			used = nodes(db)
			if err := db.Write(t.Context(), nil, func(tx storage.Tx) error {
				row, _, err := tx.Room(room)
				for range unused {
					row.NextNode++
					tx.InsertStateNode(row.NID, row.NextNode, []byte("unused"))
				}
				tx.NoteLoose(row.NID, unused)
				tx.UpdateRoom(row)
				return err
			}); err != nil {
				t.Fatal(err)
			}
		})
		for range 4 {
			cmd := exec.Command(os.Args[0], "-test.run=^TestCollectUntilKilled$")
			cmd.Env = append(os.Environ(), collectHere+"="+room+" "+o.URL+" "+o.Path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			ended, err := homeserver.Spawn(cmd)
			if err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(out)
			for range 1 + rand.IntN(4) {
				if !lines.Scan() {
					t.Fatal("the collecting process ended")
				}
			}
			cmd.Process.Kill()
			<-ended
		}
		within(t, o, func(db *storage.DB, rooms *roomserver.Server) {
			left := nodes(db)
			if _, err := rooms.Collect(t.Context(), id.RoomID(room)); err != nil {
				t.Fatal(err)
			}
			t.Logf("%d of %d unused nodes were left by the killed processes", left-used, unused)
			if got := nodes(db); got != used {
				t.Errorf("%d nodes are left, want %d", got, used)
			}
		})
		s.Start()
		if out, err := s.Verb(t.Context(), "room", "rebuild-state", room); err != nil || !strings.Contains(out, inOrder) {
			t.Errorf("the state after it: %v %s", err, out)
		}
		if got := len(alice.OK("GET", homeserver.Room(room, "state"), nil).Get("@this").Array()); got < 45 {
			t.Errorf("the room has %d pieces of state", got)
		}
	})
}
