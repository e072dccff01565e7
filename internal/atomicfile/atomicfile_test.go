package atomicfile_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

var errTorn = errors.New("torn")

// A list is replaced as a whole, with the permissions that let its server read it; a link to
// it stays a link.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "list"), filepath.Join(dir, "link")
	must(t, atomicfile.Write(path, text("one")))
	must(t, os.Chmod(path, 0o640))
	must(t, os.Symlink("list", link))
	must(t, atomicfile.Write(link, text("two")))
	info, err := os.Lstat(path)
	must(t, err)
	if info.Mode() != 0o640 || content(t, path) != "two" {
		t.Errorf("%v, %q", info.Mode(), content(t, path))
	}
	if target, err := os.Readlink(link); err != nil || target != "list" {
		t.Errorf("the link is %q: %v", target, err)
	}
	onlyThese(t, dir, "link", "list")
}

// If a list cannot be written, the old one stays, and nothing is left beside it.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "list")
	must(t, atomicfile.Write(path, text("one")))
	err := atomicfile.Write(path, func(w io.Writer) error {
		must(t, text("half")(w))
		return errTorn
	})
	if !errors.Is(err, errTorn) || content(t, path) != "one" {
		t.Errorf("%v, %q", err, content(t, path))
	}
	must(t, os.Symlink("nothing", filepath.Join(dir, "dangling")))
	for name, want := range map[string]string{
		dir: "not a regular file", filepath.Join(dir, "dangling"): "a link to nothing", filepath.Join(dir, "no", "list"): "no such file",
	} {
		if err := atomicfile.Write(name, text("x")); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	onlyThese(t, dir, "dangling", "list")
}

// A file in an open folder is replaced as a whole, with the permissions that were asked for and not those of the
// file that somebody has opened to others. A link is replaced, and what it leads to stays. What a process leaves that
// is killed can be told from everything else by its name.
func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	folder, err := os.OpenRoot(dir)
	must(t, err)
	defer folder.Close()
	path := filepath.Join(dir, "key")
	must(t, os.WriteFile(path, nil, 0o644))
	must(t, os.Symlink("key", filepath.Join(dir, "link")))
	must(t, atomicfile.Replace(folder, "key", 0o600, text("one")))
	must(t, atomicfile.Replace(folder, "link", 0o600, text("two")))
	for name, want := range map[string]string{"key": "one", "link": "two"} {
		info, err := os.Lstat(filepath.Join(dir, name))
		must(t, err)
		if info.Mode() != 0o600 || content(t, filepath.Join(dir, name)) != want {
			t.Errorf("%s: %v, %q", name, info.Mode(), content(t, filepath.Join(dir, name)))
		}
	}
	err = atomicfile.Replace(folder, "key", 0o600, func(w io.Writer) error {
		must(t, text("half")(w))
		names, err := os.ReadDir(dir)
		must(t, err)
		if name := names[0].Name(); !atomicfile.IsTemporary(name) || atomicfile.IsTemporary("key") {
			t.Errorf("the file that is being written is %s", name)
		}
		return errTorn
	})
	if !errors.Is(err, errTorn) || content(t, path) != "one" {
		t.Errorf("%v, %q", err, content(t, path))
	}
	onlyThese(t, dir, "key", "link")
}

// A folder of hashes is there as a whole or not at all: one that lacks some admits some.
func TestWriteFolder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hashes")
	half := func(folder *os.Root) error { return folder.WriteFile("a", nil, 0o644) }
	if err := atomicfile.WriteFolder(path, func(folder *os.Root) error { return errors.Join(half(folder), errTorn) }); !errors.Is(err, errTorn) {
		t.Error(err)
	}
	onlyThese(t, dir)
	must(t, atomicfile.WriteFolder(path+"/", half))
	onlyThese(t, path, "a")
	if err := atomicfile.WriteFolder(path, half); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Error(err)
	}
	onlyThese(t, dir, "hashes")
}

func onlyThese(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %q, want %q", dir, got, want)
	}
}

