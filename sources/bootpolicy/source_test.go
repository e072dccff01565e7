package bootpolicy_test

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/bootpolicy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

var (
	_ sources.Loader   = (*bootpolicy.Source)(nil)
	_ sources.Watcher  = (*bootpolicy.Source)(nil)
	_ sources.Reporter = (*bootpolicy.Source)(nil)
)

// bootOf returns the boot of a TPM: each boots a kernel of its own.
func bootOf(ev *sources.Evidence) *sources.Boot { return booted(usual(ev.EKHash.String())) }

// profiles are those that a backend of the conformance suite has, one for each machine.
type profiles struct {
	mu      sync.Mutex
	all     map[sources.EKHash]bool
	version int
}

// change changes the profiles and returns the file of them.
func (p *profiles) change(f func()) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.version++
	var texts []string
	for hash := range p.all {
		b := bootOf(&sources.Evidence{EKHash: hash})
		texts = append(texts, fmt.Sprintf(
			`{"name": "%v", "labels": ["a", "b"], "secureboot": {"enabled": true}, "images": {"only": ["%s", "%s", "%s"]},
			"pcrs": {"sha256": {"0": ["%s"], "4": ["%s"], "7": ["%s"]}}}`,
			hash, hexOf("shim"), hexOf("grub"), hexOf(hash.String()), value(b, 0), value(b, 4), value(b, 7)))
	}
	return fmt.Sprintf(`{"serial": %d, "profiles": [%s]}`, p.version, strings.Join(texts, ", "))
}

func (p *profiles) set(ev *sources.Evidence, listed bool) func() {
	return func() {
		if delete(p.all, ev.EKHash); listed {
			p.all[ev.EKHash] = true
		}
	}
}

// The contract of every source. That of lists behind a web server is in package httplist.
func TestConformance(t *testing.T) {
	sourcetest.Run(t, sourcetest.Harness{NeedsProof: true, Boot: bootOf, Watches: true, New: func(tb testing.TB) sourcetest.Backend {
		dir := tb.TempDir()
		path := filepath.Join(dir, "boot.json")
		p := &profiles{all: map[sources.EKHash]bool{}}
		change := func(f func()) { write(tb, path, p.change(f)) }
		change(func() {})
		return sourcetest.Backend{
			Open: func() sources.Source {
				return newSource(tb, bootpolicy.Config{
					Path: path, Quote: &quote, ListConfig: web.ListConfig{PollInterval: time.Minute},
				})
			},
			List:    func(ev *sources.Evidence, _ sources.Attributes) { change(p.set(ev, true)) },
			Unlist:  func(ev *sources.Evidence) { change(p.set(ev, false)) },
			Break:   func() { must(tb, os.Rename(path, path+".away")) },
			Mend:    func() { must(tb, os.Rename(path+".away", path)) },
			Content: func() any { return sourcetest.Tree(dir) },
		}
	}})
}

// A server is a web server with a file whose content can be changed.
type server struct {
	*httptest.Server
	ca     string
	file   atomic.Pointer[string]
	broken atomic.Bool
}

func newServer(tb testing.TB) *server {
	tb.Helper()
	s := &server{}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if s.broken.Load() {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, *s.file.Load())
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	tb.Cleanup(s.Close)
	s.ca = filepath.Join(tb.TempDir(), "ca.pem")
	must(tb, os.WriteFile(s.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600))
	return s
}

func (s *server) publish(text string) { s.file.Store(&text) }

func (s *server) config() bootpolicy.Config {
	return bootpolicy.Config{Quote: &quote, ListConfig: web.ListConfig{URL: s.URL + "/boot.json", CAPath: s.ca}}
}

