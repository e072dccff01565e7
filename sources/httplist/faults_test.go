package httplist_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

const ok = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

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

// zipped compresses a text.
func zipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
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

// body returns an answer of this length.
func body(text string, headers ...string) string {
	headers = append(headers, "")
	return ok + strings.Join(headers, "\r\n") + "Content-Length: " + strconv.Itoa(len(text)) + "\r\n\r\n" + text
}

const isZipped = "Content-Encoding: gzip"

// A fault is an answer that is no list. Each of them would list "two", were it
// taken for what it is not.
type fault struct {
	name  string
	serve func(o *origin)
	want  string
}

func faults() []fault {
	raw := func(head string) func(*origin) { return func(o *origin) { o.raw(head, nil) } }
	rawThen := func(head string, more func(net.Conn, <-chan struct{})) func(*origin) {
		return func(o *origin) { o.raw(head, more) }
	}
	status := func(code int, headers ...string) func(*origin) {
		return func(o *origin) { o.answer(code, list("", "two"), headers...) }
	}
	two := list("", "two")
	upperTwice := `{"keys": ["` + hash("two") + `", "` + strings.ToUpper(hash("two")) + `"]}`
	return []fault{
		{"hangs before the answer", rawThen("", waits), "not finished within the timeout"},
		{"hangs in the header", rawThen(ok, waits), "not finished within the timeout"},
		{"hangs after the header", rawThen(ok+"Content-Length: 500\r\n\r\n", waits), "not finished within the timeout"},
		{"hangs before the end", rawThen(ok+"Content-Length: 500\r\n\r\n"+two[:100], waits), "not finished within the timeout"},
		{"drips", rawThen(ok+"\r\n{", drips), "not finished within the timeout"},
		{"drips a header", rawThen(ok+"X: ", drips), "not finished within the timeout"},
		{"closes at once", raw(""), "EOF"},
		{"no HTTP", raw("SSH-2.0-OpenSSH_9.2\r\n\r\n"), "malformed HTTP"},
		{"endless header", rawThen(ok, endless("X: y\r\n")), "header"},
		{"endless interim answers", rawThen("", endless("HTTP/1.1 100 Continue\r\n\r\n")), "exceeded 65536 bytes"},
		{"endless body", rawThen(ok+"\r\n{\"x\": \"", endless("xy")), "too long"},
		{"endless blanks", rawThen(ok+"\r\n", endless(" ")), "too long"},
		{"announces too much", raw(ok + "Content-Length: 99999999\r\n\r\n"), "more than the limit"},
		{"longer than announced", raw(ok + "Content-Length: 60\r\n\r\n" + two), "the list: "},
		{"shorter than announced", raw(ok + "Content-Length: 600\r\n\r\n" + two), "unexpected EOF"},
		{"chunks cut", raw(ok + "Transfer-Encoding: chunked\r\n\r\n5\r\n" + two[:5]), "unexpected EOF"},
		{"no gzip", raw(body(two, isZipped)), "gzip: invalid header"},
		{"gzip cut", raw(body(zipped(two)[:60], isZipped)), "unexpected EOF"},
		{"gzip without its sum", raw(body(strings.TrimSuffix(zipped(two), zipped(two)[len(zipped(two))-8:]), isZipped)), "EOF"},
		{"gzip, wrong sum", raw(body(zipped(two)[:len(zipped(two))-8]+"xxxxxxxx", isZipped)), "checksum"},
		{"gzip with something behind", raw(body(zipped(two)+"xxxxxxxxxxxxxxxx", isZipped)), "gzip: invalid header"},
		{"gzip bomb of blanks", raw(body(bomb("", ' ', 64), isZipped)), "too long"},
		{"gzip bomb", raw(body(bomb(`{"x": "`, 'y', 64), isZipped)), "too long"},
		{"endless empty gzip", rawThen(ok+isZipped+"\r\n\r\n", endless(zipped(""))), "longer than the limit even while compressed"},
		{"gzip twice", raw(body(zipped(zipped(two)), "Content-Encoding: gzip, gzip")), "only gzip was asked for"},
		{"a bucket's metadata", raw(body(two, "Content-Encoding: aws-chunked")), "upload it again without"},
		{"another encoding", raw(body(two, "Content-Encoding: br")), "only gzip was asked for"},
		{"HTML", raw(body("<html>" + hash("two") + "</html>")), "not a JSON list"},
		{"nothing", raw(body("")), "not a JSON list"},
		{"a text list", raw(body(hash("two") + "\n")), "not a JSON list"},
		{"an error in JSON", raw(body(`{"error": "maintenance"}`)), "keys"},
		{"a JSON array", raw(body(`["` + hash("two") + `"]`)), "not a JSON list"},
		{"a list twice", raw(body(two + two)), "the list: "},
		{"another version", raw(body(list(`"version": 2, `, "two"))), "version"},
		{"an entry twice", raw(body(list("", "two", "two"))), "second time"},
		{"an entry twice, once in upper case", raw(body(upperTwice)), "second time"},
		{"a hash of 63 digits", raw(body(strings.Replace(two, hash("two"), hash("two")[1:], 1))), "63 characters"},
		{"a name of 10 KB", raw(body(strings.Replace(two, `"two"`, `"`+strings.Repeat("x", 10<<10)+`"`, 1))), "10240 bytes"},
		{"a name twice", raw(body(strings.Replace(list("", "two", "three"), `"three"`, `"two"`, 1))), "the list: "},
		{"expired", raw(body(list(`"expires": "2020-01-01T00:00:00Z", `, "two"))), "list expired"},
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
			o := newOrigin(t, nil)
			cfg := o.config()
			cfg.MaxBytes = 1 << 20
			if strings.Contains(f.want, "timeout") {
				cfg.Timeout = 300 * time.Millisecond
			}
			o.answer(http.StatusOK, list("", "one", "three"))
			warm := loaded(t, cfg)
			f.serve(o)
			wantError(t, warm.Load(t.Context()), f.want)
			wantListed(t, warm, "one", "three")
			cold := newSource(t, cfg)
			wantError(t, cold.Load(t.Context()), f.want)
			wantCannotTell(t, cold, "no list")
			if st := cold.Status(); !st.Loaded.IsZero() || !st.Confirmed.IsZero() || st.Entries != 0 {
				t.Errorf("the status is %+v", st)
			}
			o.answer(http.StatusOK, list("", "two"))
			refresh(t, warm)
			wantListed(t, warm, "two")
		})
	}
}

