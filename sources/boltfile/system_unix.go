//go:build unix

package boltfile

import (
	"errors"
	"io/fs"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// openFlags make opening a symbolic link an error, and keep the call from blocking on a FIFO.
const openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK

// isLink reports whether a file could not be opened because it is a symbolic link.
func isLink(err error) bool { return errors.Is(err, unix.ELOOP) }

// tryLock tries to lock a file without waiting, and reports whether it succeeded.
func tryLock(file *os.File, alone bool) (locked bool, err error) {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	err = unix.Flock(int(file.Fd()), how|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return err == nil, err
}

// duplicate returns another descriptor of an open file.
func duplicate(file *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// stamp sets the modification time of a file. It does not follow symbolic links.
func stamp(path string, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// ownerOf returns the ID of the user who owns a file, or -1 if it is not known.
func ownerOf(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Uid)
	}
	return -1
}
