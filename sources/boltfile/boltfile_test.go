package boltfile_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
)

// No test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	page   = 4096
	limit  = 4 << 20
	bucket = "test values"
)

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func fileAt(path string) boltfile.File {
	return boltfile.File{Path: path, Limit: limit, Format: "test 1", Bucket: bucket}
}

// newFile returns a File in a folder that does not exist yet.
func newFile(tb testing.TB) boltfile.File {
	tb.Helper()
	return fileAt(filepath.Join(tb.TempDir(), "cache.db"))
}

// fill writes some hundred values that begin with a word.
func fill(word string) func(db *bbolt.DB) error {
	return func(db *bbolt.DB) error {
		return db.Update(func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(bucket))
			for i := range 300 {
				if err := b.Put(fmt.Appendf(nil, "%03d", i), []byte(strings.Repeat(word, 1+i))); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func write(tb testing.TB, f boltfile.File, word string) {
	tb.Helper()
	must(tb, f.Write(tb.Context(), nil, fill(word)))
	wantRead(tb, f, word)
	wantNoDraft(tb, f)
}

// wantRead fails unless everything that fill has written is there.
func wantRead(tb testing.TB, f boltfile.File, word string) {
	tb.Helper()
	n := 0
	must(tb, f.Read(tb.Context(), func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).ForEach(func(key, value []byte) error {
			if want := strings.Repeat(word, 1+n); string(value) != want || string(key) != fmt.Sprintf("%03d", n) {
				return fmt.Errorf("the value %q of %q", value, key)
			}
			n++
			return nil
		})
	}))
	if n != 300 {
		tb.Errorf("%d values", n)
	}
}

// wantNone fails unless the file does not count, and the error says so in the words of want.
func wantNone(tb testing.TB, f boltfile.File, want, what string) {
	tb.Helper()
	err := f.Read(tb.Context(), func(*bbolt.Tx) error {
		tb.Errorf("%s: it was opened", what)
		return nil
	})
	if _, ok := errors.AsType[*boltfile.UnusableError](err); !ok || !strings.Contains(err.Error(), want) {
		tb.Errorf("%s: %v, want %q", what, err, want)
	}
}

func wantNoDraft(tb testing.TB, f boltfile.File) {
	tb.Helper()
	if _, err := os.Lstat(f.Path + ".new"); !errors.Is(err, fs.ErrNotExist) {
		tb.Errorf("beside the cache: %v", err)
	}
}

func content(tb testing.TB, path string) []byte {
	tb.Helper()
	b, err := os.ReadFile(path)
	must(tb, err)
	return b
}

func put(tb testing.TB, path string, content []byte) {
	tb.Helper()
	must(tb, os.WriteFile(path, content, 0o600))
}

// What was written is there, with mode 0600 and in place of what was there before; if fill
// fails, the old file stays.
func TestWriteAndRead(t *testing.T) {
	f := newFile(t)
	if err := f.Read(t.Context(), nil); !errors.Is(err, boltfile.ErrNone) {
		t.Errorf("before: %v", err)
	}
	write(t, f, "a")
	write(t, f, "b")
	info, err := os.Stat(f.Path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	failed := errors.New("failed")
	if err := f.Write(t.Context(), nil, func(db *bbolt.DB) error {
		return errors.Join(fill("c")(db), failed)
	}); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	wantRead(t, f, "b")
	wantNoDraft(t, f)
	if err := f.Read(t.Context(), func(*bbolt.Tx) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v", err)
	}
	nowhere := fileAt(filepath.Join(f.Path, "cache.db"))
	if err := nowhere.Read(t.Context(), nil); err == nil || errors.Is(err, boltfile.ErrNone) {
		t.Errorf("in no folder: %v", err)
	}
}

// A serial number that must not decrease is compared while nobody else can write: a list that check
// refuses is not written, and a file that it calls unusable is replaced.
func TestCheckBeforeWrite(t *testing.T) {
	f := newFile(t)
	ahead := errors.New("ahead")
	refuse := func(*bbolt.Tx) error { return ahead }
	must(t, f.Write(t.Context(), refuse, fill("a"))) // there is nothing to check
	if err := f.Write(t.Context(), refuse, fill("b")); !errors.Is(err, ahead) {
		t.Errorf("%v", err)
	}
	wantRead(t, f, "a")
	wantNoDraft(t, f)
	must(t, f.Write(t.Context(), func(*bbolt.Tx) error { return boltfile.Unusable("of another list") }, fill("c")))
	wantRead(t, f, "c")
	put(t, f.Path, content(t, f.Path)[:9*page])
	must(t, f.Write(t.Context(), refuse, fill("d"))) // a damaged file has no say
	wantRead(t, f, "d")
}

// A file that was cut anywhere, extended, or has a flipped bit is never mapped, since it could
// stop the process or be believed; it is replaced.
func TestDamaged(t *testing.T) {
	f := newFile(t)
	write(t, f, "a")
	whole := content(t, f.Path)
	for size := 1; size < len(whole); size += page / 2 {
		put(t, f.Path, whole[:size])
		if size < page { // nothing shows any more that it was a bbolt file
			put(t, f.Path, whole[:page])
		}
		wantNone(t, f, "checksum", fmt.Sprint("cut to ", size))
	}
	put(t, f.Path, append(bytes.Clone(whole), 0))
	wantNone(t, f, "checksum", "extended")
	random := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		at := random.IntN(len(whole))
		damaged := bytes.Clone(whole)
		damaged[at] ^= 1 << random.IntN(8)
		put(t, f.Path, damaged)
		wantNone(t, f, "checksum", fmt.Sprint("a bit in byte ", at))
	}
	put(t, f.Path, nil)
	wantNone(t, f, "empty", "empty")
	write(t, f, "b")
	put(t, f.Path, make([]byte, 20*page))
	wantNone(t, f, "checksum", "zeros")
	write(t, f, "c")
	other := f
	other.Format = "test 2"
	wantNone(t, other, "another release", "of another version")
	write(t, other, "d")
	other.Limit = 10 * page
	wantNone(t, other, "limit", "longer than its limit")
	if err := other.Write(t.Context(), nil, fill("long")); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("a file longer than its limit: %v", err)
	}
	other.Limit = limit
	wantRead(t, other, "d")
	wantNoDraft(t, other)
}

