package eklist

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
	"sort"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A Header is what a list says about itself.
type Header struct {
	// Serial counts the versions of the list, where HasSerial is true.
	Serial    uint64
	HasSerial bool
	// Expires is when the list ends to be good, or zero.
	Expires time.Time
	// Name is the list's own name, its field "list", or empty.
	Name string
}

// Expired reports whether the list is no longer good at a time.
func (h Header) Expired(now time.Time) bool { return !h.Expires.IsZero() && !now.Before(h.Expires) }

// A Snapshot is one whole list. It never changes, so that any number of
// goroutines may use it at once, and it holds no pointers besides a handful, so
// that collecting garbage takes no longer for a long list.
//
// Parse and a Builder make one. The zero Snapshot, and a nil one, lists nothing
// and cannot tell.
type Snapshot struct {
	header   Header
	n        int
	warnings []string

	// table holds the hashes in sorted order with gaps among them, so that a
	// hash is found near the slot that its first eight bytes point at, as if they
	// were a fraction of the length of the table. A gap holds the same hash as the
	// slot behind it, and one at the end the last hash: all of table is sorted.
	//
	// A hash is in its slot or behind it, with no gap between, and from tail on it
	// may be before it: there the table is full to its end.
	table []sources.EKHash
	tail  int

	// marks are of each slot a byte of its hash that is never zero, zero of a
	// gap, and zeros for a group behind the end. They are small enough to stay in
	// the processor's cache: most searches read no hash but the one they find.
	marks []byte

	// offsets are the places in arena of what slots say; nil where none says
	// anything.
	offsets []uint32
	arena   arena
}

// spread moves the n sorted hashes at the end of the table to their slots.
// offset returns where in the arena the record of the i-th hash is.
func (s *Snapshot) spread(offset func(i int) uint32) {
	if len(s.arena) > 0 {
		s.offsets = make([]uint32, len(s.table))
	}
	from := len(s.table) - s.n
	s.tail = len(s.table)
	s.marks = make([]byte, len(s.table)+group)
	end := 0 // of the slots that are done
	for i := range s.n {
		key := s.table[from+i]
		// No later than from+i: what is there still has to move.
		slot := max(s.slot(prefix(&key)), end)
		if slot > from+i {
			slot = from + i
			s.tail = min(s.tail, slot)
		}
		s.fill(end, slot+1, key, offset, i)
		s.marks[slot] = mark(&key)
		end = slot + 1
	}
	if s.n > 0 {
		s.fill(end, len(s.table), s.table[end-1], offset, s.n-1)
	}
}

// fill sets the slots from begin to end to the i-th hash.
func (s *Snapshot) fill(begin, end int, key sources.EKHash, offset func(i int) uint32, i int) {
	for slot := begin; slot < end; slot++ {
		s.table[slot] = key
	}
	if s.offsets != nil {
		at := offset(i)
		for slot := begin; slot < end; slot++ {
			s.offsets[slot] = at
		}
	}
}

// slot returns the slot that the first eight bytes of a hash point at.
func (s *Snapshot) slot(prefix uint64) int {
	slot, _ := bits.Mul64(prefix, uint64(len(s.table)))
	return int(slot)
}

const (
	// group is how many marks are looked at at once: those in a machine word.
	group    = 64 / byteBits
	byteBits = 8

	lowBits  = 0x0101010101010101 // of each byte in a word
	highBits = 0x8080808080808080
)

// mark returns the mark of a hash: a byte that has no part in where it is, and is
// not zero.
func mark(h *sources.EKHash) byte { return max(h[len(h)-1], 1) }

// zeros returns a word that has the high bit set of each byte that is zero in w.
// A byte of 1 above one that is zero may have it set as well.
func zeros(w uint64) uint64 { return (w - lowBits) &^ w & highBits }

// find returns a slot that holds the hash.
func (s *Snapshot) find(h *sources.EKHash) (slot int, ok bool) {
	const groups = 8 // before a sorted array is the better thing to search
	wanted := uint64(mark(h)) * lowBits
	slot = min(s.slot(prefix(h)), s.tail)
	if slot < len(s.table) {
		// The hash would be here or close by: the processor begins to read it while
		// the marks are looked at.
		runtime.KeepAlive(s.table[slot][0])
	}
	for range groups {
		if slot >= len(s.table) {
			return 0, false
		}
		w := binary.LittleEndian.Uint64(s.marks[slot:])
		for m := zeros(w ^ wanted); m != 0; m &= m - 1 {
			at := slot + bits.TrailingZeros64(m)/byteBits
			if at < len(s.table) && equal(&s.table[at], h) {
				return at, true
			}
		}
		if zeros(w) != 0 { // a gap: the hash would stand before it
			return 0, false
		}
		slot += group
	}
	if slot >= len(s.table) {
		return 0, false
	}
	return s.search(h, slot)
}

