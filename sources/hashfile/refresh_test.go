package hashfile

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

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
)

// A mistake in the configuration is found before anything runs.
func TestNew(t *testing.T) {
	for says, cfg := range map[string]Config{
		"path is missing":            {},
		"zero byte":                  {Path: "a\x00b"},
		"must be positive":           {Path: "a", PollInterval: -1},
		"twice poll_interval":        {Path: "a", PollInterval: time.Hour, MaxStaleness: time.Hour},
		"is -1, but must be from 1":  {Path: "a", MaxBytes: -1},
		"must be from 1 to 42949672": {Path: "a", MaxBytes: eklist.MaxBytes + 1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("New(%+v): %v, want an error that says %q", cfg, err, says)
		}
	}
	s, err := New(Config{Path: "a"})
	must(t, err)
	want := Config{"a", DefaultPollInterval, DefaultMaxStaleness, eklist.DefaultMaxBytes, false}
	if s.cfg != want {
		t.Errorf("defaults %+v, want %+v", s.cfg, want)
	}
}

// What a list says of a machine and of itself reaches those who ask.
func TestStatusAndAttributes(t *testing.T) {
	path := listIn(t, `{"serial": 7, "keys": [{"hash": "`+hash(1).String()+`", "name": "one", "labels": ["rack:12"]}]}`)
	s := loaded(t, Config{Path: path})
	v, err := s.Check(t.Context(), &sources.Evidence{EKHash: hash(1)})
	if err != nil || v.Attributes.Name != "one" || len(v.Attributes.Labels) != 1 {
		t.Errorf("Check says %+v, %v", v, err)
	}
	st := s.Status()
	if st.Entries != 1 || st.Serial != 7 || st.Loaded.IsZero() || st.Confirmed.IsZero() || len(st.Warnings) > 0 {
		t.Errorf("status %+v", st)
	}
}

// A file that is cut off at any byte, by a full disk or a writer that was killed,
// takes nobody off a list and puts nobody on it.
func TestCutAnywhere(t *testing.T) {
	whole := strings.TrimSpace(jsonList(`"serial": 2, "expires": "2999-01-01T00:00:00Z"`, 1, 2))
	path := listIn(t, jsonList(`"serial": 1`, 1, 3))
	s := loaded(t, Config{Path: path})
	for cut := range len(whole) {
		write(t, path, whole[:cut])
		refused(t, s, "")
		want(t, s, 2, "not listed")
		want(t, s, 3, "listed")
	}
	write(t, path, whole)
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	want(t, s, 3, "not listed")
}

// Between truncating a file and writing it, its last list serves; so it does
// where the writer was killed there.
func TestEmptyIsNotNobody(t *testing.T) {
	path := listIn(t, text(1))
	s := loaded(t, Config{Path: path})
	must(t, os.Truncate(path, 0))
	refused(t, s, "no entry")
	want(t, s, 1, "listed")
	s.cfg.AllowEmpty = true
	must(t, s.Load(t.Context()))
	want(t, s, 1, "not listed")
}

// A text that is being written is not taken for a list that ends there. A writer
// who is at work is waited for, and one who never ends is said.
func TestWriterAtWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := listIn(t, text(1, 2, 3))
		s := loaded(t, Config{Path: path})
		s.quiet = quietTime

		write(t, path, text(1))
		go func() {
			time.Sleep(quietTime / 2) // in the clock of the bubble: while Refresh waits
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

// What is not a file is said, and never waited for.
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
	if !errors.Is(err, eklist.ErrTooLong) {
		t.Errorf("Load of a list that is too long: %v", err)
	}
	want(t, s, 2, "listed")
	want(t, s, 3, "not listed")
}

// Somebody who can write the file, and kept a copy from before a machine was
// revoked, does not bring it back.
func TestReplay(t *testing.T) {
	path := listIn(t, jsonList(`"serial": 5`, 1))
	s := loaded(t, Config{Path: path})
	for content, says := range map[string]string{
		jsonList(`"serial": 4`, 1, 2): "serial 4 after serial 5",
		jsonList(`"serial": 5`, 1, 2): "different entries with the same serial 5",
		jsonList(``, 1, 2):            "without a serial",
		text(1, 2):                    "without a serial",
	} {
		replace(t, path, content)
		refused(t, s, says)
		want(t, s, 2, "not listed")
	}
	replace(t, path, jsonList(`"serial": 6`, 1, 2))
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
}

