package server

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// mayAskDevID reports whether the challenge asks for the machine's DevID: the current configuration needs it, and
// the agent can prove it.
func (a *attestation) mayAskDevID(session *attestor.Session) bool {
	return a.AsksDevID && session.Can(attestor.CanDevID)
}

// checkDevID returns a failure if the current configuration needs a DevID that the challenge did not ask for. The
// agent may then try again: a decision without the DevID would refuse the machine for good.
func (a *attestation) checkDevID(session *attestor.Session) *failure {
	if a.mayAskDevID(session) && !a.askedDevID {
		return unavailable(reasonChanged, "the configuration asks for a DevID, and the challenge did not")
	}
	return nil
}

// devIDOf returns the DevID in an answer in the form that sources get, and the size of its certificates in bytes.
// It returns nil if there is none.
func devIDOf(answer *attestor.Answer) (d *sources.DevID, size int64) {
	if answer.DevID == nil {
		return nil, 0
	}
	for _, der := range answer.DevID.Chain {
		size += int64(len(der))
	}
	return &sources.DevID{Chain: answer.DevID.Chain, Key: answer.DevID.Key}, size
}

// fingerprint returns the SHA-256 of the DevID's certificate, in hex.
func fingerprint(d *sources.DevID) string {
	sum := sha256.Sum256(d.Chain[0])
	return hex.EncodeToString(sum[:])
}
