package server_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// oneHashDir is a configuration with one source.
func oneHashDir(dir string) string {
	return fmt.Sprintf("source \"hash_dir\" \"factory\" { path = %q }\n", dir)
}

// A whole attestation for each type of key, with what SPIRE stores of it: ID and selectors are
// in every registration entry of a site.
func TestAttestByHash(t *testing.T) {
	p := serve(t)
	dir := t.TempDir()
	p.configure(t, oneHashDir(dir))
	for _, o := range []attestortest.Options{
		{EK: attestor.RSA2048},
		{EK: attestor.RSA2048, HighRange: true},
		{EK: attestor.RSA2048, AK: attestor.RSA2048},
		{EK: attestor.RSA2048, AK: attestor.RSA2048, PSS: true},
		{EK: attestor.RSA3072},
		{EK: attestor.P256},
		{EK: attestor.P384},
	} {
		tpm := attestortest.New(t, o)
		list(t, dir, tpm.EKHash(), `{"name": "web-1", "labels": ["rack:12", "env:prod"]}`)
		got, err := p.attestTPM(t, tpm)
		if err != nil {
			t.Errorf("EK %s, AK %s: %v", o.EK, o.AK, err)
			continue
		}
		want := []string{
			"label:env:prod", "label:rack:12", "name:web-1", "pub_hash:" + tpm.EKHash(),
			"rule:default", "source:factory",
		}
		if d := cmp.Diff(want, got.GetSelectorValues()); d != "" {
			t.Errorf("EK %s: selectors (-want +got):\n%s", o.EK, d)
		}
		id := "spiffe://example.org/spire/agent/tpm/" + tpm.EKHash()
		if got.GetSpiffeId() != id || !got.GetCanReattest() {
			t.Errorf("EK %s: ID %s, can re-attest: %v", o.EK, got.GetSpiffeId(), got.GetCanReattest())
		}
	}
}

// A machine is known by its vendor's authority, and the selectors say what the
// verified certificate says.
func TestAttestByCA(t *testing.T) {
	ca := attestortest.NewCA(t, "Example EK CA")
	file := filepath.Join(t.TempDir(), "ca.pem")
	list(t, filepath.Dir(file), "ca.pem", string(ca.PEM()))
	var serial string
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca, Certificate: attestortest.Certificate{
		Change: func(c *x509.Certificate) { serial = c.SerialNumber.Text(16) },
	}})
	p := serve(t)
	p.configure(t, fmt.Sprintf(`source "ek_ca" "vendors" { bundles = { example = %q } }
		agent_path_template = "/tpm/{{ .Issuer }}/{{ .Serial }}"`, file))
	p.log.find(t, `Configuration: rule default: this rule admits by the CAs of TPM vendors alone`)
	got, err := p.attestTPM(t, tpm)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"ca:example", "ek:issuer:cn:Example EK CA", "ek:serial:" + serial,
		"manufacturer:" + attestortest.Manufacturer, "model:" + attestortest.Model, "pub_hash:" + tpm.EKHash(),
		"rule:default", "source:vendors", "version:" + attestortest.Version,
	}
	if d := cmp.Diff(want, got.GetSelectorValues()); d != "" {
		t.Errorf("selectors (-want +got):\n%s", d)
	}
	issuer, err := attestor.HashEK(ca.Certificate.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if id := "spiffe://example.org/spire/agent/tpm/" + hex.EncodeToString(issuer[:]) + "/" + serial; got.GetSpiffeId() != id {
		t.Errorf("ID %s, want %s", got.GetSpiffeId(), id)
	}

	other := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: attestortest.NewCA(t, "Example EK CA")})
	_, err = p.attestTPM(t, other)
	wantStatus(t, err, codes.PermissionDenied, "this TPM is not admitted")
}

