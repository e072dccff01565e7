package ekca

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Limits on one search for chains. What a machine sends can cause no more work
// than this.
const (
	// MaxChain is the number of CA certificates in a chain.
	MaxChain = 8
	// maxSent is the number of a machine's certificates that are looked at.
	maxSent = 16
	// maxSignatures is the number of signatures that are verified.
	maxSignatures = 32
)

var errTangled = fmt.Errorf(
	"finding the EK certificate's issuers would take more than %d signature checks", maxSignatures)

// A finding is who vouches for an EK certificate.
type finding struct {
	// issuer is the CA that signed it.
	issuer *signer
	// bundles are the bundles that vouch, sorted; nil where none are
	// configured.
	bundles []string
	// unchecked says of which certificates above, and of the EK certificate, nobody
	// knows whether they have been revoked, and why; empty if there are none.
	unchecked string
}

// A search looks for who vouches for one EK certificate.
type search struct {
	all *authorities
	now time.Time
	ek  *node
	v   verifier

	// joiners are the CA certificates, sent or fetched, that may stand between
	// the EK certificate and an authority.
	joiners []*node
	// above are those of the joiners that fetch has come to.
	above []*node
	// adopted are those of the joiners, and of the authorities, that were found
	// at a URL.
	adopted []adoption
}

func newSearch(all *authorities, cert *x509.Certificate, now time.Time) *search {
	return &search{
		all: all, now: now,
		ek: &node{cert: cert, issuer: canonical(cert.RawIssuer)},
		v:  verifier{left: maxSignatures},
	}
}

// complete reports whether there is nothing more to be found.
func (s *search) complete(found *finding) bool {
	return found != nil && (s.all.bundles < 2 || len(found.bundles) == s.all.bundles)
}

// configured returns who vouches for the EK certificate, which has no fault of its
// own, or nil where nobody does, by the configured certificates and those that
// the machine has sent. It looks for every bundle that does; where no bundles are
// configured, the first authority will do.
func (s *search) configured(ctx context.Context, sent [][]byte) (*finding, error) {
	if err := s.v.link(ctx, s.all, s.ek); err != nil {
		return nil, err
	}
	found := s.climb(nil)
	if len(sent) == 0 || found != nil && len(found.bundles) == s.all.bundles {
		return found, nil
	}
	s.joiners = s.all.usable(sent)
	if err := s.v.join(ctx, s.all, s.ek, named(s.ek, s.joiners)); err != nil {
		return nil, err
	}
	return s.climb(nil), nil
}

// climb follows chains upwards from the EK certificate, breadth first, so that
// each CA certificate is met at the end of its shortest chain, which is the one
// that the least can be said against. With permits, it goes only from those
// certificates to those issuers that permits allows; where no bundles are
// configured it then asks no more than it has to.
func (s *search) climb(permits func(n, issuer *node) bool) *finding {
	if len(s.ek.issuers) == 0 {
		return nil
	}
	var bundles []string
	var first *signer
	seen := make(map[*node]bool)
	level := []*node{s.ek}
	for below := 0; below < MaxChain && len(level) > 0; below++ {
		var next []*node
		for _, n := range level {
			for _, issuer := range n.issuers {
				if seen[issuer] || !issuer.maySign(below, s.now) || permits != nil && !permits(n, issuer) {
					continue
				}
				seen[issuer] = true
				if first == nil {
					first = issuer.signer
				}
				if bundles = append(bundles, issuer.bundles...); len(bundles) > 0 && s.all.bundles == 0 {
					return &finding{issuer: first}
				}
				next = append(next, issuer)
			}
		}
		level = next
	}
	if len(bundles) == 0 {
		return nil
	}
	slices.Sort(bundles)
	return &finding{issuer: first, bundles: slices.Compact(bundles)}
}

// usable returns those of the certificates that a machine has sent that may stand
// between an EK certificate and an authority: CAs' that are not configured
// themselves. No signature is verified yet.
func (a *authorities) usable(sent [][]byte) []*node {
	var fit []*node
	for _, der := range sent[:min(len(sent), maxSent)] {
		c, err := attestor.ParseCertificate(der)
		if err != nil || faultOfCA(c) != "" || faultOfJoiner(c) != "" {
			continue
		}
		if n, err := newNode(c); err == nil && !a.holds(n) && !contains(fit, n) {
			fit = append(fit, n)
		}
	}
	return fit
}

// named returns those nodes that can be reached from the EK certificate by the
// names of issuers.
func named(ek *node, nodes []*node) []*node {
	var reached []*node
	wanted := []string{ek.issuer}
	for i := 0; i < len(wanted); i++ {
		for _, n := range nodes {
			if n.signer.subject == wanted[i] && !contains(reached, n) {
				reached = append(reached, n)
				wanted = append(wanted, n.issuer)
			}
		}
	}
	return reached
}

// contains reports whether the certificate of n is among those of nodes.
func contains(nodes []*node, n *node) bool {
	return slices.ContainsFunc(nodes, func(other *node) bool { return other.cert.Equal(n.cert) })
}

// verifier verifies a limited number of signatures.
type verifier struct{ left int }

// signed reports whether s has signed the certificate of n.
func (v *verifier) signed(ctx context.Context, n *node, s *signer) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, fmt.Errorf("verify the signatures of certificates: %w", err)
	}
	if n.proven.has(s) {
		return true, nil
	}
	if v.left == 0 {
		return false, errTangled
	}
	v.left--
	c := n.cert
	ok := s.certs[0].cert.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
	if ok {
		n.proven.add(s)
	}
	return ok, nil
}

// link finds the configured authority that has signed n.
func (v *verifier) link(ctx context.Context, a *authorities, n *node) error {
	for s := range a.candidates(n) {
		if s == n.signer {
			continue
		}
		ok, err := v.signed(ctx, n, s)
		if err != nil {
			return err
		}
		if ok {
			n.issuers = append(n.issuers, s.certs...)
			return nil
		}
	}
	return nil
}

// join finds which joiners have been signed by an authority, or by a joiner that
// has, and which of them have signed the EK certificate. It goes from the
// authorities downwards, so that the key in a certificate that somebody made up
// is never used.
func (v *verifier) join(ctx context.Context, a *authorities, ek *node, joiners []*node) error {
	var trusted, fresh []*node
	for _, n := range joiners {
		if err := v.link(ctx, a, n); err != nil {
			return err
		}
		if len(n.issuers) > 0 {
			fresh = append(fresh, n)
		}
	}
	for len(fresh) > 0 {
		trusted = append(trusted, fresh...)
		next, err := v.descend(ctx, fresh, joiners)
		if err != nil {
			return err
		}
		fresh = next
	}
	_, err := v.descend(ctx, trusted, []*node{ek})
	return err
}

// descend finds which of children the issuers have signed, and returns those
// that had no known issuer before.
func (v *verifier) descend(ctx context.Context, issuers, children []*node) ([]*node, error) {
	var fresh []*node
	for _, n := range children {
		first := len(n.issuers) == 0
		for _, issuer := range issuers {
			if issuer.signer.subject != n.issuer || n.signer != nil && n.signer.keyHash == issuer.signer.keyHash {
				continue
			}
			ok, err := v.signed(ctx, n, issuer.signer)
			if err != nil {
				return nil, err
			}
			if ok {
				n.issuers = append(n.issuers, issuer)
			}
		}
		if first && len(n.issuers) > 0 {
			fresh = append(fresh, n)
		}
	}
	return fresh, nil
}
