package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A text list that is being written is not taken for a list that ends there. A writer at work is
// waited for, and one that never ends is reported.
func TestWriterAtWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := listIn(t, text(1, 2, 3))
		s := loaded(t, Config{Path: path})
		s.quiet = quietTime

		write(t, path, text(1))
		go func() {
			time.Sleep(quietTime / 2) // in the clock of the bubble: while Load waits
			write(t, path, text(1, 2))
			time.Sleep(quietTime)
			write(t, path, text(1, 2, 3, 4))
		}()
		must(t, s.Load(t.Context()))
		want(t, s, 4, "listed")

		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for n := 1; ctx.Err() == nil; n++ {
				write(t, path, strings.Repeat("#", n)+"\n"+text(1))
				time.Sleep(quietTime / 2)
			}
		}()
		refused(t, s, "keeps changing while it is read: write a new file and rename it over this one")
		want(t, s, 4, "listed")

		ended, end := context.WithCancel(t.Context())
		time.AfterFunc(quietTime/2, end)
		if err := s.Load(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("Load whose context ends while it waits: %v", err)
		}
		cancel()
		synctest.Wait()
		time.Sleep(quietTime)
	})
}

// Anything that is not a regular file is reported, and never waited for.
func TestNotAFile(t *testing.T) {
	dir := t.TempDir()
	fifo, folder, loop := filepath.Join(dir, "fifo"), filepath.Join(dir, "folder"), filepath.Join(dir, "loop")
	must(t, syscall.Mkfifo(fifo, 0o600))
	must(t, os.Mkdir(folder, 0o700))
	must(t, os.Symlink("loop", loop))
	for path, says := range map[string]string{
		fifo:                         "is not a regular file",
		"/dev/zero":                  "is not a regular file",
		folder:                       "is a folder: name the file in it",
		loop:                         "too many levels of symbolic links",
		filepath.Join(dir, "absent"): "no such file or directory",
		filepath.Join(fifo, "list"):  "not a directory",
	} {
		s := open(t, Config{Path: path})
		refused(t, s, says)
		want(t, s, 1, "cannot tell")
	}
}

// A file that something else has taken the place of between two looks is not
// opened for longer than it takes to see that.
func TestSwappedForAFifo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "list")
	must(t, syscall.Mkfifo(path, 0o600))
	fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_NONBLOCK, 0)
	must(t, err)
	f := openFile(fd)
	defer f.close()
	id, err := f.look()
	must(t, err)
	if err := id.regular(); err == nil {
		t.Error("a FIFO is a regular file")
	}
}

// A list longer than allowed is refused before it is read, and by its length
// while it is read where its size was another one.
func TestTooLong(t *testing.T) {
	path := listIn(t, text(1))
	s := loaded(t, Config{Path: path, MaxBytes: 130})
	write(t, path, text(1, 2))
	must(t, s.Load(t.Context()))
	write(t, path, text(1, 2, 3))
	err := s.Load(t.Context())
	if !errors.Is(err, list.ErrTooLong) {
		t.Errorf("Load of a list that is too long: %v", err)
	}
	want(t, s, 2, "listed")
	want(t, s, 3, "not listed")
}

// A file that was replaced by another of the same size within the resolution of
// the file system's clock is read once more; after that it is not read again
// until it looks otherwise.
func TestSameLookOtherContent(t *testing.T) {
	path := listIn(t, text(1))
	s := loaded(t, Config{Path: path})
	pretend := func(since time.Time) { // that the file looked like that already
		id, err := lookAt(path)
		must(t, err)
		s.seen, s.since, s.tag = id, since, ""
	}
	write(t, path, text(2))
	pretend(s.cfg.Now())
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	if s.tag != "" {
		t.Error("a file that has just been written is taken for one that stays so")
	}
	pretend(s.cfg.Now().Add(-settleTime))
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	if s.tag == "" {
		t.Error("a file that was read once more would be read again and again")
	}
	first := *s.confirmed.Load()
	c, err := s.Read(t.Context(), s.tag)
	if err != nil || c.Data != nil || c.Tag != s.tag || !c.At.After(first) {
		t.Errorf("a look at the file has not confirmed the list: %+v, %v", c, err)
	}
}

// If two times have monotonic clock readings, package time subtracts only those: a wall clock that
// jumps makes a list neither older nor younger.
func TestAgeIsMonotonic(t *testing.T) {
	s := loaded(t, Config{Path: listIn(t, text(1))})
	if confirmed := s.confirmed.Load(); !strings.Contains(confirmed.String(), " m=") {
		t.Errorf("the age of a list confirmed at %v is by the wall clock", confirmed)
	}
}

// A mistake in the configuration is found before anything runs.
func TestNew(t *testing.T) {
	for says, cfg := range map[string]Config{
		"path is missing":        {},
		"zero byte":              {Path: "a\x00b"},
		"must be from 1":         {Path: "a", MaxBytes: -1},
		"must be from 1 to 4294": {Path: "a", MaxBytes: list.MostMaxBytes + 1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("New(%+v): %v, want an error that says %q", cfg, err, says)
		}
	}
	o, err := New(Config{Path: "a"})
	must(t, err)
	if o.cfg.MaxBytes != list.DefaultMaxBytes || o.cfg.Every != list.DefaultEvery || o.cfg.Now == nil {
		t.Errorf("defaults %+v", o.cfg)
	}
}
