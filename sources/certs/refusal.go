package certs

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// clockSlack is how far the clock of a CA may be ahead, or this server's behind. What becomes valid
// within that time is waited for.
const clockSlack = 5 * time.Minute

// soon reports whether a certificate becomes valid within clockSlack.
func soon(notBefore, now time.Time) bool {
	return now.Before(notBefore) && !now.Add(clockSlack).Before(notBefore)
}

// errEarly is the error for a certificate that becomes valid soon.
func errEarly(what string, notBefore, now time.Time) error {
	return fmt.Errorf("%s is not valid before %s, in %v: if that does not pass, set this server's clock",
		what, notBefore.UTC().Format(time.RFC3339), notBefore.Sub(now).Round(time.Second))
}

// whyNot says why there is no chain. It returns an error if a certificate above the leaf becomes
// valid soon.
func (s *search) whyNot() (string, error) {
	// The certificates above the leaf are configured or chain to configured CAs, so what is wrong
	// may be their dates.
	above := s.leaf.above()
	for _, n := range above {
		c := n.cert
		if soon(c.NotBefore, s.now) {
			return "", errEarly("the certificate of the CA "+describe(c.Subject), c.NotBefore, s.now)
		}
		if fault := faultOfDates(c, s.now); fault != "" {
			return s.r.Profile.orphaned + ", whose issuer is " + describe(s.leaf.cert.Issuer) +
				": above it, the certificate of the CA " + describe(c.Subject) + " " + fault, nil
		}
	}
	if len(above) > 0 {
		return s.r.Profile.orphaned + ", whose issuer is " + describe(s.leaf.cert.Issuer) +
			", by a chain that its CAs allow", nil
	}
	return s.whyNoIssuer(), nil
}

// whyNoIssuer says where the chain of the leaf ends: at the topmost certificate that was found, by
// names and without a trusted signature.
func (s *search) whyNoIssuer() string {
	top := s.top()
	why := s.r.Profile.orphaned + ", whose issuer is " + describe(top.cert.Issuer)
	if top != s.leaf {
		why = "no configured CA has issued the certificate of " + describe(top.cert.Subject) +
			", the topmost that was found above the " + s.r.Profile.name +
			"; its issuer is " + describe(top.cert.Issuer)
	}
	if len(s.all.byName[top.issuer]) > 0 {
		return why + ": a configured CA has that name, but another key: " +
			"add the CA's certificate for the key that has signed"
	}
	if _, refused := s.allowed(top.cert.IssuingCertificateURL); len(refused) > 0 {
		why += "; the issuer's certificate was not requested from " +
			strings.ReplaceAll(errors.Join(refused...).Error(), "\n", ", ")
	}
	return why
}

// top returns the certificate at the end of the chain of names above the leaf. It follows known
// signatures first.
func (s *search) top() *node {
	top, seen := s.leaf, []*node{s.leaf}
	for {
		at := slices.IndexFunc(s.joiners, func(n *node) bool {
			return n.signer.subject == top.issuer && !slices.Contains(seen, n) &&
				(len(top.parents) == 0 || slices.Contains(top.parents, n))
		})
		if at < 0 {
			return top
		}
		top = s.joiners[at]
		seen = append(seen, top)
	}
}

// expiresSoon is how long before its expiry a certificate is reported.
const expiresSoon = 30 * 24 * time.Hour

// Expiry says when a certificate that expires soon does so, or returns an empty string.
func Expiry(notAfter, now time.Time) string {
	if now.After(notAfter) || notAfter.Sub(now) > expiresSoon {
		return ""
	}
	return "expires on " + notAfter.UTC().Format(time.RFC3339)
}
