package certs

import (
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// A search looks for who vouches for one leaf.
type search struct {
	r    Request
	all  *Anchors
	now  time.Time // Request.Now, or when the leaf becomes valid
	leaf *node
	v    verifier

	// joiners are the CA certificates, sent or fetched, that may stand between the leaf
	// and an anchor.
	joiners []*node
	// above are those of the joiners that upwards has come to.
	above []*node
	// adopted are those of the joiners, and of the anchors, that were found at a URL.
	adopted []adoption

	lookups         int // how many more there may be
	wants           []Want
	failures        []error // why what was looked up could not be had
	proven, doubted []string
}

func newSearch(r Request, now time.Time) *search {
	return &search{
		r: r, all: r.Anchors, now: now,
		leaf: newLeaf(r.Leaf),
		v:    verifier{left: maxSignatures, memo: r.Verified}, lookups: maxLookups,
	}
}

// complete reports whether there is nothing more to be found.
func (s *search) complete(found *Chain) bool {
	return found != nil && (s.all.bundles < 2 || len(found.Bundles) == s.all.bundles)
}

// configured returns who vouches for the leaf by the configured certificates and those that
// the machine has sent, or nil if nobody does. It looks for every bundle that vouches; if no
// bundles are configured, the first anchor will do.
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

// climb follows chains upwards from the leaf, breadth first, so that it comes to each CA
// certificate by the shortest chain, against which the least can be said. If permits is not
// nil, it goes from a certificate to an issuer only if permits allows that. If no bundles are
// configured, it stops at the first anchor.
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

// usable returns those of the certificates that a machine has sent that may stand
// between a leaf and an anchor: CAs' that are not configured
// themselves. No signature is verified yet.
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

// named returns those nodes that can be reached from the leaf by the
// names of issuers.
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
	// tangled is whether there would have been more: nothing can be told then.
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

// issued reports whether a CA has issued n, which is not another certificate of that CA: it
// has the name of n's issuer, and has signed n.
func (v *verifier) issued(n, by *node) bool {
	return by.signer.subject == n.issuer && (n.signer == nil || n.signer.keyHash != by.signer.keyHash) &&
		v.signed(n, by.signer)
}

// selfSigned reports whether the certificate of n is a root's.
func (v *verifier) selfSigned(n *node) bool {
	return n.signer != nil && n.signer.subject == n.issuer && v.signed(n, n.signer)
}

// link finds the configured authority that has signed n.
func (v *verifier) link(a *Anchors, n *node) {
	for s := range a.candidates(n) {
		if s != n.signer && v.signed(n, s) {
			n.issuers = append(n.issuers, s.certs...)
			return
		}
	}
}

// join finds which joiners have been signed by an anchor, or by a joiner that has, and which
// of them have signed the leaf. It goes from the anchors downwards, so that the key in a
// certificate that somebody made up is never used.
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

// descend finds which of children the issuers have signed, and returns those
// that had no known issuer before.
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
