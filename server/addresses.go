package server

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

const (
	// maxSightings limits how many EKs are remembered, each once for every address family. Those that attested last
	// are kept.
	maxSightings = 65_536
	// lastAddresses is how many addresses of an EK are remembered whatever their age. An EK that comes back to one
	// of them counts as being in several machines.
	lastAddresses = 4
	// maxAddresses is how many addresses from the last addressAge are remembered of one EK: 1 KiB.
	maxAddresses = 32
	addressAge   = 24 * time.Hour
	// alternatingPause is the shortest time between two lines in the log about the same EK.
	alternatingPause = time.Hour
)

// addresses remembers from where EKs have attested. An EK counts as being in several machines
// (a virtual TPM that was copied with its machine, or an agent that forwards another machine's
// TPM) if it
//
//   - comes back to one of its last four addresses: a machine whose address changes moves
//     on and does not come back;
//   - comes back to any of its 32 addresses within a day, twice without a new address in
//     between: copies attest at a steady pace and so in a steady order, while a machine
//     that has been to five places and is back in the first goes on to new ones;
//   - has had 32 addresses within a day, and comes from yet another.
//
// Only admitted machines are remembered, so strangers cannot make it forget.
type addresses struct {
	mu sync.Mutex
	of *simplelru.LRU[sightingKey, *sighting]
}

// sightingKey is an EK in one family of addresses: a machine may have an address of each family
// and use them in turn.
type sightingKey struct {
	hash sources.EKHash
	v6   bool
}

// sighting is where one EK was seen: the latest address first, each address once.
type sighting struct {
	from   []seen
	back   bool // the last change of address was a return to an earlier one
	logged time.Time
}

// seen is an address, and when an EK was last seen there, in Unix seconds.
type seen struct {
	addr netip.Addr
	at   int64
}

func newAddresses() *addresses {
	of, _ := simplelru.NewLRU[sightingKey, *sighting](maxSightings, nil) // fails only for a size below 1
	return &addresses{of: of}
}

// note records that an EK has attested. If the record shows that the EK is in several machines, from is the address
// before this one; otherwise from is not valid. log is true if nothing was logged about this EK for an hour.
func (a *addresses) note(ekHash sources.EKHash, addr netip.Addr, now time.Time) (from netip.Addr, log bool) {
	addr = network(addr)
	if !addr.IsValid() {
		return netip.Addr{}, false
	}
	key := sightingKey{hash: ekHash, v6: addr.Is6()}
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.of.Get(key)
	if !ok {
		s = &sighting{}
		a.of.Add(key, s)
	}
	var last netip.Addr
	if len(s.from) > 0 {
		last = s.from[0].addr
	}
	if !s.moveTo(seen{addr, now.Unix()}) {
		return netip.Addr{}, false
	}
	if log = s.logged.IsZero() || now.Sub(s.logged) >= alternatingPause; log {
		s.logged = now
	}
	return last, log
}

// moveTo makes next the last address, and reports whether this shows that the EK is in several
// machines.
func (s *sighting) moveTo(next seen) bool {
	for n := len(s.from); n > lastAddresses && next.at-s.from[n-1].at >= int64(addressAge.Seconds()); n-- {
		s.from = s.from[:n-1]
	}
	i := slices.IndexFunc(s.from, func(f seen) bool { return f.addr == next.addr })
	full, again := len(s.from) == maxAddresses, s.back
	switch {
	case i == 0:
		s.from[0] = next
		return false
	case i > 0:
		s.from = slices.Delete(s.from, i, i+1)
	case full:
		s.from = s.from[:maxAddresses-1]
	}
	s.from = slices.Insert(s.from, 0, next)
	if s.back = i > 0; s.back {
		return i < lastAddresses || again
	}
	return full
}

// network returns the part of an address that identifies a machine: for IPv6 the first 64 bits, since hosts change
// the other bits at will (RFC 8981).
func network(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if !addr.Is6() {
		return addr
	}
	const bits = 64
	prefix, err := addr.Prefix(bits)
	if err != nil {
		return addr
	}
	return prefix.Addr()
}

// noteAddress checks whether the machine that has just been admitted shares its EK with another
// machine.
func (a *attestation) noteAddress(ctx context.Context) {
	addr, err := netip.ParseAddr(peer(ctx))
	if err != nil {
		return
	}
	from, log := a.plugin.addresses.note(a.ekHash, addr, time.Now())
	if !from.IsValid() {
		return
	}
	a.plugin.metrics.add(ofAlternating(), 1)
	if log {
		a.plugin.log.Warn("An EK attests from several addresses in turn: "+
			"a virtual TPM may have been copied together with its machine",
			"ek_hash", a.ekHash.String(), "peer", addr.String(), "other_peer", from.String())
	}
}
