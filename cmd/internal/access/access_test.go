//go:build unix

package access_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/access"
)

// What is computed is what the kernel does for that user. Otherwise validate would call a list
// readable that the server cannot read, and a deny rule would stop every machine.
func TestAsTheKernelDoes(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	dir, err := os.MkdirTemp("", "access") // t.TempDir's folders are for this user alone
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	const uid, gid = 54321, 54322
	u, err := access.Lookup(fmt.Sprintf("%d:%d", uid, gid))
	must(t, err)
	folder := filepath.Join(dir, "folder")
	must(t, errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(filepath.Join(folder, "file"), nil, 0o644)))
	for _, mode := range []os.FileMode{
		0, 0o700, 0o500, 0o300, 0o100, 0o070, 0o050, 0o010, 0o007, 0o005, 0o001, 0o077, 0o707, 0o770, 0o755, 0o711,
	} {
		for _, own := range [][2]int{{uid, 0}, {0, gid}, {uid, gid}, {0, 0}} {
			must(t, errors.Join(os.Chown(folder, own[0], own[1]), os.Chmod(folder, mode)))
			compare(t, u, filepath.Join(folder, "file"), "-r", access.Read)
			compare(t, u, folder, "-w", access.Write)
			if t.Failed() {
				t.Fatalf("mode %o, owner %v", mode, own)
			}
		}
	}
}

// compare asks the kernel by a process of that user.
func compare(t *testing.T, u *access.User, path, question string, want access.Want) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "test", question, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54322}}
	kernel := cmd.Run() == nil
	err := u.May(path, want)
	var denied *access.DeniedError
	if (err == nil) != kernel || err != nil && !errors.As(err, &denied) {
		t.Errorf("%s %s: the kernel says %v, May %v", question, path, kernel, err)
	}
}

// The whole way counts, through links too, and what is in the way is named with a command that
// removes it.
func TestWay(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	u, err := access.Lookup("54321:54322")
	must(t, err)
	secret, open := filepath.Join(dir, "secret"), filepath.Join(dir, "open")
	must(t, errors.Join(
		os.MkdirAll(secret, 0o700), os.Mkdir(open, 0o755), os.WriteFile(filepath.Join(secret, "list"), nil, 0o644),
		os.Symlink("../secret/list", filepath.Join(open, "link")), os.Symlink("loop", filepath.Join(open, "loop")),
	))
	for folder := dir; folder != "/"; folder = filepath.Dir(folder) {
		if info, err := os.Stat(folder); err == nil && info.Mode().Perm()&1 == 0 {
			must(t, os.Chmod(folder, info.Mode().Perm()|1))
		}
	}
	var denied *access.DeniedError
	if err := u.May(filepath.Join(open, "link"), access.Read); !errors.As(err, &denied) || denied.Path != secret ||
		!strings.Contains(denied.Remedy(), "chgrp 54322 "+secret+" && chmod g+x "+secret) {
		t.Errorf("%v", err)
	}
	must(t, os.Chmod(secret, 0o701))
	must(t, u.May(filepath.Join(open, "link"), access.Read))
	must(t, u.May(filepath.Join(open, "..", "open", "link"), access.Read))
	for path, want := range map[string]string{"loop": "too many links", "none": "no such file", "link/x": "is not a folder"} {
		if err := u.May(filepath.Join(open, path), access.Read); err == nil || errors.As(err, &denied) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	root, err := access.Lookup("0")
	must(t, err)
	must(t, root.May(filepath.Join(secret, "list"), access.Write))
}

func TestLookup(t *testing.T) {
	t.Parallel()
	for _, who := range []string{"", "no-such-user", "1000:", ":1", "1:x", "-1:1", "99999999999:1"} {
		if u, err := access.Lookup(who); err == nil {
			t.Errorf("%q: %+v", who, u)
		}
	}
	if _, err := access.Lookup("root"); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
