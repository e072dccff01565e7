// Package atomicfile writes files and folders as a whole or not at all. A process that reads a list while it is
// replaced reads the old list or the new one, and a command that is interrupted changes nothing. Nothing is written
// through a link that another user controls.
package atomicfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Write replaces the file at path with what fill writes, or makes the file. The new file has the permissions and the
// owner of the old one. If there is an error, path is unchanged.
//
// If path is a link, the file that it leads to is replaced. But it is an error if a user other than root and the
// user who runs this command can change the link: the owner of a folder could make root replace any file. The
// folders on the way to path may be links that belong to anybody, since the caller has named them.
func Write(path string, fill func(io.Writer) error) error {
	p, err := locate(path)
	if err != nil {
		return err
	}
	defer p.close()
	const readable = 0o666 // less the umask
	return p.put(readable, fill, p.folder.Rename)
}

// WriteProgram replaces whatever is at path, even a link, with a file that has what fill writes, or makes that file.
// It belongs to the user who runs this command, and every user may run it, whatever the umask. If there is an error,
// path is unchanged.
func WriteProgram(path string, fill func(io.Writer) error) error {
	p, err := open(path)
	if err != nil {
		return err
	}
	defer p.close()
	const runnable = 0o755
	return p.put(runnable, fill, func(temp, name string) error {
		if err := p.folder.Chmod(temp, runnable); err != nil {
			return err
		}
		return p.folder.Rename(temp, name)
	})
}

// Create makes the file at path with what fill writes. Its permissions are perm less the umask, even while it is being
// written. If something is at path already, even a link, the error wraps fs.ErrExist and nothing changes. The file
// is made as a whole or not at all.
func Create(path string, perm fs.FileMode, fill func(io.Writer) error) error {
	p, err := open(path)
	if err != nil {
		return err
	}
	defer p.close()
	return p.put(perm, fill, func(temp, name string) error {
		// Unlike a rename, a link replaces nothing.
		return errors.Join(p.folder.Link(temp, name), p.folder.Remove(temp))
	})
}

// Replace replaces the file called name in folder with what fill writes, or makes the file. Its permissions are perm
// less the umask. If name is a link, the link itself is replaced. If there is an error, the file is unchanged, unless
// the error is that the folder could not be written to disk: then it may be the old file or the new one.
//
// A process that is killed may leave a file in folder: see IsTemporary.
func Replace(folder *os.Root, name string, perm fs.FileMode, fill func(io.Writer) error) error {
	p := &place{folder: folder, path: filepath.Join(folder.Name(), name), name: name}
	return p.put(perm, fill, folder.Rename)
}

// A place is a name in an open folder. It stays the same if the folder's path leads elsewhere meanwhile.
type place struct {
	folder *os.Root
	path   string // for messages
	name   string
	old    fs.FileInfo // the file to be replaced; nil if there is none
}

func open(path string) (*place, error) {
	folder, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	return &place{folder: folder, path: path, name: filepath.Base(path)}, nil
}

func (p *place) close() { _ = p.folder.Close() } // closing a folder loses nothing

// maxLinks is how many links are followed; Linux follows as many.
const maxLinks = 40

// locate follows the links at path, and returns the place of the file that they lead to.
func locate(path string) (*place, error) {
	for at, left := path, maxLinks; left > 0; left-- {
		p, err := open(at)
		if err != nil {
			return nil, err
		}
		next, err := p.look()
		switch {
		case errors.Is(err, fs.ErrNotExist) && at != path:
			err = fmt.Errorf("%q is a link to nothing: name the file itself", path)
		case errors.Is(err, fs.ErrNotExist), err == nil && next == "":
			return p, nil
		}
		p.close()
		if err != nil {
			return nil, err
		}
		at = next
	}
	return nil, fmt.Errorf("%q leads to more than %d links", path, maxLinks)
}

// look looks at a place. If it is a link that no other user controls, look returns where it leads. If it is a
// regular file, look returns an empty string and sets p.old.
func (p *place) look() (next string, err error) {
	info, err := p.folder.Lstat(p.name)
	if err != nil {
		return "", err
	}
	switch info.Mode().Type() {
	case 0:
		p.old = info
		return "", nil
	case fs.ModeSymlink:
	default:
		return "", fmt.Errorf("%q is not a regular file, and only such a file can be replaced", p.path)
	}
	folder, err := p.folder.Stat(".")
	if err != nil {
		return "", err
	}
	if who := controls(folder, info); who != "" {
		return "", fmt.Errorf("%q is a link, which %s can point elsewhere: name the file itself", p.path, who)
	}
	if next, err = p.folder.Readlink(p.name); err != nil || filepath.IsAbs(next) {
		return next, err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(p.path)) // so that ".." in next means the same folder
	return filepath.Join(dir, next), err
}

// put makes a file in the folder of a place, and then moves it to the place.
func (p *place) put(perm fs.FileMode, fill func(io.Writer) error, move func(temp, name string) error) error {
	temp := tempName()
	file, err := p.folder.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return fmt.Errorf("make a file in %s: %w", filepath.Dir(p.path), err)
	}
	err = fill(file)
	if err == nil && p.old != nil {
		err = errors.Join(keepOwner(file, p.old), file.Chmod(p.old.Mode().Perm()))
	}
	if err == nil {
		err = file.Sync()
	}
	err = errors.Join(err, file.Close())
	if err == nil {
		err = move(temp, p.name)
	}
	if err != nil {
		_ = p.folder.Remove(temp) // err matters more
		return err
	}
	return SyncFolder(p.folder)
}

// WriteFolder makes the folder at path with what fill writes into it. The folder must not exist: no widely used
// file system can replace a folder atomically. If there is an error, path still does not exist.
func WriteFolder(path string, fill func(folder *os.Root) error) error {
	p, err := open(filepath.Clean(path))
	if err != nil {
		return err
	}
	defer p.close()
	if _, err := p.folder.Lstat(p.name); err == nil {
		return fmt.Errorf("%q is there already: write a new folder, and then swap a link to it or rename it", p.path)
	}
	const searchable = 0o777 // less the umask
	temp := tempName()
	if err := p.folder.Mkdir(temp, searchable); err != nil {
		return fmt.Errorf("make a folder in %s: %w", filepath.Dir(p.path), err)
	}
	err = p.fill(temp, fill)
	if err == nil {
		err = p.folder.Rename(temp, p.name)
	}
	if err != nil {
		return errors.Join(err, p.folder.RemoveAll(temp))
	}
	return SyncFolder(p.folder)
}

func (p *place) fill(name string, fill func(folder *os.Root) error) error {
	root, err := p.folder.OpenRoot(name)
	if err != nil {
		return err
	}
	err = fill(root)
	if err == nil {
		err = syncAll(root)
	}
	return errors.Join(err, root.Close())
}

// temporary begins the names of files and folders that are not in place yet. Every source that reads a folder skips
// such names.
const temporary = ".tpm-attestor-"

func tempName() string { return temporary + rand.Text() }

// IsTemporary reports whether name is that of a file that is being written, or that a killed process has left. If a
// folder has only one writer, that writer removes such files before it writes the next one.
func IsTemporary(name string) bool { return strings.HasPrefix(name, temporary) }
