package agent

import (
	"bytes"
	"context"
	"crypto"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// asking is this project's server, if it asks for more than the secret.
type asking struct {
	ask     attestor.Ask
	session *attestor.Session
	proven  *attestor.Answer
}

func (s *asking) challenge(payload []byte) ([]byte, error) {
	var err error
	if s.session, err = new(attestor.Verifier).Begin(payload); err != nil {
		return nil, err
	}
	return s.session.Challenge(s.ask)
}

func (s *asking) finish(response []byte) (err error) {
	s.proven, err = s.session.Finish(response)
	return err
}

func ask(bank string) *asking {
	return &asking{ask: attestor.Ask{
		Quote: &attestor.QuoteRequest{Bank: bank, PCRs: []int{0, 2, 4, 7}}, EventLog: true,
	}}
}

// A machine proves its PCRs and sends its event log to a server that asks for them. A missing log fails
// nothing: the agent tells the server that there is none, and the agent's own log says why.
func TestBoot(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	dir := t.TempDir()
	want := []byte("the firmware's log")
	if err := os.WriteFile(filepath.Join(dir, "log"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "empty"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for file, warned := range map[string]string{"log": "", "empty": "is empty", "missing": "or set event_log_path"} {
		t.Run(file, func(t *testing.T) {
			p := serve(t, fmt.Sprintf("%s\nevent_log_path = %q", device(tpm), filepath.Join(dir, file)))
			s := ask("sha256")
			for range 2 {
				if err := p.attest(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			if s.proven.Quote == nil || len(s.proven.Quote.PCRs) != 4 {
				t.Errorf("the quote is %v", s.proven.Quote)
			}
			if (warned == "") != bytes.Equal(s.proven.EventLog, want) {
				t.Errorf("the log is %q", s.proven.EventLog)
			}
			if got := strings.Contains(p.log.String(), "sending no event log"); got != (warned != "") ||
				!strings.Contains(p.log.String(), warned) {
				t.Errorf("want a warning with %q: %s", warned, p.log)
			}
			if strings.Contains(p.log.String(), string(want)) {
				t.Error("the event log is in the agent's log")
			}
			// A server that asks for no log gets none, and no warning is in the agent's log.
			p = serve(t, fmt.Sprintf("%s\nevent_log_path = %q", device(tpm), filepath.Join(dir, file)))
			s.ask.EventLog = false
			if err := p.attest(t.Context(), s); err != nil || s.proven.EventLog != nil || s.proven.Quote == nil {
				t.Errorf("%v, %v", s.proven, err)
			}
			if strings.Contains(p.log.String(), "event log") {
				t.Errorf("it speaks of the log: %s", p.log)
			}
		})
	}
}

// If a server asks for a bank that the TPM does not have, the attestation fails with a code that means that
// somebody has to act, and the error says what to do.
func TestMissingBank(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{}) // only SHA-256
	err := serve(t, device(tpm)).attest(t.Context(), ask("sha384"))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "its banks are sha256") {
		t.Errorf("error %v", err)
	}
}

// An event log on a file system that hangs does not block the attestation, and further attestations
// do not add to a pile of reads.
func TestEventLogThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		release := make(chan struct{})
		var reads atomic.Int32
		hang := func() ([]byte, error) {
			reads.Add(1)
			<-release
			return []byte("late"), nil
		}
		for i := range 2 {
			begun := time.Now()
			if log := p.readEventLog(t.Context(), hang); log != nil {
				t.Errorf("the log %q", log)
			}
			if took := time.Since(begun); took > readTimeout+2*time.Second || reads.Load() != 1 {
				t.Errorf("attempt %d took %v; %d reads", i, took, reads.Load())
			}
			if err := p.use(t.Context(), func() error { return nil }); err != nil {
				t.Errorf("the TPM is in use: %v", err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if log := p.readEventLog(ctx, hang); log != nil || reads.Load() != 1 {
			t.Errorf("a cancelled attestation reads %q", log)
		}
		close(release)
		synctest.Wait()
		read := func() ([]byte, error) { return []byte("log"), nil }
		if log := p.readEventLog(t.Context(), read); string(log) != "log" {
			t.Errorf("once it does not hang, the log is %q", log)
		}
		for _, broken := range []func() ([]byte, error){
			func() ([]byte, error) { panic("in the reader") },
			func() ([]byte, error) { return []byte("half"), errors.New("broken") },
		} {
			if log := p.readEventLog(t.Context(), broken); log != nil {
				t.Errorf("the log %q", log)
			}
		}
	})
}

// A DevID on a file system that hangs, such as NFS, does not keep the TPM from others, and further
// attestations do not add to a pile of reads. It can be read again once it does not hang, and by another
// configuration at once.
func TestDevIDThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New()
		release := make(chan struct{})
		var reads atomic.Int32
		hang := func() (*tpm.DevIDFiles, error) {
			reads.Add(1)
			<-release
			return new(tpm.DevIDFiles), nil
		}
		turn := make(chan struct{}, 1)
		for i := range 2 {
			begun := time.Now()
			files, err := p.readDevID(t.Context(), turn, hang)
			if files != nil || !errors.Is(err, tpm.ErrNotReady) || status.Code(failed("", err, codes.Internal)) != codes.Unavailable {
				t.Errorf("the files %v, %v", files, err)
			}
			if took := time.Since(begun); took > readTimeout+2*time.Second || reads.Load() != 1 {
				t.Errorf("attempt %d took %v; %d reads", i, took, reads.Load())
			}
			if err := p.use(t.Context(), func() error { return nil }); err != nil {
				t.Errorf("the TPM is in use: %v", err)
			}
		}
		read := func() (*tpm.DevIDFiles, error) { return new(tpm.DevIDFiles), nil }
		if files, err := p.readDevID(t.Context(), make(chan struct{}, 1), read); files == nil || err != nil {
			t.Errorf("another configuration has %v, %v", files, err)
		}
		close(release)
		synctest.Wait()
		if files, err := p.readDevID(t.Context(), turn, read); files == nil || err != nil {
			t.Errorf("once they do not hang: %v, %v", files, err)
		}
	})
}

