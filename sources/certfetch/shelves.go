package certfetch

// What is kept stands on shelves by what it takes to have it kept, so that what
// anybody can cause pushes nothing out that took more. Each has a bound on objects,
// and one on bytes of memory, as costOf counts them.
const (
	// Issuers that Prove was told of.
	maxIssuers, maxIssuerBytes = 2048, 32 << 20
	// Other issuers. Whoever attests can fill this one, with any certificate of a
	// CA that is at a host that may be asked, by any number of URLs.
	maxUnproven, maxUnprovenBytes = 256, 4 << 20
	// EK certificates, which services have for EKs that were proven.
	maxEKs, maxEKBytes = 16_000, 96 << 20
	// CRLs, which CAs have signed that somebody trusts.
	maxCRLs, maxCRLBytes = 2048, 128 << 20

	// maxBodies is more than what their bodies have together, in bytes.
	maxBodies = 128 << 20
)

// costOf returns the memory that an object takes, in bytes, or more. A certificate
// of 340 bytes takes 3 KiB once it is parsed, and an issuer's body may have many of
// these; a CRL in PEM is there twice.
func costOf(n name, k *kept) int64 {
	const parsed = 4 << 10
	body := int64(len(k.body))
	cost := 2*body + parsed
	if n.kind.base() == Issuer {
		cost = max(cost, 10*body)
	}
	return cost + int64(len(n.url)+len(n.kind))
}

// stock is what was accepted, by name. Of each shelf what was used least recently
// goes first.
type stock struct{ issuers, unproven, eks, crls *lru[*kept] }

func newStock(gone func()) stock {
	shelf := func(objects int, bytes int64) *lru[*kept] { return newLRU(objects, bytes, costOf, gone) }
	return stock{
		issuers: shelf(maxIssuers, maxIssuerBytes), unproven: shelf(maxUnproven, maxUnprovenBytes),
		eks: shelf(maxEKs, maxEKBytes), crls: shelf(maxCRLs, maxCRLBytes),
	}
}

func (s *stock) all() []*lru[*kept] { return []*lru[*kept]{s.issuers, s.unproven, s.eks, s.crls} }

// shelf returns where an object is to be.
func (s *stock) shelf(kind Kind, proven bool) *lru[*kept] {
	switch kind.base() {
	case CRL:
		return s.crls
	case EKCertificate:
		return s.eks
	}
	if proven {
		return s.issuers
	}
	return s.unproven
}

// get returns what is kept by a name, and counts that as its use.
func (s *stock) get(n name) (*kept, bool) {
	if k, ok := s.shelf(n.kind, true).get(n); ok {
		return k, true
	}
	return s.shelf(n.kind, false).get(n)
}

// peek returns what is kept by a name, or nil, and does not count that as a use.
func (s *stock) peek(n name) *kept {
	if k := s.shelf(n.kind, true).peek(n); k != nil {
		return k
	}
	return s.shelf(n.kind, false).peek(n)
}

// put keeps k by a name, in place of what was.
func (s *stock) put(n name, k *kept) {
	s.drop(n)
	s.shelf(n.kind, k.proven).put(n, k)
}

// drop removes what is kept by a name.
func (s *stock) drop(n name) {
	s.shelf(n.kind, true).drop(n)
	s.shelf(n.kind, false).drop(n)
}

// each calls f with all that is kept.
func (s *stock) each(f func(name, *kept)) {
	for _, l := range s.all() {
		l.each(f)
	}
}

// size returns how much is kept.
func (s *stock) size() (objects int, bytes int64) {
	for _, l := range s.all() {
		objects += len(l.byName)
		bytes += l.bytes
	}
	return objects, bytes
}
