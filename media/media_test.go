package media

import (
	"context"
	"errors"
	"io"
	"mime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// peers are other servers with files.
type peers struct {
	mu     sync.Mutex // guards files and fail
	files  map[string]peer.Media
	fail   error
	asked  atomic.Int64
	hold   chan struct{} // when not nil, answers wait for it
	limits peer.MediaLimits
}

func (p *peers) MediaDownload(ctx context.Context, destination, media string, limits peer.MediaLimits) (*peer.Media, error) {
	p.asked.Add(1)
	if p.hold != nil {
		<-p.hold
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limits = limits
	if p.fail != nil {
		return nil, p.fail
	}
	f, ok := p.files[destination+"/"+media]
	if !ok {
		return nil, &peer.Error{Destination: destination, Status: 404, Code: chancery.CodeNotFound}
	}
	return &f, nil
}

func (p *peers) give(media, kind, disposition, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.files[them+"/"+media] = peer.Media{ContentType: kind, Disposition: disposition, Body: io.NopCloser(strings.NewReader(text))}
}

// spec: c2s/uploadContent, c2s/getContentAuthed
func TestWhatIsUploadedIsGivenBack(t *testing.T) {
	eachEngine(t, func(w *world) {
		mediaID := w.upload("text/plain; charset=utf-8", "Krieg und\x00Frieden ☕.txt", "hello")
		f, text, err := w.read(Want{Origin: us, ID: mediaID})
		if err != nil || text != "hello" || f.Type != "text/plain; charset=utf-8" || f.Name != "Krieg und\x00Frieden ☕.txt" || f.Size != 5 {
			t.Fatalf("%+v %q %v", f, text, err)
		}
		if other := w.upload("text/html", "", "hello"); other == mediaID {
			t.Fatal("two uploads have one ID")
		}
		var files, bytes int64
		if err := w.DB.Read(t.Context(), func(tx storage.Tx) (err error) {
			files, bytes, err = tx.MediaUsage(alice)
			return err
		}); err != nil || files != 2 || bytes != 10 {
			t.Fatalf("alice has %d files of %d bytes, %v", files, bytes, err)
		}
		for _, bad := range []Want{{Origin: us, ID: "unknown"}, {Origin: us, ID: "../../etc/passwd"}, {Origin: us}, {Origin: "../x", ID: mediaID},
			{Origin: us, ID: mediaID + "\x00"}, {Origin: us, ID: strings.Repeat("a", 300)}} {
			_, _, err := w.read(bad)
			wantError(t, err, 404, chancery.CodeNotFound)
		}
		if w.peers.asked.Load() != 0 {
			t.Fatal("a peer was asked for a file of ours")
		}
	})
}

// spec: c2s#content-repo-client-behaviour
func TestFreezeHidesNewFilesFromStrangers(t *testing.T) {
	eachEngine(t, func(w *world) {
		mediaID := w.upload("text/plain", "", "new")
		_, _, err := w.read(Want{Origin: us, ID: mediaID, PublicOnly: true})
		wantError(t, err, 404, chancery.CodeNotFound)
		w.peers.give("remote", "text/plain", "", "theirs")
		_, _, err = w.read(Want{Origin: them, ID: "remote", PublicOnly: true})
		wantError(t, err, 404, chancery.CodeNotFound)
		if w.peers.asked.Load() != 0 {
			t.Fatal("a stranger made us fetch a file")
		}
		v, _, _ := w.row(t.Context(), us, mediaID)
		v.ID, v.Public = "from-before", true
		if err := w.DB.Write(t.Context(), nil, func(tx storage.Tx) error { _, err := tx.InsertMedia(v); return err }); err != nil {
			t.Fatal(err)
		}
		if _, text, err := w.read(Want{Origin: us, ID: "from-before", PublicOnly: true}); err != nil || text != "new" {
			t.Fatalf("%q %v", text, err)
		}
	})
}

func TestUploadsHaveLimits(t *testing.T) {
	w := newWorld(t, sqlite(t))
	_, err := w.Upload(t.Context(), Upload{User: alice, Body: strings.NewReader(strings.Repeat("x", 1<<20+1))})
	wantError(t, err, 413, chancery.CodeTooLarge)
	_, err = w.Upload(t.Context(), Upload{User: alice, Body: iotest.ErrReader(errors.New("connection lost"))})
	wantError(t, err, 400, chancery.CodeUnknown)
}

// spec: c2s/createContent, c2s/uploadContentToMXC
func TestReservedIDIsFilledOnceByItsOwner(t *testing.T) {
	eachEngine(t, func(w *world) {
		ctx := t.Context()
		mediaID, expires, err := w.Reserve(ctx, alice)
		if err != nil || !expires.Equal(w.clock.Add(24*time.Hour)) {
			t.Fatal(expires, err)
		}
		_, _, err = w.read(Want{Origin: us, ID: mediaID})
		wantError(t, err, 504, chancery.CodeNotYetUploaded)
		fill := func(origin, mediaID string, user id.UserID, text string) error {
			return w.Fill(ctx, origin, mediaID, Upload{User: user, Type: "text/plain", Body: strings.NewReader(text)})
		}
		wantError(t, fill(us, mediaID, bob, "bob's"), 403, chancery.CodeForbidden)
		wantError(t, fill(them, mediaID, alice, "x"), 404, chancery.CodeNotFound)
		wantError(t, fill(us, "never-reserved", alice, "x"), 404, chancery.CodeNotFound)
		if err := fill(us, mediaID, alice, "the file"); err != nil {
			t.Fatal(err)
		}
		wantError(t, fill(us, mediaID, alice, "another"), 409, chancery.CodeCannotOverwriteMedia)
		if _, text, err := w.read(Want{Origin: us, ID: mediaID}); err != nil || text != "the file" {
			t.Fatalf("%q %v", text, err)
		}

		late, _, err := w.Reserve(ctx, alice)
		if err != nil {
			t.Fatal(err)
		}
		w.clock = w.clock.Add(25 * time.Hour)
		wantError(t, fill(us, late, alice, "x"), 404, chancery.CodeNotFound)
		if err := w.sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if _, ok, _ := w.row(ctx, us, late); ok {
			t.Fatal("the expired ID is still there")
		}
		if _, _, err := w.read(Want{Origin: us, ID: mediaID}); err != nil {
			t.Fatal("the filled ID went with it: ", err)
		}
	})
}

func TestReservedIDsOfAUserAreBounded(t *testing.T) {
	w := newWorld(t, sqlite(t))
	for range maxReserved {
		if _, _, err := w.Reserve(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := w.Reserve(t.Context(), alice)
	wantError(t, err, 429, chancery.CodeLimitExceeded)
	if _, _, err := w.Reserve(t.Context(), bob); err != nil {
		t.Fatal("alice's IDs count for bob: ", err)
	}
	w.clock = w.clock.Add(reservedFor)
	if _, _, err := w.Reserve(t.Context(), alice); err != nil {
		t.Fatal("expired IDs still count: ", err)
	}
}

func TestManyFillOneIDAtOnce(t *testing.T) {
	eachEngine(t, func(w *world) {
		mediaID, _, err := w.Reserve(t.Context(), alice)
		if err != nil {
			t.Fatal(err)
		}
		var won atomic.Int64
		var all sync.WaitGroup
		for _, text := range []string{"a", "b", "c", "d", "e"} {
			all.Go(func() {
				err := w.Fill(t.Context(), us, mediaID, Upload{User: alice, Body: strings.NewReader(text)})
				switch {
				case err == nil:
					won.Add(1)
				case !chancery.IsCode(err, chancery.CodeCannotOverwriteMedia):
					t.Error(err)
				}
			})
		}
		all.Wait()
		if won.Load() != 1 {
			t.Fatalf("%d uploads filled one ID", won.Load())
		}
	})
}

// spec: c2s/getContentAuthed (timeout_ms)
func TestReaderWaitsForTheUpload(t *testing.T) {
	w := newWorld(t, sqlite(t))
	mediaID, _, err := w.Reserve(t.Context(), alice)
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		text string
		err  error
	}
	got := make(chan result, 2)
	for range 2 {
		go func() {
			f, err := w.Open(t.Context(), Want{Origin: us, ID: mediaID, Wait: time.Minute})
			if err != nil {
				got <- result{"", err}
				return
			}
			defer f.Close()
			text, err := io.ReadAll(f)
			got <- result{string(text), err}
		}()
	}
	for waiting := 0; waiting < 2; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		if a := w.awaits[mediaID]; a != nil {
			waiting = a.waiters
		}
		w.mu.Unlock()
	}
	w.mu.Lock()
	here := w.awaits[mediaID].here
	w.mu.Unlock()
	if err := w.Fill(t.Context(), us, mediaID, Upload{User: alice, Body: strings.NewReader("at last")}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := <-got; r.err != nil || r.text != "at last" {
			t.Fatal(r)
		}
	}
	select {
	case <-here:
	default:
		t.Fatal("the waiting could hear of it only by asking again")
	}
	if len(w.awaits) != 0 {
		t.Fatalf("%d entries are left of those who waited", len(w.awaits))
	}
}

// spec: s2s#content-repository
func TestFileOfAnotherServerIsFetchedOnce(t *testing.T) {
	eachEngine(t, func(w *world) {
		w.peers.give("theirs", "image/png", `inline; filename*=utf-8''caf%C3%A9.png`, "bytes")
		w.peers.hold = make(chan struct{})
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				f, err := w.Open(t.Context(), Want{Origin: them, ID: "theirs", Wait: DefaultWait})
				if err != nil {
					t.Error(err)
					return
				}
				defer f.Close()
				if text, _ := io.ReadAll(f); string(text) != "bytes" || f.Type != "image/png" || f.Name != "café.png" {
					t.Errorf("%q %+v", text, f)
				}
			})
		}
		for w.peers.asked.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
		close(w.peers.hold)
		all.Wait()
		if _, _, err := w.read(Want{Origin: them, ID: "theirs"}); err != nil {
			t.Fatal(err)
		}
		if n := w.peers.asked.Load(); n != 1 {
			t.Fatalf("it was asked for %d times", n)
		}
		if w.peers.limits.MaxBytes != w.MaxBytes || w.peers.limits.Wait != DefaultWait {
			t.Fatalf("asked with %+v", w.peers.limits)
		}
	})
}

