package mirror

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"
)

// maxFile is the maximum size, in bytes, of a file in a mirror that is read. It is more than that
// of any object that a server accepts.
const maxFile = 16 << 20

// maxNames is the maximum number of files and folders in a mirror.
const maxNames = 2_000_000

// temporary is the prefix of the names of files that are being written.
const temporary = ".fill-"

// folder is the mirror's folder. Nothing outside of it is read or written, whatever links it
// contains. It is safe for concurrent use.
type folder struct {
	root *os.Root

	mu sync.Mutex
	// places are all files and folders, by their name in lower case: a mirror must not
	// lose a file if it is copied to a file system that ignores case.
	places map[string]place
}

// A place is a file or a folder.
type place struct {
	name string
	mode fs.FileMode // its type bits
}

// errOccupied is the error for a file that conflicts with what is already in the folder.
var errOccupied = errors.New("another certificate's file has that place")

// openFolder creates the folder if there is none, and removes files that an earlier run has left
// half-written.
func openFolder(name string) (*folder, error) {
	const everybody = 0o755 // what is in it is public, and a web server reads it
	if err := os.MkdirAll(name, everybody); err != nil {
		return nil, fmt.Errorf("create the mirror's folder: %w", err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open the mirror's folder: %w", err)
	}
	f := &folder{root: root, places: map[string]place{}}
	if err := fs.WalkDir(root.FS(), ".", f.found); err != nil {
		_ = root.Close() // err comes first
		return nil, fmt.Errorf("read the mirror's folder: %w", err)
	}
	return f, nil
}

func (f *folder) close() error { return f.root.Close() }

// found records a file or folder that exists.
func (f *folder) found(name string, d fs.DirEntry, err error) error {
	switch {
	case err != nil:
		return err
	case name == ".":
		return nil
	case strings.HasPrefix(path.Base(name), temporary):
		return f.root.Remove(name)
	case len(f.places) >= maxNames:
		return fmt.Errorf("it has more than %d files: is it a mirror's folder?", maxNames)
	}
	f.places[strings.ToLower(name)] = place{name, d.Type()}
	return nil
}

// claim reserves the name of a file that is about to be written. A name is claimed only when the
// content has been fetched and accepted: a forged certificate can name any URL, and must not take a
// name from others by coming first.
func (f *folder) claim(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.freeLocked(name); err != nil {
		return err
	}
	for part, mode := name, fs.FileMode(0); part != "."; part, mode = path.Dir(part), fs.ModeDir {
		if _, there := f.places[strings.ToLower(part)]; !there {
			f.places[strings.ToLower(part)] = place{part, mode}
		}
	}
	return nil
}

// free returns an error if name cannot be a file here.
func (f *folder) free(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.freeLocked(name)
}

func (f *folder) freeLocked(name string) error {
	for part := name; part != "."; part = path.Dir(part) {
		switch other, there := f.places[strings.ToLower(part)]; {
		case !there:
		case other.name != part:
			return fmt.Errorf("%w: its file %q differs from %q only in upper and lower case, "+
				"which some file systems cannot tell apart", errOccupied, part, other.name)
		case part == name && other.mode.IsDir():
			return fmt.Errorf("%w: %q is a folder", errOccupied, part)
		// A file with the name of a host's folder cannot be from a certificate.
		case part != name && other.mode.IsRegular() && path.Dir(part) != ".":
			return fmt.Errorf("%w: %q is a file and no folder", errOccupied, part)
		}
	}
	return nil
}

// read returns the content of a file and when it was written. The error is fs.ErrNotExist if there
// is no such file, and errOccupied if there cannot be one.
func (f *folder) read(name string) (content []byte, written time.Time, err error) {
	defer func() { err = cmp.Or(f.free(name), err) }()
	file, err := f.root.Open(name)
	if err != nil {
		return nil, time.Time{}, err
	}
	defer func() { _ = file.Close() }() // it was only read
	info, err := file.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	if !info.Mode().IsRegular() {
		return nil, time.Time{}, fmt.Errorf("%q is not a regular file", name)
	}
	content, err = io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%q is larger than %d bytes", name, maxFile)
	}
	return content, info.ModTime(), err
}

// write replaces a file atomically. The error is errOccupied if there cannot be such a file.
func (f *folder) write(name string, content []byte) error {
	const everybody, readable = 0o755, 0o644
	if err := f.claim(name); err != nil {
		return err
	}
	dir := path.Dir(name)
	if err := f.root.MkdirAll(dir, everybody); err != nil {
		return err
	}
	temp := path.Join(dir, temporary+rand.Text())
	file, err := f.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, readable)
	if err != nil {
		return err
	}
	_, err = file.Write(content)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = f.root.Rename(temp, name)
	}
	if err != nil {
		_ = f.root.Remove(temp) // err comes first
	}
	return err
}
