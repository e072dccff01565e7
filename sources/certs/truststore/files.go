package truststore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
)

// A caFile is what a file held when it was last intact.
type caFile struct {
	certs.File
	root string // the configured path by which the file was found
	// sum is the SHA-256 of the file's content as it was read, intact or not.
	sum [sha256.Size]byte
	// unread is true if the file could not be read, so that Entries are from before.
	unread bool
}

// location is a configured path, or a file in it, with the name of its bundle, which is
// empty for Config.CAPath.
type location struct {
	bundle string
	path   string
}

// A seenFile is the state of a file, or of what is in its place, without opening it.
type seenFile struct {
	location
	root string      // the configured path by which it was found
	info fs.FileInfo // nil for a dangling symbolic link, and if err is not nil
	// err says why the state is not known. If path is root, it applies to the whole configured
	// path.
	err error
}

// fileSet is the state of all files at the configured paths, in order.
type fileSet []seenFile

// emptyFolderError is the path of a CA folder that has no files.
type emptyFolderError string

func (e emptyFolderError) Error() string {
	return fmt.Sprintf("the CA folder %q is empty: "+
		"mount it, put a CA certificate there, or remove it from the configuration", string(e))
}

// errChanged means that a file has changed since look found it.
var errChanged = errors.New("changed while it was read")

// same reports whether both sets have the same files, unchanged.
func (f fileSet) same(other fileSet) bool {
	return slices.EqualFunc(f, other, func(a, b seenFile) bool {
		if a.location != b.location || (a.info == nil) != (b.info == nil) || fmt.Sprint(a.err) != fmt.Sprint(b.err) {
			return false
		}
		return a.info == nil || os.SameFile(a.info, b.info) && a.info.Mode() == b.info.Mode() &&
			a.info.Size() == b.info.Size() && a.info.ModTime().Equal(b.info.ModTime())
	})
}

// look finds the files at the configured paths without opening them. If the state of a path is not
// known, the path itself is in the set. The error is ctx's.
func look(ctx context.Context, paths []location) (fileSet, error) {
	var found fileSet
	for _, l := range paths {
		files, err := lookAt(ctx, l)
		if ctx.Err() != nil {
			return nil, fmt.Errorf("check the files at %q: %w", l.path, ctx.Err())
		}
		if err != nil {
			files = fileSet{{location: l, root: l.path, err: err}}
		}
		found = append(found, files...)
	}
	return found, nil
}

// lookAt finds the files at one configured path, sorted by name. A folder without files is taken to
// be a missing mount.
func lookAt(ctx context.Context, l location) (fileSet, error) {
	info, err := os.Stat(l.path)
	if err != nil {
		return nil, err //nolint:wrapcheck // it names the path
	}
	if !info.IsDir() {
		return fileSet{{location: l, root: l.path, info: info}}, nil
	}
	names, err := readNames(l.path, MaxFiles)
	if err != nil {
		return nil, err
	}
	var found fileSet
	for _, name := range names {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		f := seenFile{location: location{bundle: l.bundle, path: filepath.Join(l.path, name)}, root: l.path}
		if f.info, err = os.Stat(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			f.err = fmt.Errorf("check the CA file: %w", err)
		}
		found = append(found, f)
	}
	if len(found) == 0 {
		return nil, emptyFolderError(l.path)
	}
	return found, nil
}

// readNames returns the sorted names in a folder, of which there may be at most most.
func readNames(folder string, most int) ([]string, error) {
	d, err := os.Open(folder) //nolint:gosec // G304: the operator names it
	if err != nil {
		return nil, fmt.Errorf("open the CA folder: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(most + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("list the CA folder: %w", err)
	}
	if len(names) > most {
		return nil, fmt.Errorf("the CA folder %q holds more than %d files", folder, most)
	}
	slices.Sort(names)
	return names, nil
}

// with returns the file with its entries.
func (f seenFile) with(entries []certs.Entry) certs.File {
	return certs.File{Path: f.path, Bundle: f.bundle, Entries: entries}
}

// alone reports whether f stands for its whole configured path, which is a file or cannot be
// examined.
func (f seenFile) alone() bool { return f.path == f.root }

// fault returns why the file must not be opened, or an empty string.
func (f seenFile) fault() string {
	switch {
	case f.err != nil:
		return ""
	case f.info == nil:
		return "is a dangling link"
	case f.info.IsDir():
		return "is a subfolder, which is not read"
	case !f.info.Mode().IsRegular():
		return "is not a regular file"
	}
	return ""
}

// errTooLarge is the error for a file that is too large to be read.
var errTooLarge = fmt.Errorf("is larger than %d bytes", MaxFileSize)

// read returns the content of a file without a fault. It never blocks, even if something like a
// FIFO has taken the file's place.
func (f seenFile) read() ([]byte, error) {
	if f.err != nil {
		return nil, f.err
	}
	if f.info.Size() > MaxFileSize {
		return nil, errTooLarge
	}
	file, err := os.OpenFile(f.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errChanged
	}
	if err != nil {
		return nil, fmt.Errorf("open the CA file: %w", err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("check the CA file: %w", err)
	}
	if !os.SameFile(info, f.info) || !info.Mode().IsRegular() {
		return nil, errChanged
	}
	data, err := io.ReadAll(io.LimitReader(file, f.info.Size()+1))
	if err != nil {
		return nil, fmt.Errorf("read the CA file: %w", err)
	}
	if int64(len(data)) != f.info.Size() {
		return nil, errChanged
	}
	return data, nil
}
