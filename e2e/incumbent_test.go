package e2e_test

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// The messages of spire-tpm-plugin v1.10, with exactly its fields. Byte slices are base64 in
// JSON.
type (
	incumbentPayload struct {
		EK []byte
		AK struct{ Public, CreateData, CreateAttestation, CreateSignature []byte }
	}
	incumbentChallenge struct {
		EC struct{ Credential, Secret []byte }
	}
	incumbentResponse struct{ Secret []byte }
)

// A fleet migrates one machine at a time, so an agent of spire-tpm-plugin must attest to this
// project's server. Its releases send the EK in different forms.
func TestIncumbentAgentAttests(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	tpm := attestortest.New(t, attestortest.Options{CA: attestortest.NewCA(t, "Example EK CA")})
	w.write(filepath.Join(hashes, tpm.EKHash()), "")
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf("hash_path = %q", hashes)})
	c := w.client(s)

	public, err := x509.MarshalPKIXPublicKey(tpm.Claim().EK)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{
		Type: "CERTIFICATE", Bytes: tpm.Claim().Certificate,
	})
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	for _, test := range []struct {
		name string
		ek   []byte
	}{
		{"certificate and key", append(slices.Clip(certificate), key...)},
		{"key alone", key},
		{"certificate alone", certificate},
	} {
		t.Run(test.name, func(t *testing.T) {
			payload := incumbentPayload{EK: test.ek}
			ak := tpm.Claim().AK
			payload.AK.Public, payload.AK.CreateData = ak.Public, ak.CreateData
			payload.AK.CreateAttestation, payload.AK.CreateSignature = ak.CreateAttestation,
				ak.CreateSignature
			b, err := json.Marshal(payload)
			if err != nil {
				t.Fatal(err)
			}
			id, err := c.attest(w.ctx, b, incumbentAnswer(tpm))
			if err != nil {
				t.Fatal(err)
			}
			if want := "spiffe://example.org/spire/agent/tpm/" + tpm.EKHash(); id != want {
				t.Errorf("the agent is %s, want %s", id, want)
			}
		})
	}
}

// incumbentAnswer returns a function that answers a challenge like spire-tpm-plugin's agent.
func incumbentAnswer(tpm *attestortest.TPM) func([]byte) ([]byte, error) {
	return func(b []byte) ([]byte, error) {
		var challenge incumbentChallenge
		if err := json.Unmarshal(b, &challenge); err != nil {
			return nil, err
		}
		// Both are TPM2B structures: a size in two bytes, then the content.
		credential, secret := challenge.EC.Credential, challenge.EC.Secret
		if len(credential) < 2 || len(secret) < 2 {
			return nil, errors.New("the challenge has no EC")
		}
		answer, err := tpm.ActivateCredential(credential[2:], secret[2:])
		if err != nil {
			return nil, err
		}
		return json.Marshal(incumbentResponse{Secret: answer})
	}
}
