// Package swtpmtest gives tests a software TPM 2.0 (swtpm) of their own: a
// process on a Unix socket, with an endorsement key, EK certificates and the CA
// that issued them, all in one temporary folder that goes with the test.
//
// It runs on Linux and needs the programs of the packages swtpm and
// swtpm-tools; without them a test fails and says what to install.
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

// Options say what TPM is wanted. The zero value is a TPM with persistent EKs
// RSA 2048 (handle 0x81010001) and P-384 (0x81010016), a certificate for each
// (NV indices 0x01C00002 and 0x01C00016) and a CA of its own.
type Options struct {
	// CA issues the EK certificates; nil makes one for this TPM alone.
	CA *CA
	// RSA3072 makes the RSA EK one of 3072 bits (handle 0x8101001C, NV index
	// 0x01C0001C).
	RSA3072 bool
	// Blank skips manufacturing: no persistent key, no certificate and no CA.
	Blank bool
	// Control adds a control socket, which is no TPM.
	Control bool
}

// A TPM is a running swtpm. Its methods are for one goroutine; the TPM itself
// serves one connection after another.
type TPM struct {
	// Socket is the path of the Unix socket.
	Socket string
	// Device is "unix:" and Socket, as the agent's configuration has it.
	Device string
	// Control is the path of the control socket, or empty.
	Control string
	// StateDir holds the TPM's persistent state.
	StateDir string
	// CA issued the EK certificates; nil for a blank TPM.
	CA *CA

	tb   testing.TB
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

// Start makes a new TPM, one with seeds and thus keys like no other, and runs
// it until the test ends.
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
		t.manufacture(dir, o)
	}
	tb.Cleanup(t.Stop)
	t.Restart()
	return t
}

// manufacture creates the EKs and writes their certificates into NV memory.
func (t *TPM) manufacture(dir string, o Options) {
	t.tb.Helper()
	args := []string{
		"--tpm2", "--tpmstate", "dir://" + t.StateDir, "--config", t.CA.setupConfig,
		"--create-ek-cert", "--pcr-banks", "sha256",
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

// Restart switches the TPM off, if it runs, and on again, as a reboot of the
// machine does: what was loaded is gone, what is persistent is there.
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
	// A test binary that is killed runs no cleanup; swtpm then goes with it.
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
		_ = cmd.Wait() // a signal ended it, or the log says why it ended
	}(t.cmd, t.done)
}

// listen returns a listening socket at path. swtpm is handed it, so whoever connects from
// here on waits in its backlog instead of being refused while swtpm starts.
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

// Stop switches the TPM off and waits until it is off. A TPM that is off may be
// stopped again.
func (t *TPM) Stop() {
	if t.cmd == nil {
		return
	}
	_ = t.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-t.done:
	case <-time.After(10 * time.Second):
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

// tempDir returns a folder whose path is short: a socket's path has room for
// 107 bytes, and testing.TB's folders carry the test's name.
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
