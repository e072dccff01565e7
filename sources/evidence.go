package sources

import "crypto"

// Evidence is what one attesting TPM has sent, decoded, bounded in size and
// checked for its own consistency by package attestor before a Source sees it.
type Evidence struct {
	// EKHash is the hash of EK, by which sources know the TPM.
	EKHash EKHash

	// EK is the public endorsement key that is challenged, an
	// *rsa.PublicKey or an *ecdsa.PublicKey. Never nil.
	EK crypto.PublicKey

	// Certificate is the EK certificate that came with the key, in DER, or nil.
	// The public key in it equals EK. Nothing else about it is verified: neither
	// its issuer nor its dates, nor that it can be parsed.
	//
	// A certificate is parsed by whoever needs it: as bytes, those of machines
	// that have proved nothing cost no more memory than was sent. It has at most
	// 8 KiB and 512 DER values, and so have those of Chain.
	Certificate []byte

	// Chain holds further certificates that the machine sent, in DER, at most 16.
	// An attacker may have made them: they may join an EK certificate to a
	// configured authority and are never an authority themselves.
	Chain [][]byte

	// Incomplete is true if the machine has sent certificates that are not here:
	// there was no room to keep them while the machine answered its challenge. A
	// source whose answer may depend on a certificate cannot tell then.
	Incomplete bool

	// Proof is what the TPM proved by answering its challenge. It is nil
	// before the challenge.
	Proof *Proof
}

// Proof is what a TPM has shown to be true by answering its challenge: that EK
// and AK live in one TPM.
type Proof struct {
	// AK is the attestation key that was activated by the EK, an
	// *rsa.PublicKey or an *ecdsa.PublicKey.
	AK crypto.PublicKey
}
