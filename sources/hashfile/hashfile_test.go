package hashfile

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A mistake in the configuration is found before anything runs.
func TestNew(t *testing.T) {
	for says, cfg := range map[string]Config{
		"path is missing":        {},
		"must be positive":       {Path: "a", PollInterval: -1},
		"twice poll_interval":    {Path: "a", PollInterval: time.Hour, MaxStaleness: time.Hour},
		"must be from 1 to 4294": {Path: "a", MaxBytes: -1},
	} {
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("New(%+v): %v, want an error that says %q", cfg, err, says)
		}
	}
	s, err := New(Config{Path: "a"})
	must(t, err)
	if got := s.Schedule(); got != (sources.Schedule{Every: list.DefaultEvery, Early: true}) {
		t.Errorf("%+v", got)
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

// While a file has been truncated but not written yet, its last list is used, even if the writer
// was killed at that point.
func TestEmptyIsNotNobody(t *testing.T) {
	path := listIn(t, text(1))
	s := loaded(t, Config{Path: path})
	must(t, os.Truncate(path, 0))
	refused(t, s, "no entry")
	want(t, s, 1, "listed")
	s = loaded(t, Config{Path: path, AllowEmpty: true})
	want(t, s, 1, "not listed")
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
	s := open(t, Config{Path: path, Now: func() time.Time { return now }})
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
	refused(t, s, "the list expired at 2030-01-01T00:30:00Z: publish one with a later date")

	replace(t, path, jsonList(`"serial": 2`, 2))
	must(t, s.Load(t.Context()))
	want(t, s, 2, "listed")
	replace(t, path, jsonList(`"serial": 3, "expires": "2030-01-01T00:10:00Z"`, 3))
	refused(t, s, "list expired")
	want(t, s, 2, "listed")
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
	})
}

// A list that has lost most of its machines, or has a misspelt field, is used as it is, with a
// warning until another list is there.
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

// Each of many attestations during many reloads sees one whole list.
func TestWholeListsOnly(t *testing.T) {
	const machines, reloads, attestations = 200, 100, 1000
	version := func(n int) string { return many(0, machines, fmt.Sprintf("- version:%d", n)) }
	path := listIn(t, version(0))
	s := loaded(t, Config{Path: path})
	done := make(chan struct{})
	var work sync.WaitGroup
	for worker := range 4 {
		work.Go(func() {
			seen := 0
			for i := 0; ; i++ {
				v, err := s.Check(context.Background(), &sources.Evidence{EKHash: hash((worker + i) % machines)})
				if err != nil || !v.Listed || len(v.Attributes.Labels) != 1 {
					t.Errorf("attestation %d says %+v, %v", i, v, err)
					return
				}
				var n int
				if _, err := fmt.Sscanf(v.Attributes.Labels[0], "version:%d", &n); err != nil || n < seen {
					t.Errorf("version %s after version %d", v.Attributes.Labels[0], seen)
					return
				}
				seen = n
				select {
				case <-done:
					if i >= attestations {
						return
					}
				default:
				}
				runtime.Gosched() // who reloads gets its turn
			}
		})
	}
	for n := 1; n <= reloads; n++ {
		if n%2 == 0 {
			write(t, path, version(n))
		} else {
			replace(t, path, version(n))
		}
		if err := s.Load(t.Context()); err != nil {
			t.Errorf("reload %d: %v", n, err)
		}
	}
	close(done)
	work.Wait()
}