// A payload that is malformed in its last part must cost a source nothing: no slot
// of a mount that hangs, no query to a database.
func TestNoSourceIsAskedAboutAMalformedAK(t *testing.T) {
	p := serve(t)
	asked := sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))
	p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), admission.Member{Name: "x", Kind: "fake", Source: asked})
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	var payload map[string]any
	if err := json.Unmarshal(tpm.Payload(t), &payload); err != nil {
		t.Fatal(err)
	}
	ak, ok := payload["AK"].(map[string]any)
	if !ok {
		t.Fatal("a payload without an AK")
	}
	ak["CreateSignature"] = base64.StdEncoding.EncodeToString([]byte("no signature"))
	forged, err := json.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	atStart, _, _ := asked.Calls() // one probe
	_, err = p.attest(t, forged, func([]byte) []byte { return nil })
	wantStatus(t, err, codes.InvalidArgument, "AK.CreateSignature")
	if n, _, _ := asked.Calls(); n != atStart {
		t.Errorf("the source was asked %d times about a malformed attestation", n-atStart)
	}
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Fatal(err)
	}
}

// An agent of the incumbent must attest to this server, or no fleet can migrate
// one machine at a time: the messages here are written by hand, in its fields
// and in all three forms of the EK.
func TestIncumbentWire(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.RSA2048, CA: attestortest.NewCA(t, "CA")})
	p := serve(t)
	p.configure(t, fmt.Sprintf("hash_path = %q", hashDir(t, tpm)))
	claim := tpm.Claim()
	spki, err := x509.MarshalPKIXPublicKey(claim.EK)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: claim.Certificate})
	b64 := base64.StdEncoding.EncodeToString
	for name, ek := range map[string][]byte{
		"certificate and key": slices.Concat(cert, key), "key": key, "certificate": cert,
	} {
		payload := fmt.Sprintf(
			`{"EK":%q,"AK":{"Public":%q,"CreateData":%q,"CreateAttestation":%q,"CreateSignature":%q}}`,
			b64(ek), b64(claim.AK.Public), b64(claim.AK.CreateData),
			b64(claim.AK.CreateAttestation), b64(claim.AK.CreateSignature))
		answer := func(challenge []byte) []byte {
			var c struct {
				EC struct{ Credential, Secret []byte }
			}
			d := json.NewDecoder(bytes.NewReader(challenge))
			d.DisallowUnknownFields()
			if err := d.Decode(&c); err != nil {
				t.Fatalf("%s: the challenge %s: %v", name, challenge, err)
			}
			secret, err := tpm.ActivateCredential(unsized(t, c.EC.Credential), unsized(t, c.EC.Secret))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return fmt.Appendf(nil, `{"Secret":%q}`, b64(secret))
		}
		got, err := p.attest(t, []byte(payload), answer)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want := "spiffe://example.org/spire/agent/tpm/" + tpm.EKHash(); got.GetSpiffeId() != want {
			t.Errorf("%s: ID %s, want %s", name, got.GetSpiffeId(), want)
		}
	}
}

// unsized removes the size in front of a TPM2B structure.
func unsized(t *testing.T, b []byte) []byte {
	t.Helper()
	if len(b) < 2 || int(b[0])<<8|int(b[1]) != len(b)-2 {
		t.Fatalf("not a TPM2B structure: %x", b)
	}
	return b[2:]
}

