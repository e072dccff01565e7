package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

const page = 4096

// filled returns a file with a number of objects from a server, and a failure.
func filled(tb testing.TB, o *origin, objects int) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "cache.db")
	f := open(tb, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: newClock().Now})
	must(tb, f.Load(tb.Context())) // there is none yet
	o.serve(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/none.crt" {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = w.Write(bodyOf(r.URL.Path))
	})
	for i := range objects {
		wantGet(tb, f, numbered(o, i), string(bodyOf(fmt.Sprintf("/%d.crt", i))))
	}
	wantFail(tb, f, o.at("/none.crt"), "has none")
	must(tb, f.Close())
	must(tb, f.CacheError())
	return path
}

func bodyOf(path string) []byte { return []byte(path + strings.Repeat(" certificate", 100)) }

// restarted returns a Fetcher that has loaded the file, and the error of that.
func restarted(tb testing.TB, o *origin, path string) (*fetch.Fetcher, error) {
	tb.Helper()
	f := open(tb, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: newClock().Now})
	err := f.Load(tb.Context())
	return f, err
}

// After a restart, what was fetched is available without the network, including failures.
func TestRestart(t *testing.T) {
	o := local(t)
	path := filled(t, o, 20)
	asked := o.requests.Load()
	f, err := restarted(t, o, path)
	must(t, err)
	for i := range 20 {
		wantGet(t, f, numbered(o, i), string(bodyOf(fmt.Sprintf("/%d.crt", i))))
	}
	if err := wantFail(t, f, o.at("/none.crt"), "has none"); !errors.Is(err, fetch.ErrNotFound) {
		t.Errorf("a remembered failure: %v", err)
	}
	o.wantRequests(t, asked)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", info.Mode(), err)
	}
}

// While Run is running, killing the process a moment after an answer loses nothing: the answer is
// written soon, not when the server ends.
func TestRunWrites(t *testing.T) {
	o := local(t)
	path := filepath.Join(t.TempDir(), "cache.db")
	f := open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path})
	must(t, f.Load(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- f.Run(ctx) }()
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	eventually(t, "it is written", func() bool {
		other, err := fetch.New(fetch.Config{Hosts: []string{o.host()}, CachePath: path})
		return err == nil && other.Load(t.Context()) == nil && other.Stats().Objects == 1
	})
	stop()
	must(t, <-ran)
}

// What is on disk is not trusted: what Parse refuses is fetched again.
func TestDiskIsNotTrusted(t *testing.T) {
	o := local(t)
	path := filled(t, o, 1)
	f, err := restarted(t, o, path)
	must(t, err)
	refuse := func([]byte) (any, time.Time, error) { return nil, time.Time{}, errors.New("of another issuer") }
	if _, kept, err := f.Cached(fetch.Issuer, numbered(o, 0), refuse); kept || err != nil {
		t.Errorf("what was refused: %v, %v", kept, err)
	}
	wantCached(t, f, numbered(o, 0), "")
	explode := func([]byte) (any, time.Time, error) { panic("out of range") }
	if f, err = restarted(t, o, path); err != nil {
		t.Fatal(err)
	}
	if _, kept, err := f.Cached(fetch.Issuer, numbered(o, 0), explode); kept || err != nil {
		t.Errorf("what has panicked: %v, %v", kept, err)
	}
}

// Until of a loaded object is what Parse returns now, for example if a later release keeps CRLs for
// less time.
func TestLoadedObjectIsOver(t *testing.T) {
	o := local(t)
	path := filled(t, o, 1)
	f, err := restarted(t, o, path)
	must(t, err)
	if _, kept, err := f.Cached(fetch.Issuer, numbered(o, 0), until(start.Add(-time.Hour))); !kept || err != nil {
		t.Errorf("within its first minute: %v, %v", kept, err)
	}
	c := newClock()
	f = open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: c.Now})
	must(t, f.Load(t.Context()))
	c.add(2 * time.Minute)
	if _, kept, err := f.Cached(fetch.Issuer, numbered(o, 0), until(start.Add(-time.Hour))); kept || err != nil {
		t.Errorf("after that: %v, %v", kept, err)
	}
}

// Files that must not be overwritten: each is reported, the objects in memory are used, and no
// other program loses anything.
func TestFilesThatMustNotBeWritten(t *testing.T) {
	o := local(t)
	for name, test := range map[string]struct {
		make func(path string)
		want string
	}{
		"a folder": {func(path string) { must(t, os.Mkdir(path, 0o700)) }, "regular file"},
		"a pipe":   {func(path string) { must(t, unix.Mkfifo(path, 0o600)) }, ""},
		"a link":   {func(path string) { must(t, os.Symlink(path+".else", path)) }, "is a link"},
		"another program's": {func(path string) {
			edit(t, path, func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("accounts"))
				return err
			})
		}, "something else"},
		"a text": {func(path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("text\n", 9999)), 0o600))
		}, "something else"},
		"in no folder": {func(path string) { must(t, os.Remove(filepath.Dir(path))) }, "its directory"},
	} {
		t.Run(name, func(t *testing.T) {
			o.answer(http.StatusOK, "a certificate")
			dir := filepath.Join(t.TempDir(), "cache")
			must(t, os.Mkdir(dir, 0o700))
			path := filepath.Join(dir, "cache.db")
			test.make(path)
			before, statErr := os.Lstat(path)
			f, err := restarted(t, o, path)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("load: %v, want %q", err, test.want)
			}
			wantGet(t, f, o.at("/a.crt"), "a certificate")
			if err := f.Close(); err == nil || f.CacheError() == nil {
				t.Errorf("written: %v, %v", err, f.CacheError())
			}
			wantCached(t, f, o.at("/a.crt"), "a certificate")
			if after, err := os.Lstat(path); statErr == nil && (err != nil || !os.SameFile(before, after)) {
				t.Errorf("it was replaced: %v, %v", after, err)
			}
		})
	}
}

