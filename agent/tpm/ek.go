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

// endorsementKey is the EK in use.
type endorsementKey struct {
	key
	template attestor.EKTemplate
	pub      crypto.PublicKey
	hash     string
	// own is set where the TPM has made the key from the template, or a
	// persistent one is the same.
	own bool
}

// findEK returns the EK of the inventory: the persistent key that an EK certificate in
// the TPM is for, else the one that the TPM makes from the template, which may be
// persistent as well. Made is what the TPM has made before, or nil.
//
// Any key that somebody has made with another unique field, in the endorsement
// hierarchy of this TPM, has the form of an EK. So where no certificate vouches
// for a persistent key, the EK is made to compare them: once, since the next
// attestations know it. What is at which handle is never what decides.
func (t *TPM) findEK(c *conn, inv *inventory, made *endorsementKey) (*endorsementKey, error) {
	candidates, err := findPersistent(c, inv)
	if err != nil {
		return nil, err
	}
	if n := len(candidates); n > 0 && inv.certificateOf(candidates[n-1].pub) != nil {
		return candidates[n-1], nil
	}
	if made == nil || !made.own || !sameTemplate(made.template, inv.template) {
		if made, err = t.createEK(c, inv.template, nil); err != nil {
			return nil, err
		}
	}
	for _, candidate := range candidates {
		if ek := made.withHandle(candidate.key); ek != nil {
			return ek, nil
		}
	}
	if len(candidates) > 0 {
		if err := inv.undecided(candidates[0]); err != nil {
			return nil, err
		}
	}
	return made, nil
}

// undecided returns an error where the certificate that may be for a persistent
// key is there and cannot be read: without it the machine would attest with the
// EK that the TPM makes, and with it by another identity.
func (inv *inventory) undecided(candidate *endorsementKey) error {
	for _, cert := range inv.certs {
		if cert.Index != inv.template.CertificateIndex || cert.Err == nil || errors.Is(cert.Err, errUnwritten) {
			continue
		}
		return &Error{
			Class: ErrNotReady,
			Err: fmt.Errorf("the persistent key %#x may be the endorsement key, but its certificate cannot be read: %w",
				uint32(candidate.handle), cert.Err),
			Hint: "make the certificate readable, or evict the key (tpm2_evictcontrol) if it is another one",
		}
	}
	return nil
}

// findPersistent returns the persistent keys that have the form of the
// inventory's EK, up to the first one for which there is a certificate, which is
// then the last.
func findPersistent(c *conn, inv *inventory) ([]*endorsementKey, error) {
	handles, err := listHandles(c, firstEKHandle, lastEKHandle)
	if err != nil {
		return nil, explain("list the TPM's persistent keys", err)
	}
	var found []*endorsementKey
	for _, handle := range handles {
		rsp, err := readPersistent(c, handle)
		if err != nil {
			return nil, err
		}
		if rsp == nil || !fromTemplate(&rsp.OutPublic, inv.template.Public) || !inEndorsementHierarchy(rsp) {
			continue
		}
		ek, err := newEndorsementKey(persistentKey(handle, rsp), inv.template)
		if err != nil {
			continue // no key that a server would take
		}
		if found = append(found, ek); inv.certificateOf(ek.pub) != nil {
			break
		}
	}
	return found, nil
}

// readPersistent reads the key at a persistent handle. It returns nil where
// nothing is there, or nothing that can be read.
func readPersistent(c *conn, handle tpm2.TPMHandle) (*tpm2.ReadPublicResponse, error) {
	rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
	if c.err != nil {
		return nil, explain(fmt.Sprintf("read the key %#x", uint32(handle)), err)
	}
	if err != nil {
		return nil, nil //nolint:nilerr,nilnil // documented
	}
	return rsp, nil
}

func persistentKey(handle tpm2.TPMHandle, rsp *tpm2.ReadPublicResponse) key {
	return key{handle: handle, name: rsp.Name, public: rsp.OutPublic.Bytes(), persistent: true}
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

func sameTemplate(a, b attestor.EKTemplate) bool {
	return bytes.Equal(tpm2.Marshal(a.Public), tpm2.Marshal(b.Public))
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

// findAgain returns the EK that was found before, if it still is this TPM's, else nil or
// the one that the TPM makes. A saved context loads only in the TPM that has saved it,
// and until that TPM is reset.
func (t *TPM) findAgain(c *conn, found *endorsementKey) (*endorsementKey, error) {
	if found.persistent {
		rsp, err := readPersistent(c, found.handle)
		if rsp == nil {
			return nil, err
		}
		return found.withHandle(persistentKey(found.handle, rsp)), nil
	}
	loaded, err := t.load(c, found.key)
	if err != nil {
		return t.createEK(c, found.template, found)
	}
	loaded.flush(c)
	return found, nil
}

// createEK makes the EK: the seed of the endorsement hierarchy and the template
// decide what key it is, so it is the same one every time. Found is what it may
// turn out to be, or nil. The key is not left in the TPM.
func (t *TPM) createEK(c *conn, template attestor.EKTemplate, found *endorsementKey) (*endorsementKey, error) {
	rsp, err := t.createPrimary(c, template.Public)
	if isFull(err) {
		rsp, err = t.createInPlace(c, template.Public, err)
	}
	if err != nil {
		if isUnsupported(err) {
			return nil, fmt.Errorf("%w (%w)", unsupportedEK(template.KeyType), err)
		}
		return nil, explain("make the endorsement key", err, endorsementRemedies[:]...)
	}
	k := key{handle: rsp.ObjectHandle, name: rsp.Name, public: rsp.OutPublic.Bytes()}
	if err := k.unload(c); err != nil {
		return nil, explain("save the endorsement key's context", err)
	}
	if ek := found.withHandle(k); ek != nil {
		return ek, nil
	}
	ek, err := newEndorsementKey(k, template)
	if err != nil {
		return nil, err
	}
	ek.own = true
	return ek, nil
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
