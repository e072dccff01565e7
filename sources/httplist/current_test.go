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
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A clock is set by tests.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Now()} }

func (c *clock) Now() time.Time { return c.now }

func (c *clock) move(d time.Duration) { c.now = c.now.Add(d) }

// A list that somebody has kept a copy of is not served again: its serial is
// lower, or the same with other machines, or gone.
func TestReplay(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List(`"serial": 5, `, "one"))
	s := loaded(t, configFor(o))
	for _, replayed := range []string{
		webtest.List(`"serial": 4, `, "two"), webtest.List(`"serial": 4, `, "one"), webtest.List(`"serial": 5, `, "two"),
		webtest.List(`"serial": 5, `, "one", "two"), webtest.List("", "one"), webtest.List("", "two"),
	} {
		o.Answer(http.StatusOK, replayed)
		webtest.WantError(t, s.Load(t.Context()), "replay")
		webtest.WantListed(t, s, "one")
	}
	o.Answer(http.StatusOK, webtest.List(`"serial": 5, `, "one"))
	refresh(t, s)
	o.Answer(http.StatusOK, webtest.List(`"serial": 6, `, "two"))
	refresh(t, s)
	webtest.WantListed(t, s, "two")
	if st := s.Status(); st.Serial != 6 || st.Entries != 1 {
		t.Errorf("the status is %+v", st)
	}
}

// An old list admits nobody: after max_staleness without an answer, and while the last answer is in
// the future by the clock, the source cannot tell. A new answer ends that.
func TestStaleness(t *testing.T) {
	o := webtest.NewServer(t, nil)
	c := newClock()
	cfg := configFor(o)
	cfg.Now, cfg.MaxStaleness = c.Now, time.Hour
	o.Answer(http.StatusOK, webtest.List("", "one"), "ETag", `"1"`)
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
			webtest.WantListed(t, s, "one")
		} else {
			webtest.WantCannotTell(t, s, tt.stale)
		}
		c.move(-tt.jump)
	}
	// What a server refuses to confirm gets older; a 304 and a 200 confirm.
	c.move(50 * time.Minute)
	o.Answer(http.StatusOK, "{")
	webtest.WantError(t, s.Load(t.Context()), "the list: ")
	c.move(50 * time.Minute)
	webtest.WantCannotTell(t, s, "stale")
	o.Answer(http.StatusNotModified, "")
	refresh(t, s)
	webtest.WantListed(t, s, "one")
	c.move(2 * time.Hour)
	webtest.WantCannotTell(t, s, "stale")
	o.Answer(http.StatusOK, webtest.List("", "one", "two"))
	refresh(t, s)
	webtest.WantListed(t, s, "one", "two")
}

// A list is good until it expires, whoever confirms it. Its expiry is reported as a failure, so
// that somebody publishes another one.
func TestExpires(t *testing.T) {
	o := webtest.NewServer(t, nil)
	c := newClock()
	cfg := configFor(o)
	cfg.Now = c.Now
	until := c.now.Add(time.Minute).UTC()
	o.Answer(http.StatusOK, webtest.List(fmt.Sprintf(`"expires": %q, `, until.Format(time.RFC3339Nano)), "one"), "ETag", `"1"`)
	s := loaded(t, cfg)
	webtest.WantListed(t, s, "one")
	c.move(time.Minute)
	webtest.WantCannotTell(t, s, "the list expired")
	if st := s.Status(); !st.Expires.Equal(until) {
		t.Errorf("expires at %v, want %v", st.Expires, until)
	}
	for range 2 {
		o.Answer(http.StatusNotModified, "")
		webtest.WantError(t, s.Load(t.Context()), "the list expired", "publish one with a later date")
		webtest.WantCannotTell(t, s, "the list expired")
	}
	o.Answer(http.StatusOK, webtest.List("", "two"))
	refresh(t, s)
	webtest.WantListed(t, s, "two")
}

// What an operator reads in a status is what serves.
func TestStatus(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List(`"serial": 9, `, "one", "two"))
	begun := time.Now()
	s := newSource(t, configFor(o))
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
	o := webtest.NewServer(t, nil)
	turn := 0
	o.Serve(func(w http.ResponseWriter, _ *http.Request) {
		machines := []string{"one", "three"}
		if turn++; turn%2 == 0 {
			machines = []string{"two", "three"}
		}
		_, _ = io.WriteString(w, webtest.List(fmt.Sprintf(`"serial": %d, `, turn), machines...))
	})
	s := loaded(t, configFor(o))
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
	one, err1 := s.Check(t.Context(), webtest.Machine("one"))
	three, err3 := s.Check(t.Context(), webtest.Machine("three"))
	two, err2 := s.Check(t.Context(), webtest.Machine("two"))
	after := s.Status().Serial
	if err1 != nil || err2 != nil || err3 != nil || !three.Listed {
		t.Errorf("errors %v, %v, %v; three is listed: %v", err1, err2, err3, three.Listed)
	}
	if before == after && (one.Listed == two.Listed || one.Listed != (before%2 == 1)) {
		t.Errorf("serial %d lists one: %v, two: %v", before, one.Listed, two.Listed)
	}
	return after
}
