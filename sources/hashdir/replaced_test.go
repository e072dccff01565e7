package hashdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// hooked is a directory that calls back before the first Stat and returns errors.
type hooked struct {
	directory
	stats   int
	stat1   func()                                 // called before the first Stat
	statErr func(name string) (fs.FileInfo, error) // instead of Stat of a name
	readErr error                                  // of OpenFile
	atErr   error                                  // of Stat of the directory itself
}

func (d *hooked) Stat(name string) (fs.FileInfo, error) {
	if d.stats++; d.stats == 1 && d.stat1 != nil {
		d.stat1()
	}
	switch {
	case name == "." && d.atErr != nil:
		return nil, d.atErr
	case name != "." && d.statErr != nil:
		return d.statErr(name)
	}
	return d.directory.Stat(name)
}

func (d *hooked) OpenFile(name string, flag int, perm fs.FileMode) (*os.File, error) {
	if d.readErr != nil {
		return nil, d.readErr
	}
	return d.directory.OpenFile(name, flag, perm)
}

// TestReplaced stops a check from answering from a directory that was replaced and emptied
// after the check had opened it: at each moment, path leads to a directory that lists the
// TPM.
func TestReplaced(t *testing.T) {
	dir, s := emptyDirectory(t)
	base := filepath.Dir(dir)
	s.path = filepath.Join(base, "current")
	generation := func(name string) {
		write(t, base, name+"/"+hash(1), "")
		link(t, name, base, "next")
		if err := os.Rename(filepath.Join(base, "next"), s.path); err != nil {
			t.Fatal(err)
		}
	}
	generation("a")
	opens, backend := 0, s.open
	s.open = func(path string) (directory, error) {
		opens++
		d, err := backend(path)
		if err != nil {
			return nil, err
		}
		return &hooked{directory: d, stat1: func() {
			if opens == 1 {
				generation("b")
				if err := os.RemoveAll(filepath.Join(base, "a")); err != nil {
					t.Error(err)
				}
			}
		}}, nil
	}
	expect(t, s, hash(1), listed)
	if opens != 2 {
		t.Errorf("the directory was opened %d times, want 2", opens)
	}

	// A directory that is replaced during each attempt is an error in the end.
	opens = 0
	s.open = func(path string) (directory, error) {
		opens++
		d, err := backend(path)
		return &hooked{directory: d, stat1: func() { generation(filepath.Join("c", hash(opens))) }}, err
	}
	expect(t, s, hash(2), answer{err: errReplaced, text: s.path})
	if opens != attempts {
		t.Errorf("the directory was opened %d times, want %d", opens, attempts)
	}

	// And so is a directory that has gone.
	s.open = func(path string) (directory, error) {
		d, err := backend(path)
		return &hooked{directory: d, stat1: func() { os.Remove(s.path) }}, err
	}
	expect(t, s, hash(2), answer{err: fs.ErrNotExist, text: s.path})
}

// TestReplacedAtOnce stops a denied TPM from getting past a deny rule in the moment in which
// its directory is replaced and its entry is removed from the old one.
func TestReplacedAtOnce(t *testing.T) {
	dir, s := emptyDirectory(t)
	s.marker = "marker"
	write(t, dir, s.marker, "")
	write(t, dir, hash(1), "")
	next, old := filepath.Join(filepath.Dir(dir), "next"), filepath.Join(filepath.Dir(dir), "old")
	opens, backend := 0, s.open
	s.open = func(path string) (directory, error) {
		opens++
		d, err := backend(path)
		return &hooked{directory: d, stat1: func() {
			if opens > 1 {
				return
			}
			write(t, next, s.marker, "")
			write(t, next, hash(1), "")
			if err := errors.Join(
				os.Rename(dir, old), os.Rename(next, dir), os.Remove(filepath.Join(old, hash(1))),
			); err != nil {
				t.Error(err)
			}
		}}, err
	}
	expect(t, s, hash(1), listed)
}

// TestLinkReplaced stops a link in the directory that is replaced during the check, like
// the link of a ConfigMap, from hiding an entry.
func TestLinkReplaced(t *testing.T) {
	h := hash(1)
	for _, test := range []struct {
		name, at, target string
		looks            int
	}{
		{"a flat entry", h, "..data/" + h, 6},
		{"a shard", h[:2], "..data", 5},
		{"an entry in a shard", h[:2] + "/" + h, "../..data/" + h, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, s := emptyDirectory(t)
			write(t, dir, "..new/"+h, "")
			link(t, test.target, dir, test.at)
			link(t, "..old", dir, "..data")
			backend, looks := s.open, 0
			s.open = func(path string) (directory, error) {
				d, err := backend(path)
				return &hooked{directory: d, statErr: func(name string) (fs.FileInfo, error) {
					if looks++; looks == 5 { // each look is at four names
						if err := os.Remove(filepath.Join(dir, "..data")); err != nil {
							t.Error(err)
						}
						link(t, "..new", dir, "..data")
					}
					return d.Stat(name)
				}}, err
			}
			expect(t, s, h, listed)
			if looks != test.looks {
				t.Errorf("%d names were looked at, want %d", looks, test.looks)
			}
		})
	}
}

// TestFaultsBetween checks what happens if the file changes, or the file system fails,
// between two system calls of one check.
func TestFaultsBetween(t *testing.T) {
	dir, s := emptyDirectory(t)
	write(t, dir, hash(1), `{"name": "a"}`)
	backend := s.open
	with := func(h hooked) {
		s.open = func(path string) (directory, error) {
			d, err := backend(path)
			h.directory, h.stats = d, 0
			return &h, err
		}
	}
	with(hooked{readErr: syscall.EIO})
	expect(t, s, hash(1), answer{err: syscall.EIO, text: hash(1)})
	with(hooked{readErr: fs.ErrNotExist}) // removed after the Stat
	expect(t, s, hash(1), notListed)
	with(hooked{readErr: fs.ErrPermission})
	expect(t, s, hash(1), listed)
	with(hooked{atErr: syscall.ESTALE})
	expect(t, s, hash(2), answer{err: syscall.ESTALE, text: "stat directory"})

	// After the Stat, something else takes the file's place: a FIFO is not waited
	// for, and a socket and a folder are no entries.
	info, err := os.Stat(filepath.Join(dir, hash(1)))
	must(t, err)
	with(hooked{statErr: func(string) (fs.FileInfo, error) { return info, nil }})
	path := filepath.Join(dir, hash(1))
	for what, replace := range map[string]func() error{
		"FIFO":   func() error { return syscall.Mkfifo(path, 0o644) },
		"socket": func() error { return syscall.Mknod(path, syscall.S_IFSOCK|0o644, 0) },
		"folder": func() error { return os.Mkdir(path, 0o755) },
	} {
		if err := errors.Join(os.Remove(path), replace()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		expect(t, s, hash(1), notListed)
	}
}
