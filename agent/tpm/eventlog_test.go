package tpm

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The log is that of the configured TPM. The machine's log must not be sent for a software TPM: it
// would never replay, and it holds serial numbers.
func TestEventLogPath(t *testing.T) {
	for _, tt := range []struct{ device, path, want string }{
		{"", "", "/sys/kernel/security/tpm0/binary_bios_measurements"},
		{"/dev/tpmrm0", "", "/sys/kernel/security/tpm0/binary_bios_measurements"},
		{"/dev/tpm0", "", "/sys/kernel/security/tpm0/binary_bios_measurements"},
		{"/dev/tpmrm1", "", "/sys/kernel/security/tpm1/binary_bios_measurements"},
		{"/dev/tpm12", "", "/sys/kernel/security/tpm12/binary_bios_measurements"},
		{"/dev/tpm0/../../tmp", "", ""},
		{"/dev/my-tpm", "", ""},
		{"unix:/run/swtpm.sock", "", ""},
		{"unix:/run/swtpm.sock", "/srv/log", "/srv/log"},
		{"", "/srv/log", "/srv/log"},
	} {
		if got := (Config{Device: tt.device, EventLogPath: tt.path}).eventLogPath(); got != tt.want {
			t.Errorf("%+v: %q", tt, got)
		}
	}
	for _, path := range []string{"log", "./log", "/log\x00"} {
		if p := (Config{EventLogPath: path}).Problems(); len(p) != 1 || p[0].Key != "event_log_path" {
			t.Errorf("%q: %v", path, p)
		}
	}
}

// A log is read whole or not at all, and whatever is at its path cannot block the agent or fill its
// memory. An error says what to do.
func TestEventLog(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, bytes.Repeat([]byte("l"), size), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	huge := write("huge", 0)
	if err := os.Truncate(huge, 1<<40); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		path string
		size int
		want string // the error
	}{
		"a log":       {write("log", 1000), 1000, ""},
		"the largest": {write("largest", attestor.MaxEventLogSize), attestor.MaxEventLogSize, ""},
		"too large":   {write("large", attestor.MaxEventLogSize+1), 0, "longer than 262144 bytes"},
		"a terabyte":  {huge, 0, "longer than 262144 bytes"},
		"empty":       {write("empty", 0), 0, "is empty"},
		"missing":     {filepath.Join(dir, "missing"), 0, "or set event_log_path"},
		"a folder":    {dir, 0, "not a regular file"},
		"a fifo":      {fifo, 0, "not a regular file"},
		"a device":    {"/dev/zero", 0, "not a regular file"},
		"not known":   {"", 0, "set event_log_path"},
	} {
		t.Run(name, func(t *testing.T) {
			log, err := newTPM(t, Config{Device: "unix:/run/swtpm.sock", EventLogPath: tt.path}).EventLog()
			if len(log) != tt.size || (err == nil) != (tt.want == "") ||
				err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d bytes, %v, want %d and %q", len(log), err, tt.size, tt.want)
			}
		})
	}
	err := explainEventLog("/log", &os.PathError{Op: "open", Path: "/log", Err: syscall.EACCES})
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), `"z /log 0440 root tss"`) {
		t.Errorf("a log that only root may read: %v", err)
	}
}

// The agent offers the log of a TPM of which it knows the path, and sends it as it is.
func TestEventLogIsSent(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	path := filepath.Join(t.TempDir(), "log")
	want := bytes.Repeat([]byte{0, 1, 0xFF}, 20_000)
	if err := os.WriteFile(path, want, 0o600); err != nil {
		t.Fatal(err)
	}
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, EventLogPath: path})
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a.Claim.Can, []string{attestor.CanPCRs, attestor.CanEventLog}) {
		t.Errorf("it offers %v", a.Claim.Can)
	}
	_, proven, err := answer(a, attestor.Ask{Quote: eightPCRs(), EventLog: true})
	if err != nil || !bytes.Equal(proven.EventLog, want) {
		t.Errorf("%v, %v", proven, err)
	}
	device = newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	if a, err = device.Begin(t.Context()); err != nil || !slices.Equal(a.Claim.Can, []string{attestor.CanPCRs}) {
		t.Errorf("without a path it offers %v, %v", a.Claim.Can, err)
	}
}
