package tpm

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The range of handles for persistent endorsement keys in the TCG's registry of
// reserved handles (2.3.1).
const (
	firstEKHandle tpm2.TPMHandle = 0x81010000
	lastEKHandle  tpm2.TPMHandle = 0x8101FFFF
)

// endorsementKey is the EK in use.
type endorsementKey struct {
	key
	template attestor.EKTemplate
	pub      crypto.PublicKey
	hash     [sha256.Size]byte
	// own says that the TPM makes this key from the template; a persistent copy
	// of the same key counts too.
	own bool
}

// findEK returns the EK of the inventory. If an EK certificate in the TPM is for a
// persistent key, that key is the EK. Otherwise the EK is the key that the TPM makes
// from the template; findEK uses its persistent copy, if there is one. The parameter
// made is the key that the TPM has made before, or nil.
//
// A key's form and handle do not make it the EK: whoever may use the endorsement
// hierarchy can make keys of the same form, with another unique field. So if no
// certificate vouches for a persistent key, the TPM has to make the EK to compare
// the two. It does that once; later attestations remember the EK.
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

// undecided returns an error if a certificate that may be for the persistent key
// candidate is in the TPM and not even its key can be read. The machine must not attest
// then: if the certificate is for that key, the EK that the TPM makes is another identity.
func (inv *inventory) undecided(candidate *endorsementKey) error {
	for _, cert := range inv.certs {
		if cert.Index != inv.template.CertificateIndex || cert.Err == nil || cert.Raw != nil ||
			errors.Is(cert.Err, errUnwritten) {
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

// findPersistent returns the persistent keys that have the form of the inventory's
// EK, up to and including the first for which the TPM has a certificate.
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
			continue // no server accepts this key
		}
		if found = append(found, ek); inv.certificateOf(ek.pub) != nil {
			break
		}
	}
	return found, nil
}

// readPersistent reads the public area of the key at a persistent handle. It returns nil if there is no key, or
// none that can be read. It returns an error only if the connection fails.
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

// withHandle returns the EK with the handle of k if k is the same key, and nil if not. That saves computing again
// what is known about the EK.
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

// fromTemplate reports whether a public area matches the template in everything but
// the unique field, which holds the key.
func fromTemplate(public *tpm2.TPM2BPublic, template tpm2.TPMTPublic) bool {
	pub, err := public.Contents()
	if err != nil || pub.Type != template.Type {
		return false
	}
	p := *pub
	p.Unique = template.Unique
	return bytes.Equal(tpm2.Marshal(p), tpm2.Marshal(template))
}

// inEndorsementHierarchy reports whether a key is a primary key of the endorsement
// hierarchy.
func inEndorsementHierarchy(rsp *tpm2.ReadPublicResponse) bool {
	return inHierarchy(rsp, tpm2.TPMRHEndorsement)
}

// inHierarchy reports whether a key is a primary key of a hierarchy: the qualified name of
// such a key is the digest of the hierarchy's handle and the key's name (part 1, 16).
func inHierarchy(rsp *tpm2.ReadPublicResponse, hierarchy tpm2.TPMHandle) bool {
	name := rsp.Name.Buffer
	if len(name) < 2 {
		return false
	}
	hash, err := tpm2.TPMIAlgHash(binary.BigEndian.Uint16(name)).Hash()
	if err != nil || !hash.Available() {
		return false
	}
	h := hash.New()
	h.Write(tpm2.PrimaryHandleName(hierarchy))
	h.Write(name)
	return bytes.Equal(rsp.QualifiedName.Buffer, h.Sum(name[:2:2]))
}

// findAgain looks for the EK that was found before. It returns the EK if this TPM still
// has it. If a persistent EK has gone, it returns nil. If the saved context of another
// EK does not load, since the TPM was replaced or reset, it returns the EK that the TPM
// makes now.
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

// createEK makes the EK. The TPM derives it from the seed of the endorsement hierarchy and the template, so it is
// the same key every time. found is the key that the result will probably be, or nil. The EK does not stay in the
// TPM.
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

// endorsement authorizes the use of the endorsement hierarchy. The password goes to
// the TPM in clear. An HMAC session would cost two more commands, and would hide the
// password only from somebody who can read the bus but not guess the password.
func (t *TPM) endorsement() tpm2.AuthHandle {
	return tpm2.AuthHandle{
		Handle: tpm2.TPMRHEndorsement,
		Auth:   tpm2.PasswordAuth([]byte(t.config.EndorsementPassword)),
	}
}

// owner authorizes the use of the owner hierarchy by the configured password.
func (t *TPM) owner() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte(t.config.OwnerPassword))}
}

const (
	wrongEndorsementPassword = "set endorsement_password to the endorsement hierarchy's password"
	wrongOwner               = "set owner_password to the owner hierarchy's password"
)

var endorsementRemedies = [...]remedy{
	{tpm2.TPMRCBadAuth, ErrSetup, wrongEndorsementPassword},
	{tpm2.TPMRCAuthFail, ErrSetup, wrongEndorsementPassword},
	{tpm2.TPMRCHierarchy, ErrSetup, "the endorsement hierarchy is disabled: enable it in the firmware's setup"},
}

// isUnsupported reports whether a TPM has refused a template because of its algorithms.
func isUnsupported(err error) bool {
	return isCode(err, tpm2.TPMRCCurve, tpm2.TPMRCKeySize, tpm2.TPMRCValue, tpm2.TPMRCAsymmetric,
		tpm2.TPMRCSymmetric, tpm2.TPMRCHash, tpm2.TPMRCType, tpm2.TPMRCMode)
}
