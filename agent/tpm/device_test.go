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

// A device whose name has no known form is refused when the plugin is configured: a typing
// error must not look like a missing TPM.
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

// A wrong configuration is refused with all its mistakes, so that an operator mends it
// once; and no message shows a password.
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
			t.Errorf("%q is accepted", ek)
		}
	}
}

// If device names something else than a TPM, the error says so at once, and says what to
// write instead.
func TestDeviceIsNotATPM(t *testing.T) {
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
		{socket, ErrSetup, "set device to \"unix:" + socket},
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

// The machine's own TPM is the first device that exists. If the agent cannot open that
// device, it does not try the next: that is the same TPM without the resource manager,
// and the agent would hold it alone.
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

// After the TPM has been switched off and on, the machine attests with the same EK.
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
		t.Errorf("EK %x, then %x", first.Hash, second.Hash)
	}
}

// If device names the control socket of a software TPM, the error says so at once, and
// names the right socket. The agent must not wait for a response until its timeout.
func TestControlSocket(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true, Control: true})
	_, err := newTPM(t, Config{Device: "unix:" + tpm.Control}).Begin(t.Context())
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "is the control socket of a software TPM") ||
		!strings.HasSuffix(err.Error(), fmt.Sprintf("probably device = %q", tpm.Device)) {
		t.Errorf("error %v", err)
	}
	attest(t, newTPM(t, Config{Device: tpm.Device})) // with the device of the hint
}

// If a socket never answers, the error says that another program may be connected. It names
// another socket only if that is the only one in the folder: a wrong hint costs an operator
// time.
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

// While the agent waits for the server, which may never answer, it does not hold the
// device: other programs can open it. If another program holds the device, the error says
// so.
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

// The kernel's resource manager flushes everything that a connection has loaded when the
// connection closes. So for the second half of an attestation, the agent must load its keys
// again.
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

// exclusive is a device that only one program at a time can open, like /dev/tpm0.
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

// managed flushes everything that is loaded when it is closed, like /dev/tpmrm0.
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

// newTerminal returns the path of a character device that works like a TPM: a
// pseudo-terminal whose other side forwards the commands to the TPM at device.
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
	// It stays open: a terminal that nobody has open is no longer raw.
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
		slave.Close() // pass then reads the end
		<-done
		master.Close()
	})
	return path
}

// pass forwards the commands on a terminal to the TPM at device, each through its own
// connection, until the terminal is closed.
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
