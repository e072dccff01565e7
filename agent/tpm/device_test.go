package tpm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
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
	tpm.Restart()
	if second := attest(t, device); second.Hash != first.Hash {
		t.Errorf("EK %s, then %s", first.Hash, second.Hash)
	}
}

// A software TPM's control socket is no TPM; who took it for one is told at once, and which
// socket is meant, instead of waiting.
func TestControlSocket(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true, Control: true})
	_, err := newTPM(t, Config{Device: "unix:" + tpm.Control}).Begin(t.Context())
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "is the control socket of a software TPM") ||
		!strings.HasSuffix(err.Error(), fmt.Sprintf("probably device = %q", tpm.Device)) {
		t.Errorf("error %v", err)
	}
	attest(t, newTPM(t, Config{Device: tpm.Device})) // as it says
}

// A socket that never answers may be one that another program is connected to. Which one is
// meant is said only if there is no choice.
func TestSilentSocket(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	err := explain("read", explainSocket(path, errTimeout))
	if !errors.Is(err, ErrNotReady) || !errors.Is(err, errTimeout) || strings.Contains(err.Error(), "probably") {
		t.Errorf("error %v", err)
	}
	for i, name := range []string{"a", "b"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		err = explain("read", explainSocket(path, errTimeout))
		if named := strings.Contains(err.Error(), "unix:"+filepath.Join(dir, "a")); named != (i == 0) {
			t.Errorf("error %v", err)
		}
	}
}

// A device that another program has open is shared by turns: while an agent waits for the
// server, which may never answer, it has it not open.
func TestDeviceWithoutAManager(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256} {
		device := newTPM(t, Config{Device: newTerminal(t, tpm.Device), EK: ek})
		open := new(exclusive)
		open.guard(device)
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		other := newTPM(t, device.config)
		open.guard(other)
		attest(t, other)
		if _, err := finish(a); err != nil {
			t.Error(err)
		}
		wantNothingLoaded(t, tpm.Device)
		held, err := open.open(t.Context(), device.config.Device)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := device.Begin(t.Context()); !errors.Is(err, ErrNotReady) ||
			!strings.Contains(err.Error(), "another program holds it") {
			t.Errorf("error %v", err)
		}
		held.Close()
	}
}

// The kernel's resource manager forgets what a connection has loaded when it ends, and loads
// a saved context into any other.
func TestDeviceWithAManager(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256} {
		device := newTPM(t, Config{Device: newTerminal(t, tpm.Device), EK: ek})
		inner := device.open
		device.open = func(ctx context.Context, path string) (channel, error) {
			ch, err := inner(ctx, path)
			if err != nil {
				return nil, err
			}
			return &managed{ch}, nil
		}
		attest(t, device)
		attest(t, device)
	}
}

// exclusive is a device that one program can open at a time, as /dev/tpm0.
type exclusive struct {
	inner  func(context.Context, string) (channel, error)
	opened atomic.Bool
}

func (e *exclusive) guard(t *TPM) { e.inner, t.open = openChannel, e.open }

func (e *exclusive) open(ctx context.Context, device string) (channel, error) {
	if !e.opened.CompareAndSwap(false, true) {
		return nil, explainOpen(device, syscall.EBUSY)
	}
	ch, err := e.inner(ctx, device)
	if err != nil {
		return nil, err
	}
	return &exclusiveChannel{ch, e}, nil
}

type exclusiveChannel struct {
	channel
	device *exclusive
}

func (c *exclusiveChannel) Close() error {
	c.device.opened.Store(false)
	return c.channel.Close()
}

// managed flushes all that is loaded when it is closed, as /dev/tpmrm0.
type managed struct{ channel }

func (m *managed) Close() error {
	c := newConn(context.Background(), m.channel)
	for _, first := range []tpm2.TPMHandle{firstTransient, tpm2.TPMHandle(firstLoadedSession)} {
		handles, err := listHandles(c, first, first+0xFFFFFF)
		if err != nil {
			return err
		}
		for _, handle := range handles {
			flush(c, handle)
		}
	}
	return m.channel.Close()
}

// newTerminal returns a character device behind which a TPM answers: a pseudo-terminal
// whose other side passes commands on to the TPM.
func newTerminal(t *testing.T, device string) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/dev/pts/%d", number)
	// It stays open: a terminal that nobody has open forgets that it is raw.
	slave, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	raw := &unix.Termios{Cflag: unix.CS8 | unix.CREAD}
	raw.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, raw); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pass(master, device)
	}()
	t.Cleanup(func() {
		slave.Close() // the other side then reads the end
		<-done
		master.Close()
	})
	return path
}

// pass answers the commands on a terminal, each through a connection of its own, until the
// terminal is closed.
func pass(master io.ReadWriter, device string) {
	command := make([]byte, maxResponse)
	for {
		n, err := io.ReadAtLeast(master, command, headerSize)
		if err != nil {
			return
		}
		if n, err = readUpTo(master, command, n, int(binary.BigEndian.Uint32(command[2:]))); err != nil {
			return
		}
		ch, err := openChannel(context.Background(), device)
		if err != nil {
			return
		}
		rsp, err := ch.roundTrip(context.Background(), command[:n])
		ch.Close()
		if err != nil {
			return
		}
		if _, err := master.Write(rsp); err != nil {
			return
		}
	}
}
