package ekhashes

import (
	"bytes"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// records are the names and labels of all entries, one after another. A record is the number of its
// labels in one byte, then the name and each label, each preceded by its length in one byte. A
// record is identified by its offset; no record has the offset 0.
type records []byte

// at returns the record at an offset; nil for offset 0.
func (r records) at(offset uint32) []byte {
	if offset == 0 {
		return nil
	}
	end := offset + 1
	for range int(r[offset]) + 1 {
		end += 1 + uint32(r[end])
	}
	return r[offset:end]
}

// of returns the name and the labels in a record. They share no memory with r.
func (r records) of(offset uint32) (name string, labels []string) {
	record := string(r.at(offset)) // one allocation, shared by all results
	if record == "" {
		return "", nil
	}
	next := func() string {
		n := 1 + int(record[0])
		text := record[1:n]
		record = record[n:]
		return text
	}
	count := int(record[0])
	record = record[1:]
	name = next()
	for range count {
		labels = append(labels, next())
	}
	return name, labels
}

// add appends the name and labels of an entry, and returns the offset of the record.
func (r *records) add(says *says) uint32 {
	if len(says.name) == 0 && says.labels == 0 {
		return 0
	}
	if len(*r) == 0 {
		*r = append(*r, 0)
	}
	at := uint32(len(*r))
	*r = append(*r, byte(says.labels), byte(len(says.name)))
	*r = append(append(*r, says.name...), says.packed...)
	return at
}

// says is the name and the labels of the entry that is being read. Its methods return what is wrong
// with a value, or an empty string.
type says struct {
	name   []byte
	packed []byte // the labels, as in a record
	labels int    // how many there are
	given  int    // including duplicates
}

func (s *says) reset() { s.name, s.packed, s.labels, s.given = s.name[:0], s.packed[:0], 0, 0 }

// setName sets the name, without the blanks around it.
func (s *says) setName(name []byte) string {
	name, problem := list.Tidy(sources.PrefixName, "name", name)
	s.name = append(s.name[:0], name...)
	return problem
}

// addLabel adds a label, without the blanks around it, unless the entry already has it.
func (s *says) addLabel(label []byte) string {
	s.given++
	label, problem := list.TidyLabel(s.given, label)
	if problem != "" {
		return problem
	}
	for rest := s.packed; len(rest) > 0; {
		n := 1 + int(rest[0])
		if bytes.Equal(rest[1:n], label) {
			return ""
		}
		rest = rest[n:]
	}
	s.packed = append(append(s.packed, byte(len(label))), label...)
	s.labels++
	return ""
}
