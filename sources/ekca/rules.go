package ekca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Certificate extensions of RFC 5280, 4.2.1, by the last number of their object
// identifiers, 2.5.29.n.
const (
	subjectKeyID        = 14
	keyUsage            = 15
	subjectAltName      = 17
	basicConstraints    = 19
	nameConstraints     = 30
	certificatePolicies = 32
	authorityKeyID      = 35
	extKeyUsage         = 37
)

// The sizes of RSA keys that a certificate may be signed with, in bits. The
// upper limit bounds the work that a certificate sent by a machine can cause.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// faultOfEK returns why an EK certificate cannot vouch for its key at a time,
// whoever issued it, or nothing.
func faultOfEK(c *x509.Certificate, now time.Time) string {
	if c.Version != 3 {
		return fmt.Sprintf("has X.509 version %d, not 3", c.Version)
	}
	if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		return "is a CA certificate"
	}
	if serial(c) == "" {
		return "has a serial number that is negative or too long"
	}
	if why := faultOfDates(c, now); why != "" {
		return why
	}
	if why := faultOfExtensions(c); why != "" {
		return why
	}
	if has(c, keyUsage) && c.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) == 0 {
		return "has a key usage that allows neither key encipherment nor key agreement"
	}
	if !permitsEK(c) {
		return "is not for an EK: its extended key usage does not allow that"
	}
	if !strong(c.SignatureAlgorithm) {
		return fmt.Sprintf("is signed with %s, which is too weak or unknown", c.SignatureAlgorithm)
	}
	return ""
}

// faultOfCA returns why a certificate cannot be an authority's at any time, or
// nothing.
func faultOfCA(c *x509.Certificate) string {
	switch {
	case c.BasicConstraintsValid && !c.IsCA, c.Version == 3 && !c.BasicConstraintsValid:
		return "is not a CA certificate according to its basic constraints"
	case c.Version != 3 && canonical(c.RawSubject) != canonical(c.RawIssuer):
		return fmt.Sprintf("has X.509 version %d and is not a root CA's", c.Version)
	case has(c, keyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return "belongs to a CA that may not sign certificates: its key usage has no keyCertSign"
	case has(c, nameConstraints):
		return "has name constraints, which are not supported"
	case onlyForAKs(c):
		return "belongs to a CA for attestation keys alone: its extended key usage has tcg-kp-AIKCertificate " +
			"and not tcg-kp-EKCertificate"
	}
	if why := faultOfExtensions(c); why != "" {
		return why
	}
	return faultOfKey(c)
}

// faultOfJoiner returns why a certificate between an EK's and a configured CA's
// cannot join them, beyond what faultOfCA says. Its extended key usage, where
// there is one, limits what it issues; that of a configured CA does not: the
// operator has said what it is for. (Unless it is onlyForAKs: vendors publish such CAs
// beside those for EKs, in one folder.)
func faultOfJoiner(c *x509.Certificate) string {
	if !c.BasicConstraintsValid || !c.IsCA {
		return "is not a CA certificate according to its basic constraints"
	}
	if !permitsEK(c) {
		return "belongs to a CA that is not for EKs: its extended key usage does not allow that"
	}
	if !strong(c.SignatureAlgorithm) {
		return fmt.Sprintf("is signed with %s, which is too weak or unknown", c.SignatureAlgorithm)
	}
	return ""
}

// faultOfDates returns why a certificate is not valid at a time, or nothing.
func faultOfDates(c *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339)
	case now.After(c.NotAfter):
		return "has expired on " + c.NotAfter.UTC().Format(time.RFC3339)
	}
	return ""
}

// faultOfExtensions returns which critical extension of a certificate is not
// processed here, or nothing. RFC 5280, 4.2: a certificate with a critical
// extension that is not recognized or cannot be processed is rejected. A
// certificate policy limits nothing here, since any policy is acceptable (RFC
// 5280, 6.1.1 (c)).
func faultOfExtensions(c *x509.Certificate) string {
	for _, e := range c.Extensions {
		if !e.Critical {
			continue
		}
		switch standard(e.Id) {
		case subjectKeyID, keyUsage, basicConstraints, certificatePolicies, authorityKeyID, extKeyUsage:
		case subjectAltName:
			if _, ok := readAltName(e.Value); !ok {
				return "has a critical subject alternative name that cannot be read"
			}
		default:
			return "has the critical extension " + e.Id.String() + ", which is not supported"
		}
	}
	return ""
}

// faultOfKey returns why a CA's key cannot be trusted to sign, or nothing.
func faultOfKey(c *x509.Certificate) string {
	switch key := c.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := key.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Sprintf("has an RSA key of %d bits, not %d to %d", n, minRSABits, maxRSABits)
		}
	case *ecdsa.PublicKey:
		if n := key.Curve.Params().BitSize; n < 256 {
			return fmt.Sprintf("has an elliptic-curve key of %d bits, not 256 or more", n)
		}
	case ed25519.PublicKey:
	default:
		return fmt.Sprintf("has a key of type %s, which is not supported", c.PublicKeyAlgorithm)
	}
	return ""
}

// permitsEK reports whether the extended key usage of a certificate, where it
// has one, permits an EK: tcg-kp-EKCertificate (TCG EK Credential Profile 2.5,
// 3.2) or anyExtendedKeyUsage.
func permitsEK(c *x509.Certificate) bool {
	return !has(c, extKeyUsage) ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) ||
		slices.ContainsFunc(c.UnknownExtKeyUsage, asn1.ObjectIdentifier{2, 23, 133, 8, 1}.Equal)
}

// onlyForAKs reports whether the extended key usage of a CA certificate says that it
// issues certificates of attestation keys, tcg-kp-AIKCertificate (2.23.133.8.3), and
// none of EKs.
func onlyForAKs(c *x509.Certificate) bool {
	return !permitsEK(c) && slices.ContainsFunc(c.UnknownExtKeyUsage, asn1.ObjectIdentifier{2, 23, 133, 8, 3}.Equal)
}

// strong reports whether a certificate may be signed with an algorithm.
func strong(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512,
		x509.PureEd25519:
		return true
	}
	return false
}

// standard returns which of the standard's extensions an object identifier is, or
// 0.
func standard(id asn1.ObjectIdentifier) int {
	if len(id) == 4 && id[0] == 2 && id[1] == 5 && id[2] == 29 {
		return id[3]
	}
	return 0
}

// has reports whether a certificate has a standard extension.
func has(c *x509.Certificate, extension int) bool {
	return slices.ContainsFunc(c.Extensions, func(e pkix.Extension) bool { return standard(e.Id) == extension })
}

// describeRaw quotes a name in DER for people.
func describeRaw(name []byte) string {
	var sequence pkix.RDNSequence
	if rest, err := asn1.Unmarshal(name, &sequence); err != nil || len(rest) > 0 {
		return "a CA whose name cannot be read"
	}
	var n pkix.Name
	n.FillFromRDNSequence(&sequence)
	return describe(n)
}

// describe quotes a name for people. It may be an attacker's.
func describe(n pkix.Name) string {
	const limit = 255
	s := n.String()
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(s)
}
