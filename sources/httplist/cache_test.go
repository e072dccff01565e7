package httplist_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// cached returns a configuration with a cache in which a list of "one" is, and
// the server that it came from.
func cached(t *testing.T, fields string) (httplist.Config, *webtest.Server, *clock) {
	t.Helper()
	o, c := webtest.NewServer(t, nil), newClock()
	cfg := configFor(o)
	cfg.Now, cfg.CachePath = c.Now, filepath.Join(t.TempDir(), "cache.db")
	o.Answer(http.StatusOK, webtest.List(fields, "one"), "ETag", `"1"`)
	if st := loaded(t, cfg).Status(); len(st.Warnings) != 0 {
		t.Fatalf("the cache was not written: %q", st.Warnings)
	}
	return cfg, o, c
}

// A restart while the server is down admits the fleet, at once.
func TestRestartWithoutServer(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 7, `)
	confirmed := c.now
	o.Close()
	c.move(time.Hour)
	s := fromCache(t, cfg, "connection refused")
	webtest.WantListed(t, s, "one")
	st := s.Status()
	if st.Entries != 1 || st.Serial != 7 || !st.Confirmed.Equal(confirmed) || st.Loaded.IsZero() {
		t.Errorf("the status is %+v", st)
	}
	c.move(23*time.Hour + time.Minute)
	webtest.WantCannotTell(t, s, "stale")
}

// A server that takes the connection and hangs delays a start by a second.
func TestRestartWithServerThatHangs(t *testing.T) {
	cfg, o, _ := cached(t, "")
	o.Raw("", func(_ net.Conn, gone <-chan struct{}) { <-gone })
	begun := time.Now()
	s := fromCache(t, cfg, "deadline exceeded")
	if d := time.Since(begun); d >= web.DefaultTimeout {
		t.Errorf("the start took %v", d)
	}
	webtest.WantListed(t, s, "one")
}

// After a restart the list in the cache is confirmed by its validators, and a
// newer one takes its place in the same attempt.
func TestRestartWithServer(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 7, `)
	c.move(time.Minute)
	asked := ""
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("If-None-Match")
		w.WriteHeader(http.StatusNotModified)
	})
	if st := loaded(t, cfg).Status(); asked != `"1"` || !st.Confirmed.Equal(c.now.Round(0)) {
		t.Errorf("asked with %q, confirmed at %v", asked, st.Confirmed)
	}
	o.Answer(http.StatusOK, webtest.List(`"serial": 8, `, "two"))
	webtest.WantListed(t, loaded(t, cfg), "two")
	fails(o)
	webtest.WantListed(t, fromCache(t, cfg, "404"), "two")
}

// A list in the cache that is too old, from the future or expired serves nobody,
// but its serial still tells a replay.
func TestStaleCache(t *testing.T) {
	for _, jump := range []time.Duration{25 * time.Hour, -time.Hour} {
		cfg, o, c := cached(t, `"serial": 7, `)
		c.move(jump)
		fails(o)
		s := newSource(t, cfg)
		webtest.WantError(t, s.Load(t.Context()), "404")
		webtest.WantCannotTell(t, s, "stale")
		o.Answer(http.StatusOK, webtest.List(`"serial": 6, `, "one"))
		webtest.WantError(t, s.Load(t.Context()), "replay")
		webtest.WantCannotTell(t, s, "stale")
		o.Answer(http.StatusOK, webtest.List(`"serial": 8, `, "two"))
		refresh(t, s)
		webtest.WantListed(t, s, "two")
	}
}

// The time of the last confirmation survives a restart, so that an outage that
// spans one is counted as a whole, and a list that was confirmed is not stale.
func TestConfirmationIsKept(t *testing.T) {
	cfg, o, c := cached(t, "")
	s := loaded(t, cfg)
	c.move(20 * time.Hour)
	o.Answer(http.StatusNotModified, "")
	refresh(t, s)
	c.move(20 * time.Hour)
	fails(o)
	s = fromCache(t, cfg, "404")
	webtest.WantListed(t, s, "one")
	c.move(5 * time.Hour)
	webtest.WantCannotTell(t, s, "stale")
}

