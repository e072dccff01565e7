package listcache_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

const page = 4096

// damagedCache is a file with a list that has names, and changes beside it. It
// returns the last list and the one before, which may come back where the page is
// damaged that says that there is a later one.
func damagedCache(t testing.TB) (path string, content []byte, lists [2]*eklist.Snapshot) {
	t.Helper()
	label := strings.Repeat("x", 200) // few entries, and so many pages that there is a branch
	record := func(n uint64) eklist.Record { return named(fmt.Sprint("node-", n), label) }
	c, path := newCache(t)
	lists[1] = listOf(t, serial(1), 0, 3000, record)
	mustSave(t, c, nil, lists[1], meta(1))
	for i := range uint64(5) {
		lists[0], lists[1] = lists[1], listOf(t, serial(2), i+1, 3003, record)
		mustSave(t, c, lists[0], lists[1], meta(2))
	}
	return path, readFile(t, path), lists
}

// wantWholeOrNone fails where a file that was damaged shows anything but a list
// that was saved last.
func wantWholeOrNone(t testing.TB, path string, lists [2]*eklist.Snapshot, what string) (whole bool) {
	t.Helper()
	c := listcache.New(path, url, listID)
	got, m, err := c.Load(t.Context())
	switch {
	case err == nil && (!got.SameEntries(lists[0]) && !got.SameEntries(lists[1]) || m != meta(2) || got.Header() != serial(2)):
		t.Errorf("%s: loaded a list with %d entries, %+v, %+v", what, got.Len(), got.Header(), m)
	case err != nil && (got != nil || m != (listcache.Meta{}) || errors.Is(err, listcache.ErrNone)):
		t.Errorf("%s: %v, %+v with the error %v", what, got, m, err)
	case err != nil && !strings.Contains(err.Error(), path):
		t.Errorf("%s: an error that does not name the file: %v", what, err)
	}
	return err == nil
}

// wantReplaced fails unless a damaged file is overcome by the next Save.
func wantReplaced(t testing.TB, path string, lists [2]*eklist.Snapshot, what string) {
	t.Helper()
	next := listOf(t, serial(3), 1, 50, nil)
	if err := listcache.New(path, url, listID).Save(t.Context(), lists[1], next, meta(3)); err != nil {
		t.Errorf("%s: save: %v", what, err)
		return
	}
	wantLoad(t, path, next, meta(3))
}

// A file that was cut short, at every page and beside, which is what a disk that
// was full or a machine that lost its power may leave: mapped, it would stop the
// process.
func TestCutAtEveryPage(t *testing.T) {
	path, content, lists := damagedCache(t)
	used := inUse(content)
	for at := 0; at < len(content); at += page {
		if fewer(at, len(content)) {
			continue
		}
		for _, size := range []int{at, at + 1, at + page/2, at + page - 1} {
			writeFile(t, path, content[:size])
			what := fmt.Sprintf("cut to %d of %d bytes", size, len(content))
			if whole := wantWholeOrNone(t, path, lists, what); whole != (size >= used) {
				t.Errorf("%s, of which %d are in use: whole is %v", what, used, whole)
			}
			if at%(8*page) == 0 {
				wantReplaced(t, path, lists, what)
			}
		}
	}
	if used < 100*page {
		t.Errorf("only %d bytes are in use", used)
	}
}

// inUse returns how much of a file is in use, by the later of its meta pages.
func inUse(content []byte) int {
	var newest, pages uint64
	for i := range 2 {
		m := content[i*page+16:]
		if txid := binary.NativeEndian.Uint64(m[48:]); txid >= newest {
			newest, pages = txid, binary.NativeEndian.Uint64(m[40:])
		}
	}
	return int(pages) * page
}

// Each page overwritten, by zeros, ones, what is random, and by another page.
func TestOverwrittenPages(t *testing.T) {
	path, content, lists := damagedCache(t)
	random := rand.NewChaCha8([32]byte{2})
	garbage := make([]byte, page)
	for at := 0; at < len(content); at += page {
		if fewer(at, len(content)) {
			continue
		}
		random.Read(garbage)
		headed := append(bytes.Clone(content[at:at+16]), garbage[16:]...)
		other := content[(at+3*page)%len(content):][:page]
		for i, by := range [][]byte{make([]byte, page), bytes.Repeat([]byte{0xff}, page), garbage, headed, other} {
			if !isPage(content, at) && i != at/page%5 {
				continue // the middle of a value: one damage is as good as another
			}
			damaged := bytes.Clone(content)
			copy(damaged[at:], by)
			writeFile(t, path, damaged)
			what := fmt.Sprintf("page %d, damage %d", at/page, i)
			wantWholeOrNone(t, path, lists, what)
			if at < 2*page || at%(7*page) == 0 || at > len(content)-8*page {
				wantReplaced(t, path, lists, what)
			}
		}
	}
}

