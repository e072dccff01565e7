package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// An SVIDKey is a key of the TPM for the agent's SVID. The TPM has made the key, and the key cannot leave it. Any
// program that may use the TPM and has the key's files can sign with it. The key is in the TPM only while commands
// need it. An SVIDKey is not safe for concurrent use.
//
// It is a primary key of the endorsement hierarchy, for the reasons that createAK names. Such a key takes no memory
// of the TPM: after a restart, the TPM derives the same key from the same bytes. Another TPM derives another key.
type SVIDKey struct {
	// Public is the key's TPMT_PUBLIC, which attestor.ReadSVIDKey accepts.
	Public []byte
	// Name is the key's TPM name.
	Name []byte

	unique [keydir.UniqueSize]byte
	key    key
}

// svidKeyMark is the authPolicy of every SVID key, by which flushOwnKeys finds keys that were left in the
// TPM. No policy has this digest; the key is used with its empty password.
func svidKeyMark() []byte {
	mark := sha256.Sum256([]byte("spire-tpm-attestor agent key 1"))
	return mark[:]
}

// svidKeyTemplate returns the template of an SVID key. It differs from an AK's in its mark, and in that the key
// signs any digest (it is not restricted).
func svidKeyTemplate(unique [keydir.UniqueSize]byte) (tpm2.TPMTPublic, error) {
	template, err := akTemplate(attestor.P256, akForm{unique: unique[:], mark: svidKeyMark()})
	template.ObjectAttributes.Restricted = false
	return template, err
}

// MakeSVIDKey has the TPM derive the SVID key from unique. It leaves nothing in the TPM. If
// ctx ends, it waits for the command under way, flushes what that has made, and returns the cause of
// ctx. An error with a remedy wraps ErrSetup or ErrNotReady.
func (t *TPM) MakeSVIDKey(ctx context.Context, unique [keydir.UniqueSize]byte) (_ *SVIDKey, err error) {
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	k, err := t.createSVIDKey(c, unique)
	if err != nil {
		return nil, err
	}
	if err := k.key.unload(c); err != nil {
		return nil, explain("save the SVID key's context", err)
	}
	return k, nil
}

// createSVIDKey makes an SVID key. The caller flushes it.
func (t *TPM) createSVIDKey(c *conn, unique [keydir.UniqueSize]byte) (*SVIDKey, error) {
	template, err := svidKeyTemplate(unique)
	if err != nil {
		return nil, err
	}
	rsp, err := t.createPrimary(c, template)
	if isUnsupported(err) {
		return nil, setup(fmt.Errorf("make the SVID key: %w", err), noP256)
	}
	if err != nil {
		return nil, explain("make the SVID key", err, endorsementRemedies[:]...)
	}
	k := &SVIDKey{
		Public: rsp.OutPublic.Bytes(), Name: rsp.Name.Buffer, unique: unique,
		key: key{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()},
	}
	if _, err := attestor.ReadSVIDKey(k.Public); err != nil {
		k.key.flush(c)
		return nil, fmt.Errorf("make the SVID key: the TPM has made another key: %w", err)
	}
	return k, nil
}

const noP256 = "this TPM does not make keys on P-256, which SPIRE's agent needs: " +
	"use another KeyManager, and remove svid_key_directory"

// SignSVID has the TPM sign a SHA-256 digest with k, and returns the signature as ASN.1 DER (RFC 3279,
// 2.2.3). It leaves nothing in the TPM. See MakeSVIDKey for ctx and errors.
//
// It loads the key's saved context, which is much faster than making the key. After a restart of the TPM, it
// makes the key again.
func (t *TPM) SignSVID(ctx context.Context, k *SVIDKey, digest []byte) (_ []byte, err error) {
	if len(digest) != sha256.Size {
		return nil, fmt.Errorf("a digest of %d bytes: want %d", len(digest), sha256.Size)
	}
	c, err := t.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer c.close()
	defer unreadable(&err)
	loaded, err := t.loadSVIDKey(c, k)
	if err != nil {
		return nil, err
	}
	defer loaded.flush(c)
	rsp, err := execute(c, tpm2.Sign{
		KeyHandle:  loaded.authorized(tpm2.PasswordAuth(nil)),
		Digest:     tpm2.TPM2BDigest{Buffer: digest},
		InScheme:   signScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256),
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck, Hierarchy: tpm2.TPMRHNull},
	})
	if err != nil {
		return nil, explain("sign with the SVID key", err)
	}
	return signatureDER(&rsp.Signature)
}

