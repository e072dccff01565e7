package attestor

import (
	"errors"
	"fmt"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// The limits of the fields of a payload, in bytes, and of its lists.
const (
	maxEKSize      = 24 << 10 // PEM
	maxAKFieldSize = 4 << 10
	maxPublicSize  = 1 << 10 // TPMT_PUBLIC of an EK, a DevID or an SVID key
	maxChain       = 16
	maxAbilities   = 16
	maxAbilitySize = 64

	// The largest TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET and TPM2B_DIGEST are smaller
	// (part 2, 12.4.3, 11.4.3 and 10.4.2).
	maxCredentialSize = 256
	maxSeedSize       = 1 << 10
	maxSecretSize     = 64

	maxAttestSize    = 1 << 10 // the largest TPMS_ATTEST of a quote or of a key, and TPMT_SIGNATURE, are smaller
	maxSignatureSize = 1 << 10
	maxBankSize      = 16

	// A log of this size fills responseEventLogSize. A log longer than MaxEventLogSize is handed
	// over all the same: whoever reads logs refuses it, unlike a response that exceeds its limit,
	// which fails the attestation.
	maxEventLogField = 300 << 10
)

// payload is the agent's first message. EK and AK are the members of the protocol's first
// version; a server of that version ignores the others.
type payload struct {
	EK       []byte       // PEM: CERTIFICATE, PUBLIC KEY, or both
	AK       AKParameters // its four members under the names of the fields
	EKChain  [][]byte     `json:",omitempty"` // DER; the EK certificate too if EK has none
	EKPublic []byte       `json:",omitempty"` // TPMT_PUBLIC
	Can      []string     `json:",omitempty"` // what the agent can send besides the secret
}

// encryptedCredential is the result of TPM2_MakeCredential (part 3, 12.6). Both fields are TPM2B
// structures, including the size.
type encryptedCredential struct {
	Credential []byte // TPM2B_ID_OBJECT
	Secret     []byte // TPM2B_ENCRYPTED_SECRET
}

// challenge is the server's message. All fields but EC are set only if it asks for more than the
// secret.
type challenge struct {
	EC       *encryptedCredential
	Nonce    []byte        `json:",omitempty"` // the server's
	Quote    *QuoteRequest `json:",omitzero"`
	EventLog bool          `json:",omitzero"`
	DevID    bool          `json:",omitzero"`
}

// response is the agent's second message. Fields other than Secret and SVIDKey are set only if the
// challenge asks for them. An agent with an SVID key in its TPM sends SVIDKey without being asked.
type response struct {
	Secret   []byte
	Nonce    []byte         `json:",omitempty"` // the agent's own
	Quote    *SignedQuote   `json:",omitzero"`
	EventLog jsontext.Value `json:",omitzero"` // base64, or null if there is no log
	DevID    *SignedDevID   `json:",omitzero"` // absent if the machine has none
	SVIDKey  *SignedSVIDKey `json:",omitzero"` // absent if the machine has none in its TPM
}

func encode(name string, msg any, limit int) ([]byte, error) {
	b, err := json.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode the %s: %w", name, err)
	}
	if len(b) > limit {
		return nil, fmt.Errorf("the %s is %d bytes long, at most %d are allowed", name, len(b), limit)
	}
	return b, nil
}

