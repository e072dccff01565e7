package hashdir

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// TestNew stops a configuration that could not work, and a marker that would list a
// machine or would have the name of a shard.
func TestNew(t *testing.T) {
	for _, test := range []struct {
		cfg  Config
		want string // in the error; empty if there is none
	}{
		{cfg: Config{Path: "/srv/tpm/hashes"}},
		{cfg: Config{Path: "hashes"}},
		{cfg: Config{Path: "/does/not/exist", Marker: ".mounted"}},
		{cfg: Config{Path: "d", Marker: "..data"}},
		{cfg: Config{Path: "d", Marker: "aB"}},
		{cfg: Config{Path: "d", Marker: "abc"}},
		{want: "path is missing"},
		{cfg: Config{Path: "a\x00b"}, want: "zero byte"},
		{cfg: Config{Path: "d", Marker: "."}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: ".."}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: "/"}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: "/etc/passwd"}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: "sub/mounted"}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: `sub\mounted`}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: "mounted/"}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: "m\x00"}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: strings.Repeat("m", 256)}, want: "without a path"},
		{cfg: Config{Path: "d", Marker: "ab"}, want: "a name that an entry may have"},
		{cfg: Config{Path: "d", Marker: "AB"}, want: "a name that an entry may have"},
		{cfg: Config{Path: "d", Marker: hash(1)}, want: "a name that an entry may have"},
	} {
		s, err := New(test.cfg)
		if test.want == "" {
			if err != nil || s == nil {
				t.Errorf("New(%+v) says %v", test.cfg, err)
			}
			continue
		}
		if s != nil || err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("New(%+v) says %v, %v, want %q", test.cfg, s, err, test.want)
		}
	}
}

// TestListed checks everything that an entry can be.
func TestListed(t *testing.T) {
	dir, s := emptyDirectory(t)
	shard := func(h string) string { return h[:2] + "/" + h }
	named := `{"name": "us-east-17", "labels": ["rack:12"]}`
	attrs := sources.Attributes{Name: "us-east-17", Labels: []string{"rack:12"}}

	write(t, dir, hash(1), "")
	write(t, dir, shard(hash(2)), "")
	write(t, dir, hash(3), "a note\n")
	write(t, dir, hash(4), named)
	write(t, dir, shard(hash(5)), named)
	write(t, dir, hash(6), `{"name": "flat"}`) // both forms
	write(t, dir, shard(hash(6)), `{"name": "sharded"}`)
	for i := 1; i <= 3; i++ {
		expect(t, s, hash(i), listed)
	}
	expect(t, s, hash(4), answer{listed: true, attrs: attrs})
	expect(t, s, hash(5), answer{listed: true, attrs: attrs})
	expect(t, s, hash(6), answer{listed: true, attrs: sources.Attributes{Name: "sharded"}})
	expect(t, s, hash(7), notListed)

	write(t, dir, "elsewhere/"+hash(8), named)
	link(t, "elsewhere/"+hash(8), dir, hash(8))
	expect(t, s, hash(8), answer{listed: true, attrs: attrs})
	write(t, dir, "shards/x/"+hash(9), "")
	link(t, "shards/x", dir, hash(9)[:2])
	expect(t, s, hash(9), listed)
	expect(t, s, hash(9)[:2]+hash(10)[2:], notListed)
	write(t, dir, hash(11), "")
	link(t, "../"+hash(11), dir, hash(12)[:2]+"/"+hash(12))
	expect(t, s, hash(12), listed)

	if err := os.Remove(filepath.Join(dir, hash(1))); err != nil {
		t.Fatal(err)
	}
	expect(t, s, hash(1), notListed)
}

