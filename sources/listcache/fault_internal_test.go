package listcache

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// The layout of a page: see package boltfile.
const (
	pageSize   = boltfile.PageSize
	headerSize = 16
	elemSize   = 16

	branchPage = 0x01
	leafPage   = 0x02
)

// roots returns what the newer of the two meta pages refers to.
func roots(content []byte) (root, freelist, pages uint64) {
	meta := func(page int) []byte { return content[page*pageSize+headerSize:] }
	newest := meta(0)
	if binary.NativeEndian.Uint64(meta(1)[48:]) > binary.NativeEndian.Uint64(newest[48:]) {
		newest = meta(1)
	}
	return binary.NativeEndian.Uint64(newest[16:]), binary.NativeEndian.Uint64(newest[32:]),
		binary.NativeEndian.Uint64(newest[40:])
}

// saved returns a file with a list of many pages.
func saved(t *testing.T) (*Cache, *eklist.Snapshot) {
	t.Helper()
	b := eklist.NewBuilder(eklist.Header{}, 0)
	for n := range uint64(20_000) {
		var h eklist.Hash
		binary.BigEndian.PutUint64(h[:], n<<40)
		if err := b.Add(h, nil); err != nil {
			t.Fatal(err)
		}
	}
	list, err := b.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	c := New(filepath.Join(t.TempDir(), "tpm.db"))
	if err := c.Save(t.Context(), nil, list, Meta{}); err != nil {
		t.Fatal(err)
	}
	return c, list
}

// Differences are no more than so many, however short each is: a start reads all of
// them, and they would pile up in a list that changes by an entry at a time.
func TestFewChanges(t *testing.T) {
	_, list := saved(t)
	other := eklist.NewBuilder(eklist.Header{}, 1)
	if err := other.Add(eklist.Hash{0xff}, nil); err != nil {
		t.Fatal(err)
	}
	one, err := other.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	none, err := eklist.NewBuilder(eklist.Header{}, 0).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		previous, next *eklist.Snapshot
		before         uint64
		fits           bool
	}{
		{none, one, 0, true},
		{none, one, maxChanges - 1, true},
		{none, one, maxChanges, false},
		{list, list, maxChanges, true}, // nothing is added
		{list, one, 0, false},          // too long
	} {
		changes, fits := encodeChanges(test.previous, test.next, &state{Changes: test.before})
		if fits != test.fits || fits && (len(changes) == 0) != (test.previous == test.next) {
			t.Errorf("after %d changes: %d bytes, fits is %v", test.before, len(changes), fits)
		}
	}
}

// A file that is cut short while it is mapped: the fault must neither stop the
// process nor leave the file locked, for reading and for writing, where the
// database cannot be closed any more.
func TestCutWhileMapped(t *testing.T) {
	for name, test := range map[string]struct {
		flags int
		opts  bbolt.Options
	}{
		"reading": {os.O_RDONLY, bbolt.Options{ReadOnly: true}},
		"writing": {os.O_RDWR, bbolt.Options{}},
	} {
		t.Run(name, func(t *testing.T) {
			c, list := saved(t)
			file, err := boltfile.Open(t.Context(), c.path, test.flags, unix.LOCK_EX)
			if err != nil {
				t.Fatal(err)
			}
			if err := boltfile.Inspect(file); err != nil {
				t.Fatal(err)
			}
			read := func(tx *bbolt.Tx) error {
				if err := os.Truncate(c.path, 2*pageSize); err != nil {
					t.Fatal(err)
				}
				return eachValue(t.Context(), tx, listBucket, func(value []byte) error {
					_, _, err := cutEntry(value)
					return err
				})
			}
			err = boltfile.With(file, test.opts, func(db *bbolt.DB) error {
				if test.opts.ReadOnly {
					return db.View(read)
				}
				return db.Update(read)
			})
			unusable := (*boltfile.UnusableError)(nil)
			if !errors.As(err, &unusable) || !strings.Contains(err.Error(), "invalid memory address") {
				t.Errorf("a file that was cut while it was mapped: %v", err)
			}
			if _, _, err := c.Load(t.Context()); !errors.As(err, &unusable) {
				t.Errorf("load: %v", err)
			}
			if err := c.Save(t.Context(), list, list, Meta{}); err != nil {
				t.Errorf("save: %v", err)
			}
			if got, _, err := c.Load(t.Context()); err != nil || !got.SameEntries(list) {
				t.Errorf("load after save: %v, %v", got, err)
			}
		})
	}
}

