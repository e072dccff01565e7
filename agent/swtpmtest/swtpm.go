// Package swtpmtest starts software TPMs (swtpm) for tests. Each is a process with a Unix
// socket, an endorsement key, EK certificates, and the CA that issued them. Everything is in
// temporary folders, which are removed when the test ends.
//
// The package runs on Linux and needs the programs of the Debian packages swtpm and
// swtpm-tools. If they are missing, the test fails and says what to install.
package swtpmtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Options describe a TPM. The zero value is a TPM with persistent EKs of RSA 2048 (handle
// 0x81010001) and P-384 (0x81010016), a certificate for each (NV indices 0x01C00002 and
// 0x01C00016), and its own CA.
type Options struct {
	// CA issues the EK certificates. If it is nil, Start makes one.
	CA *CA
	// RSA3072 asks for an RSA EK of 3072 bits instead of 2048 (handle 0x8101001C, NV
	// index 0x01C0001C).
	RSA3072 bool
	// Blank asks for a TPM without persistent keys and certificates, and without a CA.
	Blank bool
	// PCRBanks are the banks in which the TPM keeps PCRs, separated by commas. The default is
	// "sha256". A blank TPM has all that swtpm knows.
	PCRBanks string
	// Control adds a control socket, which does not take a TPM's commands.
	Control bool
}

// A TPM is a running swtpm. It serves one connection after another. Its methods are not
// safe for concurrent use.
type TPM struct {
	// Socket is the path of the Unix socket.
	Socket string
	// Device is "unix:" and Socket, the value of the agent's key device.
	Device string
	// Control is the path of the control socket, or empty.
	Control string
	// StateDir is the folder with the TPM's persistent state.
	StateDir string
	// CA issued the EK certificates. It is nil if the TPM is blank.
	CA *CA

	tb   testing.TB
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

// Start runs a TPM until the test ends, in the state in which a vendor sells it. No two TPMs of tests that run at
// the same time in a process have the same keys; a test that has ended may have had them.
func Start(tb testing.TB, o Options) *TPM {
	tb.Helper()
	dir := tempDir(tb)
	t := &TPM{
		Socket:   filepath.Join(dir, "tpm.sock"),
		StateDir: filepath.Join(dir, "state"),
		CA:       o.CA,
		tb:       tb,
	}
	t.Device = "unix:" + t.Socket
	if o.Control {
		t.Control = filepath.Join(dir, "control.sock")
	}
	if err := os.Mkdir(t.StateDir, 0o700); err != nil {
		tb.Fatal(err)
	}
	if !o.Blank {
		if t.CA == nil {
			t.CA = NewCA(tb)
		}
		m := model{o.RSA3072, o.PCRBanks}
		state := vendors.takeTPM(t.CA.vendor, m)
		if state != nil {
			state.write(tb, t.StateDir)
		} else {
			t.manufacture(dir, o)
			state = readFolder(tb, t.StateDir)
		}
		tb.Cleanup(func() { vendors.giveBackTPM(t.CA.vendor, m, state) })
	}
	tb.Cleanup(t.Stop)
	t.Restart()
	return t
}

// manufacture makes the EKs persistent and writes their certificates to NV memory.
func (t *TPM) manufacture(dir string, o Options) {
	t.tb.Helper()
	args := []string{
		"--tpm2", "--tpmstate", "dir://" + t.StateDir, "--config", t.CA.setupConfig,
		"--create-ek-cert", "--pcr-banks", "sha256",
	}
	if o.PCRBanks != "" {
		args[len(args)-1] = o.PCRBanks
	}
	if o.RSA3072 {
		args = append(args, "--rsa-keysize", "3072")
	}
	cmd := exec.Command(program(t.tb, "swtpm_setup"), args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.tb.Fatalf("swtpm_setup: %v\n%s", err, out)
	}
}

// Restart switches the TPM off, if it runs, and on again, like a reboot of the machine:
// loaded keys and sessions are lost, persistent keys and NV memory stay.
func (t *TPM) Restart() {
	t.tb.Helper()
	t.Stop()
	const firstExtraFile = 3
	files := []*os.File{t.listen(t.Socket)}
	args := []string{
		"socket", "--tpm2", "--server", "type=unixio,fd=" + strconv.Itoa(firstExtraFile),
		"--tpmstate", "dir=" + t.StateDir, "--flags", "not-need-init,startup-clear",
	}
	if t.Control != "" {
		args = append(args, "--ctrl", "type=unixio,fd="+strconv.Itoa(firstExtraFile+1))
		files = append(files, t.listen(t.Control))
	}
	t.log.Reset()
	t.cmd = exec.Command(program(t.tb, "swtpm"), args...)
	t.cmd.ExtraFiles = files
	t.cmd.Stdout, t.cmd.Stderr = &t.log, &t.log
	// A test binary that is killed runs no cleanup, so the kernel ends swtpm with it.
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := t.cmd.Start(); err != nil {
		t.tb.Fatal(err)
	}
	for _, f := range files {
		f.Close()
	}
	t.done = make(chan struct{})
	go func(cmd *exec.Cmd, done chan struct{}) {
		defer close(done)
		_ = cmd.Wait() // a signal has ended it, or the log says why it ended
	}(t.cmd, t.done)
}

// listen returns a listening socket at path for swtpm to inherit. A client that connects while swtpm starts then
// waits in the backlog instead of being refused.
func (t *TPM) listen(path string) *os.File {
	t.tb.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.tb.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.tb.Fatal(err)
	}
	return f
}

// Stop switches the TPM off and waits until it is off. If the TPM is off, Stop does nothing.
func (t *TPM) Stop() {
	if t.cmd == nil {
		return
	}
	_ = t.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-t.done:
	case <-time.After(time.Minute):
		_ = t.cmd.Process.Kill()
		<-t.done
	}
	t.cmd = nil
	if t.tb.Failed() && strings.TrimSpace(t.log.String()) != "" {
		t.tb.Logf("swtpm: %s", t.log.String())
	}
	for _, path := range []string{t.Socket, t.Control} {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			t.tb.Error(err)
		}
	}
}

// tempDir returns a temporary folder whose path is short: a socket's path has at most 107
// bytes, and the folders of testing.TB contain the test's name.
func tempDir(tb testing.TB) string {
	tb.Helper()
	dir, err := os.MkdirTemp("", "swtpm")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return dir
}

func program(tb testing.TB, name string) string {
	tb.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		tb.Fatal(fmt.Errorf("this test needs a software TPM: %w; "+
			"install it with: apt-get install swtpm swtpm-tools", err))
	}
	return path
}
