package tpm

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// createAK makes an attestation key and returns what proves to a server how it
// was made: its creation data, certified by itself. The key is not left in the TPM.
//
// It is a primary key of the endorsement hierarchy. So it needs no parent and
// no authorization but the one that the EK needs anyway; with the EK it takes two
// of the three slots for keys that every TPM has; and what it signs states the
// TPM's clock and firmware plainly, which a key of another hierarchy does not
// (part 2, TPMS_ATTEST).
func (t *TPM) createAK(c *conn, caps *capabilities) (*key, *attestor.AKParameters, error) {
	keyType, err := chooseAK(t.config.AK, caps)
	if err != nil {
		return nil, nil, err
	}
	template, err := akTemplate(keyType)
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

// chooseAK returns the type of AK to make. What is configured is made or is an
// error: it is there because a server takes no other.
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

// akTemplate returns the template of an AK that is like no other: a primary key
// follows from its template, so the unique field is random. The mark by which a full
// TPM's keys are told apart is the same for all.
//
// With noDA neither a locked-out TPM refuses the key nor does its use make the
// TPM write to NV memory (part 1, 19.8).
func akTemplate(keyType attestor.KeyType) (tpm2.TPMTPublic, error) {
	unique := make([]byte, 32)
	if _, err := rand.Read(unique); err != nil {
		return tpm2.TPMTPublic{}, fmt.Errorf("read random bytes: %w", err)
	}
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
		AuthPolicy: tpm2.TPM2BDigest{Buffer: akMark()},
	}
	switch keyType {
	case attestor.P256:
		template.Type = tpm2.TPMAlgECC
		template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme: tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA,
					&tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		})
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: unique},
		})
	case attestor.RSA2048:
		template.Type = tpm2.TPMAlgRSA
		template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{
				Scheme: tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA,
					&tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits: 2048,
		})
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: unique})
	default:
		return tpm2.TPMTPublic{}, fmt.Errorf("no template for an attestation key of the type %s", keyType)
	}
	return template, nil
}
