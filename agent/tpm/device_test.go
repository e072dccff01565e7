package tpm

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
)

// A device of no known form is refused before it is tried: a typing error should
// not read like a missing TPM.
func TestDeviceForms(t *testing.T) {
	for _, device := range []string{"", "/dev/tpmrm0", "unix:/run/swtpm.sock", "unix:///run/swtpm.sock"} {
		if _, err := New(Config{Device: device}); err != nil {
			t.Errorf("%q: %v", device, err)
		}
	}
	for _, device := range []string{
		"tpmrm0", "unix:", "unix:swtpm.sock", "tcp:localhost:2321", "swtpm", "/dev/tpm\x00",
		"unix:/" + strings.Repeat("x", maxSocketPath),
	} {
		if _, err := New(Config{Device: device}); err == nil || !strings.Contains(err.Error(), "device: ") {
			t.Errorf("%q: %v", device, err)
		}
	}
}

// A configuration that no TPM can follow is refused with all that is wrong.
func TestConfigProblems(t *testing.T) {
	long := strings.Repeat("x", maxAuthSize+1)
	_, err := New(Config{Device: "tpm0", EK: "rsa1024", EndorsementPassword: long, OwnerPassword: long})
	for _, want := range []string{"device: ", "ek: ", "endorsement_password: ", "owner_password: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	if strings.Contains(err.Error(), long) {
		t.Error("the error shows a password")
	}
	for _, ek := range []string{"p521", "rsa4096", "RSA2048"} {
		if _, err := ParseEK(ek); err == nil {
			t.Errorf("%q is taken", ek)
		}
	}
}

// What is not a TPM is said to be none, with what to write; and nothing waits
// for it.
func TestDevicesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		device string
		class  error
		want   string
	}{
		{file, ErrSetup, "not a character device"},
		{dir, ErrSetup, "not a character device"},
		{socket, ErrSetup, "device = \"unix:" + socket},
		{filepath.Join(dir, "none"), ErrNotReady, "no such file"},
		{"unix:" + filepath.Join(dir, "none"), ErrNotReady, "no such file"},
		{"unix:" + file, ErrNotReady, "nothing listens"},
	} {
		_, err := newTPM(t, Config{Device: tt.device}).Begin(t.Context())
		if !errors.Is(err, tt.class) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.device, err, tt.want)
		}
	}
	if _, err := newTPM(t, Config{Device: "/dev/null"}).Begin(t.Context()); err == nil {
		t.Error("/dev/null is a TPM")
	}
}

// The machine's own TPM is the first device that exists; where it cannot be
// opened the second, which may be the same TPM, is not tried instead.
func TestOwnTPM(t *testing.T) {
	dir := t.TempDir()
	none, file := filepath.Join(dir, "none"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openFirst([]string{none, none}); !errors.Is(err, ErrNotReady) ||
		!strings.Contains(err.Error(), "no TPM") {
		t.Errorf("none of two: %v", err)
	}
	if _, err := openFirst([]string{file, "/dev/null"}); !errors.Is(err, ErrSetup) {
		t.Errorf("the first is no device: %v", err)
	}
	ch, err := openFirst([]string{none, "/dev/null"})
	if err != nil {
		t.Fatal(err)
	}
	ch.Close()
	_, err = openChannel(t.Context(), "")
	if _, statErr := os.Stat(ownDevices[0]); errors.Is(statErr, fs.ErrNotExist) && err == nil {
		t.Error("a machine without a TPM has one")
	}
}

// A TPM that is switched off and on is the same TPM with nothing in it.
func TestRestartedTPM(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	device := newTPM(t, Config{Device: tpm.Device})
	first := attest(t, device)
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tpm.Stop()
	if _, err := finish(a); err == nil {
		t.Error("a TPM that is off answers")
	}
	a.Close()
	tpm.Restart()
	if second := attest(t, device); second.Hash != first.Hash {
		t.Errorf("EK %s, then %s", first.Hash, second.Hash)
	}
}
