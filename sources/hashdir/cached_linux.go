package hashdir

import (
	"errors"

	"golang.org/x/sys/unix"
)

// resolveCached is RESOLVE_CACHED of openat2(2), since Linux 5.12: where not all of
// the way is in the kernel's memory, the call fails with EAGAIN rather than read a
// disk, ask a server or take a lock that somebody holds meanwhile. An older kernel
// does not know it, and then every call fails.
const resolveCached = 0x20

// cachedDirectory is the descriptor of a directory in which names are resolved in
// the kernel's memory, on the directory's own file system. What is not there, and
// all content, is errWouldWait.
type cachedDirectory int

// openCached opens a directory whose path is in the kernel's memory, and returns the
// device that it is on.
func openCached(path string) (directory, uint64, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: resolveCached}
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
	if err != nil {
		return nil, 0, errWouldWait
	}
	st, err := statCached(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, 0, err
	}
	return cachedDirectory(fd), deviceOf(&st), nil
}

func (d cachedDirectory) stat(name string) (file, error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: beneath | unix.RESOLVE_NO_XDEV | resolveCached,
	}
	fd, err := unix.Openat2(int(d), name, &how)
	switch {
	case errors.Is(err, unix.ENOENT):
		return file{}, err
	case err != nil:
		return file{}, errWouldWait
	}
	defer unix.Close(fd)
	st, err := statCached(fd)
	if err != nil {
		return file{}, err
	}
	return file{regular: st.Mode&unix.S_IFMT == unix.S_IFREG, size: int64(st.Size)}, nil
}

func (cachedDirectory) read(string, int64) ([]byte, file, error) { return nil, file{}, errWouldWait }

func (d cachedDirectory) isAt(path string) (bool, error) {
	named, _, err := openCached(path)
	if err != nil {
		return false, err
	}
	defer named.close()
	there, ok := named.(cachedDirectory)
	if !ok {
		return false, errWouldWait
	}
	a, err := statCached(int(d))
	if err != nil {
		return false, err
	}
	b, err := statCached(int(there))
	return err == nil && a.Ino == b.Ino && deviceOf(&a) == deviceOf(&b), err
}

func (d cachedDirectory) close() { _ = unix.Close(int(d)) }

// statCached says what an open file is by what is in memory.
func statCached(fd int) (unix.Statx_t, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC,
		unix.STATX_TYPE|unix.STATX_SIZE|unix.STATX_INO, &st)
	if err != nil {
		return unix.Statx_t{}, errWouldWait
	}
	return st, nil
}

func deviceOf(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

// volumeAt says which file system the directory is on that a path leads to. It may
// hang where Check may.
func volumeAt(path string) (volume, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return volume{}, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return volume{}, err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return volume{}, err
	}
	v := volume{device: st.Dev}
	switch fs.Type {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		// Major 0 is for devices that are none: the next mount may get the number.
		v.local = unix.Major(st.Dev) != 0
	}
	return v, nil
}
