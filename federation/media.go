package federation

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"

	"chancery"
	"chancery/endpoint"
	"chancery/media"
)

// mediaDownload gives another server a file of our own users.
//
// spec: s2s/getContent
func (s *Server) mediaDownload(w http.ResponseWriter, r *http.Request, _ endpoint.Caller) error {
	want, _, err := s.wantMedia(r)
	if err != nil {
		return err
	}
	f, err := s.Media.Open(r.Context(), want)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeMedia(w, r, f)
}

// mediaThumbnail gives another server a small picture of a file of our own users.
//
// spec: s2s/getContentThumbnail
func (s *Server) mediaThumbnail(w http.ResponseWriter, r *http.Request, _ endpoint.Caller) error {
	want, query, err := s.wantMedia(r)
	if err != nil {
		return err
	}
	picture, err := media.PictureFrom(query)
	if err != nil {
		return err
	}
	f, err := s.Media.Thumbnail(r.Context(), want, picture)
	if err != nil {
		return err
	}
	defer f.Close()
	return writeMedia(w, r, f)
}

// wantMedia names a file of ours: for those of others a server asks the others.
func (s *Server) wantMedia(r *http.Request) (want media.Want, query url.Values, err error) {
	if query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		return want, nil, chancery.InvalidParam("the query of the address is malformed")
	}
	want = media.Want{Origin: s.Config.ServerName, ID: r.PathValue("mediaId"), LocalOnly: true}
	want.Wait, err = media.WaitFrom(query)
	return want, query, err
}

// writeMedia writes the envelope of two parts, metadata and file. Its length is told, so that a
// peer knows a download that broke off.
func writeMedia(w http.ResponseWriter, r *http.Request, f *media.File) error {
	var envelope bytes.Buffer
	parts := multipart.NewWriter(&envelope)
	about, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
	if err != nil {
		return err
	}
	if _, err := io.WriteString(about, "{}"); err != nil {
		return err
	}
	if _, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {f.Type}, "Content-Disposition": {f.Disposition()}}); err != nil {
		return err
	}
	before := envelope.Len()
	if err := parts.Close(); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Type", "multipart/mixed; boundary="+parts.Boundary())
	h.Set("Content-Length", strconv.FormatInt(int64(envelope.Len())+f.Size, 10))
	steady, done := endpoint.Steady(w, r)
	defer done()
	if r.Method == http.MethodHead {
		steady.WriteHeader(http.StatusOK)
		return nil
	}
	if _, err := steady.Write(envelope.Next(before)); err != nil {
		return fmt.Errorf("write the envelope: %w", err)
	}
	if _, err := io.Copy(steady, f); err != nil {
		return fmt.Errorf("write the file: %w", err)
	}
	if _, err := steady.Write(envelope.Bytes()); err != nil {
		return fmt.Errorf("write the envelope: %w", err)
	}
	return nil
}
