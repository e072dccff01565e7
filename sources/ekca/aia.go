package ekca

import (
	"context"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// maxTried is how many of the certificates that a machine has sent are tried as
// the issuer of another. Their keys may be made to be slow.
const maxTried = 4

// fetch looks for chains through certificates that the EK certificate, and those
// above it, say where to find (RFC 5280, 4.2.2.1), after configured has found
// none.
//
// It goes upwards, and follows the URLs of a certificate where no configured CA
// that is valid has signed it, and where it has itself signed the one below.
// With bundles it looks up all URLs, whatever it finds, since each bundle that
// vouches is named: which are named then depends on what can be had, and not on
// what was had first. What cannot be looked up is left to q; there may be a
// finding nevertheless, less what it might have added.
func (s *search) fetch(ctx context.Context, q *inquiry) (*finding, error) {
	level := []*node{s.ek}
	var found *finding
	for depth := 1; depth < MaxChain && len(level) > 0; depth++ {
		var next []*node
		for _, child := range level {
			if err := s.lookUp(ctx, q, child); err != nil {
				return nil, err
			}
			fresh, err := s.ascend(ctx, child)
			if err != nil {
				return nil, err
			}
			next = append(next, fresh...)
		}
		s.settle()
		if found = s.climb(nil); s.complete(found) {
			break
		}
		level = next
	}
	for _, a := range s.adopted {
		if len(a.node.issuers) > 0 || len(a.node.bundles) > 0 {
			q.store.Prove(a.url)
		}
	}
	return found, nil
}

// ascend finds the configured issuers of child's parents, and returns those
// parents that have none and have not been come to before: a loop ends there.
func (s *search) ascend(ctx context.Context, child *node) ([]*node, error) {
	var fresh []*node
	for _, n := range child.parents {
		if slices.Contains(s.above, n) {
			continue
		}
		s.above = append(s.above, n)
		if len(n.issuers) == 0 {
			if err := s.v.link(ctx, s.all, n); err != nil {
				return nil, err
			}
		}
		if !n.anchored(s.now) {
			fresh = append(fresh, n)
		}
	}
	return fresh, nil
}

// lookUp finds certificates that have signed child among those that the machine
// has sent and those at child's URLs.
func (s *search) lookUp(ctx context.Context, q *inquiry, child *node) error {
	tried := 0
	for _, n := range s.joiners {
		if !n.signer.lasting && n.signer.subject == child.issuer {
			if tried++; tried > maxTried {
				continue
			}
		}
		if _, err := s.adopt(ctx, child, n); err != nil {
			return err
		}
	}
	for _, url := range q.allowed(child.cert.IssuingCertificateURL) {
		fetched, ok := q.issuers(ctx, url, s.now)
		if !ok {
			continue
		}
		signers, err := s.adoptAll(ctx, child, fetched)
		if err != nil {
			return err
		}
		for _, n := range signers {
			s.adopted = append(s.adopted, adoption{n, url})
		}
		switch {
		case len(signers) == 0:
			q.doubt(url, child)
		case !slices.ContainsFunc(signers, func(n *node) bool { return faultOfDates(n.cert, s.now) == "" }):
			q.store.Doubt(certfetch.Issuer, url) // a renewed one may be there
		case s.all.bundles < 2:
			return nil
		}
	}
	return nil
}

// An adoption is a certificate that has signed one below it, and the URL in that
// one at which it was found.
type adoption struct {
	node *node
	url  string
}

// adoptAll makes those of fetched that have signed child its parents, and returns
// them. Configured ones are known already.
func (s *search) adoptAll(ctx context.Context, child *node, fetched issuers) ([]*node, error) {
	var signers []*node
	for _, n := range fetched {
		if s.all.holds(n) {
			at := slices.IndexFunc(child.issuers, func(own *node) bool { return own.cert.Equal(n.cert) })
			if at >= 0 {
				signers = append(signers, child.issuers[at])
			}
			continue
		}
		own := s.add(n)
		signed, err := s.adopt(ctx, child, own)
		if err != nil {
			return nil, err
		}
		if signed {
			signers = append(signers, own)
		}
	}
	return signers, nil
}

// add returns this search's own copy of a fetched certificate.
func (s *search) add(n *node) *node {
	at := slices.IndexFunc(s.joiners, func(own *node) bool { return own.cert.Equal(n.cert) })
	if at >= 0 {
		own := s.joiners[at]
		own.signer, own.proven = n.signer, n.proven
		return own
	}
	own := *n
	s.joiners = append(s.joiners, &own)
	return &own
}

// adopt reports whether n has signed child, and makes it one of its parents then.
func (s *search) adopt(ctx context.Context, child, n *node) (bool, error) {
	if slices.Contains(child.parents, n) {
		return true, nil
	}
	if n.signer.subject != child.issuer || child.signer != nil && child.signer.keyHash == n.signer.keyHash {
		return false, nil
	}
	ok, err := s.v.signed(ctx, child, n.signer)
	if ok {
		child.parents = append(child.parents, n)
	}
	return ok, err
}

// anchored reports whether a configured CA that is valid has signed n.
func (n *node) anchored(now time.Time) bool {
	return slices.ContainsFunc(n.issuers, func(issuer *node) bool {
		return len(issuer.bundles) > 0 && faultOfDates(issuer.cert, now) == ""
	})
}

// settle makes parents issuers where a configured CA is above them.
func (s *search) settle() {
	for changed := true; changed; {
		changed = false
		for _, n := range slices.Concat(s.above, []*node{s.ek}) {
			for _, parent := range n.parents {
				if len(parent.issuers) > 0 && !slices.Contains(n.issuers, parent) {
					n.issuers = append(n.issuers, parent)
					changed = true
				}
			}
		}
	}
}