// A code decides whether an agent gives up or tries again, and a message must
// not tell a stranger what the lists hold.
func TestStatuses(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	stranger := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
	liar := attestortest.New(t, attestortest.Options{EK: attestor.P256, ForgePublic: func(pub *tpm2.TPMTPublic) {
		pub.ObjectAttributes.Decrypt = true
	}})
	p := serve(t)
	dir := hashDir(t, tpm, liar)
	good := tpm.Payload(t)

	_, err := p.attest(t, good, nil)
	wantStatus(t, err, codes.FailedPrecondition, "the plugin is not configured")
	p.configure(t, oneHashDir(dir))

	for _, tt := range []struct {
		name    string
		payload []byte
		answer  agent
		code    codes.Code
		message string
	}{
		{"a stranger", stranger.Payload(t), nil, codes.PermissionDenied, "this TPM is not admitted"},
		{"no payload", nil, nil, codes.InvalidArgument, "payload: "},
		{"not valid JSON", []byte("\x00\x01"), nil, codes.InvalidArgument, "payload: "},
		{"null", []byte("null"), nil, codes.InvalidArgument, "payload: "},
		{"empty", []byte("{}"), nil, codes.InvalidArgument, "payload: "},
		{"null fields", []byte(`{"EK":null,"AK":null}`), nil, codes.InvalidArgument, "payload: "},
		{"cut", good[:len(good)/2], nil, codes.InvalidArgument, "payload: "},
		{"with more behind it", append(slices.Clone(good), '{'), nil, codes.InvalidArgument, "payload: "},
		{"oversized", bytes.Repeat([]byte(" "), attestor.MaxPayloadSize+1), nil, codes.InvalidArgument, "payload: "},
		{"deep", []byte(strings.Repeat(`{"EK":`, 10_000)), nil, codes.InvalidArgument, "payload: "},
		{
			"a field given twice", bytes.Replace(good, []byte(`{`), []byte(`{"EK":"",`), 1), nil,
			codes.InvalidArgument, "payload: ",
		},
		{"an AK that decrypts", liar.Payload(t), nil, codes.InvalidArgument, "payload: "},
		{"no answer", good, fixed(""), codes.InvalidArgument, "response: "},
		{"an answer that is no JSON", good, fixed("x"), codes.InvalidArgument, "response: "},
		{"a null answer", good, fixed(`{"Secret":null}`), codes.InvalidArgument, "response: "},
		{
			"an oversized answer", good, fixed(strings.Repeat(" ", attestor.MaxResponseSize+1)),
			codes.InvalidArgument, "response: ",
		},
		{
			"another secret", good, fixed(`{"Secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`),
			codes.PermissionDenied, "the answer to the challenge is wrong",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			attributes, err := p.attest(t, tt.payload, tt.answer)
			wantStatus(t, err, tt.code, tt.message)
			if attributes != nil {
				t.Errorf("attributes beside an error: %v", attributes)
			}
		})
	}
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Errorf("after all this, an honest machine is refused: %v", err)
	}
}

func fixed(s string) agent { return func([]byte) []byte { return []byte(s) } }

// SPIRE sends a payload first and a response second: anything else is a peer
// that does not follow the protocol, and gets nowhere.
func TestMessagesOfTheWrongKind(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p := server.New()
	p.Use(t, `hash_path = "/x"`, policy.AnyOf("s"), member("s", sourcetest.Lists(sources.Attributes{})))
	good := payloadMessage(tpm.Payload(t))
	for name, tt := range map[string]struct {
		messages []*nodeattestorv1.AttestRequest
		want     string
	}{
		"a response first": {[]*nodeattestorv1.AttestRequest{responseMessage([]byte("{}"))}, "first message"},
		"nothing first":    {[]*nodeattestorv1.AttestRequest{{}}, "first message"},
		"nil first":        {[]*nodeattestorv1.AttestRequest{nil}, "first message"},
		"a payload second": {[]*nodeattestorv1.AttestRequest{good, good}, "second message"},
		"nothing second":   {[]*nodeattestorv1.AttestRequest{good, {}}, "second message"},
	} {
		s := &memoryStream{ctx: t.Context()}
		s.recv = func(n int) (*nodeattestorv1.AttestRequest, error) { return tt.messages[n], nil }
		err := p.Attest(s)
		wantStatus(t, err, codes.InvalidArgument, tt.want)
		if s.attributes != nil {
			t.Errorf("%s: admitted", name)
		}
	}
}

func member(name string, a sourcetest.Answer) admission.Member {
	return admission.Member{Name: name, Kind: "fake", Config: name, Source: sourcetest.NewFake(a)}
}
