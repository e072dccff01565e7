package boltfile_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// No test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

const values = 100

// fill writes values into a database.
func fill(db *bbolt.DB) error {
	return db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucket([]byte("values"))
		if err != nil {
			return err
		}
		for i := range values {
			if err := b.Put(fmt.Appendf(nil, "%03d", i), []byte(strings.Repeat("value ", 1+i))); err != nil {
				return err
			}
		}
		return nil
	})
}

// written returns a file that was written as a draft.
func written(tb testing.TB) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "cache.db")
	draft, err := boltfile.OpenDraft(tb.Context(), path)
	must(tb, err)
	must(tb, boltfile.With(draft.File, bbolt.Options{NoSync: true}, func(db *bbolt.DB) error {
		defer draft.Remove()
		return errors.Join(fill(db), db.Sync(), draft.Publish())
	}))
	if _, err := os.Lstat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		tb.Fatalf("the draft is still there: %v", err)
	}
	return path
}

// count opens, inspects and reads a file, and returns the number of its values.
func count(tb testing.TB, path string) (n int, err error) {
	tb.Helper()
	file, err := boltfile.Open(tb.Context(), path, os.O_RDONLY, unix.LOCK_SH)
	if err != nil {
		return 0, err
	}
	if err := boltfile.Inspect(file); err != nil {
		file.Close()
		return 0, err
	}
	return n, boltfile.With(file, bbolt.Options{ReadOnly: true}, func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket([]byte("values")).ForEach(func(_, _ []byte) error {
				n++
				return nil
			})
		})
	})
}

// A file that was published is whole, and one that was cut short is found out
// before it is mapped, where it would stop the process.
func TestCutShort(t *testing.T) {
	path := written(t)
	content, err := os.ReadFile(path)
	must(t, err)
	if n, err := count(t, path); n != values || err != nil {
		t.Fatalf("%d values, %v", n, err)
	}
	found := 0
	for size := 0; size < len(content); size += boltfile.PageSize / 2 {
		must(t, os.Truncate(path, int64(size)))
		if _, err := count(t, path); err != nil {
			found++
			if _, ok := errors.AsType[*boltfile.UnusableError](err); !ok {
				t.Errorf("cut to %d: %v", size, err)
			}
		}
		must(t, os.WriteFile(path, content, 0o600))
	}
	if found < len(content)/boltfile.PageSize {
		t.Errorf("of %d pages %d cuts were found out", len(content)/boltfile.PageSize, found)
	}
}

// A panic of who reads, and a fault in a file that is cut short while it is mapped,
// are errors, and leave no lock behind.
func TestFaultWhileMapped(t *testing.T) {
	path := written(t)
	file, err := boltfile.Open(t.Context(), path, os.O_RDWR, unix.LOCK_EX)
	must(t, err)
	err = boltfile.With(file, bbolt.Options{}, func(db *bbolt.DB) error {
		return db.View(func(tx *bbolt.Tx) error {
			must(t, os.Truncate(path, 2*boltfile.PageSize))
			return tx.Bucket([]byte("values")).ForEach(func(_, value []byte) error {
				if len(value) > 0 && value[0] == 0 {
					return errors.New("zero")
				}
				return nil
			})
		})
	})
	if _, ok := errors.AsType[*boltfile.UnusableError](err); !ok {
		t.Errorf("%v", err)
	}
	other, err := boltfile.Open(t.Context(), path, os.O_RDWR, unix.LOCK_EX)
	must(t, err)
	other.Close()
}

// What is no regular file is neither waited for nor followed.
func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	open := func() error {
		file, err := boltfile.Open(t.Context(), path, os.O_RDONLY, unix.LOCK_SH)
		if err == nil {
			file.Close()
		}
		return err
	}
	none := errors.New("none")
	if err := boltfile.ExplainMissing(path, open(), none); !errors.Is(err, none) {
		t.Errorf("nothing there: %v", err)
	}
	gone := filepath.Join(path, "folder", "cache.db")
	if err := boltfile.ExplainMissing(gone, fs.ErrNotExist, none); err == nil || errors.Is(err, none) {
		t.Errorf("no folder: %v", err)
	}
	must(t, os.Symlink("/etc/passwd", path))
	if err := open(); err == nil || !strings.Contains(err.Error(), "link") {
		t.Errorf("a link: %v", err)
	}
	must(t, os.Remove(path))
	must(t, unix.Mkfifo(path, 0o600))
	if err := open(); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("a pipe: %v", err)
	}
}

// Two who write: the second waits for the first, no longer than its own time, and
// what one has left behind is written over.
func TestDraftsExcludeEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache.db")
	must(t, os.WriteFile(path+".new", []byte("left behind"), 0o644))
	first, err := boltfile.OpenDraft(t.Context(), path)
	must(t, err)
	if info, err := first.Stat(); err != nil || info.Size() != 0 || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := boltfile.OpenDraft(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("a second one whose time is over: %v", err)
	}
	if _, err := boltfile.OpenDraft(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one: %v", err)
	}
	first.Discard()
	second, err := boltfile.OpenDraft(t.Context(), path)
	must(t, err)
	second.Discard()
	if _, err := os.Lstat(path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a draft is left: %v", err)
	}
}