// A key that exists is never replaced, and one that could not be written is not there: not even the
// beginning of it, and not for others to read.
func TestCreate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	fill := func(s string, err error) func(io.Writer) error {
		return func(w io.Writer) error {
			_, wrote := io.WriteString(w, s)
			return errors.Join(wrote, err)
		}
	}
	if err := atomicfile.Create(path, 0o600, fill("torn", errors.New("the disk is full"))); err == nil {
		t.Error("an error was lost")
	}
	if err := atomicfile.Create(path, 0o600, fill("first", nil)); err != nil {
		t.Fatal(err)
	}
	if err := atomicfile.Create(path, 0o600, fill("second", nil)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a file that exists: %v", err)
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != "first" {
		t.Errorf("%q, %v", got, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	if err := atomicfile.Create(filepath.Join(dir, "none", "key"), 0o600, fill("", nil)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
}

// A link leads to where the system takes it, not to where its text seems to lead.
func TestWriteThroughLinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("real/sub"), 0o700))
	must(t, os.Symlink("real/sub", at("short")))
	must(t, os.Symlink("../list", at("real/sub/list")))
	must(t, os.Symlink(at("real/sub/list"), at("absolute")))
	must(t, os.WriteFile(at("real/list"), nil, 0o600))
	for _, name := range []string{"short/list", "absolute"} {
		must(t, atomicfile.Write(at(name), text(name)))
		if got := content(t, at("real/list")); got != name {
			t.Errorf("%s: %q was written", name, got)
		}
	}
	onlyThese(t, dir, "absolute", "real", "short")
	must(t, os.Symlink("two", at("one")))
	must(t, os.Symlink("one", at("two")))
	if err := atomicfile.Write(at("one"), text("x")); err == nil || !strings.Contains(err.Error(), "more than 40 links") {
		t.Error(err)
	}
}

// Who has a folder in which root writes a file, such as a machine's request for a DevID, points a link of
// that name at /etc/shadow.
func TestWriteFollowsNoStranger(t *testing.T) {
	t.Parallel()
	const stranger = 12345
	for name, test := range map[string]struct {
		mode                   fs.FileMode
		folderOwner, linkOwner int // 0 is who runs this
		asRoot                 bool
		why                    string // empty: it is followed
	}{
		"own":                           {mode: 0o755},
		"sticky":                        {mode: 0o777 | fs.ModeSticky},
		"everybody's folder":            {mode: 0o777, why: "every user can point elsewhere"},
		"a group's folder":              {mode: 0o770, asRoot: true, why: "the group of its folder can point elsewhere"},
		"a stranger's folder":           {mode: 0o755, folderOwner: stranger, asRoot: true, why: "user 12345 can"},
		"a stranger's link":             {mode: 0o777 | fs.ModeSticky, linkOwner: stranger, asRoot: true, why: "user 12345 can"},
		"a stranger's folder, own link": {mode: 0o700, folderOwner: stranger, asRoot: true, why: "user 12345 can"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.asRoot && os.Geteuid() != 0 {
				t.Skip("only root can make what is another user's")
			}
			dir := t.TempDir()
			precious, folder := filepath.Join(dir, "precious"), filepath.Join(dir, "folder")
			link := filepath.Join(folder, "request.json")
			must(t, os.WriteFile(precious, []byte("precious"), 0o600))
			must(t, os.Mkdir(folder, 0o700))
			must(t, os.Symlink(precious, link))
			must(t, os.Chmod(folder, test.mode))
			if test.asRoot {
				must(t, os.Chown(folder, test.folderOwner, -1))
				must(t, os.Lchown(link, test.linkOwner, -1))
			}
			err := atomicfile.Write(link, text("new"))
			if test.why == "" {
				if err != nil || content(t, precious) != "new" {
					t.Errorf("%v, %q", err, content(t, precious))
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.why) || content(t, precious) != "precious" {
				t.Errorf("%v, %q", err, content(t, precious))
			}
			if err := atomicfile.Create(link, 0o600, text("new")); !errors.Is(err, fs.ErrExist) {
				t.Errorf("a new file: %v", err)
			}
			onlyThese(t, folder, "request.json")
		})
	}
}
