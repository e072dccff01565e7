// Package atomicfile writes files and folders that are there as a whole or not at all: who
// reads a list while it is replaced reads the old list or the new one, and a command that is
// interrupted changes nothing.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Write replaces the file at path by what fill writes, or makes it. If path is a link, the
// file that it leads to is replaced. The new file has the permissions and the owner of the old
// one. If there is an error, path is as it was.
func Write(path string, fill func(io.Writer) error) error {
	target, old, err := lookAt(path)
	if err != nil {
		return err
	}
	const readable = 0o666 // less the umask
	temp := besides(target)
	//nolint:gosec // G302, G304: as the shell's >
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, readable)
	if err != nil {
		return err
	}
	err = fill(file)
	if err == nil && old != nil {
		err = errors.Join(keepOwner(file, old), file.Chmod(old.Mode().Perm()))
	}
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(temp, target)
	}
	if err != nil {
		_ = os.Remove(temp) // err comes first
		return err
	}
	return syncFolder(filepath.Dir(target))
}

// lookAt returns where the file is that path leads to, and what is there; nil if nothing is.
func lookAt(path string) (target string, old fs.FileInfo, err error) {
	target, err = filepath.EvalSymlinks(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(path); err == nil {
			return "", nil, fmt.Errorf("%q is a link to nothing: name the file itself", path)
		}
		return path, nil, nil
	}
	if err == nil {
		old, err = os.Stat(target)
	}
	if err == nil && !old.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file, and only such a file can be replaced", path)
	}
	return target, old, err
}

// WriteFolder makes the folder at path with what fill writes into it. The folder must not be
// there yet: no file system that is in use everywhere can replace a folder at one moment. If
// there is an error, path is still not there.
func WriteFolder(path string, fill func(folder *os.Root) error) error {
	path = filepath.Clean(path)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%q is there already: write a new folder, and then swap a link to it or rename it", path)
	}
	const searchable = 0o777 // less the umask
	temp := besides(path)
	if err := os.Mkdir(temp, searchable); err != nil {
		return err
	}
	err := fillFolder(temp, fill)
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(temp))
	}
	return syncFolder(filepath.Dir(path))
}

func fillFolder(path string, fill func(folder *os.Root) error) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	err = fill(root)
	if err == nil {
		err = syncAll(path)
	}
	return errors.Join(err, root.Close())
}

// besides returns a name in the same folder, that every source which reads a folder passes
// over.
func besides(path string) string {
	return filepath.Join(filepath.Dir(path), ".tpm-attestor-"+rand.Text())
}

// Create makes the file at path, with these permissions less the umask and what fill writes. If
// something is at path already, the error wraps fs.ErrExist, and nothing changes. The file is there
// as a whole or not at all; nobody else could read its content before.
func Create(path string, perm fs.FileMode, fill func(io.Writer) error) error {
	temp := besides(path)
	file, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm) //nolint:gosec // G304: the operator's path
	if err != nil {
		return err
	}
	err = fill(file)
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Link(temp, path) // unlike a rename, it replaces nothing
	}
	err = errors.Join(err, os.Remove(temp))
	if err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}
