package attestor

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
)

// maxCertificateSize is the most that a certificate has, with all that stands
// around it, in bytes.
const maxCertificateSize = 8 << 10

// ParseEKCertificate parses an EK certificate as it is found in NV memory, in
// files and in messages: DER (RFC 5280, 4.1), at most 8 KiB with all that stands
// around it:
//
//   - before it, the header of a stored certificate (TCG PC Client Specific
//     Implementation Specification 1.21, 7.3.2): 10 01 00 and two bytes of
//     length, at times with 10 02 behind them. The certificate itself says
//     how long it is, and the header's length is not used.
//   - behind it, padding of the bytes 00 and FF, and nothing else.
//
// Where the key's algorithm is RSAES-OAEP or RSASSA-PSS (RFC 4055, 1.2), which
// EK certificates use to say what the key is for, the certificate's PublicKey
// is an *rsa.PublicKey as for rsaEncryption. Its critical extensions stay
// unhandled where package x509 leaves them so. Nothing about the certificate is
// verified.
func ParseEKCertificate(b []byte) (*x509.Certificate, error) {
	if len(b) > maxCertificateSize {
		return nil, fmt.Errorf("a certificate of %d bytes, at most %d are allowed", len(b), maxCertificateSize)
	}
	der, err := unwrap(b)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	if cert.PublicKey == nil {
		if key := rsaKeyOf(cert.RawSubjectPublicKeyInfo); key != nil {
			cert.PublicKey, cert.PublicKeyAlgorithm = key, x509.RSA
		}
	}
	return cert, nil
}

// unwrap returns the DER of a certificate without what stands around it.
func unwrap(b []byte) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(b, []byte{0x10, 0x01, 0x00}); ok && len(rest) > 2 {
		b = bytes.TrimPrefix(rest[2:], []byte{0x10, 0x02})
	}
	var outer asn1.RawValue
	padding, err := asn1.Unmarshal(b, &outer)
	if err != nil || outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence {
		return nil, errors.New("not a certificate: no DER sequence")
	}
	for _, c := range padding {
		if c != 0x00 && c != 0xFF {
			return nil, errors.New("something other than padding follows the certificate")
		}
	}
	return outer.FullBytes, nil
}

// The object identifiers of RSA keys for one use alone (RFC 8017, appendix C).
var (
	oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidRSASSAPSS = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
)

// rsaKeyOf returns the key of a SubjectPublicKeyInfo whose algorithm is
// RSAES-OAEP or RSASSA-PSS, or nil.
func rsaKeyOf(spki []byte) *rsa.PublicKey {
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		PublicKey asn1.BitString
	}
	if rest, err := asn1.Unmarshal(spki, &info); err != nil || len(rest) > 0 {
		return nil
	}
	oid := info.Algorithm.Algorithm
	if !oid.Equal(oidRSAESOAEP) && !oid.Equal(oidRSASSAPSS) {
		return nil
	}
	key, err := x509.ParsePKCS1PublicKey(info.PublicKey.RightAlign())
	if err != nil {
		return nil
	}
	return key
}
