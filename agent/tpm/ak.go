package tpm

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// createAK makes an attestation key and returns what proves to a server how the
// key was made: its creation data, certified by the key itself. The key does not
// stay in the TPM.
//
// The AK is a primary key of the endorsement hierarchy, for three reasons. It
// needs no parent, and no authorization besides the one for the EK. Together, AK
// and EK take two of the three slots for keys that every TPM has. And a key of
// any other hierarchy would obfuscate the TPM's clock and firmware version in
// what it signs (part 2, TPMS_ATTEST).
//
// The TPM derives a primary key from its template, so unique makes each AK a different key.
func (t *TPM) createAK(c *conn, caps *capabilities, as akForm) (*key, *attestor.AKParameters, error) {
	keyType, err := chooseAK(t.config.AK, caps)
	if err != nil {
		return nil, nil, err
	}
	template, err := akTemplate(keyType, as)
	if err != nil {
		return nil, nil, err
	}
	rsp, err := t.createPrimary(c, template)
	if err != nil {
		return nil, nil, explain("make the attestation key", err, endorsementRemedies[:]...)
	}
	ak := &key{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()}
	cert, err := execute(c, tpm2.CertifyCreation{
		SignHandle:     ak.authorized(tpm2.PasswordAuth(nil)),
		ObjectHandle:   tpm2.NamedHandle{Handle: ak.handle, Name: ak.name},
		CreationHash:   rsp.CreationHash,
		CreationTicket: rsp.CreationTicket,
	})
	if err != nil {
		ak.flush(c)
		return nil, nil, explain("certify the attestation key's creation", err)
	}
	if err := ak.unload(c); err != nil {
		return nil, nil, explain("save the attestation key's context", err)
	}
	return ak, &attestor.AKParameters{
		Public:            ak.public,
		CreateData:        rsp.CreationData.Bytes(),
		CreateAttestation: cert.CertifyInfo.Bytes(),
		CreateSignature:   tpm2.Marshal(cert.Signature),
	}, nil
}

// chooseAK returns the type of AK to make. If the configuration names a type that
// the TPM does not support, that is an error: the server may accept no other.
func chooseAK(configured attestor.KeyType, caps *capabilities) (attestor.KeyType, error) {
	for _, t := range akTypes {
		if caps.canSign(t) && (configured == "" || configured == t) {
			return t, nil
		}
	}
	if configured != "" {
		return "", &Error{
			Class: ErrSetup,
			Err:   fmt.Errorf("the TPM does not support attestation keys of type %s", configured),
			Hint:  `set ak to another type, or to "auto"`,
		}
	}
	return "", &Error{
		Class: ErrSetup,
		Err:   errors.New("the TPM can sign neither with ECDSA on P-256 nor with RSA"),
		Hint:  "this TPM cannot attest",
	}
}

// akForm is what distinguishes one AK from another.
type akForm struct {
	unique []byte // 32 bytes
	mark   []byte // the authPolicy: akMark or attestor.EnrolmentPolicy
}

// newAK returns the form of an AK for one attestation.
func newAK() (akForm, error) {
	unique := make([]byte, 32)
	if _, err := rand.Read(unique); err != nil {
		return akForm{}, fmt.Errorf("read random bytes: %w", err)
	}
	return akForm{unique, akMark()}, nil
}

// akTemplate returns the template of an AK.
//
// With noDA, a locked-out TPM still accepts the key, and using the key does not
// make the TPM write to NV memory (part 1, 19.8).
func akTemplate(keyType attestor.KeyType, as akForm) (tpm2.TPMTPublic, error) {
	template := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM:            true,
			FixedParent:         true,
			SensitiveDataOrigin: true,
			UserWithAuth:        true,
			NoDA:                true,
			Restricted:          true,
			SignEncrypt:         true,
		},
		AuthPolicy: tpm2.TPM2BDigest{Buffer: as.mark},
	}
	switch keyType {
	case attestor.P256:
		template.Type = tpm2.TPMAlgECC
		template.Parameters = ecdsaParms(tpm2.TPMECCNistP256, tpm2.TPMAlgSHA256)
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: as.unique},
		})
	case attestor.RSA2048:
		template.Type = tpm2.TPMAlgRSA
		template.Parameters = rsassaParms(2048, tpm2.TPMAlgSHA256)
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: as.unique})
	default:
		return tpm2.TPMTPublic{}, fmt.Errorf("no template for an attestation key of the type %s", keyType)
	}
	return template, nil
}
