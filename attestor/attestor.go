// Package attestor implements the protocol by which a machine proves that it holds
// the endorsement key (EK) of a TPM 2.0: the messages, the checks that a server must
// make of an EK and an attestation key (AK), and both halves of the handshake as
// state machines without a transport.
//
//	agent   Prover.Payload   ──payload──▶   Verifier.Begin     server
//	                                        (ask the sources)
//	        Prover.Answer   ◀─challenge──   Session.Challenge
//	                         ──response─▶   Session.Finish
//
// A challenge may also ask for a quote of PCRs by the AK, for the event log, and for a DevID. A
// response may also hold the key of the agent's SVID, which the agent sends without being asked.
//
// The package knows nothing about SPIRE's gRPC, about configuration, or about which TPMs are
// admitted.
//
// "Part 1", "part 2" and "part 3" in comments refer to the TPM 2.0 library
// specification, revision 1.59.
package attestor

import "errors"

// Maximum sizes of the messages, in bytes. A longer message is refused before it is parsed.
// MaxResponseSize is for a response to a challenge that asks for nothing but the secret; see
// Session.MaxResponse for the others.
const (
	MaxPayloadSize   = 64 << 10
	MaxChallengeSize = 64 << 10
	MaxResponseSize  = 8 << 10
)

// How many more bytes a response may have for a quote, an event log and a DevID.
const (
	responseQuoteSize    = 8 << 10
	responseEventLogSize = 400 << 10
	responseDevIDSize    = 64 << 10
)

// ErrChallengeFailed is returned by Session.Finish if the response is well formed but
// its secret is not the one that was sent: the machine does not hold the EK, or its AK
// is not in the same TPM.
var ErrChallengeFailed = errors.New("the secret in the response is not the one in the challenge")
