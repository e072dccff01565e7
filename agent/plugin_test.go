package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// server is the server's half of an attestation.
type server interface {
	challenge(payload []byte) ([]byte, error)
	finish(response []byte) error
}

// attest runs one attestation of the plugin to a server.
func (p *plugin) attest(ctx context.Context, s server) error {
	stream, err := p.attestor.AidAttestation(ctx)
	if err != nil {
		return err
	}
	msg, err := stream.Recv()
	if err != nil {
		return err
	}
	challenge, err := s.challenge(msg.GetPayload())
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if err := stream.Send(&nodeattestorv1.Challenge{Challenge: challenge}); err != nil {
		return err
	}
	if msg, err = stream.Recv(); err != nil {
		return err
	}
	if err := s.finish(msg.GetChallengeResponse()); err != nil {
		return fmt.Errorf("server: %w", err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("the stream does not end: %w", err)
	}
	return nil
}

// ours is the server's half of this project.
type ours struct{ session *attestor.Session }

func (s *ours) challenge(payload []byte) ([]byte, error) {
	var err error
	if s.session, err = new(attestor.Verifier).Begin(payload); err != nil {
		return nil, err
	}
	return s.session.Challenge(attestor.Ask{})
}

func (s *ours) finish(response []byte) error {
	_, err := s.session.Finish(response)
	return err
}

// incumbent is a server that knows only the fields of spire-tpm-plugin.
type incumbent struct {
	ek          crypto.PublicKey
	certificate *x509.Certificate
	secret      []byte
}

func (s *incumbent) challenge(payload []byte) ([]byte, error) {
	var data struct {
		EK []byte
		AK *attest.AttestationParameters
	}
	if err := json.Unmarshal(payload, &data); err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(data.EK); block != nil; block, rest = pem.Decode(rest) {
		var err error
		switch block.Type {
		case "CERTIFICATE":
			s.certificate, err = x509.ParseCertificate(block.Bytes)
		case "PUBLIC KEY":
			s.ek, err = x509.ParsePKIXPublicKey(block.Bytes)
		}
		if err != nil {
			return nil, err
		}
	}
	params := attest.ActivationParameters{EK: s.ek, AK: *data.AK}
	secret, credential, err := params.Generate()
	if err != nil {
		return nil, err
	}
	s.secret = secret
	return json.Marshal(struct{ EC *attest.EncryptedCredential }{credential})
}

func (s *incumbent) finish(response []byte) error {
	var data struct{ Secret []byte }
	if err := json.Unmarshal(response, &data); err != nil {
		return err
	}
	if !bytes.Equal(data.Secret, s.secret) {
		return errors.New("another secret")
	}
	return nil
}

// A machine attests to this project's server, with each type of EK and AK, and more than
// once. The log shows the EK hash by which an operator enrols the machine.
func TestAttest(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, keys := range []string{
		`ek = "auto"`, `ek = "rsa2048"`, `ek = "p256"`, `ek = "p384"`, `ek = "rsa3072"`,
		`ak = "auto"`, `ak = "p256"`, `ak = "rsa2048"`, "ek = \"p384\"\nak = \"rsa2048\"",
	} {
		t.Run(keys, func(t *testing.T) {
			p := serve(t, fmt.Sprintf("device = %q\n%s", tpm.Device, keys))
			s := new(ours)
			for range 2 { // SPIRE attests again regularly
				if err := p.attest(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			if hash := fmt.Sprintf("%x", s.session.EK().Hash); !strings.Contains(p.log.String(), hash) {
				t.Errorf("the log does not have %s: %s", hash, p.log)
			}
		})
	}
}

// If a TPM has EK certificates, but none for its RSA 2048 EK, the log says with which value of
// ek the machine would attest with one. Otherwise its operator would look for the certificate
// in vain.
func TestCertificateOfAnotherEK(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{RSA3072: true})
	const hint = "to attest with one of them, set ek: ek=\"p384 or rsa3072\""
	for keys, want := range map[string]bool{"": true, `ek = "rsa3072"`: false} {
		p := serve(t, device(tpm)+"\n"+keys)
		if err := p.attest(t.Context(), new(ours)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(p.log.String(), hint); got != want {
			t.Errorf("%s: the log has the hint: %v, want %v: %s", keys, got, want, p.log)
		}
	}
}

// A fleet migrates one machine at a time, so this agent must attest to the server of
// spire-tpm-plugin, which knows only its own fields. That server sees the same EK.
func TestAttestToTheIncumbentsServer(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, ek := range []string{"auto", "p256"} {
		p := serve(t, fmt.Sprintf("device = %q\nek = %q", tpm.Device, ek))
		their, our := new(incumbent), new(ours)
		if err := p.attest(t.Context(), their); err != nil {
			t.Fatalf("%s: %v", ek, err)
		}
		if err := p.attest(t.Context(), our); err != nil {
			t.Fatalf("%s: %v", ek, err)
		}
		if hash, err := attestor.HashEK(their.ek); err != nil || hash != our.session.EK().Hash {
			t.Errorf("%s: they see %x, we %x: %v", ek, hash, our.session.EK().Hash, err)
		}
		if got, want := their.certificate != nil, ek == "auto"; got != want {
			t.Errorf("%s: certificate %v, want %v", ek, got, want)
		}
	}
}

// A failure has the code by which SPIRE Agent tries again. It is never PermissionDenied, upon
// which the agent gives up for good. The next attestation succeeds.
func TestFailures(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	garbage := func(challenge string) server { return fixedChallenge(challenge) }
	for name, tt := range map[string]struct {
		config string
		server server
		code   codes.Code
		want   string
	}{
		"no TPM":               {`device = "/nowhere/tpm0"`, nil, codes.Unavailable, "check that the TPM is enabled"},
		"no device":            {`device = "/etc/passwd"`, nil, codes.FailedPrecondition, "not a character device"},
		"malformed challenge":  {device(tpm), garbage("{"), codes.InvalidArgument, "challenge"},
		"empty challenge":      {device(tpm), garbage(""), codes.InvalidArgument, "challenge"},
		"another TPM's":        {device(tpm), garbage(`{"EC":{"Credential":"AAQAAAAA","Secret":"AAQAAAAA"}}`), codes.InvalidArgument, "activate the credential"},
		"an endless challenge": {device(tpm), garbage(strings.Repeat("x", attestor.MaxChallengeSize+1)), codes.InvalidArgument, "challenge"},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, tt.config+"\n")
			err := p.attest(t.Context(), tt.server)
			if status.Code(err) != tt.code || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %v %q", err, tt.code, tt.want)
			}
		})
	}
	// The failures leave nothing behind.
	if err := serve(t, device(tpm)).attest(t.Context(), new(ours)); err != nil {
		t.Error(err)
	}
}

