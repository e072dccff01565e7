package httplist_test

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A follower of a server's list has what is in the server's cache, as soon as the server has
// written it, and goes stale together with the server. It neither writes the cache nor uses the
// network.
func TestFollowTheCache(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 7, `)
	s := newSource(t, cfg)
	s.Follow()
	if every := s.Schedule().Every; every > 2*time.Second {
		t.Errorf("it looks every %v", every)
	}
	refresh(t, s)
	webtest.WantListed(t, s, "one")

	server := loaded(t, cfg)
	c.move(time.Hour)
	o.Answer(http.StatusOK, webtest.List(`"serial": 8, `, "two"))
	refresh(t, server)
	before, err := os.ReadFile(cfg.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	o.Serve(func(http.ResponseWriter, *http.Request) { t.Error("the web server was asked") })
	webtest.WantListed(t, s, "one")
	at := c.now
	refresh(t, s)
	webtest.WantListed(t, s, "two")
	c.move(time.Hour)
	refresh(t, s) // the same file: its confirmation is no newer
	if st := s.Status(); st.Serial != 8 || !st.Stale.Equal(at.Add(24*time.Hour)) || len(st.Warnings) > 0 {
		t.Errorf("the status is %+v", st)
	}
	if after, err := os.ReadFile(cfg.CachePath); err != nil || !slices.Equal(before, after) {
		t.Errorf("the server's cache was written: %v", err)
	}
	c.move(24 * time.Hour)
	webtest.WantCannotTell(t, s, "stale")
}

// A list whose cache is not there, or is torn, is not known, and never taken for an empty one.
func TestFollowNoCache(t *testing.T) {
	cfg, _, _ := cached(t, "")
	cut := cfg
	cut.CachePath = filepath.Join(t.TempDir(), "cut.db")
	content, err := os.ReadFile(cfg.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cut.CachePath, content[:len(content)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	none, missing := cfg, cfg
	none.CachePath, missing.CachePath = "", cfg.CachePath+".other"
	for name, tt := range map[string]struct {
		cfg  httplist.Config
		says string
	}{
		"none": {none, "has no cache_path"}, "missing": {missing, "has not written it yet"}, "cut": {cut, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSource(t, tt.cfg)
			s.Follow()
			webtest.WantError(t, s.Load(t.Context()), tt.says)
			webtest.WantCannotTell(t, s, "no list has been loaded yet")
		})
	}

	// A cache that breaks later leaves the last good list, as in the server.
	s := newSource(t, cfg)
	s.Follow()
	refresh(t, s)
	if err := os.Truncate(cfg.CachePath, 4096); err != nil {
		t.Fatal(err)
	}
	webtest.WantError(t, s.Load(t.Context()), "cache")
	webtest.WantListed(t, s, "one")
}

// A server that cannot write its cache, because the disk is full, serves a newer list than the cache has.
// Whoever follows it must not take a machine on the newer list for a machine that is not listed.
func TestFollowWhileTheCacheCannotBeWritten(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 7, `)
	server, s := loaded(t, cfg), newSource(t, cfg)
	s.Follow()
	refresh(t, s)
	draft := cfg.CachePath + ".new"
	if err := os.MkdirAll(filepath.Join(draft, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	c.move(time.Minute)
	o.Answer(http.StatusOK, webtest.List(`"serial": 8, `, "two"))
	refresh(t, server)
	webtest.WantListed(t, server, "two")
	webtest.WantError(t, s.Load(t.Context()), "could not write the list that it serves")
	started := newSource(t, cfg)
	started.Follow()
	webtest.WantError(t, started.Load(t.Context()), "could not write the list that it serves")
	if err := os.RemoveAll(draft); err != nil {
		t.Fatal(err)
	}
	c.move(time.Minute)
	refresh(t, server)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
}

// Whoever follows a server learns when the web server was last seen to have the list, without a list being
// written for that.
func TestFollowTheConfirmation(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 7, `)
	server, s := loaded(t, cfg), newSource(t, cfg)
	s.Follow()
	before, err := os.ReadFile(cfg.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		c.move(time.Minute)
		refresh(t, server)
		at := c.now
		c.move(time.Minute)
		refresh(t, s)
		if got := s.Status().Confirmed; !got.Equal(at) {
			t.Errorf("confirmed at %v, want %v", got, at)
		}
	}
	if after, err := os.ReadFile(cfg.CachePath); err != nil || !slices.Equal(before, after) {
		t.Errorf("the cache was written: %v", err)
	}
	fails(o)
	at := s.Status().Confirmed
	c.move(time.Minute)
	if err := server.Load(t.Context()); err == nil {
		t.Error("the web server has answered")
	}
	refresh(t, s)
	if got := s.Status().Confirmed; !got.Equal(at) {
		t.Errorf("confirmed at %v, though the web server was down since %v", got, at)
	}
}