// A cache that is damaged or cannot be written only causes a warning: the list is used as without a
// cache.
func TestBadCache(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusOK, webtest.List("", "one"))
	for name, tt := range map[string]struct {
		path func(t *testing.T) string
		says string
	}{
		"garbage": {func(t *testing.T) string {
			t.Helper()
			return webtest.Write(t, "cache.db", bytes.Repeat([]byte("garbage"), 4096))
		}, "the cache was not used"},
		"no folder": {func(t *testing.T) string {
			t.Helper()
			return filepath.Join(t.TempDir(), "none", "cache.db")
		}, "the cache was not written"},
		"a folder": {func(t *testing.T) string { t.Helper(); return t.TempDir() }, "the cache was not"},
		"cut": {func(t *testing.T) string {
			t.Helper()
			cfg, _, _ := cached(t, "")
			if err := os.Truncate(cfg.CachePath, 4096); err != nil {
				t.Fatal(err)
			}
			return cfg.CachePath
		}, "the cache was not used"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := configFor(o)
			cfg.CachePath = tt.path(t)
			s := loaded(t, cfg)
			webtest.WantListed(t, s, "one")
			warnings := s.Status().Warnings
			if !slices.ContainsFunc(warnings, func(w string) bool { return strings.Contains(w, tt.says) }) {
				t.Errorf("the warnings are %q", warnings)
			}
		})
	}
}

// A cache that could not be written is tried again at each poll, and the warning
// goes when it is.
func TestCacheMends(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Publish(webtest.List("", "one"), `"1"`)
	cfg := configFor(o)
	dir := filepath.Join(t.TempDir(), "dir")
	cfg.CachePath = filepath.Join(dir, "cache.db")
	s := loaded(t, cfg)
	if st := s.Status(); len(st.Warnings) == 0 {
		t.Errorf("the warnings are %q", st.Warnings)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	refresh(t, s)
	if st := s.Status(); len(st.Warnings) != 0 {
		t.Errorf("the warnings are %q", st.Warnings)
	}
	fails(o)
	webtest.WantListed(t, fromCache(t, cfg, "404"), "one")
}

// cacheWarnings are the warnings about the cache; the lists in TestFullDisk have
// nothing in common.
func cacheWarnings(s *httplist.Source) []string {
	return slices.DeleteFunc(s.Status().Warnings, func(w string) bool { return !strings.Contains(w, "cache") })
}

// A disk that is full costs the cache and not the list: what the server has
// published serves, the log can say that a restart would not have it, and the next
// poll that finds room writes it.
func TestFullDisk(t *testing.T) {
	cfg, o, c := cached(t, `"serial": 1, `)
	s := loaded(t, cfg)
	full := limitFiles(t)
	for i, machine := range []string{"two", "three"} {
		var keys strings.Builder
		for n := range 50_000 { // too many for the room that is left
			fmt.Fprintf(&keys, `"%064x", `, n<<8+i)
		}
		fields := fmt.Sprintf(`"serial": %d, `, i+2)
		o.Publish(strings.Replace(webtest.List(fields, machine), "[", "["+keys.String(), 1), strconv.Quote(machine))
		refresh(t, s)
		webtest.WantListed(t, s, machine)
		warnings := cacheWarnings(s)
		if len(warnings) != 1 || !strings.Contains(warnings[0], "the cache was not written, so this list is lost") {
			t.Errorf("the warnings are %q", warnings)
		}
	}
	full()
	c.move(time.Minute)
	refresh(t, s)
	if warnings := cacheWarnings(s); len(warnings) != 0 {
		t.Errorf("there is room again, and the warnings are %q", warnings)
	}
	fails(o)
	webtest.WantListed(t, fromCache(t, cfg, "404"), "three")
}

// limitFiles lets no file grow beyond a megabyte, until undo, as a full disk
// does. The testing package writes small files meanwhile.
func limitFiles(t *testing.T) (undo func()) {
	t.Helper()
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &before); err != nil {
		t.Fatal(err)
	}
	set := func(limit uint64) {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: before.Max}); err != nil {
			t.Fatal(err)
		}
	}
	set(1 << 20)
	t.Cleanup(func() { set(before.Cur) })
	return func() { set(before.Cur) }
}

