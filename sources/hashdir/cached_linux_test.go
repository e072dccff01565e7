package hashdir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir/hashdirtest"
)

// remembers reports whether the kernel can be asked what it remembers.
func remembers(t *testing.T) bool {
	t.Helper()
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: resolveCached}
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &how)
	if err != nil {
		t.Logf("this kernel, or a filter in front of it, does not tell what it remembers: %v", err)
		return false
	}
	_ = unix.Close(fd)
	return true
}

// atHand returns what a source says at once of a TPM: listed, not listed, or that it
// would have to wait.
func atHand(t *testing.T, s *Source, h string) string {
	t.Helper()
	v, err := s.CheckNow(t.Context(), &sources.Evidence{EKHash: h})
	switch {
	case errors.Is(err, sources.ErrWouldWait):
		return "would wait"
	case err != nil:
		t.Fatalf("CheckNow says %v, %v", v, err)
	case v.Listed:
		return "listed"
	}
	return "not listed"
}

// TestAtHand: what is at hand follows the directory at once, or a machine that was
// removed a moment ago would be admitted for as long as the kernel remembers it.
func TestAtHand(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "hashes")
	entry := hash(1)[:2] + "/" + hash(1)
	write(t, dir, entry, "")
	s := open(t, Config{Path: dir})
	trust(t, s)
	want := "listed"
	if !remembers(t) {
		want = "would wait"
	}
	expectCheck(t, s, hash(1), listed)
	if got := atHand(t, s, hash(1)); got != want {
		t.Errorf("an entry that was just looked for: %s, want %s", got, want)
	}
	not := func(when, wrong string) {
		t.Helper()
		if got := atHand(t, s, hash(1)); got == wrong {
			t.Errorf("%s: %s", when, got)
		}
	}
	if err := os.Remove(filepath.Join(dir, entry)); err != nil {
		t.Fatal(err)
	}
	not("the entry was removed", "listed")
	expectCheck(t, s, hash(1), notListed)
	not("the entry was removed and looked for", "listed")
	write(t, dir, entry, "")
	not("the entry is there again", "not listed")
	expectCheck(t, s, hash(1), listed)
	write(t, dir, entry, `{"name": "a"}`)
	not("what the entry says would have to be read", "listed")
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	not("the directory was moved away", "listed")
	not("the directory was moved away", "not listed")
	write(t, dir, hash(2), "")
	not("the directory was replaced", "listed")
}

// TestVolumeIsLearned: which file system the directory is on is found out where that
// may take its time. Until then, and where it is not a local one, nothing is asked in
// place: a file system may wait for a server whatever it is told, and what hangs there
// hangs without a deadline.
func TestVolumeIsLearned(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, hash(1)[:2]+"/"+hash(1), "")
	there, err := volumeAt(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{Path: dir})
	calls := 0
	s.openCached = func(path string) (directory, uint64, error) {
		calls++
		return openCached(path)
	}
	step := func(when, want string, wantCalls int) {
		t.Helper()
		calls = 0
		if got := atHand(t, s, hash(1)); got != want || calls != wantCalls {
			t.Errorf("%s: %s after %d calls, want %s after %d", when, got, calls, want, wantCalls)
		}
	}
	known := func(local bool) {
		s.volume.Store(&volume{device: there.device, local: local, learned: time.Now()})
	}
	step("nothing is known", "would wait", 0)
	known(false)
	step("not local", "would wait", 0)
	expectCheck(t, s, hash(1), listed)
	step("not local, a moment ago", "would wait", 0)
	if !remembers(t) {
		return
	}
	known(true)
	expectCheck(t, s, hash(1), listed)
	step("local", "listed", 1)
	s.volume.Store(&volume{device: there.device + 1, local: true})
	step("local, and on another one since", "would wait", 1)
	step("that is known", "would wait", 0)
	expectCheck(t, s, hash(1), listed)
	if there.local {
		step("it was found out", "listed", 1)
	} else {
		step("it was found out", "would wait", 0)
	}
	s.volume.Store(&volume{device: there.device, learned: time.Now().Add(-learnAgain)})
	expectCheck(t, s, hash(1), listed)
	if v := s.volume.Load(); v.local != there.local || time.Since(v.learned) > learnAgain/2 {
		t.Errorf("after a minute the volume is %+v, want %+v learned anew", v, there)
	}
}

// TestOthersMayChangeIt: of a file system that is changed behind the kernel's back,
// as NFS is by other hosts, nothing is at hand, or a machine would be admitted for a
// minute after it was removed there.
func TestOthersMayChangeIt(t *testing.T) {
	dir, hour := t.TempDir(), time.Hour
	root := &fs.Inode{}
	server, err := fs.Mount(dir, root, &fs.Options{
		EntryTimeout: &hour, AttrTimeout: &hour, NegativeTimeout: &hour, // so that the kernel remembers
		MountOptions: fuse.MountOptions{FsName: "hashdirtest", DirectMount: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild(hash(1), root.NewPersistentInode(ctx, &fs.MemRegularFile{}, fs.StableAttr{}), true)
		},
	})
	if err != nil {
		t.Fatalf("mount a file system at %s: %v", dir, err)
	}
	defer func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	}()
	s := open(t, Config{Path: dir})
	for range 3 {
		expectCheck(t, s, hash(1), listed)
		if got := atHand(t, s, hash(1)); got != "would wait" {
			t.Errorf("at hand: %s", got)
		}
	}
	if v := s.volume.Load(); v == nil || v.local {
		t.Errorf("the volume is %+v, want one that is not local", v)
	}
	if !remembers(t) {
		return
	}
	trust(t, s) // as nothing but this test does: the kernel has it at hand
	if got := atHand(t, s, hash(1)); got != "listed" {
		t.Errorf("the kernel remembers: %s", got)
	}
}

// TestAtHandDoesNotHang: where a mount hangs, what is at hand is not waited for, since
// nothing ends that.
func TestAtHandDoesNotHang(t *testing.T) {
	mount := hashdirtest.MountFault(t, map[string]string{hash(1): ""})
	s := open(t, Config{Path: mount.Dir})
	expectCheck(t, s, hash(1), listed)
	trust(t, s)
	mount.Hang()
	defer mount.Heal()
	said := make(chan string, 1)
	go func() { said <- atHand(t, s, hash(1)) }()
	select {
	case got := <-said:
		if got != "would wait" {
			t.Errorf("of a mount that hangs: %s", got)
		}
	case <-time.After(20 * time.Second):
		t.Error("CheckNow has been waiting for a mount that hangs")
	}
}
