// Package webtest helps to test lists behind a web server. It has a real HTTPS server whose answer
// can be changed, an authority for its certificates, and lists of machines.
package webtest

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// A Server is a real HTTPS server whose answer can be changed at any time.
type Server struct {
	*httptest.Server
	// CAPath is a PEM file of the CA that has issued the server's certificate.
	CAPath string

	handler  atomic.Pointer[http.HandlerFunc]
	requests atomic.Int64
}

// NewServer starts a server with an empty list, which runs until the test ends. configure, if it is
// not nil, changes its TLS configuration.
func NewServer(tb testing.TB, configure func(*tls.Config)) *Server {
	tb.Helper()
	s := &Server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		(*s.handler.Load())(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	ca := NewAuthority(tb)
	s.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	s.TLS.Certificates = []tls.Certificate{ca.Pair(tb, "server", time.Now().Add(Years))}
	if configure != nil {
		configure(s.TLS)
	}
	s.Answer(http.StatusOK, List(""))
	s.StartTLS()
	tb.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	s.CAPath = Write(tb, "ca.pem", ca.PEM())
	return s
}

// ListURL is the URL of the list.
func (s *Server) ListURL() string { return s.URL + "/tpm.json" }

// Requests returns how many requests have arrived.
func (s *Server) Requests() int64 { return s.requests.Load() }

// Serve sets what the server does.
func (s *Server) Serve(f http.HandlerFunc) { s.handler.Store(&f) }

// Answer makes the server answer with one body. headers are alternating names and values.
func (s *Server) Answer(status int, body string, headers ...string) {
	s.Serve(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// Publish makes the server answer with one body, or with 304 if the client has the ETag.
func (s *Server) Publish(body, etag string) {
	s.Serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", etag)
		if r.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, body)
	})
}

// Raw makes the server send head, and then whatever more writes, until the client has closed the
// connection. more may be nil.
func (s *Server) Raw(head string, more func(conn net.Conn, gone <-chan struct{})) {
	s.Serve(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, head); err != nil || more == nil {
			return
		}
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			_, _ = io.Copy(io.Discard, conn)
		}()
		more(conn, gone)
		conn.Close()
		<-gone
	})
}

// OK is the beginning of an answer for Raw. More headers may follow.
const OK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

// IsZipped is the header of an answer that is compressed.
const IsZipped = "Content-Encoding: gzip"

// Body returns an answer for Raw with a text and its length.
func Body(text string, headers ...string) string {
	headers = append(headers, "")
	return OK + strings.Join(headers, "\r\n") + "Content-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n" + text
}

// Zipped compresses a text with gzip.
func Zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}
