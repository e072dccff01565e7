package httplist_test

import (
	"crypto/ed25519"
	"crypto/x509"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A publisher signs lists that a server hands out.
type publisher struct {
	key       ed25519.PrivateKey
	text, sig string
	etag      string
	asked     []string // for what, and with which ETag
}

func newPublisher(tb testing.TB) *publisher {
	tb.Helper()
	p := &publisher{}
	p.rotate(tb)
	return p
}

// rotate makes a new key and returns the public one.
func (p *publisher) rotate(tb testing.TB) []byte {
	tb.Helper()
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		tb.Fatal(err)
	}
	p.key = private
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		tb.Fatal(err)
	}
	return webtest.PEM("PUBLIC KEY", der)
}

func (p *publisher) publish(text, etag string) {
	p.text, p.etag, p.sig = text, etag, string(ed25519.Sign(p.key, []byte(text)))
}

func (p *publisher) serve(w http.ResponseWriter, r *http.Request) {
	p.asked = append(p.asked, r.URL.Path+" "+r.Header.Get("If-None-Match"))
	switch {
	case strings.HasSuffix(r.URL.Path, ".sig"):
		_, _ = io.WriteString(w, p.sig)
	case p.etag != "" && r.Header.Get("If-None-Match") == p.etag:
		w.WriteHeader(http.StatusNotModified)
	default:
		w.Header().Set("ETag", p.etag)
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, webtest.Zipped(p.text))
	}
}

const header = `"serial": 2, "expires": "2099-01-01T00:00:00Z", "list": "fleet", `

// published returns a configuration that trusts the publisher's lists.
func published(t *testing.T) (httplist.Config, *publisher, *webtest.Server) {
	t.Helper()
	o, p := webtest.NewServer(t, nil), newPublisher(t)
	o.Serve(p.serve)
	cfg := configFor(o)
	cfg.SignatureURL, cfg.ListID = o.URL+"/tpm.json.sig", "fleet"
	cfg.PublicKeyPath = webtest.Write(t, "list.pub", p.rotate(t))
	p.publish(webtest.List(header, "one"), `"1"`)
	return cfg, p, o
}

// Somebody who controls the web server can neither forge nor change a list, nor replay, freeze or
// swap one: the signature is over the decoded body, which says which list it is, which version, and
// until when.
func TestSignature(t *testing.T) {
	cfg, p, _ := published(t)
	s := loaded(t, cfg)
	webtest.WantListed(t, s, "one")
	for name, tt := range map[string]struct {
		fields string
		forge  func()
		want   string
	}{
		"changed":      {header, func() { p.text += " " }, "signature"},
		"another list": {header, func() { p.sig = string(ed25519.Sign(p.key, []byte(webtest.List(header, "one")))) }, "signature"},
		"unsigned":     {header, func() { p.sig = "" }, "signature"},
		"too long":     {header, func() { p.sig = strings.Repeat(" ", 1000) + p.sig }, "signature"},
		"zipped form":  {header, func() { p.sig = string(ed25519.Sign(p.key, []byte(webtest.Zipped(p.text)))) }, "signature"},
		"no serial":    {strings.Replace(header, `"serial": 2, `, "", 1), nil, "serial and expires"},
		"no expiry":    {`"serial": 3, "list": "fleet", `, nil, "serial and expires"},
		"no name":      {strings.Replace(header, `"list": "fleet", `, "", 1), nil, `not "fleet"`},
		"swapped":      {strings.Replace(header, "fleet", "lab", 1), nil, `the signed list is "lab", not "fleet"`},
		"replayed":     {strings.Replace(header, "2", "1", 1), nil, "replay"},
		"expired":      {strings.Replace(header, "2099", "2020", 1), nil, "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			p.publish(webtest.List(tt.fields, "two"), `"2"`)
			if tt.forge != nil {
				tt.forge()
			}
			webtest.WantError(t, s.Load(t.Context()), tt.want)
			webtest.WantListed(t, s, "one")
		})
	}
	p.publish(webtest.List(strings.Replace(header, "2", "3", 1), "two"), `"3"`)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
}