// setMetas changes the meta pages of a bbolt file, at several page sizes, and sets bbolt's
// checksums right.
func setMetas(content []byte, change func(content []byte, number int, meta []byte)) []byte {
	content = bytes.Clone(content)
	for i := range 2 {
		m := content[i*page+16:]
		change(content, i, m)
		sum := fnv.New64a()
		sum.Write(m[:56])
		binary.NativeEndian.PutUint64(m[56:], sum.Sum64())
	}
	return content
}

// Crafted files would crash a process that maps them: by a fault, by a stack overflow that cannot
// be recovered, or by taking all memory. None is opened, and each is replaced.
func TestCrafted(t *testing.T) {
	f := newFile(t)
	write(t, f, "a")
	whole := content(t, f.Path)
	order := binary.NativeEndian
	root := func(meta []byte) int { return int(order.Uint64(meta[16:])) * page }
	for name, crafted := range map[string][]byte{
		"two page sizes": setMetas(whole, func(_ []byte, n int, m []byte) { order.PutUint32(m[8:], uint32(page<<(16*n))) }),
		"a root beyond":  setMetas(whole, func(_ []byte, _ int, m []byte) { order.PutUint64(m[16:], 1<<40) }),
		"many pages":     setMetas(whole, func(_ []byte, _ int, m []byte) { order.PutUint64(m[40:], 1<<60) }),
		"its own child": setMetas(whole, func(all []byte, _ int, m []byte) {
			at := root(m) // make it a branch page with one element, which leads to itself
			order.PutUint16(all[at+8:], 1)
			order.PutUint16(all[at+10:], 1)
			order.PutUint64(all[at+16+8:], uint64(at/page))
		}),
	} {
		put(t, f.Path, crafted)
		wantNone(t, f, "checksum", name)
	}
	put(t, f.Path, content(t, f.Path)[:12*page])
	must(t, os.Truncate(f.Path, 64<<30))
	wantNone(t, f, "limit", "sparse")
	write(t, f, "b")
}

// An earlier release's cache is a bbolt file without a checksum, which was open while it was
// written: it does not count, the error says so, and it is replaced.
func TestEarlierRelease(t *testing.T) {
	f := newFile(t)
	db, err := bbolt.Open(f.Path, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucket([]byte(bucket))
		return err
	}))
	must(t, db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucket)).Put([]byte("key"), make([]byte, 3*page))
	}))
	must(t, db.Close())
	wantNone(t, f, "another release of this plugin, and will be replaced", "an earlier release's")
	write(t, f, "a")
}

