package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/draw"
	_ "image/gif" // registers the format, as the others below
	"image/jpeg"
	"image/png"
	"io"
	"net/http"
	"strconv"
	"strings"

	"chancery"
	"chancery/storage"
	"chancery/storage/blob"

	"github.com/disintegration/imaging"
	"go.uber.org/zap"
	_ "golang.org/x/image/webp"
)

// Picture says which thumbnail is wanted.
type Picture struct {
	Width, Height int
	Method        string // "crop" or "scale"; "" is scale
}

const (
	// maxPixels is the largest picture that is decoded. A few bytes can claim any size; what a
	// decoder takes is counted from the dimensions, before anything is decoded.
	maxPixels = 50_000_000
	// pixelBudget is what all decoders hold at once: about 4 bytes each, 8 where a channel has 16 bits.
	pixelBudget = 64_000_000
	// maxSide bounds what may be asked for.
	maxSide = 4096
	// keptThumbnails is how many thumbnails of one content are stored. Anybody may ask for any size;
	// further ones are made each time.
	keptThumbnails = 24
)

// Thumbnail gives a smaller picture of a file, made now or before. It is never animated.
//
// spec: c2s#thumbnails
func (s *Server) Thumbnail(ctx context.Context, w Want, p Picture) (*File, error) {
	p, err := p.rounded()
	if err != nil {
		return nil, err
	}
	v, err := s.find(ctx, w)
	if err != nil {
		return nil, err
	}
	if f, err := s.kept(ctx, v.Hash, p); f != nil || err != nil {
		return f, err
	}
	done := s.making.DoChan(v.Hash+" "+p.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTime)
		defer cancel()
		return s.make(ctx, w, p)
	})
	select {
	case r := <-done:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(thumbnail).file(), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p Picture) String() string {
	return strconv.Itoa(p.Width) + "x" + strconv.Itoa(p.Height) + " " + p.Method
}

// rounded is the size that is made for a wish: the next of those that the specification names, so
// that a file has few thumbnails. A crop that is not square keeps its shape.
func (p Picture) rounded() (Picture, error) {
	if p.Method == "" {
		p.Method = "scale"
	}
	switch {
	case p.Method != "scale" && p.Method != "crop":
		return p, chancery.InvalidParam("method is crop or scale")
	case p.Width <= 0 || p.Height <= 0:
		return p, chancery.InvalidParam("width and height must be positive")
	}
	p.Width, p.Height = min(p.Width, maxSide), min(p.Height, maxSide)
	if p.Method == "crop" && p.Width != p.Height {
		return p, nil
	}
	for _, size := range sizes[p.Method] {
		if p.Width <= size[0] && p.Height <= size[1] {
			p.Width, p.Height = size[0], size[1]
			break
		}
	}
	return p, nil
}

var sizes = map[string][][2]int{
	"crop":  {{32, 32}, {96, 96}, {256, 256}, {512, 512}},
	"scale": {{320, 240}, {640, 480}, {800, 600}, {1600, 1200}},
}

// kept opens a thumbnail that was made before, or gives nil.
func (s *Server) kept(ctx context.Context, source string, p Picture) (*File, error) {
	var v storage.Thumbnail
	var ok bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		v, ok, err = tx.Thumbnail(source, int64(p.Width), int64(p.Height), p.Method)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("look for a thumbnail: %w", err)
	}
	if !ok {
		return nil, nil
	}
	body, size, err := s.Blobs.Get(ctx, v.Hash)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, nil // it is made again
	}
	if err != nil {
		return nil, fmt.Errorf("open a thumbnail: %w", err)
	}
	return &File{ReadSeekCloser: body, Hash: v.Hash, Size: size, Type: v.Type, Name: thumbnailName(v.Type)}, nil
}

// thumbnail is one that was just made.
type thumbnail struct {
	text []byte
	hash string
	kind string
}

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

