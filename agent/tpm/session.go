package tpm

import (
	"encoding/hex"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// The policy of a high-range EK is PolicyA or PolicyC (profile, B.6). PolicyA is
// TPM2_PolicySecret with the endorsement hierarchy. PolicyC is a policy in an NV index.
const (
	policyASHA384 = "8bbf2266537c171cb56e403c4dc1d4b64f432611dc386e6f532050c3278c930e" +
		"143e8bb1133824ccb431053871c6db53"
	policyCSHA384 = "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5" +
		"b4947c2d73e63005eed2dc2b3593d165"
)

// nonceSize is the size of a session's nonces, in bytes: the smallest that TPMs accept
// (part 3, 11.1).
const nonceSize = 16

// newPolicySession returns a policy session that satisfy prepares. The session begins and ends with the command
// that uses it.
func newPolicySession(hash tpm2.TPMAlgID,
	satisfy func(c transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error,
) tpm2.Session {
	return tpm2.Policy(hash, nonceSize,
		func(c transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			err := satisfy(c, session, nonce)
			if err != nil {
				_, _ = execute(c, tpm2.FlushContext{FlushHandle: session}) // err matters more
			}
			return err
		})
}

// ekSession returns the policy session that authorizes the use of the EK. A high-range EK could be
// used with a password instead, but not while the TPM is locked out.
func (t *TPM) ekSession(ek *endorsementKey) tpm2.Session {
	return newPolicySession(ek.template.Public.NameAlg,
		func(c transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
			return t.satisfyPolicy(c, ek, session, nonce)
		})
}

// policySecret authorizes a session by the endorsement hierarchy's password.
func (t *TPM) policySecret(c transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := execute(c, tpm2.PolicySecret{
		AuthHandle:    t.endorsement(),
		PolicySession: session,
		NonceTPM:      nonce,
	})
	return err
}

// satisfyPolicy runs the commands that the EK's policy asks for.
func (t *TPM) satisfyPolicy(c transport.TPM, ek *endorsementKey, session tpm2.TPMISHPolicy,
	nonce tpm2.TPM2BNonce,
) error {
	err := t.policySecret(c, session, nonce)
	if err != nil {
		return explain("authorize the endorsement key", err, endorsementRemedies[:]...)
	}
	if !ek.template.Public.ObjectAttributes.UserWithAuth { // a low-range EK: its policy is PolicyA
		return nil
	}
	either, err := policyDigests(ek.template.Public.NameAlg)
	if err != nil {
		return err
	}
	_, err = execute(c, tpm2.PolicyOr{PolicySession: session, PHashList: either})
	return explain("authorize the endorsement key", err)
}

// policyDigests returns the branches of a high-range EK's TPM2_PolicyOR: PolicyA and
// PolicyC, for the hash alg.
func policyDigests(alg tpm2.TPMAlgID) (tpm2.TPMLDigest, error) {
	if alg != tpm2.TPMAlgSHA384 {
		return tpm2.TPMLDigest{}, fmt.Errorf("no policy for endorsement keys with the hash %#04x", uint16(alg))
	}
	var digests []tpm2.TPM2BDigest
	for _, s := range []string{policyASHA384, policyCSHA384} {
		b, err := hex.DecodeString(s)
		if err != nil {
			return tpm2.TPMLDigest{}, err
		}
		digests = append(digests, tpm2.TPM2BDigest{Buffer: b})
	}
	return tpm2.TPMLDigest{Digests: digests}, nil
}
