// Package hashdirtest mounts a directory of EK hashes that can fail like a broken disk, or hang
// like a mount whose server is gone.
package hashdirtest

import (
	"context"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A Fault is a mounted file system (FUSE) with one directory of files, healthy at first. It is safe
// for concurrent use.
type Fault struct {
	// Dir is where the file system is mounted.
	Dir string

	files   map[string]string
	calls   chan struct{}
	unmount func()

	mu    sync.Mutex
	errno syscall.Errno
	hung  chan struct{} // closed when calls are answered again; nil unless they hang
}

// MountFault mounts a directory with these files, given by name and content. It is unmounted when
// the test ends. The test fails if FUSE is not available.
func MountFault(t testing.TB, files map[string]string) *Fault {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatalf("this test mounts a file system: %v: load the kernel's module (modprobe fuse), "+
			"and give a container --device /dev/fuse --cap-add SYS_ADMIN", err)
	}
	f := &Fault{Dir: t.TempDir(), files: files, calls: make(chan struct{}, 1)}
	server, err := fs.Mount(f.Dir, &directory{fault: f}, &fs.Options{
		// Without time limits the kernel caches nothing: each system call of a check
		// arrives here.
		MountOptions: fuse.MountOptions{
			FsName:      "hashdirtest",
			DirectMount: true, // as root; else by fusermount3
		},
	})
	if err != nil {
		t.Fatalf("mount a file system at %s: %v: as an ordinary user, apt-get install fuse3", f.Dir, err)
	}
	f.unmount = sync.OnceFunc(func() {
		f.Heal()
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount %s: %v", f.Dir, err)
		}
	})
	t.Cleanup(f.unmount)
	return f
}

// Unmount unmounts the file system, which leaves an empty directory. The test fails if a file in it
// is open.
func (f *Fault) Unmount() { f.unmount() }

// Fail makes every call from now on fail with errno.
func (f *Fault) Fail(errno syscall.Errno) {
	f.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errno = errno
}

// Hang makes every call from now on hang. Neither a signal nor a deadline frees the callers.
func (f *Fault) Hang() {
	f.Heal()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hung = make(chan struct{})
}

// Heal makes calls succeed again, including those that hang.
func (f *Fault) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.errno = 0
	if f.hung != nil {
		close(f.hung)
		f.hung = nil
	}
}

// Called returns a channel that receives a value when a call arrives, even if the call hangs.
// Several calls may cause only one value.
func (f *Fault) Called() <-chan struct{} { return f.calls }

// answer waits while calls hang, and returns the answer.
func (f *Fault) answer() syscall.Errno {
	select {
	case f.calls <- struct{}{}:
	default:
	}
	for {
		f.mu.Lock()
		errno, hung := f.errno, f.hung
		f.mu.Unlock()
		if hung == nil {
			return errno
		}
		<-hung
	}
}

// directory is the root of the file system.
type directory struct {
	fs.Inode
	fault *Fault
}

func (d *directory) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = syscall.S_IFDIR | 0o755
	return d.fault.answer()
}

func (d *directory) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if errno := d.fault.answer(); errno != 0 {
		return nil, errno
	}
	content, ok := d.fault.files[name]
	if !ok {
		return nil, syscall.ENOENT
	}
	e := &entry{fault: d.fault, content: content}
	e.attr(&out.Attr)
	return d.NewInode(ctx, e, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

// entry is a file.
type entry struct {
	fs.Inode
	fault   *Fault
	content string
}

func (e *entry) attr(out *fuse.Attr) {
	out.Mode = syscall.S_IFREG | 0o644
	out.Size = uint64(len(e.content))
}

func (e *entry) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	e.attr(&out.Attr)
	return e.fault.answer()
}

func (e *entry) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, e.fault.answer()
}

func (e *entry) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	content := []byte(e.content)
	content = content[min(off, int64(len(content))):]
	return fuse.ReadResultData(content[:min(len(dest), len(content))]), e.fault.answer()
}