func (t thumbnail) file() *File {
	return &File{ReadSeekCloser: inMemory{bytes.NewReader(t.text)}, Hash: t.hash, Size: int64(len(t.text)), Type: t.kind, Name: thumbnailName(t.kind)}
}

func thumbnailName(kind string) string {
	return "thumbnail." + strings.Replace(strings.TrimPrefix(kind, "image/"), "jpeg", "jpg", 1)
}

// make decodes, shrinks, encodes and keeps.
func (s *Server) make(ctx context.Context, w Want, p Picture) (thumbnail, error) {
	f, err := s.Open(ctx, w)
	if err != nil {
		return thumbnail{}, err
	}
	defer f.Close()
	t, err := s.shrink(ctx, f, p)
	switch {
	case errors.Is(err, errTooManyPixels):
		status := http.StatusRequestEntityTooLarge
		if w.Origin != s.ServerName {
			status = http.StatusBadGateway
		}
		return t, chancery.Errorf(status, chancery.CodeTooLarge, "the picture is too large for a thumbnail").Because(err)
	case errors.Is(err, errNoPicture):
		return t, chancery.Errorf(http.StatusBadRequest, chancery.CodeUnknown, "there can be no thumbnail of this file").Because(err)
	case err != nil:
		return t, err
	}
	if err := s.keepThumbnail(ctx, f.Hash, p, &t); err != nil {
		return t, fmt.Errorf("keep a thumbnail: %w", err)
	}
	return t, nil
}

func (s *Server) keepThumbnail(ctx context.Context, source string, p Picture, t *thumbnail) (err error) {
	var size int64
	if t.hash, size, err = s.Blobs.Put(ctx, bytes.NewReader(t.text), int64(len(t.text))); err != nil {
		return err
	}
	return s.keep(ctx, t.hash, func(tx storage.Tx) error {
		n, err := tx.CountThumbnails(source)
		if err != nil {
			return err
		}
		if n >= keptThumbnails {
			s.Log.Debug("a file has many thumbnails, another one is not kept", zap.String("hash", source))
			return nil
		}
		tx.SetThumbnail(storage.Thumbnail{Source: source, Width: int64(p.Width), Height: int64(p.Height), Method: p.Method,
			Hash: t.hash, Size: size, Type: t.kind})
		return nil
	})
}

var (
	errTooManyPixels = errors.New("too many pixels")
	errNoPicture     = errors.New("not a picture that we read")
)

// shrink makes the thumbnail of a picture. Decoders meet what strangers wrote: one that panics has
// met no picture.
func (s *Server) shrink(ctx context.Context, f *File, p Picture) (t thumbnail, err error) {
	format, err := sniff(f)
	if err != nil {
		return t, err
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: the decoder of %s panicked: %v", errNoPicture, format, r)
		}
	}()
	seen, _, err := image.DecodeConfig(f)
	if err != nil || seen.Width <= 0 || seen.Height <= 0 {
		return t, fmt.Errorf("%w: %d by %d: %v", errNoPicture, seen.Width, seen.Height, err)
	}
	pixels := int64(seen.Width) * int64(seen.Height)
	if seen.Width > maxPixels || seen.Height > maxPixels || pixels > maxPixels {
		return t, fmt.Errorf("%w: %d by %d", errTooManyPixels, seen.Width, seen.Height)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return t, err
	}
	// At least a share of the budget each, so that no more work at once than there are decoders.
	share := max(pixels, pixelBudget/decoders())
	if err := s.pixels.Acquire(ctx, share); err != nil {
		return t, err
	}
	defer s.pixels.Release(share)
	picture, err := decode(f, format)
	if err != nil {
		return t, fmt.Errorf("%w: %v", errNoPicture, err)
	}
	smaller := fit(picture, p)
	if smaller == picture && f.Size <= maxOriginal {
		if text, ok := original(f, format); ok {
			return thumbnail{text: text, kind: "image/" + format}, nil
		}
	}
	t.kind, t.text, err = encode(smaller, format)
	return t, err
}

