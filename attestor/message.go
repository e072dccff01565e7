package attestor

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json"
)

// The limits of the fields of a payload, in bytes, and of its lists.
const (
	maxEKSize       = 24 << 10 // PEM
	maxAKFieldSize  = 4 << 10
	maxEKPublicSize = 1 << 10
	maxChain        = 16
	maxAbilities    = 16
	maxAbilitySize  = 64

	// The largest TPM2B_ID_OBJECT, TPM2B_ENCRYPTED_SECRET and TPM2B_DIGEST are smaller
	// (part 2, 12.4.3, 11.4.3 and 10.4.2).
	maxCredentialSize = 256
	maxSeedSize       = 1 << 10
	maxSecretSize     = 64
)

// payload is the agent's first message. EK and AK are the members of the protocol's first
// version; a server of that version ignores the others.
type payload struct {
	EK       []byte       // PEM: CERTIFICATE, PUBLIC KEY, or both
	AK       AKParameters // its four members under the names of the fields
	EKChain  [][]byte     `json:",omitempty"` // DER; the EK certificate too if EK has none
	EKPublic []byte       `json:",omitempty"` // TPMT_PUBLIC
	Can      []string     `json:",omitempty"` // what the agent can answer besides Secret
}

// encryptedCredential is the result of TPM2_MakeCredential (part 3, 12.6). Both fields
// are TPM2B structures, with their size.
type encryptedCredential struct {
	Credential []byte // TPM2B_ID_OBJECT
	Secret     []byte // TPM2B_ENCRYPTED_SECRET
}

// challenge is the server's message.
type challenge struct {
	EC *encryptedCredential
}

// response is the agent's second message.
type response struct {
	Secret []byte
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
			p.EKPublic, err = d.blob(name, maxEKPublicSize)
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

func decodeChallenge(msg []byte) (*encryptedCredential, error) {
	c := new(encryptedCredential)
	err := decode(msg, MaxChallengeSize, func(d *decoder, name string) error {
		if name == "EC" {
			return d.object(c.decode)
		}
		return d.skip()
	})
	switch {
	case err != nil:
		return nil, err
	case c.Credential == nil:
		return nil, errors.New("no EC.Credential in it")
	case c.Secret == nil:
		return nil, errors.New("no EC.Secret in it")
	}
	return c, nil
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

func decodeResponse(msg []byte, limit int) ([]byte, error) {
	var secret []byte
	err := decode(msg, limit, func(d *decoder, name string) (err error) {
		if name == "Secret" {
			secret, err = d.blob(name, maxSecretSize)
			return err
		}
		return d.skip()
	})
	if err != nil {
		return nil, err
	}
	if secret == nil {
		return nil, errors.New("no Secret in it")
	}
	return secret, nil
}