// A cache of another list, whose URL was configured before, does not serve.
func TestCacheOfAnother(t *testing.T) {
	cfg, o, _ := cached(t, "")
	fails(o)
	cfg.URL += "2"
	s := newSource(t, cfg)
	webtest.WantError(t, s.Load(t.Context()), "404")
	webtest.WantCannotTell(t, s, "no list")
}

// A cache that cannot be read when the server starts, since another process has it
// or its file system is not there yet, is read as soon as it can be, and until then
// a warning says so.
func TestCacheIsReadLater(t *testing.T) {
	for name, hide := range map[string]func(t *testing.T, path string) (show func()){
		"locked": lockFile, "away": moveFolder,
	} {
		t.Run(name, func(t *testing.T) {
			cfg, o, _ := cached(t, `"serial": 7, `)
			fails(o)
			show := hide(t, cfg.CachePath)
			s := newSource(t, cfg)
			for range 2 {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				err := s.Load(ctx)
				cancel()
				if warnings := s.Status().Warnings; err == nil || len(warnings) != 1 ||
					!strings.Contains(warnings[0], "the cache was not used") {
					t.Errorf("the error is %v, the warnings are %q", err, warnings)
				}
				webtest.WantCannotTell(t, s, "no list")
			}
			show()
			webtest.WantError(t, s.Load(t.Context()), "404")
			webtest.WantListed(t, s, "one")
			if warnings := s.Status().Warnings; len(warnings) != 0 {
				t.Errorf("the warnings are %q", warnings)
			}
		})
	}
}

// A list that was accepted before is not forgotten because the cache cannot be read at a start:
// when it can be read, an older list that the web server has served in the meantime is a replay,
// and the later one is used.
func TestReplayWhileCacheIsAway(t *testing.T) {
	cfg, o, _ := cached(t, `"serial": 7, `)
	show := moveFolder(t, cfg.CachePath)
	o.Publish(webtest.List(`"serial": 3, `, "stranger"), `"3"`)
	s := loaded(t, cfg)
	show()
	webtest.WantError(t, s.Load(t.Context()), "the list is a replay", "holds serial 7")
	webtest.WantListed(t, s, "one")
	o.Publish(webtest.List(`"serial": 8, `, "two"), `"8"`)
	refresh(t, s)
	webtest.WantListed(t, s, "two")
}

// While another process has the cache locked, both to read and to write, an older
// list that the web server sends again is not accepted: its serial cannot be compared.
// Once the lock is gone, it is a replay.
func TestReplayWhileCacheIsLocked(t *testing.T) {
	cfg, o, _ := cached(t, `"serial": 7, `)
	unlockFile, unlockWriters := lockFile(t, cfg.CachePath), lockFile(t, cfg.CachePath+".lock")
	o.Answer(http.StatusOK, webtest.List(`"serial": 3, `, "stranger"), "ETag", `"3"`)
	s := newSource(t, cfg)
	webtest.WantError(t, s.Load(t.Context()), "no list is accepted before the serial in the cache is known", "another process")
	webtest.WantCannotTell(t, s, "no list")
	unlockFile()
	unlockWriters()
	webtest.WantError(t, s.Load(t.Context()), "the list is a replay", "serial 3 after serial 7")
	webtest.WantListed(t, s, "one")
}

// lockFile locks a file as another process does.
func lockFile(t *testing.T, path string) (unlock func()) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	unlock = func() { file.Close() }
	t.Cleanup(unlock)
	return unlock
}

// moveFolder takes a file's folder away.
func moveFolder(t *testing.T, path string) (back func()) {
	t.Helper()
	dir := filepath.Dir(path)
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(dir, dir+".away")
	return func() { rename(dir+".away", dir) }
}
