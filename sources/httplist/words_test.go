package httplist_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// Why a list is stale is what has kept it from being confirmed: "stale since" alone
// sends whoever reads it to another line of the log.
func TestStaleSaysWhy(t *testing.T) {
	o := webtest.NewServer(t, nil)
	c := newClock()
	cfg := configFor(o)
	cfg.Now, cfg.MaxStaleness = c.Now, time.Hour
	o.Answer(http.StatusOK, webtest.List("", "one"))
	s := loaded(t, cfg)
	o.Answer(http.StatusForbidden, "")
	if err := s.Load(t.Context()); err == nil {
		t.Fatal("403 is no error")
	}
	c.move(2 * time.Hour)
	webtest.WantCannotTell(t, s, "the list is stale: it was last confirmed at")
	webtest.WantCannotTell(t, s, "the list's server answered 403 Forbidden to "+o.URL)
}

// A list that has lost most of its machines, a misspelt field, and a machine that is
// "revoked" in a list that lists it are served as they are, and said.
func TestWarningsOfTheList(t *testing.T) {
	o := webtest.NewServer(t, nil)
	var names []string
	for i := range 30 {
		names = append(names, strings.Repeat("x", i+1))
	}
	o.Answer(http.StatusOK, webtest.List("", names...))
	s := loaded(t, configFor(o))
	if w := s.Status().Warnings; len(w) != 0 {
		t.Fatalf("%q", w)
	}
	o.Answer(http.StatusOK, `{"Serial": 5, "keys": [{"hash": "`+webtest.Hash("one")+`", "name": "one", "revoked": true}]}`)
	for range 2 {
		refresh(t, s)
		w := strings.Join(s.Status().Warnings, "\n")
		for _, want := range []string{
			`is it meant to be "serial"?`, `the field "revoked" means nothing, and the TPM is listed all the same`,
			"it has 1 entries now and had 30 before, of which 30 are gone",
		} {
			if !strings.Contains(w, want) {
				t.Errorf("%s\nwant %s", w, want)
			}
		}
		webtest.WantListed(t, s, "one")
	}
	o.Answer(http.StatusOK, webtest.List("", "one", "two"))
	refresh(t, s)
	if w := s.Status().Warnings; len(w) != 0 {
		t.Errorf("%q", w)
	}
}
