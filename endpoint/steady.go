package endpoint

import (
	"io"
	"net/http"
	"time"
)

// standstill is how long a connection may move nothing while a file goes over it.
const standstill = time.Minute

// Steady replaces the time limit of a request that may take as long as the line is slow: whoever
// stands still for a minute, while its body is read or its answer is written, is cut off. done is
// called at the end, for the connection's next request.
func Steady(w http.ResponseWriter, r *http.Request) (steady http.ResponseWriter, done func()) {
	control := http.NewResponseController(w)
	r.Body = steadyBody{r.Body, control}
	return steadyWriter{w, control}, func() {
		_ = control.SetReadDeadline(time.Time{}) // not every connection has deadlines
		_ = control.SetWriteDeadline(time.Time{})
	}
}

type steadyBody struct {
	io.ReadCloser
	control *http.ResponseController
}

func (b steadyBody) Read(p []byte) (int, error) {
	_ = b.control.SetReadDeadline(time.Now().Add(standstill))
	return b.ReadCloser.Read(p)
}

type steadyWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

func (w steadyWriter) Write(p []byte) (int, error) {
	_ = w.control.SetWriteDeadline(time.Now().Add(standstill))
	return w.ResponseWriter.Write(p)
}

func (w steadyWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
