package keydir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
	// othersWrite are the bits that let other users change what is in a directory.
	othersWrite fs.FileMode = 0o022
)

// An Error is a failure that somebody has to mend. Its text is that of Err, followed by Hint.
type Error struct {
	Err  error
	Hint string
}

func (e *Error) Error() string { return e.Err.Error() + ": " + e.Hint }

// Unwrap returns the underlying error.
func (e *Error) Unwrap() error { return e.Err }

// Unreadable is a file that has the name of a key's file but from which no key can be read.
type Unreadable struct {
	Path string
	Err  error
}

// A Listing is what a directory holds.
type Listing struct {
	// Slots are the keys, the newest first.
	Slots []Slot
	// Unreadable are the files that should hold a key and do not. Their keys are lost: SPIRE's agent
	// makes new ones.
	Unreadable []Unreadable
}

// Prepare makes the directory at path if it does not exist. The directory above it must exist. It is an error
// if this process cannot use the directory at path, or if users other than its owner may write to it.
func Prepare(path string) error {
	path = filepath.Clean(path)
	err := os.Mkdir(path, dirMode)
	switch {
	case err == nil:
		return syncParent(path)
	case errors.Is(err, fs.ErrNotExist):
		return &Error{
			Err:  fmt.Errorf("make the directory %s: the directory above it does not exist", path),
			Hint: "make " + filepath.Dir(path) + ", or correct the path",
		}
	case !errors.Is(err, fs.ErrExist):
		return explain("make the directory", path, err)
	}
	root, err := open(path)
	if err != nil {
		return err
	}
	return root.Close()
}

// syncParent writes the name of the directory at path to the disk.
func syncParent(path string) error {
	parent, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return explain("open the directory", filepath.Dir(path), err)
	}
	return errors.Join(atomicfile.SyncFolder(parent), parent.Close())
}

// open opens the directory at path. It is an error if users other than its owner may write to it.
func open(path string) (*os.Root, error) {
	if info, err := os.Stat(path); err == nil && !info.IsDir() {
		return nil, &Error{
			Err:  fmt.Errorf("%s is not a directory", path),
			Hint: "name a directory, which the plugin makes",
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, explain("open the directory", path, err)
	}
	info, err := root.Stat(".")
	if err == nil && info.Mode().Perm()&othersWrite != 0 {
		err = &Error{
			Err: fmt.Errorf("the directory %s has the mode %#o: others may put keys into it",
				path, info.Mode().Perm()),
			Hint: "chmod go-w " + path + ", or name a directory in it, which the plugin makes",
		}
	}
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return root, nil
}

// explain returns an error that says what could not be done with a file or directory, and what to do about it.
func explain(doing, path string, err error) error {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		err = number // without the path, which this function names itself
	}
	err = fmt.Errorf("%s %s: %w", doing, path, err)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &Error{
			Err:  err,
			Hint: fmt.Sprintf("let SPIRE Agent's user (ID %d) own it, with the mode 0700", os.Geteuid()),
		}
	case errors.Is(err, syscall.ENOTDIR):
		return &Error{Err: err, Hint: "name a directory, which the plugin makes"}
	case errors.Is(err, fs.ErrNotExist):
		return &Error{Err: err, Hint: `the KeyManager "tpm" makes it: configure both with the same directory`}
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		errors.Is(err, syscall.EFBIG):
		return &Error{Err: err, Hint: "make room on its file system, and let it be written"}
	}
	return err
}

// List reads the keys in the directory at path. A file that cannot be read is no error: it is in Unreadable.
func List(path string) (*Listing, error) {
	root, err := open(path)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	names, _, err := slotNames(root, path)
	if err != nil {
		return nil, err
	}
	l := new(Listing)
	for _, name := range names {
		slot, err := read(root, name)
		if err != nil {
			l.Unreadable = append(l.Unreadable, Unreadable{filepath.Join(path, name), err})
			continue
		}
		l.Slots = append(l.Slots, *slot)
	}
	slices.SortFunc(l.Slots, func(a, b Slot) int {
		switch {
		case a.Serial > b.Serial:
			return -1
		case a.Serial < b.Serial:
			return 1
		}
		return strings.Compare(a.ID, b.ID)
	})
	return l, nil
}

// slotNames returns the names of the files in a directory that may hold keys, and in left the names of the temporary
// files that a killed process may have left.
func slotNames(root *os.Root, path string) (names, left []string, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, nil, explain("read the directory", path, err)
	}
	defer dir.Close()
	all, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, explain("read the directory", path, err)
	}
	for _, name := range all {
		switch {
		case strings.HasSuffix(name, suffix):
			names = append(names, name)
		case atomicfile.IsTemporary(name):
			left = append(left, name)
		}
	}
	if len(all) > maxEntries || len(names) > MaxSlots {
		return nil, nil, &Error{
			Err:  fmt.Errorf("the directory %s has more files than this plugin writes", path),
			Hint: "name a directory that holds nothing else",
		}
	}
	slices.Sort(names)
	return names, left, nil
}

// read reads a slot's file.
func read(root *os.Root, name string) (*Slot, error) {
	// Without O_NONBLOCK, opening a FIFO would block.
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	slot, err := Parse(b)
	if err == nil && fileName(slot.ID) != name {
		return nil, fmt.Errorf("it holds the key %q, whose file is %s", slot.ID, fileName(slot.ID))
	}
	return slot, err
}

// NextSerial returns the serial for the next key to write.
func (l *Listing) NextSerial() uint64 {
	if len(l.Slots) == 0 {
		return 1
	}
	return l.Slots[0].Serial + 1
}

// Write writes a key into the directory at path, in place of an earlier key with its ID. If there is an error,
// or if the process ends while it writes, the earlier key is still there.
func Write(path string, slot *Slot) error {
	content, err := slot.format()
	if err != nil {
		return err
	}
	root, err := open(path)
	if err != nil {
		return err
	}
	defer root.Close()
	name := fileName(slot.ID)
	names, left, err := slotNames(root, path)
	if err != nil {
		return err
	}
	if len(names) == MaxSlots && !slices.Contains(names, name) {
		return &Error{
			Err:  fmt.Errorf("the directory %s has %d keys already", path, MaxSlots),
			Hint: "remove the files of the keys that are not used",
		}
	}
	for _, temp := range left {
		_ = root.Remove(temp) // else they would fill the directory, or the disk
	}
	err = atomicfile.Replace(root, name, fileMode, func(w io.Writer) error {
		_, err := w.Write(content)
		return err
	})
	if err != nil {
		return explain("write", filepath.Join(path, name), err)
	}
	return nil
}
