package ekhashes

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"iter"
	"math"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// New returns the list of some entries. The error says which entry breaks the rules
// of a list, by its number from 0 on.
func New(header list.Header, entries iter.Seq[Entry]) (*Document, error) {
	if err := header.Check(); err != nil {
		return nil, err
	}
	b := newBuilder(func(at uint32) string { return fmt.Sprintf("entry %d", at) }, 0)
	n := uint32(0)
	for e := range entries {
		if problem := b.takeAll(n, e); problem != "" {
			return nil, fmt.Errorf("%s: %s", b.place(n), problem)
		}
		n++
	}
	return b.build(header)
}

// A builder takes entries and makes a Document of them.
type builder struct {
	entries []entry
	records records
	says    says // of the entry that is being read

	// names finds names that are given twice: a hash of each, with the index of its
	// entry; nil if no entry has a name. The seed is random, so the list's writer cannot
	// choose names that collide.
	names map[uint64]uint32
	seed  maphash.Seed
	again *again // the first name that is there twice

	place func(at uint32) string
}

// again is an entry whose name another one before it has.
type again struct{ first, second uint32 }

// newBuilder returns a builder with room for some entries. place says where an entry is.
func newBuilder(place func(at uint32) string, room int) builder {
	return builder{entries: make([]entry, 0, room), seed: maphash.MakeSeed(), place: place}
}

// takeAll takes an entry with what it says. It returns what is wrong with it.
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

// take takes the entry that has been read.
func (b *builder) take(at uint32, hash sources.EKHash) {
	record := b.records.add(&b.says)
	b.entries = append(b.entries, entry{hash, record, at})
	if len(b.says.name) == 0 || b.again != nil {
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
			b.again = &again{other, this}
			return
		}
	}
}

// nameOf returns the name of an entry that has one.
func (b *builder) nameOf(index uint32) []byte {
	record := b.records.at(b.entries[index].record)
	return record[2 : 2+int(record[1])]
}

// build returns the list of all entries.
func (b *builder) build(header list.Header) (*Document, error) {
	if len(b.entries) > math.MaxUint32 || len(b.records) > math.MaxUint32 {
		return nil, errors.New("a list with more than four billion entries or bytes of names and labels")
	}
	if b.again != nil {
		first, second := b.entries[b.again.first].at, b.entries[b.again.second].at
		return nil, b.twice(first, second, fmt.Sprintf("the name %q", b.nameOf(b.again.first)))
	}
	b.names = nil
	entries := b.entries
	if cap(entries)-len(entries) > len(entries)/16 { // room for as many as the list might have had
		entries = slices.Clone(entries)
	}
	slices.SortFunc(entries, func(a, b entry) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	if err := b.hashTwice(entries); err != nil {
		return nil, err
	}
	return &Document{header: header, entries: entries, records: b.records}, nil
}

// hashTwice returns an error if a hash is there twice, for the first entry in the order
// of the list whose hash an earlier one has.
func (b *builder) hashTwice(sorted []entry) error {
	var first, second *entry
	for i := 1; i < len(sorted); i++ {
		if sorted[i].hash != sorted[i-1].hash {
			continue
		}
		from := i - 1
		for i+1 < len(sorted) && sorted[i+1].hash == sorted[from].hash {
			i++
		}
		same := sorted[from : i+1]
		slices.SortFunc(same, func(a, b entry) int { return int(int64(a.at) - int64(b.at)) })
		if second == nil || same[1].at < second.at {
			first, second = &same[0], &same[1]
		}
	}
	if second == nil {
		return nil
	}
	return b.twice(first.at, second.at, fmt.Sprintf("the hash %v", second.hash))
}

func (b *builder) twice(first, second uint32, what string) error {
	return &list.FormatError{
		Place: b.place(second), Problem: fmt.Sprintf("%s for the second time, after %s", what, b.place(first)),
	}
}
