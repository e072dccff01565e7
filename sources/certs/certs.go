// Package certs finds certificate chains. It does no I/O, has no clock and starts no
// goroutine: [Find] answers from what it is given, and says what else it wants. The
// caller looks that up, by whatever means and for as long as it likes, and asks again.
//
// Every configured CA certificate is an anchor, also that of an intermediate CA.
// Certificates that a machine has sent, or that were fetched, may join a leaf to an anchor
// and are never anchors.
//
// To read the package, in this order: certs.go has the contract; anchors.go the
// configured CAs; search.go the chains through certificates that are configured or were
// sent; upwards.go the chains through certificates that were fetched; list.go has a CRL,
// and revocation.go what CRLs say of a chain; rules.go which certificates may be in a chain
// at all; refusal.go why there is none; everything.go all that a mirror has to hold; authority.go
// whether Find would accept the leafs that a CA signs.
package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Limits on one call of [Find]. What a machine sends cannot cause more work.
const (
	// MaxChain is the number of CA certificates in a chain.
	MaxChain = 8
	// MaxURLs is the number of URLs for issuers, and of those for CRLs, that are used in a
	// certificate, counted without those that are not allowed.
	MaxURLs = 4
	// maxSent is the number of a machine's certificates that are used.
	maxSent = 16
	// maxSignatures is the number of signatures that are verified.
	maxSignatures = 32
	// maxLookups is the number of certificates and CRLs that are looked up.
	maxLookups = 24
)

// CRLMode says what the certificate revocation lists (CRLs) of a chain's CAs mean.
type CRLMode string

// The modes. The empty mode is CRLOff.
const (
	// CRLOff wants no CRL.
	CRLOff CRLMode = "off"
	// CRLIfAvailable refuses a certificate that a CRL lists. A certificate whose CRL
	// cannot be had or used counts, and Chain.Unchecked says so.
	CRLIfAvailable CRLMode = "if_available"
	// CRLRequired cannot tell if a certificate has no CRL that can be had and used.
	CRLRequired CRLMode = "required"
)

// A Request is a leaf with all that decides about it.
type Request struct {
	Leaf *x509.Certificate
	// Sent are certificates that the machine has sent along, in DER. Certificates that
	// cannot be read or used are passed over.
	Sent    [][]byte
	Anchors *Anchors
	Profile Profile
	CRLs    CRLMode
	Now     time.Time
	// Hand is what was looked up before. If it is nil, nothing is looked up: Find
	// wants nothing, and no certificate is checked for revocation.
	Hand Hand
	// Verified remembers signatures between calls; nil if nothing does.
	Verified *Memo
	// Everything is for a caller that stores what servers will look up, and decides nothing.
	// Find wants all issuers and CRLs that the leaf and the certificates above it name, with
	// or without an anchor, and then says in Result.Named what has become of them. It does
	// not look at Sent. It never returns a Chain, and ends with the error ErrUndecided: a
	// caller that sets this by mistake can neither admit a machine nor clear it.
	Everything bool
}

// A Hand has what was looked up before. Its methods answer at once.
type Hand interface {
	// Allowed returns the form of a URL under which it is wanted, which is the same
	// for all URLs that mean the same, or why it must not be asked.
	Allowed(url string) (string, error)
	// Look returns what is known about w; false if it has to be looked up.
	Look(w Want) (a Answer, ok bool)
	// CRLs returns all CRLs that are at hand of a CA, from whatever URL and of any age.
	CRLs(w Want) []HeldCRL
}

// A Kind is what a [Want] is for.
type Kind string

// The kinds.
const (
	// Issuer are the certificates of CAs at a URL in a certificate.
	Issuer Kind = "issuer"
	// List is a CRL at a URL in a certificate.
	List Kind = "crl"
	// EKCertificate is the certificate of an EK, from a vendor's service.
	EKCertificate Kind = "ek"
)

// A Want is something that has to be looked up.
type Want struct {
	Kind Kind
	URL  string
	// CA is the CA that must have issued a CRL. Scope is which certificates the answer must
	// be for. Both are digests: an answer that serves one certificate must not be taken for
	// an answer that serves another.
	CA, Scope string

	read func(body []byte) (any, time.Time, error)
}

// ID identifies what is wanted, and everything that Read looks at beside the body.
func (w Want) ID() string { return strings.Join([]string{string(w.Kind), w.CA, w.Scope, w.URL}, " ") }

// Read reads what a URL has into a value for an [Answer], with the time until which the
// value need not be asked for again (zero: the caller's default). Wants of one ID share
// values.
func (w Want) Read(body []byte) (value any, until time.Time, err error) { return w.read(body) }

// An Answer is what is known about a [Want].
type Answer struct {
	// Value is what Want.Read returned; nil if there is none.
	Value any
	// Err is why there is no value, or no newer one.
	Err error
	// NotAsked is whether Err has another reason than the server. It says nothing about
	// what the server has: a missing CRL must not be taken for one that cannot be had.
	NotAsked bool
}

