package keydir_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
)

// slot returns a key that no TPM makes.
func slot(id string, serial uint64) *keydir.Slot {
	s := &keydir.Slot{ID: id, Serial: serial, Name: append([]byte{0, 11}, make([]byte, 32)...)}
	if _, err := rand.Read(s.Unique[:]); err != nil {
		panic(err)
	}
	return s
}

func prepared(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys")
	if err := keydir.Prepare(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func write(t testing.TB, path string, s *keydir.Slot) {
	t.Helper()
	if err := keydir.Write(path, s); err != nil {
		t.Fatal(err)
	}
}

func list(t testing.TB, path string) *keydir.Listing {
	t.Helper()
	l, err := keydir.List(path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ids(l *keydir.Listing) string {
	var all []string
	for _, s := range l.Slots {
		all = append(all, s.ID)
	}
	return strings.Join(all, " ")
}

// The newest key is the key that was written last. Its ID does not matter, and neither do the times of the
// files, which change if somebody restores a backup.
func TestNewest(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	if l := list(t, path); len(l.Slots) != 0 || l.NextSerial() != 1 {
		t.Errorf("an empty directory: %v", l)
	}
	for i, id := range []string{"agent-svid-A", "agent-svid-B", "agent-svid-A", "agent-svid-A", "agent-svid-B"} {
		s := slot(id, list(t, path).NextSerial())
		if s.Serial != uint64(i+1) {
			t.Errorf("the serial %d, want %d", s.Serial, i+1)
		}
		write(t, path, s)
		if l := list(t, path); l.Slots[0].ID != id || l.Slots[0].Unique != s.Unique || !bytes.Equal(l.Slots[0].Name, s.Name) {
			t.Errorf("the newest is %v, want %v", l.Slots[0], s)
		}
	}
	if l := list(t, path); ids(l) != "agent-svid-B agent-svid-A" || len(l.Unreadable) > 0 {
		t.Errorf("%v", l)
	}
}

// Nobody else may read or write the directory or its files, and nothing else is in it.
func TestModes(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	write(t, path, slot("agent-svid-A", 1))
	write(t, path, slot("agent-svid-A", 2))
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(path)
	if err != nil || len(entries) != 1 || entries[0].Name() != "agent-svid-A.json" {
		t.Fatalf("%v, %v", entries, err)
	}
	if info, err := entries[0].Info(); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has %v, %v", info.Mode(), err)
	}
	if err := keydir.Prepare(path); err != nil {
		t.Errorf("a directory that is there: %v", err)
	}
}

// A directory into which other users may put a key is refused, and so is a path to anything but a directory. The
// error says what to do about it.
func TestDirectoriesThatAreRefused(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	file := filepath.Join(base, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o770, 0o707, 0o720, 0o777} {
		path := filepath.Join(base, fmt.Sprintf("%o", mode))
		if err := errors.Join(os.Mkdir(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		refused(t, "chmod go-w "+path, path)
	}
	refused(t, "name a directory", file)
	refused(t, "make "+filepath.Join(base, "none")+", or", filepath.Join(base, "none", "keys")+"/")
	refused(t, "make "+filepath.Join(base, "none")+", or correct the path", filepath.Join(base, "none", "keys"))
	if _, err := keydir.List(filepath.Join(base, "none")); err == nil || !strings.Contains(err.Error(), "KeyManager") {
		t.Errorf("a directory that nobody has made: %v", err)
	}
}

func refused(t *testing.T, hint, path string) {
	t.Helper()
	err := keydir.Prepare(path)
	if _, ok := errors.AsType[*keydir.Error](err); !ok || !strings.Contains(err.Error(), hint) {
		t.Errorf("%s: %v, want %q in it", path, err, hint)
	}
}

// A file that is torn, empty, huge, of another kind or another program's hides no other key and blocks
// nothing. It is reported by its name, and a key can be written in its place.
func TestFilesThatAreNoKeys(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	write(t, path, slot("agent-svid-A", 7))
	good, err := os.ReadFile(filepath.Join(path, "agent-svid-A.json"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"torn": string(good[:len(good)/2]), "empty": "", "garbage": "\x00\xff\x00", "huge": strings.Repeat(" ", 1<<20),
		"copied": string(good), "future": strings.Replace(string(good), `"version": 1`, `"version": 2`, 1),
	} {
		if err := os.WriteFile(filepath.Join(path, name+".json"), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Mkdir(filepath.Join(path, "folder.json"), 0o700),
		syscall.Mkfifo(filepath.Join(path, "fifo.json"), 0o600),
		os.Symlink("/etc/passwd", filepath.Join(path, "outside.json")),
		os.Symlink("fifo.json", filepath.Join(path, "inside.json")),
		os.Symlink("nothing", filepath.Join(path, "dangling.json")),
		os.WriteFile(filepath.Join(path, "notes.txt"), nil, 0o600),
		os.WriteFile(filepath.Join(path, ".tpm-attestor-X"), good[:5], 0o600), // left by a process that was killed
	); err != nil {
		t.Fatal(err)
	}
	l := list(t, path)
	if ids(l) != "agent-svid-A" || l.NextSerial() != 8 {
		t.Errorf("%v", l.Slots)
	}
	var bad []string
	for _, u := range l.Unreadable {
		bad = append(bad, strings.TrimSuffix(filepath.Base(u.Path), ".json"))
		if u.Err == nil || len(u.Err.Error()) > 300 {
			t.Errorf("%s: %v", u.Path, u.Err)
		}
	}
	want := "copied dangling empty fifo folder future garbage huge inside outside torn"
	if got := strings.Join(bad, " "); got != want {
		t.Errorf("unreadable are %s, want %s", got, want)
	}
	for _, id := range []string{"agent-svid-B", "torn", "outside"} {
		write(t, path, slot(id, l.NextSerial()))
	}
	if l := list(t, path); len(l.Slots) != 4 {
		t.Errorf("%v", l.Slots)
	}
	if b, err := os.ReadFile("/etc/passwd"); err != nil || bytes.Contains(b, []byte("unique")) {
		t.Error("a link was followed")
	}
}

// An ID is the name of a file without ever being a path, and two IDs are two files.
func TestIDs(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	odd := []string{
		"..", ".", "/etc/passwd", "../x", "a/b", "a%2Fb", "a\x00b", "a b", "A", "a", "ä", "x.json", "%", "-", strings.Repeat("é", 32),
	}
	for i, id := range odd {
		write(t, path, slot(id, uint64(i+1)))
	}
	l := list(t, path)
	slices.Reverse(l.Slots)
	for i, s := range l.Slots {
		if s.ID != odd[i] {
			t.Errorf("%q is read as %q", odd[i], s.ID)
		}
	}
	if len(l.Slots) != len(odd) || len(l.Unreadable) > 0 {
		t.Errorf("%v", l)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("outside are %v, %v", entries, err)
	}
	for _, id := range []string{"", strings.Repeat("x", 65), "\xff"} {
		if err := keydir.Write(path, slot(id, 1)); err == nil {
			t.Errorf("the ID %q is written", id)
		}
	}
}

// Whoever asks for key after key fills neither the disk nor the memory, and the keys that are there can
// still be replaced.
func TestTooManyKeys(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	for i := range keydir.MaxSlots {
		write(t, path, slot(strconv.Itoa(i), uint64(i+1)))
	}
	err := keydir.Write(path, slot("one more", 100))
	if _, ok := errors.AsType[*keydir.Error](err); !ok {
		t.Errorf("one more: %v", err)
	}
	write(t, path, slot("3", 101))
	if l := list(t, path); len(l.Slots) != keydir.MaxSlots || l.Slots[0].ID != "3" {
		t.Errorf("%v", l.Slots)
	}
	full := prepared(t)
	for i := range 1025 {
		if err := os.WriteFile(filepath.Join(full, strconv.Itoa(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := keydir.List(full); err == nil {
		t.Error("a directory of another program is read")
	}
}

// If a key cannot be written, even because the disk is full, the earlier key stays. A key that could not be
// read again is not written.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	write(t, path, slot("agent-svid-A", 1))
	for name, change := range map[string]func(*keydir.Slot){
		"no serial":   func(s *keydir.Slot) { s.Serial = 0 },
		"a serial":    func(s *keydir.Slot) { s.Serial = 1<<53 + 1 },
		"no name":     func(s *keydir.Slot) { s.Name = nil },
		"a long name": func(s *keydir.Slot) { s.Name = append(s.Name, 0) },
		"a SHA-384":   func(s *keydir.Slot) { s.Name[1] = 12 },
	} {
		s := slot("agent-svid-A", 2)
		change(s)
		if err := keydir.Write(path, s); err == nil {
			t.Errorf("%s: it is written", name)
		}
	}
	if l := list(t, path); ids(l) != "agent-svid-A" || l.Slots[0].Serial != 1 {
		t.Errorf("%v", l)
	}
}

// The disk is full, as far as this process can tell: it may write no byte to a file. The earlier key stays,
// nothing is left beside it, and the agent's log says what to do.
func TestDiskIsFull(t *testing.T) {
	if dir := os.Getenv(fullEnv); dir != "" {
		signal.Ignore(syscall.SIGXFSZ)
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{}); err != nil {
			t.Fatal(err)
		}
		err := keydir.Write(dir, slot("agent-svid-A", 2))
		if _, ok := errors.AsType[*keydir.Error](err); !ok || !strings.Contains(err.Error(), "make room") {
			t.Errorf("%v, want a remedy", err)
		}
		return
	}
	path := prepared(t)
	write(t, path, slot("agent-svid-A", 1))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestDiskIsFull$")
	cmd.Env = append(os.Environ(), fullEnv+"="+path)
	if out, err := cmd.Output(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if l := list(t, path); ids(l) != "agent-svid-A" || l.Slots[0].Serial != 1 || len(l.Unreadable) > 0 {
		t.Errorf("%v", l)
	}
	only(t, path, "agent-svid-A.json")
}

const fullEnv = "KEYDIR_TEST_FULL"

// Agents that are killed again and again while they write do not fill the directory: writing the next key removes the
// files that they have left, and no file of another program. A file that others may read becomes private again.
func TestLeftovers(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	write(t, path, slot("agent-svid-A", 1))
	if err := os.Chmod(filepath.Join(path, "agent-svid-A.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		name := ".tpm-attestor-" + strconv.Itoa(i)
		if err := os.WriteFile(filepath.Join(path, name), []byte(`{"version": 1`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(path, "notes.txt"), nil, 0o600),
		os.Symlink("/etc/passwd", filepath.Join(path, ".tpm-attestor-link")),
	); err != nil {
		t.Fatal(err)
	}
	write(t, path, slot("agent-svid-A", 2))
	only(t, path, "agent-svid-A.json", "notes.txt")
	if info, err := os.Stat(filepath.Join(path, "agent-svid-A.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

// Two agents that share a directory by mistake replace each other's keys. No reader ever sees half of one.
func TestTwoWriters(t *testing.T) {
	t.Parallel()
	path := prepared(t)
	write(t, path, slot("agent-svid-A", 1))
	var both sync.WaitGroup
	for range 2 {
		both.Go(func() {
			for serial := range uint64(50) {
				// One agent may remove the other's temporary file. That is an error, and the agent tries again.
				_ = keydir.Write(path, slot("agent-svid-A", serial+1))
			}
		})
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			l, err := keydir.List(path)
			if err != nil || len(l.Unreadable) > 0 || len(l.Slots) != 1 {
				t.Errorf("%v, %v", l, err)
				return
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	both.Wait()
	close(stop)
	<-done
}

func only(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the directory holds %q, want %q", got, want)
	}
}

// Any bytes are refused as a file, or are a key within the limits that is the same when it is written and
// read again.
func FuzzFile(f *testing.F) {
	dir := prepared(f)
	write(f, dir, slot("agent-svid-A", 7))
	good, err := os.ReadFile(filepath.Join(dir, "agent-svid-A.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:100])
	f.Add(bytes.Replace(good, []byte(`"serial"`), []byte(`"serial": 1, "serial"`), 1))
	f.Add(bytes.Replace(good, []byte(`7`), []byte(`9007199254740993`), 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := keydir.Parse(b)
		if err != nil {
			if s != nil {
				t.Fatal("a key with an error")
			}
			return
		}
		if keydir.CheckID(s.ID) != nil || s.Serial == 0 || s.Serial > 1<<53 || len(s.Name) != 34 || len(b) > 4096 {
			t.Fatalf("the key %v", s)
		}
		if err := keydir.Write(dir, s); err != nil {
			t.Fatal(err)
		}
		l, err := keydir.List(dir)
		if err != nil || !slices.ContainsFunc(l.Slots, func(o keydir.Slot) bool {
			return o.ID == s.ID && o.Serial == s.Serial && o.Unique == s.Unique && bytes.Equal(o.Name, s.Name)
		}) {
			t.Fatalf("%v is read as %v, %v", s, l, err)
		}
		for _, o := range l.Slots {
			if o.ID != "agent-svid-A" {
				if err := os.RemoveAll(dir); err != nil {
					t.Fatal(err)
				}
				if err := keydir.Prepare(dir); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
	})
}
