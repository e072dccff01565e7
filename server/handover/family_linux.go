package handover

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// peer returns who is at the other end of a connection. The kernel noted user, the effective user, and
// process when that process connected or, at the listening end, began to listen (unix(7), SO_PEERCRED).
// parent is the process's parent now.
//
// The process may end, and another process may get its number, before peer looks up the parent. From
// Linux 6.5 on, peer holds the process by a pidfd (SO_PEERPIDFD), and returns an error if the process
// has ended by the end of the look-up. Before 6.5, another process is taken for a plugin of spire-server
// only if spire-server has started it later, and spire-server starts all its plugins when it starts.
func peer(conn *net.UnixConn) (user, process, parent int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, 0, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { user, process, parent, failed = peerOf(int(fd)) })
	return user, process, parent, errors.Join(err, failed)
}

func peerOf(fd int) (user, process, parent int, err error) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, 0, fmt.Errorf("SO_PEERCRED: %w", err)
	}
	user, process = int(cred.Uid), int(cred.Pid)
	if process <= 0 {
		return 0, 0, 0, errors.New("it is in another PID namespace: run both plugins in that of spire-server")
	}
	held, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	switch {
	case err == nil:
		defer unix.Close(held)
	case errors.Is(err, unix.ENOPROTOOPT):
		held = -1
	default:
		return 0, 0, 0, fmt.Errorf("SO_PEERPIDFD: %w", err)
	}
	if parent, err = parentOf(process); err != nil {
		return 0, 0, 0, err
	}
	if held >= 0 {
		if over, err := ended(held); err != nil {
			return 0, 0, 0, fmt.Errorf("poll the pidfd of process %d: %w", process, err)
		} else if over {
			return 0, 0, 0, fmt.Errorf("process %d has ended", process)
		}
	}
	return user, process, parent, nil
}

// ended reports whether the process that a pidfd refers to has ended. Go sends signals to its own
// threads, and a signal interrupts poll(2) even if poll does not wait.
func ended(pidfd int) (bool, error) {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// parentOf reads the number of a process's parent (proc_pid_stat(5)).
func parentOf(process int) (int, error) {
	file, err := os.Open("/proc/" + strconv.Itoa(process) + "/stat")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	const most = 4 << 10
	text, err := io.ReadAll(io.LimitReader(file, most))
	if err != nil {
		return 0, err
	}
	// The command's name, in parentheses, may itself contain spaces and parentheses.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 2 {
		return 0, fmt.Errorf("%s is not as expected", file.Name())
	}
	return strconv.Atoi(string(fields[1]))
}
