package federation_test

import (
	"bytes"
	"image"
	"image/png"
	"io"
	"strings"
	"testing"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/media"
	"chancery/storage/blob"
)

func (n *node) keepMedia(maxBytes int64) *media.Server {
	n.t.Helper()
	blobs, err := blob.Open(n.t.TempDir())
	if err != nil {
		n.t.Fatal(err)
	}
	n.fed.Media = media.New(media.Options{DB: n.db, Blobs: blobs, Peers: n.peer, ServerName: n.name, MaxBytes: maxBytes, Log: n.log})
	return n.fed.Media
}

// spec: s2s/getContent, s2s/getContentThumbnail
func TestFilesGoFromServerToServer(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		ofA, ofB := a.keepMedia(1<<20), b.keepMedia(1<<20)
		var picture bytes.Buffer
		if err := png.Encode(&picture, image.NewNRGBA(image.Rect(0, 0, 200, 200))); err != nil {
			t.Fatal(err)
		}
		mediaID, err := ofA.Upload(t.Context(), media.Upload{User: a.user("alice"), Type: "image/png", Name: "a; \"b\" ☕.png", Body: bytes.NewReader(picture.Bytes())})
		if err != nil {
			t.Fatal(err)
		}
		f, err := ofB.Open(t.Context(), media.Want{Origin: a.name, ID: mediaID})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if text, err := io.ReadAll(f); err != nil || !bytes.Equal(text, picture.Bytes()) || f.Type != "image/png" || f.Name != "a; \"b\" ☕.png" {
			t.Fatalf("%d bytes, %q %q, %v", len(text), f.Type, f.Name, err)
		}

		small, err := b.peer.MediaThumbnail(t.Context(), a.name, mediaID, peer.Thumbnail{Width: 30, Height: 30, Method: "crop"}, peer.MediaLimits{})
		if err != nil {
			t.Fatal(err)
		}
		defer small.Body.Close()
		if seen, format, err := image.DecodeConfig(small.Body); err != nil || format != "png" || small.ContentType != "image/png" || seen.Width != 32 {
			t.Fatalf("%+v %s %s %v", seen, format, small.ContentType, err)
		}
	})
}

func TestFilesThatDoNotGo(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		ofA, ofB := a.keepMedia(1<<20), b.keepMedia(1000)
		large, err := ofA.Upload(t.Context(), media.Upload{User: a.user("alice"), Body: strings.NewReader(strings.Repeat("x", 1001))})
		if err != nil {
			t.Fatal(err)
		}
		later, _, err := ofA.Reserve(t.Context(), a.user("alice"))
		if err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct {
			mediaID string
			status  int
			code    chancery.Code
		}{
			"unknown":          {"unknown", 404, chancery.CodeNotFound},
			"too large for us": {large, 502, chancery.CodeTooLarge},
			"not yet uploaded": {later, 504, chancery.CodeNotYetUploaded},
		} {
			_, err := ofB.Open(t.Context(), media.Want{Origin: a.name, ID: c.mediaID, Wait: 10 * time.Millisecond})
			if e := chancery.As(err); err == nil || e.Status != c.status || e.Code != c.code {
				t.Errorf("%s: %v, want %d %s", what, err, c.status, c.code)
			}
		}
		// What A has of B it does not pass on: a server is asked for its own files only.
		ofBs, err := ofB.Upload(t.Context(), media.Upload{User: b.user("bob"), Body: strings.NewReader("of b")})
		if err != nil {
			t.Fatal(err)
		}
		f, err := ofA.Open(t.Context(), media.Want{Origin: b.name, ID: ofBs})
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, err := b.peer.MediaDownload(t.Context(), a.name, ofBs, peer.MediaLimits{}); peer.StatusOf(err) != 404 {
			t.Fatalf("A gave a file of B: %v", err)
		}
	})
}
