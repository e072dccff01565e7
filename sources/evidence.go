package sources

import "crypto"

// Evidence is what one attesting TPM has sent. Before a Source sees it, package attestor has
// decoded it, limited its size, and checked that it is consistent in itself.
type Evidence struct {
	// EKHash is the hash of EK, by which sources know the TPM.
	EKHash EKHash

	// EK is the public endorsement key that is challenged: an *rsa.PublicKey or an
	// *ecdsa.PublicKey, never nil.
	EK crypto.PublicKey

	// Certificate is the EK certificate that came with the key, in DER, or nil. The public
	// key in it equals EK. Nothing else about it is verified: neither its issuer nor its
	// dates, nor that it can be parsed. It has at most 8 KiB and 512 DER values, and so has
	// each of Chain.
	//
	// Whoever needs a certificate parses it: as bytes, the certificates of machines that
	// have proved nothing cost no more memory than was sent.
	Certificate []byte

	// Chain has further certificates that the machine sent, in DER, at most 16. An attacker
	// may have made them: they may connect an EK certificate to a configured authority, and
	// are never an authority themselves.
	Chain [][]byte

	// Incomplete is true if the machine has sent certificates that are not here, because
	// there was no room to keep them. A source whose answer may depend on a certificate
	// cannot tell then.
	Incomplete bool

	// Proof is what the TPM proved by answering its challenge; nil before the challenge.
	Proof *Proof
}

// Proof is what a TPM has proved by answering its challenge: that EK and AK are in one TPM.
type Proof struct {
	// AK is the attestation key that the EK activated, an *rsa.PublicKey or an
	// *ecdsa.PublicKey.
	AK crypto.PublicKey
	// Boot is what the TPM has proved of the machine's boot; nil if it was not asked, or
	// could not answer.
	Boot *Boot
	// DevID is the device identity that the TPM has proved to hold; nil if it was not asked, or
	// has none.
	DevID *DevID
}
