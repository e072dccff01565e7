package crl

import "crypto/x509"

// Signature algorithms (RFC 4055, 5; RFC 5758, 3.2; RFC 8410, 3) as DER AlgorithmIdentifiers, with
// the parameters that each must have.
const (
	rsaPrefix   = "\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01"
	ecdsaPrefix = "\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03"
	ed25519     = "\x30\x05\x06\x03\x2b\x65\x70"
	null        = "\x05\x00"

	pssPrefix  = "\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34"
	hashPrefix = "\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02"
	mgf1       = "\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08"
)

// algorithmOf returns the algorithm of a DER AlgorithmIdentifier; zero if it is unknown or weaker
// than SHA-256.
func algorithmOf(der []byte) x509.SignatureAlgorithm {
	pss := func(hash, salt string) string {
		return pssPrefix + "\xa0\x0f" + hashPrefix + hash + null +
			mgf1 + hashPrefix + hash + null + "\xa2\x03\x02\x01" + salt
	}
	for _, known := range []struct {
		der       string
		algorithm x509.SignatureAlgorithm
	}{
		{rsaPrefix + "\x0b" + null, x509.SHA256WithRSA},
		{rsaPrefix + "\x0c" + null, x509.SHA384WithRSA},
		{rsaPrefix + "\x0d" + null, x509.SHA512WithRSA},
		{ecdsaPrefix + "\x02", x509.ECDSAWithSHA256},
		{ecdsaPrefix + "\x03", x509.ECDSAWithSHA384},
		{ecdsaPrefix + "\x04", x509.ECDSAWithSHA512},
		{ed25519, x509.PureEd25519},
		{pss("\x01", "\x20"), x509.SHA256WithRSAPSS},
		{pss("\x02", "\x30"), x509.SHA384WithRSAPSS},
		{pss("\x03", "\x40"), x509.SHA512WithRSAPSS},
	} {
		if known.der == string(der) {
			return known.algorithm
		}
	}
	return x509.UnknownSignatureAlgorithm
}
