package web_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// waits keeps a connection open until the client gives up.
func waits(_ net.Conn, gone <-chan struct{}) { <-gone }

// drips sends a byte now and then.
func drips(conn net.Conn, gone <-chan struct{}) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return
		case <-tick.C:
			if _, err := io.WriteString(conn, " "); err != nil {
				return
			}
		}
	}
}

// endless sends the same for ever.
func endless(text string) func(net.Conn, <-chan struct{}) {
	return func(conn net.Conn, _ <-chan struct{}) {
		for block := strings.Repeat(text, 1+4096/len(text)); ; {
			if _, err := io.WriteString(conn, block); err != nil {
				return
			}
		}
	}
}

// bomb returns the beginning of what gzip makes of a head and so many MiB of a
// byte, which it takes a moment to make and long to decompress.
func bomb(head string, of byte, size int) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	block := bytes.Repeat([]byte{of}, 1<<20)
	ends := make([]int, 0, 2)
	_, _ = io.WriteString(w, head)
	for range 2 {
		_, _ = w.Write(block)
		_ = w.Flush()
		ends = append(ends, b.Len())
	}
	// The second block refers to nothing but bytes like its own, and so may
	// stand behind itself.
	return b.String() + strings.Repeat(b.String()[ends[0]:ends[1]], size-2)
}

// A fault is an answer that is not a list. Each of them would list "two" if it were taken for one.
type fault struct {
	name  string
	serve func(o *webtest.Server)
	want  string
}

