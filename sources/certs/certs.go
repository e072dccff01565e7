// Package certs finds certificate chains. It does no I/O, has no clock and starts no goroutine.
// [Find] answers from what it is given, and says what else it wants. The caller looks that up, by
// whatever means and for as long as it likes, and calls Find again.
//
// Every configured CA certificate is an anchor, even that of an intermediate CA. Certificates that
// a machine has sent, or that were fetched, may link a leaf to an anchor but are never anchors.
//
// To read the package, in this order: certs.go has the contract; anchors.go the configured CAs;
// search.go the chains through certificates that are configured or were sent; upwards.go the chains
// through certificates that were fetched; list.go has a CRL, and revocation.go what CRLs say about
// a chain; rules.go which certificates may be in a chain at all; refusal.go why there is none;
// everything.go all that a mirror must have; authority.go whether Find would accept the leaves that
// a CA signs.
package certs

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Limits on one call of [Find], whatever a machine sends.
const (
	// MaxChain is the maximum number of CA certificates in a chain.
	MaxChain = 8
	// MaxURLs is the maximum number of issuer URLs, and of CRL URLs, that are used in a
	// certificate. URLs that are not allowed do not count.
	MaxURLs = 4
	// maxSent is the maximum number of a machine's certificates that are used.
	maxSent = 16
	// maxSignatures is the maximum number of signatures that are verified.
	maxSignatures = 32
	// maxLookups is the maximum number of certificates and CRLs that are looked up.
	maxLookups = 24
)

// CRLMode says how the certificate revocation lists (CRLs) of a chain's CAs are used.
type CRLMode string

// The modes. The empty mode is CRLOff.
const (
	// CRLOff uses no CRLs.
	CRLOff CRLMode = "off"
	// CRLIfAvailable refuses a certificate that a CRL lists. If no CRL can be obtained and used,
	// the certificate is accepted, and Chain.Unchecked says so.
	CRLIfAvailable CRLMode = "if_available"
	// CRLRequired also refuses a certificate that a CRL lists. If no CRL can be obtained and used,
	// Find cannot tell.
	CRLRequired CRLMode = "required"
)

// A Request is a leaf and everything that determines what Find says about it.
type Request struct {
	Leaf *x509.Certificate
	// Sent are certificates that the machine has sent along, in DER. Those that cannot be parsed or
	// used are skipped.
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
	// Everything is for a caller that stores what servers will look up, and decides nothing. Find
	// then wants all issuers and CRLs that the leaf and the certificates above it name, with or
	// without an anchor, and in the end reports in Result.Named what was found. It ignores Sent. It
	// never returns a Chain, and ends with the error ErrUndecided, so a caller that sets this by
	// mistake can neither admit a machine nor clear it of revocation.
	Everything bool
}

// A Hand provides what was looked up before. Its methods do not wait for anything.
type Hand interface {
	// Allowed returns the canonical form of a URL, which is the same for all equivalent URLs, or an
	// error that says why the URL must not be requested.
	Allowed(url string) (string, error)
	// Look returns what is known about w; ok is false if it must be looked up.
	Look(w Want) (a Answer, ok bool)
	// CRLs returns all CRLs of w's CA that are available, from any URL and of any age.
	CRLs(w Want) []HeldCRL
}

// A Kind is what a [Want] is for.
type Kind string

// The kinds.
const (
	// Issuer stands for the certificates of CAs at a URL in a certificate.
	Issuer Kind = "issuer"
	// List stands for a CRL at a URL in a certificate.
	List Kind = "crl"
	// EKCertificate stands for the certificate of an EK, from a vendor's service.
	EKCertificate Kind = "ek"
)

// A Want is something that must be looked up.
type Want struct {
	Kind Kind
	URL  string
	// CA identifies the CA that must have issued a CRL. Scope identifies the certificates that the
	// answer must be for. Both are digests: an answer that is right for one certificate must not be
	// used for another.
	CA, Scope string

	read func(body []byte) (any, time.Time, error)
}

// ID identifies what is wanted, including everything that Read depends on besides the body.
func (w Want) ID() string { return strings.Join([]string{string(w.Kind), w.CA, w.Scope, w.URL}, " ") }

// Read parses what a URL returned into a value for an [Answer], with the time until which the value
// need not be requested again (zero: the caller's default). Wants with the same ID share values.
func (w Want) Read(body []byte) (value any, until time.Time, err error) { return w.read(body) }

// An Answer is what is known about a [Want].
type Answer struct {
	// Value is what Want.Read returned; nil if there is none.
	Value any
	// Err says why there is no value, or no newer one.
	Err error
	// NotAsked is true if Err is not the server's fault. It then says nothing about what the server
	// has: a CRL that was not requested must not be taken to be unavailable.
	NotAsked bool
}

// A HeldCRL is a CRL and the URL where it was found.
type HeldCRL struct {
	URL   string
	Value any
}

// A Result is what [Find] has found.
type Result struct {
	// Chain is set if the leaf has a chain to a configured CA.
	Chain *Chain
	// Why says, for people, why there is no chain, if Chain is nil and nothing is wanted.
	Why string
	// Wants is what must be looked up before Find can tell. Chain is nil then.
	Wants []Want
	// Proven are URLs with a certificate that has signed something in a chain to a configured CA.
	// Doubted are URLs with no certificate that has signed the one that names the URL, or only with
	// an expired one: something else may be there soon.
	Proven, Doubted []string
	// Named is what the certificates name, and what was found, if Request.Everything is set.
	Named []Named
}

// A Chain describes the chains of a leaf to configured CAs.
type Chain struct {
	// IssuerKeyHash is the SHA-256, in hex, of the SubjectPublicKeyInfo of the CA that has signed
	// the leaf.
	IssuerKeyHash string
	// Bundles are the bundles with CAs to which the leaf has a chain, sorted; nil if none are
	// configured.
	Bundles []string
	// Unchecked says which certificates of the chain may have been revoked, and why that is not
	// known; empty if there are none.
	Unchecked string
}

// Find finds the chains of a leaf to configured CAs. An error means that Find cannot tell; Chain
// and Wants are then empty.
//
// There is a chain to a CA if the leaf meets the profile, is valid, and is linked to a configured
// certificate of that CA by at most MaxChain CA certificates, including the configured one. Each of
// these is named as the issuer by the certificate below it (RFC 5280, 7.1), has signed that
// certificate with SHA-256 or stronger, is valid, may sign certificates, and allows a chain of that
// length. No certificate of the chain is revoked, as far as CRLMode requires.
//
// Configured certificates and those that were sent are searched first. Only if they give no chain
// are certificates used that are at the caIssuers URLs (RFC 5280, 4.2.2.1) of the certificates
// below them. If several bundles are configured, all URLs are used, so that the resulting bundles
// do not depend on what was available first. CRLs are wanted only when there is a chain.
//
// Find cannot tell
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
		at = r.Leaf.NotBefore // to find out whether it is worth waiting for
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

// find finds chains, and then checks for revocation.
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
		// What is not known yet may add a bundle: selectors must depend on what can be obtained,
		// not on when.
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
	s.wants, s.failures = nil, nil // what they might have added is not needed
	return s.unrevoked()
}

// look looks something up. ok is false if it must be requested.
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
