package hashdir

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// inChild is the variable that tells a child what is different for it.
const inChild = "HASHDIR_TEST_CHILD"

// runInChild runs the calling test once more, in a child process in which something
// is different that cannot be undone in this one, and returns in this one.
func runInChild(t *testing.T, different string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	name := "^" + strings.ReplaceAll(t.Name(), "/", "$/^") + "$"
	cmd := exec.CommandContext(t.Context(), exe, "-test.v", "-test.count=1", "-test.run", name)
	cmd.Env = append(os.Environ(), inChild+"="+different)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a child process: %v\n%s", err, out)
	}
}

// TestPermissions stops a directory that may not be searched from passing for an
// empty one, and has a directory work that may be searched and not read. Root
// may do everything, so there the test goes on as another user.
func TestPermissions(t *testing.T) {
	if os.Geteuid() == 0 {
		if os.Getenv(inChild) == "" {
			runInChild(t, "nobody")
			return
		}
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	chmod := func(mode os.FileMode, name ...string) {
		t.Helper()
		if err := os.Chmod(filepath.Join(name...), mode); err != nil {
			t.Fatal(err)
		}
	}
	eachBackend(t, func(t *testing.T, dir string, s *Source) {
		denied := answer{err: os.ErrPermission, text: "allow the SPIRE server's user to search"}
		write(t, dir, hash(1), `{"name": "a"}`)
		write(t, dir, hash(2)[:2]+"/"+hash(2), "")
		write(t, dir, hash(3), `{"name": "a"}`)

		chmod(0, dir, hash(3))
		expect(t, s, hash(3), listed) // without its name
		chmod(0, dir, hash(2)[:2])
		expect(t, s, hash(2), denied)
		expect(t, s, hash(4), notListed)
		chmod(0o755, dir, hash(2)[:2])

		for _, mode := range []os.FileMode{0, 0o444} {
			chmod(mode, dir)
			for i := 1; i <= 4; i++ {
				expect(t, s, hash(i), denied)
			}
		}
		chmod(0o111, dir)
		defer chmod(0o755, dir)
		chmod(0o111, dir, hash(2)[:2])
		defer chmod(0o755, dir, hash(2)[:2])
		if d, err := s.open(dir); err == nil {
			d.close()
		} else if _, err := openKernel(dir); err == nil {
			return // os.Root reads the directory that it opens
		}
		expect(t, s, hash(1), answer{listed: true, attrs: sources.Attributes{Name: "a"}})
		expect(t, s, hash(2), listed)
		expect(t, s, hash(4), notListed)
	})
}

// TestWithoutOpenat2 stops a kernel or a container without openat2(2) from
// making every machine unavailable.
func TestWithoutOpenat2(t *testing.T) {
	for name, errno := range map[string]syscall.Errno{"ENOSYS": unix.ENOSYS, "EPERM": unix.EPERM} {
		t.Run(name, func(t *testing.T) {
			if os.Getenv(inChild) == "" {
				runInChild(t, name)
				return
			}
			if os.Getenv(inChild) != name {
				return
			}
			forbid(t, unix.SYS_OPENAT2, errno)
			dir := t.TempDir()
			write(t, dir, hash(1)[:2]+"/"+hash(1), "")
			s := open(t, Config{Path: dir})
			expect(t, s, hash(1), listed)
			expect(t, s, hash(2), notListed)
			d, err := s.open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer d.close()
			if _, ok := d.(rootDirectory); !ok {
				t.Errorf("the directory is a %T", d)
			}
		})
	}
}

// forbid has a system call fail with errno in this process, by seccomp(2).
func forbid(t *testing.T, number uint32, errno syscall.Errno) {
	t.Helper()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the call
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: number},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	_, _, err := syscall.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&program)))
	if err != 0 {
		t.Fatalf("seccomp: %v", err)
	}
}

// TestNoDescriptorLeft stops a check that leaves a descriptor open, on any of its
// ways out, from using up the server's.
func TestNoDescriptorLeft(t *testing.T) {
	eachBackend(t, func(t *testing.T, dir string, s *Source) {
		write(t, dir, hash(1), "")
		write(t, dir, hash(2), `{"name": "a"}`)
		write(t, dir, hash(3), `{"name": `)
		write(t, dir, hash(4)[:2]+"/"+hash(4), "")
		link(t, "../outside", dir, hash(5))
		link(t, hash(2), dir, hash(6))
		if err := os.Mkdir(filepath.Join(dir, hash(7)), 0o755); err != nil {
			t.Fatal(err)
		}
		gone := open(t, Config{Path: dir + ".gone"})
		unmarked := open(t, Config{Path: dir, Marker: ".mounted"})
		var wg sync.WaitGroup
		before := descriptors(t)
		for range 8 {
			wg.Go(func() {
				for i := range 1000 {
					ev := &sources.Evidence{EKHash: hash(i % 9)}
					for _, s := range []*Source{s, gone, unmarked} {
						_, _ = s.Check(t.Context(), ev)
					}
				}
			})
		}
		wg.Wait()
		if after := descriptors(t); after != before {
			t.Errorf("%d descriptors are open, %d were before", after, before)
		}
	})
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestAgain stops a file system that asks for another try for ever from holding
// up a check for ever.
func TestAgain(t *testing.T) {
	for _, errno := range []error{unix.EINTR, unix.EAGAIN} {
		calls := 0
		_, err := again(func() (int, error) {
			if calls++; calls < 3 {
				return -1, errno
			}
			return 7, nil
		})
		if err != nil || calls != 3 {
			t.Errorf("%v twice: %d calls, %v", errno, calls, err)
		}
		calls = 0
		_, err = again(func() (int, error) { calls++; return -1, errno })
		if !errors.Is(err, errno) || calls != tries {
			t.Errorf("%v for ever: %d calls, %v", errno, calls, err)
		}
	}
}