// signedList returns a list with a serial that may be signed.
func signedList(serial uint64, machines ...string) string {
	return webtest.List(strings.Replace(header, "2", strconv.FormatUint(serial, 10), 1), machines...)
}

// No 304 stands for a signed list that this process has never verified.
func TestVerifiedAfterARestart(t *testing.T) {
	cfg, p, _ := published(t)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	s := loaded(t, cfg)
	p.asked = nil
	refresh(t, s)
	if len(p.asked) != 1 || p.asked[0] != `/tpm.json "1"` {
		t.Errorf("asked %q, want one conditional request", p.asked)
	}
	p.asked = nil
	webtest.WantListed(t, loaded(t, cfg), "one")
	if len(p.asked) != 2 || p.asked[0] != "/tpm.json " {
		t.Errorf("after a restart: asked %q, want the whole list", p.asked)
	}
}

// Rotating a key disturbs nothing: while the file holds both keys, lists signed by either are
// served, serials count across them, and nobody is refused in between.
func TestPublicKeyIsRotated(t *testing.T) {
	cfg, p, _ := published(t)
	before, err := os.ReadFile(cfg.PublicKeyPath)
	if err != nil {
		t.Fatal(err)
	}
	s := loaded(t, cfg)
	old := *p
	after := p.rotate(t)
	webtest.Rewrite(t, cfg.PublicKeyPath, append(slices.Clone(before), after...))
	refresh(t, s) // what the old key has signed
	webtest.WantListed(t, s, "one")
	p.publish(signedList(3, "two"), `"2"`)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
	p.text, p.sig, p.etag = old.text, old.sig, `"3"`
	webtest.WantError(t, s.Load(t.Context()), "replay")
	webtest.WantListed(t, s, "two")
	webtest.Rewrite(t, cfg.PublicKeyPath, after)
	p.publish(signedList(3, "two"), `"2"`)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
}

// A list that is signed again without a change, like one that seldom changes, counts under the new
// key before the old one is removed, even if its validators are the same: otherwise the end of the
// rotation would be an outage.
func TestListIsSignedAnew(t *testing.T) {
	cfg, p, o := published(t)
	old := p.rotate(t)
	p.publish(webtest.List(header, "one"), `"1"`)
	webtest.Rewrite(t, cfg.PublicKeyPath, old)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	s := loaded(t, cfg)
	next := p.rotate(t)
	webtest.Rewrite(t, cfg.PublicKeyPath, slices.Concat(old, next))
	refresh(t, s)
	p.publish(webtest.List(header, "one"), `"1"`)
	refresh(t, s)
	fails(o)
	webtest.Rewrite(t, cfg.PublicKeyPath, next)
	if err := s.Load(t.Context()); err == nil {
		t.Error("the server has no list, and that is no error")
	}
	webtest.WantListed(t, s, "one")
	webtest.WantListed(t, fromCache(t, cfg, "404"), "one")
}

// A stolen key signs a list with the highest serial there is. Once another key is
// in its place, that list serves nobody from the next poll on, whether the web
// server still has it or is away, and over a restart; its serial does not keep the
// list of the new key out; and the stolen key brings nothing back.
func TestStolenKey(t *testing.T) {
	cfg, p, o := published(t)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	p.publish(signedList(1<<64-1, "stranger"), `"1"`)
	stolen := *p
	s := loaded(t, cfg)
	webtest.WantListed(t, s, "stranger")
	own := p.rotate(t)
	webtest.Rewrite(t, cfg.PublicKeyPath, own)
	p.text, p.sig = stolen.text, stolen.sig
	webtest.WantError(t, s.Load(t.Context()), "the list's signature")
	webtest.WantCannotTell(t, s, "no list")
	if st := s.Status(); st.Serial != 0 || len(st.Warnings) == 0 {
		t.Errorf("the status is %+v", st)
	}
	fails(o)
	restarted := newSource(t, cfg)
	webtest.WantError(t, restarted.Load(t.Context()), "404")
	webtest.WantCannotTell(t, restarted, "no list")

	o.Serve(p.serve)
	p.publish(signedList(3, "one"), `"2"`)
	for _, s := range []*httplist.Source{s, restarted} {
		refresh(t, s)
		webtest.WantListed(t, s, "one")
	}
	p.text, p.sig, p.etag = stolen.text, stolen.sig, `"3"`
	webtest.WantError(t, s.Load(t.Context()), "the list's signature")
	webtest.WantListed(t, s, "one")
	fails(o)
	webtest.WantListed(t, fromCache(t, cfg, "404"), "one")
}

