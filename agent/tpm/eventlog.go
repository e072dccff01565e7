package tpm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"syscall"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// kernelDevice matches the devices that the kernel makes for TPMs.
var kernelDevice = regexp.MustCompile(`^/dev/tpm(?:rm)?([0-9]{1,5})$`)

// eventLogPath returns where the event log of the configured TPM is, or an empty path if that
// is not known: the kernel has no log of a software TPM, and its log of another TPM would say
// nothing about this one.
func (c Config) eventLogPath() string {
	if c.EventLogPath != "" {
		return c.EventLogPath
	}
	number := "0" // of the machine's own TPM
	if c.Device != "" {
		m := kernelDevice.FindStringSubmatch(c.Device)
		if m == nil {
			return ""
		}
		number = m[1]
	}
	return "/sys/kernel/security/tpm" + number + "/binary_bios_measurements"
}

// EventLog reads the event log that the firmware has written about this boot. It does not use the TPM, and is safe
// for concurrent use. It is an error if there is no log, or if the log is empty or longer than a server reads.
// EventLog hangs if the file is on a file system that hangs.
func (t *TPM) EventLog() ([]byte, error) {
	path := t.config.eventLogPath()
	if path == "" {
		return nil, &Error{
			Class: ErrSetup, Err: errors.New("no event log is known for this device"),
			Key: "event_log_path", Hint: "set event_log_path if there is one",
		}
	}
	// The size of a file in securityfs is not known before it is read.
	log, err := readRegular(path, attestor.MaxEventLogSize+1)
	if err != nil {
		return nil, explainEventLog(path, err)
	}
	switch {
	case len(log) == 0:
		return nil, fmt.Errorf("the event log %s is empty: the firmware has not handed one over", path)
	case len(log) > attestor.MaxEventLogSize:
		return nil, fmt.Errorf("the event log %s is longer than %d bytes, which no server reads",
			path, attestor.MaxEventLogSize)
	}
	return log, nil
}

// readRegular reads at most limit bytes of a regular file.
func readRegular(path string, limit int64) ([]byte, error) {
	// Opening anything but a regular file may block or have a side effect.
	if info, err := os.Stat(path); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // G304: a configured path
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// explainEventLog says why a log could not be read.
func explainEventLog(path string, err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		err = number // without the path, which this function names itself
	}
	err = fmt.Errorf("read the event log %s: %w", path, err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &Error{
			Class: ErrSetup, Err: err,
			Hint: "only root may read it: run the agent as root, or allow a group of the agent's user to read it, " +
				"by a line such as \"z " + path + " 0440 root tss\" in /etc/tmpfiles.d/",
		}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{
			Class: ErrSetup, Err: err, Key: "event_log_path",
			Hint: "check that the machine has booted by UEFI and that securityfs is mounted, " +
				"in the agent's container too, or set event_log_path",
		}
	}
	return err
}
