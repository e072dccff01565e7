package certs

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

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
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

// The minimum and maximum size, in bits, of RSA keys with which a certificate may be signed. The
// maximum limits the work that a certificate sent by a machine can cause.
const (
	minRSABits = 2048
	maxRSABits = 8192
)

// A Profile is what a leaf, and the CAs above it, must be.
type Profile struct {
	name     string // of a leaf, for people
	orphaned string // the text for a leaf that no CA has issued
	// usages are key usages. A leaf with a key usage extension must have at least one of them.
	usages  x509.KeyUsage
	noUsage string // the text for a leaf that has none of them
	// purpose is an extended key usage. A leaf, or a CA that is not configured, that has the
	// extension must have purpose or anyExtendedKeyUsage. If purpose is nil, any purpose is
	// accepted.
	purpose asn1.ObjectIdentifier
	what    string // what the purpose is for
	plural  string
	// other is a purpose: a CA certificate that has it but not purpose is not used as an anchor.
	other asn1.ObjectIdentifier
}

// EK returns the profile of EK certificates (TCG EK Credential Profile 2.5, 3.2): a leaf with a key
// usage must have keyEncipherment or keyAgreement, and one with an extended key usage must have
// tcg-kp-EKCertificate (2.23.133.8.1) or anyExtendedKeyUsage. A CA whose extended key usage has
// tcg-kp-AIKCertificate (2.23.133.8.3) and neither of those is left out.
func EK() Profile {
	return Profile{
		name:     "EK certificate",
		orphaned: "no configured CA has issued the EK certificate",
		usages:   x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
		noUsage:  "has a key usage that allows neither key encipherment nor key agreement",
		purpose:  asn1.ObjectIdentifier{2, 23, 133, 8, 1},
		what:     "an EK",
		plural:   "EKs",
		other:    asn1.ObjectIdentifier{2, 23, 133, 8, 3},
	}
}

// DevID returns the profile of DevID certificates (IEEE 802.1AR-2018, 8): a leaf with a key usage
// must have digitalSignature. The leaf and the CAs above it may have any extended key usage: the
// issuer of a DevID decides what it is for.
func DevID() Profile {
	return Profile{
		name:     "DevID certificate",
		orphaned: "no configured CA has issued the DevID certificate",
		usages:   x509.KeyUsageDigitalSignature,
		noUsage:  "has a key usage that does not allow digital signatures",
	}
}

// SeemsDevID reports whether a leaf seems to be a DevID's and not an EK's: its key is for signing,
// and neither for decryption nor for key agreement. It is for sorting files that a person provides.
// No source uses it: a source checks a certificate by its own profile.
func SeemsDevID(leaf *x509.Certificate) bool {
	ek := EK()
	return leaf.KeyUsage&x509.KeyUsageDigitalSignature != 0 && leaf.KeyUsage&ek.usages == 0 &&
		!slices.ContainsFunc(leaf.UnknownExtKeyUsage, ek.purpose.Equal)
}

// String returns the name of a leaf for people.
func (p Profile) String() string { return p.name }

// faultOfLeaf returns why a leaf cannot be used at a time, whoever issued it, or an empty string.
func (p Profile) faultOfLeaf(c *x509.Certificate, now time.Time) string {
	if c.Version != 3 {
		return fmt.Sprintf("has X.509 version %d, not 3", c.Version)
	}
	if c.IsCA || c.KeyUsage&x509.KeyUsageCertSign != 0 {
		return "is a CA certificate"
	}
	if Serial(c) == "" {
		return "has a serial number that is negative or too long"
	}
	if why := faultOfEncoding(c); why != "" {
		return why
	}
	if why := faultOfDates(c, now); why != "" {
		return why
	}
	if why := faultOfExtensions(c); why != "" {
		return why
	}
	if has(c, keyUsage) && c.KeyUsage&p.usages == 0 {
		return p.noUsage
	}
	if !p.permits(c) {
		return "is not for " + p.what + ": its extended key usage does not allow that"
	}
	if !strong(c.SignatureAlgorithm) {
		return fmt.Sprintf("is signed with %s, which is too weak or unknown", c.SignatureAlgorithm)
	}
	return ""
}

