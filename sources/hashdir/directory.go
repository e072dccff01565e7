package hashdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// A directory is an open directory in which names are resolved. No name and no
// link leads out of it: that is an error. A name that does not exist, or that
// is a link to nothing, is [fs.ErrNotExist]. No method opens anything that
// could block or have an effect, a FIFO or a device.
type directory interface {
	// stat says what name is.
	stat(name string) (file, error)
	// read returns the content of a regular file and what the file is once
	// it is open. The content is nil where it is not regular (a socket, which
	// nobody can open, is ENXIO and no error) and cut off behind limit bytes
	// and one more.
	read(name string, limit int64) ([]byte, file, error)
	// isAt reports whether path leads to the directory.
	isAt(path string) (bool, error)
	close()
}

// file is what a check needs to know about a file.
type file struct {
	regular bool
	size    int64
}

// explain adds what to do to the errors that a person can mend.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EXDEV):
		return fmt.Errorf("a link leads out of the directory: make it relative, to something inside: %w", err)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("allow the SPIRE server's user to search the directory: %w", err)
	default:
		return err
	}
}

// rootDirectory is a directory by [os.Root]: for systems, and kernels, without
// a system call that resolves a name beneath a directory.
type rootDirectory struct{ root *os.Root }

func openRoot(path string) (directory, error) {
	// OpenRoot would wait for a writer where the path is a FIFO.
	switch info, err := os.Stat(path); {
	case err != nil:
		return nil, err
	case !info.IsDir():
		return nil, syscall.ENOTDIR
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return rootDirectory{root}, nil
}

func (d rootDirectory) stat(name string) (file, error) {
	info, err := d.root.Stat(name)
	if err != nil {
		return file{}, err
	}
	return file{regular: info.Mode().IsRegular(), size: info.Size()}, nil
}

func (d rootDirectory) read(name string, limit int64) ([]byte, file, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ENXIO) {
		return nil, file{}, nil
	}
	if err != nil {
		return nil, file{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, file{}, err
	}
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	return content, file{regular: true, size: info.Size()}, err
}

func (d rootDirectory) isAt(path string) (bool, error) {
	opened, err := d.root.Stat(".")
	if err != nil {
		return false, err
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(opened, named), err
}

func (d rootDirectory) close() { d.root.Close() }
