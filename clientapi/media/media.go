// Package media is the content repository as clients see it: uploads, downloads, thumbnails. The
// files are those of the package media below it; here is only HTTP.
package media

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"chancery"
	"chancery/endpoint"
	"chancery/media"
)

// API answers for media.
type API struct {
	Files *media.Server
}

type configIn struct{}

type configOut struct {
	UploadSize int64 `json:"m.upload.size"`
}

// Config tells how large an upload may be.
//
// spec: c2s/getConfigAuthed
func (a *API) Config(context.Context, *configIn) (*configOut, error) {
	return &configOut{a.Files.MaxBytes}, nil
}

type createIn struct {
	Caller endpoint.Caller
}

type createOut struct {
	URI     string `json:"content_uri"`
	Expires int64  `json:"unused_expires_at"`
}

// Create reserves an mxc URI for a file that comes later.
//
// spec: c2s/createContent
func (a *API) Create(ctx context.Context, in *createIn) (*createOut, error) {
	if err := mayUpload(in.Caller); err != nil {
		return nil, err
	}
	mediaID, expires, err := a.Files.Reserve(ctx, in.Caller.User)
	if err != nil {
		return nil, err
	}
	return &createOut{a.uri(mediaID), expires.UnixMilli()}, nil
}

func (a *API) uri(mediaID string) string { return "mxc://" + a.Files.ServerName + "/" + mediaID }

// mayUpload refuses what a suspended user must not do.
//
// spec: c2s#account-suspension
func mayUpload(c endpoint.Caller) error {
	if c.Suspended {
		return chancery.Errorf(http.StatusForbidden, chancery.CodeUserSuspended, "your account is suspended")
	}
	return nil
}

// Upload keeps a file and gives its URI.
//
// spec: c2s/uploadContent
func (a *API) Upload(w http.ResponseWriter, r *http.Request, c endpoint.Caller) error {
	in, done, err := a.upload(w, r, c)
	if err != nil {
		return err
	}
	defer done()
	mediaID, err := a.Files.Upload(r.Context(), in)
	if err != nil {
		return err
	}
	return endpoint.Answer(w, map[string]string{"content_uri": a.uri(mediaID)})
}

// Fill uploads the file of a reserved URI.
//
// spec: c2s/uploadContentToMXC
func (a *API) Fill(w http.ResponseWriter, r *http.Request, c endpoint.Caller) error {
	in, done, err := a.upload(w, r, c)
	if err != nil {
		return err
	}
	defer done()
	if err := a.Files.Fill(r.Context(), r.PathValue("serverName"), r.PathValue("mediaId"), in); err != nil {
		return err
	}
	return endpoint.Answer(w, struct{}{})
}

func (a *API) upload(w http.ResponseWriter, r *http.Request, c endpoint.Caller) (in media.Upload, done func(), err error) {
	if err := mayUpload(c); err != nil {
		return in, nil, err
	}
	query, err := query(r)
	if err != nil {
		return in, nil, err
	}
	if r.ContentLength > a.Files.MaxBytes {
		return in, nil, chancery.TooLarge("files may have at most %d bytes", a.Files.MaxBytes)
	}
	_, done = endpoint.Steady(w, r)
	return media.Upload{User: c.User, Type: r.Header.Get("Content-Type"), Name: query.Get("filename"), Body: r.Body}, done, nil
}

// Download gives a file to a user.
//
// spec: c2s/getContentAuthed, c2s/getContentOverrideNameAuthed
func (a *API) Download(w http.ResponseWriter, r *http.Request, _ endpoint.Caller) error {
	return a.download(w, r, false)
}

// PublicDownload gives a file to anybody, if it is from before the freeze.
//
// spec: c2s/getContent, c2s/getContentOverrideName
func (a *API) PublicDownload(w http.ResponseWriter, r *http.Request, _ endpoint.Caller) error {
	return a.download(w, r, true)
}

func (a *API) download(w http.ResponseWriter, r *http.Request, public bool) error {
	want, _, err := a.want(r, public)
	if err != nil {
		return err
	}
	f, err := a.Files.Open(r.Context(), want)
	if err != nil {
		return err
	}
	defer f.Close()
	if name := r.PathValue("fileName"); name != "" {
		f.Name = name
	}
	serve(w, r, f)
	return nil
}

// Thumbnail gives a small picture of a file to a user.
//
// spec: c2s/getContentThumbnailAuthed
func (a *API) Thumbnail(w http.ResponseWriter, r *http.Request, _ endpoint.Caller) error {
	return a.thumbnail(w, r, false)
}

// PublicThumbnail gives a small picture of a file to anybody, if the file is from before the freeze.
//
// spec: c2s/getContentThumbnail
func (a *API) PublicThumbnail(w http.ResponseWriter, r *http.Request, _ endpoint.Caller) error {
	return a.thumbnail(w, r, true)
}

func (a *API) thumbnail(w http.ResponseWriter, r *http.Request, public bool) error {
	want, query, err := a.want(r, public)
	if err != nil {
		return err
	}
	picture, err := media.PictureFrom(query)
	if err != nil {
		return err
	}
	f, err := a.Files.Thumbnail(r.Context(), want, picture)
	if err != nil {
		return err
	}
	defer f.Close()
	serve(w, r, f)
	return nil
}

// want reads what the endpoints for getting files have in common.
func (a *API) want(r *http.Request, public bool) (media.Want, url.Values, error) {
	want := media.Want{Origin: r.PathValue("serverName"), ID: r.PathValue("mediaId"), PublicOnly: public}
	query, err := query(r)
	if err != nil {
		return want, nil, err
	}
	if want.Wait, err = media.WaitFrom(query); err != nil {
		return want, nil, err
	}
	if text := query.Get("allow_remote"); text != "" {
		remote, err := strconv.ParseBool(text)
		if err != nil {
			return want, nil, chancery.InvalidParam("allow_remote is true or false")
		}
		want.LocalOnly = !remote
	}
	return want, query, nil
}

func query(r *http.Request) (url.Values, error) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, chancery.InvalidParam("the query of the address is malformed")
	}
	return query, nil
}

// Whatever is in a file, a browser that is sent to it runs nothing of it.
//
// spec: c2s#content-repository
const policy = "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';"

// serve writes a file, or the ranges of it that were asked for.
func serve(w http.ResponseWriter, r *http.Request, f *media.File) {
	h := w.Header()
	h.Set("Content-Type", f.Type)
	h.Set("Content-Disposition", f.Disposition())
	h.Set("Content-Security-Policy", policy)
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	// The bytes of a URI never change; a day, since an administrator may withdraw a file.
	h.Set("Cache-Control", "private, max-age=86400, immutable")
	h.Set("ETag", `"`+f.Hash+`"`)
	steady, done := endpoint.Steady(w, r)
	defer done()
	http.ServeContent(steady, r, "", time.Time{}, f)
}
