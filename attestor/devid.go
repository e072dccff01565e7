package attestor

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"
)

// ErrDevIDFailed is wrapped by an error of Session.Finish if the DevID in the response is well
// formed but its proof does not hold: its key is not the one in the certificate, could leave its
// TPM, was not certified in this session, or has not signed in it.
var ErrDevIDFailed = errors.New("the proof of the DevID does not hold")

// maxDevIDChainSize limits the total size of a DevID's certificates, in bytes. As base64, and with
// the other members of the DevID, they fit into responseDevIDSize.
const maxDevIDChainSize = 44 << 10

// DevID is a device identity (IEEE 802.1AR) that a machine has proved: its key was made by the TPM
// of the attestation key, cannot leave that TPM, and can be used by the machine. Neither that the
// TPM is genuine nor who issued the certificate is proved by it.
type DevID struct {
	// Chain has 1 to 16 certificates in DER, as the machine sent them: the DevID's, then those of
	// its issuers. A certificate has at most 8 KiB, 512 DER values and a key of 8192 bits; all
	// together have at most 44 KiB. The key in the first certificate equals Key. The Verifier
	// checks nothing else in them, so x509.ParseCertificate may refuse one. Chain is nil if the
	// certificate is yet to be issued: see Verifier.Enrolment.
	Chain [][]byte
	// Key is an *rsa.PublicKey of 2048, 3072 or 4096 bits, or an *ecdsa.PublicKey on P-256 or
	// P-384.
	Key crypto.PublicKey
}

// DevIDRequest says what to make with a DevID's key.
type DevIDRequest struct {
	// QualifyingData is what the AK certifies the key over (TPM2_Certify).
	QualifyingData []byte
	// Message is what the key signs, with the scheme that ReadDevIDKey returns. It is hashed once.
	Message []byte
}

// SignedDevID is a DevID with its proof.
type SignedDevID struct {
	Chain           [][]byte // DER, the DevID's certificate first; empty if it is yet to be issued
	Public          []byte   // TPMT_PUBLIC of its key
	Attest          []byte   // TPMS_ATTEST of TPM2_Certify
	AttestSignature []byte   // TPMT_SIGNATURE of Attest by the AK
	Signature       []byte   // TPMT_SIGNATURE of the message by the DevID's key
}

// DevIDKey is the key of a DevID.
type DevIDKey struct {
	Public crypto.PublicKey // see DevID.Key
	Scheme tpm2.TPMAlgID    // the key's own; if it has none, RSASSA or ECDSA
	Hash   tpm2.TPMAlgID    // the hash of the key's scheme; if it has none, SHA-256
}

// ReadDevIDKey returns the key in a TPMT_PUBLIC (part 2, 12.2.4). It returns an error if a Verifier
// would refuse the key. A Verifier refuses a key that
//   - could leave its TPM, or was not made in a TPM,
//   - cannot sign, is restricted (it signs only what the TPM has made), or decrypts,
//   - has SHA-1 as the hash of its name or of its scheme, or
//   - is of another type than RSA and ECC, or on another curve or of another size than DevID.Key
//     allows.
func ReadDevIDKey(public []byte) (*DevIDKey, error) {
	area, err := readPublic(public)
	if err != nil {
		return nil, err
	}
	key, err := area.devIDKey(public)
	if err != nil {
		return nil, err
	}
	return &DevIDKey{Public: key.public, Scheme: key.scheme, Hash: key.schemeHash}, nil
}

// ReadDevIDChain returns the key in the first certificate of a chain. It returns an error if the
// chain exceeds a limit of DevID.Chain or that key cannot be read. It reads nothing else.
func ReadDevIDChain(chain [][]byte) (crypto.PublicKey, error) {
	switch {
	case len(chain) == 0:
		return nil, errors.New("no certificate")
	case len(chain) > maxChain:
		return nil, fmt.Errorf("%d certificates, at most %d are allowed", len(chain), maxChain)
	}
	size := 0
	for _, der := range chain {
		size += len(der)
	}
	if size > maxDevIDChainSize {
		return nil, fmt.Errorf("certificates of %d bytes, at most %d are allowed", size, maxDevIDChainSize)
	}
	if err := checkChain(chain); err != nil {
		return nil, err
	}
	return certificateKey(chain[0])
}

