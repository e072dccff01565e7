package attestor

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// AKParameters are the public parts of an attestation key as TPM2_Create or TPM2_CreatePrimary and
// TPM2_CertifyCreation return them: TPM structures (part 2) without the size fields of their TPM2B_
// forms.
type AKParameters struct {
	Public            []byte // TPMT_PUBLIC
	CreateData        []byte // TPMS_CREATION_DATA
	CreateAttestation []byte // TPMS_ATTEST
	CreateSignature   []byte // TPMT_SIGNATURE
}

// Claim is what an agent states about its TPM.
type Claim struct {
	// EK is the public endorsement key, an *rsa.PublicKey or an
	// *ecdsa.PublicKey.
	EK crypto.PublicKey
	// EKPublic is the TPMT_PUBLIC of the same key, as the TPM returns it. If it is
	// empty, the server assumes the template that TemplateFor returns.
	EKPublic []byte
	// Certificate is the EK certificate, or nil. ParseEKCertificate may refuse it.
	Certificate []byte
	// Chain are further certificates in DER, at most 16.
	Chain [][]byte
	// AK are the attestation key's parameters.
	AK AKParameters
	// Can says what the agent can send besides the secret: CanPCRs, CanEventLog (only together with
	// CanPCRs), CanDevID.
	Can []string
}

// An Activator is a TPM in which an EK and an AK are loaded, together with the machine that it is
// in.
type Activator interface {
	// Activate runs TPM2_ActivateCredential (TPM 2.0 library specification, part 3, 12.5). If that
	// succeeds, it does what else the activation asks for, and has the AK certify the SVID key,
	// which no challenge asks for.
	Activate(a *Activation) (*Activated, error)
}

// Activation is what a challenge asks of a machine. It asks for nothing that the claim's Can
// does not offer.
type Activation struct {
	// Credential is a TPMS_ID_OBJECT and Secret the ciphertext of the seed, both without
	// the size field of their TPM2B_ forms.
	Credential, Secret []byte
	// Quote asks the AK for a quote over QualifyingData, unless it is nil. The request is
	// valid.
	Quote          *QuoteRequest
	QualifyingData []byte
	// EventLog asks for the event log.
	EventLog bool
	// DevID asks for the DevID and its proof, unless it is nil.
	DevID *DevIDRequest
}

// Activated is the answer to an Activation.
type Activated struct {
	Secret   []byte
	Quote    *SignedQuote // must not be nil if it was asked for
	EventLog []byte       // nil if the machine has none that can be read
	DevID    *SignedDevID // nil if the machine has none
	// SVIDKey is certified over SVIDKeyData(Secret). It is nil if the machine has no SVID key in
	// its TPM.
	SVIDKey *SignedSVIDKey
}

// Prover is the agent's half of the handshake. It is not safe for concurrent use.
type Prover struct {
	claim    Claim
	tpm      Activator
	answered bool
}

// NewProver returns the agent's half for one attestation of claim.
func NewProver(claim Claim, tpm Activator) *Prover {
	return &Prover{claim: claim, tpm: tpm}
}

// Payload returns the payload message. It returns an error if a Verifier would refuse the claim: a
// part of the AK is missing, the key cannot be an EK, the certificate is for another key, or the
// message is too long.
func (p *Prover) Payload() ([]byte, error) {
	c := &p.claim
	if err := checkKey(c.EK); err != nil {
		return nil, fmt.Errorf("endorsement key: %w", err)
	}
	if len(c.Chain) > maxChain {
		return nil, fmt.Errorf("%d further certificates, at most %d are allowed", len(c.Chain), maxChain)
	}
	for _, part := range [][]byte{c.AK.Public, c.AK.CreateData, c.AK.CreateAttestation, c.AK.CreateSignature} {
		if len(part) == 0 || len(part) > maxAKFieldSize {
			return nil, fmt.Errorf("attestation key: a part of %d bytes: want 1 to %d", len(part), maxAKFieldSize)
		}
	}
	msg := &payload{AK: c.AK, EKChain: c.Chain, EKPublic: c.EKPublic, Can: c.Can}
	if err := c.writeEK(msg); err != nil {
		return nil, err
	}
	return encode("payload", msg, MaxPayloadSize)
}

