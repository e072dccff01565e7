package attestortest

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"time"
)

// CA is a certificate authority of endorsement keys, with a P-256 key of its own.
type CA struct {
	// Certificate is its own certificate.
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Certificate says how an EK certificate is made. The zero value stands for a certificate
// as the TCG EK Credential Profile has it: without a subject, valid until 9999.
type Certificate struct {
	// OAEP makes RSAES-OAEP the algorithm of an RSA key.
	OAEP bool
	// Change changes what is signed.
	Change func(*x509.Certificate)
}

// What EK certificates of this package say about their TPM.
const (
	Manufacturer = "id:414D4400"
	Model        = "attestortest"
	Version      = "id:00010002"
)

// forever is the date that means no end (RFC 5280, 4.1.2.5).
var forever = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// NewCA returns a root with the given common name and a new key.
func NewCA(tb TB, name string) *CA {
	tb.Helper()
	return newCA(tb, name, nil, nil)
}

// NewCA returns an intermediate authority under ca.
func (ca *CA) NewCA(tb TB, name string) *CA {
	tb.Helper()
	return newCA(tb, name, ca, nil)
}

// NewCAWith is NewCA with a changed certificate, for instance with the URL of its issuer.
func (ca *CA) NewCAWith(tb TB, name string, change func(*x509.Certificate)) *CA {
	tb.Helper()
	return newCA(tb, name, ca, change)
}

func newCA(tb TB, name string, parent *CA, change func(*x509.Certificate)) *CA {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatalf("attestortest: make a CA's key: %v", err)
	}
	ca := &CA{key: key}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              forever,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if parent == nil {
		parent = &CA{Certificate: template, key: key}
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.Certificate, &key.PublicKey, parent.key)
	if err != nil {
		tb.Fatalf("attestortest: certify a CA: %v", err)
	}
	if ca.Certificate, err = x509.ParseCertificate(der); err != nil {
		tb.Fatalf("attestortest: parse a CA's certificate: %v", err)
	}
	return ca
}

// Key returns the CA's key.
func (ca *CA) Key() crypto.Signer { return ca.key }

// PEM returns the CA's certificate in PEM.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate.Raw})
}

// Issue returns an EK certificate for pub in DER.
func (ca *CA) Issue(tb TB, pub crypto.PublicKey, c Certificate) []byte {
	tb.Helper()
	san, err := subjectAltName()
	if err != nil {
		tb.Fatalf("attestortest: encode a subject alternative name: %v", err)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		NotBefore:             time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              forever,
		KeyUsage:              x509.KeyUsageKeyEncipherment,
		BasicConstraintsValid: true,
		UnknownExtKeyUsage:    []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
		ExtraExtensions:       []pkix.Extension{san},
	}
	if c.Change != nil {
		c.Change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Certificate, pub, ca.key)
	if err == nil && c.OAEP {
		der, err = ca.oaep(der)
	}
	if err != nil {
		tb.Fatalf("attestortest: certify an EK: %v", err)
	}
	return der
}

// subjectAltName returns the extension that the TCG EK Credential Profile 2.5, 3.2.9, asks
// for. It is critical, since the subject is empty (RFC 5280, 4.2.1.6).
func subjectAltName() (pkix.Extension, error) {
	var rdn pkix.RDNSequence
	for i, value := range []string{Manufacturer, Model, Version} {
		rdn = append(rdn, pkix.RelativeDistinguishedNameSET{{
			Type:  asn1.ObjectIdentifier{2, 23, 133, 2, i + 1},
			Value: value,
		}})
	}
	name, err := asn1.Marshal(rdn)
	if err != nil {
		return pkix.Extension{}, err
	}
	const directoryName = 4
	der, err := asn1.Marshal([]asn1.RawValue{{
		Class: asn1.ClassContextSpecific, Tag: directoryName, IsCompound: true, Bytes: name,
	}})
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: der}, err
}

// oaep replaces rsaEncryption by RSAES-OAEP and signs again.
func (ca *CA) oaep(der []byte) ([]byte, error) {
	var cert struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &cert); err != nil {
		return nil, err
	}
	oid := []byte{0x06, 0x09, 0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x01}
	at := bytes.Index(cert.TBS.FullBytes, oid)
	if at < 0 {
		return nil, errors.New("the certificate is not for an RSA key")
	}
	cert.TBS.FullBytes[at+len(oid)-1] = 7
	sum := sha256.Sum256(cert.TBS.FullBytes)
	sig, err := ecdsa.SignASN1(rand.Reader, ca.key, sum[:])
	if err != nil {
		return nil, err
	}
	cert.Signature = asn1.BitString{Bytes: sig, BitLength: 8 * len(sig)}
	return asn1.Marshal(cert)
}

func serial() *big.Int {
	b := make([]byte, 8)
	_, _ = rand.Read(b) // never fails
	return new(big.Int).SetBytes(b)
}
