package server

import (
	"crypto/sha256"
	"encoding/hex"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// mayAskDevID reports whether a machine is asked for its DevID, by the current configuration and
// by what the agent can answer.
func (a *attestation) mayAskDevID(session *attestor.Session) bool {
	return a.AsksDevID && session.Can(attestor.CanDevID)
}

// checkDevID refuses, for now, a machine that was not asked for the DevID that the
// configuration needs by now: without it, the machine would be refused for good.
func (a *attestation) checkDevID(session *attestor.Session) *failure {
	if a.mayAskDevID(session) && !a.askedDevID {
		return unavailable(reasonChanged, "the configuration asks for a DevID, and the challenge did not")
	}
	return nil
}

// devIDOf returns the DevID in an answer, as sources are told of it, and its size in bytes; nil
// if there is none.
func devIDOf(answer *attestor.Answer) (d *sources.DevID, size int64) {
	if answer.DevID == nil {
		return nil, 0
	}
	for _, der := range answer.DevID.Chain {
		size += int64(len(der))
	}
	return &sources.DevID{Chain: answer.DevID.Chain, Key: answer.DevID.Key}, size
}

// fingerprint returns the SHA-256 of a DevID's certificate, in hex.
func fingerprint(d *sources.DevID) string {
	sum := sha256.Sum256(d.Chain[0])
	return hex.EncodeToString(sum[:])
}
