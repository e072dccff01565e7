package attestor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// A KeyType is the algorithm and the size of an endorsement key. Together with the range, it
// determines a template of the TCG EK Credential Profile.
type KeyType string

// The key types for which the EK Credential Profile has templates, except SM2.
const (
	RSA2048 KeyType = "rsa2048"
	RSA3072 KeyType = "rsa3072"
	RSA4096 KeyType = "rsa4096"
	P256    KeyType = "p256"
	P384    KeyType = "p384"
	P521    KeyType = "p521"
)

// KeyTypeOf returns the type of a public endorsement key. It returns an error if the key is neither
// an RSA key of 2048, 3072 or 4096 bits nor an ECDSA key on P-256, P-384 or P-521.
func KeyTypeOf(pub crypto.PublicKey) (KeyType, error) {
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		if pub == nil || pub.N == nil {
			return "", errors.New("the RSA key has no modulus")
		}
		for _, t := range []KeyType{RSA2048, RSA3072, RSA4096} {
			if pub.N.BitLen() == t.bits() {
				return t, nil
			}
		}
		return "", fmt.Errorf("an RSA key of %d bits: want 2048, 3072 or 4096", pub.N.BitLen())
	case *ecdsa.PublicKey:
		if pub == nil || pub.Curve == nil {
			return "", errors.New("the ECC key has no curve")
		}
		for _, c := range curves {
			if pub.Curve == c.curve {
				return c.keyType, nil
			}
		}
		return "", errors.New("an ECC key on an unknown curve: want P-256, P-384 or P-521")
	default:
		return "", fmt.Errorf("a key of the type %T: want RSA or ECC", pub)
	}
}

// bits is the size of the modulus or of the curve's field.
func (t KeyType) bits() int {
	switch t {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	case P256:
		return 256
	case P384:
		return 384
	case P521:
		return 521
	}
	return 0
}

func (t KeyType) rsa() bool { return strings.HasPrefix(string(t), "rsa") }

// An EKTemplate is one of the templates of the TCG EK Credential Profile for
// TPM Family 2.0, version 2.5, annexes B.3 (low range) and B.4 (high range).
type EKTemplate struct {
	// Name is the profile's name for it: L-1, L-2, H-1 to H-7.
	Name string
	// KeyType is the type of the keys made from it.
	KeyType KeyType
	// CertificateIndex is the NV index of the EK certificate for its keys (sections 2.2.1.4 and
	// 2.2.1.5).
	CertificateIndex uint32
	// Public is the template itself, for TPM2_CreatePrimary. It is a copy that belongs to the
	// caller. In the low range its unique field holds zeros, as many as the key has bytes; in the
	// high range it is empty.
	Public tpm2.TPMTPublic
}

// EKTemplates returns all templates, those of the low range first.
func EKTemplates() []EKTemplate {
	all := make([]EKTemplate, 0, len(templates))
	for i := range templates {
		all = append(all, templates[i].export())
	}
	return all
}

// TemplateFor returns the template from which TPMs make endorsement keys of type t: L-1 for RSA
// 2048, L-2 for P-256, and the high-range template for other types.
func TemplateFor(t KeyType) (EKTemplate, error) {
	for i := range templates {
		if templates[i].keyType == t {
			return templates[i].export(), nil
		}
	}
	return EKTemplate{}, fmt.Errorf("no endorsement key template for the key type %q", string(t))
}

// template is one template of the profile. All templates use AES in CFB mode, no asymmetric scheme,
// and the default RSA exponent.
type template struct {
	name    string
	keyType KeyType
	index   uint32
	nameAlg tpm2.TPMAlgID
	aesBits int
	high    bool
}

// templates is immutable. If a key type has two templates, the default comes first.
var templates = [...]template{
	{"L-1", RSA2048, 0x01C00002, tpm2.TPMAlgSHA256, 128, false},
	{"L-2", P256, 0x01C0000A, tpm2.TPMAlgSHA256, 128, false},
	{"H-1", RSA2048, 0x01C00012, tpm2.TPMAlgSHA256, 128, true},
	{"H-2", P256, 0x01C00014, tpm2.TPMAlgSHA256, 128, true},
	{"H-3", P384, 0x01C00016, tpm2.TPMAlgSHA384, 256, true},
	{"H-4", P521, 0x01C00018, tpm2.TPMAlgSHA512, 256, true},
	{"H-6", RSA3072, 0x01C0001C, tpm2.TPMAlgSHA384, 256, true},
	{"H-7", RSA4096, 0x01C0001E, tpm2.TPMAlgSHA384, 256, true},
}

