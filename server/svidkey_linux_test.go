package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	composerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server/composer"
)

// composed is a node attestor and a credential composer of one server.
type composed struct {
	*plugin
	composer *composer.Plugin
	socket   string
	sources  string // the rest of the attestor's configuration
}

// compose serves both plugins, for a fleet that has svid_key set to mode.
func compose(t *testing.T, mode string, fleet ...*attestortest.TPM) *composed {
	t.Helper()
	c := &composed{
		plugin: serve(t), composer: composer.New(), socket: filepath.Join(t.TempDir(), "tpm", "svid.sock"),
		sources: oneHashDir(hashDir(t, fleet...)),
	}
	c.startComposer(t)
	c.setMode(t, mode)
	return c
}

func (c *composed) setMode(t *testing.T, mode string) {
	t.Helper()
	c.configure(t, fmt.Sprintf("%s\nsvid_key = %q\nsvid_key_socket = %q\n", c.sources, mode, c.socket))
}

func (c *composed) startComposer(t *testing.T) {
	t.Helper()
	c.composer = composer.New()
	if _, err := c.composer.Configure(t.Context(), configureRequest(fmt.Sprintf("socket = %q", c.socket))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.composer.Close() })
}

// sign is what SPIRE does before it signs an agent's SVID.
func (c *composed) sign(t *testing.T, id string, key *ecdsa.PrivateKey) error {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.composer.ComposeAgentX509SVID(context.Background(), &composerv1.ComposeAgentX509SVIDRequest{
		SpiffeId: id, PublicKey: der, Attributes: &composerv1.X509SVIDAttributes{DnsSans: []string{"x"}},
	})
	if err == nil && resp.GetAttributes() != nil {
		t.Error("the composer changes an SVID")
	}
	return err
}

func idOf(tpm *attestortest.TPM) string {
	return "spiffe://example.org/spire/agent/tpm/" + tpm.EKHash()
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func withSVIDKey(t *testing.T, number int, k *attestortest.SVIDKey) *attestortest.TPM {
	t.Helper()
	return attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: number, SVIDKey: k})
}

// An agent whose TPM has certified a key gets its SVID for that key, once, and for no other, with svid_key
// "optional" and "required". Its selector, the log and the metrics say that its key is certified.
func TestSVIDKey(t *testing.T) {
	for _, mode := range []string{"optional", "required"} {
		t.Run(mode, func(t *testing.T) {
			tpm := withSVIDKey(t, 1, &attestortest.SVIDKey{})
			c := compose(t, mode, tpm)
			attributes, err := c.attestTPM(t, tpm)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Contains(attributes.GetSelectorValues(), "svid_key:tpm") || !attributes.GetCanReattest() {
				t.Errorf("attributes %v", attributes)
			}
			c.log.await(t, "Machine admitted")
			if got := c.log.find(t, "Machine admitted")["svid_key"]; got != "tpm" {
				t.Errorf("the log says svid_key=%v", got)
			}
			wantStatus(t, c.sign(t, attributes.GetSpiffeId(), newKey(t)), codes.PermissionDenied, `use KeyManager "tpm"`)
			if err := c.sign(t, attributes.GetSpiffeId(), tpm.SVIDKey()); err != nil {
				t.Error(err)
			}
			err = c.sign(t, attributes.GetSpiffeId(), tpm.SVIDKey())
			wantStatus(t, err, codes.PermissionDenied, "used already")
		})
	}
}

// Under optional, an older agent gets an SVID for the key that it has, once for each
// attestation; without an attestation nobody does.
func TestSVIDKeyOptional(t *testing.T) {
	tpm, other := withSVIDKey(t, 1, nil), withSVIDKey(t, 2, nil)
	c := compose(t, "optional", tpm, other)
	wantStatus(t, c.sign(t, idOf(tpm), newKey(t)), codes.PermissionDenied, "no key has been handed over")
	attributes, err := c.attestTPM(t, tpm)
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(attributes.GetSelectorValues(), "svid_key:tpm") {
		t.Errorf("selectors %v", attributes.GetSelectorValues())
	}
	c.log.await(t, "Machine admitted")
	if got := c.log.find(t, "Machine admitted")["svid_key"]; got != "none" {
		t.Errorf("the log says svid_key=%v", got)
	}
	wantStatus(t, c.sign(t, idOf(other), newKey(t)), codes.PermissionDenied, "no key has been handed over")
	if err := c.sign(t, idOf(tpm), newKey(t)); err != nil {
		t.Error(err)
	}
	wantStatus(t, c.sign(t, idOf(tpm), newKey(t)), codes.PermissionDenied, "no key has been handed over")
}

