package web

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A statusError is an answer that is neither 200 nor the 304 that was asked for.
type statusError struct {
	code int
	url  string // of the request, without secrets
	// retryAfter is how long the server asks to be left alone; zero if it does not.
	retryAfter time.Duration
}

func (e *statusError) Error() string {
	status := strings.TrimSpace(fmt.Sprintf("%d %s", e.code, http.StatusText(e.code)))
	text := fmt.Sprintf("the list's server answered %s to %s", status, e.url)
	if e.code == http.StatusUnauthorized || e.code == http.StatusForbidden {
		text += ": check the client certificate and the bearer token"
	}
	return text
}

func statusOf(resp *http.Response, asked *url.URL) *statusError {
	return &statusError{resp.StatusCode, shown(asked), retryAfter(resp.Header, time.Now())}
}

// retryAfter reads the Retry-After header (RFC 9110, 10.2.3), a number of seconds or a date.
// It returns zero if the header is missing or malformed.
func retryAfter(h http.Header, now time.Time) time.Duration {
	const most = 24 * time.Hour // keeps the numbers small
	value := strings.TrimSpace(h.Get("Retry-After"))
	if digits := strings.Trim(value, "0123456789"); value != "" && digits == "" {
		seconds, err := strconv.ParseInt(value, 10, 64)
		if err != nil || seconds > int64(most/time.Second) {
			return most
		}
		return time.Duration(seconds) * time.Second
	}
	date, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(date.Sub(now), 0), most)
}

// read returns the decoded content of an answer. It has at most limit bytes, and so has the answer
// as it is sent, apart from what gzip may add. room is its expected length.
func read(resp *http.Response, limit, room int64) ([]byte, error) {
	body, err := decoded(resp, limit)
	if err != nil {
		return nil, err
	}
	if resp.ContentLength > 0 && body == resp.Body {
		room = resp.ContentLength
	}
	var b bytes.Buffer
	b.Grow(int(min(room, limit)) + bytes.MinRead)
	_, err = b.ReadFrom(io.LimitReader(body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("read the list: %w", err)
	case int64(b.Len()) > limit:
		return nil, fmt.Errorf("%w: more than %d bytes", list.ErrTooLong, limit)
	case b.Len() == 0:
		return []byte{}, nil
	}
	return b.Bytes(), nil
}

// decoded returns a reader of the decoded content of an answer. It reads at most slightly more than
// limit bytes from the network. Its caller must limit the decoded length.
func decoded(resp *http.Response, limit int64) (io.Reader, error) {
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("the answer has %d bytes, more than the limit of %d", resp.ContentLength, limit)
	}
	encoding := strings.ToLower(strings.Join(resp.Header.Values("Content-Encoding"), ", "))
	switch encoding {
	case "", "identity":
		return resp.Body, nil
	case "gzip", "x-gzip": // RFC 9110, 8.4.1.3
	case "aws-chunked": // an upload encoding that a store may keep with the object
		return nil, errors.New("the answer is encoded as \"aws-chunked\": the list was uploaded with that in its " +
			"metadata: upload it again without Content-Encoding")
	default:
		return nil, fmt.Errorf("the answer is encoded as %.40q: only gzip was asked for", encoding)
	}
	const frame = 1 << 10 // what gzip may add to incompressible data
	unzipped, err := gzip.NewReader(&limited{resp.Body, limit + limit/1000 + frame})
	if err != nil {
		return nil, fmt.Errorf("decode the answer: %w", err)
	}
	return unzipped, nil
}

// limited reads up to a limit and fails beyond it.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	if l.left <= 0 {
		return 0, errors.New("the answer is longer than the limit even while compressed")
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	return n, err
}

// validators identify a version of the list (RFC 9110, 8.8).
type validators struct{ etag, lastModified string }

// entityTag is RFC 9110, 8.8.3.
var entityTag = regexp.MustCompile(`^(W/)?"[!\x23-\x7e]{0,512}"$`)

// validatorsOf returns the validators of an answer if they can be relied on. If the list was
// changed in the same second in which the server answered, it may change again in that second and
// keep its Last-Modified date (RFC 9110, 8.8.2.2), and many servers derive the ETag from that date.
// Then there are no validators, and the next request asks for the whole list.
func validatorsOf(h http.Header) validators {
	v := validators{etag: h.Get("ETag"), lastModified: h.Get("Last-Modified")}
	if !entityTag.MatchString(v.etag) {
		v.etag = ""
	}
	modified, err := http.ParseTime(v.lastModified)
	if err != nil {
		v.lastModified = ""
		return v
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || date.Sub(modified) < 2*time.Second {
		return validators{}
	}
	return v
}

// tag returns the validators as list.Copy.Tag: two lines, or nothing.
func (v validators) tag() string {
	if v == (validators{}) {
		return ""
	}
	return v.etag + "\n" + v.lastModified
}

// validatorsIn is the inverse of tag.
func validatorsIn(tag string) validators {
	etag, lastModified, _ := strings.Cut(tag, "\n")
	return validators{etag, lastModified}
}

// ask makes a request conditional.
func (v validators) ask(h http.Header) {
	if v.etag != "" {
		h.Set("If-None-Match", v.etag)
	}
	if v.lastModified != "" {
		h.Set("If-Modified-Since", v.lastModified)
	}
}

var errOtherVersion = errors.New("the list's server answered 304 Not Modified but named another version of the list")

// confirmedBy returns nil if a 304 with this header confirms the version. Entity tags are compared
// weakly (RFC 9110, 13.1.2), since a server that compresses makes them weak.
func (v validators) confirmedBy(h http.Header) error {
	weak := func(etag string) string { return strings.TrimPrefix(etag, "W/") }
	if etag := h.Get("ETag"); v.etag != "" && etag != "" && weak(etag) != weak(v.etag) {
		return errOtherVersion
	}
	return nil
}