// loadSVIDKey loads k, or makes it again. The caller flushes it.
func (t *TPM) loadSVIDKey(c *conn, k *SVIDKey) (*key, error) {
	if k.key.context != nil {
		loaded, err := t.load(c, k.key)
		if err == nil {
			return loaded, nil
		}
		if !isResponse(err) || isFull(err) {
			return nil, explain("load the SVID key", err)
		}
		k.key.context = nil // the TPM was restarted since it was saved
	}
	made, err := t.createSVIDKey(c, k.unique)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(made.Name, k.Name) {
		made.key.flush(c)
		return nil, otherTPM("sign with the SVID key")
	}
	// The next call loads this context. If it could not be saved, the next call makes the key again.
	if rsp, err := execute(c, tpm2.ContextSave{SaveHandle: made.key.handle}); err == nil {
		k.key.context = &rsp.Context
	}
	return &made.key, nil
}

// isResponse reports whether err is an error code that the TPM has answered, not a failure to reach it.
func isResponse(err error) bool {
	_, ok := errors.AsType[tpm2.TPMRC](err)
	return ok
}

// otherTPM returns the error if this TPM derives a key that is not the one in the file.
func otherTPM(doing string) error {
	return &Error{
		Class: ErrSetup,
		Err: fmt.Errorf("%s: it is the key of another TPM, or of this one before its endorsement seed was changed",
			doing),
		Hint: "restart the agent, which then makes a new one and attests; each machine needs a directory of its own",
	}
}

// signatureDER returns an ECDSA signature in ASN.1.
func signatureDER(sig *tpm2.TPMTSignature) ([]byte, error) {
	ecc, err := sig.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("sign with the SVID key: the TPM's signature: %w", err)
	}
	return asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(ecc.SignatureR.Buffer), new(big.Int).SetBytes(ecc.SignatureS.Buffer),
	})
}

// ReadSVIDKey reads which SVID key is the newest. It returns nil if no directory is configured, and an error if
// the directory holds no key: a server that requires the key would refuse an agent that leaves it out, and its
// reason would not name the directory. ReadSVIDKey does not use the TPM, and is safe for concurrent use. It hangs
// if the directory is on a file system that hangs.
func (t *TPM) ReadSVIDKey() (*keydir.Slot, error) {
	path := t.config.SVIDKeyDirectory
	if path == "" {
		return nil, nil //nolint:nilnil // an agent whose key is elsewhere
	}
	l, err := keydir.List(path)
	if e, ok := errors.AsType[*keydir.Error](err); ok {
		return nil, &Error{Class: ErrSetup, Err: fmt.Errorf("read the SVID key: %w", e.Err), Hint: e.Hint}
	}
	if err != nil {
		return nil, fmt.Errorf("read the SVID key: %w", err)
	}
	if len(l.Slots) == 0 {
		err := fmt.Errorf("read the SVID key: there is none in %s", path)
		if len(l.Unreadable) > 0 {
			err = fmt.Errorf("%w, and %s cannot be read: %w", err, l.Unreadable[0].Path, l.Unreadable[0].Err)
		}
		return nil, setup(err, `configure the KeyManager "tpm" with this directory in place of the present `+
			"KeyManager, or remove svid_key_directory")
	}
	return &l.Slots[0], nil
}

// UseSVIDKey makes Activate certify the SVID key that ReadSVIDKey has returned. If slot is nil, Activate
// certifies none.
func (a *Attestation) UseSVIDKey(slot *keydir.Slot) { a.svidKey = slot }

// SVIDKeyID returns the ID of the SVID key that Activate certifies, or an empty string if there is none.
func (a *Attestation) SVIDKeyID() string {
	if a.svidKey == nil {
		return ""
	}
	return a.svidKey.ID
}

// certifySVIDKey has the AK certify the SVID key over the activated secret. The key does not stay in the
// TPM.
func (a *Attestation) certifySVIDKey(c *conn, ak *key, secret []byte) (*attestor.SignedSVIDKey, error) {
	k, err := a.tpm.createSVIDKey(c, a.svidKey.Unique)
	if err != nil {
		return nil, err
	}
	defer k.key.flush(c)
	if !bytes.Equal(k.Name, a.svidKey.Name) {
		return nil, otherTPM("certify the SVID key " + a.svidKey.ID)
	}
	rsp, err := execute(c, tpm2.Certify{
		ObjectHandle:   k.key.authorized(tpm2.PasswordAuth(nil)),
		SignHandle:     ak.authorized(tpm2.PasswordAuth(nil)),
		QualifyingData: tpm2.TPM2BData{Buffer: attestor.SVIDKeyData(secret)},
		InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, // the AK's
	})
	if err != nil {
		return nil, explain("certify the SVID key", err)
	}
	return &attestor.SignedSVIDKey{
		Public: k.Public, Attest: rsp.CertifyInfo.Bytes(), Signature: tpm2.Marshal(rsp.Signature),
	}, nil
}