func device(tpm *swtpmtest.TPM) string { return fmt.Sprintf("device = %q", tpm.Device) }

type fixedChallenge string

func (c fixedChallenge) challenge([]byte) ([]byte, error) { return []byte(c), nil }

func (fixedChallenge) finish([]byte) error { return nil }

// A plugin that has not been configured must not use the machine's own TPM by default.
func TestNotConfigured(t *testing.T) {
	err := serve(t, "").attest(t.Context(), new(ours))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("error %v", err)
	}
}

// Only one attestation at a time uses the TPM, which may have room for the keys of only one.
// An attestation that waits for the TPM ends when it is cancelled.
func TestOneAttestationAtATime(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	p := serve(t, device(tpm))
	p.turn <- struct{}{} // another attestation uses the TPM
	ctx, cancel := context.WithCancel(t.Context())
	second, err := p.attestor.AidAttestation(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := second.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the second: %v", err)
	}
	done := make(chan error)
	go func() { done <- p.attest(t.Context(), new(ours)) }()
	<-p.turn
	if err := <-done; err != nil {
		t.Errorf("the third: %v", err)
	}
}

// While the agent waits for a server that does not answer, the TPM is empty and free for other
// attestations and other programs. A late challenge is still answered.
func TestSilentServer(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, ek := range []string{"rsa2048", "p256"} {
		p := serve(t, fmt.Sprintf("%s\nek = %q", device(tpm), ek))
		stream, err := p.attestor.AidAttestation(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		c, err := linuxudstpm.Open(tpm.Socket) // swtpm serves one connection at a time
		if err != nil {
			t.Fatal(err)
		}
		rsp, err := tpm2.GetCapability{
			Capability: tpm2.TPMCapHandles, Property: 0x80000000, PropertyCount: 8,
		}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
		if keys, err := rsp.CapabilityData.Data.Handles(); err != nil || len(keys.Handle) > 0 {
			t.Errorf("keys %#x are in the TPM: %v", keys.Handle, err)
		}
		c.Close()
		if err := p.attest(t.Context(), new(ours)); err != nil {
			t.Errorf("another attestation: %v", err)
		}
		late := new(ours)
		challenge, err := late.challenge(msg.GetPayload())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&nodeattestorv1.Challenge{Challenge: challenge}); err != nil {
			t.Fatal(err)
		}
		if msg, err = stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if err := late.finish(msg.GetChallengeResponse()); err != nil {
			t.Error(err)
		}
	}
}

// A hung TPM does not block an agent that shuts down.
func TestHungTPM(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := serve(t, fmt.Sprintf("device = %q", "unix:"+path))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.attest(ctx, new(ours)) }()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("error %v", err)
	}
	// When the command has ended, even with an error, the next attestation can use the TPM.
	conn.Close()
	p.turn <- struct{}{}
	<-p.turn
}

// When SPIRE ends the plugin, a command may be under way. The process must not end before the
// keys that the command has made are flushed: they would stay in a TPM without a resource
// manager. But a hung TPM does not block SPIRE's shutdown.
func TestCloseWaitsForTheTPM(t *testing.T) {
	for takes, inTime := range map[time.Duration]bool{closeTimeout / 2: true, time.Hour: false} {
		synctest.Test(t, func(t *testing.T) {
			p := New()
			ctx, cancel := context.WithCancel(t.Context())
			cancelled := make(chan struct{})
			var flushed atomic.Bool
			go func() {
				_ = p.use(ctx, func() error { // ends when ctx does
					<-cancelled
					time.Sleep(takes)
					flushed.Store(true)
					return nil
				})
			}()
			synctest.Wait()
			cancel()
			close(cancelled)
			if err := p.Close(); (err == nil) != inTime || flushed.Load() != inTime {
				t.Errorf("a command of %v: %v, flushed: %v", takes, err, flushed.Load())
			}
			time.Sleep(takes) // until the command has ended
			if err := p.Close(); err != nil {
				t.Errorf("closed again: %v", err)
			}
		})
	}
}

// A panic fails one attestation. It must not end the plugin, since SPIRE does not restart a
// plugin that has died.
func TestPanicEndsOneAttestation(t *testing.T) {
	p := New()
	if err := p.AidAttestation(nil); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("error %v", err)
	}
	if _, err := p.Configure(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if err := p.AidAttestation(nil); status.Code(err) != codes.Internal {
		t.Errorf("error %v", err)
	}
	// A panic in the goroutine that uses the TPM does not end the plugin either, and frees the
	// TPM for the next attestation.
	for range 2 {
		if err := p.use(t.Context(), func() error { panic("in the TPM") }); status.Code(err) != codes.Internal {
			t.Errorf("error %v", err)
		}
	}
}
