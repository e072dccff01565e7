package attestor_test

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-attestation/attest"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// The messages of the protocol's first version, as its programs declare them: encoding/json
// ignores what they do not know.
type (
	firstPayload struct {
		EK []byte
		AK *attest.AttestationParameters
	}
	firstChallenge struct {
		EC *attest.EncryptedCredential
	}
	firstResponse struct {
		Secret []byte
	}
)

// pemForms are the forms of the field EK that agents send.
func pemForms(t testing.TB, c attestor.Claim) map[string][]byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(c.EK)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate})
	return map[string][]byte{
		"certificate and key": slices.Concat(cert, key),
		"key and certificate": slices.Concat(key, cert),
		"key":                 key,
		"certificate":         cert,
	}
}

func firstAK(c attestor.Claim) *attest.AttestationParameters {
	return &attest.AttestationParameters{
		Public:            c.AK.Public,
		CreateData:        c.AK.CreateData,
		CreateAttestation: c.AK.CreateAttestation,
		CreateSignature:   c.AK.CreateSignature,
	}
}

// activate does what an agent of the first version does with a challenge: it removes the
// size fields and gives the rest to the TPM.
func activate(t testing.TB, tpm *attestortest.TPM, msg []byte) []byte {
	t.Helper()
	var challenge firstChallenge
	if err := json.Unmarshal(msg, &challenge); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"Credential": challenge.EC.Credential, "Secret": challenge.EC.Secret,
	} {
		if len(b) < 2 || int(binary.BigEndian.Uint16(b)) != len(b)-2 {
			t.Fatalf("EC.%s has no size field: %x", name, b)
		}
	}
	secret, err := tpm.ActivateCredential(challenge.EC.Credential[2:], challenge.EC.Secret[2:])
	if err != nil {
		t.Fatal(err)
	}
	msg, err = json.Marshal(firstResponse{Secret: secret})
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// An agent of the first version attests to this server, in all forms of its EK.
func TestAgentOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	for _, o := range []attestortest.Options{
		{EK: attestor.RSA2048, AK: attestor.RSA2048, CA: ca},
		{EK: attestor.RSA2048, AK: attestor.RSA2048, CA: ca, Certificate: attestortest.Certificate{OAEP: true}},
		{EK: attestor.P256, AK: attestor.P256, CA: ca},
	} {
		tpm := attestortest.New(t, o)
		for form, text := range pemForms(t, tpm.Claim()) {
			t.Run(describe(o)+"/"+form, func(t *testing.T) {
				t.Parallel()
				msg, err := json.Marshal(firstPayload{EK: text, AK: firstAK(tpm.Claim())})
				if err != nil {
					t.Fatal(err)
				}
				if !strings.Contains(string(msg), `"UseTCSDActivationFormat":false`) {
					t.Fatalf("not the payload of the first version: %s", msg)
				}
				var v attestor.Verifier
				s, err := v.Begin(msg)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := hex.EncodeToString(s.EK().Hash[:]), tpm.EKHash(); got != want {
					t.Errorf("EK hash %s, want %s", got, want)
				}
				if got, want := s.EK().Certificate != nil, strings.Contains(form, "certificate"); got != want {
					t.Errorf("a certificate: %t, want %t", got, want)
				}
				challenge, err := s.Challenge(attestor.Ask{})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Finish(activate(t, tpm, challenge)); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// This agent attests to a server of the first version, which knows only its own fields,
// reads the PEM blocks in their order, and makes the challenge with go-attestation.
func TestServerOfTheFirstVersion(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	for _, o := range []attestortest.Options{
		{EK: attestor.RSA2048, AK: attestor.P256},
		{EK: attestor.RSA2048, AK: attestor.RSA2048, CA: ca},
		{EK: attestor.P256, AK: attestor.P256, CA: ca},
	} {
		t.Run(describe(o), func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, o)
			prover := attestor.NewProver(tpm.Claim(), tpm)
			msg, err := prover.Payload()
			if err != nil {
				t.Fatal(err)
			}
			var payload firstPayload
			if err := json.Unmarshal(msg, &payload); err != nil {
				t.Fatal(err)
			}
			want := []string{"PUBLIC KEY"}
			if o.CA != nil {
				want = []string{"CERTIFICATE", "PUBLIC KEY"}
			}
			types, ek := readPEM(t, payload.EK)
			if !slices.Equal(types, want) {
				t.Fatalf("PEM blocks %v, want %v", types, want)
			}
			params := attest.ActivationParameters{EK: ek, AK: *payload.AK}
			secret, ec, err := params.Generate()
			if err != nil {
				t.Fatal(err)
			}
			challenge, err := json.Marshal(firstChallenge{EC: ec})
			if err != nil {
				t.Fatal(err)
			}
			answer, err := prover.Answer(challenge)
			if err != nil {
				t.Fatal(err)
			}
			var response firstResponse
			if err := json.Unmarshal(answer, &response); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(response.Secret, secret) {
				t.Errorf("secret %x, want %x", response.Secret, secret)
			}
		})
	}
}

func readPEM(t *testing.T, text []byte) (types []string, key any) {
	t.Helper()
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			return types, key
		}
		types = append(types, block.Type)
		if text = rest; block.Type != "PUBLIC KEY" {
			continue
		}
		var err error
		if key, err = x509.ParsePKIXPublicKey(block.Bytes); err != nil {
			t.Fatal(err)
		}
	}
}

