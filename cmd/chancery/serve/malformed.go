package serve

import (
	"bytes"
	"fmt"
	"io"
	"net"
)

// matrixErrors has a plain HTTP listener answer requests that net/http cannot read at all, such as one for /%zz, with an
// error as the API's clients know it: net/http answers those itself, before any handler.
//
// spec: c2s#standard-error-response
func matrixErrors(listeners []net.Listener) []net.Listener {
	wrapped := make([]net.Listener, len(listeners))
	for i, l := range listeners {
		wrapped[i] = matrixListener{l}
	}
	return wrapped
}

type matrixListener struct{ net.Listener }

func (l matrixListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return matrixConn{conn}, nil
}

type matrixConn struct{ net.Conn }

// What net/http writes, in one piece, when it could not read a request. No answer of a handler looks so: it has a date.
var (
	unreadStart = []byte("HTTP/1.1 4")
	unreadEnd   = []byte("\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n4")
)

func (c matrixConn) Write(p []byte) (int, error) {
	if bytes.HasPrefix(p, unreadStart) {
		if line, _, ok := bytes.Cut(p, unreadEnd); ok && len(line) < 300 && !bytes.Contains(line, []byte("\r\n")) {
			return len(p), c.refuse(line)
		}
	}
	return c.Conn.Write(p)
}

func (c matrixConn) refuse(status []byte) error {
	const body = `{"errcode":"M_UNRECOGNIZED","error":"the request cannot be read"}`
	_, err := fmt.Fprintf(c.Conn, "%s\r\nContent-Type: application/json\r\nAccess-Control-Allow-Origin: *\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s",
		status, len(body), body)
	return err
}

// ReadFrom leaves files to the kernel.
func (c matrixConn) ReadFrom(r io.Reader) (int64, error) {
	if from, ok := c.Conn.(io.ReaderFrom); ok {
		return from.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}
