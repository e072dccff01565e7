package listcache_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

// Two servers with one cache, and each with several sources that were configured
// anew: whoever loads finds a whole list of one of them, and nobody is locked out.
func TestInTurn(t *testing.T) {
	_, path := newCache(t)
	lists := []*eklist.Snapshot{plain(t, 0, 1000), plain(t, 10, 1010), plain(t, 20_000, 20_500)}
	mustSave(t, listcache.New(path, maxBytes, url, listID), lists[0], meta(0))
	var work sync.WaitGroup
	for i := range lists {
		work.Go(func() {
			c := listcache.New(path, maxBytes, url, listID)
			for n := range 15 {
				if err := c.Save(t.Context(), lists[(i+n+1)%3], meta((i+n+1)%3)); err != nil {
					t.Error(err)
				}
			}
		})
		work.Go(func() {
			c := listcache.New(path, maxBytes, url, listID)
			for range 30 {
				got, m, err := c.Load(t.Context())
				if err != nil {
					t.Error(err)
					continue
				}
				found := false
				for i, list := range lists {
					found = found || got.SameEntries(list) && m == meta(i)
				}
				if !found {
					t.Errorf("%d entries with %+v", got.Len(), m)
				}
			}
		})
	}
	work.Wait()
	wantNoDraft(t, path)
}

// asNobody calls f without the rights of root, in a thread that ends with it.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends
		if os.Getuid() == 0 {
			if err := unix.Setfsuid(65534); err != nil {
				t.Errorf("setfsuid: %v", err)
				return
			}
		}
		f()
	}()
	<-done
}

// A disk that has become read-only: the list that is there can be loaded, and
// nothing that is saved is lost in silence.
func TestReadOnly(t *testing.T) {
	c, path := newCache(t)
	list := plain(t, 0, 100)
	mustSave(t, c, list, meta(1))
	dir := filepath.Dir(path)
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(dir, 0o555), os.Chmod(path, 0o444)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Chmod(dir, 0o755) })
	asNobody(t, func() {
		for _, next := range []*eklist.Snapshot{list, plain(t, 1, 100), plain(t, 500, 1000)} {
			if err := c.Save(t.Context(), next, meta(2)); !errors.Is(err, os.ErrPermission) {
				t.Errorf("save: %v", err)
			}
		}
		wantLoad(t, path, list, meta(1))
	})
	// The file alone is read-only, and to nobody at all.
	os.Chmod(dir, 0o777)
	asNobody(t, func() {
		if err := c.Save(t.Context(), list, meta(2)); !errors.Is(err, os.ErrPermission) {
			t.Errorf("save to a file that is read-only: %v", err)
		}
	})
	os.Chmod(path, 0)
	asNobody(t, func() {
		if _, _, err := c.Load(t.Context()); !errors.Is(err, os.ErrPermission) {
			t.Errorf("load: %v", err)
		}
	})
	os.Chmod(path, 0o600)
	wantLoad(t, path, list, meta(1))
}
