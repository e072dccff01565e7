package listcache

import (
	"bytes"
	"encoding/binary"
	"slices"

	"github.com/spire-tpm/spire-tpm-attestor/sources/boltfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// An entry is, in a value: the hash; two bytes that are the length of the record,
// or goneMark; the record. Values hold whole entries, one behind another.

const (
	// goneMark takes the place of the length where a change removes the entry.
	// No record is as long.
	goneMark = 0xffff

	entryHead = len(eklist.Hash{}) + 2
)

func appendEntry(dst []byte, hash eklist.Hash, record eklist.Record) []byte {
	dst = append(dst, hash[:]...)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(record)))
	return append(dst, record...)
}

func appendGone(dst []byte, hash eklist.Hash) []byte {
	return binary.BigEndian.AppendUint16(append(dst, hash[:]...), goneMark)
}

type entry struct {
	hash   eklist.Hash
	record eklist.Record // in the memory of the value
	gone   bool
}

// cutEntry returns the first entry of a value and what follows.
func cutEntry(value []byte) (e entry, rest []byte, err error) {
	if len(value) < entryHead {
		return entry{}, nil, boltfile.Damaged("an entry is cut off")
	}
	e.hash = eklist.Hash(value)
	n := int(binary.BigEndian.Uint16(value[len(e.hash):]))
	rest = value[entryHead:]
	if n == goneMark {
		e.gone = true
		return e, rest, nil
	}
	if n > len(rest) {
		return entry{}, nil, boltfile.Damaged("an entry is cut off")
	}
	e.record = rest[:n]
	return e, rest[n:], nil
}

// A merger adds the entries of a list that have not changed to a Builder, and
// then those that have.
type merger struct {
	builder *eklist.Builder
	changes []entry // sorted, of each hash the last one
	at      int     // in changes
}

// change takes a value of changes. All come before the list.
func (m *merger) change(value []byte) error {
	for len(value) > 0 {
		e, rest, err := cutEntry(value)
		if err != nil {
			return err
		}
		m.changes = append(m.changes, e)
		value = rest
	}
	return nil
}

// settle makes one change of several of the same entry.
func (m *merger) settle() {
	slices.SortStableFunc(m.changes, func(a, b entry) int { return bytes.Compare(a.hash[:], b.hash[:]) })
	last := m.changes[:0]
	for i, e := range m.changes {
		if i+1 == len(m.changes) || m.changes[i+1].hash != e.hash {
			last = append(last, e)
		}
	}
	m.changes = last
}

// entries takes a value of the list, which is sorted.
func (m *merger) entries(value []byte) error {
	for len(value) > 0 {
		e, rest, err := cutEntry(value)
		if err != nil {
			return err
		}
		if e.gone {
			return boltfile.Damaged("an entry of the list is invalid")
		}
		if err := m.upTo(&e.hash); err != nil {
			return err
		}
		if m.at < len(m.changes) && m.changes[m.at].hash == e.hash {
			e = m.changes[m.at]
			m.at++
		}
		if err := m.add(e); err != nil {
			return err
		}
		value = rest
	}
	return nil
}

// upTo adds the changes of entries that sort before one of the list, or all where
// there is no such.
func (m *merger) upTo(hash *eklist.Hash) error {
	for ; m.at < len(m.changes); m.at++ {
		e := m.changes[m.at]
		if hash != nil && bytes.Compare(e.hash[:], hash[:]) >= 0 {
			return nil
		}
		if err := m.add(e); err != nil {
			return err
		}
	}
	return nil
}

func (m *merger) add(e entry) error {
	if e.gone {
		return nil
	}
	if err := m.builder.Add(e.hash, e.record); err != nil {
		return boltfile.Damaged("%v", err)
	}
	return nil
}