// Anybody who can write to a file decides what it holds, whatever its checksum: a file that others
// can write to does not count until it is replaced by one that only we can write to.
func TestOthersMayWrite(t *testing.T) {
	f := newFile(t)
	for _, mode := range []os.FileMode{0o602, 0o620, 0o666} {
		write(t, f, "a")
		must(t, os.Chmod(f.Path, mode))
		wantNone(t, f, "may be written by other users", mode.String())
	}
	write(t, f, "b")
	if os.Geteuid() != 0 {
		t.Skip("only root can give a file away")
	}
	must(t, os.Chown(f.Path, 65534, -1))
	wantNone(t, f, "belongs to user 65534", "another user's")
	write(t, f, "c")
}

// foreign returns files that a mistyped path may lead to.
func foreign(tb testing.TB) map[string][]byte {
	tb.Helper()
	all := map[string][]byte{
		"a byte":      []byte("x"),
		"text":        []byte(strings.Repeat("not a cache, but about "+bucket+"\n", 10_000)),
		"SQLite":      append([]byte("SQLite format 3\x00"), make([]byte, 25*page)...),
		"late":        append(make([]byte, 2*page-1), 'x'),
		"magic aside": append(make([]byte, 20), binary.NativeEndian.AppendUint32(nil, 0xed0cdaed)...),
	}
	for name, options := range map[string]*bbolt.Options{
		"a database":       {PageSize: page},
		"other page size":  {PageSize: 4 * page},
		"without freelist": {PageSize: page, NoFreelistSync: true},
	} {
		path := filepath.Join(tb.TempDir(), "db")
		db, err := bbolt.Open(path, 0o600, options)
		must(tb, err)
		must(tb, db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucket([]byte("accounts"))
			return errors.Join(err, b.Put([]byte("alice"), []byte("1000")))
		}))
		must(tb, db.Close())
		all[name] = content(tb, path)
	}
	return all
}

// A typing error in a path must not cost SPIRE its datastore: neither the file itself nor the
// files beside it are overwritten if they are another program's.
func TestForeignFiles(t *testing.T) {
	for name, theirs := range foreign(t) {
		f := newFile(t)
		for i, path := range boltfile.Names(f.Path) {
			put(t, path, theirs)
			err := f.Write(t.Context(), nil, fill("a"))
			if i == 2 { // the lock's file is only locked
				must(t, err)
			} else if !errors.Is(err, boltfile.ErrForeign) {
				t.Errorf("%s at %s: %v", name, path, err)
			}
			if i == 0 {
				if err := f.Read(t.Context(), nil); !errors.Is(err, boltfile.ErrForeign) {
					t.Errorf("%s: read: %v", name, err)
				}
			}
			if !bytes.Equal(theirs, content(t, path)) {
				t.Errorf("%s at %s: changed", name, path)
			}
			must(t, os.Remove(path))
		}
	}
}

// Opening a FIFO would block, and a symbolic link may lead to another program's file: neither is
// opened, at any of the three paths.
func TestNoRegularFile(t *testing.T) {
	f := newFile(t)
	target := filepath.Join(filepath.Dir(f.Path), "target")
	put(t, target, []byte("theirs"))
	for _, at := range boltfile.Names(f.Path) {
		for name, create := range map[string]func() error{
			"a link":   func() error { return os.Symlink(target, at) },
			"a pipe":   func() error { return unix.Mkfifo(at, 0o600) },
			"a folder": func() error { return os.Mkdir(at, 0o700) },
		} {
			_ = os.Remove(at) // the lock's file is left from before
			must(t, create())
			if err := f.Write(t.Context(), nil, fill("a")); err == nil {
				t.Errorf("%s at %s: written", name, at)
			}
			if err := f.Read(t.Context(), nil); at == f.Path && (err == nil || errors.Is(err, boltfile.ErrNone)) {
				t.Errorf("%s: read: %v", name, err)
			}
			must(t, os.Remove(at))
		}
	}
	if got := content(t, target); string(got) != "theirs" {
		t.Errorf("the file behind the link: %q", got)
	}
}

