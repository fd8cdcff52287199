// Package media owns files: what our users upload, what is fetched from other servers for them, and
// the thumbnails of both. It is the only writer of media rows and of the blob store. It knows nothing
// of HTTP, and nothing of rooms: whoever knows a file's mxc URI may have it.
package media

import (
	"context"
	"io"
	"mime"
	"net/http"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/blob"

	"go.uber.org/zap"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

// Peers is the way to the files of other servers.
type Peers interface {
	MediaDownload(ctx context.Context, destination, media string, limits peer.MediaLimits) (*peer.Media, error)
}

// Options are what a Server needs.
type Options struct {
	DB         *storage.DB
	Blobs      blob.Store
	Peers      Peers // nil: only our own files
	ServerName string
	MaxBytes   int64 // the largest file, ours or another server's
	Log        *zap.Logger
}

// Server keeps and gives files. It is safe for concurrent use.
type Server struct {
	Options
	now func() time.Time

	fetching singleflight.Group
	fetches  *semaphore.Weighted // files on their way from other servers
	making   singleflight.Group
	pixels   *semaphore.Weighted // what the decoders may hold at once

	// A content is deleted when no row names it. It is held for reading from before a look at the
	// content until a row that names it is committed, and for writing from the look at the rows
	// until the content is deleted.
	content sync.RWMutex

	mu     sync.Mutex // guards awaits; nothing is taken below it
	awaits map[string]*arrival
}

// maxFetches bounds the files that are on their way from other servers.
const maxFetches = 32

// New makes a Server. Run must be running for what needs no request.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Server{Options: o, now: time.Now, fetches: semaphore.NewWeighted(maxFetches),
		pixels: semaphore.NewWeighted(pixelBudget), awaits: map[string]*arrival{}}
}

// decoders is how many thumbnails are made at once: half of the processors go on serving.
func decoders() int64 { return int64(max(1, runtime.GOMAXPROCS(0)/2)) }

// File is a file that may be read; the reader closes it.
type File struct {
	io.ReadSeekCloser
	Hash string
	Size int64
	Type string // as uploaded
	Name string // "" when there is none
}

// Disposition is the file's Content-Disposition. Only what a browser cannot take for a program is
// shown in place.
//
// spec: c2s#serving-inline-content
func (f *File) Disposition() string {
	how := "attachment"
	if kind, _, err := mime.ParseMediaType(f.Type); err == nil && slices.Contains(inline, kind) {
		how = "inline"
	}
	if f.Name == "" {
		return how
	}
	if text := mime.FormatMediaType(how, map[string]string{"filename": f.Name}); text != "" {
		return text
	}
	return how
}

var inline = []string{
	"text/css", "text/plain", "text/csv", "application/json", "application/ld+json",
	"image/jpeg", "image/gif", "image/png", "image/apng", "image/webp", "image/avif",
	"video/mp4", "video/webm", "video/ogg", "video/quicktime",
	"audio/mp4", "audio/webm", "audio/aac", "audio/mpeg", "audio/ogg", "audio/wave", "audio/wav",
	"audio/x-wav", "audio/x-pn-wav", "audio/flac", "audio/x-flac",
}

// mediaID is stricter than what a URL could carry: an ID becomes part of the paths that we ask of others.
//
// spec: c2s#content-repo-security-considerations
var mediaID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)

const (
	unknownType   = "application/octet-stream"
	maxTypeLength = 255
	maxNameLength = 1024
)

// cleanType is a Content-Type that may be served again: as it was said, or none that means anything.
func cleanType(said string) string {
	said = strings.TrimSpace(said)
	if kind, _, err := mime.ParseMediaType(said); err != nil || !strings.Contains(kind, "/") || len(said) > maxTypeLength {
		return unknownType
	}
	return said
}

// cleanName is a file name that may be served again.
func cleanName(said string) string {
	if len(said) > maxNameLength {
		return strings.ToValidUTF8(said[:maxNameLength], "")
	}
	return strings.ToValidUTF8(said, "")
}

func notFound() *chancery.Error { return chancery.NotFound("there is no such file") }

func notYetUploaded() *chancery.Error {
	return chancery.Errorf(http.StatusGatewayTimeout, chancery.CodeNotYetUploaded, "the file has not been uploaded yet")
}