// Under required, an agent that has certified no key is refused for good, with what to do, and
// nothing is handed over.
func TestSVIDKeyRequired(t *testing.T) {
	tpm := withSVIDKey(t, 1, nil)
	c := compose(t, "required", tpm)
	_, err := c.attestTPM(t, tpm)
	wantStatus(t, err, codes.PermissionDenied, `use KeyManager "tpm", and its directory as svid_key_directory`)
	wantStatus(t, c.sign(t, idOf(tpm), newKey(t)), codes.PermissionDenied, "no key has been handed over")
	line := c.log.find(t, "Attestation failed")
	if line["svid_key"] != "none" || line["outcome"] != "refused" {
		t.Errorf("the log has %v", line)
	}
}

// svidKeyLiar changes what its TPM says of its SVID key.
type svidKeyLiar struct {
	*attestortest.TPM
	lie func(*attestor.Activated)
}

// Activate implements attestor.Activator.
func (l *svidKeyLiar) Activate(a *attestor.Activation) (*attestor.Activated, error) {
	done, err := l.TPM.Activate(a)
	if err == nil {
		l.lie(done)
	}
	return done, err
}

// A certification that does not hold is refused under optional, too, and nothing is handed over: a
// man in the middle could otherwise turn the certified key of an agent into "any key".
func TestSVIDKeyBadCertification(t *testing.T) {
	replayed := withSVIDKey(t, 1, &attestortest.SVIDKey{})
	stolen, err := replayed.CertifySVIDKey(attestor.SVIDKeyData(make([]byte, 32)))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		key  attestortest.SVIDKey
		lie  func(*attestor.Activated)
		code codes.Code
		told string
	}{
		{
			name: "of another session", lie: func(a *attestor.Activated) { a.SVIDKey = stolen },
			code: codes.PermissionDenied, told: "the SVID key in the answer to the challenge is wrong",
		},
		{
			name: "not signed", lie: func(a *attestor.Activated) { a.SVIDKey.Signature[len(a.SVIDKey.Signature)-1] ^= 1 },
			code: codes.PermissionDenied, told: "the SVID key in the answer to the challenge is wrong",
		},
		{
			name: "a key that may leave", code: codes.PermissionDenied, told: "the SVID key in the answer to the challenge is wrong",
			key: attestortest.SVIDKey{ForgePublic: func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }},
		},
		{
			name: "garbage", lie: func(a *attestor.Activated) { a.SVIDKey.Public = []byte{1, 2, 3} },
			code: codes.InvalidArgument, told: "SVIDKey.Public",
		},
		{
			name: "huge", lie: func(a *attestor.Activated) { a.SVIDKey.Attest = make([]byte, 4<<10) },
			code: codes.InvalidArgument, told: "SVIDKey.Attest",
		},
		{
			name: "half", lie: func(a *attestor.Activated) { a.SVIDKey.Public = nil },
			code: codes.InvalidArgument, told: "SVIDKey.Public",
		},
	} {
		for _, mode := range []string{"optional", "required"} {
			t.Run(tt.name+" "+mode, func(t *testing.T) {
				tpm := withSVIDKey(t, 2, &tt.key)
				c := compose(t, mode, tpm)
				liar := &svidKeyLiar{tpm, func(a *attestor.Activated) {
					if tt.lie != nil {
						tt.lie(a)
					}
				}}
				_, err := c.attest(t, tpm.Payload(t), func(challenge []byte) []byte {
					b, err := attestor.NewProver(tpm.Claim(), liar).Answer(challenge)
					if err != nil {
						t.Fatal(err)
					}
					return b
				})
				wantStatus(t, err, tt.code, tt.told)
				for _, key := range []*ecdsa.PrivateKey{tpm.SVIDKey(), newKey(t)} {
					wantStatus(t, c.sign(t, idOf(tpm), key), codes.PermissionDenied, "no key has been handed over")
				}
				c.setMode(t, "off") // then it is not looked at
				if _, err := c.attest(t, tpm.Payload(t), func(challenge []byte) []byte {
					b, err := attestor.NewProver(tpm.Claim(), liar).Answer(challenge)
					if err != nil {
						t.Fatal(err)
					}
					return b
				}); err != nil {
					t.Errorf("svid_key is off: %v", err)
				}
			})
		}
	}
}

// While no composer answers, no agent is admitted, not even with svid_key = "optional": SPIRE would otherwise
// give it an SVID for any key. The server tells the agent to try again, and the log says what to do. A composer
// that has come back serves at once.
func TestSVIDKeyWithoutComposer(t *testing.T) {
	for _, mode := range []string{"optional", "required"} {
		tpm := withSVIDKey(t, 1, &attestortest.SVIDKey{})
		c := compose(t, mode, tpm)
		if err := c.composer.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := c.attestTPM(t, tpm)
		wantStatus(t, err, codes.Unavailable, "its credential composer does not answer")
		line := c.log.find(t, "Attestation failed")
		if reason, _ := line["reason"].(string); line["outcome"] != "unavailable" || line["svid_key"] != "tpm" ||
			!strings.Contains(reason, `add CredentialComposer "tpm"`) {
			t.Errorf("the log has %v", line)
		}
		c.startComposer(t)
		if _, err := c.attestTPM(t, tpm); err != nil {
			t.Error(err)
		}
		if err := c.sign(t, idOf(tpm), tpm.SVIDKey()); err != nil {
			t.Error(err)
		}
	}
}

