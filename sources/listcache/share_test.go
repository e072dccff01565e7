package listcache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

// hold locks a file as another process would, until it is closed.
func hold(t testing.TB, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	return file
}

// A file that another process does not let go costs a call two seconds and no
// more: a source that waited for ever would never serve.
func TestLocked(t *testing.T) {
	c, path := newCache(t)
	list := plain(t, 0, 10)
	mustSave(t, c, nil, list, meta(1))
	for _, locked := range []string{path, path + ".new"} {
		held := hold(t, locked)
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			if err := c.Save(t.Context(), list, list, meta(2)); err == nil || !strings.Contains(err.Error(), "another process") {
				t.Errorf("%s: save: %v", locked, err)
			}
			if took := time.Since(begin); took < 2*time.Second || took > 3*time.Second {
				t.Errorf("%s: save waited %v", locked, took)
			}
			if locked != path {
				return // readers do not need it
			}
			if _, _, err := c.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "another process") {
				t.Errorf("load: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if _, _, err := c.Load(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("load with a deadline: %v", err)
			}
		})
		held.Close()
		wantLoad(t, path, list, meta(1))
	}
	mustSave(t, c, list, list, meta(2))
	wantLoad(t, path, list, meta(2))
}

// A file that is free again within that time is no fault.
func TestWaitsForItsTurn(t *testing.T) {
	c, path := newCache(t)
	list := plain(t, 0, 10)
	mustSave(t, c, nil, list, meta(1))
	for _, locked := range []string{path, path + ".new"} {
		held := hold(t, locked)
		synctest.Test(t, func(t *testing.T) {
			time.AfterFunc(time.Second, func() { held.Close() })
			if err := c.Save(t.Context(), list, list, meta(2)); err != nil {
				t.Errorf("%s: %v", locked, err)
			}
		})
		wantLoad(t, path, list, meta(2))
		wantNoDraft(t, path)
	}
}

// A draft that another process makes its cache, or removes, while this one waits
// for it, is not written to: it would be a cache that is written under its
// reader's eyes.
func TestDraftOfAnotherProcess(t *testing.T) {
	c, path := newCache(t)
	list := plain(t, 0, 10)
	for name, end := range map[string]func() error{
		"published": func() error { return os.Rename(path+".new", path+".theirs") },
		"removed":   func() error { return os.Remove(path + ".new") },
	} {
		held := hold(t, path+".new")
		held.WriteString("theirs")
		synctest.Test(t, func(t *testing.T) {
			time.AfterFunc(time.Second, func() {
				if err := end(); err != nil {
					t.Error(err)
				}
				held.Close()
			})
			if err := c.Save(t.Context(), nil, list, meta(1)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		wantLoad(t, path, list, meta(1))
		wantNoDraft(t, path)
	}
	if theirs := readFile(t, path+".theirs"); string(theirs) != "theirs" {
		t.Errorf("their file: %d bytes", len(theirs))
	}
}

// What a process has left behind that was killed while it wrote is used again,
// and is readable by nobody else from then on.
func TestLeftBehind(t *testing.T) {
	c, path := newCache(t)
	writeFile(t, path+".new", make([]byte, 1<<20))
	if err := os.Chmod(path+".new", 0o644); err != nil {
		t.Fatal(err)
	}
	list := plain(t, 0, 10)
	mustSave(t, c, nil, list, meta(1))
	wantLoad(t, path, list, meta(1))
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 || info.Size() > 1<<17 {
		t.Errorf("%v, %d bytes, %v", info.Mode(), info.Size(), err)
	}
}

// Two servers with one cache, and each with several sources that were configured
// anew: whoever loads finds a whole list of one of them, and nobody is locked out.
func TestInTurn(t *testing.T) {
	_, path := newCache(t)
	lists := []*eklist.Snapshot{plain(t, 0, 1000), plain(t, 10, 1010), plain(t, 20_000, 20_500)}
	mustSave(t, listcache.New(path, url, listID), nil, lists[0], meta(0))
	var work sync.WaitGroup
	for i := range lists {
		work.Go(func() {
			c := listcache.New(path, url, listID)
			for n := range 15 {
				if err := c.Save(t.Context(), lists[(i+n)%3], lists[(i+n+1)%3], meta((i+n+1)%3)); err != nil {
					t.Error(err)
				}
			}
		})
		work.Go(func() {
			c := listcache.New(path, url, listID)
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

// What is no regular file: a pipe would block whoever opens it, and a link may
// lead to a file that is somebody else's.
func TestNoRegularFile(t *testing.T) {
	c, path := newCache(t)
	target := filepath.Join(filepath.Dir(path), "target")
	writeFile(t, target, []byte("somebody's"))
	for _, at := range []string{path, path + ".new"} {
		for name, create := range map[string]func() error{
			"a link":   func() error { return os.Symlink(target, at) },
			"a pipe":   func() error { return unix.Mkfifo(at, 0o600) },
			"a folder": func() error { return os.Mkdir(at, 0o700) },
		} {
			if err := create(); err != nil {
				t.Fatal(err)
			}
			if err := c.Save(t.Context(), nil, plain(t, 0, 1), meta(1)); err == nil {
				t.Errorf("%s at %s: saved", name, at)
			}
			if _, _, err := c.Load(t.Context()); at == path && (err == nil || errors.Is(err, listcache.ErrNone)) {
				t.Errorf("%s: load: %v", name, err)
			}
			os.Remove(at)
		}
	}
	if got := readFile(t, target); string(got) != "somebody's" {
		t.Errorf("the file behind the link: %q", got)
	}
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
	mustSave(t, c, nil, list, meta(1))
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
			if err := c.Save(t.Context(), list, next, meta(2)); !errors.Is(err, os.ErrPermission) {
				t.Errorf("save: %v", err)
			}
		}
		wantLoad(t, path, list, meta(1))
	})
	// The file alone is read-only, and to nobody at all.
	os.Chmod(dir, 0o777)
	asNobody(t, func() {
		if err := c.Save(t.Context(), list, list, meta(2)); !errors.Is(err, os.ErrPermission) {
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
