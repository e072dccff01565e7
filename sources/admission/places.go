package admission

import (
	"sync/atomic"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Places limit how many attestations may wait at the same time for TPMs that no source lists so
// far. Anybody can begin such attestations, with any number of keys, and they must not keep listed
// machines out. A nil Places has no limit. It is safe for concurrent use.
type Places struct {
	most  int64
	taken atomic.Int64
}

// NewPlaces returns n places.
func NewPlaces(n int) *Places { return &Places{most: int64(n)} }

// Take takes a place and reports whether there was one. It never waits.
func (p *Places) Take() bool {
	if p == nil || p.taken.Add(1) <= p.most {
		return true
	}
	p.taken.Add(-1)
	return false
}

// Wait is a function for Options.Wait. A machine that a source lists needs no place.
func (p *Places) Wait(_ *sources.Evidence, known bool) (leave func(), ok bool) {
	if known {
		return func() {}, true
	}
	return p.Leave, p.Take()
}

// Leave returns a place that Take has taken.
func (p *Places) Leave() {
	if p != nil {
		p.taken.Add(-1)
	}
}

// Taken returns the number of places that are taken.
func (p *Places) Taken() int {
	if p == nil {
		return 0
	}
	return int(p.taken.Load())
}
