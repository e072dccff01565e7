package tpm

import (
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// The TCG's templates for IDevIDs ("TPM 2.0 Keys for Device Identity and Attestation", version
// 1.00, 7.3): H-1 is RSA 2048, H-2 P-256 and H-3 P-384.
const (
	idevidRSA2048 = "H-1"
	idevidP256    = "H-2"
	idevidP384    = "H-3"
)

var idevidNames = []string{idevidRSA2048, idevidP256, idevidP384}

// The NV indices with which a manufacturer may add a policy to its IDevIDs (7.3.2), by the hash of
// the policy.
const (
	idevidIndexSHA256 tpm2.TPMHandle = 0x01C90010
	idevidIndexSHA384 tpm2.TPMHandle = 0x01C90011
)

// idevidTemplates returns the templates from which an IDevID of that name may have been made. A TPM derives a
// different key from each, so the certificate tells which one it was. Manufacturers' tools differ in whether an ECC
// key has a signing scheme of its own.
func idevidTemplates(name string) ([]tpm2.TPMTPublic, error) {
	hash, curve := tpm2.TPMAlgSHA256, tpm2.TPMECCNistP256
	if name == idevidP384 {
		hash, curve = tpm2.TPMAlgSHA384, tpm2.TPMECCNistP384
	}
	branches, err := idevidPolicy(hash)
	if err != nil {
		return nil, err
	}
	policy, err := policyDigest(hash, tpm2.PolicyOr{PHashList: branches})
	if err != nil {
		return nil, err
	}
	template := tpm2.TPMTPublic{
		NameAlg: hash,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, AdminWithPolicy: true, SignEncrypt: true,
		},
		AuthPolicy: policy,
	}
	unique := []byte("IDEVID")
	if name == idevidRSA2048 {
		template.Type = tpm2.TPMAlgRSA
		template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: 2048})
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: unique})
		return []tpm2.TPMTPublic{template}, nil
	}
	template.Type = tpm2.TPMAlgECC
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: unique}, Y: tpm2.TPM2BECCParameter{Buffer: unique},
	})
	withScheme := template
	withScheme.Parameters = ecdsaParms(curve, hash)
	template.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
	return []tpm2.TPMTPublic{withScheme, template}, nil
}

// policyStep is a command of a policy.
type policyStep interface {
	Update(policy *tpm2.PolicyCalculator) error
}

// policyDigest returns the digest of a policy session after some commands.
func policyDigest(hash tpm2.TPMAlgID, steps ...policyStep) (tpm2.TPM2BDigest, error) {
	policy, err := tpm2.NewPolicyCalculator(hash)
	if err != nil {
		return tpm2.TPM2BDigest{}, err
	}
	for _, step := range steps {
		if err := step.Update(policy); err != nil {
			return tpm2.TPM2BDigest{}, err
		}
	}
	return tpm2.TPM2BDigest{Buffer: policy.Hash().Digest}, nil
}

// idevidPolicy returns the four branches of an IDevID's policy (7.3.6). The first three are for whoever may use the
// endorsement hierarchy: to use the key, to have it certified, and to activate a credential with it. The fourth is
// the manufacturer's. TPM2_Certify needs the second, since it takes the ADMIN role, which a policy grants only for
// a command that it names (part 1, 19.2).
func idevidPolicy(hash tpm2.TPMAlgID) (tpm2.TPMLDigest, error) {
	secret := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement}
	first, err := policyDigest(hash, secret)
	if err != nil {
		return tpm2.TPMLDigest{}, err
	}
	index := tpm2.TPMSNVPublic{
		NVIndex: idevidIndexSHA256, NameAlg: hash, AuthPolicy: first,
		Attributes: tpm2.TPMANV{
			PolicyWrite: true, WriteAll: true, PPRead: true, OwnerRead: true, AuthRead: true, PolicyRead: true,
			NoDA: true, Written: true,
		},
		DataSize: uint16(2 + len(first.Buffer)),
	}
	if hash == tpm2.TPMAlgSHA384 {
		index.NVIndex = idevidIndexSHA384
	}
	name, err := tpm2.NVName(&index)
	if err != nil {
		return tpm2.TPMLDigest{}, err
	}
	digests := []tpm2.TPM2BDigest{first}
	for _, steps := range [][]policyStep{
		{secret, tpm2.PolicyCommandCode{Code: tpm2.TPMCCCertify}},
		{secret, tpm2.PolicyCommandCode{Code: tpm2.TPMCCActivateCredential}},
		{tpm2.PolicyAuthorizeNV{NVIndex: tpm2.NamedHandle{Handle: index.NVIndex, Name: *name}}},
	} {
		digest, err := policyDigest(hash, steps...)
		if err != nil {
			return tpm2.TPMLDigest{}, err
		}
		digests = append(digests, digest)
	}
	return tpm2.TPMLDigest{Digests: digests}, nil
}

// hasIDevIDPolicy reports whether a key has the policy of IDevIDs.
func hasIDevIDPolicy(public *tpm2.TPMTPublic) bool {
	branches, err := idevidPolicy(public.NameAlg)
	if err != nil {
		return false
	}
	policy, err := policyDigest(public.NameAlg, tpm2.PolicyOr{PHashList: branches})
	return err == nil && slices.Equal(policy.Buffer, public.AuthPolicy.Buffer)
}

// idevidSession returns the policy session that authorizes the certification of an IDevID. The session begins and
// ends with TPM2_Certify.
func (t *TPM) idevidSession(hash tpm2.TPMAlgID) tpm2.Session {
	return newPolicySession(hash, func(c transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
		const doing = "authorize the IDevID's certification"
		if err := t.policySecret(c, session, nonce); err != nil {
			return explain(doing, err, endorsementRemedies[:]...)
		}
		if _, err := execute(c, tpm2.PolicyCommandCode{PolicySession: session, Code: tpm2.TPMCCCertify}); err != nil {
			return explain(doing, err)
		}
		branches, err := idevidPolicy(hash)
		if err != nil {
			return err
		}
		_, err = execute(c, tpm2.PolicyOr{PolicySession: session, PHashList: branches})
		return explain(doing, err)
	})
}
