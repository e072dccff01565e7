package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir/hashdirtest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// No watch here sees what another host writes to a network file system; it is noticed all the same,
// by polling.
func TestChangedByAnotherHost(t *testing.T) {
	served := t.TempDir()
	here, there := t.TempDir(), t.TempDir()
	hashdirtest.MountShared(t, served, here)
	hashdirtest.MountShared(t, served, there)
	path := filepath.Join(here, "list")
	write(t, filepath.Join(there, "list"), text(0))

	way, err := routeTo(path)
	must(t, err)
	way.names[filepath.Join(here, "mark")] = true
	w, err := inotify(way)
	must(t, err)
	r := start(t, loaded(t, Config{Path: path, Every: 20 * time.Millisecond}))
	for i := 1; i <= 5; i++ {
		if i%2 == 0 {
			write(t, filepath.Join(there, "list"), text(i))
		} else {
			replace(t, filepath.Join(there, "list"), text(i))
		}
		r.until(t, i, "listed")
		want(t, r.Source, i-1, "not listed")
	}
	select {
	case <-w.changed():
		t.Error("the watch has seen a change by another host: this test tests nothing")
	default:
	}
	write(t, filepath.Join(here, "mark"), "") // it does see those from here
	select {
	case <-w.changed():
	case <-time.After(patience):
		t.Error("the watch sees nothing at all: this test tests nothing")
	}
	r.stop()
	w.close()
}

// A disk that returns errors neither removes a machine from a list nor adds one, and the error is
// reported.
func TestFailingDisk(t *testing.T) {
	disk := hashdirtest.MountFault(t, map[string]string{"list": text(1)})
	s := loaded(t, Config{Path: filepath.Join(disk.Dir, "list")})
	for range 3 {
		disk.Fail(syscall.EIO)
		if err := s.Load(t.Context()); !errors.Is(err, syscall.EIO) {
			t.Errorf("Load: %v, want %v", err, syscall.EIO)
		}
		want(t, s, 1, "listed")
		want(t, s, 2, "not listed")
		disk.Heal()
		must(t, s.Load(t.Context()))
	}
}

// A longFile reports a greater length than it has, like a file whose size a client of a file server
// has cached.
type longFile struct {
	fs.Inode
	content string
}

func (f *longFile) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = syscall.S_IFREG|0o644, uint64(len(f.content)+1)
	return 0
}

func (f *longFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (f *longFile) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	rest := f.content[min(off, int64(len(f.content))):]
	return fuse.ReadResultData([]byte(rest[:min(len(dest), len(rest))])), 0
}

// A text list that is shorter than its reported size is refused, even if it looks like a list: its
// end is missing.
func TestShorterThanItsSize(t *testing.T) {
	at := t.TempDir()
	root := &fs.Inode{}
	server, err := fs.Mount(at, root, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true},
		OnAdd: func(ctx context.Context) {
			file := root.NewPersistentInode(ctx, &longFile{content: text(1)}, fs.StableAttr{Mode: syscall.S_IFREG})
			root.AddChild("list", file, true)
		},
	})
	if err != nil {
		t.Fatalf("mount a file system: %v: this test needs /dev/fuse and to be root", err)
	}
	t.Cleanup(func() { must(t, server.Unmount()) })
	s := open(t, Config{Path: filepath.Join(at, "list")})
	refused(t, s, "keeps changing while it is read")
	want(t, s, 1, "cannot tell")
}

// A hanging mount delays no attestation, costs one goroutine however long it hangs, and does not
// keep the Set from closing.
func TestHungMount(t *testing.T) {
	disk := hashdirtest.MountFault(t, map[string]string{"list": text(1)})
	s := loaded(t, Config{Path: filepath.Join(disk.Dir, "list"), Every: time.Second})
	member := admission.Member{Name: "lab", Kind: "hash_file", Source: s}
	set, err := admission.NewSet([]admission.Member{member}, policy.AnyOf("lab"),
		admission.Options{LoadTimeout: 50 * time.Millisecond})
	must(t, err)
	set.Start(t.Context(), nil)
	disk.Hang()
	for deadline := time.Now().Add(patience); set.Status()[0].Err == nil; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("nobody is told that the list cannot be loaded")
		}
	}
	before := runtime.NumGoroutine()
	for range 20 {
		want(t, s, 1, "listed")
		want(t, s, 2, "not listed")
	}
	if n := runtime.NumGoroutine() - before; n > 5 {
		t.Errorf("%d more goroutines", n)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		set.Close()
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("Close is stuck")
	}
	disk.Heal()
	want(t, loaded(t, Config{Path: s.cfg.Path}), 1, "listed")
}

// Errors of a file system while the route to a file is examined do not end Watch.
func TestUnreadableFolder(t *testing.T) {
	disk := hashdirtest.MountFault(t, map[string]string{"list": text(1)})
	s := loaded(t, Config{Path: filepath.Join(disk.Dir, "list"), Every: 5 * time.Millisecond})
	r := start(t, s)
	must(t, r.turn(t))
	disk.Fail(syscall.EIO)
	for failed := false; !failed; {
		failed = r.turn(t) != nil
	}
	disk.Heal()
	for failed := true; failed; {
		failed = r.turn(t) != nil
	}
	want(t, s, 1, "listed")
	r.stop()
	disk.Unmount()
	if _, err := os.Stat(s.cfg.Path); err == nil {
		t.Error("it is still there")
	}
	refused(t, s, "no such file")
	want(t, s, 1, "listed")
}
