package swtpmtest

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// A vendor is a CA and the TPMs to which it has issued certificates. To make a CA or a TPM takes about a second, so a
// test takes vendors and TPMs that an earlier test of the process has given back to the stock. While a test has one, no
// other test can take it, so no two CAs or TPMs in use have the same keys.
type vendor struct {
	files folder             // of the CA; nil if it is new
	tpms  map[model][]folder // the states of TPMs as they were made
}

// A model is the part of Options that distinguishes TPMs of one vendor.
type model struct {
	rsa3072  bool
	pcrBanks string
}

// A stock holds the vendors that no test uses.
type stock struct {
	mu   sync.Mutex
	free []*vendor
}

// The tests of a process share it.
var vendors stock

// take returns a vendor of the stock, or a new one. The caller returns it by giveBack.
func (s *stock) take() *vendor {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) == 0 {
		return &vendor{tpms: map[model][]folder{}}
	}
	v := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return v
}

func (s *stock) giveBack(v *vendor) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, v)
}

// takeTPM returns the state of a TPM that no test uses, or nil.
func (s *stock) takeTPM(v *vendor, m model) folder {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := v.tpms[m]
	if len(all) == 0 {
		return nil
	}
	v.tpms[m] = all[:len(all)-1]
	return all[len(all)-1]
}

func (s *stock) giveBackTPM(v *vendor, m model, state folder) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v.tpms[m] = append(v.tpms[m], state)
}

// A folder is the content of the files in a folder, by name. It has no folders in it.
type folder map[string][]byte

func readFolder(tb testing.TB, dir string) folder {
	tb.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		tb.Fatal(err)
	}
	f := make(folder, len(entries))
	for _, e := range entries {
		if f[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			tb.Fatal(err)
		}
	}
	return f
}

func (f folder) write(tb testing.TB, dir string) {
	tb.Helper()
	for name, content := range f {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
}
