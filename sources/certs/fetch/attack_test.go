package fetch_test

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// names returns a resolver that answers every question for an IPv4 address with
// the current one of its own.
func names(tb testing.TB, address *atomic.Pointer[string]) *net.Resolver {
	tb.Helper()
	conn, err := new(net.ListenConfig).ListenPacket(tb.Context(), "udp", "127.0.0.1:0")
	must(tb, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 17 {
				continue
			}
			end := 12
			for buf[end] != 0 {
				end += int(buf[end]) + 1
			}
			question := buf[12 : end+5]
			reply := append([]byte{buf[0], buf[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
			if binary.BigEndian.Uint16(buf[end+1:]) == 1 {
				reply[7] = 1
				reply = append(reply, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4)
				reply = append(reply, net.ParseIP(*address.Load()).To4()...)
			}
			_, _ = conn.WriteTo(reply, from)
		}
	}()
	tb.Cleanup(func() {
		conn.Close()
		<-done
	})
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

// A configured name may resolve to an address that is not public: this machine, the cloud's
// metadata, the internal network. The address is checked at each connection.
func TestNameOfPrivateAddress(t *testing.T) {
	o := local(t)
	_, port, err := net.SplitHostPort(o.host())
	must(t, err)
	for _, address := range []string{
		"127.0.0.1", "169.254.169.254", "10.0.0.1", "192.168.0.1", "100.64.0.1", "0.0.0.0", "224.0.0.1", "168.63.129.16",
	} {
		var at atomic.Pointer[string]
		at.Store(&address)
		c := newClock()
		f := open(t, fetch.Config{Hosts: []string{"pki.example.org:" + port}, Now: c.Now})
		f.Connect(names(t, &at), nil)
		url := "http://pki.example.org:" + port + "/latest/meta-data/"
		wantFail(t, f, url, "pki.example.org resolves to "+address+", which is not a public address")
		c.add(time.Hour)
		wantFail(t, f, url, "not a public address")
	}
	o.wantRequests(t, 0)
}

// The same by the system's own names: localhost is this machine.
func TestLocalhost(t *testing.T) {
	o := local(t)
	_, port, err := net.SplitHostPort(o.host())
	must(t, err)
	f := open(t, fetch.Config{Hosts: []string{"localhost:" + port}})
	wantFail(t, f, "http://localhost:"+port+"/a", "not a public address")
	o.wantRequests(t, 0)
}

// The names that the operator has configured may resolve to private addresses: a mirror on the
// site, or a service for EK certificates.
func TestOwnHostsMayBePrivate(t *testing.T) {
	o := local(t)
	_, port, err := net.SplitHostPort(o.host())
	must(t, err)
	own := "http://localhost:" + port
	f := open(t, fetch.Config{Hosts: []string{"pki.infineon.com"}, Mirror: own, Bases: []string{own + "/ek/"}})
	wantGet(t, f, "http://pki.infineon.com/a.crt", "a certificate")
	if got, err := f.Get(t.Context(), fetch.EKCertificate, own+"/ek/a", text); err != nil {
		t.Errorf("%v, %v", got, err)
	}
}

// A proxy in the environment, which would resolve names in its own network, is not used.
func TestNoProxy(t *testing.T) {
	o := local(t)
	t.Setenv("HTTP_PROXY", o.URL)
	t.Setenv("http_proxy", o.URL)
	f := open(t, fetch.Config{Hosts: []string{"pki.invalid"}})
	if got, err := f.Get(t.Context(), fetch.Issuer, "http://pki.invalid/a", text); err == nil {
		t.Errorf("%+v", got)
	}
	o.wantRequests(t, 0)
}

// redirect makes a server lead to where a function says.
func (o *origin) redirect(to func(r *http.Request) string) {
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", to(r))
		w.WriteHeader(http.StatusFound)
	})
}

// Redirects to another host are not followed, even if that host may be asked.
func TestRedirectElsewhere(t *testing.T) {
	victim, other := newOrigin(t, "127.0.0.2:0"), newOrigin(t, "127.0.0.3:0")
	o := local(t)
	f := asking(t, o, other)
	_, port, err := net.SplitHostPort(o.host())
	must(t, err)
	for i, to := range []string{
		victim.at("/a"), other.at("/a"), "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd",
		"//" + victim.host() + "/a", "http://127.0.0.1:" + strconv.Itoa(victim.Listener.Addr().(*net.TCPAddr).Port) + "/",
		"http://localhost:" + port + "/a", "http://user@" + o.host() + "/a", "http://127.1:" + port + "/a",
		"http://127.0.0.1.:" + port + "/a", `http:\\` + victim.host() + "/a", "/a%2fb", "https://" + o.host() + "/a",
	} {
		o.redirect(func(*http.Request) string { return to })
		before := o.requests.Load()
		got, err := f.Get(t.Context(), fetch.Issuer, numbered(o, i), text)
		if err == nil || got != nil {
			t.Errorf("to %q: %+v", to, got)
		}
		if n := o.requests.Load() - before; n > 2 {
			t.Errorf("to %q: %d requests", to, n)
		}
	}
	victim.wantRequests(t, 0)
	other.wantRequests(t, 0)
}

// A loop of redirects ends after the third, and a few on the same host are
// followed.
func TestRedirectOnTheHost(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	hops := func(n int) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			at, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
			if at == n {
				_, _ = io.WriteString(w, "a certificate")
				return
			}
			if r.Header.Get("Referer") != "" || r.Header.Get("Cookie") != "" {
				t.Error("the request says where it comes from, or brings a cookie")
			}
			http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
			http.Redirect(w, r, fmt.Sprint("/", at+1), http.StatusFound)
		}
	}
	o.serve(hops(3))
	wantGet(t, f, o.at("/0"), "a certificate")
	o.requests.Store(0)
	o.serve(hops(-10))
	wantFail(t, f, o.at("/1"), "redirect")
	o.wantRequests(t, 4)
}