// edit writes a file that is no cache of this release.
func edit(tb testing.TB, path string, change func(tx *bbolt.Tx) error) {
	tb.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: time.Second})
	must(tb, err)
	must(tb, db.Update(change))
	must(tb, db.Close())
}

// Files that cannot be used, because they are damaged or from an earlier release: each is reported,
// none stops the process, the network is used, and the file is replaced.
func TestFilesOfNoUse(t *testing.T) {
	o := local(t)
	truncate := func(size int64) func(path string) {
		return func(path string) { must(t, os.Truncate(path, size)) }
	}
	for name, test := range map[string]struct {
		spoil func(path string)
		want  string
	}{
		"of an earlier release": {func(path string) {
			must(t, os.Remove(path))
			edit(t, path, func(tx *bbolt.Tx) error {
				about, err := tx.CreateBucket([]byte("tpm certificate cache"))
				must(t, err)
				must(t, about.Put([]byte("format"), []byte("1")))
				records, err := tx.CreateBucket([]byte("tpm certificates"))
				must(t, err)
				return records.Put([]byte("key"), []byte("value"))
			})
		}, "another release of this plugin, and will be replaced"},
		"changed as a database":  {func(path string) { edit(t, path, func(*bbolt.Tx) error { return nil }) }, "checksum"},
		"empty":                  {truncate(0), "empty"},
		"cut short":              {truncate(9 * page), "checksum"},
		"cut within a page":      {truncate(9*page + 99), "checksum"},
		"that others may write":  {func(path string) { must(t, os.Chmod(path, 0o666)) }, "may be written by other users"},
		"of more than its limit": {truncate(64 << 30), "more than its limit"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t, o, 30)
			test.spoil(path)
			f, err := restarted(t, o, path)
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Fatalf("%v, want %q", err, test.want)
			}
			if f.CacheError() == nil || f.Stats().Objects != 0 {
				t.Errorf("%+v", f.Stats())
			}
			wantGet(t, f, o.at("/new.crt"), string(bodyOf("/new.crt")))
			must(t, f.Close())
			must(t, f.CacheError())
			again, err := restarted(t, o, path)
			must(t, err)
			wantCached(t, again, o.at("/new.crt"), string(bodyOf("/new.crt")))
		})
	}
}

// Records that another program of the same user has written, with a correct checksum: malformed
// ones are left out, and the others are used.
func TestCraftedRecords(t *testing.T) {
	o := local(t)
	path := filled(t, o, 3)
	must(t, fetch.AddRecord(t.Context(), path, []byte("key"), []byte("value")))
	f, err := restarted(t, o, path)
	if err == nil || !strings.Contains(err.Error(), "part of it was skipped") {
		t.Errorf("%v", err)
	}
	wantCached(t, f, numbered(o, 0), string(bodyOf("/0.crt")))
}

// If another process keeps the file locked, nobody waits long for it. A CRL in it may be newer than
// the server's answer would be, so no server is asked before the file has been read; Run reads it
// when the lock is released.
func TestLocked(t *testing.T) {
	o := local(t)
	path := filled(t, o, 1)
	other, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	must(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))
	f, err := restarted(t, o, path)
	if err == nil || !strings.Contains(err.Error(), "another process") || f.CacheError() == nil {
		t.Fatalf("%v", err)
	}
	asked := o.requests.Load()
	if err := wantFail(t, f, o.at("/new.crt"), "another process has the cache locked"); !errors.Is(err, fetch.ErrNotAsked) {
		t.Errorf("%v", err)
	}
	o.wantRequests(t, asked)
	must(t, other.Close())
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- f.Run(ctx) }()
	eventually(t, "it is read", func() bool { return f.Stats().Objects == 1 })
	wantGet(t, f, o.at("/new.crt"), string(bodyOf("/new.crt")))
	stop()
	must(t, <-ran)
	again, err := restarted(t, o, path)
	must(t, err)
	wantCached(t, again, o.at("/new.crt"), string(bodyOf("/new.crt")))
	wantCached(t, again, numbered(o, 0), string(bodyOf("/0.crt"))) // it has stayed
}

// If two servers, or two successive configurations, share a file by mistake, the last writer's
// content is found, complete.
func TestSharedFile(t *testing.T) {
	o := local(t)
	path := filled(t, o, 1)
	a, err := restarted(t, o, path)
	must(t, err)
	b, err := restarted(t, o, path)
	must(t, err)
	wantGet(t, a, o.at("/a.crt"), string(bodyOf("/a.crt")))
	wantGet(t, b, o.at("/b.crt"), string(bodyOf("/b.crt")))
	must(t, a.Close())
	must(t, b.Close())
	c, err := restarted(t, o, path)
	must(t, err)
	if n := c.Stats().Objects; n != 2 {
		t.Errorf("%d objects, want 2", n)
	}
	wantCached(t, c, o.at("/b.crt"), string(bodyOf("/b.crt")))
}
