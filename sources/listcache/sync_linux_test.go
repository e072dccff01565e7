package listcache_test

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// A disk is a mounted file system that knows which of its files have not been
// synced since they were written to.
type disk struct {
	writes, renames, early atomic.Int64
}

type diskNode struct {
	*fs.LoopbackNode
	disk  *disk
	dirty atomic.Bool
}

// WrapChild makes one of all that is in a folder.
func (n *diskNode) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &diskNode{LoopbackNode: ops.(*fs.LoopbackNode), disk: n.disk}
}

// A diskFile is one whose writes the kernel does not make by itself.
type diskFile struct{ *fs.LoopbackFile }

func (diskFile) PassthroughFd() (int, bool) { return -1, false }

func (n *diskNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, fuseFlags, errno := n.LoopbackNode.Open(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return diskFile{f.(*fs.LoopbackFile)}, fuseFlags, 0
}

func (n *diskNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (
	*fs.Inode, fs.FileHandle, uint32, syscall.Errno,
) {
	inode, f, fuseFlags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return inode, diskFile{f.(*fs.LoopbackFile)}, fuseFlags, 0
}

func (n *diskNode) Write(ctx context.Context, f fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	n.dirty.Store(true)
	n.disk.writes.Add(1)
	return f.(fs.FileWriter).Write(ctx, data, off)
}

func (n *diskNode) Fsync(ctx context.Context, f fs.FileHandle, flags uint32) syscall.Errno {
	if fsync, ok := f.(fs.FileFsyncer); ok {
		n.dirty.Store(false)
		return fsync.Fsync(ctx, flags)
	}
	return 0 // a folder
}

func (n *diskNode) Rename(ctx context.Context, name string, to fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	n.disk.renames.Add(1)
	if file, ok := n.GetChild(name).Operations().(*diskNode); !ok || file.dirty.Load() {
		n.disk.early.Add(1)
	}
	return n.LoopbackNode.Rename(ctx, name, to, newName, flags)
}

// mountDisk mounts a folder that holds what is written to the disk.
func mountDisk(t *testing.T) (d *disk, folder, at string) {
	t.Helper()
	d, folder, at = &disk{}, t.TempDir(), t.TempDir()
	data := &fs.LoopbackRoot{Path: folder}
	root := &diskNode{LoopbackNode: &fs.LoopbackNode{RootData: data}, disk: d}
	data.RootNode = root
	server, err := fs.Mount(at, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true}})
	if err != nil {
		t.Fatalf("mount a file system: %v: this test needs /dev/fuse and to be root", err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return d, folder, at
}

// A machine that loses its power right after a list was saved has that list, or the
// one before: a file whose name is on the disk before its content is neither.
//
// Another process writes: one that looks at a mapped file cannot be interrupted, and
// waits for ever where the file system is in the same process.
func TestSyncedBeforeItIsTheCache(t *testing.T) {
	d, folder, at := mountDisk(t)
	cmd, _ := start(t, filepath.Join(at, "tpm.db"), "twice")
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if d.early.Load() != 0 || d.renames.Load() != 2 || d.writes.Load() == 0 {
		t.Errorf("%d of %d renames came before all was on the disk, after %d writes",
			d.early.Load(), d.renames.Load(), d.writes.Load())
	}
	want, err := listAt(2)
	if err != nil {
		t.Fatal(err)
	}
	wantLoad(t, filepath.Join(folder, "tpm.db"), want, meta(2))
}
