package mirror

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca/crl"
)

// parseIssuers reads what a URL for an issuer has, as an ek_ca does.
func parseIssuers(body []byte) (any, time.Time, error) {
	certs, err := ekca.ReadIssuers(body)
	return certs, time.Time{}, err
}

// parseReply reads what a service has for an EK, as an ek_ca does.
func parseReply(service string, key crypto.PublicKey) certfetch.Parse {
	return func(body []byte) (any, time.Time, error) {
		cert, err := ekca.ReadReply(service, body, key)
		return cert, time.Time{}, err
	}
}

// parseCRL reads a CRL in DER, or in PEM. One that has expired is still good for
// what it lists.
func parseCRL(body []byte) (any, time.Time, error) {
	if block, rest := pem.Decode(body); block != nil && block.Type == "X509 CRL" && len(bytes.TrimSpace(rest)) == 0 {
		body = block.Bytes
	}
	list, err := crl.Parse(body)
	if err != nil {
		return nil, time.Time{}, err
	}
	return list, time.Time{}, nil
}

// overdue returns why a CRL cannot say any more that a certificate is good, or nil.
func (f *filler) overdue(value any) error {
	list, ok := value.(*crl.List)
	if !ok || list.NextUpdate.IsZero() || !f.cfg.Now().After(list.NextUpdate) {
		return nil
	}
	return fmt.Errorf("it has expired on %s: its CA has to publish a new one",
		list.NextUpdate.UTC().Format(time.DateOnly))
}

// signedByOne reports whether a CRL is signed by one of a few CAs; by whomever,
// where none is known.
func signedByOne(value any, issuers []*x509.Certificate) bool {
	list, ok := value.(*crl.List)
	if !ok {
		return false
	}
	return len(issuers) == 0 || slices.ContainsFunc(issuers, func(ca *x509.Certificate) bool {
		key := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
		return list.SignedBy(ca, hex.EncodeToString(key[:]))
	})
}