// Everything that a claim holds reaches the server.
func TestPayloadOfEverything(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	sub := ca.NewCA(t, "intermediate")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P384, CA: sub})
	claim := tpm.Claim()
	claim.Chain = [][]byte{sub.Certificate.Raw, ca.Certificate.Raw}
	msg, err := attestor.NewProver(claim, tpm).Payload()
	if err != nil {
		t.Fatal(err)
	}
	var v attestor.Verifier
	s, err := v.Begin(msg)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(s.EK().Certificate, claim.Certificate) {
		t.Error("another certificate arrived")
	}
	if !slices.EqualFunc(s.Chain(), claim.Chain, bytes.Equal) {
		t.Errorf("a chain of %d certificates arrived, want the 2 of the claim", len(s.Chain()))
	}
	if eq, ok := s.EK().Public.(interface{ Equal(any) bool }); ok && !eq.Equal(claim.EK) {
		t.Error("another key arrived")
	}
	if s.AK() == nil {
		t.Error("no AK arrived")
	}
}

// Unknown fields are ignored at every level, in every message, so that a later version can
// add some. Only their depth is limited.
func TestUnknownFields(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	payload := strings.Replace(string(tpm.Payload(t)), `"AK":{`, `"AK":{"New":[{}],`, 1)
	payload = `{"New":[{"a":[1,{"b":[null,true,"c"]}]}],` + payload[1:]
	var v attestor.Verifier
	s, err := v.Begin([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	msg, err := s.Challenge(attestor.Ask{})
	if err != nil {
		t.Fatal(err)
	}
	challenge := strings.Replace(string(msg), `"EC":{`, `"EC":{"New":{"a":0},`, 1)
	challenge = `{"Nonce":"AAAA","Quote":{},` + challenge[1:]
	answer := string(tpm.Answer(t, []byte(challenge)))
	if _, err := s.Finish([]byte(`{"EventLog":["` + strings.Repeat("A", 4<<10) + `"],` + answer[1:])); err != nil {
		t.Error(err)
	}
}

// The agent refuses a claim that the server would refuse: on the agent, somebody can read
// why.
func TestPayloadOfABadClaim(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca})
	other := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca, Number: 1})
	for name, spoil := range map[string]func(*attestor.Claim){
		"no EK":               func(c *attestor.Claim) { c.EK = nil },
		"no AK":               func(c *attestor.Claim) { c.AK = attestor.AKParameters{} },
		"no signature":        func(c *attestor.Claim) { c.AK.CreateSignature = nil },
		"a huge AK":           func(c *attestor.Claim) { c.AK.CreateData = make([]byte, 5000) },
		"another certificate": func(c *attestor.Claim) { c.Certificate = other.Claim().Certificate },
		"no certificate":      func(c *attestor.Claim) { c.Certificate = []byte("certificate") },
		"a long chain":        func(c *attestor.Claim) { c.Chain = make([][]byte, 17) },
		"too much": func(c *attestor.Claim) {
			for range 16 {
				c.Chain = append(c.Chain, make([]byte, 8000))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			claim := tpm.Claim()
			spoil(&claim)
			if b, err := attestor.NewProver(claim, tpm).Payload(); err == nil {
				t.Errorf("a payload of %d bytes", len(b))
			}
		})
	}
}

