package certs

import (
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// A search looks for the chains of one leaf.
type search struct {
	r    Request
	all  *Anchors
	now  time.Time // Request.Now, or when the leaf becomes valid
	leaf *node
	v    verifier

	// joiners are the CA certificates, sent or fetched, that may be between the leaf and an anchor.
	joiners []*node
	// above are the joiners that upwards has reached.
	above []*node
	// adopted are the joiners and anchors that were found at a URL.
	adopted []adoption

	lookups         int // how many more are allowed
	wants           []Want
	failures        []error // why what was looked up is not available
	proven, doubted []string
}

func newSearch(r Request, now time.Time) *search {
	return &search{
		r: r, all: r.Anchors, now: now,
		leaf: newLeaf(r.Leaf),
		v:    verifier{left: maxSignatures, memo: r.Verified}, lookups: maxLookups,
	}
}

// complete reports whether there is nothing more to find.
func (s *search) complete(found *Chain) bool {
	return found != nil && (s.all.bundles < 2 || len(found.Bundles) == s.all.bundles)
}

// configured returns the chain of the leaf through the configured certificates and those that the
// machine has sent, or nil if there is none. It looks for all bundles; if no bundles are
// configured, it stops at the first anchor.
func (s *search) configured() *Chain {
	s.v.link(s.all, s.leaf)
	found := s.climb(nil)
	if len(s.r.Sent) == 0 || found != nil && len(found.Bundles) == s.all.bundles {
		return found
	}
	s.joiners = s.usable(s.r.Sent)
	s.v.join(s.all, s.leaf, named(s.leaf, s.joiners))
	return s.climb(nil)
}

// climb follows chains upwards from the leaf, breadth first, so that it reaches each CA certificate
// by the shortest chain, which is the least restricted. If permits is not nil, it goes from a
// certificate to an issuer only if permits allows that. If no bundles are configured, it stops at
// the first anchor.
func (s *search) climb(permits func(n, issuer *node) bool) *Chain {
	if len(s.leaf.issuers) == 0 {
		return nil
	}
	var bundles []string
	var first *signer
	seen := make(map[*node]bool)
	level := []*node{s.leaf}
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
					return &Chain{IssuerKeyHash: first.keyHash}
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
	return &Chain{IssuerKeyHash: first.keyHash, Bundles: slices.Compact(bundles)}
}

// usable returns the certificates sent by a machine that may be between a leaf and an anchor: those
// of CAs that are not configured themselves. No signature is verified yet.
func (s *search) usable(sent [][]byte) []*node {
	var fit []*node
	for _, der := range sent[:min(len(sent), maxSent)] {
		c, err := attestor.ParseCertificate(der)
		if err != nil || s.r.Profile.faultOfCA(c) != "" || s.r.Profile.faultOfJoiner(c) != "" {
			continue
		}
		if n, err := newNode(c); err == nil && !s.all.holds(n) && !contains(fit, n) {
			fit = append(fit, n)
		}
	}
	return fit
}

// named returns the nodes that can be reached from the leaf by the names of issuers.
func named(leaf *node, nodes []*node) []*node {
	var reached []*node
	wanted := []string{leaf.issuer}
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

// A verifier verifies a limited number of signatures.
type verifier struct {
	left int
	memo *Memo
	// tangled is true if the limit was exceeded, so that Find cannot tell.
	tangled bool
}

// signed reports whether s has signed the certificate of n.
func (v *verifier) signed(n *node, s *signer) bool {
	if v.memo.has(n, s) {
		return true
	}
	if v.left == 0 {
		v.tangled = true
		return false
	}
	v.left--
	c := n.cert
	ok := s.certs[0].cert.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
	if ok {
		v.memo.add(n, s)
	}
	return ok
}

// issued reports whether a CA has issued n: by has the name of n's issuer and has signed n. It is
// false if n is another certificate of the same CA.
func (v *verifier) issued(n, by *node) bool {
	return by.signer.subject == n.issuer && (n.signer == nil || n.signer.keyHash != by.signer.keyHash) &&
		v.signed(n, by.signer)
}

// selfSigned reports whether the certificate of n is self-signed.
func (v *verifier) selfSigned(n *node) bool {
	return n.signer != nil && n.signer.subject == n.issuer && v.signed(n, n.signer)
}

// link finds the configured CA that has signed n.
func (v *verifier) link(a *Anchors, n *node) {
	for s := range a.candidates(n) {
		if s != n.signer && v.signed(n, s) {
			n.issuers = append(n.issuers, s.certs...)
			return
		}
	}
}

// join finds the joiners that were signed by an anchor, or by a joiner that was, and which of them
// have signed the leaf. It goes downwards from the anchors, so that the key in a forged certificate
// is never used.
func (v *verifier) join(a *Anchors, leaf *node, joiners []*node) {
	var trusted, fresh []*node
	for _, n := range joiners {
		if v.link(a, n); len(n.issuers) > 0 {
			fresh = append(fresh, n)
		}
	}
	for len(fresh) > 0 {
		trusted = append(trusted, fresh...)
		fresh = v.descend(fresh, joiners)
	}
	v.descend(trusted, []*node{leaf})
}

// descend finds the children that the issuers have signed, and returns those that had no known
// issuer before.
func (v *verifier) descend(issuers, children []*node) []*node {
	var fresh []*node
	for _, n := range children {
		first := len(n.issuers) == 0
		for _, issuer := range issuers {
			if v.issued(n, issuer) {
				n.issuers = append(n.issuers, issuer)
			}
		}
		if first && len(n.issuers) > 0 {
			fresh = append(fresh, n)
		}
	}
	return fresh
}
