package attestor

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"
)

// The limits of a certificate. A parsed certificate may take many times as much memory as its DER,
// so its values are counted before it is parsed. Real EK and CA certificates have up to 140 values,
// nested 12 deep.
const (
	// maxCertificateSize is the size in bytes, with header and padding.
	maxCertificateSize = 8 << 10
	// maxElements is the number of DER values, including the values in extensions.
	maxElements = 512
	// maxOIDSize is the size of an object identifier, in bytes; package x509 takes
	// eight bytes for each.
	maxOIDSize = 64
	// maxNesting is how deep DER values are nested.
	maxNesting = 32
	// maxKeySize is the size of a SubjectPublicKeyInfo, in bytes: an RSA key of 8192 bits
	// has a few less. Checking a signature takes longer the larger the key is.
	maxKeySize = 1100
)

// ParseEKCertificate parses an EK certificate as it is found in NV memory, in files and in
// messages: DER (RFC 5280, 4.1), at most 8 KiB including what may surround the DER:
//
//   - before it, the header of a stored certificate (TCG PC Client Specific
//     Implementation Specification 1.21, 7.3.2): 10 01 00 and two bytes of
//     length, at times followed by 10 02. The header's length is not used: the
//     certificate has its own.
//   - after it, padding of any bytes. It is not read.
//
// An EK certificate may name RSAES-OAEP or RSASSA-PSS (RFC 4055, 1.2) as the key's
// algorithm, to say what the key is for. Its PublicKey is then an *rsa.PublicKey, as for
// rsaEncryption. Critical extensions that package x509 does not handle stay unhandled.
// Nothing about the certificate is verified.
func ParseEKCertificate(b []byte) (*x509.Certificate, error) {
	raw, _, err := unwrap(b)
	if err != nil {
		return nil, err
	}
	cert, err := ParseCertificate(raw)
	if err != nil {
		return nil, err
	}
	if cert.PublicKey == nil {
		if key := rsaKeyOf(cert.RawSubjectPublicKeyInfo); key != nil {
			cert.PublicKey, cert.PublicKeyAlgorithm = key, x509.RSA
		}
	}
	return cert, nil
}

// ReadEKCertificate returns an EK certificate in DER, without header and padding, and the public
// key in it. It has the limits of [ParseEKCertificate] but, like a [Verifier], reads nothing except
// the key, so ParseEKCertificate may still refuse the certificate.
func ReadEKCertificate(b []byte) (certificate []byte, key crypto.PublicKey, err error) {
	if certificate, _, err = unwrap(b); err != nil {
		return nil, nil, err
	}
	if key, err = certificateKey(certificate); err != nil {
		return nil, nil, err
	}
	return certificate, key, nil
}

// ParseCertificate is [x509.ParseCertificate] for a certificate that an attacker may have
// made: it may have at most 8 KiB, and its values are counted before it is parsed.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	if _, err := keyIn(b); err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(b)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate: %w", err)
	}
	return cert, nil
}

// unwrap returns a certificate in DER, without header and padding, and the bytes after it.
func unwrap(b []byte) (certificate, behind []byte, err error) {
	if len(b) > maxCertificateSize {
		return nil, nil, fmt.Errorf("a certificate of %d bytes, at most %d are allowed", len(b), maxCertificateSize)
	}
	if rest, ok := bytes.CutPrefix(b, []byte{0x10, 0x01, 0x00}); ok && len(rest) > 2 {
		b = bytes.TrimPrefix(rest[2:], []byte{0x10, 0x02})
	}
	rest := cryptobyte.String(b)
	var outer cryptobyte.String
	if !rest.ReadASN1Element(&outer, der.SEQUENCE) {
		return nil, nil, errors.New("not a certificate: no DER sequence")
	}
	return outer, rest, nil
}

// isPadding reports whether b holds only 00 and FF, the padding that an agent may send after a
// certificate.
func isPadding(b []byte) bool {
	return len(bytes.Trim(b, "\x00\xFF")) == 0
}

// keyIn checks that a certificate in DER (RFC 5280, 4.1) is within the limits, and returns its
// SubjectPublicKeyInfo. It reads nothing else, so package x509 may still refuse the certificate.
func keyIn(b []byte) ([]byte, error) {
	if len(b) > maxCertificateSize {
		return nil, fmt.Errorf("a certificate of %d bytes, at most %d are allowed", len(b), maxCertificateSize)
	}
	left := maxElements
	if err := count(b, &left, maxNesting); err != nil {
		return nil, err
	}
	in := cryptobyte.String(b)
	var cert, tbs, key cryptobyte.String
	if !in.ReadASN1(&cert, der.SEQUENCE) || !in.Empty() || !cert.ReadASN1(&tbs, der.SEQUENCE) ||
		!tbs.SkipOptionalASN1(der.Tag(0).ContextSpecific().Constructed()) || // version
		!tbs.SkipASN1(der.INTEGER) || // serialNumber
		!tbs.SkipASN1(der.SEQUENCE) || // signature
		!tbs.SkipASN1(der.SEQUENCE) || // issuer
		!tbs.SkipASN1(der.SEQUENCE) || // validity
		!tbs.SkipASN1(der.SEQUENCE) || // subject
		!tbs.ReadASN1Element(&key, der.SEQUENCE) {
		return nil, errors.New("not a certificate in DER")
	}
	if len(key) > maxKeySize {
		return nil, fmt.Errorf("a certificate with a key of %d bytes, at most %d are allowed", len(key), maxKeySize)
	}
	return key, nil
}

// count subtracts the number of DER values in b from left. It stops at the first byte that is not
// DER.
func count(b []byte, left *int, depth int) error {
	const constructed = 0x20
	if depth == 0 {
		return fmt.Errorf("a certificate nested more than %d levels deep", maxNesting)
	}
	for in := cryptobyte.String(b); !in.Empty(); {
		var value cryptobyte.String
		var tag der.Tag
		if !in.ReadAnyASN1(&value, &tag) {
			return nil // the parser stops here too
		}
		if *left--; *left < 0 {
			return fmt.Errorf("a certificate of more than %d values", maxElements)
		}
		switch {
		case tag == der.OBJECT_IDENTIFIER && len(value) > maxOIDSize:
			return fmt.Errorf("a certificate with an object identifier of %d bytes, at most %d are allowed",
				len(value), maxOIDSize)
		case tag == der.OCTET_STRING, tag&constructed != 0: // an extension's value is DER in a string
			if err := count(value, left, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

// certificateKey returns the key in a certificate. It accepts the algorithms that
// [ParseEKCertificate] accepts.
func certificateKey(b []byte) (crypto.PublicKey, error) {
	spki, err := keyIn(b)
	if err != nil {
		return nil, err
	}
	if key := rsaKeyOf(spki); key != nil {
		return key, nil
	}
	key, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, fmt.Errorf("the certificate's key is broken or of an unknown algorithm: %w", err)
	}
	return key, nil
}

// The object identifiers of RSA keys for one use only (RFC 8017, appendix C).
var (
	oidRSAESOAEP = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidRSASSAPSS = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
)

// rsaKeyOf returns the key in a SubjectPublicKeyInfo if its algorithm is RSAES-OAEP or
// RSASSA-PSS, and nil otherwise.
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