// devIDKey returns the key in p, which was read from public. It returns an error if the key cannot
// be a DevID's. A restricted key is refused: it is an AK, and proves nothing beyond what the
// session's own AK proves.
func (p *publicArea) devIDKey(public []byte) (*signer, error) {
	err := p.checkAttributes("a DevID's key",
		attrFixedTPM|attrFixedParent|attrSensitiveDataOrigin|attrSign, attrRestricted|attrDecrypt)
	if err != nil {
		return nil, err
	}
	key, err := p.signer(public)
	if err != nil {
		return nil, err
	}
	if t, err := KeyTypeOf(key.public); err != nil || t == P521 {
		return nil, errors.New("a DevID's key is of RSA 2048, 3072 or 4096, P-256 or P-384")
	}
	return key, nil
}

// certifyData returns what the AK certifies a DevID's key over, for the same reasons as
// qualifyingData.
func certifyData(server, agent []byte) []byte {
	sum := sha256.Sum256(slices.Concat([]byte("spire-tpm-attestor devid certify 1\x00"), server, agent))
	return sum[:]
}

// devIDMessage returns what a DevID's key signs. That key would sign anything; the fixed prefix and
// the agent's nonce keep a server from choosing what it signs. Because of the AK's name, the
// signature is of no use in a session of another AK.
func devIDMessage(server, agent []byte, ak tpmName) []byte {
	return slices.Concat([]byte("spire-tpm-attestor devid sign 1\x00"), server, agent, ak)
}

func devIDFailed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrDevIDFailed, fmt.Sprintf(format, args...))
}

// checkDevID returns the DevID in a response if its proof holds.
func (s *Session) checkDevID(reply *reply) (*DevID, error) {
	d := reply.devID
	if s.asked.uncertified {
		if len(d.Chain) > 0 {
			return nil, devIDFailed("it has a certificate already")
		}
		return s.ak.proveDevID(d, s.nonce[:], reply.nonce)
	}
	leaf, err := ReadDevIDChain(d.Chain)
	if err != nil {
		return nil, fmt.Errorf("DevID.Chain: %w", err)
	}
	proved, err := s.ak.proveDevID(d, s.nonce[:], reply.nonce)
	if err == nil && !sameKey(leaf, proved.Key) {
		return nil, devIDFailed("the key in its certificate is not the key in DevID.Public")
	}
	return proved, err
}

// proveDevID returns the DevID in d if its proof holds, whatever its certificate: over both nonces,
// k, the AK, has certified the DevID's key, and that key has signed.
func (k *signer) proveDevID(d *SignedDevID, server, agent []byte) (*DevID, error) {
	area, err := readPublic(d.Public)
	if err != nil {
		return nil, fmt.Errorf("DevID.Public: %w", err)
	}
	extraData, name, err := readCertify(d.Attest)
	if err != nil {
		return nil, fmt.Errorf("DevID.Attest: %w", err)
	}
	key, err := area.devIDKey(d.Public)
	switch {
	case err != nil:
		return nil, devIDFailed("DevID.Public: %v", err)
	case !bytes.Equal(name, key.name):
		return nil, devIDFailed("DevID.Attest names a key other than DevID.Public")
	case !bytes.Equal(extraData, certifyData(server, agent)):
		return nil, devIDFailed("DevID.Attest is not over this session's nonces")
	}
	if err := k.verifyDevID("DevID.AttestSignature", d.Attest, d.AttestSignature); err != nil {
		return nil, err
	}
	if err := key.verifyDevID("DevID.Signature", devIDMessage(server, agent, k.name), d.Signature); err != nil {
		return nil, err
	}
	return &DevID{Chain: d.Chain, Key: key.public}, nil
}

// verifyDevID checks a signature by k in a DevID's proof.
func (k *signer) verifyDevID(what string, msg, sig []byte) error {
	switch err := k.verify(msg, sig); {
	case errors.Is(err, errNotSigned):
		return devIDFailed("%s: %v", what, err)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// readCertify reads the TPMS_ATTEST (part 2, 10.12.12) of a certified key, and returns the key's
// name.
func readCertify(b []byte) (extraData, name []byte, err error) {
	r := &reader{b: b}
	extraData = r.attest(tpm2.TPMSTAttestCertify, "a certified key")
	name = r.sized(maxName)
	r.sized(maxName) // qualifiedName
	if err := r.end(); err != nil {
		return nil, nil, err
	}
	return extraData, name, nil
}