func TestLostContentOfAnotherServerIsFetchedAgain(t *testing.T) {
	w := newWorld(t, sqlite(t))
	w.peers.give("theirs", "text/plain", "", "bytes")
	f, _, err := w.read(Want{Origin: them, ID: "theirs"})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Blobs.Delete(t.Context(), f.Hash); err != nil {
		t.Fatal(err)
	}
	w.peers.give("theirs", "text/plain", "", "bytes")
	if _, text, err := w.read(Want{Origin: them, ID: "theirs"}); err != nil || text != "bytes" {
		t.Fatalf("%q %v", text, err)
	}
}

// spec: c2s#content-repo-security-considerations
func TestFailedFetches(t *testing.T) {
	w := newWorld(t, sqlite(t))
	for name, c := range map[string]struct {
		fail   error
		status int
		code   chancery.Code
	}{
		"not there":        {&peer.Error{Status: 404, Code: chancery.CodeNotFound}, 404, chancery.CodeNotFound},
		"not yet there":    {&peer.Error{Status: 504, Code: chancery.CodeNotYetUploaded}, 504, chancery.CodeNotYetUploaded},
		"said too large":   {&peer.Error{Status: 502, Code: chancery.CodeTooLarge}, 502, chancery.CodeTooLarge},
		"cut as too large": {peer.ErrAnswerTooLarge, 502, chancery.CodeTooLarge},
		"refused":          {&peer.Error{Status: 403, Code: chancery.CodeForbidden}, 502, chancery.CodeUnknown},
		"unreachable":      {errors.New("no route"), 502, chancery.CodeUnknown},
		"too slow":         {context.DeadlineExceeded, 504, chancery.CodeUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			w.peers.fail = c.fail
			_, _, err := w.read(Want{Origin: them, ID: "theirs"})
			wantError(t, err, c.status, c.code)
		})
	}
	w.peers.fail = nil
	w.peers.give("large", "text/plain", "", strings.Repeat("x", 1<<20+1))
	_, _, err := w.read(Want{Origin: them, ID: "large"})
	wantError(t, err, 502, chancery.CodeTooLarge)
	w.peers.give("kept-away", "text/plain", "", "x")
	_, _, err = w.read(Want{Origin: them, ID: "kept-away", LocalOnly: true})
	wantError(t, err, 404, chancery.CodeNotFound)
}