// A list serves until it expires and not a moment longer, and one that has
// expired takes no list's place.
func TestExpires(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	path := listIn(t, jsonList(`"serial": 1, "expires": "2030-01-01T01:00:00+00:30"`, 1))
	s := open(t, Config{Path: path})
	s.now = func() time.Time { return now }
	must(t, s.Load(t.Context()))
	loadedAt := s.Status().Loaded
	if until := s.Status().Expires; !until.Equal(now.Add(30 * time.Minute)) {
		t.Errorf("the list expires at %v", until)
	}
	now = now.Add(30*time.Minute - 1)
	want(t, s, 1, "listed")
	must(t, s.Load(t.Context()))
	if got := s.Status().Loaded; !got.Equal(loadedAt) {
		t.Errorf("the same list was loaded at %v and at %v", loadedAt, got)
	}
	now = now.Add(1)
	want(t, s, 1, "cannot tell")
	refused(t, s, "the list expired at 2030-01-01T00:30:00Z: write a newer one")

	replace(t, path, jsonList(`"serial": 2`, 2))
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	replace(t, path, jsonList(`"serial": 3, "expires": "2030-01-01T00:10:00Z"`, 3))
	refused(t, s, "list expired")
	want(t, s, 2, "listed")
}

// A file that was replaced by another of the same size within the resolution of
// the file system's clock is read once more; after that it is not read again
// until it looks otherwise.
func TestSameLookOtherContent(t *testing.T) {
	path := listIn(t, text(1))
	s := loaded(t, Config{Path: path})
	first := *s.state.Load()

	write(t, path, text(2))
	id, err := lookAt(path)
	must(t, err)
	pretend := func(since time.Time, settled bool) {
		st := first
		st.file, st.since, st.settled = id, since, settled
		s.state.Store(&st)
	}
	pretend(s.now(), false)
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	if s.state.Load().settled {
		t.Error("a file that has just been written is taken for one that stays so")
	}

	pretend(s.now().Add(-settleTime), false)
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	if !s.state.Load().settled {
		t.Error("a file that was read once more would be read again and again")
	}

	pretend(s.now(), true) // a lie, which shows that it is not read
	must(t, s.Load(t.Context()))
	want(t, s, 1, "listed")
	if !s.state.Load().confirmed.After(first.confirmed) {
		t.Error("a look at the file has not confirmed the list")
	}
}

// While a list cannot be read the last one serves, until it is too old; once the
// file is good it serves again.
func TestStaleness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := listIn(t, text(1))
		s := open(t, Config{Path: path, PollInterval: time.Minute, MaxStaleness: time.Hour})
		must(t, s.Load(t.Context()))
		time.Sleep(40 * time.Minute)
		must(t, s.Load(t.Context())) // it was there 40 minutes after it was written
		must(t, os.Rename(path, path+".away"))
		time.Sleep(time.Hour - time.Since(s.Status().Confirmed))
		refused(t, s, "no such file")
		want(t, s, 1, "listed")
		want(t, s, 2, "not listed")
		time.Sleep(time.Nanosecond)
		want(t, s, 1, "cannot tell")
		want(t, s, 2, "cannot tell")
		if _, err := s.Check(t.Context(), &sources.Evidence{}); err == nil ||
			!strings.Contains(err.Error(), "stale") || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("Check says %v, and not since when and why", err)
		}
		must(t, os.Rename(path+".away", path))
		must(t, s.Load(t.Context()))
		want(t, s, 1, "listed")

		// Without a monotonic clock, the future says nothing of an age.
		s.now = func() time.Time { return time.Now().Round(0).Add(-time.Hour) }
		want(t, s, 1, "cannot tell")
	})
}

// Package time subtracts two times that have a monotonic clock's reading by that
// alone: a wall clock that jumps makes a list neither older nor younger.
func TestAgeIsMonotonic(t *testing.T) {
	s := loaded(t, Config{Path: listIn(t, text(1))})
	if confirmed := s.state.Load().confirmed; !strings.Contains(confirmed.String(), " m=") {
		t.Errorf("the age of a list confirmed at %v is by the wall clock", confirmed)
	}
}

// A list that has lost most of its machines, and a misspelt field in it, are served as
// they are, and said until another list is there.
func TestWarningsOfTheList(t *testing.T) {
	var before []string
	for i := range 30 {
		before = append(before, hash(i).String())
	}
	path := listIn(t, strings.Join(before, "\n"))
	s := loaded(t, Config{Path: path})
	if w := s.Status().Warnings; len(w) != 0 {
		t.Fatalf("%q", w)
	}
	replace(t, path, `{"keys": [{"hash": "`+hash(1).String()+`", "label": ["a"]}]}`)
	for range 2 {
		must(t, s.Load(t.Context()))
		w := strings.Join(s.Status().Warnings, "\n")
		if !strings.Contains(w, `is it meant to be "labels"?`) ||
			!strings.Contains(w, "it has 1 entries now and had 30 before, of which 29 are gone") {
			t.Errorf("warnings %q", w)
		}
		want(t, s, 1, "listed")
	}
	replace(t, path, `{"keys": [{"hash": "`+hash(1).String()+`", "labels": ["a"]}]}`)
	must(t, s.Load(t.Context()))
	if w := s.Status().Warnings; len(w) != 0 {
		t.Errorf("%q", w)
	}
}
