package attestortest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// SVIDKey describes an SVID key in the TPM, which the agent sends with each response. The zero value
// stands for a new key on P-256.
type SVIDKey struct {
	// Key is the key. The default is a new one.
	Key *ecdsa.PrivateKey

	// The lies of the TPM. ForgePublic changes the key's public area before it is named, and
	// ForgeCertify its certification before it is signed.
	ForgePublic  func(*tpm2.TPMTPublic)
	ForgeCertify func(*tpm2.TPMSAttest)
}

// svidKey is an SVID key that has been made.
type svidKey struct {
	key    *ecdsa.PrivateKey
	public tpm2.TPMTPublic
}

// createSVIDKey makes the SVID key of o.
func (t *TPM) createSVIDKey(o *SVIDKey) error {
	key := o.Key
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return err
		}
	}
	t.svidKey = &svidKey{key: key, public: akPublic(key, false)}
	t.svidKey.public.ObjectAttributes.Restricted = false
	if o.ForgePublic != nil {
		o.ForgePublic(&t.svidKey.public)
	}
	return nil
}

// SVIDKey returns the private SVID key, or nil.
func (t *TPM) SVIDKey() *ecdsa.PrivateKey {
	if t.svidKey == nil {
		return nil
	}
	return t.svidKey.key
}

// CertifySVIDKey is TPM2_Certify of the SVID key by the AK (TPM 2.0 library specification, part 3,
// 18.2). It returns nil if the TPM has no SVID key.
func (t *TPM) CertifySVIDKey(qualifyingData []byte) (*attestor.SignedSVIDKey, error) {
	k := t.svidKey
	if k == nil {
		return nil, nil //nolint:nilnil // a machine without an SVID key
	}
	attest, err := t.certify(&k.public, qualifyingData, t.options.SVIDKey.ForgeCertify)
	if err != nil {
		return nil, err
	}
	s := &attestor.SignedSVIDKey{Public: tpm2.Marshal(&k.public), Attest: attest}
	s.Signature, err = sign(t.ak, t.options.PSS, s.Attest)
	return s, err
}

// certify returns the TPMS_ATTEST of TPM2_Certify for the key with the given public area. If forge
// is not nil, it changes the structure first.
func (t *TPM) certify(public *tpm2.TPMTPublic, qualifyingData []byte, forge func(*tpm2.TPMSAttest)) ([]byte, error) {
	name, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, err
	}
	attest := creationAttest(t.akName, nil) // for its clock and version
	attest.Type = tpm2.TPMSTAttestCertify
	attest.ExtraData = tpm2.TPM2BData{Buffer: qualifyingData}
	attest.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
		Name: *name, QualifiedName: *name,
	})
	if forge != nil {
		forge(&attest)
	}
	return tpm2.Marshal(&attest), nil
}