// A machine that the rules refuse has nothing handed over, whatever it has certified.
func TestSVIDKeyOfRefusedMachine(t *testing.T) {
	tpm := withSVIDKey(t, 1, &attestortest.SVIDKey{})
	c := compose(t, "optional")
	_, err := c.attestTPM(t, tpm)
	wantStatus(t, err, codes.PermissionDenied, "this TPM is not admitted")
	wantStatus(t, c.sign(t, idOf(tpm), tpm.SVIDKey()), codes.PermissionDenied, "no key has been handed over")
}

// The configuration that is current at the end of an attestation decides: an agent that holds a challenge
// open from before gets no SVID for any key it likes, and none that was not handed over to the composer.
func TestSVIDKeyTurnedOnMeanwhile(t *testing.T) {
	tpm := withSVIDKey(t, 1, &attestortest.SVIDKey{})
	for _, tt := range []struct {
		before, after string
		code          codes.Code
		told          string
	}{
		{"off", "optional", codes.Unavailable, "cannot tell right now"},
		{"off", "required", codes.Unavailable, "cannot tell right now"},
		{"optional", "required", codes.OK, ""},
		{"required", "optional", codes.OK, ""},
		{"required", "off", codes.OK, ""},
	} {
		c := compose(t, tt.before, tpm)
		attributes, err := c.attest(t, tpm.Payload(t), func(challenge []byte) []byte {
			c.setMode(t, tt.after)
			return tpm.Answer(t, challenge)
		})
		handedOver := tt.code == codes.OK && tt.after != "off"
		if wantStatus(t, err, tt.code, tt.told); handedOver != slices.Contains(attributes.GetSelectorValues(), "svid_key:tpm") {
			t.Errorf("%s to %s: selectors %v", tt.before, tt.after, attributes.GetSelectorValues())
		}
		if err := c.sign(t, idOf(tpm), tpm.SVIDKey()); handedOver != (err == nil) {
			t.Errorf("%s to %s: %v", tt.before, tt.after, err)
		}
	}
	without := withSVIDKey(t, 2, nil)
	c := compose(t, "optional", without)
	_, err := c.attest(t, without.Payload(t), func(challenge []byte) []byte {
		c.setMode(t, "required")
		return without.Answer(t, challenge)
	})
	wantStatus(t, err, codes.PermissionDenied, "SVID key is in their TPM")
}

// A reconfiguration may move the socket: what was handed over before still serves, and the attestor uses
// the new socket once it has that configuration, too.
func TestSVIDKeyAnotherSocket(t *testing.T) {
	tpm := withSVIDKey(t, 1, &attestortest.SVIDKey{})
	c := compose(t, "required", tpm)
	if _, err := c.attestTPM(t, tpm); err != nil {
		t.Fatal(err)
	}
	c.socket = filepath.Join(t.TempDir(), "tpm", "other.sock")
	if _, err := c.composer.Configure(t.Context(), configureRequest(fmt.Sprintf("socket = %q", c.socket))); err != nil {
		t.Fatal(err)
	}
	if err := c.sign(t, idOf(tpm), tpm.SVIDKey()); err != nil {
		t.Error(err)
	}
	_, err := c.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "its credential composer does not answer")
	c.setMode(t, "required")
	if _, err := c.attestTPM(t, tpm); err != nil {
		t.Error(err)
	}
	if err := c.sign(t, idOf(tpm), tpm.SVIDKey()); err != nil {
		t.Error(err)
	}
}

// Two attestations of one machine are open at once, as an agent that has lost its connection makes
// them, or an attacker who has that machine: the key of the one that ends last serves, and each at
// most once.
func TestSVIDKeyTwoAttestations(t *testing.T) {
	first := withSVIDKey(t, 1, &attestortest.SVIDKey{})
	second := withSVIDKey(t, 1, &attestortest.SVIDKey{}) // the same EK
	c := compose(t, "required", first)
	_, err := c.attest(t, first.Payload(t), func(challenge []byte) []byte {
		if _, err := c.attestTPM(t, second); err != nil {
			t.Fatal(err)
		}
		return first.Answer(t, challenge)
	})
	if err != nil {
		t.Fatal(err)
	}
	wantStatus(t, c.sign(t, idOf(first), second.SVIDKey()), codes.PermissionDenied, "not the one that its TPM has certified")
	if err := c.sign(t, idOf(first), first.SVIDKey()); err != nil {
		t.Error(err)
	}
	wantStatus(t, c.sign(t, idOf(first), second.SVIDKey()), codes.PermissionDenied, "no key has been handed over")
}
