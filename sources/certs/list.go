package certs

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/crl"
)

// How long a CRL is kept.
const (
	// maxCRLAge is the longest time.
	maxCRLAge = 7 * 24 * time.Hour
	// openCRLAge is the time if the CRL does not say when the next one is due.
	openCRLAge = 24 * time.Hour
)

// A CRL is the value of a Want for a CRL.
type CRL struct {
	*crl.List
	issuer string // the canonical form of its name
	read   time.Time
}

// readCRL reads a CRL in DER, or in PEM. Nothing about it is verified.
func readCRL(body []byte) (*CRL, error) {
	if bytes.HasPrefix(body, []byte(pemBegin)) {
		block, rest := pem.Decode(body)
		if block == nil || block.Type != "X509 CRL" || len(bytes.TrimSpace(rest)) > 0 {
			return nil, errors.New("it is not a single CRL in PEM")
		}
		body = block.Bytes
	}
	list, err := crl.Parse(body, canonical)
	if err != nil {
		return nil, err //nolint:wrapcheck // it says what it is
	}
	return &CRL{List: list, issuer: canonical(list.RawIssuer)}, nil
}

// until returns when the next list is due, within limits.
func (l *CRL) until(now time.Time) time.Time {
	switch {
	case l.NextUpdate.IsZero():
		return now.Add(openCRLAge)
	case l.NextUpdate.Before(now), now.Before(l.ThisUpdate):
		return now.Add(overdueAge)
	case l.NextUpdate.Sub(now) > maxCRLAge:
		return now.Add(maxCRLAge)
	}
	return l.NextUpdate
}

// Current reports whether the list can show, at a time, that a certificate is good. A list that
// does not say when the next one is due is never current: it is fetched again each day.
func (l *CRL) Current(now time.Time) bool {
	return !l.NextUpdate.IsZero() && l.fault(now) == nil
}

// Succeed returns an error if the list must not replace held. Somebody between the CA and this
// server may have kept an older list, which must not replace a newer one. There is one exception:
// if held is from the future, because the clock of its CA was ahead or this server's was set back,
// a list that has all of its entries may replace it.
func (l *CRL) Succeed(held any) error {
	before, ok := held.(*CRL)
	if !ok || !l.Before(before.List) || before.ThisUpdate.After(l.read) && l.ListsAll(before.List) {
		return nil
	}
	return fmt.Errorf("a CRL from %s, older than the cached one from %s", l.issued(), before.issued())
}

func (l *CRL) issued() string { return l.ThisUpdate.UTC().Format(time.RFC3339) }

// faultBy returns an error unless the list was issued by the CA of a point (RFC 5280, 6.3.3 (b) (1)
// and (g)).
func (l *CRL) faultBy(p crlPoint) error {
	switch {
	case l.issuer != p.issuer.subject:
		return errors.New("it is from another issuer")
	case !l.SignedBy(p.issuer.certs[0].cert, p.issuer.keyHash):
		return errors.New("it is not signed by its issuer")
	}
	return nil
}

// faultFor returns an error unless the list is for a certificate and by the CA of a point (RFC
// 5280, 6.3.3 (b)).
func (l *CRL) faultFor(c *x509.Certificate, p crlPoint) error {
	switch {
	case p.indirect && !l.Indirect():
		return errors.New("it is for certificates of its issuer only: it is not an indirect list")
	case !l.Covers(c.IsCA, c.CRLDistributionPoints):
		return errors.New("it is not for this certificate")
	}
	return l.faultBy(p)
}

// fault returns an error if the list cannot show that a certificate is good.
func (l *CRL) fault(now time.Time) error {
	switch {
	case now.Before(l.ThisUpdate):
		return fmt.Errorf("it is not valid before %s", l.ThisUpdate.UTC().Format(time.RFC3339))
	case !l.NextUpdate.IsZero() && now.After(l.NextUpdate):
		return fmt.Errorf("it expired on %s", l.NextUpdate.UTC().Format(time.RFC3339))
	}
	return nil
}
