package eklist

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"unsafe"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// collector takes the entries of one list and makes a Snapshot of them.
//
// Hashes are written once to where the Snapshot will serve them from, as soon as
// the first few show how many there will be. What does not turn out as expected
// is copied once more.
type collector struct {
	size   int64 // of the list in bytes, or zero where it is not known
	expect int   // entries, or zero where that is not known

	n     int     // entries that were taken
	full  []block // all blocks but the last
	block block   // the last one

	// What entries say besides their hash, and where in arena that is, by the
	// number of the entry; nil as long as no entry says anything.
	arena   arena
	offsets []uint32
	names   nameList

	attrs recordBuilder // of the entry that is being read
}

// A block holds entries in the order of the list.
type block struct {
	keys []sources.EKHash

	// The block that is meant to become the table of the Snapshot has its keys
	// at the end of it: table[lead:] is room for all entries, those of earlier
	// blocks first.
	table []sources.EKHash
	lead  int
}

const (
	// firstBlock is how many entries are looked at to guess how many there are.
	firstBlock = 1 << 10
	// laterBlock is how many entries a block has where nothing is known.
	laterBlock = 1 << 16
	// bigTable is the size of a table, in entries, from which on it is worth
	// a collection of garbage.
	bigTable = 1 << 19
	// bigUnknown is how many entries a list of unknown length has had before
	// it is worth that, too.
	bigUnknown = firstBlock + 2*laterBlock
)

// slots returns how many slots a table of n keys has: 44 bytes a key, with the marks.
func slots(n int) int { return n + n/3 }

// fits reports whether a table that was made for n keys serves for m: it has room
// for them and wastes no more than 1 %.
func fits(n, m int) bool { return m <= n && m >= n-n/100 }

// next returns room for the hash of one entry, which add takes. offset is
// how many bytes of the list came before.
func (c *collector) next(offset int64) *sources.EKHash {
	b := &c.block
	if len(b.keys) == cap(b.keys) {
		c.grow(offset)
	}
	return &b.keys[:len(b.keys)+1][len(b.keys)]
}

// grow begins a block.
func (c *collector) grow(offset int64) {
	if c.block.keys != nil {
		c.full = append(c.full, c.block)
	}
	c.block = block{}
	// The first block tells how many bytes an entry has.
	if c.n == firstBlock && c.expect == 0 && c.size > offset {
		c.expect = c.n + int(float64(c.size-offset)*float64(c.n)/float64(max(offset, 1))*(1+1./256)) + 16
		c.expectRecords()
	}
	if c.expect > c.n && len(c.full) <= 1 {
		table := makeTable(slots(c.expect))
		lead := len(table) - c.expect
		c.block = block{
			table: table, lead: lead,
			keys: table[lead+c.n : lead+c.n],
		}
		return
	}
	room := laterBlock
	switch c.n {
	case 0:
		room = firstBlock
	case bigUnknown:
		// The blocks and the table will lie beside each other, so the garbage
		// of the last list has to go at once, out of the process.
		debug.FreeOSMemory()
	}
	c.block.keys = make([]sources.EKHash, 0, room)
}

// expectRecords makes room for what the entries that are expected say, if it is
// as much as those before said.
func (c *collector) expectRecords() {
	if c.offsets == nil {
		return
	}
	times := float64(c.expect) / float64(c.n)
	c.offsets = slices.Grow(c.offsets, c.expect-c.n)
	grown := func(n int) int { return int((times - 1) * (1 + 1./16) * float64(n)) }
	c.arena = slices.Grow(c.arena, grown(len(c.arena)))
	c.names.list = slices.Grow(c.names.list, grown(len(c.names.list)))
}

// makeTable allocates a table, in which may be anything. A list that is read again
// and again, while one before is being served, would have the garbage of the last
// time lie beside both of them: what is collected first is not allocated once more.
func makeTable(slots int) []sources.EKHash {
	if slots < bigTable {
		return make([]sources.EKHash, slots)
	}
	runtime.GC()
	table := makeUncleared(slots)
	preferHugePages(table)
	return table
}