// writeEK writes the key, and the certificate if there is one, into p. A certificate that package
// x509 cannot parse goes into EKChain instead of EK: a server of the protocol's first version would
// refuse the machine because of it, but ignores EKChain. The issuers are left out in that case,
// since nobody can verify a chain to them.
func (c *Claim) writeEK(p *payload) error {
	if len(c.Certificate) > 0 {
		der, key, err := ReadEKCertificate(c.Certificate)
		if err != nil {
			return fmt.Errorf("EK certificate: %w", err)
		}
		if !sameKey(c.EK, key) {
			return errors.New("the EK certificate is not for the TPM's key")
		}
		if _, err := ParseEKCertificate(der); err == nil {
			p.EK = pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der})
		} else {
			p.EKChain = [][]byte{der}
		}
	}
	der, err := x509.MarshalPKIXPublicKey(c.EK)
	if err != nil {
		return fmt.Errorf("encode the endorsement key: %w", err)
	}
	p.EK = append(p.EK, pem.EncodeToMemory(&pem.Block{Type: pemPublicKey, Bytes: der})...)
	return nil
}

// Answer returns the response to a challenge. It checks the size and form of every part of the
// challenge before the TPM sees it, since the other end may not be a genuine server. A Prover
// answers only once: an agent must not be an oracle.
func (p *Prover) Answer(challenge []byte) ([]byte, error) {
	if p.tpm == nil {
		return nil, errors.New("no TPM to answer with")
	}
	if p.answered {
		return nil, errors.New("a challenge has been answered already")
	}
	p.answered = true
	c, err := decodeChallenge(challenge, p.claim.Can)
	if err != nil {
		return nil, fmt.Errorf("challenge: %w", err)
	}
	task := &Activation{Quote: c.Quote, EventLog: c.EventLog}
	if task.Credential, err = withoutSize(c.EC.Credential); err != nil {
		return nil, fmt.Errorf("challenge: EC.Credential: %w", err)
	}
	if task.Secret, err = withoutSize(c.EC.Secret); err != nil {
		return nil, fmt.Errorf("challenge: EC.Secret: %w", err)
	}
	asked := Ask{Quote: c.Quote, EventLog: c.EventLog, DevID: c.DevID}
	msg := new(response)
	if asked.nonces() {
		msg.Nonce = make([]byte, nonceSize)
		if _, err := rand.Read(msg.Nonce); err != nil {
			return nil, fmt.Errorf("make a nonce: %w", err)
		}
	}
	if c.Quote != nil {
		task.QualifyingData = qualifyingData(c.Nonce, msg.Nonce)
	}
	if c.DevID {
		if task.DevID, err = p.devIDRequest(c.Nonce, msg.Nonce); err != nil {
			return nil, fmt.Errorf("attestation key: %w", err)
		}
	}
	done, err := p.tpm.Activate(task)
	if err != nil {
		return nil, err
	}
	if done == nil {
		return nil, errors.New("activate the credential: no answer")
	}
	if err := msg.take(task, done); err != nil {
		return nil, err
	}
	return encode("response", msg, asked.maxResponse())
}

// devIDRequest returns what a DevID's key is to be used for in the session with these nonces.
func (p *Prover) devIDRequest(server, agent []byte) (*DevIDRequest, error) {
	area, err := readPublic(p.claim.AK.Public)
	if err != nil {
		return nil, err
	}
	ak, err := area.attestationKey(p.claim.AK.Public)
	if err != nil {
		return nil, err
	}
	return &DevIDRequest{
		QualifyingData: certifyData(server, agent), Message: devIDMessage(server, agent, ak.name),
	}, nil
}

// take puts the machine's answer to a into a response.
func (r *response) take(a *Activation, done *Activated) error {
	if len(done.Secret) == 0 || len(done.Secret) > maxSecretSize {
		return fmt.Errorf("activate the credential: a secret of %d bytes", len(done.Secret))
	}
	r.Secret = done.Secret
	if a.Quote != nil {
		if r.Quote = done.Quote; r.Quote == nil {
			return errors.New("quote the PCRs: no quote")
		}
	}
	if a.DevID != nil {
		r.DevID = done.DevID
	}
	r.SVIDKey = done.SVIDKey
	if !a.EventLog {
		return nil
	}
	r.EventLog = jsontext.Value("null")
	if n := len(done.EventLog); n > 0 && n <= MaxEventLogSize {
		var err error
		r.EventLog, err = json.Marshal(done.EventLog) // base64
		return err
	}
	return nil
}

// withoutSize returns the content of a TPM2B structure.
func withoutSize(b []byte) ([]byte, error) {
	if len(b) <= 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
		return nil, errors.New("its size field does not match its length")
	}
	return b[2:], nil
}
