package hashdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// A directory is an open directory, an [os.Root]: a name or a link that leads out of it
// is an error. It is an interface so that tests can return errors of a file system.
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
	// The slash makes the kernel refuse all but a directory. If path is a FIFO, OpenRoot would
	// otherwise wait for a writer.
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

// readEntry reports whether dir has an entry by this name, and returns its content: nil if
// it is empty, longer than maxContent, or unreadable for the server's user. Nothing but a
// regular file is opened: to open a FIFO or a device could block or have an effect.
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
		// Existence is what lists a TPM: content may be readable for root alone.
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

// explain adds what to do to the errors that a person can mend. The caller's message has
// the path already.
func explain(err error) error {
	var errno syscall.Errno
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		// What the kernel did not say, os.Root did.
		if err = p.Err; !errors.As(err, &errno) {
			return fmt.Errorf("a link leads out of the directory: make it relative, to something inside: %w", err)
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("allow the SPIRE server's user to search the directory, and to read it: %w", err)
	}
	return err
}
