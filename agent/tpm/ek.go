package tpm

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The handles that the TCG's registry of reserved handles keeps for persistent
// endorsement keys (2.3.1).
const (
	firstEKHandle tpm2.TPMHandle = 0x81010000
	lastEKHandle  tpm2.TPMHandle = 0x8101FFFF
)

// key is a loaded key, or a persistent one.
type key struct {
	handle     tpm2.TPMHandle
	name       tpm2.TPM2BName
	public     []byte // TPMT_PUBLIC
	persistent bool
}

// endorsementKey is the EK in use.
type endorsementKey struct {
	key
	template attestor.EKTemplate
	pub      crypto.PublicKey
	hash     string
}

// findPersistent returns the handle of the persistent key that is the EK of the
// inventory's template, or zero.
func findPersistent(c *conn, inv *inventory) (tpm2.TPMHandle, error) {
	handles, err := listHandles(c, firstEKHandle, lastEKHandle)
	if err != nil {
		return 0, explain("list the TPM's persistent keys", err)
	}
	for _, handle := range handles {
		ek, err := readPersistent(c, handle, inv)
		if err != nil {
			return 0, err
		}
		if ek != nil {
			return handle, nil
		}
	}
	return 0, nil
}

// readPersistent returns the EK at a persistent handle, or nil where what is
// there, if anything, is another key.
func readPersistent(c *conn, handle tpm2.TPMHandle, inv *inventory) (*endorsementKey, error) {
	rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
	if c.err != nil {
		return nil, explain(fmt.Sprintf("read the key %#x", uint32(handle)), err)
	}
	if err != nil {
		return nil, nil //nolint:nilerr // nothing is there, or nothing that can be read
	}
	return recognizeEK(handle, rsp, inv), nil
}

// recognizeEK returns the persistent EK, or nil where the key is not the one that
// the template makes: a key of another form, of another hierarchy, or one made
// with another nonce, which only the certificate in the TPM tells from the right
// one.
func recognizeEK(handle tpm2.TPMHandle, rsp *tpm2.ReadPublicResponse, inv *inventory) *endorsementKey {
	k := key{handle: handle, name: rsp.Name, public: rsp.OutPublic.Bytes(), persistent: true}
	if ek := inv.ek.withHandle(k); ek != nil {
		return ek
	}
	if !fromTemplate(&rsp.OutPublic, inv.template.Public) || !inEndorsementHierarchy(rsp) {
		return nil
	}
	ek, err := newEndorsementKey(k, inv.template)
	if err != nil || (inv.ownCertificate() && inv.certificateOf(ek.pub) == nil) {
		return nil
	}
	return ek
}

// withHandle returns the EK under the handle of k where k is the same key, else
// nil: what was found out of a key is not found out again.
func (ek *endorsementKey) withHandle(k key) *endorsementKey {
	if ek == nil || !bytes.Equal(ek.public, k.public) {
		return nil
	}
	same := *ek
	same.key = k
	return &same
}

// fromTemplate reports whether a public area is the template's but for the
// unique field, which holds the key.
func fromTemplate(public *tpm2.TPM2BPublic, template tpm2.TPMTPublic) bool {
	pub, err := public.Contents()
	if err != nil || pub.Type != template.Type {
		return false
	}
	p := *pub
	p.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(p), tpm2.Marshal(template))
}

// inEndorsementHierarchy reports whether a key is a primary key of the
// endorsement hierarchy: its qualified name is the digest of the hierarchy's
// handle and of its name (part 1, 16).
func inEndorsementHierarchy(rsp *tpm2.ReadPublicResponse) bool {
	name := rsp.Name.Buffer
	if len(name) < 2 {
		return false
	}
	hash, err := tpm2.TPMIAlgHash(binary.BigEndian.Uint16(name)).Hash()
	if err != nil || !hash.Available() {
		return false
	}
	h := hash.New()
	h.Write(tpm2.PrimaryHandleName(tpm2.TPMRHEndorsement))
	h.Write(name)
	return bytes.Equal(rsp.QualifiedName.Buffer, h.Sum(name[:2:2]))
}

// loadEK returns the persistent EK where there is one, and makes it otherwise.
func (t *TPM) loadEK(c *conn, inv *inventory) (*endorsementKey, error) {
	if inv.handle != 0 {
		ek, err := readPersistent(c, inv.handle, inv)
		if ek != nil || err != nil {
			return ek, err
		}
		inv.handle = 0
	}
	return t.createEK(c, inv)
}

// createEK makes the EK: the seed of the endorsement hierarchy and the template
// decide what key it is, so it is the same one every time.
func (t *TPM) createEK(c *conn, inv *inventory) (*endorsementKey, error) {
	rsp, err := execute(c, tpm2.CreatePrimary{
		PrimaryHandle: t.endorsement(),
		InPublic:      tpm2.New2B(inv.template.Public),
	})
	if err != nil {
		if isUnsupported(err) {
			return nil, fmt.Errorf("%w (%w)", unsupportedEK(inv.template.KeyType), err)
		}
		return nil, explain("make the endorsement key", err, endorsementRemedies[:]...)
	}
	k := key{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()}
	if ek := inv.ek.withHandle(k); ek != nil {
		return ek, nil
	}
	ek, err := newEndorsementKey(k, inv.template)
	if err != nil {
		k.flush(c)
	}
	return ek, err
}

func newEndorsementKey(k key, template attestor.EKTemplate) (*endorsementKey, error) {
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.public)
	if err != nil {
		return nil, fmt.Errorf("read the endorsement key: %w", err)
	}
	pub, err := tpm2.Pub(*public)
	if err != nil {
		return nil, fmt.Errorf("read the endorsement key: %w", err)
	}
	hash, err := attestor.HashEK(pub)
	if err != nil {
		return nil, fmt.Errorf("read the endorsement key: %w", err)
	}
	return &endorsementKey{key: k, template: template, pub: pub, hash: hash}, nil
}

// endorsement authorizes the use of the endorsement hierarchy. The password goes
// to the TPM as it is: an HMAC session would cost two commands more and hide it
// only from who reads the bus and cannot guess it.
func (t *TPM) endorsement() tpm2.AuthHandle {
	return tpm2.AuthHandle{
		Handle: tpm2.TPMRHEndorsement,
		Auth:   tpm2.PasswordAuth([]byte(t.config.EndorsementPassword)),
	}
}

const wrongEndorsementPassword = "set endorsement_password to the endorsement hierarchy's password"

var endorsementRemedies = [...]remedy{
	{tpm2.TPMRCBadAuth, ErrSetup, wrongEndorsementPassword},
	{tpm2.TPMRCAuthFail, ErrSetup, wrongEndorsementPassword},
	{tpm2.TPMRCHierarchy, ErrSetup, "the endorsement hierarchy is disabled: enable it in the firmware's setup"},
}

// isUnsupported reports whether a template was refused for its algorithms.
func isUnsupported(err error) bool {
	for _, code := range []tpm2.TPMRC{
		tpm2.TPMRCCurve, tpm2.TPMRCKeySize, tpm2.TPMRCValue, tpm2.TPMRCAsymmetric,
		tpm2.TPMRCSymmetric, tpm2.TPMRCHash, tpm2.TPMRCType, tpm2.TPMRCMode,
	} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// flush removes a transient key from the TPM.
func (k *key) flush(c *conn) {
	if k.persistent || k.handle == 0 {
		return
	}
	// Nothing can be done about a failure, and a resource manager flushes it
	// when the connection closes.
	_, _ = execute(c, tpm2.FlushContext{FlushHandle: k.handle})
	k.handle = 0
}
