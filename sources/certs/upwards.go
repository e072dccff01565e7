package certs

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// maxTried is how many of the certificates that a machine has sent are tried as
// the issuer of another. Their keys may be made to be slow.
const maxTried = 4

// upwards looks for chains through certificates at the URLs that the leaf and the
// certificates above it name (RFC 5280, 4.2.2.1), after configured has found none.
//
// It follows the URLs of a certificate if no configured CA that is valid has signed it, and
// if the certificate has itself signed the one below. With bundles it looks up all URLs,
// whatever it finds: which bundles are named must depend on what can be had, and not on
// what was had first. If there are wants or failures beside a chain, they might have added
// to its bundles.
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

// ascend finds the configured issuers of child's parents, and returns those
// parents that have none and have not been come to before: a loop ends there.
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

// lookAbove finds certificates that have signed child among those that the machine has sent
// and those at child's URLs.
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
			// Without bundles, the next URL is wanted only if this one is of no use.
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

// take looks at what the URL of an issuer has. It reports whether no other URL of child
// matters.
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

// allowed returns those of a certificate's URLs that may be asked, and why others may not.
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

// errNotFetched is the reason if there is no Hand.
var errNotFetched = errors.New("aia_hosts is empty: nothing is requested")

// An adoption is a certificate with the URL at which it was found, in a certificate that
// it has signed.
type adoption struct {
	node *node
	url  string
}

// adoptAll makes those of fetched that have signed child its parents, and returns them.
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

// adopt reports whether n has signed child, and makes it one of its parents then.
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

// anchored reports whether a configured CA that is valid has signed n.
func (n *node) anchored(now time.Time) bool {
	return slices.ContainsFunc(n.issuers, func(issuer *node) bool {
		return len(issuer.bundles) > 0 && faultOfDates(issuer.cert, now) == ""
	})
}

// settle makes parents issuers if a configured CA is above them.
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
