package tpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// unixPrefix marks a device that is a socket.
	unixPrefix = "unix:"
	// maxSocketPath is what sockaddr_un has room for, less the final zero.
	maxSocketPath = 107
)

// ownDevices are the machine's own TPM: through the kernel's resource manager,
// which swaps keys and sessions as needed and flushes those of a process that
// ends, and without it.
var ownDevices = [...]string{"/dev/tpmrm0", "/dev/tpm0"}

// checkDevice checks the form of a device, not whether it is there.
func checkDevice(device string) error {
	path, socket := strings.CutPrefix(device, unixPrefix)
	switch {
	case device == "":
		return nil
	case !filepath.IsAbs(path):
		return fmt.Errorf("%q is not a TPM device: write a path such as /dev/tpmrm0, "+
			"unix:/path for the socket of a software TPM, or leave it out to use the machine's own TPM", device)
	case strings.ContainsRune(path, 0):
		return fmt.Errorf("%q is not a path", path)
	case socket && len(path) > maxSocketPath:
		return fmt.Errorf("the path of the socket %q is %d bytes long: at most %d are possible",
			path, len(path), maxSocketPath)
	}
	return nil
}

// openChannel opens a device of one of the forms that Config names.
func openChannel(ctx context.Context, device string) (channel, error) {
	if path, ok := strings.CutPrefix(device, unixPrefix); ok {
		return openSocket(ctx, path)
	}
	if device != "" {
		return openDevice(device)
	}
	return openFirst(ownDevices[:])
}

// openFirst opens the first device that exists. One that exists and cannot be
// opened is an error: the next one may be the same TPM without its manager.
func openFirst(paths []string) (channel, error) {
	for _, path := range paths {
		ch, err := openDevice(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return ch, err
	}
	return nil, &Error{
		Class: ErrNotReady,
		Err:   fmt.Errorf("no TPM: %s do not exist", strings.Join(paths, " and ")),
		Hint: "enable the TPM in the machine's firmware, load its driver (tpm_tis or tpm_crb), " +
			"or name it with device in the plugin's configuration",
	}
}

func openDevice(path string) (channel, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, explainOpen(path, err)
	}
	switch mode := info.Mode(); {
	case mode&fs.ModeSocket != 0:
		return nil, &Error{
			Class: ErrSetup, Err: fmt.Errorf("%s is a socket, not a device", path),
			Hint: fmt.Sprintf("write device = %q", unixPrefix+path),
		}
	case mode&fs.ModeCharDevice == 0:
		return nil, &Error{
			Class: ErrSetup, Err: fmt.Errorf("%s is not a character device (%s)", path, mode),
			Hint: "name the TPM's device, such as /dev/tpmrm0",
		}
	}
	// Not by os.OpenFile, which asks the kernel for an answer without waiting:
	// then a read that comes too early returns nothing.
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	for errors.Is(err, syscall.EINTR) {
		fd, err = syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, explainOpen(path, err)
	}
	return &deviceChannel{os.NewFile(uintptr(fd), path)}, nil
}

func openSocket(ctx context.Context, path string) (channel, error) {
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, explainOpen(path, err)
	}
	return &socketChannel{c, path}, nil
}
