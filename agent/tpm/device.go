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
	// unixPrefix begins the name of a device that is a socket.
	unixPrefix = "unix:"
	// maxSocketPath is the length of the longest path of a socket, in bytes: the
	// size of sun_path in sockaddr_un, without the final zero.
	maxSocketPath = 107
)

// ownDevices are the devices of the machine's own TPM. The first goes through the
// kernel's resource manager. The manager swaps keys and sessions as needed, and when a process
// ends, it flushes the keys and sessions of that process. The second is the TPM without the
// manager.
var ownDevices = [...]string{"/dev/tpmrm0", "/dev/tpm0"}

// checkDevice checks the form of a device's name, not whether the device exists.
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

// openChannel opens a device whose name has one of the forms of Config.Device.
func openChannel(ctx context.Context, device string) (channel, error) {
	if path, ok := strings.CutPrefix(device, unixPrefix); ok {
		return openSocket(ctx, path)
	}
	if device != "" {
		return openDevice(device)
	}
	return openFirst(ownDevices[:])
}

// openFirst opens the first device that exists. If that device cannot be opened, the
// next is not tried: it may be the same TPM without the resource manager.
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
			"or name another one: by device in the plugin's configuration, by --device on the command line",
	}
}

// firstThere returns the first path that exists, or nothing.
func firstThere(paths []string) string {
	for _, path := range paths {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
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
			Key: "device", Hint: fmt.Sprintf("set device to %q", unixPrefix+path),
		}
	case mode&fs.ModeCharDevice == 0:
		return nil, &Error{
			Class: ErrSetup, Err: fmt.Errorf("%s is not a character device (%s)", path, mode),
			Hint: "name the TPM's device, such as /dev/tpmrm0",
		}
	}
	// os.OpenFile would open the device in non-blocking mode, in which a read before
	// the response is there returns nothing.
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
