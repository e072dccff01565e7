package web

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

// Whatever a server sends, as a header and a body, is a list or an error: nothing
// panics, nothing hangs, and what comes out of it is within the limits.
func FuzzResponse(f *testing.F) {
	const list = `{"serial": 1, "keys": ["1b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c6879285ceff6094fa556af485c"]}`
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	if _, err := w.Write([]byte(list)); err != nil {
		f.Fatal(err)
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	for _, head := range []string{
		"", "Content-Encoding: gzip\r\n", "ETag: W/\"x\"\r\n", "Transfer-Encoding: chunked\r\n", "Content-Length: 94\r\n",
		"Last-Modified: Mon, 02 Jan 2006 15:04:05 GMT\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\n", "Retry-After: 1\r\n",
	} {
		for _, text := range []string{"", list, zipped.String(), "\ufeff " + list, "<html>", "5e\r\n" + list + "\r\n0\r\n\r\n"} {
			f.Add([]byte("HTTP/1.1 200 OK\r\n" + head + "\r\n" + text))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		const limit = 1 << 16
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(data)), nil)
		if err != nil {
			return
		}
		defer resp.Body.Close()
		now := time.Now()
		if d := retryAfter(resp.Header, now); d < 0 || d > 24*time.Hour {
			t.Errorf("Retry-After is %v", d)
		}
		v := validatorsOf(resp.Header)
		if len(v.etag) > 600 || strings.ContainsAny(v.etag+v.lastModified, "\r\n") {
			t.Errorf("the validators are %+v", v)
		}
		_ = v.confirmedBy(resp.Header)
		_ = statusOf(resp, &url.URL{}).Error()
		body, err := read(resp, limit, 0)
		if (body == nil) != (err != nil) || len(body) > limit {
			t.Errorf("%d bytes, error %v", len(body), err)
		}
		if tag := v.tag(); validatorsIn(tag) != v {
			t.Errorf("%+v are %q, which are %+v", v, tag, validatorsIn(tag))
		}
	})
}
