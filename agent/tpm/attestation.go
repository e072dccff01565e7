package tpm

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// maxChallenge is the size, in bytes, of the largest credential or secret that is
// sent to the TPM. A command has room for two of this size.
const maxChallenge = 1024

// An Attestation is an EK and an AK of the TPM. While the agent waits for the server, neither key
// is in the TPM, nor is the DevID's unless it is persistent, and there is no connection to the TPM.
// An Attestation is not safe for concurrent use.
type Attestation struct {
	// Claim is what the agent tells the server about the TPM.
	Claim attestor.Claim
	// EKHash is the EK hash.
	EKHash [sha256.Size]byte
	// KeyType is the type of the EK.
	KeyType attestor.KeyType
	// Persistent is the handle of a persistent EK, or zero.
	Persistent uint32
	// Certificates are all EK certificates in the TPM, readable or not.
	Certificates []Certificate
	// ChainErr says why the EK certificate chain in the TPM, or the rest of
	// the chain, could not be read.
	ChainErr error

	tpm   *TPM
	ek    endorsementKey
	ak    key
	banks []tpm2.TPMAlgID // of PCRs
	devID *devID          // nil if none is configured

	svidKey *keydir.Slot // nil if none is to be certified
}

// Begin finds the EK and makes an AK. It leaves neither in the TPM, unless the EK is
// persistent. If a DevID is configured and cannot be used, that is an error. If ctx ends,
// Begin waits for the command under way, flushes what that command has made, and returns
// the cause of ctx.
//
// An error with a remedy wraps ErrSetup or ErrNotReady.
//
// Begin reads the files of a DevID. A caller that shares the TPM with others calls ReadDevID and BeginWith
// instead, so that the others do not wait for a file system.
func (t *TPM) Begin(ctx context.Context) (*Attestation, error) {
	files, err := t.ReadDevID()
	if err != nil {
		return nil, err
	}
	return t.BeginWith(ctx, files)
}

// BeginWith is Begin with the files that ReadDevID has read.
func (t *TPM) BeginWith(ctx context.Context, files *DevIDFiles) (*Attestation, error) {
	devID, err := t.takeDevID(files)
	if err != nil {
		return nil, err
	}
	form, err := newAK()
	if err != nil {
		return nil, err
	}
	return t.begin(ctx, devID, form)
}

// begin finds the EK and the DevID's key, and makes an AK of a form.
func (t *TPM) begin(ctx context.Context, devID *devID, form akForm) (_ *Attestation, err error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	inv, err := t.prepare(c)
	if err != nil {
		return nil, err
	}
	if err := t.findDevID(c, devID); err != nil {
		return nil, err
	}
	ak, params, err := t.createAK(c, inv.caps, form)
	if err != nil {
		return nil, err
	}
	a := &Attestation{tpm: t, ek: *inv.ek, ak: *ak, devID: devID}
	a.describe(inv, params)
	return a, nil
}

// prepare returns the TPM's inventory, with the EK. It reads the TPM for the first
// attestation. For a later one it reads the TPM again only if the TPM has been
// replaced, or may hold an EK certificate that could not be read before.
func (t *TPM) prepare(c *conn) (*inventory, error) {
	var made *endorsementKey
	if t.known != nil {
		ek, same, err := t.recognize(c)
		if err != nil {
			return nil, err
		}
		if same {
			t.known.ek = ek
			return t.known, nil
		}
		made = ek
	}
	inv, err := t.takeInventory(c)
	if err != nil {
		return nil, err
	}
	if inv.ek, err = t.findEK(c, inv, made); err != nil {
		return nil, err
	}
	t.known = inv
	return inv, nil
}

// recognize looks for the EK that was found before. It returns the result of findAgain, and reports whether the
// inventory is still right.
func (t *TPM) recognize(c *conn) (*endorsementKey, bool, error) {
	known := t.known
	ek, err := t.findAgain(c, known.ek)
	if err != nil || ek == nil || ek.hash != known.ek.hash {
		return ek, false, err
	}
	if known.certificateOf(ek.pub) != nil {
		return ek, true, t.retryChain(c, known)
	}
	if known.unread {
		return ek, false, nil
	}
	indices, err := listHandles(c, firstEKIndex, lastChainIndex)
	return ek, slices.Equal(indices, known.indices), explain("list the TPM's NV indices", err)
}