func TestWithdrawnFileIsGone(t *testing.T) {
	w := newWorld(t, sqlite(t))
	v := storage.Media{Origin: them, ID: "bad", Hash: strings.Repeat("0", 64), QuarantinedBy: alice}
	if err := w.DB.Write(t.Context(), nil, func(tx storage.Tx) error { _, err := tx.InsertMedia(v); return err }); err != nil {
		t.Fatal(err)
	}
	w.peers.give("bad", "text/plain", "", "x")
	_, _, err := w.read(Want{Origin: them, ID: "bad"})
	wantError(t, err, 404, chancery.CodeNotFound)
	w.clock = w.clock.Add(2 * forgetAfter)
	if err := w.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, _, err = w.read(Want{Origin: them, ID: "bad"}); !chancery.IsCode(err, chancery.CodeNotFound) || w.peers.asked.Load() != 0 {
		t.Fatal("a withdrawn file was fetched again", err)
	}
}

func TestForgettingSparesWhatIsStillNamed(t *testing.T) {
	eachEngine(t, func(w *world) {
		small := pngOf(t, 200, 200)
		w.peers.give("shared", "image/png", "", small)
		w.peers.give("alone", "image/png", "", pngOf(t, 300, 300))
		for _, media := range []string{"shared", "alone"} {
			f, err := w.Thumbnail(t.Context(), Want{Origin: them, ID: media}, Picture{32, 32, "crop"})
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		ours := w.upload("image/png", "", small)
		alone, _, err := w.row(t.Context(), them, "alone")
		if err != nil {
			t.Fatal(err)
		}
		w.clock = w.clock.Add(forgetAfter - time.Hour)
		if err := w.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, ok, _ := w.row(t.Context(), them, "alone"); !ok {
			t.Fatal("forgotten before its time")
		}
		w.clock = w.clock.Add(2 * time.Hour)
		if err := w.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, media := range []string{"shared", "alone"} {
			if _, ok, _ := w.row(t.Context(), them, media); ok {
				t.Fatalf("%s was not forgotten", media)
			}
		}
		if _, text, err := w.read(Want{Origin: us, ID: ours}); err != nil || text != small {
			t.Fatal("our file went with theirs: ", err)
		}
		if _, _, err := w.Blobs.Get(t.Context(), alone.Hash); err == nil {
			t.Fatal("the forgotten bytes are still there")
		}
		if err := w.DB.Read(t.Context(), func(tx storage.Tx) error {
			n, err := tx.CountThumbnails(alone.Hash)
			if n != 0 {
				t.Errorf("%d thumbnails of the forgotten file are left", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// spec: c2s#serving-inline-content
func TestOnlyHarmlessTypesAreShownInPlace(t *testing.T) {
	for kind, want := range map[string]string{
		"image/png": "inline", "IMAGE/PNG": "inline", "text/plain; charset=utf-8": "inline", "video/mp4": "inline", "application/json": "inline",
		"text/html": "attachment", "image/svg+xml": "attachment", "application/pdf": "attachment", "application/xhtml+xml": "attachment",
		"application/octet-stream": "attachment", "text/javascript": "attachment", "": "attachment", "nonsense;;": "attachment",
	} {
		if got := (&File{Type: kind}).Disposition(); got != want {
			t.Errorf("%q is %s, want %s", kind, got, want)
		}
	}
}

func FuzzFileName(f *testing.F) {
	for _, name := range []string{"plain.txt", "name with spaces", "name;with;semicolons", `quo"ted\`, "☕", "\r\nSet-Cookie: a=b", "\x00", "\xff"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		name = cleanName(name)
		got := (&File{Type: "image/png", Name: name}).Disposition()
		if strings.ContainsAny(got, "\r\n\x00") {
			t.Fatalf("%q becomes %q", name, got)
		}
		how, params, err := mime.ParseMediaType(got)
		if err != nil || how != "inline" || params["filename"] != name {
			t.Fatalf("%q becomes %q, which says %q %q %v", name, got, how, params["filename"], err)
		}
	})
}

func TestTypesThatMeanNothingAreOctets(t *testing.T) {
	for said, want := range map[string]string{
		"": unknownType, "image/png": "image/png", " text/plain;charset=UTF-8 ": "text/plain;charset=UTF-8", "png": unknownType,
		"text/plain; x": unknownType, "a/b\r\nX: y": unknownType, "text/" + strings.Repeat("x", 300): unknownType, "img/png": "img/png",
	} {
		if got := cleanType(said); got != want {
			t.Errorf("%q becomes %q, want %q", said, got, want)
		}
	}
}