// A file that a killed process left behind, truncated at any byte, neither blocks the next Write
// nor stays readable by others.
func TestLeftBehind(t *testing.T) {
	f := newFile(t)
	write(t, f, "a")
	whole := content(t, f.Path)
	for _, size := range []int{0, page, 4 * page, 8 * page, len(whole) - 32, len(whole)} {
		put(t, f.Path+".new", whole[:size])
		must(t, os.Chmod(f.Path+".new", 0o644))
		write(t, f, strconv.Itoa(size))
		if info, err := os.Stat(f.Path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
}

func hold(tb testing.TB, path string) *os.File {
	tb.Helper()
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	must(tb, err)
	tb.Cleanup(func() { file.Close() })
	must(tb, unix.Flock(int(file.Fd()), unix.LOCK_EX))
	return file
}

// Two writers exclude each other. A call waits two seconds and no more, and then says that the
// content is not known, which differs from there being none.
func TestLocked(t *testing.T) {
	f := newFile(t)
	write(t, f, "a")
	nothing := func(*bbolt.Tx) error { return nil }
	for _, path := range []string{f.Path, f.Path + ".lock"} {
		held := hold(t, path)
		synctest.Test(t, func(t *testing.T) {
			begin := time.Now()
			if err := f.Write(t.Context(), nil, fill("b")); !errors.Is(err, boltfile.ErrBusy) {
				t.Errorf("%s: %v", path, err)
			}
			if took := time.Since(begin); took < 2*time.Second || took > 3*time.Second {
				t.Errorf("%s: waited %v", path, took)
			}
			if path != f.Path {
				must(t, f.Read(t.Context(), nothing)) // readers do not wait for writers
				return
			}
			if err := f.Read(t.Context(), nothing); !errors.Is(err, boltfile.ErrBusy) {
				t.Errorf("read: %v", err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if err := f.Read(ctx, nothing); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("read with a deadline: %v", err)
			}
		})
		held.Close()
		wantRead(t, f, "a")
		held = hold(t, path)
		synctest.Test(t, func(t *testing.T) {
			time.AfterFunc(time.Second, func() { held.Close() })
			must(t, f.Write(t.Context(), nil, fill("a"))) // free again within that time
		})
	}
}

// A call that is cancelled ends soon, and that is no reason to replace a file.
func TestCancelled(t *testing.T) {
	f := newFile(t)
	write(t, f, "a")
	put(t, f.Path, content(t, f.Path)[:12*page])
	before := content(t, f.Path)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Read(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("read: %v", err)
	}
	if err := f.Write(ctx, nil, fill("b")); !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if !bytes.Equal(before, content(t, f.Path)) {
		t.Error("it was replaced")
	}
	wantNoDraft(t, f)
}

// TestTruncatedWhileItIsRead: a file that is copied over the cache truncates it in place:
// reading a mapped page that has gone would end the process. What is read is a copy.
func TestTruncatedWhileItIsRead(t *testing.T) {
	f := newFile(t)
	write(t, f, "old")
	read := 0
	err := f.Read(t.Context(), func(tx *bbolt.Tx) error {
		must(t, os.Truncate(f.Path, 0))
		return tx.Bucket([]byte(bucket)).ForEach(func(_, value []byte) error {
			read += len(value)
			return nil
		})
	})
	if err != nil || read == 0 {
		t.Errorf("read %d bytes of a file that has gone meanwhile: %v", read, err)
	}
	write(t, f, "new")
}

// If there is no room for the copy in memory, it is not known whether the file counts. It used to
// be taken for damaged and was replaced, and with it the serial by which a replayed list is
// recognised.
func TestNoRoomForTheCopy(t *testing.T) {
	f := newFile(t)
	write(t, f, "one")
	var before unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &before))
	setLimit := func(most uint64) {
		must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: most, Max: before.Max}))
	}
	defer setLimit(before.Cur)
	setLimit(64 << 10) // of any file, one in memory too
	asked := false
	err := f.Write(t.Context(), func(*bbolt.Tx) error {
		asked = true
		return nil
	}, func(*bbolt.DB) error { return nil })
	setLimit(before.Cur)
	if unusable := (*boltfile.UnusableError)(nil); err == nil || errors.As(err, &unusable) || asked {
		t.Errorf("%v, asked: %v", err, asked)
	}
	wantRead(t, f, "one")
}
