package httplist_test

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
)

// A clock is set by tests.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Now()} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) move(d time.Duration) { c.now = c.now.Add(d) }

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
		"long etag":  {[2]string{`"` + hash("x") + hash("x") + fmt.Sprintf("%500d", 1) + `"`, ""}, [2]string{}},
		"of now":     {[2]string{`"1"`, time.Now().UTC().Format(http.TimeFormat)}, [2]string{}},
		"to come":    {[2]string{"", time.Now().UTC().Add(time.Hour).Format(http.TimeFormat)}, [2]string{}},
		"other blah": {[2]string{`"1"`, "blah"}, [2]string{`"1"`, ""}},
	} {
		t.Run(name, func(t *testing.T) {
			o := newOrigin(t, nil)
			var asked [2]string
			o.serve(func(w http.ResponseWriter, r *http.Request) {
				asked = [2]string{r.Header.Get("If-None-Match"), r.Header.Get("If-Modified-Since")}
				w.Header().Set("ETag", tt.given[0])
				w.Header().Set("Last-Modified", tt.given[1])
				if asked != [2]string{} {
					w.WriteHeader(http.StatusNotModified)
					return
				}
				_, _ = io.WriteString(w, list("", "one"))
			})
			c := newClock()
			cfg := o.config()
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
			wantListed(t, s, "one")
			if d := s.Status().Confirmed.Sub(before.Confirmed); d != time.Minute {
				t.Errorf("confirmed %v later, want a minute", d)
			}
		})
	}
}

// A changed ETag brings the changed list, and a refused one is asked for again:
// its ETag is not remembered.
func TestETagChanges(t *testing.T) {
	o := newOrigin(t, nil)
	etag, text := `"1"`, list(`"serial": 1, `, "one")
	var asked string
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("If-None-Match")
		w.Header().Set("ETag", etag)
		if asked == etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = io.WriteString(w, text)
	})
	s := loaded(t, o.config())
	etag, text = `"2"`, list(`"serial": 2, `, "two")
	refresh(t, s)
	wantListed(t, s, "two")
	etag, text = `"3"`, "{"
	for range 2 {
		wantError(t, s.Load(t.Context()), "the list: ")
		if asked != `"2"` {
			t.Errorf("asked with %q: a list that was refused is held for the current one", asked)
		}
	}
}

// A 304 that names another version than the one that is held confirms nothing,
// and the next request asks for the whole list.
func TestNotModifiedOfAnother(t *testing.T) {
	o := newOrigin(t, nil)
	lying := true
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		switch asked := r.Header.Get("If-None-Match"); {
		case asked != "" && lying:
			w.Header().Set("ETag", `"2"`)
			w.WriteHeader(http.StatusNotModified)
		case asked != "":
			w.Header().Set("ETag", `W/"3"`)
			w.WriteHeader(http.StatusNotModified)
		case lying:
			w.Header().Set("ETag", `"1"`)
			_, _ = io.WriteString(w, list("", "one"))
		}
	})
	s := loaded(t, o.config())
	wantError(t, s.Load(t.Context()), "named another version")
	lying = false
	o.answer(http.StatusOK, list("", "two"), "ETag", `"3"`)
	refresh(t, s)
	wantListed(t, s, "two")
}

// A compressing server weakens the ETag; that is the same version.
func TestWeakened(t *testing.T) {
	o := newOrigin(t, nil)
	o.answer(http.StatusOK, list("", "one"), "ETag", `"1"`)
	s := loaded(t, o.config())
	o.answer(http.StatusNotModified, "", "ETag", `W/"1"`)
	refresh(t, s)
	wantListed(t, s, "one")
}

// A list that somebody has kept a copy of is not served again: its serial is
// lower, or the same with other machines, or gone.
func TestReplay(t *testing.T) {
	o := newOrigin(t, nil)
	o.answer(http.StatusOK, list(`"serial": 5, `, "one"))
	s := loaded(t, o.config())
	for _, replayed := range []string{
		list(`"serial": 4, `, "two"), list(`"serial": 4, `, "one"), list(`"serial": 5, `, "two"),
		list(`"serial": 5, `, "one", "two"), list("", "one"), list("", "two"),
	} {
		o.answer(http.StatusOK, replayed)
		wantError(t, s.Load(t.Context()), "replay")
		wantListed(t, s, "one")
	}
	o.answer(http.StatusOK, list(`"serial": 5, `, "one"))
	refresh(t, s)
	o.answer(http.StatusOK, list(`"serial": 6, `, "two"))
	refresh(t, s)
	wantListed(t, s, "two")
	if st := s.Status(); st.Serial != 6 || st.Entries != 1 {
		t.Errorf("the status is %+v", st)
	}
}