// A constructor reports all mistakes at once, each with its key.
func TestNew(t *testing.T) {
	all := web.ListConfig{
		CAPath: "/x", ClientCertPath: "/x", ClientKeyPath: "/x", BearerTokenPath: "/x", Auth: "spiffe", ServerID: "x",
		Timeout: 1, CachePath: "/x", SignatureURL: "x", PublicKeyPath: "/x", ListID: "x",
	}
	const url = "https://allowlist.example.org/boot.json"
	for _, tt := range []struct {
		name string
		cfg  bootpolicy.Config
		want []string
	}{
		{"nothing", bootpolicy.Config{}, []string{"quote is missing", `path write either path = "/etc/tpm/boot.json" or url = "https://`}},
		{"both", bootpolicy.Config{Path: "/x", Quote: &quote, ListConfig: web.ListConfig{URL: url}}, []string{"path write either"}},
		{"a web server's keys with a file", bootpolicy.Config{Path: "/x", Quote: &quote, ListConfig: all}, []string{
			"ca_path cannot be combined with path", "client_cert_path cannot", "client_key_path cannot", "bearer_token_path cannot",
			"auth cannot", "server_id cannot", "timeout cannot", "cache_path cannot", "signature_url cannot",
			"public_key_path cannot", "list_id cannot",
		}},
		{"times", bootpolicy.Config{Path: "/x", Quote: &quote, ListConfig: web.ListConfig{PollInterval: -1}}, []string{"poll_interval is -1ns"}},
		{"bytes", bootpolicy.Config{Path: "/x", Quote: &quote, ListConfig: web.ListConfig{MaxBytes: bootprofiles.MaxBytes + 1}}, []string{"max_bytes is 4194305, but must be from 1 to 4194304"}},
		{"a web server", bootpolicy.Config{Quote: &quote, ListConfig: web.ListConfig{URL: "http://x/", MaxBytes: -1}}, []string{"max_bytes is -1", "url is not https://"}},
		{"half a signature", bootpolicy.Config{Quote: &quote, ListConfig: web.ListConfig{URL: url, ListID: "x"}}, []string{"signature_url is missing", "public_key_path is missing"}},
	} {
		s, err := bootpolicy.New(tt.cfg)
		if err == nil || s != nil {
			t.Errorf("%s: accepted", tt.name)
			continue
		}
		for _, want := range tt.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %q", tt.name, err, want)
			}
		}
	}
	newSource(t, bootpolicy.Config{Path: "/x", Quote: &quote})
	newSource(t, bootpolicy.Config{Quote: &quote, ListConfig: web.ListConfig{URL: url}})
}

// A file of profiles that is torn, replayed, expired or misspelt leaves the last good profiles in
// use: otherwise it would admit machines that those refuse, or refuse a fleet.
func TestLastGood(t *testing.T) {
	old, fresh := booted(usual("kernel 1")), booted(usual("kernel 2"))
	good := `{"serial": 7, "profiles": [{"name": "web", ` + pcrs(4, value(old, 4)) + `}]}`
	both := `{"name": "web", ` + pcrs(4, value(old, 4), value(fresh, 4)) + `}`
	for name, bad := range map[string]struct{ text, want string }{
		"torn":                 {good[:len(good)-10], "the file is cut off"},
		"empty":                {"", "not a JSON file"},
		"replayed":             {`{"serial": 6, "profiles": [` + both + `]}`, "serial 6 after serial 7"},
		"without a serial":     {`{"profiles": [` + both + `]}`, "without a serial after serial 7"},
		"changed":              {`{"serial": 7, "profiles": [` + both + `]}`, "different entries with the same serial 7"},
		"expired":              {`{"serial": 8, "expires": "2020-01-01T00:00:00Z", "profiles": [` + both + `]}`, "expired at 2020-01-01"},
		"misspelt":             {`{"serial": 8, "profiles": [{"name": "web", "image": {"only": ["` + hexOf("x") + `"]}, ` + pcrs(4, value(fresh, 4)) + `}]}`, `the member "image" is not known`},
		"PCR 9":                {`{"serial": 8, "profiles": [` + both + `, {"name": "nine", ` + pcrs(9, hexOf("x")) + `}]}`, "machines do not quote PCR 9"},
		"another bank":         {`{"serial": 8, "profiles": [{"name": "web", "pcrs": {"sha384": {"4": ["` + strings.Repeat("0", 96) + `"]}}}]}`, "machines quote the bank sha256"},
		"a list of machines":   {`{"serial": 8, "keys": []}`, `the member "keys" is not known`},
		"no condition":         {`{"serial": 8, "profiles": [{"name": "web"}]}`, "no condition"},
		"longer than it may":   {`{"serial": 8, "comment": "` + strings.Repeat("x", bootprofiles.MaxBytes) + `", "profiles": []}`, "too long"},
		"null for a condition": {`{"serial": 8, "profiles": [{"name": "web", "pcrs": null}]}`, "null"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "boot.json")
			write(t, path, good)
			s := newSource(t, bootpolicy.Config{Path: path, Quote: &quote})
			must(t, s.Load(t.Context()))
			write(t, path, bad.text)
			if err := s.Load(t.Context()); err == nil || !strings.Contains(err.Error(), bad.want) || !strings.Contains(err.Error(), path) && !strings.Contains(err.Error(), "serial") && !strings.Contains(err.Error(), "expired") {
				t.Errorf("Load: %v, want %q", err, bad.want)
			}
			wantListed(t, s, old)
			wantNot(t, s, fresh)
			write(t, path, `{"serial": 9, "profiles": [`+both+`]}`)
			must(t, s.Load(t.Context()))
			wantListed(t, s, fresh)
		})
	}
}

