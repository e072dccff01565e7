package hashdir

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// inChild is set in the environment of the child process of TestPermissions.
const inChild = "HASHDIR_TEST_CHILD"

// TestPermissions stops a directory that may not be read or searched from passing for an
// empty directory. For root there are no such directories, so root runs the test in a child
// process that becomes another user.
func TestPermissions(t *testing.T) {
	if os.Geteuid() == 0 {
		if os.Getenv(inChild) == "" {
			exe, err := os.Executable()
			must(t, err)
			cmd := exec.CommandContext(t.Context(), exe, "-test.v", "-test.count=1", "-test.run", "^"+t.Name()+"$")
			cmd.Env = append(os.Environ(), inChild+"=yes")
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
				t.Errorf("in a child process: %v\n%s", err, out)
			}
			return
		}
		for _, err := range []error{syscall.Setgroups(nil), syscall.Setgid(65534), syscall.Setuid(65534)} {
			must(t, err)
		}
	}
	chmod := func(mode os.FileMode, name ...string) {
		t.Helper()
		must(t, os.Chmod(filepath.Join(name...), mode))
	}
	dir, s := emptyDirectory(t)
	denied := answer{err: os.ErrPermission, text: "allow the SPIRE server's user to search the directory, and to read it"}
	write(t, dir, hash(1), `{"name": "a"}`)
	write(t, dir, hash(2)[:2]+"/"+hash(2), "")
	write(t, dir, hash(3), `{"name": "a"}`)

	chmod(0, dir, hash(3))
	expect(t, s, hash(3), listed) // without its name
	chmod(0, dir, hash(2)[:2])
	expect(t, s, hash(2), denied)
	expect(t, s, hash(4), notListed)
	chmod(0o755, dir, hash(2)[:2])

	for _, mode := range []os.FileMode{0, 0o444, 0o111} {
		chmod(mode, dir)
		for i := 1; i <= 4; i++ {
			expect(t, s, hash(i), denied)
		}
	}
	chmod(0o755, dir)
	expect(t, s, hash(4), notListed)
}

// TestNoDescriptorLeft stops a check that leaves a descriptor open, whatever its answer,
// from using up the server's.
func TestNoDescriptorLeft(t *testing.T) {
	dir, s := emptyDirectory(t)
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
			for i := range 200 {
				ev := evidence(hash(i % 9))
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
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
