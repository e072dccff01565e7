package attestor

import (
	"crypto/elliptic"

	"github.com/google/go-tpm/tpm2"
)

// curveInfo is a curve with its identifiers.
type curveInfo struct {
	keyType KeyType
	id      tpm2.TPMECCCurve
	curve   elliptic.Curve
}

// curves are the accepted curves. It is immutable.
var curves = [...]curveInfo{
	{P256, tpm2.TPMECCNistP256, elliptic.P256()},
	{P384, tpm2.TPMECCNistP384, elliptic.P384()},
	{P521, tpm2.TPMECCNistP521, elliptic.P521()},
}

// curve returns the curve of an ECC key type. For other types it is zero.
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
