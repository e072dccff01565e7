package certs

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxTried is the maximum number of certificates sent by a machine that are tried as the issuer of
// another. Their keys may have been made to be slow.
const maxTried = 4

// upwards looks for chains through certificates at the URLs that the leaf and the
// certificates above it name (RFC 5280, 4.2.2.1), after configured has found none.
//
// It follows the URLs of a certificate if no valid configured CA has signed it, and if it has
// itself signed the certificate below. With bundles, it looks up all URLs, whatever it finds: the
// resulting bundles must depend on what can be obtained, not on what was obtained first. If there
// are wants or failures beside a chain, they might have added bundles to it.
func (s *search) upwards() *Chain {
	level := []*node{s.leaf}
	var found *Chain
	for depth := 1; depth < MaxChain && len(level) > 0; depth++ {
		var next []*node
		for _, child := range level {
			s.lookAbove(child)
			next = append(next, s.ascend(child)...)
		}
		s.settle()
		if found = s.climb(nil); s.complete(found) {
			break
		}
		level = next
	}
	for _, a := range s.adopted {
		if len(a.node.issuers) > 0 || len(a.node.bundles) > 0 {
			s.proven = append(s.proven, a.url)
		}
	}
	return found
}

// ascend finds the configured issuers of child's parents, and returns the parents that have none
// and have not been reached before, so that loops end.
func (s *search) ascend(child *node) []*node {
	var fresh []*node
	for _, n := range child.parents {
		if slices.Contains(s.above, n) {
			continue
		}
		s.above = append(s.above, n)
		if len(n.issuers) == 0 {
			s.v.link(s.all, n)
		}
		if !n.anchored(s.now) {
			fresh = append(fresh, n)
		}
	}
	return fresh
}

// lookAbove finds certificates that have signed child, among those that the machine has sent and
// those at child's URLs.
func (s *search) lookAbove(child *node) {
	tried := 0
	for _, n := range s.joiners {
		if !n.signer.lasting && n.signer.subject == child.issuer {
			if tried++; tried > maxTried {
				continue
			}
		}
		s.adopt(child, n)
	}
	wanted := false
	urls, _ := s.allowed(child.cert.IssuingCertificateURL)
	for _, url := range urls {
		want := s.wantIssuers(url)
		answer, ok := s.look(want)
		if !ok {
			// Without bundles, the next URL is wanted only if this one does not help.
			if !wanted || s.all.bundles > 1 {
				s.wants = append(s.wants, want)
			}
			wanted = true
			continue
		}
		if s.take(child, url, answer) {
			return
		}
	}
}

// take uses the answer from an issuer's URL. It reports whether child's other URLs do not matter.
func (s *search) take(child *node, url string, a Answer) (enough bool) {
	fetched, ok := a.Value.(issuers)
	if !ok {
		s.failures = append(s.failures, fmt.Errorf("the issuer's certificate: %w", orNothing(a.Err)))
		return false
	}
	signers := s.adoptAll(child, fetched)
	for _, n := range signers {
		s.adopted = append(s.adopted, adoption{n, url})
	}
	switch {
	case len(signers) == 0:
		s.doubted = append(s.doubted, url)
		s.failures = append(s.failures, fmt.Errorf("the certificate at %q did not sign the one issued by %s",
			url, describe(child.cert.Issuer)))
	case !slices.ContainsFunc(signers, func(n *node) bool { return faultOfDates(n.cert, s.now) == "" }):
		s.doubted = append(s.doubted, url) // a renewed one may be there
	default:
		return s.all.bundles < 2
	}
	return false
}

// orNothing returns err, or an error if there is none.
func orNothing(err error) error {
	if err == nil {
		return errors.New("there is nothing")
	}
	return err
}

// allowed returns the URLs of a certificate that may be requested, and why the others may not.
func (s *search) allowed(raw []string) (urls []string, refused []error) {
	for _, u := range raw {
		url, err := "", errNotFetched
		if s.r.Hand != nil {
			url, err = s.r.Hand.Allowed(u)
		}
		switch {
		case len(urls) == MaxURLs:
			return urls, refused
		case err != nil && len(refused) < MaxURLs:
			refused = append(refused, fmt.Errorf("%.200q (%w)", u, err))
		case err == nil && !slices.Contains(urls, url):
			urls = append(urls, url)
		}
	}
	return urls, refused
}

// errNotFetched is the reason for all URLs if there is no Hand.
var errNotFetched = errors.New("aia_hosts is empty: nothing is requested")

// An adoption is a certificate, and the URL at which it was found, which a certificate that it has
// signed names.
type adoption struct {
	node *node
	url  string
}

// adoptAll makes the fetched certificates that have signed child its parents, and returns them.
// Configured certificates are its issuers already.
func (s *search) adoptAll(child *node, fetched issuers) []*node {
	var signers []*node
	for _, n := range fetched {
		if s.all.holds(n) {
			at := slices.IndexFunc(child.issuers, func(own *node) bool { return own.cert.Equal(n.cert) })
			if at >= 0 {
				signers = append(signers, child.issuers[at])
			}
			continue
		}
		if own := s.add(n); s.adopt(child, own) {
			signers = append(signers, own)
		}
	}
	return signers
}

// add returns this search's own copy of a fetched certificate.
func (s *search) add(n *node) *node {
	at := slices.IndexFunc(s.joiners, func(own *node) bool { return own.cert.Equal(n.cert) })
	if at >= 0 {
		own := s.joiners[at]
		own.signer = n.signer
		return own
	}
	own := *n
	s.joiners = append(s.joiners, &own)
	return &own
}

// adopt reports whether n has signed child, and if so makes it one of its parents.
func (s *search) adopt(child, n *node) bool {
	if slices.Contains(child.parents, n) {
		return true
	}
	ok := s.v.issued(child, n)
	if ok {
		child.parents = append(child.parents, n)
	}
	return ok
}

// anchored reports whether a valid configured CA has signed n.
func (n *node) anchored(now time.Time) bool {
	return slices.ContainsFunc(n.issuers, func(issuer *node) bool {
		return len(issuer.bundles) > 0 && faultOfDates(issuer.cert, now) == ""
	})
}

// settle makes parents issuers if they chain to a configured CA.
func (s *search) settle() {
	for changed := true; changed; {
		changed = false
		for _, n := range slices.Concat(s.above, []*node{s.leaf}) {
			for _, parent := range n.parents {
				if len(parent.issuers) > 0 && !slices.Contains(n.issuers, parent) {
					n.issuers = append(n.issuers, parent)
					changed = true
				}
			}
		}
	}
}
