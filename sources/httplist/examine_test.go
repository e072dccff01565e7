package httplist_test

import (
	"net/http"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// Examining a server's list shows what is in the server's cache and until when it may be used, and
// neither writes the cache nor uses the network: the server has a lock and a serial to lose.
func TestExamineTheCache(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 7, `)
	before, err := os.ReadFile(cfg.CachePath)
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // the server runs as another user
		if err := os.Chown(cfg.CachePath, 4711, 4711); err != nil {
			t.Fatal(err)
		}
	}
	at := c.now
	c.move(time.Hour)
	o.Serve(func(http.ResponseWriter, *http.Request) { t.Error("the web server was asked") })
	s := newSource(t, cfg)
	s.Examine(false)
	refresh(t, s)
	webtest.WantListed(t, s, "one")
	if st := s.Status(); st.Serial != 7 || !st.Stale.Equal(at.Add(24*time.Hour)) || len(st.Warnings) > 0 {
		t.Errorf("the status is %+v", st)
	}
	c.move(24 * time.Hour)
	webtest.WantCannotTell(t, s, "stale")

	// With the network, it sees what the server will load next.
	o.Answer(http.StatusOK, webtest.List(`"serial": 8, `, "two"))
	s = newSource(t, cfg)
	s.Examine(true)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
	if after, err := os.ReadFile(cfg.CachePath); err != nil || !slices.Equal(before, after) {
		t.Errorf("the server's cache was written: %v", err)
	}

	// Without a cache, nothing is known.
	cfg.CachePath = ""
	s = newSource(t, cfg)
	s.Examine(false)
	webtest.WantError(t, s.Load(t.Context()), "the network was not asked")
	webtest.WantCannotTell(t, s, "no list has been loaded yet")
}
