package sources

import "crypto"

// DevID is a device identity (IEEE 802.1AR) that a machine has proved: its key was certified by the
// AK of this session and has signed the nonces of both sides.
type DevID struct {
	// Chain are the certificates that the machine sent, in DER, the DevID's own first: at least one
	// and at most 16, each within the limits of Evidence.Certificate. The public key in the first
	// equals Key. Nothing else about them is verified.
	Chain [][]byte
	// Key is the DevID's public key, an *rsa.PublicKey or an *ecdsa.PublicKey. It is in the same
	// TPM as Proof.AK, cannot leave it, and signs whatever it is given.
	Key crypto.PublicKey
}
