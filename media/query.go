package media

import (
	"net/url"
	"strconv"
	"time"

	"chancery"
)

// Clients and servers ask for files in the same words.

// WaitFrom reads timeout_ms.
func WaitFrom(query url.Values) (time.Duration, error) {
	text := query.Get("timeout_ms")
	if text == "" {
		return DefaultWait, nil
	}
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ms < 0 {
		return 0, chancery.InvalidParam("timeout_ms must be a number and not negative")
	}
	return time.Duration(min(ms, maxWait.Milliseconds())) * time.Millisecond, nil
}

// PictureFrom reads width, height, method and animated. There are no animated thumbnails here, so
// animated is only checked.
func PictureFrom(query url.Values) (p Picture, err error) {
	for _, side := range []struct {
		name string
		into *int
	}{{"width", &p.Width}, {"height", &p.Height}} {
		text := query.Get(side.name)
		if text == "" {
			return p, chancery.MissingParam("%s is missing", side.name)
		}
		if *side.into, err = strconv.Atoi(text); err != nil {
			return p, chancery.InvalidParam("%s must be a number", side.name)
		}
	}
	switch query.Get("animated") {
	case "", "true", "false":
	default:
		return p, chancery.InvalidParam("animated is true or false")
	}
	p.Method = query.Get("method")
	return p, nil
}