// makeUncleared is make without clearing: that would need all the memory at once,
// and the blocks whose place the table takes give theirs back one by one.
func makeUncleared(slots int) []sources.EKHash {
	size := slots * len(sources.EKHash{})
	var b strings.Builder // which alone offers that
	b.Grow(size)
	b.WriteByte(0)
	memory := unsafe.StringData(b.String()) //nolint:gosec // nobody else has the string
	// A Builder that would not let its strings share its memory is none of use.
	if *memory = 1; b.Cap() < size || b.String()[0] != 1 {
		return make([]sources.EKHash, slots)
	}
	return unsafe.Slice((*sources.EKHash)(unsafe.Pointer(memory)), slots) //nolint:gosec // no more than the Builder has
}

// add takes the entry whose hash was written to next, and what attrs say about
// it, if they are not nil.
func (c *collector) add(attrs *recordBuilder) {
	number := uint32(c.n)
	if attrs != nil && !attrs.empty() {
		if c.offsets == nil {
			c.offsets = make([]uint32, c.n, max(c.n+1, c.expect, firstBlock))
		}
		c.offsets = append(c.offsets, c.arena.add(attrs))
		if len(attrs.name) > 0 {
			c.names.add(attrs.name, number)
		}
	} else if c.offsets != nil {
		c.offsets = append(c.offsets, 0)
	}
	b := &c.block
	b.keys = b.keys[:len(b.keys)+1]
	c.n++
}

// nameOf returns the name of an entry that has one.
func (c *collector) nameOf(entry uint32) []byte { return c.arena.at(c.offsets[entry]).name() }

// snapshot returns the Snapshot of all entries. place returns where an entry was
// in the list, for errors.
func (c *collector) snapshot(header Header, place func(entry uint32) string) (*Snapshot, error) {
	if c.n > math.MaxUint32 || len(c.arena) > math.MaxUint32 {
		return nil, errors.New("a list with more than four billion entries or bytes of attributes")
	}
	if first, second, twice := c.names.duplicate(c.nameOf); twice {
		problem := fmt.Sprintf("the name %q for the second time, after %s", c.nameOf(first), place(first))
		return nil, &FormatError{place(second), problem}
	}
	c.names = nameList{}
	table, numbers := c.assemble()
	keys := table[len(table)-c.n:]
	sortHashes(keys, numbers)
	if first, second, hash := duplicate(keys, numbers); hash != nil {
		problem := fmt.Sprintf("the hash %v for the second time, after %s", hash, place(first))
		return nil, &FormatError{place(second), problem}
	}
	s := &Snapshot{header: header, n: c.n, table: table, arena: c.arena}
	s.spread(func(i int) uint32 {
		if c.offsets == nil {
			return 0
		}
		return c.offsets[numbers[i]]
	})
	return s, nil
}

// duplicate returns, of the entries whose hash an earlier one has, the first in
// the order of the list, and that earlier one.
func duplicate(keys []sources.EKHash, numbers []uint32) (first, second uint32, hash *sources.EKHash) {
	for i := 1; i < len(keys); i++ {
		if keys[i] != keys[i-1] {
			continue
		}
		a, b := min(numbers[i-1], numbers[i]), max(numbers[i-1], numbers[i])
		for ; i+1 < len(keys) && keys[i+1] == keys[i]; i++ {
			a, b = min(a, numbers[i+1]), min(b, max(a, numbers[i+1]))
		}
		if hash == nil || b < second {
			first, second, hash = a, b, &keys[i]
		}
	}
	return first, second, hash
}

// assemble returns a table that has the keys at its end, and the numbers of their
// entries.
func (c *collector) assemble() (table []sources.EKHash, numbers []uint32) {
	b := c.block
	if b.table != nil && fits(c.expect, c.n) {
		table = b.table[:b.lead+c.n]
	} else {
		table = makeTable(slots(c.n))
		c.full = append(c.full, b)
	}
	keys := table[len(table)-c.n:]
	at := 0
	for i, f := range c.full {
		at += copy(keys[at:], f.keys)
		c.full[i] = block{}
		if cap(f.keys) >= laterBlock {
			giveBack(f.keys[:cap(f.keys)])
		}
	}
	c.full, c.block = nil, block{}
	numbers = make([]uint32, c.n)
	for i := range numbers {
		numbers[i] = uint32(i)
	}
	return table, numbers
}
