package media

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"image"
	"image/gif"
	"strings"
	"testing"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

func sqlite(t testing.TB) sql.Options { return sqltest.SQLite(t) }

// spec: c2s#thumbnails
func TestThumbnailSizes(t *testing.T) {
	w := newWorld(t, sqlite(t))
	for _, c := range []struct {
		what       string
		text       string
		ask        Picture
		w, h       int
		kind       string
		isOriginal bool
	}{
		{"crop of a wide picture", pngOf(t, 400, 100), Picture{32, 32, "crop"}, 32, 32, "image/png", false},
		{"crop asks for odd size", pngOf(t, 400, 300), Picture{50, 50, "crop"}, 96, 96, "image/png", false},
		{"crop keeps the shape asked for", pngOf(t, 400, 300), Picture{100, 50, "crop"}, 100, 50, "image/png", false},
		{"scale covers the box", pngOf(t, 1000, 500), Picture{320, 240, "scale"}, 480, 240, "image/png", false},
		{"scale of a tall picture", jpegOf(t, 500, 2000), Picture{320, 240, "scale"}, 320, 1280, "image/jpeg", false},
		{"scale is the default", jpegOf(t, 1000, 1000), Picture{300, 200, ""}, 320, 320, "image/jpeg", false},
		{"never upscaled", jpegOf(t, 40, 30), Picture{96, 96, "crop"}, 40, 30, "image/jpeg", true},
		{"smaller on one side", pngOf(t, 2000, 100), Picture{320, 240, "scale"}, 2000, 100, "image/png", true},
		{"the first of animated pictures", gifOf(t, 400, 400), Picture{96, 96, "crop"}, 96, 96, "image/png", false},
		{"animated and small", gifOf(t, 20, 20), Picture{96, 96, "crop"}, 20, 20, "image/png", false},
		{"smaller once it is upright", turned(jpegOf(t, 400, 200)), Picture{32, 32, "scale"}, 400, 200, "image/jpeg", true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w.t = t
			mediaID := w.upload("application/octet-stream", "", c.text)
			first, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: mediaID}, c.ask)
			if err != nil {
				t.Fatal(err)
			}
			text := w.all(first)
			got, format, err := image.Decode(strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			size := got.Bounds().Size()
			if size.X != c.w || size.Y != c.h || first.Type != c.kind || "image/"+format != c.kind {
				t.Fatalf("%v %s (%s), want %d by %d %s", size, first.Type, format, c.w, c.h, c.kind)
			}
			if (text == c.text) != c.isOriginal {
				t.Fatalf("is the original: %v", text == c.text)
			}
			if frames, err := gif.DecodeAll(strings.NewReader(text)); err == nil && len(frames.Image) > 1 {
				t.Fatal("it is animated")
			}
			again, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: mediaID}, c.ask)
			if err != nil {
				t.Fatal(err)
			}
			if again.Hash != first.Hash || w.all(again) != text {
				t.Fatal("the second time it is another one")
			}
		})
	}
}

// turned puts an EXIF orientation of 6, a quarter turn, into a JPEG.
func turned(text string) string {
	exif := "Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00\x00\x00\x00\x00"
	segment := "\xff\xe1" + string(binary.BigEndian.AppendUint16(nil, uint16(len(exif)+2))) + exif
	return text[:2] + segment + text[2:]
}

func TestThumbnailIsUpright(t *testing.T) {
	w := newWorld(t, sqlite(t))
	mediaID := w.upload("image/jpeg", "", turned(jpegOf(t, 1200, 800)))
	f, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: mediaID}, Picture{320, 240, "scale"})
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := image.Decode(strings.NewReader(w.all(f)))
	if err != nil || got.Bounds().Dx() != 320 || got.Bounds().Dy() != 480 {
		t.Fatalf("%v %v", got.Bounds(), err)
	}
	// The dark half was on the left; turned, it is at the top.
	if r, _, _, _ := got.At(160, 20).RGBA(); r > 0x8000 {
		t.Fatal("the top is light")
	}
	if r, _, _, _ := got.At(160, 460).RGBA(); r < 0x8000 {
		t.Fatal("the bottom is dark")
	}
}

// bomb is a PNG of a few bytes that claims any size.
func bomb(w, h uint32) string {
	header := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32([]byte("IHDR"), w), h)
	header = append(header, 8, 6, 0, 0, 0)
	text := "\x89PNG\r\n\x1a\n\x00\x00\x00\x0d" + string(header)
	return text + string(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(header)))
}

