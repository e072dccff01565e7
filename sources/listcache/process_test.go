package listcache_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

// childEnv names a file, for a test binary that was started by one of its tests.
const childEnv = "LISTCACHE_TEST_CHILD"

func TestMain(m *testing.M) {
	path := os.Getenv(childEnv)
	if path == "" {
		os.Exit(m.Run())
	}
	if err := child(path, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(path, task string) error {
	switch task {
	case "rotate":
		return rotate(path)
	case "twice":
		return saveTwice(path)
	case "hold":
		return holdOpen(path)
	case "full":
		return fillDisk(path, 12<<10+100)
	case "full, in fewer steps":
		return fillDisk(path, 60<<10+100)
	}
	return fmt.Errorf("no task %q", task)
}

// start starts this binary as another process.
func start(t *testing.T, path, task string) (cmd *exec.Cmd, out *bufio.Reader) {
	t.Helper()
	cmd = exec.CommandContext(t.Context(), os.Args[0], task)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewReader(pipe)
}

// listAt is the list that is saved at a step.
func listAt(step uint64) (*eklist.Snapshot, error) {
	begin := step + 50_000*(step/5%2)
	b := eklist.NewBuilder(serial(step), 12_000)
	for n := begin; n < begin+12_000; n++ {
		if err := b.Add(hashOf(n), nil); err != nil {
			return nil, err
		}
	}
	return b.Snapshot()
}

// rotate saves one list after the other until it is killed, and says before and
// after each which one.
func rotate(path string) error {
	ctx, c := context.Background(), listcache.New(path, maxBytes, url, listID)
	there, _, err := c.Load(ctx)
	step := uint64(1)
	switch {
	case err == nil:
		step += there.Header().Serial
	case !errors.Is(err, listcache.ErrNone):
		return err
	}
	for ; ; step++ {
		next, err := listAt(step)
		if err != nil {
			return err
		}
		fmt.Println("begun", step)
		if err := c.Save(ctx, next, meta(int(step))); err != nil {
			return err
		}
		fmt.Println("saved", step)
	}
}

// A process that is killed at any write leaves the list before or the list after,
// whole, and never one from before what it has said to be saved.
func TestKilled(t *testing.T) {
	_, path := newCache(t)
	random := rand.New(rand.NewPCG(5, 6))
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	var steps struct{ begun, saved uint64 }
	drafts := 0
	for range rounds {
		cmd, out := start(t, path, "rotate")
		read := func() bool {
			var what string
			var step uint64
			if _, err := fmt.Fscanln(out, &what, &step); err != nil {
				return false
			}
			if what == "begun" {
				steps.begun = step
			} else {
				steps.saved = step
			}
			return true
		}
		for range 1 + 2*random.IntN(6) {
			if !read() {
				t.Fatal("the child has ended by itself")
			}
		}
		// A Save has begun. It is killed at some moment of it: a look at its
		// files takes microseconds, and a Save some thousands of them.
		for range random.IntN(3000) {
			_, _ = os.Lstat(path + ".new")
		}
		cmd.Process.Kill()
		more := true
		for more { // the rest of what it has said
			more = read()
		}
		cmd.Wait()
		if _, err := os.Lstat(path + ".new"); err == nil {
			drafts++
		}
		checkAfterKill(t, path, steps.begun, steps.saved)
	}
	t.Logf("killed %d times, %d of them while it wrote; serial %d at the end", rounds, drafts, steps.saved)
	if drafts < rounds/10 {
		t.Errorf("only %d of %d were killed while they wrote: this shows little", drafts, rounds)
	}
}

func checkAfterKill(t *testing.T, path string, begun, saved uint64) {
	t.Helper()
	got, m, err := listcache.New(path, maxBytes, url, listID).Load(t.Context())
	if errors.Is(err, listcache.ErrNone) && saved == 0 {
		return
	}
	if err != nil {
		t.Fatalf("begun %d, saved %d: %v", begun, saved, err)
	}
	step := got.Header().Serial
	want, err := listAt(step)
	if err != nil {
		t.Fatal(err)
	}
	if step < saved || step > begun || !got.SameEntries(want) || m != meta(int(step)) {
		t.Errorf("begun %d, saved %d: found serial %d with %d entries, %+v", begun, saved, step, got.Len(), m)
	}
}

// saveTwice saves a list, and then another one in place of it.
func saveTwice(path string) error {
	for step := uint64(1); step <= 2; step++ {
		list, err := listAt(step)
		if err != nil {
			return err
		}
		if err := listcache.New(path, maxBytes, url, listID).Save(context.Background(), list, meta(int(step))); err != nil {
			return err
		}
	}
	return nil
}

// holdOpen has the file open, as long as its parent reads.
func holdOpen(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	fmt.Println("begun 0")
	select {}
}

// The lock is one that other processes have, and ends with them.
func TestLockedByAnotherProcess(t *testing.T) {
	c, path := newCache(t)
	list := plain(t, 0, 10)
	mustSave(t, c, list, meta(1))
	cmd, out := start(t, path, "hold")
	if _, err := out.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Load(t.Context()); err == nil {
		t.Error("loaded a file that is locked")
	}
	cmd.Process.Kill()
	cmd.Wait()
	wantLoad(t, path, list, meta(1))
}

// A full disk, after any number of bytes: Save fails and the list before stays,
// or it does not and the list after is there.
func TestFullDisk(t *testing.T) {
	_, path := newCache(t)
	task := "full"
	if testing.Short() {
		task = "full, in fewer steps"
	}
	cmd, out := start(t, path, task)
	for {
		line, err := out.ReadString('\n')
		if err != nil {
			break
		}
		t.Log(line)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// fillDisk saves under limits of the length of a file, which the system enforces
// as it does that of a disk, but for the number of the error. Each is larger than
// the one before by some bytes.
func fillDisk(path string, by uint64) error {
	ctx, c := context.Background(), listcache.New(path, maxBytes, url, listID)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	whole := limit.Cur
	previous, err := listAt(1)
	if err != nil {
		return err
	}
	if err := c.Save(ctx, previous, meta(1)); err != nil {
		return err
	}
	failed, step := 0, uint64(2)
	for size := uint64(0); size < 600<<10; size += by {
		for range 2 {
			next, err := listAt(step)
			if err != nil {
				return err
			}
			limit.Cur = size
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
				return err
			}
			saveErr := c.Save(ctx, next, meta(int(step)))
			limit.Cur = whole
			if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
				return err
			}
			got, m, err := c.Load(ctx)
			if err != nil {
				return fmt.Errorf("limit %d, after %w: %w", size, saveErr, err)
			}
			if saveErr == nil {
				previous = next
			} else {
				failed++
			}
			if !got.SameEntries(previous) || m != meta(int(previous.Header().Serial)) {
				return fmt.Errorf("limit %d, after %w: serial %d, want %d", size, saveErr, got.Header().Serial, previous.Header().Serial)
			}
			// A few pages may be left, where not even these were written.
			if info, err := os.Lstat(path + ".new"); err == nil && info.Size() > 4*4096 {
				return fmt.Errorf("limit %d, after %w: a draft of %d bytes is left", size, saveErr, info.Size())
			}
			step += 4
		}
	}
	if failed < 5 {
		return fmt.Errorf("only %d of the writes have failed", failed)
	}
	fmt.Println(failed, "of", (step-2)/4, "writes have failed")
	return nil
}