// Structures that would have their reader run in a circle, or read or write where
// it must not, in each kind of page.
func TestInspectStructure(t *testing.T) {
	c, _ := saved(t)
	content, err := os.ReadFile(c.path)
	if err != nil {
		t.Fatal(err)
	}
	find := func(flags uint16, from int) (at int) {
		for at = from * pageSize; at < len(content); at += pageSize {
			p := content[at:]
			if binary.NativeEndian.Uint64(p) == uint64(at/pageSize) && binary.NativeEndian.Uint16(p[8:]) == flags {
				return at
			}
		}
		t.Fatalf("no page with flags %#x", flags)
		return 0
	}
	rootPage, freePage, pages := roots(content)
	root, free := int(rootPage)*pageSize, int(freePage)*pageSize
	branch := find(branchPage, 2)
	// In the root, buckets are sorted by name: changes, entries, state. The first
	// and the last are small, and within their value.
	elem := func(i int) int { return root + headerSize + i*elemSize }
	value := func(i int) int {
		pos := int(binary.NativeEndian.Uint32(content[elem(i)+4:]))
		return elem(i) + pos + int(binary.NativeEndian.Uint32(content[elem(i)+8:]))
	}
	u16 := func(at int, v uint16) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint16(b[at:], v) }
	}
	u32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint32(b[at:], v) }
	}
	u64 := func(at int, v uint64) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint64(b[at:], v) }
	}
	for name, test := range map[string]struct {
		change func(content []byte)
		want   string
	}{
		"untouched":                            {func([]byte) {}, ""},
		"a branch that leads to itself":        {u64(branch+headerSize+8, uint64(branch/pageSize)), "used twice"},
		"a branch that leads to the root":      {u64(branch+headerSize+8, rootPage), "used twice"},
		"a branch that leads beyond":           {u64(branch+headerSize+8, pages), "refers to page"},
		"a branch that leads nowhere":          {u16(branch+10, 0), "without a page"},
		"a branch's key beyond its page":       {u32(branch+headerSize+4, pageSize), "outside"},
		"a key in the header":                  {u32(branch+headerSize, 0), "outside"},
		"too many elements":                    {u16(branch+10, 0xffff), "more elements than room"},
		"a page of no kind":                    {u16(branch+8, 3), "flags"},
		"a page that overflows the file":       {u32(branch+12, 1<<31), "refers to page"},
		"a page that is another":               {u64(branch, 7), "says that it is"},
		"a value beyond its page":              {u32(elem(2)+12, pageSize), "outside"},
		"a value of no kind":                   {u32(elem(2), 2), "flags"},
		"a bucket cut off":                     {u32(elem(0)+12, 15), "cut off"},
		"a small bucket cut off":               {u32(elem(0)+12, 31), "cut off"},
		"a small bucket of no kind":            {u16(value(0)+16+8, branchPage), "flags"},
		"a small bucket with more than it has": {u16(value(2)+16+10, 1000), "more elements than room"},
		"a small bucket that is free":          {u64(value(0), freePage), "flags"},
		"a bucket twice":                       {u64(value(0), uint64(branch/pageSize)), "used twice"},
		"a freelist of another kind":           {u16(free+8, leafPage), "flags"},
		"a page that is free and in use":       {func(b []byte) { u16(free+10, 1)(b); u64(free+headerSize, rootPage)(b) }, "used twice"},
		"a free page beyond":                   {func(b []byte) { u16(free+10, 1)(b); u64(free+headerSize, 1<<50)(b) }, "refers to page"},
		"more free pages than listed":          {func(b []byte) { u16(free+10, 0xffff)(b); u64(free+headerSize, 1<<60)(b) }, "more free pages"},
	} {
		changed := []byte(string(content))
		test.change(changed)
		if err := os.WriteFile(c.path, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		file, err := os.Open(c.path)
		if err != nil {
			t.Fatal(err)
		}
		err = boltfile.Inspect(file)
		file.Close()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		// Whatever is found, nothing stops the process.
		if _, _, err := c.Load(t.Context()); (err == nil) != (test.want == "") {
			t.Errorf("%s: load: %v", name, err)
		}
	}
}
