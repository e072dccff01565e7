package httplist_test

import (
	"net/http"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A list is in the cache before it serves: one that was seen by anybody is not
// forgotten by a crash a moment later.
func TestCacheBeforeServing(t *testing.T) {
	cfg, o, _ := cached(t, `"serial": 1, `)
	s := loaded(t, cfg)
	lock := cfg.CachePath + ".lock"
	unlock := lockFile(t, lock)
	opened := opening(t, lock)
	o.Answer(http.StatusOK, webtest.List(`"serial": 2, `, "two"))
	done := make(chan error)
	go func() { done <- s.Load(t.Context()) }()
	opened() // to be written, which it cannot be yet
	webtest.WantListed(t, s, "one")
	unlock()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	webtest.WantListed(t, s, "two")
	fails(o)
	webtest.WantListed(t, fromCache(t, cfg, "404"), "two")
}

// opening returns a function that waits until a file was opened.
func opening(t *testing.T, path string) (wait func()) {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	return func() {
		buf := make([]byte, unix.SizeofInotifyEvent+unix.NAME_MAX+1)
		if n, err := unix.Read(fd, buf); err != nil || n == 0 {
			t.Errorf("wait until %s is opened: %d, %v", path, n, err)
		}
	}
}