// fewer reports whether a page is left out of a short test, which looks at those
// that hold the structure, at the beginning and at the end, and at some others.
func fewer(at, size int) bool {
	return testing.Short() && at >= 4*page && at < size-8*page && at/page%11 != 0
}

// isPage reports whether a page begins at an offset, and not the rest of one.
func isPage(content []byte, at int) bool {
	return binary.NativeEndian.Uint64(content[at:]) == uint64(at/page)
}

// A bit that has flipped anywhere must neither make one hash another, nor a page
// lead to itself, so that who follows it never ends, nor stand in the way of the
// next list.
func TestFlippedBits(t *testing.T) {
	path, content, lists := damagedCache(t)
	random := rand.New(rand.NewPCG(3, 4))
	flip := func(at int) {
		damaged := bytes.Clone(content)
		damaged[at] ^= 1 << random.IntN(8)
		writeFile(t, path, damaged)
		what := fmt.Sprintf("a bit in byte %d", at)
		wantWholeOrNone(t, path, lists, what)
		if at%8 == 0 {
			wantReplaced(t, path, lists, what)
		}
	}
	flips, inPage := 100, 20
	if testing.Short() {
		flips, inPage = 10, 2
	}
	for range flips {
		flip(random.IntN(len(content)))
	}
	// Most of the structure is in the first bytes of pages, and of these in the
	// pages that are not in the middle of a value.
	for at := 0; at < len(content); at += page {
		if !isPage(content, at) {
			continue
		}
		for range inPage {
			flip(at + random.IntN(200))
		}
	}
}

// setMeta makes both meta pages say something else, with a checksum that is good.
func setMeta(content []byte, change func(meta []byte)) []byte {
	content = bytes.Clone(content)
	for i := range 2 {
		m := content[i*page+16:]
		change(m)
		sum := fnv.New64a()
		sum.Write(m[:56])
		binary.NativeEndian.PutUint64(m[56:], sum.Sum64())
	}
	return content
}

// What is left of a cache, or never was more than an empty file, is overcome.
func TestGarbage(t *testing.T) {
	path, content, lists := damagedCache(t)
	for name, garbage := range map[string][]byte{
		"empty":                      {},
		"zeros":                      make([]byte, 64*page),
		"a bad root":                 setMeta(content, func(m []byte) { binary.NativeEndian.PutUint64(m[16:], 1<<40) }),
		"a root that is a meta page": setMeta(content, func(m []byte) { binary.NativeEndian.PutUint64(m[16:], 1) }),
		"more pages than it has":     setMeta(content, func(m []byte) { binary.NativeEndian.PutUint64(m[40:], 1<<60) }),
		"no pages":                   setMeta(content, func(m []byte) { binary.NativeEndian.PutUint64(m[40:], 0) }),
		"a freelist elsewhere":       setMeta(content, func(m []byte) { binary.NativeEndian.PutUint64(m[32:], 3) }),
	} {
		writeFile(t, path, garbage)
		if wantWholeOrNone(t, path, lists, name) {
			t.Errorf("%s: loaded", name)
		}
		wantReplaced(t, path, lists, name)
	}
}

// A file of something else is not replaced by a list, whatever cache_path says: a
// typing error must not cost SPIRE its datastore.
func TestFileOfSomethingElse(t *testing.T) {
	c, path := newCache(t)
	for name, content := range map[string][]byte{
		"a byte":      []byte("x"),
		"text":        []byte("<html>" + strings.Repeat("not a list\n", 10_000)),
		"SQLite":      append([]byte("SQLite format 3\x00"), make([]byte, 25*page)...),
		"late":        append(make([]byte, 2*page-1), 'x'),
		"magic aside": append(make([]byte, 20), binary.NativeEndian.AppendUint32(nil, 0xed0cdaed)...),
	} {
		writeFile(t, path, content)
		if _, _, err := c.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: load: %v", name, err)
		}
		if err := c.Save(t.Context(), nil, plain(t, 0, 3), meta(1)); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: save: %v", name, err)
		}
		if !bytes.Equal(content, readFile(t, path)) {
			t.Errorf("%s: changed", name)
		}
		wantNoDraft(t, path)
	}
}