func faults() []fault {
	raw := func(head string) func(*webtest.Server) { return func(o *webtest.Server) { o.Raw(head, nil) } }
	rawThen := func(head string, more func(net.Conn, <-chan struct{})) func(*webtest.Server) {
		return func(o *webtest.Server) { o.Raw(head, more) }
	}
	status := func(code int, headers ...string) func(*webtest.Server) {
		return func(o *webtest.Server) { o.Answer(code, webtest.List("", "two"), headers...) }
	}
	two := webtest.List("", "two")
	upperTwice := `{"keys": ["` + webtest.Hash("two") + `", "` + strings.ToUpper(webtest.Hash("two")) + `"]}`
	return []fault{
		{"hangs before the answer", rawThen("", waits), "not finished within the timeout"},
		{"hangs in the header", rawThen(webtest.OK, waits), "not finished within the timeout"},
		{"hangs after the header", rawThen(webtest.OK+"Content-Length: 500\r\n\r\n", waits), "not finished within the timeout"},
		{"hangs before the end", rawThen(webtest.OK+"Content-Length: 500\r\n\r\n"+two[:100], waits), "not finished within the timeout"},
		{"drips", rawThen(webtest.OK+"\r\n{", drips), "not finished within the timeout"},
		{"drips a header", rawThen(webtest.OK+"X: ", drips), "not finished within the timeout"},
		{"closes at once", raw(""), "EOF"},
		{"no HTTP", raw("SSH-2.0-OpenSSH_9.2\r\n\r\n"), "malformed HTTP"},
		{"endless header", rawThen(webtest.OK, endless("X: y\r\n")), "header"},
		{"endless interim answers", rawThen("", endless("HTTP/1.1 100 Continue\r\n\r\n")), "exceeded 65536 bytes"},
		{"endless body", rawThen(webtest.OK+"\r\n{\"x\": \"", endless("xy")), "too long"},
		{"endless blanks", rawThen(webtest.OK+"\r\n", endless(" ")), "too long"},
		{"announces too much", raw(webtest.OK + "Content-Length: 99999999\r\n\r\n"), "more than the limit"},
		{"longer than announced", raw(webtest.OK + "Content-Length: 60\r\n\r\n" + two), "the list: "},
		{"shorter than announced", raw(webtest.OK + "Content-Length: 600\r\n\r\n" + two), "unexpected EOF"},
		{"chunks cut", raw(webtest.OK + "Transfer-Encoding: chunked\r\n\r\n5\r\n" + two[:5]), "unexpected EOF"},
		{"no gzip", raw(webtest.Body(two, webtest.IsZipped)), "gzip: invalid header"},
		{"gzip cut", raw(webtest.Body(webtest.Zipped(two)[:60], webtest.IsZipped)), "unexpected EOF"},
		{"gzip without its sum", raw(webtest.Body(strings.TrimSuffix(webtest.Zipped(two), webtest.Zipped(two)[len(webtest.Zipped(two))-8:]), webtest.IsZipped)), "EOF"},
		{"gzip, wrong sum", raw(webtest.Body(webtest.Zipped(two)[:len(webtest.Zipped(two))-8]+"xxxxxxxx", webtest.IsZipped)), "checksum"},
		{"gzip with something behind", raw(webtest.Body(webtest.Zipped(two)+"xxxxxxxxxxxxxxxx", webtest.IsZipped)), "gzip: invalid header"},
		{"gzip bomb of blanks", raw(webtest.Body(bomb("", ' ', 64), webtest.IsZipped)), "too long"},
		{"gzip bomb", raw(webtest.Body(bomb(`{"x": "`, 'y', 64), webtest.IsZipped)), "too long"},
		{"endless empty gzip", rawThen(webtest.OK+webtest.IsZipped+"\r\n\r\n", endless(webtest.Zipped(""))), "longer than the limit even while compressed"},
		{"gzip twice", raw(webtest.Body(webtest.Zipped(webtest.Zipped(two)), "Content-Encoding: gzip, gzip")), "only gzip was asked for"},
		{"a bucket's metadata", raw(webtest.Body(two, "Content-Encoding: aws-chunked")), "upload it again without"},
		{"another encoding", raw(webtest.Body(two, "Content-Encoding: br")), "only gzip was asked for"},
		{"HTML", raw(webtest.Body("<html>" + webtest.Hash("two") + "</html>")), "not a JSON list"},
		{"nothing", raw(webtest.Body("")), "not a JSON list"},
		{"a text list", raw(webtest.Body(webtest.Hash("two") + "\n")), "not a JSON list"},
		{"an error in JSON", raw(webtest.Body(`{"error": "maintenance"}`)), "keys"},
		{"a JSON array", raw(webtest.Body(`["` + webtest.Hash("two") + `"]`)), "not a JSON list"},
		{"a list twice", raw(webtest.Body(two + two)), "the list: "},
		{"another version", raw(webtest.Body(webtest.List(`"version": 2, `, "two"))), "version"},
		{"an entry twice", raw(webtest.Body(webtest.List("", "two", "two"))), "again, after"},
		{"an entry twice, once in upper case", raw(webtest.Body(upperTwice)), "again, after"},
		{"a hash of 63 digits", raw(webtest.Body(strings.Replace(two, webtest.Hash("two"), webtest.Hash("two")[1:], 1))), "63 characters"},
		{"a name of 10 KB", raw(webtest.Body(strings.Replace(two, `"two"`, `"`+strings.Repeat("x", 10<<10)+`"`, 1))), "10240 bytes"},
		{"a name twice", raw(webtest.Body(strings.Replace(webtest.List("", "two", "three"), `"three"`, `"two"`, 1))), "the list: "},
		{"expired", raw(webtest.Body(webtest.List(`"expires": "2020-01-01T00:00:00Z", `, "two"))), "list expired"},
		{"no content", status(http.StatusNoContent), "204 No Content"},
		{"a part", status(http.StatusPartialContent), "206 Partial Content"},
		{"304, not asked for", status(http.StatusNotModified), "304 Not Modified"},
		{"not authorized", status(http.StatusUnauthorized), "check the client certificate and the bearer token"},
		{"forbidden", status(http.StatusForbidden), "403 Forbidden"},
		{"not found", status(http.StatusNotFound), "404 Not Found"},
		{"multiple choices", status(http.StatusMultipleChoices), "300 Multiple Choices"},
		{"server error", status(http.StatusInternalServerError), "500 Internal Server Error"},
		{"odd status", status(999), "999"},
		{"redirect to HTTP", status(http.StatusFound, "Location", "http://127.0.0.1/"), "redirected to another host"},
		{"redirect to a host", status(http.StatusFound, "Location", "https://localhost/"), "redirected to another host"},
		{"redirect nowhere", status(http.StatusFound, "Location", "https://%zz/"), "Location"},
		{"redirect round", status(http.StatusFound, "Location", "/tpm.json"), "too often"},
	}
}

