package mirror

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// parseIssuers reads what a URL for an issuer has, as an ek_ca does.
func parseIssuers(body []byte) (any, time.Time, error) {
	certs, err := certs.ReadIssuers(body, certs.EK())
	return certs, time.Time{}, err
}

// parseReply reads what a service has for an EK, as an ek_ca does.
func parseReply(service string, key crypto.PublicKey) fetch.Parse {
	return func(body []byte) (any, time.Time, error) {
		cert, err := certs.ReadReply(service, body, key)
		return cert, time.Time{}, err
	}
}

// parseCRL reads a CRL, as an ek_ca does. One that has expired is still good for what it
// lists.
func parseCRL(body []byte) (any, time.Time, error) {
	list, err := certs.ReadCRL(body)
	return list, time.Time{}, err
}

// overdue returns why a CRL cannot say any more that a certificate is good, or nil.
func (f *filler) overdue(value any) error {
	list, ok := value.(*certs.CRL)
	if !ok || list.NextUpdate.IsZero() || !f.cfg.Now().After(list.NextUpdate) {
		return nil
	}
	return fmt.Errorf("it expired on %s: its CA has to publish a new one",
		list.NextUpdate.UTC().Format(time.DateOnly))
}

// signedBy accepts a CRL that is signed by one of a few CAs.
func signedBy(issuers []*x509.Certificate) accept {
	return func(value any) error {
		list, ok := value.(*certs.CRL)
		if !ok || !slices.ContainsFunc(issuers, func(ca *x509.Certificate) bool {
			key := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
			return list.SignedBy(ca, hex.EncodeToString(key[:]))
		}) {
			return errors.New("it exists, but is not signed by the issuer of the certificate that names it")
		}
		return nil
	}
}

// older returns why a value must not replace the one that is kept, which may be
// nil: it is an older CRL. One from the future, by a CA whose clock was ahead, keeps
// nothing out.
func older(value, kept any, now time.Time) error {
	list, ok := value.(*certs.CRL)
	before, also := kept.(*certs.CRL)
	if !ok || !also || before.ThisUpdate.After(now) || !list.Before(before.List) {
		return nil
	}
	return fmt.Errorf("the one on the server was issued on %s, before the one in the folder, from %s",
		list.ThisUpdate.UTC().Format(time.RFC3339), before.ThisUpdate.UTC().Format(time.RFC3339))
}

// signerOf accepts certificates of which one has signed child and has not expired.
func (f *filler) signerOf(child *x509.Certificate) accept {
	return func(value any) error {
		all, _ := value.([]*x509.Certificate) // none where it is something else
		err := errors.New("it exists, but did not sign the certificate that names it")
		for _, c := range all {
			switch {
			case !hasSigned(c, child):
			case f.cfg.Now().After(c.NotAfter):
				err = fmt.Errorf("it exists, but expired on %s: its CA has to publish a new one",
					c.NotAfter.UTC().Format(time.DateOnly))
			default:
				return nil
			}
		}
		return err
	}
}
