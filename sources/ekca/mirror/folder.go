package mirror

import (
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

// maxFile is how large a file of a mirror is read at most, in bytes: more than
// any object that a server accepts.
const maxFile = 16 << 20

// maxNames is how many files and folders a mirror may have.
const maxNames = 2_000_000

// temporary begins the names of files that are being written.
const temporary = ".fill-"

// folder is the mirror's folder. Nothing outside of it is read or written, by
// whatever links. It is safe for concurrent use.
type folder struct {
	root *os.Root

	mu sync.Mutex
	// names are all files and folders, by their name in lower case: a mirror
	// that is copied to a file system which does not tell them apart must not
	// lose one.
	names map[string]string
}

// openFolder makes the folder where there is none, and removes what an earlier
// run has left half-written.
func openFolder(name string) (*folder, error) {
	const everybody = 0o755 // what is in it is public, and a web server reads it
	if err := os.MkdirAll(name, everybody); err != nil {
		return nil, fmt.Errorf("create the mirror's folder: %w", err)
	}
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("open the mirror's folder: %w", err)
	}
	f := &folder{root: root, names: map[string]string{}}
	if err := fs.WalkDir(root.FS(), ".", f.found); err != nil {
		_ = root.Close() // err comes first
		return nil, fmt.Errorf("read the mirror's folder: %w", err)
	}
	return f, nil
}

func (f *folder) close() error { return f.root.Close() }

// found takes down what is there.
func (f *folder) found(name string, _ fs.DirEntry, err error) error {
	switch {
	case err != nil:
		return err
	case name == ".":
		return nil
	case strings.HasPrefix(path.Base(name), temporary):
		return f.root.Remove(name)
	case len(f.names) >= maxNames:
		return fmt.Errorf("it has more than %d files: is it a mirror's folder?", maxNames)
	}
	f.names[fold(name)] = name
	return nil
}

func fold(name string) string { return strings.ToLower(name) }

// claim reserves a name. It is an error where another one differs from it, or from
// one of its folders, by upper and lower case alone.
func (f *folder) claim(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for part := name; part != "."; part = path.Dir(part) {
		if other, ok := f.names[fold(part)]; ok && other != part {
			return fmt.Errorf("its file %q differs from %q only in upper and lower case, "+
				"which some file systems cannot tell apart", part, other)
		}
	}
	for part := name; part != "."; part = path.Dir(part) {
		f.names[fold(part)] = part
	}
	return nil
}

// read returns a file and when it was written; fs.ErrNotExist where there is none.
func (f *folder) read(name string) ([]byte, time.Time, error) {
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
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%q is larger than %d bytes", name, maxFile)
	}
	return content, info.ModTime(), err
}

// write replaces a file at one moment.
func (f *folder) write(name string, content []byte) error {
	const everybody, readable = 0o755, 0o644
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
