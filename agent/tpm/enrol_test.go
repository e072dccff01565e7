package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// newDevIDFiles makes a DevID's key in files.
func newDevIDFiles(t *testing.T, tpm *TPM, keyType attestor.KeyType, password string) DevIDConfig {
	t.Helper()
	private, public, err := tpm.CreateDevID(t.Context(), keyType, password)
	if err != nil {
		t.Fatal(err)
	}
	return writeDevIDFiles(t, private, public, password)
}

func writeDevIDFiles(t *testing.T, private, public []byte, password string) DevIDConfig {
	t.Helper()
	dir := t.TempDir()
	c := DevIDConfig{
		PrivPath: filepath.Join(dir, "devid.priv"), PubPath: filepath.Join(dir, "devid.pub"), Password: password,
	}
	for path, content := range map[string][]byte{c.PrivPath: private, c.PubPath: public} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// answering is an enrolment as an attestor.Activator.
type answering struct {
	ctx context.Context
	*Attestation
}

func (a answering) Activate(task *attestor.Activation) (*attestor.Activated, error) {
	return a.Attestation.Activate(a.ctx, task)
}

// A key of each type is made, is proved to be in the TPM after another command and a restart of the
// machine have come between, and leaves nothing behind.
func TestEnrolment(t *testing.T) {
	t.Parallel()
	sw := swtpmtest.Start(t, swtpmtest.Options{})
	fresh := func() *TPM { return newTPM(t, Config{Device: sw.Device}) }
	for _, keyType := range []attestor.KeyType{attestor.P256, attestor.P384, attestor.RSA2048, attestor.RSA3072} {
		got := enrolled(t, fresh, newDevIDFiles(t, fresh(), keyType, ""), sw.Restart)
		if made, err := attestor.KeyTypeOf(got); made != keyType {
			t.Errorf("%s: a key of the type %s, %v", keyType, made, err)
		}
		wantNothingLoaded(t, sw.Device)
	}
}

// enrolled enrols a key, and returns it. Something comes between the request and the answer.
func enrolled(t *testing.T, fresh func() *TPM, config DevIDConfig, between func()) crypto.PublicKey {
	t.Helper()
	a, err := fresh().BeginEnrolment(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := attestor.NewProver(a.Claim, nil).Payload()
	if err != nil {
		t.Fatal(err)
	}
	s, err := (&attestor.Verifier{Enrolment: true}).Begin(payload)
	if err != nil {
		t.Fatal(err)
	}
	challenge, err := s.Challenge(attestor.Ask{DevID: true})
	if err != nil {
		t.Fatal(err)
	}
	between()
	again, err := fresh().BeginEnrolment(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := attestor.NewProver(again.Claim, answering{t.Context(), again}).Answer(challenge)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.Finish(answer)
	if err != nil {
		t.Fatal(err)
	}
	der, err := again.CertificateRequest(t.Context(), &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}})
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil || !sameKey(csr.PublicKey, got.DevID.Key) {
		t.Errorf("the certificate request: %v", err)
	}
	return got.DevID.Key
}

// A key becomes persistent only if that is asked for, once, and never in the place of another.
func TestMakePersistent(t *testing.T) {
	t.Parallel()
	sw := swtpmtest.Start(t, swtpmtest.Options{})
	tpm := newTPM(t, Config{Device: sw.Device})
	begin := func() *Attestation {
		a, err := tpm.BeginEnrolment(t.Context(), newDevIDFiles(t, tpm, attestor.P256, ""))
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a := begin()
	handle, err := ParseHandle("0x81000010")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.MakePersistent(t.Context(), handle); err != nil {
			t.Fatal(err)
		}
	}
	if err := begin().MakePersistent(t.Context(), handle); !errors.Is(err, ErrSetup) {
		t.Errorf("another key's handle: %v", err)
	}
	if err := a.MakePersistent(t.Context(), 0x81800000); !errors.Is(err, ErrSetup) {
		t.Errorf("the platform's handle: %v", err)
	}
	wantNothingLoaded(t, sw.Device)
}

// Files of another TPM, and other files, are told for what they are; no key is made for them.
func TestEnrolmentRefuses(t *testing.T) {
	t.Parallel()
	sw, other := swtpmtest.Start(t, swtpmtest.Options{}), swtpmtest.Start(t, swtpmtest.Options{})
	tpm := newTPM(t, Config{Device: sw.Device})
	foreign := newDevIDFiles(t, newTPM(t, Config{Device: other.Device}), attestor.P256, "")
	a, err := tpm.BeginEnrolment(t.Context(), foreign)
	if err != nil {
		t.Fatal(err) // whose key it is shows when it is loaded
	}
	_, err = a.CertificateRequest(t.Context(), &x509.CertificateRequest{})
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "made in another TPM") {
		t.Errorf("another TPM's key: %v", err)
	}
	if err := os.WriteFile(foreign.PubPath, bytes.Repeat([]byte{1}, 40), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tpm.BeginEnrolment(t.Context(), foreign); !errors.Is(err, ErrSetup) {
		t.Errorf("no public area: %v", err)
	}
	if _, _, err := tpm.CreateDevID(t.Context(), attestor.P521, ""); err == nil {
		t.Error("a key of the type P-521 was made")
	}
	if _, _, err := tpm.CreateDevID(t.Context(), attestor.P256, strings.Repeat("x", 65)); err == nil {
		t.Error("a password of 65 bytes was taken")
	}
	locked := newDevIDFiles(t, tpm, attestor.P256, "secret")
	locked.Password = "wrong"
	if a, err = tpm.BeginEnrolment(t.Context(), locked); err != nil {
		t.Fatal(err)
	}
	if _, err := a.CertificateRequest(t.Context(), &x509.CertificateRequest{}); !errors.Is(err, ErrSetup) {
		t.Errorf("a wrong password: %v", err)
	}
	wantNothingLoaded(t, sw.Device)
}

// The words for a key's type and a handle are the same everywhere.
func TestEnrolmentWords(t *testing.T) {
	t.Parallel()
	if _, err := ParseDevIDKey("p521"); err == nil || !strings.Contains(err.Error(), "p256, p384, rsa2048") {
		t.Errorf("p521: %v", err)
	}
	if _, err := ParseHandle("81000010"); err == nil {
		t.Error("a handle without 0x was taken")
	}
}
