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

// An identity is how a file looks from outside. After somebody has written to the file it
// looks otherwise, unless the clock of the file system was too coarse.
type identity struct {
	device, inode uint64
	size          int64
	mode          uint32
	mtime, ctime  unix.Timespec
}

func identityOf(st *unix.Stat_t) identity {
	return identity{
		//nolint:unconvert // of other types on other systems
		device: uint64(st.Dev), inode: uint64(st.Ino), size: st.Size, mode: uint32(st.Mode),
		mtime: st.Mtim, ctime: st.Ctim,
	}
}

// tag tells a file's content from another.
func (id identity) tag() string { return fmt.Sprintf("%+v", id) }

// resembles reports whether two looks at a path may be of one file. Some file
// systems give it another inode number at each.
func (id identity) resembles(other identity) bool {
	id.device, id.inode = other.device, other.inode
	return id == other
}

// regular reports what keeps the file from being read, or nil.
func (id identity) regular() error {
	switch id.mode & unix.S_IFMT {
	case unix.S_IFREG:
		return nil
	case unix.S_IFDIR:
		return errors.New("is a folder: name the file in it")
	}
	return errors.New("is not a regular file")
}

// modified is when the file's content was last changed, by the file system's
// clock.
func (id identity) modified() time.Time { return time.Unix(id.mtime.Unix()) }

// lookAt returns how the file at a path looks.
func lookAt(path string) (identity, error) {
	var st unix.Stat_t
	if _, err := again(func() (int, error) { return 0, unix.Stat(path, &st) }); err != nil {
		return identity{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return identityOf(&st), nil
}

// An openFile is the descriptor of a file. It is not an [os.File]: that would ask the file
// system whether the file can be polled, and if the file system hangs, this call would stop
// a processor of the Go scheduler.
type openFile int

// openRegular opens a regular file. If it is another kind of file, openRegular does not
// block. When a client of NFS opens a file, it asks its server how the file looks (RFC
// 1813, 4.11, "close-to-open").
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

// readAll reads a file of a size from its beginning, until ctx ends. The error is
// errChanged if it has another size by now.
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

// blockSize is how much is read at a time.
const blockSize = 1 << 20

// tries is how often a call is made that a signal interrupts.
const tries = 64

// again repeats a system call until no signal interrupts it.
func again(call func() (int, error)) (n int, err error) {
	for range tries {
		n, err = call()
		if err != unix.EINTR { //nolint:errorlint // bare, from package unix
			break
		}
	}
	return n, err
}