// No profile may ask for the log if the server does not: no machine could ever meet it, and
// nobody would be told why.
func TestLogIsOff(t *testing.T) {
	path := filepath.Join(t.TempDir(), "boot.json")
	s := newSource(t, bootpolicy.Config{Path: path, Quote: &bootprofiles.Quote{Bank: "sha256", PCRs: []int{4, 7}}})
	for _, text := range []string{profile(`"secureboot": {"enabled": true}`), profile(`"images": {"only": ["` + hexOf("x") + `"]}`)} {
		write(t, path, text)
		if err := s.Load(t.Context()); err == nil || !strings.Contains(err.Error(), `write event_log = "optional" or "required" in the quote block`) {
			t.Errorf("Load: %v", err)
		}
	}
}

// When a file expires while it is in use, the source cannot tell. When only one of its profiles
// expires, that profile is not met.
func TestExpiry(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	path, b := filepath.Join(t.TempDir(), "boot.json"), booted(usual("kernel"))
	write(t, path, `{"expires": "2026-01-03T00:00:00Z", "profiles": [
		{"name": "web", "expires": "2026-01-02T00:00:00Z", `+pcrs(4, value(b, 4))+`}]}`)
	s := newSource(t, bootpolicy.Config{Path: path, Quote: &quote, ListConfig: web.ListConfig{
		Now: func() time.Time { return now }, MaxStaleness: 1000 * time.Hour,
	}})
	must(t, s.Load(t.Context()))
	wantListed(t, s, b)
	now = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	wantNot(t, s, b, "web: it expired at 2026-01-02T00:00:00Z")
	now = time.Date(2026, 1, 3, 0, 0, 0, 0, time.UTC)
	if v, err := s.Check(t.Context(), machine(b)); err == nil || v.Listed || !strings.Contains(err.Error(), "expired at 2026-01-03") {
		t.Errorf("%+v, %v", v, err)
	}
}

