package certs

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"time"
)

// Anchors are the configured CA certificates, indexed by name. They are immutable.
type Anchors struct {
	byName map[string][]*signer // by the canonical form of their name
	byKey  map[keyRef][]*signer
	// bundles is the number of bundles; 0 if none are configured, so that it does not matter which
	// CA a chain ends at.
	bundles int
	// valid is the number of certificates that were valid when they were
	// loaded.
	valid int
	// expiries are the certificates' expiry times, the earliest first.
	expiries []caExpiry
}

// A caExpiry is the expiry time of a configured certificate, and its place.
type caExpiry struct {
	notAfter time.Time
	place    string
}

// Valid returns the number of certificates that were valid when they were loaded.
func (a *Anchors) Valid() int { return a.valid }

// Expiring returns texts about the certificates that expire soon or have expired since they were
// loaded, the earliest first.
func (a *Anchors) Expiring(now time.Time) []string {
	var all []string
	for _, e := range a.expiries {
		if e.notAfter.Sub(now) > expiresSoon {
			break
		}
		what := Expiry(e.notAfter, now)
		if what == "" {
			what = "has expired on " + e.notAfter.UTC().Format(time.RFC3339)
		}
		all = append(all, e.place+" "+what+": get the next one from its CA")
	}
	return all
}

// A keyRef is how a certificate refers to its issuer if it has an authority key identifier (RFC
// 5280, 4.2.1.1).
type keyRef struct {
	name  string // in its canonical form
	keyID string
}

// A signer is a CA: a name and a key. It may have several certificates.
type signer struct {
	subject string // the canonical form of its name
	keyHash string // SHA-256 of its SubjectPublicKeyInfo, hex
	certs   []*node
	// lasting is false if only a machine has sent the certificate.
	lasting bool
}

// A node is a certificate in a chain.
type node struct {
	cert   *x509.Certificate
	sum    [sha256.Size]byte // the hash of its DER
	issuer string            // the canonical form of its issuer's name
	signer *signer           // nil for a leaf
	// bundles are the bundles that contain the certificate. One that a machine has sent is in none.
	// If CAs are configured without bundles, they are in one bundle without a name.
	bundles []string
	// issuers are the CA certificates that are known to have signed it, and that are configured or
	// chain to a configured CA.
	issuers []*node
	// parents are the certificates that a search knows to have signed it, whatever is above them.
	parents []*node
}

// newLeaf returns a certificate without a signer.
func newLeaf(c *x509.Certificate) *node {
	return &node{cert: c, sum: sha256.Sum256(c.Raw), issuer: canonical(c.RawIssuer)}
}

// newNode returns a CA certificate with a signer of its own.
func newNode(c *x509.Certificate) (*node, error) {
	spki, err := x509.MarshalPKIXPublicKey(c.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("marshal the key: %w", err)
	}
	hash := sha256.Sum256(spki)
	n := newLeaf(c)
	n.signer = &signer{
		subject: canonical(c.RawSubject),
		keyHash: hex.EncodeToString(hash[:]),
		certs:   []*node{n},
	}
	return n, nil
}

// above returns the issuers of n, their issuers, and so on, the nearest first.
func (n *node) above() []*node {
	all := slices.Clone(n.issuers)
	for i := 0; i < len(all); i++ {
		for _, issuer := range all[i].issuers {
			if !slices.Contains(all, issuer) {
				all = append(all, issuer)
			}
		}
	}
	return all
}

// maySign reports whether a CA certificate may be in a chain at a time, with below CA certificates
// between it and the leaf (RFC 5280, 6.1.4 (m)). Unlike in the RFC, self-issued certificates count,
// too.
func (n *node) maySign(below int, now time.Time) bool {
	limited := n.cert.BasicConstraintsValid && n.cert.MaxPathLen >= 0 &&
		(n.cert.MaxPathLen > 0 || n.cert.MaxPathLenZero)
	return faultOfDates(n.cert, now) == "" && (!limited || below <= n.cert.MaxPathLen)
}

// candidates yields the configured signers with the name of n's issuer, first those with its key
// identifier: several CAs of a vendor may share a name.
func (a *Anchors) candidates(n *node) iter.Seq[*signer] {
	return func(yield func(*signer) bool) {
		likely := a.byKey[keyRef{n.issuer, string(n.cert.AuthorityKeyId)}]
		for _, s := range likely {
			if !yield(s) {
				return
			}
		}
		for _, s := range a.byName[n.issuer] {
			if !slices.Contains(likely, s) && !yield(s) {
				return
			}
		}
	}
}