// The agent reads the files of a DevID before it takes the TPM: it reports what is wrong with them even while
// another attestation has the TPM.
func TestDevIDIsReadBeforeTheTPMIsTaken(t *testing.T) {
	path := filepath.Join(t.TempDir(), "devid.pem")
	p := serve(t, fmt.Sprintf("device = \"/dev/none\"\ndevid {\n  cert_path = %q\n  handle = \"0x81000010\"\n}", path))
	p.turn <- struct{}{}
	defer func() { <-p.turn }()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // for a test that fails
	defer cancel()
	err := p.attest(ctx, new(ours))
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), path) {
		t.Errorf("without a certificate: %v", err)
	}
}

// A machine proves its DevID to a server that asks for it. A DevID that cannot be used fails the
// attestation with the code that makes an operator look, before the agent sends anything: otherwise a
// machine could be admitted without the DevID that its operator has configured.
func TestDevID(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	ca := attestortest.NewCA(t, "devices")
	path := filepath.Join(t.TempDir(), "devid.pem")
	config := fmt.Sprintf("%s\ndevid {\n  cert_path = %q\n  handle = \"0x81000010\"\n}", device(tpm), path)
	p := serve(t, config)
	s := &asking{ask: attestor.Ask{DevID: true}}
	if err := p.attest(t.Context(), s); status.Code(err) != codes.FailedPrecondition ||
		!strings.Contains(err.Error(), path) || s.session != nil {
		t.Errorf("without a certificate: %v", err)
	}
	der := ca.IssueDevID(t, persistentDevID(t, tpm), attestortest.Certificate{})
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(path, cert, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.attest(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		if s.proven.DevID == nil || !bytes.Equal(s.proven.DevID.Chain[0], der) {
			t.Errorf("the server has %v", s.proven)
		}
	}
	if err := p.attest(t.Context(), new(ours)); err != nil {
		t.Errorf("a server that does not ask: %v", err)
	}
	if err := p.attest(t.Context(), new(incumbent)); err != nil {
		t.Errorf("a server that knows no DevIDs: %v", err)
	}
}

// persistentDevID makes a signing key persistent at 0x81000010, and returns its public half.
func persistentDevID(t *testing.T, tpm *swtpmtest.TPM) crypto.PublicKey {
	t.Helper()
	c, err := linuxudstpm.Open(tpm.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	made, err := tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	})}.Execute(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.EvictControl{
		Auth: owner, ObjectHandle: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, PersistentHandle: 0x81000010,
	}).Execute(c); err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(c); err != nil {
		t.Fatal(err)
	}
	area, err := made.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	pub, err := tpm2.Pub(*area)
	if err != nil {
		t.Fatal(err)
	}
	return pub
}