// A key file that cannot be read does not say that a key was removed: what is served stays. But
// nothing is taken from the cache without it.
func TestNoPublicKeyForAWhile(t *testing.T) {
	cfg, _, o := published(t)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	s := loaded(t, cfg)
	own, err := os.ReadFile(cfg.PublicKeyPath)
	if err != nil {
		t.Fatal(err)
	}
	webtest.Rewrite(t, cfg.PublicKeyPath, own[:50])
	webtest.WantError(t, s.Load(t.Context()), "the public key")
	webtest.WantListed(t, s, "one")
	fails(o)
	restarted := newSource(t, cfg)
	webtest.WantError(t, restarted.Load(t.Context()), "the public key")
	webtest.WantCannotTell(t, restarted, "no list")
	webtest.Rewrite(t, cfg.PublicKeyPath, own)
	webtest.WantError(t, restarted.Load(t.Context()), "404")
	webtest.WantListed(t, restarted, "one")
}

// A cache that was filled without signatures is not used once they are required.
func TestUnsignedCache(t *testing.T) {
	cfg, p, _ := published(t)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	unsigned := cfg
	unsigned.SignatureURL, unsigned.PublicKeyPath, unsigned.ListID = "", "", ""
	loaded(t, unsigned)
	p.sig = ""
	s := newSource(t, cfg)
	webtest.WantError(t, s.Load(t.Context()), "signature")
	webtest.WantCannotTell(t, s, "no list")
}

// A problem with a signature is reported, fails this attempt and has no other effect.
func TestSignatureFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(cfg *httplist.Config, p *publisher, o *webtest.Server)
		want   string
	}{
		"no key": {func(cfg *httplist.Config, _ *publisher, _ *webtest.Server) { cfg.PublicKeyPath = "/nonexistent" }, "read the public key"},
		"no public key": {
			func(cfg *httplist.Config, _ *publisher, _ *webtest.Server) { cfg.PublicKeyPath = cfg.CAPath }, "the public key",
		},
		"not there": {func(_ *httplist.Config, p *publisher, o *webtest.Server) {
			o.Serve(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, ".sig") {
					w.WriteHeader(http.StatusNotFound)
					return
				}
				p.serve(w, r)
			})
		}, "fetch the signature: the list's server answered 404"},
		"hangs": {func(cfg *httplist.Config, p *publisher, o *webtest.Server) {
			cfg.Timeout = 300 * time.Millisecond
			o.Serve(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasSuffix(r.URL.Path, ".sig") {
					<-r.Context().Done()
				}
				p.serve(w, r)
			})
		}, "not finished within the timeout"},
		"list too long": {func(cfg *httplist.Config, p *publisher, _ *webtest.Server) {
			cfg.MaxBytes = 300
			p.publish(webtest.List(header+`"pad": "`+strings.Repeat("x", 500)+`", `, "one"), "")
		}, "too long"},
		"list cut": {func(_ *httplist.Config, _ *publisher, o *webtest.Server) {
			o.Raw(webtest.Body(webtest.Zipped(webtest.List(header, "one"))[:50], webtest.IsZipped), nil)
		}, "read the list"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, p, o := published(t)
			tt.change(&cfg, p, o)
			s := newSource(t, cfg)
			webtest.WantError(t, s.Load(t.Context()), tt.want)
			webtest.WantCannotTell(t, s, "no list")
		})
	}
}
