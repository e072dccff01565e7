package certs

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// CheckAuthority returns an error if Find would accept no leaf of a profile that this CA signs. It
// is for a CA that is about to sign leaves. cas begins with the CA's own certificate, and each
// further certificate is that of the issuer of the one before it. The last certificate is taken to
// be the anchor that servers trust.
func CheckAuthority(p Profile, cas []*x509.Certificate, now time.Time) error {
	if len(cas) == 0 || len(cas) > MaxChain {
		return fmt.Errorf("%d certificates: a chain has 1 to %d of CAs", len(cas), MaxChain)
	}
	var below *node
	for i, c := range cas {
		n, err := newNode(c)
		if err == nil {
			err = p.checkAuthority(n, i, i == len(cas)-1, now)
		}
		if err == nil && below != nil && !(&verifier{left: 1}).issued(below, n) {
			err = fmt.Errorf("has not issued the certificate before it, of %s: the CA's own has to be the first, "+
				"followed by that of its issuer, and so on", describe(below.cert.Subject))
		}
		if err != nil {
			return fmt.Errorf("certificate %d, of %s, %w", i+1, describe(c.Subject), err)
		}
		below = n
	}
	return nil
}

// checkAuthority returns an error if a CA certificate cannot be in a chain. below is the number of
// CA certificates below it; anchor means that servers trust it.
func (p Profile) checkAuthority(n *node, below int, anchor bool, now time.Time) error {
	if why := p.faultOfCA(n.cert); why != "" {
		return errors.New(why)
	}
	if why := faultOfDates(n.cert, now); why != "" {
		return errors.New(why)
	}
	if !n.maySign(below, now) {
		return fmt.Errorf("allows %d CAs below it in a chain (pathLenConstraint), and there are %d",
			n.cert.MaxPathLen, below)
	}
	if why := p.faultOfJoiner(n.cert); why != "" && !anchor {
		return errors.New(why)
	}
	return nil
}

// CheckIssued returns an error if Find would not accept a leaf that the CA has signed. cas are as
// in CheckAuthority.
func CheckIssued(ctx context.Context, p Profile, leaf *x509.Certificate, cas []*x509.Certificate, now time.Time) error {
	if err := CheckAuthority(p, cas, now); err != nil {
		return err
	}
	last := len(cas) - 1
	anchors, _, err := NewAnchors(ctx, []File{{Entries: []Entry{{cas[last], 1}}}}, p, now)
	if err != nil {
		return err
	}
	r := Request{Leaf: leaf, Anchors: anchors, Profile: p, Now: now}
	for _, c := range cas[:last] {
		r.Sent = append(r.Sent, c.Raw)
	}
	switch result, err := Find(r); {
	case err != nil:
		return err
	case result.Chain == nil:
		return errors.New(result.Why)
	}
	return nil
}
