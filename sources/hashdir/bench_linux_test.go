package hashdir

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// layouts are the directories on which a check takes at most 1.3 times its bare
// system calls.
var layouts = []struct {
	name  string
	files []string // beside entries of other machines in both forms
}{
	{"flat", []string{hash(1)}},
	{"sharded", []string{hash(1)[:2] + "/" + hash(1)}},
	{"miss", nil},
}

// benchmarkDirectory makes a directory of a thousand machines, half of them in
// shards: the shard of hash(1) is always there.
func benchmarkDirectory(b *testing.B, files []string) string {
	dir := b.TempDir()
	write(b, dir, hash(1)[:2]+"/"+hash(1)[:63]+"0", "")
	for i := range 500 {
		write(b, dir, hash(1000+i), "")
		write(b, dir, hash(2000 + i)[:2]+"/"+hash(2000+i), "")
	}
	for _, f := range files {
		write(b, dir, f, "")
	}
	return dir
}

// BenchmarkCheckOverBare takes turns between checks and their bare system calls, so
// that what else the machine does meets both, and reports the ratio of their medians.
// The bare ones open the directory, stat the names of the entry (both, and all four if
// there is none) and close the directory: what no check that holds nothing in memory can do without.
func BenchmarkCheckOverBare(b *testing.B) {
	for _, l := range layouts {
		dir := benchmarkDirectory(b, l.files)
		s, err := New(Config{Path: dir})
		if err != nil {
			b.Fatal(err)
		}
		bare := bareSyscalls(b, dir, l.files != nil)
		b.Run(l.name, func(b *testing.B) { over(b, bare, asking(b, s.Check, l.files != nil)) })
	}
}

// over takes turns between two sides and reports the ratio of the second to the first.
func over(b *testing.B, bare, check func()) {
	b.Helper()
	const batch = 64
	var took [2][]time.Duration
	for b.Loop() {
		for side, f := range [2]func(){bare, check} {
			begun := time.Now()
			for range batch {
				f()
			}
			took[side] = append(took[side], time.Since(begun))
		}
	}
	var medians [2]float64
	for side, all := range took {
		slices.Sort(all)
		medians[side] = float64(all[len(all)/2].Nanoseconds()) / batch
	}
	b.ReportMetric(medians[0], "bare-ns")
	b.ReportMetric(medians[1], "check-ns")
	b.ReportMetric(medians[1]/medians[0], "ratio")
}

// asking returns what asks about hash(1).
func asking(b *testing.B, check sourcetest.Answer, want bool) func() {
	b.Helper()
	ev := &sources.Evidence{EKHash: hash(1)}
	return func() {
		if v, err := check(b.Context(), ev); err != nil || v.Listed != want {
			b.Fatal(v, err)
		}
	}
}

func bareSyscalls(b *testing.B, dir string, want bool) func() {
	b.Helper()
	flat := hash(1)
	sharded := filepath.Join(flat[:2], flat)
	upper := strings.ToUpper(flat)
	upperSharded := filepath.Join(upper[:2], upper)
	return func() {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		var st unix.Stat_t
		errFlat := unix.Fstatat(fd, flat, &st, 0)
		errSharded := unix.Fstatat(fd, sharded, &st, 0)
		if !want { // then the names in upper case are looked for as well
			_ = unix.Fstatat(fd, upper, &st, 0)
			_ = unix.Fstatat(fd, upperSharded, &st, 0)
		}
		unix.Close(fd)
		if (errFlat == nil || errSharded == nil) != want {
			b.Fatal(errFlat, errSharded)
		}
	}
}

// BenchmarkCheckNamed is a check of an entry that has a name and labels.
func BenchmarkCheckNamed(b *testing.B) {
	dir := b.TempDir()
	content := `{"name": "us-east-17", "labels": ["rack:12", "env:prod"]}`
	if err := os.WriteFile(filepath.Join(dir, hash(1)), []byte(content), 0o600); err != nil {
		b.Fatal(err)
	}
	s, err := New(Config{Path: dir})
	if err != nil {
		b.Fatal(err)
	}
	ev := &sources.Evidence{EKHash: hash(1)}
	b.ReportAllocs()
	for b.Loop() {
		if v, err := s.Check(b.Context(), ev); err != nil || v.Attributes.Name != "us-east-17" {
			b.Fatal(v, err)
		}
	}
}
