// Package ekhashes implements a document of package list: a list of TPMs by their EK hashes.
//
// A list identifies each TPM by its EK hash ([sources.EKHash]) and may give it a name and labels.
// There are two formats, told apart by the first character that is not blank. The JSON format
// begins with a brace:
//
//	{"version": 1, "serial": 42, "expires": "2030-01-01T00:00:00Z", "list": "fleet",
//	 "keys": ["<ek hash>", {"hash": "<ek hash>", "name": "us-east-17", "labels": ["rack:12"]}]}
//
// Only "keys" is required, and "hash" in an entry that is an object; null counts as absent. Field
// names match exactly and must not be repeated. Unknown fields are ignored, with a warning about
// those that look as if they were meant to have an effect. Anything else is the text format, with
// an entry on each line:
//
//	# hash, then a name or -, then labels
//	<ek hash>
//	<ek hash> us-east-17 rack:12 env:prod
//	<ek hash> -          rack:12
//
// Words are separated by spaces and tabs, a # begins a comment anywhere, and lines end in LF or
// CRLF. Both formats are UTF-8; a byte order mark at the beginning is ignored (RFC 8259, 8.1).
//
// [Parse] accepts a whole list or none of it. Errors that name the place are: a duplicate hash or
// name, a value that exceeds the limits of package sources, a control character, a list that is cut
// off, and bytes after the list. [New] makes a list from entries, and [Document.WriteJSON] and
// [Document.WriteText] write one.
package ekhashes

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A Document is one whole list, made by Parse or New. It is immutable, and so safe for concurrent
// use.
type Document struct {
	header   list.Header
	entries  []entry // sorted by hash
	records  records
	warnings []string
	place    func(at uint32) string // describes where an entry was; nil for a list from New
}

// An entry is one TPM.
type entry struct {
	hash   sources.EKHash
	record uint32 // where its name and labels are in records
	at     uint32 // where it was in the list: the line, or the index in "keys"
}

var _ list.Content[*Document] = (*Document)(nil)

// Header implements list.Content.
func (d *Document) Header() list.Header { return d.header }

// WithHeader returns a list of the same entries with another header. The error says why a list
// cannot have that header.
func (d *Document) WithHeader(h list.Header) (*Document, error) {
	if err := h.Check(); err != nil {
		return nil, err
	}
	other := *d
	other.header = h
	return &other, nil
}

// Len implements list.Content.
func (d *Document) Len() int { return len(d.entries) }

// Warnings implements list.Content. They name fields that have no effect but look as if they were
// meant to.
func (d *Document) Warnings() []string { return d.warnings }

// An Entry is one TPM in a list.
type Entry struct {
	Hash sources.EKHash
	// Name is empty if the TPM has none.
	Name   string
	Labels []string
}

// All returns the entries, sorted by hash.
func (d *Document) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range d.entries {
			e := &d.entries[i]
			name, labels := d.records.of(e.record)
			if !yield(Entry{e.hash, name, labels}) {
				return
			}
		}
	}
}

// Lookup returns the entry of a TPM, and whether there is one.
func (d *Document) Lookup(hash sources.EKHash) (Entry, bool) {
	e := d.find(hash)
	if e == nil {
		return Entry{}, false
	}
	name, labels := d.records.of(e.record)
	return Entry{hash, name, labels}, true
}

// find returns the entry of a TPM, or nil.
func (d *Document) find(hash sources.EKHash) *entry {
	i, ok := slices.BinarySearchFunc(d.entries, &hash, func(e entry, hash *sources.EKHash) int {
		return bytes.Compare(e.hash[:], hash[:])
	})
	if !ok {
		return nil
	}
	return &d.entries[i]
}

// Verdict returns what the list says about a TPM, for a source to return from Check. The reason
// says where in the list the TPM is: "serial 42, keys[17]" or "line 17". Verdict does not check
// whether the list has expired.
func (d *Document) Verdict(hash sources.EKHash) sources.Verdict {
	v := sources.Verdict{}
	if d.header.HasSerial {
		v.Reason = fmt.Sprintf("serial %d", d.header.Serial)
	}
	e := d.find(hash)
	if e == nil {
		return v
	}
	v.Listed = true
	v.Attributes.Name, v.Attributes.Labels = d.records.of(e.record)
	if d.place != nil {
		v.Reason = strings.TrimPrefix(v.Reason+", "+d.place(e.at), ", ")
	}
	return v
}

// Equal implements list.Content: the same hashes, names and labels, in any order.
func (d *Document) Equal(other *Document) bool {
	if len(d.entries) != len(other.entries) {
		return false
	}
	for i := range d.entries {
		a, b := &d.entries[i], &other.entries[i]
		if a.hash != b.hash || !bytes.Equal(d.records.at(a.record), other.records.at(b.record)) {
			return false
		}
	}
	return true
}

// Without implements list.Content.
func (d *Document) Without(older *Document) int {
	gone, i := 0, 0
	for j := range older.entries {
		hash := &older.entries[j].hash
		for i < len(d.entries) && bytes.Compare(d.entries[i].hash[:], hash[:]) < 0 {
			i++
		}
		if i == len(d.entries) || d.entries[i].hash != *hash {
			gone++
		}
	}
	return gone
}