// faultOfCA returns why a certificate cannot be a CA's at any time, or an empty string.
func (p Profile) faultOfCA(c *x509.Certificate) string {
	switch {
	case c.BasicConstraintsValid && !c.IsCA, c.Version == 3 && !c.BasicConstraintsValid:
		return "is not a CA certificate according to its basic constraints"
	case c.Version != 3 && canonical(c.RawSubject) != canonical(c.RawIssuer):
		return fmt.Sprintf("has X.509 version %d and is not a root CA's", c.Version)
	case has(c, keyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return "belongs to a CA that may not sign certificates: its key usage has no keyCertSign"
	case has(c, nameConstraints):
		return "has name constraints, which are not supported"
	case p.onlyForOthers(c):
		return "belongs to a CA for attestation keys alone: its extended key usage has tcg-kp-AIKCertificate " +
			"and not tcg-kp-EKCertificate"
	}
	if why := faultOfEncoding(c); why != "" {
		return why
	}
	if why := faultOfExtensions(c); why != "" {
		return why
	}
	return faultOfKey(c)
}

// faultOfJoiner returns why a certificate between a leaf and a configured CA's cannot link them,
// beyond what faultOfCA checks. Its extended key usage, if there is one, limits what it issues.
// That of a configured CA does not, since the operator has decided what it is for, unless it is
// onlyForOthers: vendors publish CAs for AKs beside those for EKs, in one folder.
func (p Profile) faultOfJoiner(c *x509.Certificate) string {
	if !c.BasicConstraintsValid || !c.IsCA {
		return "is not a CA certificate according to its basic constraints"
	}
	if !p.permits(c) {
		return "belongs to a CA that is not for " + p.plural + ": its extended key usage does not allow that"
	}
	if !strong(c.SignatureAlgorithm) {
		return fmt.Sprintf("is signed with %s, which is too weak or unknown", c.SignatureAlgorithm)
	}
	return ""
}

// faultOfDates returns why a certificate is not valid at a time, or an empty string.
func faultOfDates(c *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(c.NotBefore):
		return "is not valid before " + c.NotBefore.UTC().Format(time.RFC3339)
	case now.After(c.NotAfter):
		return "has expired on " + c.NotAfter.UTC().Format(time.RFC3339)
	}
	return ""
}

// faultOfEncoding returns what its holder could change in a certificate's encoding without the CA,
// or an empty string. The signature does not cover itself: package x509 ignores bytes after it, and
// its bits that are marked as unused, so the holder could give the certificate another fingerprint.
// (RFC 5280, 4.1: the signature is the last member. With all algorithms that are accepted here,
// signatures are whole bytes.)
func faultOfEncoding(c *x509.Certificate) string {
	in := cryptobyte.String(c.Raw)
	var cert, signed, algorithm cryptobyte.String
	var signature []byte
	switch {
	case !in.ReadASN1(&cert, der.SEQUENCE), !in.Empty(), !cert.ReadASN1(&signed, der.SEQUENCE),
		!cert.ReadASN1(&algorithm, der.SEQUENCE):
		return "is not in DER"
	case !cert.ReadASN1BitStringAsBytes(&signature):
		return "has unused bits in its signature"
	case !cert.Empty():
		return "has bytes behind its signature"
	}
	return ""
}

// faultOfExtensions returns which critical extension of a certificate is not processed here, or an
// empty string. A certificate with a critical extension that is not recognized or cannot be
// processed must be rejected (RFC 5280, 4.2). A certificate policy limits nothing here, since any
// policy is acceptable (RFC 5280, 6.1.1 (c)).
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

// faultOfKey returns why a CA's key cannot be trusted for signing, or an empty string.
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

// permits reports whether the extended key usage of a certificate, if it has one, permits
// the purpose.
func (p Profile) permits(c *x509.Certificate) bool {
	return p.purpose == nil || !has(c, extKeyUsage) ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) ||
		slices.ContainsFunc(c.UnknownExtKeyUsage, p.purpose.Equal)
}

// onlyForOthers reports whether the extended key usage of a CA certificate has the other purpose
// but not that of the profile.
func (p Profile) onlyForOthers(c *x509.Certificate) bool {
	return !p.permits(c) && slices.ContainsFunc(c.UnknownExtKeyUsage, p.other.Equal)
}

// maxSerialBits is the maximum length, in bits, of a serial number whose hex digits fit into a
// selector.
const maxSerialBits = 4 * (sources.MaxSelector - len(sources.PrefixSerial))

// Serial returns a certificate's serial number in lower-case hex without leading zeros, or an empty
// string if it is negative or much longer than the 20 bytes of RFC 5280, 4.1.2.2.
func Serial(c *x509.Certificate) string {
	if c.SerialNumber == nil || c.SerialNumber.Sign() < 0 || c.SerialNumber.BitLen() > maxSerialBits {
		return ""
	}
	return c.SerialNumber.Text(16)
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

// standard returns n for the object identifier 2.5.29.n, and 0 for others.
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

// describeRaw returns a name in DER, quoted for people.
func describeRaw(name []byte) string {
	var sequence pkix.RDNSequence
	if rest, err := asn1.Unmarshal(name, &sequence); err != nil || len(rest) > 0 {
		return "a CA whose name cannot be read"
	}
	var n pkix.Name
	n.FillFromRDNSequence(&sequence)
	return describe(n)
}

// describe returns a name, which may be an attacker's, quoted for people.
func describe(n pkix.Name) string {
	const limit = 255
	s := n.String()
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(s)
}
