package tpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// What an agent that was killed in the middle of a command has left in a TPM without a
// resource manager is flushed when the TPM is full, and nothing else is. No file has to
// survive for that: an AK bears a mark, the EK has a name that the seed decides, and a
// session that has authorized an EK shows it by its digest. Whoever holds the device, or
// the socket, is the only one who does, so that only what this connection itself has loaded
// is in use.

// The handles of what is loaded (part 2, 7.2). TPM2_GetCapability lists loaded sessions
// from firstLoadedSession on (part 2, 7.4), each by the handle of its type.
const (
	firstTransient     tpm2.TPMHandle = 0x80000000
	lastTransient      tpm2.TPMHandle = 0x80FFFFFF
	firstLoadedSession uint32         = 0x02000000
	policySession      tpm2.TPMHandle = 0x03 // the first byte of a policy session's handle
)

// akMark is the authPolicy of every AK that this plugin makes. No policy has this digest,
// and an AK is used by its empty password.
func akMark() []byte {
	mark := sha256.Sum256([]byte("spire-tpm-attestor attestation key 1"))
	return mark[:]
}

// isFull reports whether a TPM has refused a command for want of room.
func isFull(err error) bool {
	for _, code := range []tpm2.TPMRC{
		tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionMemory,
		tpm2.TPMRCSessionHandles, tpm2.TPMRCMemory,
	} {
		if errors.Is(err, code) {
			return true
		}
	}
	return false
}

// withRoom runs a command, and once more where the TPM had no room for it and something
// of this plugin's could be flushed.
func withRoom[R any](t *TPM, c *conn, command func() (*R, error)) (*R, error) {
	rsp, err := command()
	if isFull(err) && t.flushOwn(c) {
		return command()
	}
	return rsp, err
}

// flushOwn flushes what this plugin has left in the TPM, and reports whether that was
// anything.
func (t *TPM) flushOwn(c *conn) bool {
	keys, sessions := t.flushOwnKeys(c), t.flushOwnSessions(c)
	return keys || sessions
}

func (t *TPM) flushOwnKeys(c *conn) bool {
	handles, err := listHandles(c, firstTransient, lastTransient)
	if err != nil {
		return false // the TPM is full, which is said
	}
	flushed := false
	for _, handle := range handles {
		if slices.Contains(c.loaded, handle) {
			continue
		}
		rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
		if err == nil && (isMarked(rsp) || t.isEK(rsp)) && flush(c, handle) {
			flushed = true
		}
	}
	return flushed
}

// isMarked reports whether a key is an AK of this plugin.
func isMarked(rsp *tpm2.ReadPublicResponse) bool {
	public, err := rsp.OutPublic.Contents()
	return err == nil && bytes.Equal(public.AuthPolicy.Buffer, akMark()) && inEndorsementHierarchy(rsp)
}

// isEK reports whether a key is the EK, as far as it is known.
func (t *TPM) isEK(rsp *tpm2.ReadPublicResponse) bool {
	return t.known != nil && bytes.Equal(rsp.Name.Buffer, t.known.ek.name.Buffer)
}

// flushOwnSessions flushes the policy sessions that have authorized the EK. One that was
// only begun could be anybody's.
func (t *TPM) flushOwnSessions(c *conn) bool {
	if t.known == nil {
		return false // a session is begun later
	}
	rsp, err := capability(c, tpm2.TPMCapHandles, firstLoadedSession, listBatch)
	if err != nil {
		return false
	}
	loaded, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return false
	}
	flushed := false
	for _, handle := range loaded.Handle {
		if handle>>24 != policySession {
			continue
		}
		rsp, err := execute(c, tpm2.PolicyGetDigest{PolicySession: handle})
		if err == nil && isOwnPolicy(&t.known.ek.template.Public, rsp.PolicyDigest.Buffer) && flush(c, handle) {
			flushed = true
		}
	}
	return flushed
}

// isOwnPolicy reports whether a digest is the EK's policy, or what it has before
// TPM2_PolicyOR.
func isOwnPolicy(ek *tpm2.TPMTPublic, digest []byte) bool {
	if bytes.Equal(digest, ek.AuthPolicy.Buffer) {
		return true
	}
	either, err := policyDigests(ek.NameAlg)
	return err == nil && bytes.Equal(digest, either.Digests[0].Buffer)
}

// createInPlace makes the EK in a TPM that is full, by full, of keys that may be the EK:
// an agent that was killed has left it there, and this one does not know its name yet.
// Such a key is saved and flushed, the EK is made, and if they differ the key is loaded
// again: under its own handle, since no other is free.
func (t *TPM) createInPlace(c *conn, template tpm2.TPMTPublic, full error) (*tpm2.CreatePrimaryResponse, error) {
	for _, k := range findEKForm(c, template) {
		saved, err := execute(c, tpm2.ContextSave{SaveHandle: k.handle})
		if err != nil || !flush(c, k.handle) {
			continue
		}
		rsp, err := t.createPrimary(c, template)
		if err == nil && bytes.Equal(rsp.Name.Buffer, k.name.Buffer) {
			return rsp, nil
		}
		if err == nil {
			flush(c, rsp.ObjectHandle)
		}
		restore(c, saved.Context)
	}
	return nil, full
}

// findEKForm returns the loaded keys that have the form of the EK. Those that are there
// more than once come first: several agents have left the same one.
func findEKForm(c *conn, template tpm2.TPMTPublic) []key {
	handles, err := listHandles(c, firstTransient, lastTransient)
	if err != nil {
		return nil
	}
	var found []key
	count := make(map[string]int)
	for _, handle := range handles {
		rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
		if err == nil && fromTemplate(&rsp.OutPublic, template) && inEndorsementHierarchy(rsp) {
			found = append(found, key{handle: handle, name: rsp.Name})
			count[string(rsp.Name.Buffer)]++
		}
	}
	slices.SortStableFunc(found, func(a, b key) int {
		return count[string(b.name.Buffer)] - count[string(a.name.Buffer)]
	})
	return found
}

// restore loads a key of somebody else's again, also after the attestation has ended.
func restore(c *conn, context tpm2.TPMSContext) {
	defer c.detach()()
	_, _ = execute(c, tpm2.ContextLoad{Context: context}) // it was loaded a moment ago
}
