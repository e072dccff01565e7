package handover_test

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// A signal that arrives while one side looks up who the other side is refuses nobody. Go sends signals to its
// own threads, more of them the busier it is, and an agent would be refused for no reason and have to try again.
func TestPeerDespiteSignals(t *testing.T) {
	h := listenHere(t, socketPath(t))
	conn, ok := h.dial(t).(*net.UnixConn)
	if !ok {
		t.Fatal("no Unix socket")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread, stop := unix.Gettid(), make(chan struct{})
	var sender sync.WaitGroup
	sender.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG)
			}
		}
	})
	defer sender.Wait()
	defer close(stop)
	for range 20_000 {
		if _, process, parent, err := handover.Peer(conn); err != nil || process != os.Getpid() || parent != os.Getppid() {
			t.Fatalf("process %d, a child of %d, %v", process, parent, err)
		}
	}
}

// holdsOn reports whether the kernel gives out a pidfd of the process at the other end.
func holdsOn(t *testing.T, conn *net.UnixConn) bool {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	holds := false
	err = raw.Control(func(fd uintptr) {
		pidfd, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if holds = err == nil; holds {
			unix.Close(pidfd)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return holds
}

// A process that has ended is nobody's child: its number may be another process's by now.
func TestPeerThatHasEnded(t *testing.T) {
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "svid.sock")})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	cmd := exec.Command("/proc/self/exe", socket.Addr().String())
	cmd.Env = append(os.Environ(), helperEnv+"=connect")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	conn, err := socket.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if !holdsOn(t, conn) {
		t.Skip("Linux before 6.5 does not hold on to the process")
	}
	// It has ended, and keeps its number until cmd.Wait.
	err = unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, process, parent, err := handover.Peer(conn); err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Errorf("process %d, a child of %d, %v", process, parent, err)
	}
}

// A plugin that runs in a PID namespace of its own cannot find out whose child the other plugin is. The error
// says so.
func TestPeerInAnotherPIDNamespace(t *testing.T) {
	h := listenHere(t, socketPath(t))
	cmd := exec.Command("/proc/self/exe", h.path)
	cmd.Env = append(os.Environ(), helperEnv+"=hand over")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	out, err := cmd.Output()
	if errors.Is(err, unix.EPERM) {
		t.Skip("only root makes namespaces")
	}
	if err != nil || !strings.Contains(string(out), "in another PID namespace: run both plugins in that of spire-server") {
		t.Errorf("%s, %v", out, err)
	}
}

// Whoever was started by a spire-server that has ended belongs to nobody: a plugin that is left over
// must not serve the next server, nor be served by it.
func TestOrphans(t *testing.T) {
	h := listenHere(t, socketPath(t))
	orphan := handover.FamilyOf(os.Geteuid(), os.Getppid()+1)
	err := handover.NewClient(h.path, orphan).HandOver(t.Context(), id, handover.Any())
	if err == nil || !strings.Contains(err.Error(), "has ended") {
		t.Error(err)
	}
}
