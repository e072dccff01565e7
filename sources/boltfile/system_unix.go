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

// openFlags are for opening a file: a link is an error, and a pipe does not block the call.
const openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK

// isLink reports whether a file could not be opened because it is a link.
func isLink(err error) bool { return errors.Is(err, unix.ELOOP) }

// tryLock locks a file, and reports whether it is locked. It does not wait.
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

// stamp sets the time at which a file was changed. It follows no link.
func stamp(path string, at time.Time) error {
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// ownerOf returns the user to whom a file belongs; -1 if that is not known.
func ownerOf(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int64(st.Uid)
	}
	return -1
}
