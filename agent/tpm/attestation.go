package tpm

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// maxChallenge is the size of the largest part of a challenge, in bytes, that is
// given to the TPM: it leaves room for the other one in a command.
const maxChallenge = 1024

// An Attestation is an EK and an AK in the TPM. It is used by one goroutine, and
// closed when it is done with.
type Attestation struct {
	// Claim is what there is to say of the TPM.
	Claim attestor.Claim
	// EKHash is the EK hash.
	EKHash string
	// KeyType is the type of the EK.
	KeyType attestor.KeyType
	// Persistent is the handle of the EK where it is persistent, else zero.
	Persistent uint32
	// Certificates are all that the TPM holds, readable or not.
	Certificates []Certificate
	// ChainErr says why the EK certificate chain in the TPM, or the rest of
	// it, could not be read.
	ChainErr error

	tpm  *TPM
	conn *conn
	ek   *endorsementKey
	ak   *key
}

// Begin loads an EK and an AK. They are in the TPM until the attestation is
// closed. When ctx ends, a command under way is given up within a second, and
// every further one fails with the cause of ctx; Close works all the same.
//
// Errors that have a remedy are of the classes ErrSetup and ErrNotReady.
func (t *TPM) Begin(ctx context.Context) (_ *Attestation, err error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	a := &Attestation{tpm: t, conn: c}
	defer func() {
		if err != nil {
			_ = a.Close() // err matters more
		}
	}()
	defer unreadable(&err)
	inv, err := t.prepare(c, a)
	if err != nil {
		return nil, err
	}
	ak, params, err := t.createAK(c, inv.caps)
	if err != nil {
		return nil, err
	}
	a.ak = ak
	a.describe(inv, params)
	return a, nil
}

// prepare loads the EK into a. What is known of the TPM is read the first time,
// and again where the TPM turns out to be another one, or to have got a
// certificate that it did not have or show.
func (t *TPM) prepare(c *conn, a *Attestation) (*inventory, error) {
	if t.known != nil {
		if same, err := t.recognize(c, a); same || err != nil {
			return t.known, err
		}
	}
	inv, err := t.takeInventory(c)
	if err != nil {
		return nil, err
	}
	if err := t.findEK(c, inv, a); err != nil {
		return nil, err
	}
	inv.ek = a.ek
	t.known = inv
	return inv, nil
}

// recognize loads the EK into a and reports whether what is known of the TPM
// still holds.
func (t *TPM) recognize(c *conn, a *Attestation) (bool, error) {
	known := t.known
	var err error
	if a.ek, err = t.loadEK(c, known.ek); a.ek == nil || a.ek.hash != known.ek.hash {
		return false, err
	}
	if known.certificateOf(a.ek.pub) != nil {
		return true, t.retryChain(c, known)
	}
	if known.unread {
		return false, nil
	}
	indices, err := listHandles(c, firstEKIndex, lastChainIndex)
	return slices.Equal(indices, known.indices), explain("list the TPM's NV indices", err)
}

// replaceEK flushes the EK in a, where there is one, and puts another in its
// place, or none.
func (a *Attestation) replaceEK(ek *endorsementKey) {
	if a.ek != nil {
		a.ek.flush(a.conn)
	}
	a.ek = ek
}

func (a *Attestation) describe(inv *inventory, ak *attestor.AKParameters) {
	a.EKHash, a.KeyType = a.ek.hash, inv.template.KeyType
	a.Certificates, a.ChainErr = inv.certs, inv.chainErr
	if a.ek.persistent {
		a.Persistent = uint32(a.ek.handle)
	}
	a.Claim = attestor.Claim{EK: a.ek.pub, EKPublic: a.ek.public, AK: *ak}
	if cert := inv.certificateOf(a.ek.pub); cert != nil {
		a.Claim.Certificate, a.Claim.Chain = cert.Certificate.Raw, inv.chain
	}
}

// ActivateCredential implements attestor.Activator.
func (a *Attestation) ActivateCredential(credential, secret []byte) ([]byte, error) {
	if len(credential) > maxChallenge || len(secret) > maxChallenge {
		return nil, fmt.Errorf("the challenge is too large for a TPM: %d and %d bytes, at most %d each",
			len(credential), len(secret), maxChallenge)
	}
	rsp, err := execute(a.conn, tpm2.ActivateCredential{
		ActivateHandle: a.ak.authorized(tpm2.PasswordAuth(nil)),
		KeyHandle:      a.ek.authorized(a.tpm.policy(a.ek)),
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: secret},
	})
	if err != nil {
		return nil, explain("activate the credential", err)
	}
	return rsp.CertInfo.Buffer, nil
}

// Close removes the keys from the TPM and ends the connection. It does so within
// seconds, also after the attestation's context has ended.
func (a *Attestation) Close() error {
	defer a.conn.cleanup()()
	if a.ak != nil {
		a.ak.flush(a.conn)
	}
	a.replaceEK(nil)
	return a.conn.channel.Close()
}