// spec: c2s#content-repo-security-considerations
func TestPicturesThatAreNone(t *testing.T) {
	w := newWorld(t, sqlite(t))
	ask := Picture{32, 32, "crop"}
	mediaID := w.upload("image/png", "", bomb(60_000, 60_000))
	_, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: mediaID}, ask)
	wantError(t, err, 413, chancery.CodeTooLarge)
	w.peers.give("bomb", "image/png", "", bomb(1<<20, 1<<20))
	_, err = w.Thumbnail(t.Context(), Want{Origin: them, ID: "bomb"}, ask)
	wantError(t, err, 502, chancery.CodeTooLarge)
	for what, text := range map[string]string{
		"text": "hello", "nothing": "", "cut off": pngOf(t, 100, 100)[:60], "only a name": "\x89PNG\r\n\x1a\n",
		"encrypted": "\x8f\x01\x77", "tiff": "II*\x00\x08\x00\x00\x00", "bmp": "BM\x00\x00", "svg": "<svg xmlns='http://www.w3.org/2000/svg'/>",
		"no pixels": bomb(0, 0), "webp of nothing": "RIFF\x00\x00\x00\x00WEBPVP8 ",
	} {
		t.Run(what, func(t *testing.T) {
			w.t = t
			_, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: w.upload("image/png", "", text)}, ask)
			wantError(t, err, 400, chancery.CodeUnknown)
		})
	}
	for _, bad := range []Picture{{0, 10, "crop"}, {10, -1, "scale"}, {10, 10, "stretch"}} {
		_, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: mediaID}, bad)
		wantError(t, err, 400, chancery.CodeInvalidParam)
	}
	_, err = w.Thumbnail(t.Context(), Want{Origin: us, ID: "unknown"}, ask)
	wantError(t, err, 404, chancery.CodeNotFound)
}

func TestKeptThumbnailsAreBounded(t *testing.T) {
	eachEngine(t, func(w *world) {
		mediaID := w.upload("image/png", "", pngOf(t, 200, 200))
		source, _, _ := w.row(t.Context(), us, mediaID)
		for side := range keptThumbnails + 5 {
			f, err := w.Thumbnail(t.Context(), Want{Origin: us, ID: mediaID}, Picture{20 + side, 10, "crop"})
			if err != nil {
				t.Fatal(err)
			}
			if got, _, err := image.DecodeConfig(bytes.NewReader([]byte(w.all(f)))); err != nil || got.Width != 20+side || got.Height != 10 {
				t.Fatalf("%+v %v", got, err)
			}
		}
		if err := w.DB.Read(t.Context(), func(tx storage.Tx) error {
			n, err := tx.CountThumbnails(source.Hash)
			if n != keptThumbnails {
				t.Errorf("%d are kept", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever a stranger uploads, making a thumbnail of it ends in a picture or in an error.
func FuzzShrink(f *testing.F) {
	for _, text := range []string{pngOf(f, 40, 40), jpegOf(f, 40, 40), gifOf(f, 10, 10), turned(jpegOf(f, 9, 7)), bomb(5, 5), "RIFF\x1a\x00\x00\x00WEBPVP8L\x0d\x00\x00\x00\x2f\x00\x00\x00\x10\x07\x10\x11\x11\x88\x88\xfe\x07\x00"} {
		f.Add([]byte(text))
	}
	s := New(Options{})
	f.Fuzz(func(t *testing.T, text []byte) {
		file := &File{ReadSeekCloser: inMemory{bytes.NewReader(text)}, Size: int64(len(text))}
		got, err := s.shrink(t.Context(), file, Picture{8, 8, "crop"})
		if err != nil {
			return
		}
		if seen, format, err := image.DecodeConfig(bytes.NewReader(got.text)); err != nil || "image/"+format != got.kind || seen.Width <= 0 {
			t.Fatalf("it gave what is no %s: %v", got.kind, err)
		}
	})
}

func BenchmarkThumbnailOfAPhotograph(b *testing.B) {
	s := New(Options{})
	text := []byte(jpegOf(b, 4000, 3000))
	for b.Loop() {
		file := &File{ReadSeekCloser: inMemory{bytes.NewReader(text)}, Size: int64(len(text))}
		if _, err := s.shrink(b.Context(), file, Picture{800, 600, "scale"}); err != nil {
			b.Fatal(err)
		}
	}
}
