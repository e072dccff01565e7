package server

import (
	"container/list"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"sync"
	"time"
)

const (
	// maxSightings is how many EKs are remembered, by family of addresses: those
	// that attested last.
	maxSightings = 65_536
	// lastAddresses is how many addresses of one EK are remembered.
	lastAddresses = 4
	// alternatingPause is how long nothing more is logged of one EK.
	alternatingPause = time.Hour
)

// addresses remembers from where EKs have attested. A machine whose address
// changes moves on and does not come back; an EK that attests from one address,
// then from another and then from the first one again is in two machines: a
// virtual TPM that was copied with its machine, or an agent that forwards another
// machine's TPM.
//
// It remembers admitted machines only, so that strangers cannot make it forget.
type addresses struct {
	mu     sync.Mutex
	of     map[sightingKey]*list.Element // of *sighting
	recent *list.List                    // the last one first
}

// sightingKey is an EK in one family of addresses: a machine may have one of each
// and use them in turn.
type sightingKey struct {
	hash [sha256.Size]byte
	v6   bool
}

// sighting is where one EK was seen: the last address first, without duplicates.
type sighting struct {
	key    sightingKey
	from   [lastAddresses]netip.Addr
	logged time.Time
}

func newAddresses() *addresses {
	return &addresses{of: map[sightingKey]*list.Element{}, recent: list.New()}
}

// note notes that an EK has attested. Where it has come back to an address, from
// is the one in between; log is true where that has not been logged for an hour.
func (a *addresses) note(ekHash string, addr netip.Addr, now time.Time) (from netip.Addr, log bool) {
	addr = network(addr)
	key := sightingKey{v6: addr.Is6()}
	if len(ekHash) != hex.EncodedLen(len(key.hash)) || !addr.IsValid() {
		return netip.Addr{}, false
	}
	if _, err := hex.Decode(key.hash[:], []byte(ekHash)); err != nil {
		return netip.Addr{}, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.sighting(key)
	last := s.from[0]
	if addr == last {
		return netip.Addr{}, false
	}
	if !s.moveTo(addr) {
		return netip.Addr{}, false
	}
	if log = s.logged.IsZero() || now.Sub(s.logged) >= alternatingPause; log {
		s.logged = now
	}
	return last, log
}

// sighting returns that of an EK, and forgets the EK that was seen least recently
// where there are too many.
func (a *addresses) sighting(key sightingKey) *sighting {
	if e, ok := a.of[key]; ok {
		a.recent.MoveToFront(e)
		return e.Value.(*sighting) //nolint:forcetypeassert,errcheck // recent holds nothing else
	}
	if a.recent.Len() >= maxSightings {
		oldest := a.recent.Back()
		delete(a.of, oldest.Value.(*sighting).key) //nolint:forcetypeassert,errcheck // as above
		a.recent.Remove(oldest)
	}
	s := &sighting{key: key}
	a.of[key] = a.recent.PushFront(s)
	return s
}

// moveTo makes addr the last address, and reports whether it was one before.
func (s *sighting) moveTo(addr netip.Addr) bool {
	i := 0
	for i < len(s.from)-1 && s.from[i] != addr {
		i++
	}
	known := s.from[i] == addr
	copy(s.from[1:i+1], s.from[:i])
	s.from[0] = addr
	return known
}

// network returns the address by which a machine is known: of IPv6 the first 64
// bits, since hosts change the others at will (RFC 8981).
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

// noteAddress looks whether the machine that has just been admitted shares its EK
// with another one.
func (a *attestation) noteAddress(ctx context.Context) {
	addr, err := netip.ParseAddr(peer(ctx))
	if err != nil {
		return
	}
	from, log := a.plugin.addresses.note(a.ekHash, addr, time.Now())
	if !from.IsValid() {
		return
	}
	a.plugin.watch.alternating.Add(1)
	if log {
		a.plugin.log.Warn("An EK attests from two addresses in turn: "+
			"a virtual TPM may have been copied together with its machine",
			"ek_hash", a.ekHash, "peer", addr.String(), "other_peer", from.String())
	}
}