// A false server cannot stop the agent: each of these challenges is refused before the TPM
// sees it.
func TestBadChallenges(t *testing.T) {
	t.Parallel()
	b64 := func(n int) string { return encode64(make([]byte, n)) }
	sized := func(n int) string { return encode64(append([]byte{byte(n >> 8), byte(n)}, make([]byte, n)...)) }
	ec := func(credential, secret string) string {
		return fmt.Sprintf(`{"EC":{"Credential":%q,"Secret":%q}}`, credential, secret)
	}
	for name, msg := range map[string]string{
		"nothing":            ``,
		"no object":          `[]`,
		"null":               `null`,
		"no EC":              `{}`,
		"EC null":            `{"EC":null}`,
		"EC a string":        `{"EC":"x"}`,
		"EC of another case": `{"ec":{"Credential":"AAEA","Secret":"AAEA"}}`,
		"EC empty":           `{"EC":{}}`,
		"Credential missing": `{"EC":{"Secret":"AAEA"}}`,
		"Secret missing":     `{"EC":{"Credential":"AAEA"}}`,
		"Secret null":        `{"EC":{"Credential":"AAEA","Secret":null}}`,
		"Secret empty":       `{"EC":{"Credential":"AAEA","Secret":""}}`,
		"EC twice":           `{"EC":{"Credential":"AAEA","Secret":"AAEA"},"EC":{"Credential":"AAEA","Secret":"AAEA"}}`,
		"Secret twice":       `{"EC":{"Credential":"AAEA","Secret":"AAEA","Secret":"AAEA"}}`,
		"Secret of numbers":  `{"EC":{"Credential":"AAEA","Secret":[0,1,0]}}`,
		"something behind":   ec(sized(68), sized(256)) + `{}`,
		"cut":                ec(sized(68), sized(256))[:100],
		"no size field":      ec(b64(68), sized(256)),
		"a short size field": ec(encode64([]byte{0, 1, 2, 3}), sized(256)),
		"a long size field":  ec(encode64([]byte{0, 9, 2, 3}), sized(256)),
		"one byte":           ec(encode64([]byte{0}), sized(256)),
		"an empty structure": ec(sized(0), sized(256)),
		"a huge credential":  ec(sized(300), sized(256)),
		"a huge secret":      ec(sized(68), sized(1100)),
		"too long":           `{"x":"` + strings.Repeat("x", attestor.MaxChallengeSize) + `"}`,
		"nested":             `{"x":` + strings.Repeat(`[`, 9000) + strings.Repeat(`]`, 9000) + `}`,
		"not UTF-8":          "{\"x\xff\":1}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := attestor.NewProver(attestor.Claim{}, unreached{t})
			if b, err := p.Answer([]byte(msg)); err == nil {
				t.Errorf("the answer is %s", b)
			}
		})
	}
}

// unreached is a TPM that is not to be asked.
type unreached struct{ t *testing.T }

func (u unreached) Activate(*attestor.Activation) (*attestor.Activated, error) {
	u.t.Error("the TPM was asked")
	return &attestor.Activated{Secret: []byte("secret")}, nil
}

// answerer is a TPM that answers as it is told.
type answerer struct{ secret []byte }

func (a answerer) Activate(*attestor.Activation) (*attestor.Activated, error) {
	return &attestor.Activated{Secret: a.secret}, nil
}

// A second challenge is not answered: an agent must not be an oracle.
func TestProverAnswersOnce(t *testing.T) {
	t.Parallel()
	msg := []byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"}}`)
	p := attestor.NewProver(attestor.Claim{}, answerer{[]byte("secret")})
	if b, err := p.Answer(msg); err != nil || string(b) != `{"Secret":"c2VjcmV0"}` {
		t.Fatalf("the first answer is %s, %v", b, err)
	}
	if b, err := p.Answer(msg); err == nil {
		t.Errorf("the second answer is %s", b)
	}
	for name, tpm := range map[string]attestor.Activator{
		"no TPM": nil, "no secret": answerer{}, "a huge secret": answerer{make([]byte, 100)},
	} {
		if b, err := attestor.NewProver(attestor.Claim{}, tpm).Answer(msg); err == nil {
			t.Errorf("%s: the answer is %s", name, b)
		}
	}
}