// holds reports whether c is one of the configured certificates.
func (a *Anchors) holds(n *node) bool {
	return slices.ContainsFunc(a.byName[n.signer.subject], func(s *signer) bool {
		return slices.ContainsFunc(s.certs, func(own *node) bool { return own.cert.Equal(n.cert) })
	})
}

// A File is what was read from one file of CA certificates.
type File struct {
	Path string // for people
	// Bundle is the bundle that the file belongs to; empty if there are no bundles.
	Bundle  string
	Entries []Entry
}

// NewAnchors indexes the certificates in files. If there are several bundles, it also determines
// which CAs have issued which others, so that Find need not. It returns texts about what it has
// left out. The error is ctx's.
func NewAnchors(ctx context.Context, files []File, p Profile, now time.Time) (*Anchors, []string, error) {
	b := builder{
		all:   &Anchors{byName: make(map[string][]*signer), byKey: make(map[keyRef][]*signer)},
		known: make(map[string]*node),
		p:     p,
		now:   now,
	}
	bundles := make(map[string]bool)
	for _, f := range files {
		if f.Bundle != "" {
			bundles[f.Bundle] = true
		}
		for _, e := range f.Entries {
			b.add(f, e)
		}
	}
	b.all.bundles = len(bundles)
	slices.SortFunc(b.all.expiries, func(x, y caExpiry) int { return x.notAfter.Compare(y.notAfter) })
	if err := b.link(ctx); err != nil {
		return nil, nil, err
	}
	return b.all, b.warnings, nil
}

// A builder builds Anchors.
type builder struct {
	all      *Anchors
	nodes    []*node
	known    map[string]*node // by certificate
	p        Profile
	now      time.Time
	warnings []string
}

func (b *builder) warn(f File, e Entry, what string) {
	b.warnings = append(b.warnings, fmt.Sprintf("%q: certificate %d %s (subject %s)",
		f.Path, e.Number, what, describe(e.Certificate.Subject)))
}

// add adds a certificate, even one that is not valid now: the clock may be wrong, and each Check
// verifies the dates again.
func (b *builder) add(f File, e Entry) {
	if n := b.known[string(e.Certificate.Raw)]; n != nil {
		if slices.Contains(n.bundles, f.Bundle) {
			b.warn(f, e, "is a duplicate")
			return
		}
		n.bundles = append(n.bundles, f.Bundle)
		return
	}
	if why := b.p.faultOfCA(e.Certificate); why != "" {
		b.warn(f, e, why)
		return
	}
	n, err := newNode(e.Certificate)
	if err != nil {
		b.warn(f, e, err.Error())
		return
	}
	if why := faultOfDates(e.Certificate, b.now); why != "" {
		b.warn(f, e, why)
	} else {
		b.all.valid++
		place := fmt.Sprintf("%q: certificate %d (subject %s)", f.Path, e.Number, describe(e.Certificate.Subject))
		b.all.expiries = append(b.all.expiries, caExpiry{e.Certificate.NotAfter, place})
	}
	n.bundles, n.signer.lasting = []string{f.Bundle}, true
	b.known[string(e.Certificate.Raw)] = n
	b.nodes = append(b.nodes, n)
	b.index(n)
}

// index adds a certificate to the index by name, together with others of the same key.
func (b *builder) index(n *node) {
	named := b.all.byName[n.signer.subject]
	at := slices.IndexFunc(named, func(s *signer) bool { return s.keyHash == n.signer.keyHash })
	if at < 0 {
		b.all.byName[n.signer.subject] = append(named, n.signer)
	} else {
		n.signer = named[at]
		n.signer.certs = append(n.signer.certs, n)
	}
	if id := n.cert.SubjectKeyId; len(id) > 0 {
		ref := keyRef{n.signer.subject, string(id)}
		if !slices.Contains(b.all.byKey[ref], n.signer) {
			b.all.byKey[ref] = append(b.all.byKey[ref], n.signer)
		}
	}
}

// link finds the configured issuers of each configured certificate, so that a Check need not verify
// their signatures to determine the bundles of a chain. With fewer than two bundles, that is not
// needed.
func (b *builder) link(ctx context.Context) error {
	if b.all.bundles < 2 {
		return nil
	}
	for _, n := range b.nodes {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("verify the signatures of certificates: %w", err)
		}
		if b.p.faultOfJoiner(n.cert) != "" {
			continue // it is an anchor itself, but no CA above it counts
		}
		v := verifier{left: maxSignatures}
		if !v.selfSigned(n) { // a root has no issuer but itself
			v.link(b.all, n)
		}
		if v.tangled {
			b.warnings = append(b.warnings, describe(n.cert.Subject)+
				": its issuer could not be determined: too many CAs have that name")
		}
	}
	return nil
}