// sniff tells the format of a picture by its first bytes, so that no other decoder than those of
// the formats below ever sees a file.
func sniff(f io.ReadSeeker) (format string, err error) {
	var head [12]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	text := string(head[:n])
	switch {
	case strings.HasPrefix(text, "\xff\xd8\xff"):
		return "jpeg", nil
	case strings.HasPrefix(text, "\x89PNG\r\n\x1a\n"):
		return "png", nil
	case strings.HasPrefix(text, "GIF87a"), strings.HasPrefix(text, "GIF89a"):
		return "gif", nil
	case n == len(head) && text[:4] == "RIFF" && text[8:] == "WEBP":
		return "webp", nil
	}
	return "", errNoPicture
}

// maxOriginal is how long a picture may be that is given as its own thumbnail.
const maxOriginal = 1 << 20

// original gives the file itself in place of a thumbnail, unless it may be animated.
//
// spec: c2s#thumbnails (smaller than requested: the original)
func original(f io.ReadSeeker, format string) (text []byte, ok bool) {
	if _, err := f.Seek(0, io.SeekStart); err != nil || format == "gif" {
		return nil, false
	}
	text, err := io.ReadAll(f)
	if err != nil || format == "png" && bytes.Contains(text, []byte("acTL")) {
		return nil, false
	}
	return text, true // the decoder of WebP reads no animated ones
}

// decode gives the first picture of a file, upright.
func decode(f io.Reader, format string) (image.Image, error) {
	if format == "jpeg" { // the only one of ours that says how the camera was held
		return imaging.Decode(f, imaging.AutoOrientation(true))
	}
	picture, _, err := image.Decode(f)
	if p, ok := picture.(*image.Paletted); ok && err == nil {
		// Shrinking runs in goroutines of its own, where a pixel without a colour would end the
		// process; here it ends in an error.
		whole := image.NewNRGBA(p.Bounds())
		draw.Draw(whole, whole.Bounds(), p, p.Bounds().Min, draw.Src)
		return whole, nil
	}
	return picture, err
}

// fit makes a picture as small as the wish allows: at least of its width and height, and never
// larger than it is. A picture that is smaller than the wish stays as it is.
//
// spec: c2s#thumbnails (never smaller than requested, never upscaled)
func fit(picture image.Image, p Picture) image.Image {
	w, h := picture.Bounds().Dx(), picture.Bounds().Dy()
	if w < p.Width || h < p.Height {
		return picture
	}
	if p.Method == "crop" {
		return imaging.Fill(picture, p.Width, p.Height, imaging.Center, imaging.CatmullRom)
	}
	// Rounded up: a pixel less would be smaller than requested.
	if w*p.Height > h*p.Width {
		return imaging.Resize(picture, (w*p.Height+h-1)/h, p.Height, imaging.CatmullRom)
	}
	return imaging.Resize(picture, p.Width, (h*p.Width+w-1)/w, imaging.CatmullRom)
}

// encode writes photographs as JPEG and everything else, which may be transparent, as PNG.
//
// spec: c2s/getContentThumbnailAuthed (never animated: only the first picture is left)
func encode(picture image.Image, format string) (kind string, text []byte, err error) {
	var out bytes.Buffer
	if format == "jpeg" || format == "webp" && opaque(picture) {
		if p, ok := picture.(*image.NRGBA); ok && p.Opaque() {
			picture = &image.RGBA{Pix: p.Pix, Stride: p.Stride, Rect: p.Rect} // the encoder is quick with these
		}
		err = jpeg.Encode(&out, picture, &jpeg.Options{Quality: 85})
		return "image/jpeg", out.Bytes(), err
	}
	err = (&png.Encoder{CompressionLevel: png.BestSpeed}).Encode(&out, picture)
	return "image/png", out.Bytes(), err
}

func opaque(picture image.Image) bool {
	o, ok := picture.(interface{ Opaque() bool })
	return ok && o.Opaque()
}
