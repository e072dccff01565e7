package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
)

// buildOldIncumbent builds the server of e2e/incumbent. Its go-attestation is older than
// this module's.
func buildOldIncumbent(t *testing.T) (program string) {
	t.Helper()
	program = filepath.Join(t.TempDir(), "incumbent")
	cmd := exec.Command("go", "build", "-o", program, ".")
	cmd.Dir = "../e2e/incumbent"
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", cmd.Dir, err, out)
	}
	return program
}

// oldIncumbent is that server. It runs one process for each attestation.
type oldIncumbent struct {
	t       *testing.T
	program string

	cmd    *exec.Cmd
	in     io.WriteCloser
	stderr bytes.Buffer
}

func (s *oldIncumbent) challenge(payload []byte) ([]byte, error) {
	s.cmd = exec.Command(s.program)
	s.cmd.Stderr = &s.stderr
	var err error
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { _ = s.end() }) // if finish is not called
	if _, err := s.in.Write(payload); err != nil {
		return nil, err
	}
	var challenge json.RawMessage
	if err := json.NewDecoder(out).Decode(&challenge); err != nil {
		return nil, s.end()
	}
	return challenge, nil
}

func (s *oldIncumbent) finish(response []byte) error {
	if _, err := s.in.Write(response); err != nil {
		return err
	}
	return s.end()
}

// end waits for the process to end. If the server refuses the agent, end returns the reason.
func (s *oldIncumbent) end() error {
	_ = s.in.Close() // the process may have closed its end already
	if err := s.cmd.Wait(); err != nil {
		return errors.New(strings.TrimSpace(s.stderr.String()))
	}
	return nil
}

// Older servers of spire-tpm-plugin do not support ECC AKs. An agent attests to such a server
// with ak = "rsa2048". Without that key the server refuses it, with the message that the
// migration guide tells operators to look for.
func TestAttestToAnOldServerOfTheIncumbents(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	blank := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	program := buildOldIncumbent(t)
	const refused = "could not generate credential challenge: public key of alg 0x454343 not supported"
	for name, tt := range map[string]struct {
		tpm    *swtpmtest.TPM
		config string
		err    string
	}{
		"RSA, a certificate": {tpm, `ak = "rsa2048"`, ""},
		"RSA":                {blank, `ak = "rsa2048"`, ""},
		"RSA, a P-256 EK":    {blank, "ak = \"rsa2048\"\nek = \"p256\"", ""},
		"auto":               {tpm, "", refused},
		"P-256":              {tpm, `ak = "p256"`, refused},
	} {
		t.Run(name, func(t *testing.T) {
			p := serve(t, device(tt.tpm)+"\n"+tt.config)
			err := p.attest(t.Context(), &oldIncumbent{t: t, program: program})
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%v, want %q", err, tt.err)
			}
		})
	}
}
