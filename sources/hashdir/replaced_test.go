package hashdir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// hooked is a directory with something that happens before it is looked into,
// and faults instead of answers.
type hooked struct {
	directory
	stats   int
	stat1   func()                          // before the first stat
	statErr func(name string) (file, error) // instead of stat
	readErr error
	atErr   error
}

func (d *hooked) stat(name string) (file, error) {
	if d.stats++; d.stats == 1 && d.stat1 != nil {
		d.stat1()
	}
	if d.statErr != nil {
		return d.statErr(name)
	}
	return d.directory.stat(name)
}

func (d *hooked) read(name string, limit int64) ([]byte, file, error) {
	if d.readErr != nil {
		return nil, file{}, d.readErr
	}
	return d.directory.read(name, limit)
}

func (d *hooked) isAt(path string) (bool, error) {
	if d.atErr != nil {
		return false, d.atErr
	}
	return d.directory.isAt(path)
}

// TestReplaced stops a check from answering out of a directory that was replaced
// and emptied after it had been opened: at each moment path names a directory
// that lists the TPM.
func TestReplaced(t *testing.T) {
	eachBackend(t, func(t *testing.T, dir string, s *Source) {
		base := filepath.Dir(dir)
		s.path = filepath.Join(base, "current")
		s.undisturbed = 0
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

		// One that is replaced at every look is an error in the end.
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

		// And so is one that has gone.
		s.open = func(path string) (directory, error) {
			d, err := backend(path)
			return &hooked{directory: d, stat1: func() { os.Remove(s.path) }}, err
		}
		expect(t, s, hash(2), answer{err: fs.ErrNotExist, text: s.path})
	})
}

// TestReplacedAtOnce stops a denied TPM from getting past a deny rule in the
// microseconds in which its directory is replaced and the entry is removed from
// the old one: with a marker, no check that finds nothing is believed for being
// fast.
func TestReplacedAtOnce(t *testing.T) {
	eachBackend(t, func(t *testing.T, dir string, s *Source) {
		s.marker, s.undisturbed = "marker", time.Hour
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
	})
}

// TestLinkReplaced stops a link in the directory that is replaced during the
// check, as a ConfigMap's is, from hiding an entry.
func TestLinkReplaced(t *testing.T) {
	eachBackend(t, func(t *testing.T, dir string, s *Source) {
		write(t, dir, "..new/"+hash(1), "")
		link(t, "..data/"+hash(1), dir, hash(1))
		link(t, "..old", dir, "..data")
		backend, looks := s.open, 0
		s.undisturbed = 0
		s.open = func(path string) (directory, error) {
			d, err := backend(path)
			return &hooked{directory: d, statErr: func(name string) (file, error) {
				if looks++; looks == 5 { // each look is four
					if err := os.Remove(filepath.Join(dir, "..data")); err != nil {
						t.Error(err)
					}
					link(t, "..new", dir, "..data")
				}
				return d.stat(name)
			}}, err
		}
		expect(t, s, hash(1), listed)
		if looks != 6 {
			t.Errorf("%d names were looked at, want 6", looks)
		}
	})
}

// TestFaultsBetween has the faults that come between two calls of one check.
func TestFaultsBetween(t *testing.T) {
	eachBackend(t, func(t *testing.T, dir string, s *Source) {
		write(t, dir, hash(1), `{"name": "a"}`)
		s.undisturbed = 0
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
		with(hooked{readErr: fs.ErrNotExist}) // removed after the stat
		expect(t, s, hash(1), notListed)
		with(hooked{readErr: fs.ErrPermission})
		expect(t, s, hash(1), listed)
		with(hooked{atErr: syscall.ESTALE})
		expect(t, s, hash(2), answer{err: syscall.ESTALE, text: "stat directory"})

		// Other things in place of the file, after the stat: a FIFO is not
		// waited for, a socket and a folder are no entries.
		with(hooked{statErr: func(string) (file, error) { return file{regular: true, size: 2}, nil }})
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
	})
}