// A change takes effect without a restart, from a file and from a web server, by the one poll
// loop of a Set. Before that it is refused, and a rule on trial says what would have been.
func TestHotReload(t *testing.T) {
	known, stranger := booted(usual("kernel 1")), booted(usual("kernel 2"))
	before := profile(pcrs(4, value(known, 4)))
	after := profile(pcrs(4, value(known, 4), value(stranger, 4)))
	path := filepath.Join(t.TempDir(), "boot.json")
	server := newServer(t)
	fromServer := server.config()
	fromServer.PollInterval = 50 * time.Millisecond
	for _, tt := range []struct {
		name    string
		cfg     bootpolicy.Config
		publish func(string)
	}{
		{"file", bootpolicy.Config{Path: path, Quote: &quote}, func(text string) { write(t, path, text) }},
		{"web server", fromServer, server.publish},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.publish(before)
			changed := make(chan struct{}, 1)
			set, err := admission.NewSet([]admission.Member{
				{Name: "golden", Kind: "boot_policy", Source: newSource(t, tt.cfg)},
				{Name: "inventory", Kind: "fake", Source: sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))},
			}, policy.Policy{Allow: []policy.Rule{
				{Name: "production", All: []string{"golden", "inventory"}},
				{Name: "next", All: []string{"golden"}, Trial: true},
			}}, admission.Options{Changed: func() {
				select {
				case changed <- struct{}{}:
				default:
				}
			}})
			must(t, err)
			defer set.Close()
			set.Start(t.Context(), nil)
			decide := func(b *sources.Boot) policy.Decision {
				ev := machine(b)
				asked := *ev
				asked.Proof = nil
				if d := set.BeforeChallenge(t.Context(), &asked); d.Outcome != policy.Challenge {
					t.Fatalf("before the challenge: %v: %s", d.Outcome, d.Explain())
				}
				return set.AfterChallenge(t.Context(), ev)
			}
			if d := decide(known); d.Outcome != policy.Admitted || len(d.Trials) != 1 || !d.Trials[0].Holds {
				t.Errorf("%v: %s", d.Outcome, d.Explain())
			}
			d := decide(stranger)
			if d.Outcome != policy.Refused || !strings.Contains(d.Explain(), "golden: not listed (meets no profile; web: PCR 4 has the value") {
				t.Errorf("%v: %s", d.Outcome, d.Explain())
			}
			tt.publish(after)
			for late := time.After(time.Minute); ; {
				if d := decide(stranger); d.Outcome == policy.Admitted {
					break
				}
				select {
				case <-changed:
				case <-late:
					t.Fatal("the change has not taken effect")
				}
			}
		})
	}
}

// A rule with enforce = false refuses nobody, and the log of the admission has what it would
// have done and why.
func TestTrial(t *testing.T) {
	b := booted(usual("kernel 2"))
	set, err := admission.NewSet([]admission.Member{
		{Name: "golden", Kind: "boot_policy", Source: open(t, profile(pcrs(4, value(booted(usual("kernel 1")), 4))))},
		{Name: "inventory", Kind: "fake", Source: sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))},
	}, policy.Policy{Allow: []policy.Rule{
		{Name: "next", All: []string{"golden", "inventory"}, Trial: true},
		{Name: "production", All: []string{"inventory"}},
	}}, admission.Options{})
	must(t, err)
	defer set.Close()
	set.Start(t.Context(), nil)
	d := set.AfterChallenge(t.Context(), machine(b))
	if d.Outcome != policy.Admitted || len(d.Trials) != 1 || d.Trials[0].Holds || d.Trials[0].Unsure {
		t.Errorf("%v, trials %+v", d.Outcome, d.Trials)
	}
	if !strings.Contains(d.Explain(), "golden: not listed (meets no profile; web: PCR 4 has the value "+value(b, 4)) {
		t.Errorf("%s", d.Explain())
	}
}

// A list that was accepted under another quote block may need what machines are no longer asked
// for: it must not be used from the cache.
func TestCacheOfAnotherQuote(t *testing.T) {
	s := newServer(t)
	b := booted(usual("kernel"))
	s.publish(profile(pcrs(4, value(b, 4)) + `, "secureboot": {"enabled": true}`))
	cfg := s.config()
	cfg.CachePath = filepath.Join(t.TempDir(), "boot.db")
	must(t, newSource(t, cfg).Load(t.Context()))
	s.broken.Store(true)
	again := newSource(t, cfg)
	_ = again.Load(t.Context())
	wantListed(t, again, b)
	cfg.Quote = &bootprofiles.Quote{Bank: "sha256", PCRs: []int{4, 7}}
	other := newSource(t, cfg)
	if err := other.Load(t.Context()); err == nil {
		t.Error("Load succeeds without the web server")
	}
	if v, err := other.Check(t.Context(), machine(b)); err == nil || v.Listed {
		t.Errorf("%+v, %v", v, err)
	}
}

// Watch of profiles behind a web server only waits.
func TestWatchOfWebServer(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("over"))
	if err := newSource(t, newServer(t).config()).Watch(ctx, func() { t.Error("a change is told") }); err != nil {
		t.Error(err)
	}
}