// The digests of the authorization policies (EK Credential Profile, B.6).
// PolicyA is TPM2_PolicySecret(TPM_RH_ENDORSEMENT). PolicyB is TPM2_PolicyOR of
// PolicyA and of PolicyC, which is TPM2_PolicyAuthorizeNV for the NV index
// 0x01C07F01, 02 or 03. A test computes them.
const (
	policyASHA256 = "" +
		"\x83\x71\x97\x67\x44\x84\xb3\xf8\x1a\x90\xcc\x8d\x46\xa5\xd7\x24" +
		"\xfd\x52\xd7\x6e\x06\x52\x0b\x64\xf2\xa1\xda\x1b\x33\x14\x69\xaa"
	policyBSHA256 = "" +
		"\xca\x3d\x0a\x99\xa2\xb9\x39\x06\xf7\xa3\x34\x24\x14\xef\xcf\xb3" +
		"\xa3\x85\xd4\x4c\xd1\xfd\x45\x90\x89\xd1\x9b\x50\x71\xc0\xb7\xa0"
	policyBSHA384 = "" +
		"\xb2\x6e\x7d\x28\xd1\x1a\x50\xbc\x53\xd8\x82\xbc\xf5\xfd\x3a\x1a" +
		"\x07\x41\x48\xbb\x35\xd3\xb4\xe4\xcb\x1c\x0a\xd9\xbd\xe4\x19\xca" +
		"\xcb\x47\xba\x09\x69\x96\x46\x15\x0f\x9f\xc0\x00\xf3\xf8\x0e\x12"
	policyBSHA512 = "" +
		"\xb8\x22\x1c\xa6\x9e\x85\x50\xa4\x91\x4d\xe3\xfa\xa6\xa1\x8c\x07" +
		"\x2c\xc0\x12\x08\x07\x3a\x92\x8d\x5d\x66\xd5\x9e\xf7\x9e\x49\xa4" +
		"\x29\xc4\x1a\x6b\x26\x95\x71\xd5\x7e\xdb\x25\xfb\xdb\x18\x38\x42" +
		"\x56\x08\xb4\x13\xcd\x61\x6a\x5f\x6d\xb5\xb6\x07\x1a\xf9\x9b\xea"
)

// policy returns the digest of the template's authorization policy.
func (t *template) policy() string {
	switch {
	case !t.high:
		return policyASHA256
	case t.nameAlg == tpm2.TPMAlgSHA256:
		return policyBSHA256
	case t.nameAlg == tpm2.TPMAlgSHA384:
		return policyBSHA384
	default:
		return policyBSHA512
	}
}

// attributes returns the TPMA_OBJECT of keys made from the template.
func (t *template) attributes() uint32 {
	a := attrFixedTPM | attrFixedParent | attrSensitiveDataOrigin | attrAdminWithPolicy |
		attrRestricted | attrDecrypt
	if t.high {
		a |= attrUserWithAuth
	}
	return a
}

func (t *template) export() EKTemplate {
	pub := tpm2.TPMTPublic{
		NameAlg: t.nameAlg,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        t.high,
			AdminWithPolicy:     true,
			Restricted:          true,
			Decrypt:             true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: []byte(t.policy())},
	}
	size := 0
	if !t.high {
		size = (t.keyType.bits() + 7) / 8
	}
	unique := func() []byte { return make([]byte, size) }
	if t.keyType.rsa() {
		pub.Type = tpm2.TPMAlgRSA
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: t.symmetric(),
			KeyBits:   tpm2.TPMKeyBits(t.keyType.bits()),
		})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: unique()})
	} else {
		pub.Type = tpm2.TPMAlgECC
		pub.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: t.symmetric(),
			CurveID:   t.keyType.curve().id,
		})
		pub.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique()},
			Y: tpm2.TPM2BECCParameter{Buffer: unique()},
		})
	}
	return EKTemplate{Name: t.name, KeyType: t.keyType, CertificateIndex: t.index, Public: pub}
}

func (t *template) symmetric() tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(t.aesBits)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}
