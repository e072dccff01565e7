package devid

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var errKilled = errors.New("killed")

func newPair(t *testing.T, folder string) *pair {
	t.Helper()
	p, err := openPair(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// wantPair checks that a folder has a key, and nothing else.
func wantPair(t *testing.T, folder, private, public string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	for name, want := range map[string]string{privName: private, pubName: public} {
		got, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if info, err := os.Stat(filepath.Join(folder, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

// A machine that is stopped at any step of making its key has no key, or the whole of it: half of one would
// have to be moved away by a person, and two halves of different keys would never load.
func TestKeyIsMadeAsAPair(t *testing.T) {
	t.Parallel()
	for kill := 0; ; kill++ {
		folder := filepath.Join(t.TempDir(), "machine")
		p := newPair(t, folder)
		left, killed := kill, ""
		p.step = func(done string) error {
			if left--; left < 0 {
				killed = done
				return errKilled
			}
			return nil
		}
		err := p.put([]byte("private"), []byte("public"))
		if killed == "" {
			if err != nil || kill < 6 {
				t.Errorf("%v; %d steps", err, kill)
			}
			wantPair(t, folder, "private", "public")
			return
		}
		if !errors.Is(err, errKilled) {
			t.Errorf("killed when %s: %v", killed, err)
		}
		again := newPair(t, folder)
		if there, err := again.find(); !there || err != nil {
			t.Errorf("killed when %s: the key is there: %v, %v", killed, there, err)
		}
		wantPair(t, folder, "private", "public")
	}
}

// A machine that is stopped before the key is there makes another one, and one that is stopped twice comes
// to its key.
func TestKeyAfterAnEarlyEnd(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	torn := filepath.Join(folder, ".tpm-attestor-XXXX")
	if err := errors.Join(os.Mkdir(torn, 0o700), os.WriteFile(filepath.Join(torn, privName), []byte("to"), 0o600)); err != nil {
		t.Fatal(err)
	}
	p := newPair(t, folder)
	if there, err := p.find(); there || err != nil {
		t.Errorf("%v, %v", there, err)
	}
	p.step = func(string) error { return errKilled }
	if err := p.put([]byte("private"), []byte("public")); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	if _, err := p.find(); !errors.Is(err, errKilled) {
		t.Fatal(err)
	}
	p = newPair(t, folder)
	if there, err := p.find(); !there || err != nil {
		t.Errorf("%v, %v", there, err)
	}
	if err := os.RemoveAll(torn); err != nil {
		t.Fatal(err)
	}
	wantPair(t, folder, "private", "public")
}

// Of two runs at once, one has made the key. The other one's is of no use, and is never mixed with it.
func TestTwoRunsMakeOneKey(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	first, second := newPair(t, folder), newPair(t, folder)
	for _, p := range []*pair{first, second} {
		if there, err := p.find(); there || err != nil {
			t.Fatal(there, err)
		}
	}
	if err := first.put([]byte("one"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	if err := second.put([]byte("two"), []byte("2")); err != nil {
		t.Fatal(err)
	}
	wantPair(t, folder, "one", "1")
	if err := os.Remove(filepath.Join(folder, pubName)); err != nil {
		t.Fatal(err)
	}
	if _, err := first.find(); err == nil || !strings.Contains(err.Error(), "has one of devid.priv and devid.pub") {
		t.Errorf("half a key: %v", err)
	}
	if err := second.put([]byte("three"), []byte("3")); err == nil || !strings.Contains(err.Error(), "a file of another key") {
		t.Errorf("beside half a key: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(folder, pubName)); err == nil {
		t.Error("two halves of different keys")
	}
}

// In a folder that everybody can write to, another user could put a key of his own, whose DevID would
// then be his.
func TestFolderOfEverybody(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := openPair(folder); err == nil || !strings.Contains(err.Error(), "chmod o-w") {
		t.Error(err)
	}
}
