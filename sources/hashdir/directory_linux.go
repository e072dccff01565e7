package hashdir

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// beneath has the kernel refuse, with EXDEV, to leave the directory: by "..",
// by an absolute link, or by one of the links in /proc that are none.
const beneath = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS

// tries is how often a call is made that the kernel asks to make again:
// openat2(2) while something is being renamed or mounted (EAGAIN), and any
// call that a signal has interrupted (EINTR).
const tries = 64

// opener returns the function that opens a directory: by openat2(2) where the
// kernel has it (since Linux 5.6) and no seccomp filter forbids it, which is
// found out when the first directory is opened.
func opener() func(path string) (directory, error) {
	supported := sync.OnceValue(func() bool {
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH}
		_, err := unix.Openat2(unix.AT_FDCWD, "/", &how) // EXDEV
		return !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM)
	})
	return func(path string) (directory, error) {
		if !supported() {
			return openRoot(path)
		}
		return openKernel(path)
	}
}

// kernelDirectory is the descriptor of a directory in which openat2(2)
// resolves names.
type kernelDirectory int

// openKernel opens a directory as if it were to be read. That makes a client of NFS
// ask its server how the directory looks ("close-to-open", RFC 7530, 10.3.1), and
// look up anew the names in it where it has changed. Opened with O_PATH the client
// would answer from memory, for a minute maybe; that is left for a directory that
// may be searched and not read. For what is in a shard the client's memory counts in
// any case: to open each shard as well would make a check half as long again, and
// there is an option of the mount for it.
func openKernel(path string) (directory, error) {
	open := func(flags int) (int, error) {
		return again(func() (int, error) { return unix.Open(path, flags|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) })
	}
	fd, err := open(unix.O_RDONLY)
	if errors.Is(err, fs.ErrPermission) {
		fd, err = open(unix.O_PATH)
	}
	if err != nil {
		return nil, err
	}
	return kernelDirectory(fd), nil
}

// stat looks at a plain name as it is, which is cheaper, and resolves it where
// that is a link, or where a shard comes first, which might be one.
func (d kernelDirectory) stat(name string) (file, error) {
	if strings.IndexByte(name, '/') < 0 {
		var st unix.Stat_t
		_, err := again(func() (int, error) {
			return 0, unix.Fstatat(int(d), name, &st, unix.AT_SYMLINK_NOFOLLOW)
		})
		if err != nil {
			return file{}, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			return fileOf(&st), nil
		}
	}
	fd, err := d.resolve(name, unix.O_PATH)
	if err != nil {
		return file{}, err
	}
	defer unix.Close(fd)
	return statFile(fd)
}

// read reads without [os.File]: that would ask the file system whether the
// file can be polled, in a call that stops a whole thread of the Go scheduler
// where the file system hangs.
func (d kernelDirectory) read(name string, limit int64) ([]byte, file, error) {
	fd, err := d.resolve(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if errors.Is(err, unix.ENXIO) {
		return nil, file{}, nil
	}
	if err != nil {
		return nil, file{}, err
	}
	defer unix.Close(fd)
	f, err := statFile(fd)
	if err != nil || !f.regular {
		return nil, file{}, err
	}
	content, err := io.ReadAll(io.LimitReader(reader(fd), limit+1))
	return content, f, err
}

// resolve opens name with openat2(2).
func (d kernelDirectory) resolve(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: beneath}
	return again(func() (int, error) { return unix.Openat2(int(d), name, &how) })
}

func (d kernelDirectory) isAt(path string) (bool, error) {
	var opened, named unix.Stat_t
	if _, err := again(func() (int, error) { return 0, unix.Fstat(int(d), &opened) }); err != nil {
		return false, err
	}
	_, err := again(func() (int, error) { return 0, unix.Stat(path, &named) })
	return err == nil && opened.Dev == named.Dev && opened.Ino == named.Ino, err
}

func (d kernelDirectory) close() { unix.Close(int(d)) }

// statFile says what an open file is.
func statFile(fd int) (file, error) {
	var st unix.Stat_t
	_, err := again(func() (int, error) { return 0, unix.Fstat(fd, &st) })
	if err != nil {
		return file{}, err
	}
	return fileOf(&st), nil
}

func fileOf(st *unix.Stat_t) file {
	return file{regular: st.Mode&unix.S_IFMT == unix.S_IFREG, size: st.Size}
}

// reader reads from a descriptor.
type reader int

func (r reader) Read(p []byte) (int, error) {
	n, err := again(func() (int, error) { return unix.Read(int(r), p) })
	if err != nil {
		return 0, err
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// again makes a system call until the kernel no longer asks for another try.
func again(call func() (int, error)) (n int, err error) {
	for range tries {
		n, err = call()
		if err != unix.EINTR && err != unix.EAGAIN { //nolint:errorlint // bare, from package unix
			break
		}
	}
	if err == unix.ENOENT { //nolint:errorlint // the same
		err = fs.ErrNotExist // which errors.Is finds sooner
	}
	return n, err
}
