package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A folder that no demo has made is neither emptied nor removed, even through a link: -dir may be
// mistyped, and "demo" may be somebody's link.
func TestForeignFoldersAreLeftAlone(t *testing.T) {
	for name, prepare := range map[string]func(dir, precious string) error{
		"folder":       func(dir, precious string) error { return os.Rename(precious, dir) },
		"link":         func(dir, precious string) error { return os.Symlink(precious, dir) },
		"link to link": func(dir, precious string) error { return symlinks(dir, dir+"2", precious) },
		"file":         func(dir, _ string) error { return os.WriteFile(dir, []byte("precious"), 0o600) },
		"link to file": func(dir, precious string) error { return os.Symlink(filepath.Join(precious, "file"), dir) },
		"dangling link": func(dir, precious string) error {
			return os.Symlink(filepath.Join(precious, "not mounted"), dir)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			dir, precious := filepath.Join(root, "demo"), filepath.Join(root, "precious")
			must(t, os.Mkdir(precious, 0o700))
			must(t, os.WriteFile(filepath.Join(precious, "file"), []byte("precious"), 0o600))
			// A list of processes does not make it a demo's folder.
			must(t, os.WriteFile(filepath.Join(precious, processFile), []byte("1 init\n"), 0o600))
			must(t, prepare(dir, precious))
			before := tree(t, root)

			for _, name := range []string{dir, dir + "/"} {
				if _, err := openDir(name); err == nil || !strings.Contains(err.Error(), "was not created by a demo") {
					t.Errorf("openDir(%s): %v", name, err)
				}
				if code := run(name, false, true); code == 0 {
					t.Errorf("-stop -dir %s succeeds", name)
				}
			}
			if after := tree(t, root); after != before {
				t.Errorf("it was\n%sand is now\n%s", before, after)
			}
		})
	}
}

func symlinks(first, second, target string) error {
	if err := os.Symlink(second, first); err != nil {
		return err
	}
	return os.Symlink(target, second)
}

// tree lists everything below a folder, without following links.
func tree(t *testing.T, root string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		b.WriteString(path + " " + d.Type().String() + "\n")
		return err
	}))
	return b.String()
}

// The next demo replaces what a demo has left, and -stop removes all of it, even if the folder is a
// link to a shorter path.
func TestFoldersOfTheDemo(t *testing.T) {
	for name, length := range map[string]int{"short": 0, "long": spiretest.MaxDir} {
		t.Run(name, func(t *testing.T) {
			root, err := os.MkdirTemp("", "demo") // the paths of testing's folders are too long for sockets
			must(t, err)
			t.Cleanup(func() { must(t, os.RemoveAll(root)) })
			temp := filepath.Join(root, "tmp")
			must(t, os.Mkdir(temp, 0o700))
			t.Setenv("TMPDIR", temp)
			parent := filepath.Join(root, strings.Repeat("d", max(1, length)))
			must(t, os.Mkdir(parent, 0o700))
			empty := tree(t, root)
			dir := filepath.Join(parent, "demo")

			first, err := openDir(dir)
			must(t, err)
			if linked := first.path != dir; linked != (length > 0) {
				t.Errorf("the folder %s is at %s", dir, first.path)
			}
			must(t, os.WriteFile(filepath.Join(first.path, "server.log"), nil, 0o600))
			second, err := openDir(dir)
			must(t, err)
			if strings.Contains(tree(t, root), "server.log") {
				t.Error("the files of the first demo are still there")
			}
			must(t, second.recordProcesses(nil))
			for range 2 { // the second time, nothing is left
				if code := run(dir, false, true); code != 0 {
					t.Errorf("-stop: exit code %d", code)
				}
			}
			if left := tree(t, root); left != empty {
				t.Errorf("there is left:\n%s", left)
			}
		})
	}
}

// Whoever has mistyped -dir, or stops a demo twice, is not told that something was removed.
func TestNothingToStop(t *testing.T) {
	var said strings.Builder
	dir := filepath.Join(t.TempDir(), "demo")
	if code := stopKept(&narrator{out: &said}, dir); code != 0 || !strings.Contains(said.String(), "Nothing to stop") {
		t.Errorf("exit code %d: %s", code, &said)
	}
}