func (a *Attestation) describe(inv *inventory, ak *attestor.AKParameters) {
	a.EKHash, a.KeyType = a.ek.hash, inv.template.KeyType
	a.Certificates, a.ChainErr = inv.certs, inv.chainErr
	if a.ek.persistent {
		a.Persistent = uint32(a.ek.handle)
	}
	a.banks = inv.caps.banks
	a.Claim = attestor.Claim{EK: a.ek.pub, EKPublic: a.ek.public, AK: *ak, Can: a.tpm.abilities(inv.caps)}
	if cert := inv.certificateOf(a.ek.pub); cert != nil {
		a.Claim.Certificate, a.Claim.Chain = cert.Raw, inv.chain
	}
}

// abilities returns what the agent offers to answer. The agent offers an event log if it knows the log's
// path. It reads the file only if a server asks, and answers null if there is none.
func (t *TPM) abilities(caps *capabilities) []string {
	var can []string
	if caps.canQuote() {
		can = append(can, attestor.CanPCRs)
		if t.config.eventLogPath() != "" {
			can = append(can, attestor.CanEventLog)
		}
	}
	if t.config.DevID != nil {
		can = append(can, attestor.CanDevID)
	}
	return can
}

// Activate runs TPM2_ActivateCredential. If that succeeds, Activate does whatever else task asks for: it has the AK
// quote PCRs, and it proves the DevID. It does not read the event log: see TPM.EventLog. Last, it has the AK
// certify the SVID key of UseSVIDKey, if there is one. Activate connects to the TPM again and leaves nothing in it.
// If ctx ends, Activate waits for the command under way, flushes its keys, and returns the cause of ctx.
func (a *Attestation) Activate(ctx context.Context, task *attestor.Activation) (_ *attestor.Activated, err error) {
	if len(task.Credential) > maxChallenge || len(task.Secret) > maxChallenge {
		return nil, fmt.Errorf("the challenge is too large for a TPM: %d and %d bytes, at most %d each",
			len(task.Credential), len(task.Secret), maxChallenge)
	}
	c, err := a.tpm.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	ek, err := a.tpm.load(c, a.ek.key)
	if err != nil {
		return nil, explainLoad("load the endorsement key", err)
	}
	defer ek.flush(c)
	ak, err := a.tpm.load(c, a.ak)
	if err != nil {
		return nil, explainLoad("load the attestation key", err)
	}
	defer ak.flush(c)
	done := new(attestor.Activated)
	if done.Secret, err = a.activate(c, ek, ak, task); err != nil {
		return nil, err
	}
	if task.Quote != nil {
		if done.Quote, err = a.quote(c, ak, task.Quote, task.QualifyingData); err != nil {
			return nil, err
		}
	}
	if task.DevID != nil {
		ek.flush(c) // every TPM has room for three keys: the AK, the DevID's, and its parent
		if done.DevID, err = a.proveDevID(c, ak, task.DevID); err != nil {
			return nil, err
		}
	}
	if a.svidKey != nil {
		ek.flush(c) // as above
		if done.SVIDKey, err = a.certifySVIDKey(c, ak, done.Secret); err != nil {
			return nil, err
		}
	}
	return done, nil
}

// activate runs TPM2_ActivateCredential with the loaded keys.
func (a *Attestation) activate(c *conn, ek, ak *key, task *attestor.Activation) ([]byte, error) {
	rsp, err := withRoom(a.tpm, c, func() (*tpm2.ActivateCredentialResponse, error) {
		// The command is sent even if ctx ends after the session has begun: nothing else
		// would flush the session.
		defer c.detach()()
		return execute(c, tpm2.ActivateCredential{
			ActivateHandle: ak.authorized(tpm2.PasswordAuth(nil)),
			KeyHandle:      ek.authorized(a.tpm.ekSession(&a.ek)),
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: task.Credential},
			Secret:         tpm2.TPM2BEncryptedSecret{Buffer: task.Secret},
		})
	})
	if err != nil {
		return nil, explain("activate the credential", err)
	}
	return rsp.CertInfo.Buffer, nil
}

// explainLoad says why a key could not be loaded again. A saved context can be loaded only into the TPM that saved
// it, and only until that TPM is reset.
func explainLoad(doing string, err error) error {
	const again = "the TPM has been restarted or replaced since the attestation began: the next one starts anew"
	return explain(doing, err,
		remedy{tpm2.TPMRCIntegrity, ErrNotReady, again},
		remedy{tpm2.TPMRCHandle, ErrNotReady, again},
		remedy{tpm2.TPMRCHierarchy, ErrNotReady, again})
}
