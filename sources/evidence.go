package sources

import "crypto"

// Evidence is what one attesting TPM has sent. Before a Source sees it, package attestor has
// decoded it, limited its size, and checked that its parts are consistent.
type Evidence struct {
	// EKHash is the hash of EK, by which sources know the TPM.
	EKHash EKHash

	// EK is the public endorsement key that is challenged: an *rsa.PublicKey or an
	// *ecdsa.PublicKey, never nil.
	EK crypto.PublicKey

	// Certificate is the EK certificate that came with the key, in DER, or nil. The public key in
	// it equals EK. Nothing else about it is verified: not its issuer, not its dates, not that it
	// can be parsed. It has at most 8 KiB and 512 DER values, and so has each certificate in Chain.
	//
	// A source that needs a certificate parses it. Until then, the certificates of machines that
	// have proved nothing take no more memory than the bytes that they sent.
	Certificate []byte

	// Chain has further certificates that the machine sent, in DER, at most 16. An attacker may
	// have made them. They may link an EK certificate to a configured authority, but are never an
	// authority themselves.
	Chain [][]byte

	// Incomplete is true if the machine has sent certificates that are missing here because there
	// was no room to keep them. A source whose answer may depend on them cannot tell.
	Incomplete bool

	// Proof is what the TPM has proved by answering its challenge; nil before the challenge.
	Proof *Proof
}

// Proof is what a TPM has proved by answering its challenge: that EK and AK are in one TPM.
type Proof struct {
	// AK is the attestation key that the EK activated, an *rsa.PublicKey or an
	// *ecdsa.PublicKey.
	AK crypto.PublicKey
	// Boot is what the TPM has proved about the machine's boot; nil if it was not asked to, or
	// could not answer.
	Boot *Boot
	// DevID is the device identity that the machine has proved; nil if it was not asked for one, or
	// has none.
	DevID *DevID
}
