package tpm

import (
	"bytes"
	"crypto/sha256"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// An agent that is killed in the middle of a command leaves keys or a session in a TPM
// without a resource manager. If a later command finds the TPM full, this file flushes
// what such an agent has left, and nothing of other programs. It needs no record of what
// was left: AKs and SVID keys have a mark, the EK has the same name every time, and a session that has
// authorized an EK has that EK's policy digest. Only one program at a time can have the
// device or the socket open, so only keys that this connection has loaded are in use.

// The handles of loaded keys and sessions (part 2, 7.2). TPM2_GetCapability lists loaded
// sessions of all types from firstLoadedSession on (part 2, 7.4).
const (
	firstTransient     tpm2.TPMHandle = 0x80000000
	lastTransient      tpm2.TPMHandle = 0x80FFFFFF
	firstLoadedSession uint32         = 0x02000000
	policySession      tpm2.TPMHandle = 0x03 // the first byte of a policy session's handle
)

// akMark is the authPolicy of every AK that this plugin makes for attestations. No policy has this digest;
// an AK is used with its empty password.
func akMark() []byte {
	mark := sha256.Sum256([]byte("spire-tpm-attestor attestation key 1"))
	return mark[:]
}

// isFull reports whether a TPM has refused a command because it has no room for another
// key or session.
func isFull(err error) bool {
	return isCode(err, tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles, tpm2.TPMRCSessionMemory,
		tpm2.TPMRCSessionHandles, tpm2.TPMRCMemory)
}

// withRoom runs a command. If the TPM is full and withRoom can flush something that this
// plugin has left, it runs the command again.
func withRoom[R any](t *TPM, c *conn, command func() (*R, error)) (*R, error) {
	rsp, err := command()
	if isFull(err) && t.flushOwn(c, err) {
		return command()
	}
	return rsp, err
}

// flushOwn flushes what earlier agents have left in the TPM, and reports whether it has flushed anything. full is
// the TPM's error, which says whether keys or sessions fill it.
func (t *TPM) flushOwn(c *conn, full error) bool {
	if isCode(full, tpm2.TPMRCObjectMemory, tpm2.TPMRCObjectHandles) && t.learnParents(c) {
		return true
	}
	keys, sessions := t.flushOwnKeys(c), t.flushOwnSessions(c)
	return keys || sessions
}

func (t *TPM) flushOwnKeys(c *conn) bool {
	handles, err := listHandles(c, firstTransient, lastTransient)
	if err != nil {
		return false // the caller reports that the TPM is full
	}
	flushed := false
	for _, handle := range handles {
		if slices.Contains(c.loaded, handle) {
			continue
		}
		rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
		if err == nil && (isMarked(rsp) || t.isEK(rsp) || t.devID.owns(rsp)) && flush(c, handle) {
			flushed = true
		}
	}
	return flushed
}

// isMarked reports whether a key is an AK or an SVID key that this plugin has made.
func isMarked(rsp *tpm2.ReadPublicResponse) bool {
	public, err := rsp.OutPublic.Contents()
	if err != nil || !inEndorsementHierarchy(rsp) {
		return false
	}
	mark := public.AuthPolicy.Buffer
	return bytes.Equal(mark, akMark()) || bytes.Equal(mark, attestor.EnrolmentPolicy()) ||
		bytes.Equal(mark, svidKeyMark())
}

// isEK reports whether a key is the EK. Before the first attestation, no key is known to
// be.
func (t *TPM) isEK(rsp *tpm2.ReadPublicResponse) bool {
	return t.known != nil && bytes.Equal(rsp.Name.Buffer, t.known.ek.name.Buffer)
}

// flushOwnSessions flushes the policy sessions that have authorized the EK or an IDevID. A session that
// has only begun may belong to any program, so it stays.
func (t *TPM) flushOwnSessions(c *conn) bool {
	if t.known == nil {
		return false // no command before this needs a session
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
		own := err == nil && (isOwnPolicy(&t.known.ek.template.Public, rsp.PolicyDigest.Buffer) ||
			t.isIDevIDPolicy(rsp.PolicyDigest.Buffer))
		if own && flush(c, handle) {
			flushed = true
		}
	}
	return flushed
}

// isOwnPolicy reports whether a session's digest is the EK's policy, or the digest before
// TPM2_PolicyOR.
func isOwnPolicy(ek *tpm2.TPMTPublic, digest []byte) bool {
	if bytes.Equal(digest, ek.AuthPolicy.Buffer) {
		return true
	}
	either, err := policyDigests(ek.NameAlg)
	return err == nil && bytes.Equal(digest, either.Digests[0].Buffer)
}

// isIDevIDPolicy reports whether a session's digest is that of an IDevID's policy, or one before
// TPM2_PolicyOR.
func (t *TPM) isIDevIDPolicy(digest []byte) bool {
	if t.config.DevID == nil {
		return false
	}
	for _, hash := range []tpm2.TPMAlgID{tpm2.TPMAlgSHA256, tpm2.TPMAlgSHA384} {
		branches, err := idevidPolicy(hash)
		if err != nil {
			continue
		}
		policy, err := policyDigest(hash, tpm2.PolicyOr{PHashList: branches})
		if err == nil && bytes.Equal(digest, policy.Buffer) {
			return true
		}
		if slices.ContainsFunc(branches.Digests[:2], func(d tpm2.TPM2BDigest) bool {
			return bytes.Equal(d.Buffer, digest)
		}) {
			return true
		}
	}
	return false
}

// createInPlace makes the EK in a TPM that is full, as the error full says. An agent that was killed may have left
// the EK there, and this agent does not know the EK's name yet. So for each loaded key that may be the EK,
// createInPlace saves and flushes the key and makes the EK. If the two are different keys, it loads the saved key
// again. It gets its old handle, since no other is free.
func (t *TPM) createInPlace(c *conn, template tpm2.TPMTPublic, full error) (*tpm2.CreatePrimaryResponse, error) {
	for _, k := range findForm(c, tpm2.TPMRHEndorsement, template) {
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

// learnParents learns the names of the parents of the DevID's key in a TPM that is full of keys, since agents that
// were killed may have left parents there. It does so once, and only if keys of their form are loaded: it makes the
// parents, and makes room for them as createInPlace does. It reports whether it has flushed such a parent.
func (t *TPM) learnParents(c *conn) bool {
	if d := t.config.DevID; d == nil || d.PubPath == "" || t.devID.learned {
		return false
	}
	t.devID.learned = true
	flushed := false
	for _, template := range srkTemplates(tpm2.TPMAlgRSA) {
		for _, k := range findForm(c, tpm2.TPMRHOwner, template) {
			if slices.Contains(c.loaded, k.handle) || !t.learnParent(c, template, k) {
				continue
			}
			flushed = true
			break // the caller finds further copies by the name
		}
	}
	return flushed
}

// learnParent makes a parent in place of the loaded key k. It reports whether k was the same
// key; otherwise k is loaded again.
func (t *TPM) learnParent(c *conn, template tpm2.TPMTPublic, k key) bool {
	saved, err := execute(c, tpm2.ContextSave{SaveHandle: k.handle})
	if err != nil || !flush(c, k.handle) {
		return false
	}
	rsp, err := execute(c, tpm2.CreatePrimary{PrimaryHandle: t.owner(), InPublic: tpm2.New2B(template)})
	if err == nil {
		t.devID.know(rsp.Name)
		flush(c, rsp.ObjectHandle)
		if bytes.Equal(rsp.Name.Buffer, k.name.Buffer) {
			return true
		}
	}
	restore(c, saved.Context)
	return false
}

// findForm returns the loaded primary keys of a hierarchy that have the form of a template.
// Keys that are loaded more than once come first: several agents have left the same key.
func findForm(c *conn, hierarchy tpm2.TPMHandle, template tpm2.TPMTPublic) []key {
	handles, err := listHandles(c, firstTransient, lastTransient)
	if err != nil {
		return nil
	}
	var found []key
	count := make(map[string]int)
	for _, handle := range handles {
		rsp, err := execute(c, tpm2.ReadPublic{ObjectHandle: handle})
		if err == nil && fromTemplate(&rsp.OutPublic, template) && inHierarchy(rsp, hierarchy) {
			found = append(found, key{handle: handle, name: rsp.Name})
			count[string(rsp.Name.Buffer)]++
		}
	}
	slices.SortStableFunc(found, func(a, b key) int {
		return count[string(b.name.Buffer)] - count[string(a.name.Buffer)]
	})
	return found
}

// restore loads another program's key again, even if the context of c has ended.
func restore(c *conn, context tpm2.TPMSContext) {
	defer c.detach()()
	_, _ = execute(c, tpm2.ContextLoad{Context: context}) // there was room for it a moment ago
}