func decodePayload(msg []byte) (*payload, error) {
	p := new(payload)
	err := decode(msg, MaxPayloadSize, func(d *decoder, name string) (err error) {
		switch name {
		case "EK":
			p.EK, err = d.blob(name, maxEKSize)
		case "AK":
			err = d.object(p.AK.decode)
		case "EKChain":
			p.EKChain, err = d.chain(name)
		case "EKPublic":
			p.EKPublic, err = d.blob(name, maxPublicSize)
		case "Can":
			p.Can, err = d.abilities(name)
		default:
			err = d.skip()
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name  string
		value []byte
	}{
		{"EK", p.EK},
		{"AK.Public", p.AK.Public},
		{"AK.CreateData", p.AK.CreateData},
		{"AK.CreateAttestation", p.AK.CreateAttestation},
		{"AK.CreateSignature", p.AK.CreateSignature},
	} {
		if f.value == nil {
			return nil, fmt.Errorf("%s: it is missing", f.name)
		}
	}
	return p, nil
}

func (p *AKParameters) decode(d *decoder, name string) (err error) {
	switch name {
	case "Public":
		p.Public, err = d.blob("AK.Public", maxAKFieldSize)
	case "CreateData":
		p.CreateData, err = d.blob("AK.CreateData", maxAKFieldSize)
	case "CreateAttestation":
		p.CreateAttestation, err = d.blob("AK.CreateAttestation", maxAKFieldSize)
	case "CreateSignature":
		p.CreateSignature, err = d.blob("AK.CreateSignature", maxAKFieldSize)
	default:
		err = d.skip()
	}
	return err
}

func (d *decoder) chain(name string) ([][]byte, error) {
	var chain [][]byte
	err := d.array(name, maxChain, func() error {
		b, err := d.blob(name, maxCertificateSize)
		chain = append(chain, b)
		return err
	})
	return chain, err
}

func (d *decoder) abilities(name string) ([]string, error) {
	var can []string
	err := d.array(name, maxAbilities, func() error {
		s, err := d.text(name, maxAbilitySize)
		can = append(can, s)
		return err
	})
	return can, err
}

// decodeChallenge reads a challenge. Members that ask for something the agent cannot answer are
// skipped, as an agent of the protocol's first version skips all but EC.
func decodeChallenge(msg []byte, can []string) (*challenge, error) {
	c := &challenge{EC: new(encryptedCredential)}
	pcrs := slices.Contains(can, CanPCRs)
	eventLog := pcrs && slices.Contains(can, CanEventLog)
	devID := slices.Contains(can, CanDevID)
	err := decode(msg, MaxChallengeSize, func(d *decoder, name string) (err error) {
		switch {
		case name == "EC":
			return d.object(c.EC.decode)
		case name == "Nonce" && (pcrs || devID):
			c.Nonce, err = d.exactly(name, nonceSize)
		case name == "Quote" && pcrs:
			c.Quote = new(QuoteRequest)
			err = d.object(c.Quote.decode)
		case name == "EventLog" && eventLog:
			c.EventLog, err = d.boolean(name)
		case name == "DevID" && devID:
			c.DevID, err = d.boolean(name)
		default:
			return d.skip()
		}
		return err
	})
	if err == nil {
		err = c.check()
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// check checks that a challenge is complete.
func (c *challenge) check() error {
	switch {
	case c.EC.Credential == nil:
		return errors.New("no EC.Credential in it")
	case c.EC.Secret == nil:
		return errors.New("no EC.Secret in it")
	case c.Quote == nil && c.EventLog:
		return errors.New("it asks for the event log and for no quote")
	case c.DevID && c.Nonce == nil:
		return errors.New("it asks for a DevID without a Nonce")
	case c.Quote == nil:
		return nil
	case c.Nonce == nil:
		return errors.New("it asks for a quote without a Nonce")
	}
	if err := c.Quote.Validate(); err != nil {
		return fmt.Errorf("Quote: %w", err)
	}
	return nil
}

func (c *encryptedCredential) decode(d *decoder, name string) (err error) {
	switch name {
	case "Credential":
		c.Credential, err = d.blob("EC.Credential", maxCredentialSize)
	case "Secret":
		c.Secret, err = d.blob("EC.Secret", maxSeedSize)
	default:
		err = d.skip()
	}
	return err
}

func (q *QuoteRequest) decode(d *decoder, name string) (err error) {
	switch name {
	case "Bank":
		q.Bank, err = d.text("Quote.Bank", maxBankSize)
	case "PCRs":
		err = d.array("Quote.PCRs", maxPCRs, func() error {
			pcr, err := d.number("Quote.PCRs")
			q.PCRs = append(q.PCRs, pcr)
			return err
		})
	default:
		err = d.skip()
	}
	return err
}

// reply is a decoded response.
type reply struct {
	secret   []byte
	nonce    []byte         // nil if it was not asked for
	quote    *SignedQuote   // nil if it was not asked for, and if there is none
	eventLog []byte         // nil if it was not asked for, and if there is none
	devID    *SignedDevID   // nil if it was not asked for, and if there is none
	svidKey  *SignedSVIDKey // nil if Ask.SVIDKey is false, and if there is none
}

// decodeResponse reads the response to a challenge that asks for asked. Members that were not
// asked for are skipped.
func decodeResponse(msg []byte, asked *Ask) (*reply, error) {
	p := new(reply)
	err := decode(msg, asked.maxResponse(), func(d *decoder, name string) (err error) {
		switch {
		case name == "Secret":
			p.secret, err = d.blob(name, maxSecretSize)
		case name == "Nonce" && asked.nonces():
			p.nonce, err = d.exactly(name, nonceSize)
		case name == "Quote" && asked.Quote != nil && !d.null():
			p.quote = new(SignedQuote)
			err = d.object(p.quote.decode)
		case name == "EventLog" && asked.EventLog && !d.null():
			p.eventLog, err = d.maybeBlob(name, maxEventLogField)
		case name == "DevID" && asked.DevID && !d.null():
			p.devID = new(SignedDevID)
			err = d.object(p.devID.decode)
		case name == "SVIDKey" && asked.SVIDKey && !d.null():
			p.svidKey = new(SignedSVIDKey)
			err = d.object(p.svidKey.decode)
		default:
			err = d.skip()
		}
		return err
	})
	if err == nil {
		err = p.check(asked)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// check checks that the response to a challenge that asks for asked is complete.
func (p *reply) check(asked *Ask) error {
	if p.secret == nil {
		return errors.New("no Secret in it")
	}
	if p.nonce == nil && (p.quote != nil || p.devID != nil) {
		return errors.New("a Quote or a DevID without a Nonce")
	}
	switch q := p.quote; {
	case q == nil:
	case q.Attest == nil:
		return errors.New("no Quote.Attest in it")
	case q.Signature == nil:
		return errors.New("no Quote.Signature in it")
	}
	switch d := p.devID; {
	case d == nil:
	case d.Chain == nil && !asked.uncertified:
		return errors.New("no DevID.Chain in it")
	case d.Public == nil:
		return errors.New("no DevID.Public in it")
	case d.Attest == nil:
		return errors.New("no DevID.Attest in it")
	case d.AttestSignature == nil:
		return errors.New("no DevID.AttestSignature in it")
	case d.Signature == nil:
		return errors.New("no DevID.Signature in it")
	}
	switch s := p.svidKey; {
	case s == nil:
	case s.Public == nil:
		return errors.New("no SVIDKey.Public in it")
	case s.Attest == nil:
		return errors.New("no SVIDKey.Attest in it")
	case s.Signature == nil:
		return errors.New("no SVIDKey.Signature in it")
	}
	return nil
}

func (q *SignedQuote) decode(d *decoder, name string) (err error) {
	switch name {
	case "Attest":
		q.Attest, err = d.blob("Quote.Attest", maxAttestSize)
	case "Signature":
		q.Signature, err = d.blob("Quote.Signature", maxSignatureSize)
	case "PCRs":
		err = d.array("Quote.PCRs", maxPCRs, func() error {
			pcr := PCR{Index: -1}
			err := d.object(pcr.decode)
			if err == nil && (pcr.Index < 0 || pcr.Digest == nil) {
				err = errors.New("Quote.PCRs: an element without Index or Digest")
			}
			q.PCRs = append(q.PCRs, pcr)
			return err
		})
	default:
		err = d.skip()
	}
	return err
}

func (p *PCR) decode(d *decoder, name string) (err error) {
	switch name {
	case "Index":
		p.Index, err = d.number("Quote.PCRs")
	case "Digest":
		p.Digest, err = d.blob("Quote.PCRs", maxDigest)
	default:
		err = d.skip()
	}
	return err
}

func (s *SignedDevID) decode(d *decoder, name string) (err error) {
	switch name {
	case "Chain":
		s.Chain, err = d.chain("DevID.Chain")
	case "Public":
		s.Public, err = d.blob("DevID.Public", maxPublicSize)
	case "Attest":
		s.Attest, err = d.blob("DevID.Attest", maxAttestSize)
	case "AttestSignature":
		s.AttestSignature, err = d.blob("DevID.AttestSignature", maxSignatureSize)
	case "Signature":
		s.Signature, err = d.blob("DevID.Signature", maxSignatureSize)
	default:
		err = d.skip()
	}
	return err
}

func (s *SignedSVIDKey) decode(d *decoder, name string) (err error) {
	switch name {
	case "Public":
		s.Public, err = d.blob("SVIDKey.Public", maxPublicSize)
	case "Attest":
		s.Attest, err = d.blob("SVIDKey.Attest", maxAttestSize)
	case "Signature":
		s.Signature, err = d.blob("SVIDKey.Signature", maxSignatureSize)
	default:
		err = d.skip()
	}
	return err
}