// An old list admits nobody: after max_staleness without an answer, and while the
// clock says that the last answer is still to come, nothing can be told. An
// answer puts that right.
func TestStaleness(t *testing.T) {
	o := newOrigin(t, nil)
	c := newClock()
	cfg := o.config()
	cfg.Now, cfg.MaxStaleness = c.Now, time.Hour
	o.answer(http.StatusOK, list("", "one"), "ETag", `"1"`)
	s := loaded(t, cfg)
	for _, tt := range []struct {
		jump  time.Duration
		stale string
	}{
		{0, ""},
		{time.Hour, ""},
		{time.Hour + 1, "it was last confirmed at"},
		{1000 * time.Hour, "it was last confirmed at"},
		{-time.Second, ""},
		{-time.Minute, "in the future"},
		{-1000 * time.Hour, "in the future"},
	} {
		c.move(tt.jump)
		if tt.stale == "" {
			wantListed(t, s, "one")
		} else {
			wantCannotTell(t, s, tt.stale)
		}
		c.move(-tt.jump)
	}
	// What a server refuses to confirm gets older; a 304 and a 200 confirm.
	c.move(50 * time.Minute)
	o.answer(http.StatusOK, "{")
	wantError(t, s.Load(t.Context()), "the list: ")
	c.move(50 * time.Minute)
	wantCannotTell(t, s, "stale")
	o.answer(http.StatusNotModified, "")
	refresh(t, s)
	wantListed(t, s, "one")
	c.move(2 * time.Hour)
	wantCannotTell(t, s, "stale")
	o.answer(http.StatusOK, list("", "one", "two"))
	refresh(t, s)
	wantListed(t, s, "one", "two")
}

// A list is good until it says that it is not, whoever confirms it; that it is not
// any more is told as a failure, so that somebody publishes another one.
func TestExpires(t *testing.T) {
	o := newOrigin(t, nil)
	c := newClock()
	cfg := o.config()
	cfg.Now = c.Now
	until := c.now.Add(time.Minute).UTC()
	o.answer(http.StatusOK, list(fmt.Sprintf(`"expires": %q, `, until.Format(time.RFC3339Nano)), "one"), "ETag", `"1"`)
	s := loaded(t, cfg)
	wantListed(t, s, "one")
	c.move(time.Minute)
	wantCannotTell(t, s, "the list expired")
	if st := s.Status(); !st.Expires.Equal(until) {
		t.Errorf("expires at %v, want %v", st.Expires, until)
	}
	for range 2 {
		o.answer(http.StatusNotModified, "")
		wantError(t, s.Load(t.Context()), "the list expired", "publish one with a later date")
		wantCannotTell(t, s, "the list expired")
	}
	o.answer(http.StatusOK, list("", "two"))
	refresh(t, s)
	wantListed(t, s, "two")
}

// What an operator reads in a status is what serves.
func TestStatus(t *testing.T) {
	o := newOrigin(t, nil)
	o.answer(http.StatusOK, list(`"serial": 9, `, "one", "two"))
	begun := time.Now()
	s := newSource(t, o.config())
	if st := s.Status(); !st.Loaded.IsZero() || st.Serial != 0 {
		t.Errorf("before it is loaded: %+v", st)
	}
	refresh(t, s)
	st := s.Status()
	if st.Entries != 2 || st.Serial != 9 || len(st.Warnings) != 0 ||
		st.Loaded.Before(begun) || st.Confirmed.Before(begun.Round(0)) {
		t.Errorf("the status is %+v", st)
	}
}

// A wholesale change while machines attest shows each of them one whole list.
func TestWholeListsOnly(t *testing.T) {
	const reloads, checks, serials = 100, 1000, 50
	o := newOrigin(t, nil)
	turn := 0
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		machines := []string{"one", "three"}
		if turn++; turn%2 == 0 {
			machines = []string{"two", "three"}
		}
		_, _ = io.WriteString(w, list(fmt.Sprintf(`"serial": %d, `, turn), machines...))
	})
	s := loaded(t, o.config())
	reloaded, done := make(chan struct{}), make(chan struct{})
	var seen atomic.Int64 // serials, while lists are being replaced
	go func() {
		defer close(done)
		last := uint64(0)
		for n := 0; ; n++ {
			if serial := checkWhole(t, s); serial != last {
				last = serial
				seen.Add(1)
			}
			select {
			case <-reloaded:
				if n >= checks {
					return
				}
			default:
			}
			runtime.Gosched() // who reloads gets its turn
		}
	}()
	for n := 0; n < reloads || seen.Load() < serials; n++ {
		refresh(t, s)
	}
	close(reloaded)
	<-done
}

// checkWhole fails the test unless one list serves as a whole, and returns its serial.
func checkWhole(t *testing.T, s *httplist.Source) uint64 {
	t.Helper()
	before := s.Status().Serial
	one, err1 := s.Check(t.Context(), machine("one"))
	three, err3 := s.Check(t.Context(), machine("three"))
	two, err2 := s.Check(t.Context(), machine("two"))
	after := s.Status().Serial
	if err1 != nil || err2 != nil || err3 != nil || !three.Listed {
		t.Errorf("errors %v, %v, %v; three is listed: %v", err1, err2, err3, three.Listed)
	}
	if before == after && (one.Listed == two.Listed || one.Listed != (before%2 == 1)) {
		t.Errorf("serial %d lists one: %v, two: %v", before, one.Listed, two.Listed)
	}
	return after
}
