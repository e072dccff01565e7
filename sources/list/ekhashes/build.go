package ekhashes

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// New returns a list of the given entries. The error names an entry that breaks the rules of a list
// by its number, from 0.
func New(header list.Header, entries iter.Seq[Entry]) (*Document, error) {
	if err := header.Check(); err != nil {
		return nil, err
	}
	b := NewBuilder(func(at uint32, _ sources.EKHash) string { return fmt.Sprintf("entry %d", at) }, false)
	n := uint32(0)
	for e := range entries {
		if err := b.Add(n, e); err != nil {
			return nil, err
		}
		n++
	}
	return b.Build(header)
}

// A Builder makes a list from entries that come from several places.
type Builder struct {
	builder
	place func(at uint32, hash sources.EKHash) string
	added int
}

// NewBuilder returns a Builder. place describes where an entry is from, given the number that was
// passed to Add. If a hash or a name is given twice, the entry with the lower number is the first.
// If merge is true, entries that say exactly the same about the same TPM count as one.
func NewBuilder(place func(at uint32, hash sources.EKHash) string, merge bool) *Builder {
	b := &Builder{builder: newBuilder(nil, 0), place: place}
	b.merge = merge
	return b
}

// Add adds an entry. It returns a *list.FormatError if the entry breaks the rules of a list; the
// entry is then left out.
func (b *Builder) Add(at uint32, e Entry) error {
	if len(b.entries) == math.MaxUint32 {
		return errTooMany
	}
	if problem := b.takeAll(at, e); problem != "" {
		return &list.FormatError{Place: b.place(at, e.Hash), Problem: problem}
	}
	b.added++
	return nil
}

// Build returns the list. It returns a *list.FormatError or list.FormatErrors if a hash or a name
// occurs twice. The Builder must not be used after that.
func (b *Builder) Build(header list.Header) (*Document, error) {
	if err := header.Check(); err != nil {
		return nil, err
	}
	if len(b.records) > math.MaxUint32 {
		return nil, errTooMany
	}
	d, twice := b.build(header)
	var mistakes list.FormatErrors
	for _, r := range twice {
		mistakes = append(mistakes, &list.FormatError{
			Place: b.place(r.at, r.hash), Problem: r.problem(b.place(r.first, r.firstHash)),
		})
	}
	if err := mistakes.Err(); err != nil {
		return nil, err
	}
	return d, nil
}

// Added returns how many entries have been added.
func (b *Builder) Added() int { return b.added }

var errTooMany = errors.New("a list with more than four billion entries or bytes of names and labels")

// A builder collects entries and makes a Document from them.
type builder struct {
	entries []entry
	records records
	says    says // of the entry that is being read

	// names detects duplicate names: it maps the hash of a name to the index of its entry; nil if
	// no entry has a name. The seed is random, so the author of a list cannot choose names that
	// collide.
	names map[uint64]uint32
	seed  maphash.Seed
	again []repeat // the first duplicate names

	// merge makes entries that say the same about the same hash count as one.
	merge bool
	place func(at uint32) string
}

// A repeat is an entry with the hash or the name of an earlier entry.
type repeat struct {
	at, first       uint32
	hash, firstHash sources.EKHash
	name            string // the name that both have; empty if they have the same hash
	differ          bool   // the hash is repeated with a different name or labels
}

// problem describes the repeat. first is the place of the first entry.
func (r *repeat) problem(first string) string {
	if r.name != "" {
		return fmt.Sprintf("the name %q again, after %s", r.name, first)
	}
	if r.differ {
		return fmt.Sprintf("the hash %v with another name or other labels than in %s", r.hash, first)
	}
	return fmt.Sprintf("the hash %v again, after %s", r.hash, first)
}

// newBuilder returns a builder with room for some entries. place describes where an entry is.
func newBuilder(place func(at uint32) string, room int) builder {
	return builder{entries: make([]entry, 0, room), seed: maphash.MakeSeed(), place: place}
}

// takeAll adds an entry with its name and labels. It returns what is wrong with it, or an empty
// string.
func (b *builder) takeAll(at uint32, e Entry) string {
	b.says.reset()
	if problem := b.says.setName([]byte(e.Name)); problem != "" {
		return problem
	}
	for _, label := range e.Labels {
		if problem := b.says.addLabel([]byte(label)); problem != "" {
			return problem
		}
	}
	b.take(at, e.Hash)
	return ""
}

// take adds the entry whose name and labels are in b.says.
func (b *builder) take(at uint32, hash sources.EKHash) {
	record := b.records.add(&b.says)
	b.entries = append(b.entries, entry{hash, record, at})
	if len(b.says.name) == 0 || len(b.again) == list.MaxMistakes {
		return
	}
	if b.names == nil {
		b.names = map[uint64]uint32{}
	}
	this := uint32(len(b.entries) - 1)
	for key := maphash.Bytes(b.seed, b.says.name); ; key++ {
		other, there := b.names[key]
		if !there {
			b.names[key] = this
			return
		}
		if bytes.Equal(b.nameOf(other), b.says.name) {
			if first := b.entries[other]; first.hash != hash { // otherwise the hash is a duplicate
				b.again = append(b.again, repeat{at, first.at, hash, first.hash, string(b.says.name), false})
			}
			return
		}
	}
}

// nameOf returns the name of an entry that has one.
func (b *builder) nameOf(index uint32) []byte {
	record := b.records.at(b.entries[index].record)
	return record[2 : 2+int(record[1])]
}

// trim releases the room for entries that were not needed. A list may be in use for a long time.
func (b *builder) trim() {
	if cap(b.entries)-len(b.entries) > len(b.entries)/16 {
		b.names = nil // no entry follows
		b.entries = slices.Clone(b.entries)
	}
}

// build returns the list of all entries, or the first duplicates.
func (b *builder) build(header list.Header) (*Document, []repeat) {
	b.names = nil
	entries := b.entries
	b.entries = nil
	slices.SortFunc(entries, func(a, b entry) int {
		if c := bytes.Compare(a.hash[:], b.hash[:]); c != 0 {
			return c
		}
		return cmp.Compare(a.at, b.at)
	})
	if twice := firstRepeats(append(b.again, b.hashesTwice(entries)...)); len(twice) > 0 {
		return nil, twice
	}
	if b.merge {
		entries = slices.CompactFunc(entries, func(a, b entry) bool { return a.hash == b.hash })
	}
	return &Document{header: header, entries: entries, records: b.records, place: b.place}, nil
}

// hashesTwice returns the first entries with the hash of an earlier entry, except those that may be
// merged.
func (b *builder) hashesTwice(sorted []entry) (twice []repeat) {
	first := 0
	for i := 1; i < len(sorted); i++ {
		if sorted[i].hash != sorted[first].hash {
			first = i
			continue
		}
		e := &sorted[i]
		if b.merge && bytes.Equal(b.records.at(e.record), b.records.at(sorted[first].record)) {
			continue
		}
		twice = append(twice, repeat{e.at, sorted[first].at, e.hash, e.hash, "", b.merge})
		if len(twice) >= 100*list.MaxMistakes {
			twice = firstRepeats(twice)
		}
	}
	return twice
}

// firstRepeats returns the first repeats in the order of the list, at most list.MaxMistakes.
func firstRepeats(all []repeat) []repeat {
	slices.SortStableFunc(all, func(a, b repeat) int { return cmp.Compare(a.at, b.at) })
	return all[:min(len(all), list.MaxMistakes)]
}
