package hashdir_test

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An openedDirectory counts how often it was opened to be read.
type openedDirectory struct {
	fs.Inode
	opened atomic.Int64
}

func (d *openedDirectory) Opendir(context.Context) syscall.Errno {
	d.opened.Add(1)
	return 0
}

// TestOpensTheDirectory stops a removal on a file server from being noticed a minute late: an
// NFS client asks its server about a directory that is opened for reading, and otherwise
// answers from memory.
func TestOpensTheDirectory(t *testing.T) {
	listed, unknown := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
	root, dir := &openedDirectory{}, t.TempDir()
	server, err := fs.Mount(dir, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true},
		OnAdd: func(ctx context.Context) {
			file := root.NewPersistentInode(ctx, &fs.MemRegularFile{}, fs.StableAttr{})
			root.AddChild(listed.EKHash.String(), file, true)
		},
	})
	must(t, err)
	t.Cleanup(func() { must(t, server.Unmount()) })
	s := newSource(t, dir)
	for range 3 {
		for _, ev := range []*sources.Evidence{listed, unknown} {
			before := root.opened.Load()
			if v, err := s.Check(t.Context(), ev); err != nil || v.Listed != (ev == listed) {
				t.Errorf("Check says %v, %v", v, err)
			}
			if root.opened.Load() == before {
				t.Error("Check has not opened the directory to be read")
			}
		}
	}
}
