//go:build unix

package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// An identity is what stat says about a file. Writing to the file changes its identity, unless the
// clock of the file system is too coarse.
type identity struct {
	device, inode uint64
	size          int64
	mode          uint32
	mtime, ctime  unix.Timespec
}

func identityOf(st *unix.Stat_t) identity {
	return identity{
		//nolint:unconvert // the types differ between systems
		device: uint64(st.Dev), inode: uint64(st.Ino), size: st.Size, mode: uint32(st.Mode),
		mtime: st.Mtim, ctime: st.Ctim,
	}
}

// tag identifies the content of a file.
func (id identity) tag() string { return fmt.Sprintf("%+v", id) }

// resembles reports whether id and other may be the same file. Some file systems give a file
// another inode number at each look.
func (id identity) resembles(other identity) bool {
	id.device, id.inode = other.device, other.inode
	return id == other
}

// regular returns an error unless the file is a regular file.
func (id identity) regular() error {
	switch id.mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return errors.New("is a folder: name the file in it")
	}
	return errors.New("is not a regular file")
}

// modified returns when the file's content was last changed, by the file system's clock.
func (id identity) modified() time.Time { return time.Unix(id.mtime.Unix()) }

// lookAt returns the identity of the file at a path.
func lookAt(path string) (identity, error) {
	var st unix.Stat_t
	if _, err := again(func() (int, error) { return 0, unix.Stat(path, &st) }); err != nil {
		return identity{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return identityOf(&st), nil
}

// An openFile is a file descriptor. It is not an [os.File], which would ask the file system whether
// the file can be polled: if the file system hangs, that call would block a processor of the Go
// scheduler.
type openFile int

// openRegular opens a regular file. It does not block if the file is of another kind. On NFS,
// opening a file makes the client ask the server for the file's current attributes (RFC 1813, 4.11,
// "close-to-open").
func openRegular(path string) (openFile, identity, error) {
	id, err := lookAt(path)
	if err != nil {
		return -1, identity{}, err
	}
	if err := id.regular(); err != nil {
		return -1, identity{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	fd, err := again(func() (int, error) {
		return unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return -1, identity{}, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := openFile(fd)
	if id, err = f.look(); err == nil {
		err = id.regular()
	}
	if err != nil {
		f.close()
		return -1, identity{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return f, id, nil
}

func (f openFile) look() (identity, error) {
	var st unix.Stat_t
	_, err := again(func() (int, error) { return 0, unix.Fstat(int(f), &st) })
	return identityOf(&st), err
}

func (f openFile) close() { unix.Close(int(f)) }

// readAll reads a file of the given size from its beginning, until ctx ends. It returns errChanged
// if the file has another size.
func (f openFile) readAll(ctx context.Context, size int64) ([]byte, error) {
	data := make([]byte, size+1)
	read := 0
	for read < len(data) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n, err := again(func() (int, error) { return unix.Read(int(f), data[read:min(read+blockSize, len(data))]) })
		if err != nil {
			return nil, fmt.Errorf("read: %w", err)
		}
		if n == 0 {
			break
		}
		read += n
	}
	if int64(read) != size {
		return nil, errChanged
	}
	return data[:size], nil
}

// blockSize is the number of bytes that are read at a time.
const blockSize = 1 << 20

// tries is how often a system call that a signal interrupts is made.
const tries = 64

// again repeats a system call while signals interrupt it, at most tries times.
func again(call func() (int, error)) (n int, err error) {
	for range tries {
		n, err = call()
		if err != unix.EINTR { //nolint:errorlint // bare, from package unix
			break
		}
	}
	return n, err
}