// equal is ==, which would call a function.
func equal(a, b *sources.EKHash) bool {
	const word = 8
	differ := binary.LittleEndian.Uint64(a[:]) ^ binary.LittleEndian.Uint64(b[:])
	differ |= binary.LittleEndian.Uint64(a[word:]) ^ binary.LittleEndian.Uint64(b[word:])
	differ |= binary.LittleEndian.Uint64(a[2*word:]) ^ binary.LittleEndian.Uint64(b[2*word:])
	differ |= binary.LittleEndian.Uint64(a[3*word:]) ^ binary.LittleEndian.Uint64(b[3*word:])
	return differ == 0
}

// search looks for a hash from a slot on, by steps that double and then by
// halves: a list whose writer has made all hashes point at one slot is no slower
// than a sorted array.
func (s *Snapshot) search(h *sources.EKHash, from int) (slot int, ok bool) {
	step := 1
	for from+step < len(s.table) && less(&s.table[from+step], h) {
		from += step
		step *= 2
	}
	rest := s.table[from:min(from+step+1, len(s.table))]
	slot = from + sort.Search(len(rest), func(i int) bool { return !less(&rest[i], h) })
	return slot, slot < len(s.table) && s.table[slot] == *h
}

// Lookup reports whether the list has a hash, and what it says about it. It does
// not allocate. The Record belongs to the Snapshot.
func (s *Snapshot) Lookup(h sources.EKHash) (Record, bool) {
	slot, ok := s.find(&h)
	if !ok {
		return nil, false
	}
	return s.recordAt(slot), true
}

func (s *Snapshot) recordAt(slot int) Record {
	if s.offsets == nil {
		return nil
	}
	return s.arena.at(s.offsets[slot])
}

// Len returns how many entries there are.
func (s *Snapshot) Len() int { return s.n }

// Header returns what the list says about itself.
func (s *Snapshot) Header() Header { return s.header }

// Warnings returns what is doubtful about the list as it was read, in words for an
// operator: fields that mean nothing and look as if they were meant to. One out of a
// cache has none.
func (s *Snapshot) Warnings() []string { return s.warnings }

// Verdict returns what the list says of ev, for a source to return from Check.
// A nil or zero Snapshot cannot tell. It does not look whether the list has expired.
func (s *Snapshot) Verdict(ev *sources.Evidence) (sources.Verdict, error) {
	if s == nil || s.table == nil {
		return sources.Verdict{}, errors.New("there is no list")
	}
	v := sources.Verdict{}
	if s.header.HasSerial {
		v.Reason = fmt.Sprintf("serial %d", s.header.Serial)
	}
	record, ok := s.Lookup(ev.EKHash)
	if ok {
		v.Listed, v.Attributes = true, record.Attributes()
	}
	return v, nil
}

// CheckSuccession reports why next may not take the place of s, or nil: a list
// that was good once is not to be served again by somebody who has kept a copy.
// Once a list had a serial, the next one has the same and the same entries, or a
// higher one. s may be nil, where nothing was accepted before.
func (s *Snapshot) CheckSuccession(next *Snapshot) error {
	switch {
	case s == nil || !s.header.HasSerial:
		return nil
	case !next.header.HasSerial:
		return fmt.Errorf("a list without a serial after serial %d", s.header.Serial)
	case next.header.Serial < s.header.Serial:
		return fmt.Errorf("serial %d after serial %d: raise the serial with every change of the list",
			next.header.Serial, s.header.Serial)
	case next.header.Serial == s.header.Serial && !s.SameEntries(next):
		return fmt.Errorf("different entries with the same serial %d: raise the serial with every change of the list",
			s.header.Serial)
	}
	return nil
}

// SameEntries reports whether two lists have the same hashes, names and labels.
// It takes some milliseconds for a million entries.
func (s *Snapshot) SameEntries(t *Snapshot) bool {
	if s == t {
		return true
	}
	if s.n != t.n {
		return false
	}
	for range s.Changes(t) {
		return false
	}
	return true
}