// Whatever a server does, the last good list stays as a whole, and a source
// without one cannot tell.
func TestFaults(t *testing.T) {
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			o := webtest.NewServer(t, nil)
			cfg := configFor(o)
			cfg.MaxBytes = 1 << 20
			timeout := web.DefaultTimeout
			if strings.Contains(f.want, "timeout") {
				timeout = 300 * time.Millisecond
			}
			o.Answer(http.StatusOK, webtest.List("", "one", "three"))
			warm := loaded(t, cfg)
			f.serve(o)
			warm.origin.SetTimeout(timeout)
			webtest.WantError(t, warm.Load(t.Context()), f.want)
			webtest.WantListed(t, warm, "one", "three")
			cold := newSource(t, cfg)
			cold.origin.SetTimeout(timeout)
			webtest.WantError(t, cold.Load(t.Context()), f.want)
			webtest.WantCannotTell(t, cold, "no list")
			if st := cold.Status(); !st.Loaded.IsZero() || !st.Confirmed.IsZero() || st.Entries != 0 {
				t.Errorf("the status is %+v", st)
			}
			o.Answer(http.StatusOK, webtest.List("", "two"))
			warm.origin.SetTimeout(web.DefaultTimeout)
			refresh(t, warm)
			webtest.WantListed(t, warm, "two")
		})
	}
}

// A list that is cut at any byte, by a server that says so or by one that just
// ends, lists nobody else and removes nobody.
func TestCutAnywhere(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List("", "one"))
	s := loaded(t, configFor(o))
	whole := webtest.List(`"serial": 7, `, "two", "three")
	step := 1
	if testing.Short() {
		step = 7
	}
	for n := 0; n < len(whole); n += step {
		for _, head := range []string{webtest.Body(whole[:n]), webtest.OK + "Connection: close\r\n\r\n" + whole[:n]} {
			o.Raw(head, nil)
			if err := s.Load(t.Context()); err == nil {
				t.Fatalf("cut at byte %d: taken", n)
			}
		}
	}
	webtest.WantListed(t, s, "one")
	o.Raw(webtest.Body(whole), nil)
	refresh(t, s)
	webtest.WantListed(t, s, "two", "three")
}

// A server that cannot be reached is an error, but no reason to drop the list.
func TestServerDown(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List("", "one"))
	s := loaded(t, configFor(o))
	o.Close()
	webtest.WantError(t, s.Load(t.Context()), "connection refused")
	webtest.WantListed(t, s, "one")
}

// A peer that takes the connection and says nothing costs the timeout.
func TestNoTLS(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := newSource(t, web.Config{
		URL: fmt.Sprintf("https://%s/", listener.Addr()), Timeout: 200 * time.Millisecond,
	})
	webtest.WantError(t, s.Load(t.Context()), "not finished within the timeout of 200ms")
}

// A zip bomb may cost time, but no more memory than a list of the maximum length.
func TestBombTakesNoMemory(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Raw(webtest.Body(bomb(`{"x": "`, 'y', 128), webtest.IsZipped), nil)
	cfg := configFor(o)
	cfg.MaxBytes = 8 << 20
	s := newSource(t, cfg)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	webtest.WantError(t, s.Load(t.Context()), "too long")
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 12*uint64(cfg.MaxBytes) {
		t.Errorf("%d bytes were allocated", grown)
	}
}

// A temporary failure is overcome within one attempt.
func TestServerErrorThenFine(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Serve(func(w http.ResponseWriter, _ *http.Request) {
		if o.Requests() < 3 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, webtest.List("", "one"))
	})
	s := loaded(t, configFor(o))
	webtest.WantListed(t, s, "one")
	if n := o.Requests(); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// What compresses well and is within the limit is taken.
func TestGzip(t *testing.T) {
	o := webtest.NewServer(t, nil)
	var asked string
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Accept-Encoding")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, webtest.Zipped(webtest.List("", "one")))
	})
	webtest.WantListed(t, loaded(t, configFor(o)), "one")
	if asked != "gzip" {
		t.Errorf("asked for the encoding %q", asked)
	}
}
