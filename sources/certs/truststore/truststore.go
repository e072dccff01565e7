// Package truststore is the common part of all sources that list a machine by the issuer of its
// certificate: the CA certificates that an operator has configured, and the issuers and CRLs that
// certificates name and that are fetched.
//
// Every configured CA certificate is a trust anchor, even that of an intermediate CA. What machines
// send and what is fetched may link a certificate to an anchor but is never an anchor.
//
// Package certs finds chains, and package certs/fetch makes requests. This package reads the CA
// files (load.go, files.go), turns what certs has found into a verdict (here), and fetches what
// certs wants (network.go).
package truststore

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// A Store is a set of authorities. It is safe for concurrent use.
type Store struct {
	cfg     Config
	profile certs.Profile
	paths   []location

	// fetched fetches and keeps objects; nil if nothing is to be fetched.
	fetched       *fetch.Fetcher
	fetchedLoaded atomic.Bool
	// verified remembers signatures from one step of an attestation to the next.
	verified *certs.Memo

	// state is what the last successful Load has loaded; nil before it. It is immutable, but
	// replaced.
	state atomic.Pointer[state]
	// confirmed is when the files were last found to match state.
	confirmed atomic.Pointer[time.Time]
}

// state is what one successful Load has loaded.
type state struct {
	anchors *certs.Anchors
	// seen is the state of the files, and files is their content.
	seen   fileSet
	files  []caFile
	status sources.Status
	// failed says why configured paths could not be read: files has what they held before.
	failed error
}

var errNotLoaded = errors.New("no CA certificates have been loaded yet")

// New checks the configuration and returns the store for leaves of a profile. It opens nothing: the
// first Load does.
func New(cfg Config, profile certs.Profile) (*Store, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.PollInterval == 0 {
		cfg.PollInterval = DefaultPollInterval
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	fetched, err := newFetcher(cfg)
	if err != nil {
		return nil, err
	}
	return &Store{
		cfg: cfg, profile: profile, paths: locations(cfg), fetched: fetched, verified: certs.NewMemo(),
	}, nil
}

// A Question is what a source asks about one machine.
type Question struct {
	// Leaf returns the machine's certificate, after comparing its key with the key that the machine
	// has proved. If there is no certificate, why says so for people. wants are what must be looked
	// up first. An error means that Leaf cannot tell.
	Leaf func(hand certs.Hand) (leaf *x509.Certificate, why string, wants []certs.Want, err error)
	// Sent are certificates that the machine has sent along, in DER.
	Sent [][]byte
	// Attributes returns what the leaf says, when a chain has been found. The caller adds CAs.
	Attributes func(leaf *x509.Certificate, chain *certs.Chain) sources.Attributes
}

// Check answers for a source (sources.Source). The machine is listed if [certs.Find] finds a chain
// for its leaf. It is not listed if there is no leaf or no chain, or if a certificate of the chain
// has been revoked. Check cannot tell before the first successful Load, or if Question.Leaf or Find
// cannot tell.
//
// Check reads no file, takes no lock that is held while anything is waited for, and makes no
// request: it answers from what is configured, what was sent, and what was fetched before,
// including failures. If something has not been requested yet, the error is
// sources.ErrNeedsNetwork.
func (s *Store) Check(ctx context.Context, q Question) (sources.Verdict, error) {
	v, wants, err := s.attempt(ctx, q, &inquiry{store: s.fetched, now: s.cfg.Now})
	if len(wants) > 0 {
		err = fmt.Errorf("find the issuers of the %v: %w", s.profile, sources.ErrNeedsNetwork)
	}
	return v, err
}

// attempt answers from what is available, or returns what else it wants.
func (s *Store) attempt(ctx context.Context, q Question, hand *inquiry) (sources.Verdict, []certs.Want, error) {
	st := s.state.Load()
	if st == nil {
		return sources.Verdict{}, nil, errNotLoaded
	}
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, nil, fmt.Errorf("verify the %v: %w", s.profile, err)
	}
	leaf, why, wants, err := q.Leaf(hand)
	switch {
	case err != nil || len(wants) > 0:
		return sources.Verdict{}, wants, err
	case leaf == nil:
		return sources.Verdict{Reason: why}, nil, nil
	}
	r := certs.Request{
		Leaf: leaf, Sent: q.Sent, Anchors: st.anchors, Profile: s.profile, CRLs: s.cfg.CRL, Now: s.cfg.Now(),
		Verified: s.verified,
	}
	if len(s.cfg.AIAHosts) > 0 {
		r.Hand = hand
	}
	found, err := certs.Find(r)
	s.learn(found)
	if err == nil && ctx.Err() != nil {
		err = fmt.Errorf("find the issuers of the %v: %w", s.profile, ctx.Err())
	}
	switch {
	case err != nil || len(found.Wants) > 0:
		return sources.Verdict{}, found.Wants, err
	case found.Chain == nil:
		return sources.Verdict{Reason: found.Why}, nil, nil
	}
	v := sources.Verdict{
		Listed:     true,
		Reason:     s.reason(found.Chain, leaf, r.Now),
		Unchecked:  found.Chain.Unchecked,
		Attributes: q.Attributes(leaf, found.Chain),
	}
	v.Attributes.CAs = found.Chain.Bundles
	return v, nil, nil
}

// reason says, for people, to which CAs a leaf has a chain.
func (s *Store) reason(c *certs.Chain, leaf *x509.Certificate, now time.Time) string {
	by := fmt.Sprintf("the %v by %s chains to a configured CA", s.profile,
		strconv.Quote(certs.Presentable("", leaf.Issuer.CommonName)))
	if len(c.Bundles) > 0 {
		by += " in " + strings.Join(c.Bundles, ", ")
	}
	if soon := certs.Expiry(leaf.NotAfter, now); soon != "" {
		by += ", and " + soon
	}
	if c.Unchecked != "" {
		by += ", but " + c.Unchecked
	}
	return by
}

// Status implements sources.Reporter. Entries is the number of different configured CA certificates
// that were valid when they were loaded. Warnings say which of them expire within 30 days, and why
// Config.CachePath cannot be read or written.
func (s *Store) Status() sources.Status {
	st := s.state.Load()
	if st == nil {
		return sources.Status{}
	}
	status := st.status
	status.Warnings = slices.Concat(status.Warnings, shorten(st.anchors.Expiring(s.cfg.Now())), s.cacheWarnings())
	if at := s.confirmed.Load(); at != nil {
		status.Confirmed = *at
	}
	return status
}