// A HeldCRL is a CRL with the URL where it was.
type HeldCRL struct {
	URL   string
	Value any
}

// A Result is what [Find] has found.
type Result struct {
	// Chain is set if a configured CA vouches for the leaf.
	Chain *Chain
	// Why says for people why no CA vouches, if Chain is nil and nothing is wanted.
	Why string
	// Wants is what has to be looked up before anything can be told. Chain is nil then.
	Wants []Want
	// Proven are URLs with a certificate that has signed something in a chain to a
	// configured CA. Doubted are URLs with no certificate that has signed what names the
	// URL, or with one that has expired: something else may be there soon.
	Proven, Doubted []string
	// Named is what the certificates name, if Request.Everything is set.
	Named []Named
}

// A Chain is who vouches for a leaf.
type Chain struct {
	// IssuerKeyHash is the SHA-256 of the SubjectPublicKeyInfo of the CA that has signed
	// the leaf, in hex.
	IssuerKeyHash string
	// Bundles are the bundles that vouch, sorted; nil if none are configured.
	Bundles []string
	// Unchecked says which certificates of the chain may have been revoked, and why
	// nobody knows; empty if there are none.
	Unchecked string
}

// Find finds who vouches for a leaf. An error says that it cannot be told, and beside an
// error, Chain and Wants are empty.
//
// A CA vouches if the leaf is what the profile asks for, is valid, and is joined to a
// certificate of that CA by a chain of at most MaxChain CA certificates, the configured
// certificate among them. Each of these is named as the issuer by the certificate below it
// (RFC 5280, 7.1), has signed that with SHA-256 or stronger, is valid, may sign
// certificates, and allows a chain of that length. No certificate of the chain is revoked,
// as far as CRLMode asks.
//
// Configured certificates and those that were sent are searched first. Only if they give
// no chain, certificates count that are at the caIssuers URLs (RFC 5280, 4.2.2.1) of the
// certificates below them. If several bundles are configured, all URLs count, so that the
// bundles that are named do not depend on what was at hand first. CRLs are wanted once
// there is a chain.
//
// It cannot be told
//
//   - if the leaf, or a CA above it, becomes valid within 5 minutes: a clock may be wrong;
//   - if more than 32 signatures would have to be verified, or more than 24 certificates
//     and CRLs looked up;
//   - if there is no chain, and an allowed URL that should have led to one has failed, or
//     has something that has not signed what names it;
//   - if the mode asks for a CRL that cannot be had.
func Find(r Request) (Result, error) {
	if r.Everything {
		return newSearch(r, r.Now).everything()
	}
	at := r.Now
	if soon(r.Leaf.NotBefore, r.Now) {
		at = r.Leaf.NotBefore // to know whether it is worth waiting for
	}
	if why := r.Profile.faultOfLeaf(r.Leaf, at); why != "" {
		return Result{Why: "the " + r.Profile.name + " " + why}, nil
	}
	s := newSearch(r, at)
	result, err := s.find()
	if err == nil && result.Chain != nil && at != r.Now {
		result.Chain, err = nil, errEarly("the "+r.Profile.name, r.Leaf.NotBefore, r.Now)
	}
	result.Proven, result.Doubted = s.proven, s.doubted
	return result, err
}

// find finds chains, and then asks about revocation.
func (s *search) find() (Result, error) {
	chain := s.configured()
	if chain == nil && s.r.Hand != nil {
		chain = s.upwards()
	}
	if s.v.tangled {
		s.proven, s.doubted = nil, nil
		return Result{}, errTangled
	}
	if !s.complete(chain) {
		// What is not known yet may add a bundle: selectors depend on what can be had,
		// and not on when.
		if len(s.wants) > 0 {
			return Result{Wants: s.wants}, nil
		}
		if err := errors.Join(s.failures...); err != nil && chain == nil {
			return Result{}, fmt.Errorf("find the issuers of the %s: %w", s.r.Profile.name, err)
		}
	}
	if chain == nil {
		why, err := s.whyNot()
		return Result{Why: why}, err
	}
	if s.r.Hand == nil || s.r.CRLs == "" || s.r.CRLs == CRLOff {
		return Result{Chain: chain}, nil
	}
	s.wants, s.failures = nil, nil // what they might have added is not missed
	return s.unrevoked()
}

// look looks something up. False means that it is wanted.
func (s *search) look(w Want) (Answer, bool) {
	if s.lookups--; s.lookups < 0 {
		return Answer{Err: errLookups, NotAsked: true}, true
	}
	return s.r.Hand.Look(w)
}

var (
	errLookups = fmt.Errorf("more than %d certificates and CRLs would have to be looked up", maxLookups)
	errTangled = fmt.Errorf("finding the issuers would take more than %d signature checks", maxSignatures)
)
