package attestor

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha256" // for crypto.SHA256
	_ "crypto/sha512" // for crypto.SHA384 and crypto.SHA512
	"encoding/binary"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// makeCredential is TPM2_MakeCredential (part 3, 12.6; part 1, 24). It encrypts secret to the
// endorsement key pub, which was made from t. The EK's TPM reveals the secret only if it also holds
// the key with the given name.
func makeCredential(t *template, pub crypto.PublicKey, name tpmName, secret []byte) (*encryptedCredential, error) {
	public, err := t.publicOf(pub)
	if err != nil {
		return nil, fmt.Errorf("encrypt to the endorsement key: %w", err)
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, fmt.Errorf("encrypt to the endorsement key: %w", err)
	}
	id, seed, err := tpm2.CreateCredential(rand.Reader, key, name, secret)
	if err != nil {
		return nil, fmt.Errorf("encrypt to the endorsement key: %w", err)
	}
	return &encryptedCredential{Credential: withSize(id), Secret: withSize(seed)}, nil
}

// withSize returns b as a TPM2B structure.
func withSize(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
}

// publicOf returns the public area of the key pub, which was made from the template.
func (t *template) publicOf(pub crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	public := t.export().Public
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: pub.N.Bytes()})
	case *ecdsa.PublicKey:
		point, err := pub.Bytes()
		if err != nil {
			return nil, err
		}
		xy := point[1:] // after 04, for uncompressed (SEC 1, 2.3.3)
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: xy[:len(xy)/2]},
			Y: tpm2.TPM2BECCParameter{Buffer: xy[len(xy)/2:]},
		})
	default:
		return nil, fmt.Errorf("a key of the type %T: want RSA or ECC", pub)
	}
	return &public, nil
}