// A redirect from https to http is not followed: somebody on the way could redirect further.
func TestRedirectDowngrade(t *testing.T) {
	o := newOrigin(t, "127.0.0.1:0", true)
	f := asking(t, o)
	roots := x509.NewCertPool()
	roots.AddCert(o.Certificate())
	f.Connect(nil, roots)
	wantGet(t, f, o.at("/good"), "a certificate")
	o.redirect(func(*http.Request) string { return "http://" + o.host() + "/a" })
	wantFail(t, f, o.at("/a"), "from https to http")
}

// https is verified: a server without a trusted certificate is not believed.
func TestUnknownAuthority(t *testing.T) {
	o := newOrigin(t, "127.0.0.1:0", true)
	f := asking(t, o)
	wantFail(t, f, o.at("/a"), "certificate")
	o.wantRequests(t, 0)
}

// Bodies that are too long, whether they say so or not, and that never end.
func TestTooLong(t *testing.T) {
	o := local(t)
	for i, test := range []struct {
		kind  fetch.Kind
		limit int
	}{{fetch.Issuer, 256 << 10}, {fetch.CRL, 4 << 20}, {fetch.CRL.Of("a"), 4 << 20}, {fetch.EKCertificate, 64 << 10}} {
		f := open(t, fetch.Config{Hosts: []string{o.host()}, Bases: []string{o.URL}})
		get := func(path string) error {
			_, err := f.Get(t.Context(), test.kind, o.at(fmt.Sprintf("/%d%s", i, path)), text)
			return err
		}
		o.answer(http.StatusOK, strings.Repeat("a", test.limit))
		must(t, get("fits"))
		o.answer(http.StatusOK, strings.Repeat("a", test.limit+1))
		if err := get("long"); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: one byte more: %v", test.kind, err)
		}
		o.serve(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "50000000")
			_, _ = io.WriteString(w, "a")
		})
		if err := get("says"); err == nil || !strings.Contains(err.Error(), "50000000") {
			t.Errorf("%s: of 50 MB: %v", test.kind, err)
		}
		var sent atomic.Int64
		o.serve(func(w http.ResponseWriter, _ *http.Request) {
			for {
				n, err := w.Write(make([]byte, 32<<10))
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		})
		if err := get("endless"); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: endless: %v", test.kind, err)
		}
		eventually(t, "the connection is closed", func() bool { return f.Flights() == 0 })
		if n := sent.Load(); n > int64(test.limit)+16<<20 {
			t.Errorf("%s: %d bytes were taken", test.kind, n)
		}
	}
}

