package hashdir

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// layouts are the directories that the two benchmarks below are to be compared
// on, pair by pair: a check takes at most 1.3 times its bare system calls.
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

func BenchmarkCheck(b *testing.B) {
	for _, l := range layouts {
		b.Run(l.name, func(b *testing.B) {
			s, err := New(Config{Path: benchmarkDirectory(b, l.files)})
			if err != nil {
				b.Fatal(err)
			}
			ev := &sources.Evidence{EKHash: hash(1)}
			b.ReportAllocs()
			for b.Loop() {
				if v, err := s.Check(b.Context(), ev); err != nil || v.Listed != (l.files != nil) {
					b.Fatal(v, err)
				}
			}
		})
	}
}

// BenchmarkCheckNow is a check of what the kernel remembers: without a goroutine that
// could hang, in a few system calls more. A Set asks it first.
func BenchmarkCheckNow(b *testing.B) {
	for _, l := range layouts[:2] {
		b.Run(l.name, func(b *testing.B) {
			s, err := New(Config{Path: benchmarkDirectory(b, l.files)})
			if err != nil {
				b.Fatal(err)
			}
			trust(b, s)
			ev := &sources.Evidence{EKHash: hash(1)}
			if _, err := s.Check(b.Context(), ev); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if v, err := s.CheckNow(b.Context(), ev); err != nil || !v.Listed {
					b.Fatal(v, err)
				}
			}
		})
	}
}

// BenchmarkBareSyscalls opens the directory, stats both names of the entry and
// closes the directory: what no check that holds nothing in memory can do
// without.
func BenchmarkBareSyscalls(b *testing.B) {
	for _, l := range layouts {
		b.Run(l.name, func(b *testing.B) {
			dir, flat := benchmarkDirectory(b, l.files), hash(1)
			sharded := filepath.Join(flat[:2], flat)
			b.ReportAllocs()
			for b.Loop() {
				fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
				if err != nil {
					b.Fatal(err)
				}
				var st unix.Stat_t
				errFlat := unix.Fstatat(fd, flat, &st, 0)
				errSharded := unix.Fstatat(fd, sharded, &st, 0)
				unix.Close(fd)
				if (errFlat == nil || errSharded == nil) != (l.files != nil) {
					b.Fatal(errFlat, errSharded)
				}
			}
		})
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
