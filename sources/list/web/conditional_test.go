package web_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// An unchanged list is confirmed by a 304 without being sent again, with
// whichever validators the server has given.
func TestConditional(t *testing.T) {
	for name, tt := range map[string]struct {
		given, asked [2]string // ETag and Last-Modified, If-None-Match and If-Modified-Since
	}{
		"etag":      {[2]string{`"1"`, ""}, [2]string{`"1"`, ""}},
		"weak etag": {[2]string{`W/"1"`, ""}, [2]string{`W/"1"`, ""}},
		"date": {
			[2]string{"", "Mon, 02 Jan 2006 15:04:05 GMT"},
			[2]string{"", "Mon, 02 Jan 2006 15:04:05 GMT"},
		},
		"both": {
			[2]string{`"1"`, "Mon, 02 Jan 2006 15:04:05 GMT"},
			[2]string{`"1"`, "Mon, 02 Jan 2006 15:04:05 GMT"},
		},
		"none":       {},
		"no etag":    {[2]string{"1", ""}, [2]string{}},
		"no date":    {[2]string{"", "yesterday"}, [2]string{}},
		"long etag":  {[2]string{`"` + webtest.Hash("x") + webtest.Hash("x") + fmt.Sprintf("%500d", 1) + `"`, ""}, [2]string{}},
		"of now":     {[2]string{`"1"`, time.Now().UTC().Format(http.TimeFormat)}, [2]string{}},
		"to come":    {[2]string{"", time.Now().UTC().Add(time.Hour).Format(http.TimeFormat)}, [2]string{}},
		"other blah": {[2]string{`"1"`, "blah"}, [2]string{`"1"`, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			o := webtest.NewServer(t, nil)
			var asked [2]string
			o.Serve(func(w http.ResponseWriter, r *http.Request) {
				asked = [2]string{r.Header.Get("If-None-Match"), r.Header.Get("If-Modified-Since")}
				w.Header().Set("ETag", tt.given[0])
				w.Header().Set("Last-Modified", tt.given[1])
				if asked != [2]string{} {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				_, _ = io.WriteString(w, webtest.List("", "one"))
			})
			c := newClock()
			cfg := configFor(o)
			cfg.Now = c.Now
			s := loaded(t, cfg)
			if asked != [2]string{} {
				t.Errorf("the first request is conditional: %q", asked)
			}
			before := s.Status()
			c.move(time.Minute)
			refresh(t, s)
			if asked != tt.asked {
				t.Errorf("asked with %q, want %q", asked, tt.asked)
			}
			webtest.WantListed(t, s, "one")
			if d := s.Status().Confirmed.Sub(before.Confirmed); d != time.Minute {
				t.Errorf("confirmed %v later, want a minute", d)
			}
		})
	}
}

// A changed ETag brings the changed list, and a refused one is asked for again:
// its ETag is not remembered.
func TestETagChanges(t *testing.T) {
	o := webtest.NewServer(t, nil)
	etag, text := `"1"`, webtest.List(`"serial": 1, `, "one")
	var asked string
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("If-None-Match")
		w.Header().Set("ETag", etag)
		if asked == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, text)
	})
	s := loaded(t, configFor(o))
	etag, text = `"2"`, webtest.List(`"serial": 2, `, "two")
	refresh(t, s)
	webtest.WantListed(t, s, "two")
	etag, text = `"3"`, "{"
	for range 2 {
		webtest.WantError(t, s.Load(t.Context()), "the list: ")
		if asked != `"2"` {
			t.Errorf("asked with %q: a list that was refused is held for the current one", asked)
		}
	}
}

// A 304 that names another version than the one that is held confirms nothing,
// and the next request asks for the whole list.
func TestNotModifiedOfAnother(t *testing.T) {
	o := webtest.NewServer(t, nil)
	lying := true
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		switch asked := r.Header.Get("If-None-Match"); {
		case asked != "" && lying:
			w.Header().Set("ETag", `"2"`)
			w.WriteHeader(http.StatusNotModified)
		case asked != "":
			w.Header().Set("ETag", `W/"3"`)
			w.WriteHeader(http.StatusNotModified)
		case lying:
			w.Header().Set("ETag", `"1"`)
			_, _ = io.WriteString(w, webtest.List("", "one"))
		}
	})
	s := loaded(t, configFor(o))
	webtest.WantError(t, s.Load(t.Context()), "named another version")
	lying = false
	o.Answer(http.StatusOK, webtest.List("", "two"), "ETag", `"3"`)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
}

// A compressing server weakens the ETag; that is the same version.
func TestWeakened(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List("", "one"), "ETag", `"1"`)
	s := loaded(t, configFor(o))
	o.Answer(http.StatusNotModified, "", "ETag", `W/"1"`)
	refresh(t, s)
	webtest.WantListed(t, s, "one")
}
