package media

import (
	"bytes"
	"context"
	"image"
	"image/color"
	"image/gif"
	"image/jpeg"
	"image/png"
	"io"
	"strings"
	"testing"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/blob"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"go.uber.org/zap/zaptest"
)

const (
	us    = "agency-a.example"
	them  = "agency-b.example:8448"
	alice = "@alice:" + us
	bob   = "@bob:" + us
)

// world is a media server whose clock stands still until it is moved.
type world struct {
	*Server
	t     *testing.T
	peers *peers
	clock time.Time
}

func eachEngine(t *testing.T, test func(*world)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(newWorld(t, fresh())) })
}

func newWorld(t testing.TB, o sql.Options) *world {
	t.Helper()
	db, err := storage.Open(context.WithoutCancel(t.Context()), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	blobs, err := blob.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := &world{peers: &peers{files: map[string]peer.Media{}}, clock: time.UnixMilli(1_700_000_000_000)}
	w.t, _ = t.(*testing.T)
	w.Server = New(Options{DB: db, Blobs: blobs, Peers: w.peers, ServerName: us, MaxBytes: 1 << 20, Log: zaptest.NewLogger(t)})
	w.now = func() time.Time { return w.clock }
	return w
}

func (w *world) upload(kind, name, text string) string {
	w.t.Helper()
	mediaID, err := w.Upload(w.t.Context(), Upload{User: alice, Type: kind, Name: name, Body: strings.NewReader(text)})
	if err != nil {
		w.t.Fatal(err)
	}
	return mediaID
}

// read opens a file and reads it.
func (w *world) read(want Want) (*File, string, error) {
	w.t.Helper()
	f, err := w.Open(w.t.Context(), want)
	if err != nil {
		return nil, "", err
	}
	return f, w.all(f), nil
}

func (w *world) all(f *File) string {
	w.t.Helper()
	text, err := io.ReadAll(f)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
	return string(text)
}

func wantError(t *testing.T, err error, status int, code chancery.Code) {
	t.Helper()
	if err == nil {
		t.Fatalf("it went well and should be %d %s", status, code)
	}
	if e := chancery.As(err); e.Status != status || e.Code != code {
		t.Fatalf("got %d %v, want %d %s", e.Status, err, status, code)
	}
}

// picture is w by h pixels, dark in its left half.
func picture(w, h int) *image.NRGBA {
	m := image.NewNRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			c := color.NRGBA{255, 255, 255, 255}
			if x < w/2 {
				c = color.NRGBA{10, 10, 10, 255}
			}
			m.SetNRGBA(x, y, c)
		}
	}
	return m
}

func pngOf(t testing.TB, w, h int) string {
	return written(t, func(out io.Writer) error { return png.Encode(out, picture(w, h)) })
}

func jpegOf(t testing.TB, w, h int) string {
	return written(t, func(out io.Writer) error { return jpeg.Encode(out, picture(w, h), nil) })
}

// gifOf is animated: three pictures.
func gifOf(t testing.TB, w, h int) string {
	g := &gif.GIF{}
	for i := range 3 {
		p := image.NewPaletted(image.Rect(0, 0, w, h), color.Palette{color.Black, color.White})
		p.SetColorIndex(i, i, 1)
		g.Image, g.Delay = append(g.Image, p), append(g.Delay, 10)
	}
	return written(t, func(out io.Writer) error { return gif.EncodeAll(out, g) })
}

func written(t testing.TB, write func(io.Writer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
