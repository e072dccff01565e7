package smallfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// A file that has grown, or a folder or a FIFO in the place of a key, must neither fill the
// memory nor block anybody.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, content := range []string{"", "1234", "12345"} {
		if err := os.WriteFile(at("file"+content), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(at("fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("file1234", at("link")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"file": "", "file1234": "1234", "link": "1234"} {
		if got, err := smallfile.Read(at(name), 4); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	// To read at address 0 of a process is an I/O error, although the file is a regular
	// file.
	if err := os.Symlink("/proc/self/mem", at("broken")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"file12345": "longer than 4 bytes", ".": "is not a regular file", "fifo": "is not a regular file",
		"missing": "no such file", "broken": "input/output error",
	} {
		if got, err := smallfile.Read(at(name), 4); got != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// A byte order mark in a token or a data source name would be sent as a part of it. Only the
// first mark is removed.
func TestReadTakesTheByteOrderMarkAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	for content, want := range map[string]string{
		mark + "ab": "ab", mark: "", mark + mark: mark, "a" + mark: "a" + mark, mark[:2]: mark[:2],
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := smallfile.Read(path, 6); err != nil || string(got) != want {
			t.Errorf("%q: %q, %v, want %q", content, got, err, want)
		}
	}
}
