package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"
)

// Media is a peer's file on its way; the caller closes Body.
type Media struct {
	ContentType string
	Disposition string // the Content-Disposition header, unchecked
	Body        io.ReadCloser
}

// mediaID: spec: c2s#matrix-content-mxc-uris, opaque and without slashes; the grammar is
// what the appendices allow for opaque identifiers, and what keeps a path a path.
var mediaID = regexp.MustCompile(`^[A-Za-z0-9_.~-]{1,255}$`)

// MediaLimits bound one download. The zero values mean 20 s for the peer to get hold of the file,
// 5 minutes for all of it, and 100 MiB.
type MediaLimits struct {
	Wait     time.Duration
	Timeout  time.Duration
	MaxBytes int64
}

// Thumbnail says which picture is wanted.
type Thumbnail struct {
	Width, Height int
	Method        string // "crop" or "scale"
	Animated      *bool
}

// MediaDownload fetches a file of the destination's own. Servers that do not know the endpoint
// yet are asked for it the old way.
//
// spec: s2s/getContent
func (c *Client) MediaDownload(ctx context.Context, destination, media string, limits MediaLimits) (*Media, error) {
	return c.media(ctx, destination, "download", media, url.Values{}, limits)
}

// MediaThumbnail fetches a thumbnail that the destination makes.
//
// spec: s2s/getContentThumbnail
func (c *Client) MediaThumbnail(ctx context.Context, destination, media string, want Thumbnail, limits MediaLimits) (*Media, error) {
	query := url.Values{"width": {strconv.Itoa(want.Width)}, "height": {strconv.Itoa(want.Height)}}
	if want.Method != "" {
		query.Set("method", want.Method)
	}
	if want.Animated != nil {
		query.Set("animated", strconv.FormatBool(*want.Animated))
	}
	return c.media(ctx, destination, "thumbnail", media, query, limits)
}

func (c *Client) media(ctx context.Context, destination, kind, media string, query url.Values, limits MediaLimits) (*Media, error) {
	if !mediaID.MatchString(media) || media == "." || media == ".." {
		return nil, unreachable(destination, fmt.Errorf("%.40q is no media ID", media))
	}
	if limits.Wait == 0 {
		limits.Wait = 20 * time.Second
	}
	if limits.Timeout == 0 {
		limits.Timeout = 5 * time.Minute
	}
	if limits.MaxBytes == 0 {
		limits.MaxBytes = 100 << 20
	}
	query.Set("timeout_ms", strconv.FormatInt(limits.Wait.Milliseconds(), 10))
	o := Opts{Timeout: limits.Timeout, MaxBytes: limits.MaxBytes + 64<<10} // the envelope is not the file
	answer, err := c.Stream(ctx, destination, "GET", withQuery(at(v1, "media/"+kind, media), query), nil, o)
	if unknownEndpoint(err) {
		return c.oldMedia(ctx, destination, kind, media, query, limits)
	}
	if err != nil {
		return nil, err
	}
	found, err := c.unwrapMedia(ctx, answer, limits)
	if err != nil {
		answer.Body.Close()
		return nil, unreachable(destination, err)
	}
	return found, nil
}

// oldMedia asks the endpoints that came before authentication.
//
// spec: s2s#content-repository
func (c *Client) oldMedia(ctx context.Context, destination, kind, media string, query url.Values, limits MediaLimits) (*Media, error) {
	query.Set("allow_remote", "false")
	path := withQuery(at("/_matrix/media/v3/", kind, destination, media), query)
	answer, err := c.Stream(ctx, destination, "GET", path, nil, Opts{Unsigned: true, Timeout: limits.Timeout, MaxBytes: limits.MaxBytes})
	if err != nil {
		return nil, err
	}
	return &Media{answer.Header.Get("Content-Type"), answer.Header.Get("Content-Disposition"), answer.Body}, nil
}

// unwrapMedia reads the envelope of two parts: metadata, then the file or the place where it lies.
func (c *Client) unwrapMedia(ctx context.Context, answer *Answer, limits MediaLimits) (*Media, error) {
	kind, params, err := mime.ParseMediaType(answer.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" || params["boundary"] == "" {
		return nil, errors.New("the answer is not multipart/mixed")
	}
	parts := multipart.NewReader(answer.Body, params["boundary"])
	if _, err := parts.NextRawPart(); err != nil {
		return nil, fmt.Errorf("read the metadata: %w", err)
	}
	part, err := parts.NextRawPart() // skips what is left of the first
	if err != nil {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	if location := part.Header.Get("Location"); location != "" {
		answer.Body.Close()
		return c.follow(ctx, location, limits)
	}
	file := struct {
		io.Reader
		io.Closer
	}{&cutReader{part, limits.MaxBytes}, answer.Body}
	return &Media{part.Header.Get("Content-Type"), part.Header.Get("Content-Disposition"), file}, nil
}

// cutReader is an io.LimitReader that says so when it cuts.
type cutReader struct {
	r    io.Reader
	left int64
}

func (c *cutReader) Read(p []byte) (int, error) {
	if int64(len(p)) > c.left+1 {
		p = p[:c.left+1]
	}
	n, err := c.r.Read(p)
	if int64(n) > c.left {
		n, c.left = int(c.left), 0
		return n, ErrAnswerTooLarge
	}
	c.left -= int64(n)
	return n, err
}

// follow fetches a file from where the peer says it lies: often a store of objects with signed
// URLs, never something that is asked in our name.
func (c *Client) follow(ctx context.Context, location string, limits MediaLimits) (*Media, error) {
	target, err := url.Parse(location)
	if err != nil || target.Scheme != "https" || target.Host == "" {
		return nil, errors.New("the Location is no https URL")
	}
	target.User = nil
	ctx, cancel := context.WithTimeout(ctx, limits.Timeout)
	req, err := http.NewRequestWithContext(ctx, "GET", target.String(), nil)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header.Set("User-Agent", c.agent)
	res, err := c.plain.Do(req)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("follow the Location: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		cancel()
		res.Body.Close()
		return nil, fmt.Errorf("follow the Location: status %d", res.StatusCode)
	}
	return &Media{res.Header.Get("Content-Type"), res.Header.Get("Content-Disposition"),
		newLimitedBody(res.Body, limits.MaxBytes, stallTimeout, cancel)}, nil
}