// A database of something else is not replaced either.
func TestDatabaseOfSomethingElse(t *testing.T) {
	c, path := newCache(t)
	for name, options := range map[string]*bbolt.Options{
		"plain":            {PageSize: page},
		"other page size":  {PageSize: 4 * page},
		"without freelist": {PageSize: page, NoFreelistSync: true},
	} {
		os.Remove(path)
		db, err := bbolt.Open(path, 0o600, options)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucket([]byte("certificates"))
			if err != nil {
				return err
			}
			return b.Put([]byte("a"), []byte("b"))
		}); err != nil {
			t.Fatal(err)
		}
		db.Close()
		before := readFile(t, path)
		if _, _, err := c.Load(t.Context()); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: load: %v", name, err)
		}
		if err := c.Save(t.Context(), nil, plain(t, 0, 3), meta(1)); err == nil || !strings.Contains(err.Error(), "something else") {
			t.Errorf("%s: save: %v", name, err)
		}
		if !bytes.Equal(before, readFile(t, path)) {
			t.Errorf("%s: changed", name)
		}
		wantNoDraft(t, path)
	}
}

// edit changes a file as a database.
func edit(t testing.TB, path string, change func(tx *bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Update(change); err != nil {
		t.Fatal(err)
	}
}

// What is whole as a database and is not the list that was saved.
func TestChangedInside(t *testing.T) {
	path, content, _ := damagedCache(t)
	put := func(bucket, key string, change func(value []byte) []byte) func(tx *bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			b := tx.Bucket([]byte(bucket))
			return b.Put([]byte(key), change(bytes.Clone(b.Get([]byte(key)))))
		}
	}
	const state, entries, changes = "tpm list state", "tpm list entries", "tpm list changes"
	first := string(make([]byte, 8))
	cut := func(v []byte) []byte { return v[:len(v)-1] }
	for name, test := range map[string]struct {
		change func(tx *bbolt.Tx) error
		want   string
	}{
		"of another release": {put(state, "format", func([]byte) []byte { return []byte("2") }), "another release"},
		"no state":           {func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(state)) }, "no bucket"},
		"no entries":         {func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(entries)) }, "no bucket"},
		"no changes":         {func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte(changes)) }, "no bucket"},
		"nothing": {func(tx *bbolt.Tx) error {
			return errors.Join(tx.DeleteBucket([]byte(state)), tx.DeleteBucket([]byte(entries)), tx.DeleteBucket([]byte(changes)))
		}, "no bucket"},
		"a state cut off":       {put(state, "state", func(v []byte) []byte { return v[:20] }), "cut off"},
		"another serial":        {put(state, "state", func(v []byte) []byte { return bytes.Replace(v, []byte(`"serial":2`), []byte(`"serial":3`), 1) }), "not what was written"},
		"a value less":          {func(tx *bbolt.Tx) error { return tx.Bucket([]byte(entries)).Delete([]byte(first)) }, "not those that were written"},
		"a change less":         {func(tx *bbolt.Tx) error { return tx.Bucket([]byte(changes)).Delete([]byte(first)) }, "not those that were written"},
		"a value cut off":       {put(entries, first, cut), "cut off"},
		"an entry cut off":      {put(entries, first, func(v []byte) []byte { return v[:20] }), "cut off"},
		"a change cut off":      {put(changes, first, cut), "cut off"},
		"an entry marked gone":  {put(entries, first, func(v []byte) []byte { v[32], v[33] = 0xff, 0xff; return v }), "invalid"},
		"a hash twice":          {put(entries, first, func(v []byte) []byte { return append(v, make([]byte, 34+34)...) }), "not those that were written"},
		"a record that is none": {put(entries, first, func(v []byte) []byte { v[34] = 0xfe; return v }), "damaged"},
		"another hash":          {put(entries, first, func(v []byte) []byte { v[31] ^= 1; return v }), "not those that were written"},
	} {
		writeFile(t, path, content)
		edit(t, path, test.change)
		got, _, err := listcache.New(path, url, listID).Load(t.Context())
		if got != nil || err == nil {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		wantNext(t, path, name)
	}
}

// wantNext fails unless the next Save makes a good file, either by what it adds or
// by a new one: it does not look at entries, so that it may take a second one.
func wantNext(t testing.TB, path, what string) {
	t.Helper()
	next := listOf(t, serial(3), 1, 50, nil)
	if err := listcache.New(path, url, listID).Save(t.Context(), nil, next, meta(3)); err != nil {
		t.Errorf("%s: save: %v", what, err)
		return
	}
	wantLoad(t, path, next, meta(3))
}
