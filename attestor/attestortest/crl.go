package attestortest

import (
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"time"
)

// CRL returns a revocation list of the CA in DER (RFC 5280, 5) with these serial numbers.
// It was issued an hour ago, and the next list is due in a day. change, if it is not nil,
// changes what is signed.
func (ca *CA) CRL(tb TB, change func(*x509.RevocationList), revoked ...*big.Int) []byte {
	tb.Helper()
	now := time.Now()
	list := &x509.RevocationList{
		Number:     big.NewInt(1),
		ThisUpdate: now.Add(-time.Hour),
		NextUpdate: now.Add(24 * time.Hour),
	}
	for _, serial := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: now.Add(-time.Hour),
		})
	}
	if change != nil {
		change(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, ca.Certificate, ca.key)
	if err != nil {
		tb.Fatalf("attestortest: issue a CRL: %v", err)
	}
	return der
}
