package hashdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// A directory is an open directory, an [os.Root]: a name or a symbolic link that leads out of it is
// an error. It is an interface so that tests can return errors of a file system.
type directory interface {
	Stat(name string) (fs.FileInfo, error)
	Lstat(name string) (fs.FileInfo, error)
	OpenFile(name string, flag int, perm fs.FileMode) (*os.File, error)
	Close() error
}

// openDirectory opens a directory for reading. An NFS client then asks its server whether
// the directory has changed ("close-to-open", RFC 7530, 10.3.1), instead of answering from
// memory for up to a minute.
func openDirectory(path string) (directory, error) {
	// Because of the slash, the kernel refuses anything but a directory. Otherwise OpenRoot would
	// wait for a writer if path is a FIFO.
	root, err := os.OpenRoot(path + "/")
	if err != nil {
		return nil, err
	}
	return root, nil
}

// isAt reports whether path still leads to dir.
func isAt(dir directory, path string) (bool, error) {
	opened, err := dir.Stat(".")
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named), err
}

// readEntry reports whether dir has an entry with this name, and returns its content, which is nil
// if it is empty, longer than maxContent, or unreadable for the server's user. It opens only
// regular files: opening a FIFO or a device could block or have an effect.
func readEntry(dir directory, name string) (content []byte, found bool, err error) {
	info, err := dir.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil || !info.Mode().IsRegular() {
		return nil, false, err
	}
	if info.Size() == 0 || info.Size() > maxContent {
		return nil, true, nil
	}
	// Since the Stat, the file may have become something else.
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	switch {
	case errors.Is(err, fs.ErrPermission):
		// A TPM is listed because the file exists. Its content may be readable for root only.
		return nil, true, nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENXIO): // removed, or a socket
		return nil, false, nil
	case err != nil:
		return nil, false, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, false, err
	}
	if content, err = io.ReadAll(io.LimitReader(f, maxContent+1)); err != nil {
		return nil, false, err
	}
	return content, true, nil
}

// explain adds what to do to the errors that a person can fix. The caller's message already has the
// path.
func explain(err error) error {
	var errno syscall.Errno
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		// An error that is not from the kernel is from os.Root.
		if err = p.Err; !errors.As(err, &errno) {
			return fmt.Errorf("a link leads out of the directory: make it relative, to something inside: %w", err)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("allow the SPIRE server's user to search the directory, and to read it: %w", err)
	}
	return err
}
