package attestor

import (
	"crypto/elliptic"

	"github.com/google/go-tpm/tpm2"
)

// curveInfo joins a curve to its names.
type curveInfo struct {
	keyType KeyType
	id      tpm2.TPMECCCurve
	curve   elliptic.Curve
	// prefix is what stands before an uncompressed point in the DER of a
	// SubjectPublicKeyInfo.
	prefix string
}

// curves is immutable: the curves on which keys are taken.
var curves = [...]curveInfo{
	{P256, tpm2.TPMECCNistP256, elliptic.P256(), "" +
		"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a" +
		"\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00"},
	{P384, tpm2.TPMECCNistP384, elliptic.P384(), "" +
		"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b" +
		"\x81\x04\x00\x22\x03\x62\x00"},
	{P521, tpm2.TPMECCNistP521, elliptic.P521(), "" +
		"\x30\x81\x9b\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05" +
		"\x2b\x81\x04\x00\x23\x03\x81\x86\x00"},
}

// curve returns the row of an ECC key type; the zero row for others.
func (t KeyType) curve() curveInfo {
	for _, c := range curves {
		if c.keyType == t {
			return c
		}
	}
	return curveInfo{}
}

// fieldSize is the size of a coordinate in bytes.
func (c curveInfo) fieldSize() int { return (c.keyType.bits() + 7) / 8 }
