// Package attestor is the protocol by which a machine proves that it holds the
// endorsement key (EK) of a TPM 2.0: the messages, the checks that a server
// owes to an EK and to an attestation key (AK), and both halves of the
// handshake as state machines without transport.
//
//	agent   Prover.Payload   ──payload──▶   Verifier.Begin     server
//	                                        (ask the sources)
//	        Prover.Answer   ◀─challenge──   Session.Challenge
//	                         ──response─▶   Session.Finish
//
// It knows nothing of SPIRE's gRPC, of configuration, or of which TPMs are
// welcome.
//
// "Part 1", "part 2" and "part 3" in its comments are of the TPM 2.0 library
// specification, revision 1.59.
package attestor

import "errors"

// The sizes of messages, in bytes. A longer one is refused before it is read.
const (
	MaxPayloadSize   = 64 << 10
	MaxChallengeSize = 64 << 10
	MaxResponseSize  = 3 << 20
)

// ErrChallengeFailed is what Session.Finish returns where the response is well
// formed and its secret is not the one that was sent: the machine does not hold
// the EK, or its AK is not in the same TPM.
var ErrChallengeFailed = errors.New("the secret in the response is not the one in the challenge")
