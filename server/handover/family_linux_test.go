package handover_test

import (
	"net"
	"os"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// A signal that arrives while a side looks who the other is refuses nobody: Go sends signals to its own
// threads, the more the busier it is, and an agent would be told to come again for no reason.
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
