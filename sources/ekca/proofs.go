package ekca

import (
	"slices"
	"sync/atomic"
)

// maxProofs is the number of keys that are remembered to have signed one
// certificate.
const maxProofs = 8

// proofs remember by whose keys a fetched certificate is known to have been
// signed, so that its signature is verified once and not at each attestation.
// Only keys that are configured or were fetched are remembered: a machine cannot
// make it grow, or forget. They are safe for concurrent use and take no lock.
type proofs struct{ keys atomic.Pointer[[]string] }

// has reports whether the key of s is known to have signed. p may be nil.
func (p *proofs) has(s *signer) bool {
	if p == nil {
		return false
	}
	keys := p.keys.Load()
	return keys != nil && slices.Contains(*keys, s.keyHash)
}

// add remembers that the key of s has signed. p may be nil. Where two add at
// once, one of them may be lost, and is verified again.
func (p *proofs) add(s *signer) {
	if p == nil || !s.lasting {
		return
	}
	var next []string
	if keys := p.keys.Load(); keys != nil {
		next = append(next, (*keys)[max(0, len(*keys)-maxProofs+1):]...)
	}
	next = append(next, s.keyHash)
	p.keys.Store(&next)
}
