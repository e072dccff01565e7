package serve_test

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// The longest configuration that the server plugin accepts, of 1 MiB, fits into a message. A
// longer one is refused with its size, and the plugin keeps serving.
func TestConfigurationSize(t *testing.T) {
	v := newVictim(t)
	comment := func(size int) string { return "#" + strings.Repeat(" ", size-1) }
	for _, tt := range []struct {
		size int
		code codes.Code
		want string
	}{
		{1 << 20, codes.InvalidArgument, "no source is configured"},
		{1<<20 + 1, codes.InvalidArgument, "the configuration is 1048577 bytes long; at most 1048576 are allowed"},
		{2 << 20, codes.ResourceExhausted, "larger than max"},
	} {
		err := v.configure(comment(tt.size))
		if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%d bytes: %v", tt.size, err)
		}
	}
	v.attests(t)
}

// However many attestations strangers hold open, Configure is served at once. Otherwise
// strangers could keep an operator from withdrawing a machine.
func TestConfigureBesideOpenStreams(t *testing.T) {
	v := newVictim(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	silent := func(n int) {
		for range n {
			if _, err := v.client.Attest(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	silent(5000)
	v.attests(t)
	silent(4000)
	if err := v.configure(fmt.Sprintf("hash_path = %q", v.hashes)); err != nil {
		t.Error(err)
	}
}

// GODEBUG=fips140=only forbids the cryptography of TPMs. The plugins say so in the log when
// they start. Otherwise each attestation would fail with an internal error.
func TestFIPSOnly(t *testing.T) {
	for _, name := range []string{"tpm-attestor-server", "tpm-attestor-agent"} {
		s, kill, err := start(built(t, name), "GODEBUG=fips140=only")
		if err == nil {
			kill()
			t.Errorf("%s starts", name)
		}
		if want := "GODEBUG=fips140=only forbids AES-CFB"; !strings.Contains(s.log.String(), want) {
			t.Errorf("%s: the log is %q", name, s.log)
		}
	}
}

// With GODEBUG=fips140=on on both sides, machines with each type of EK attest.
func TestFIPSOn(t *testing.T) {
	const on = "GODEBUG=fips140=on"
	v := newVictim(t, on)
	for _, key := range []attestor.KeyType{attestor.RSA2048, attestor.RSA3072, attestor.P256, attestor.P384} {
		v.honest = attestortest.New(t, attestortest.Options{EK: key})
		v.list(t)
		v.attests(t)
	}
	chip := swtpmtest.Start(t, swtpmtest.Options{})
	agent := startFor(t, built(t, "tpm-attestor-agent"), on)
	for _, key := range []string{"rsa2048", "p384"} {
		if err := agent.configure(fmt.Sprintf("device = %q\nek = %q", chip.Device, key)); err != nil {
			t.Fatal(err)
		}
		code, err := v.meets(t, agent)
		if code != codes.OK {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// An EK certificate that is in the TPM and that Go cannot parse must not be taken for one
// that is not there: an operator would look for it in the wrong place. It must not keep
// the machine out either, if the EK is listed.
func TestUnreadableCertificate(t *testing.T) {
	v := newVictim(t)
	chip := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	agent := startFor(t, built(t, "tpm-attestor-agent"))
	device, err := tpm.New(tpm.Config{Device: chip.Device, EK: attestor.P256})
	if err != nil {
		t.Fatal(err)
	}
	report, err := device.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	der := v.ca.Issue(t, report.EK.Public, attestortest.Certificate{Change: func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, c.ExtraExtensions...)
	}})
	chip.WriteNV(0x01C0000A, append(der, 0xFF, 0xFF))
	if err := agent.configure(fmt.Sprintf("device = %q\nek = \"p256\"", chip.Device)); err != nil {
		t.Fatal(err)
	}
	if code, err := v.meets(t, agent); code != codes.OK {
		t.Errorf("the machine is listed: %v", err)
	}
	agent.await(t, "sending an EK certificate that cannot be read")
	if err := v.configure(fmt.Sprintf("ca_path = %q", v.cas)); err != nil {
		t.Fatal(err)
	}
	if code, err := v.meets(t, agent); code != codes.PermissionDenied {
		t.Errorf("the machine has no CA: %v", err)
	}
	v.await(t, "the EK certificate that the machine has sent cannot be read: ")
}

// meets runs an attestation of the agent's plugin to the server's. It lists the machine when it
// has the payload.
func (v *victim) meets(t *testing.T, agent *spire) (codes.Code, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	theirs, err := agentv1.NewNodeAttestorClient(agent.conn).AidAttestation(ctx)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := theirs.Recv()
	if err != nil {
		t.Fatal(err)
	}
	session, err := new(attestor.Verifier).Begin(payload.GetPayload())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.hashes, hex.EncodeToString(session.EK().Hash[:])), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	stream, err := v.open(ctx, payload.GetPayload())
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := stream.Recv()
	if err != nil {
		return status.Code(err), err
	}
	_ = theirs.Send(&agentv1.Challenge{Challenge: challenge.GetChallenge()}) // Recv has why
	answer, err := theirs.Recv()
	if err != nil {
		return status.Code(err), err
	}
	_ = stream.Send(response(answer.GetChallengeResponse())) // Recv has why
	_, err = stream.Recv()
	return status.Code(err), err
}
