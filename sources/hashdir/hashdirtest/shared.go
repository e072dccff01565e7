package hashdirtest

import (
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// MountShared mounts the folder served at another folder, like a client of a file server that has
// other clients as well: a file that is written directly to served is visible at the next look, but
// no watch reports it. It is unmounted when the test ends. The test fails if FUSE is not available.
func MountShared(t testing.TB, served, at string) {
	t.Helper()
	root, err := fs.NewLoopbackRoot(served)
	if err != nil {
		t.Fatal(err)
	}
	server, err := fs.Mount(at, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true}})
	if err != nil {
		t.Fatalf("mount a file system at %s: %v: this test needs /dev/fuse and to be root", at, err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}