// A list that is cut at any byte, by a server that says so or by one that just
// ends, lists nobody else and removes nobody.
func TestCutAnywhere(t *testing.T) {
	o := newOrigin(t, nil)
	o.answer(http.StatusOK, list("", "one"))
	s := loaded(t, o.config())
	whole := list(`"serial": 7, `, "two", "three")
	step := 1
	if testing.Short() {
		step = 7
	}
	for n := 0; n < len(whole); n += step {
		for _, head := range []string{body(whole[:n]), ok + "Connection: close\r\n\r\n" + whole[:n]} {
			o.raw(head, nil)
			if err := s.Load(t.Context()); err == nil {
				t.Fatalf("cut at byte %d: taken", n)
			}
		}
	}
	wantListed(t, s, "one")
	o.raw(body(whole), nil)
	refresh(t, s)
	wantListed(t, s, "two", "three")
}

// A server that is away is an error, and no reason to forget.
func TestServerDown(t *testing.T) {
	o := newOrigin(t, nil)
	o.answer(http.StatusOK, list("", "one"))
	s := loaded(t, o.config())
	o.Close()
	wantError(t, s.Load(t.Context()), "connection refused")
	wantListed(t, s, "one")
}

// A peer that takes the connection and says nothing costs the timeout.
func TestNoTLS(t *testing.T) {
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := newSource(t, httplist.Config{
		URL: fmt.Sprintf("https://%s/", listener.Addr()), Timeout: 200 * time.Millisecond,
	})
	wantError(t, s.Load(t.Context()), "not finished within the timeout of 200ms")
}

// A bomb may cost time, and no more memory than a list of the longest length.
func TestBombTakesNoMemory(t *testing.T) {
	o := newOrigin(t, nil)
	o.raw(body(bomb(`{"x": "`, 'y', 128), isZipped), nil)
	cfg := o.config()
	cfg.MaxBytes = 8 << 20
	s := newSource(t, cfg)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wantError(t, s.Load(t.Context()), "too long")
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 12*uint64(cfg.MaxBytes) {
		t.Errorf("%d bytes were allocated", grown)
	}
}

// A hiccup is got over within one attempt.
func TestServerErrorThenFine(t *testing.T) {
	o := newOrigin(t, nil)
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		if o.requests.Load() < 3 {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		_, _ = io.WriteString(w, list("", "one"))
	})
	s := loaded(t, o.config())
	wantListed(t, s, "one")
	if n := o.requests.Load(); n != 3 {
		t.Errorf("%d requests, want 3", n)
	}
}

// What compresses well and is within the limit is taken.
func TestGzip(t *testing.T) {
	o := newOrigin(t, nil)
	var asked string
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Accept-Encoding")
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, zipped(list("", "one")))
	})
	wantListed(t, loaded(t, o.config()), "one")
	if asked != "gzip" {
		t.Errorf("asked for the encoding %q", asked)
	}
}
