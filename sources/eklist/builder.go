package eklist

import (
	"fmt"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// A Builder makes a Snapshot out of entries that were in one before, as they come
// out of a cache. It is used by one goroutine, once. Entries that are sorted, as
// Snapshot.All returns them, are the cheapest.
type Builder struct {
	header Header
	list   collector
}

// NewBuilder returns a Builder for a list of about so many entries.
func NewBuilder(header Header, entries int) *Builder {
	return &Builder{header: header, list: collector{expect: max(entries, 0)}}
}

// Add adds an entry. It keeps neither hash nor record.
func (b *Builder) Add(hash sources.EKHash, record Record) error {
	attrs := &b.list.attrs
	attrs.reset()
	if problem := attrs.parse(record); problem != "" {
		return fmt.Errorf("entry %d: %s", b.list.n, problem)
	}
	*b.list.next(0) = hash
	b.list.add(attrs)
	return nil
}

// Snapshot returns the list. It reports an error where a hash or a name
// was added twice.
func (b *Builder) Snapshot() (*Snapshot, error) {
	return b.list.snapshot(b.header, func(entry uint32) string { return fmt.Sprintf("entry %d", entry) })
}
