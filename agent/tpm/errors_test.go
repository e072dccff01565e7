package tpm

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// The agent's log says what is wrong and what to do about it, and the class of an error
// tells SPIRE whether a later attempt may succeed.
func TestErrorsAreExplained(t *testing.T) {
	for name, tt := range map[string]struct {
		err   error
		class error
		want  string
	}{
		"lockout":        {explain("x", tpm2.TPMRCLockout), ErrNotReady, "--clear-lockout"},
		"keys":           {explain("x", tpm2.TPMRCObjectMemory), ErrNotReady, "/dev/tpmrm0"},
		"key handles":    {explain("x", tpm2.TPMRCObjectHandles), ErrNotReady, "/dev/tpmrm0"},
		"sessions":       {explain("x", tpm2.TPMRCSessionMemory), ErrNotReady, "/dev/tpmrm0"},
		"not started":    {explain("x", tpm2.TPMRCInitialize), ErrNotReady, "startup-clear"},
		"broken":         {explain("x", tpm2.TPMRCFailure), ErrSetup, "self-test"},
		"no answer":      {explain("x", errTimeout), ErrNotReady, "is running"},
		"no such device": {explainOpen("/dev/tpm9", fs.ErrNotExist), ErrNotReady, "driver"},
		"busy":           {explainOpen("/dev/tpm0", syscall.EBUSY), ErrNotReady, "abrmd"},
		"container":      {explainOpen("/dev/tpm0", syscall.EPERM), ErrSetup, "--device /dev/tpm0"},
		"no listener":    {explainOpen("/run/s", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}), ErrNotReady, "start the software TPM"},
		"no folder":      {explainOpen("/nowhere/tpm", syscall.EACCES), ErrSetup, "search its folder"},
	} {
		t.Run(name, func(t *testing.T) {
			if !errors.Is(tt.err, tt.class) || !strings.Contains(tt.err.Error(), tt.want) {
				t.Errorf("error %v, want %q", tt.err, tt.want)
			}
		})
	}
	if err := explain("read it", tpm2.TPMRCCommandCode); errors.Is(err, ErrSetup) ||
		errors.Is(err, ErrNotReady) || !errors.Is(err, tpm2.TPMRCCommandCode) {
		t.Errorf("an error without a remedy: %v", err)
	}
	if err := explainOpen("/dev/tpm0", syscall.EIO); errors.Is(err, ErrSetup) || !errors.Is(err, syscall.EIO) {
		t.Errorf("an error without a remedy: %v", err)
	}
	if explain("read it", nil) != nil {
		t.Error("nil became an error")
	}
}

// If the agent has no permission to open the TPM, the error names the group that has.
func TestPermissionNamesTheGroup(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tpm")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	own := groupOf(t, path)
	tests := []struct {
		gid  int
		mode fs.FileMode
		want string
	}{
		{own, 0o600, "udev rule"},
		{own, 0o660, "belongs to the group"},
	}
	if os.Geteuid() == 0 { // only root gives a file to any group
		tests = append(tests, []struct {
			gid  int
			mode fs.FileMode
			want string
		}{
			{54321, 0o660, "usermod -aG 54321 <user>"},
			{0, 0o660, "udev rule"}, // nobody should join root's group
		}...)
	}
	for _, tt := range tests {
		if err := os.Chown(path, -1, tt.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		err := explainOpen(path, syscall.EACCES)
		if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("group %d, mode %o: %v, want %q", tt.gid, tt.mode, err, tt.want)
		}
	}
}

func groupOf(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(info.Sys().(*syscall.Stat_t).Gid)
}
