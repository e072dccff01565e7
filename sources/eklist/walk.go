package eklist

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"iter"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// All returns the entries, sorted by hash, and what the list says about each.
// The Record belongs to the Snapshot.
func (s *Snapshot) All() iter.Seq2[sources.EKHash, Record] {
	return func(yield func(sources.EKHash, Record) bool) {
		for c := s.begin(); c.more(); c.next() {
			if !yield(*c.key(), c.record()) {
				return
			}
		}
	}
}

// A Change is one entry by which a list differs from the one before it.
type Change struct {
	Hash sources.EKHash
	// Record is what the later list says about the entry. It belongs to that
	// Snapshot.
	Record Record
	Kind   ChangeKind
}

// ChangeKind is in what an entry differs.
type ChangeKind int

// The kinds of changes.
const (
	// Added: only the later list has the entry.
	Added ChangeKind = iota
	// Removed: only the list before has the entry; Change.Record is nil.
	Removed
	// Changed: the two lists give it different names or labels.
	Changed
)

// Changes returns what turns s into next, sorted by hash.
func (s *Snapshot) Changes(next *Snapshot) iter.Seq[Change] {
	return func(yield func(Change) bool) {
		a, b := s.begin(), next.begin()
		for a.more() || b.more() {
			var c Change
			switch order := a.compare(&b); {
			case order < 0:
				c = Change{Hash: *a.key(), Kind: Removed}
				a.next()
			case order > 0:
				c = Change{Hash: *b.key(), Record: b.record(), Kind: Added}
				b.next()
			default:
				same := bytes.Equal(a.record(), b.record())
				c = Change{Hash: *b.key(), Record: b.record(), Kind: Changed}
				a.next()
				b.next()
				if same {
					continue
				}
			}
			if !yield(c) {
				return
			}
		}
	}
}

// Digest returns the SHA-256 of all entries and what the list says about them,
// in sorted order: two lists with the same entries have the same digest. It is
// computed anew each time, in some 30 ms for a million entries.
func (s *Snapshot) Digest() [sha256.Size]byte {
	d := sha256.New()
	buf := make([]byte, 0, 64<<10)
	for hash, record := range s.All() {
		buf = append(buf, hash[:]...)
		buf = binary.BigEndian.AppendUint16(buf, uint16(len(record)))
		buf = append(buf, record...)
		if len(buf) > 32<<10 {
			d.Write(buf)
			buf = buf[:0]
		}
	}
	d.Write(buf)
	return [sha256.Size]byte(d.Sum(nil))
}

// A cursor is at one entry of a Snapshot, and at the last of the slots that hold
// it.
type cursor struct {
	s    *Snapshot
	slot int
}

func (s *Snapshot) begin() cursor {
	c := cursor{s: s, slot: -1}
	c.next()
	return c
}

func (c *cursor) more() bool           { return c.slot < len(c.s.table) }
func (c *cursor) key() *sources.EKHash { return &c.s.table[c.slot] }
func (c *cursor) record() Record       { return c.s.recordAt(c.slot) }

// next goes to the next entry.
func (c *cursor) next() {
	t := c.s.table
	c.slot++
	for c.slot+1 < len(t) && t[c.slot] == t[c.slot+1] {
		c.slot++
	}
}

// compare compares the entries of two cursors by hash. There is always one; the
// end sorts last.
func (c *cursor) compare(d *cursor) int {
	switch {
	case !d.more():
		return -1
	case !c.more():
		return 1
	}
	return bytes.Compare(c.key()[:], d.key()[:])
}