// TestNoEntry stops something that has the name of an entry but is not a file from admitting a TPM,
// and a FIFO or a device from being opened, which could block for ever.
func TestNoEntry(t *testing.T) {
	dir, s := emptyDirectory(t)
	folder, fifo, socket := filepath.Join(dir, hash(1)), filepath.Join(dir, hash(2)), filepath.Join(dir, hash(3))
	for _, err := range []error{
		os.Mkdir(folder, 0o755),
		syscall.Mkfifo(fifo, 0o644),
		syscall.Mknod(socket, syscall.S_IFSOCK|0o644, 0),
		os.Mkdir(filepath.Join(dir, hash(4)[:2]), 0o755),
		os.MkdirAll(filepath.Join(dir, hash(5)[:2], hash(5)), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	link(t, hash(2), dir, hash(6))
	link(t, "nowhere", dir, hash(7))
	link(t, "nowhere", dir, hash(8)[:2])
	for i := 1; i <= 8; i++ {
		expect(t, s, hash(i), notListed)
	}
	// If one form is no entry, the other one can still be.
	write(t, dir, hash(1)[:2]+"/"+hash(1), "")
	write(t, dir, hash(5), "")
	expect(t, s, hash(1), listed)
	expect(t, s, hash(5), listed)
}

// TestLinksThatEscape stops a link that would have something outside the directory list a
// TPM.
func TestLinksThatEscape(t *testing.T) {
	dir, s := emptyDirectory(t)
	outside := filepath.Dir(dir)
	write(t, outside, "file", "")
	write(t, outside, "sub/"+hash(5), "")
	write(t, dir, "inside", "")
	link(t, "../file", dir, hash(1))
	link(t, filepath.Join(outside, "file"), dir, hash(2))
	link(t, filepath.Join(dir, "inside"), dir, hash(3)) // absolute
	link(t, "../missing", dir, hash(4))
	link(t, "../sub", dir, hash(5)[:2])
	link(t, "../sub", dir, hash(6)[:2]) // hash(6) is not there either: still an error
	link(t, "../hashes/inside", dir, hash(7))
	link(t, "/proc/self/exe", dir, hash(8))
	for i := 1; i <= 8; i++ {
		expect(t, s, hash(i), answer{text: hash(i)})
		expect(t, s, hash(i), answer{text: "a link leads out of the directory"})
	}
}

// TestCannotTell stops a fault from passing for "not listed", which would let a
// stolen machine past a deny rule and refuse a whole fleet for good.
func TestCannotTell(t *testing.T) {
	dir, s := emptyDirectory(t)
	link(t, hash(1), dir, hash(1))
	link(t, hash(3), dir, hash(2))
	link(t, hash(2), dir, hash(3))
	expect(t, s, hash(1), answer{err: syscall.ELOOP, text: hash(1)})
	expect(t, s, hash(2), answer{err: syscall.ELOOP})
	write(t, dir, hash(4)[:2], "a file where a shard belongs")
	expect(t, s, hash(4), answer{err: syscall.ENOTDIR})
	write(t, dir, hash(5), `{"name": "half wri`)
	expect(t, s, hash(5), answer{text: "content"})
	expect(t, s, hash(6), notListed)
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	expect(t, s, hash(6), answer{err: os.ErrNotExist, text: dir})

	write(t, filepath.Dir(dir), filepath.Base(dir), "a file")
	expect(t, s, hash(6), answer{err: syscall.ENOTDIR, text: dir})
	for _, err := range []error{os.Remove(dir), syscall.Mkfifo(dir, 0o644)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	expect(t, s, hash(6), answer{err: syscall.ENOTDIR})
	s.path = filepath.Join(filepath.Dir(dir), strings.Repeat("long", 64))
	expect(t, s, hash(6), answer{err: syscall.ENAMETOOLONG})
}

// TestMarker stops the empty directory under an absent mount from passing for a
// list without entries.
func TestMarker(t *testing.T) {
	dir, s := emptyDirectory(t)
	s.marker = ".mounted"
	write(t, dir, hash(1), "")
	missing := answer{text: `marker ".mounted" in directory "` + dir + `" does not exist`}
	expect(t, s, hash(1), missing)
	expect(t, s, hash(2), missing)
	link(t, "nowhere", dir, ".mounted")
	expect(t, s, hash(2), missing)
	write(t, dir, "nowhere", "")
	expect(t, s, hash(1), listed)
	expect(t, s, hash(2), notListed)

	for _, err := range []error{os.Remove(filepath.Join(dir, ".mounted")), os.Mkdir(filepath.Join(dir, ".mounted"), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	expect(t, s, hash(1), answer{text: "is not a regular file"})
}

// TestLargeEntry stops an entry that is a terabyte of JSON from being read.
func TestLargeEntry(t *testing.T) {
	dir, s := emptyDirectory(t)
	write(t, dir, hash(1), `{"name": "a"`)
	write(t, dir, hash(2), `{"name": "`+strings.Repeat("a", maxContent))
	if err := os.Truncate(filepath.Join(dir, hash(1)), 1<<30); err != nil {
		t.Fatal(err)
	}
	expect(t, s, hash(1), listed)
	expect(t, s, hash(2), listed)
	ev := evidence(hash(1))
	if n := testing.AllocsPerRun(10, func() { s.Check(t.Context(), ev) }); n > 60 {
		t.Errorf("a check makes %v allocations", n)
	}
	// A file that is small when it is looked at and has grown when it is read.
	backend := s.open
	s.open = func(path string) (directory, error) {
		d, err := backend(path)
		return &hooked{directory: d, statErr: func(name string) (fs.FileInfo, error) {
			write(t, dir, hash(3), "")
			info, err := d.Stat(hash(4))
			must(t, os.Truncate(filepath.Join(dir, hash(3)), 1<<30))
			return info, err
		}}, err
	}
	write(t, dir, hash(4), "{}")
	expect(t, s, hash(3), listed)
}

// TestContext stops a check that nobody waits for from beginning.
func TestContext(t *testing.T) {
	dir, s := emptyDirectory(t)
	write(t, dir, hash(1), "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if v, err := s.Check(ctx, evidence(hash(1))); !errors.Is(err, context.Canceled) || v.Listed {
		t.Errorf("Check says %v, %v", v, err)
	}
}

// TestRelativePath allows the relative path that an incumbent's configuration may have,
// and a deeply nested directory.
func TestRelativePath(t *testing.T) {
	dir, s := emptyDirectory(t)
	deep := strings.Repeat("d/", 100)
	write(t, dir, deep+hash(1), "")
	t.Chdir(dir)
	s.path = deep
	expect(t, s, hash(1), listed)
	expect(t, s, hash(2), notListed)
}