// Answers that are none.
func TestBadAnswers(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	for i, test := range []struct {
		answer func()
		want   string
	}{
		{func() { o.answer(http.StatusOK, "<html>log in</html>", "Content-Type", "text/html") }, "no certificate"},
		{func() { o.answer(http.StatusOK, "") }, "empty"},
		{func() { o.answer(http.StatusOK, "a", "Content-Encoding", "gzip") }, "encoded"},
		{func() { o.answer(http.StatusForbidden, "a") }, "403"},
		{func() { o.answer(http.StatusNoContent, "") }, "204"},
		{func() { o.answer(http.StatusPartialContent, "a") }, "206"},
		{func() { o.answer(http.StatusNotFound, "a") }, "has none"},
		{func() { o.answer(http.StatusGone, "a") }, "has none"},
		{func() { o.answer(http.StatusInternalServerError, "a") }, "500"},
		{func() { o.answer(http.StatusOK, "a", "Content-Length", "10") }, "unexpected EOF"},
		{func() {
			o.serve(func(w http.ResponseWriter, _ *http.Request) {
				for i := range 100 {
					w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("a", 1000))
				}
			})
		}, "header"},
		{func() {
			o.serve(func(w http.ResponseWriter, _ *http.Request) {
				conn, _, err := http.NewResponseController(w).Hijack()
				must(t, err)
				_, _ = io.WriteString(conn, "\x1b[2J no HTTP\r\n\r\n")
				conn.Close()
			})
		}, "malformed"},
	} {
		test.answer()
		err := wantFail(t, f, numbered(o, i), test.want)
		if strings.ContainsFunc(err.Error(), func(c rune) bool { return c < ' ' }) || len(err.Error()) > 400 {
			t.Errorf("an error that spoils the log: %q", err)
		}
	}
}

// A body that drips and one that stalls: a request ends at some point, whatever the server sends.
func TestSlowBody(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	f.Hurry(200*time.Millisecond, time.Millisecond)
	drips := func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_, _ = io.WriteString(w, "a")
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
				return
			}
		}
	}
	o.serve(drips)
	wantFail(t, f, o.at("/drips"), "not finished within 200ms")
	o.hang(t)
	wantFail(t, f, o.at("/hangs"), "not finished within 200ms")
}

// A single failure of the connection or the server is overcome within the request; a lasting one
// counts as one failure.
func TestRetry(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	var n atomic.Int64
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		if n.Add(1)%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "a certificate")
	})
	wantGet(t, f, o.at("/a"), "a certificate")
	o.wantRequests(t, 2)
	o.answer(http.StatusServiceUnavailable, "")
	wantFail(t, f, o.at("/b"), "503")
	o.wantRequests(t, 4)
	o.answer(http.StatusForbidden, "") // what a person must mend is not tried again
	wantFail(t, f, o.at("/c"), "403")
	o.wantRequests(t, 5)
}

// The request does not reveal who asks and why.
func TestPlainRequest(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	headers := make(chan http.Header, 1)
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		headers <- r.Header
		_, _ = io.WriteString(w, "a certificate")
	})
	wantGet(t, f, o.at("/a"), "a certificate")
	for key, values := range <-headers {
		switch key {
		case "User-Agent", "Accept", "Connection":
		default:
			t.Errorf("%s: %q", key, values)
		}
	}
}
