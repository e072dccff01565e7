package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A folder holds all files of a demo.
type folder struct {
	name string // as the user has given it
	path string // absolute
}

// processFile is the file with the process IDs of a demo that was left running, a line each.
const processFile = "processes"

// markFile is a file in each folder that a demo has made. A folder without it belongs to somebody
// else and is never removed.
const markFile = ".spire-tpm-attestor-demo"

// openDir makes the folder. It replaces the folder of an earlier demo, but nothing else. If the
// path is too long for sockets, it makes a link to a folder with a shorter path.
func openDir(name string) (*folder, error) {
	f := &folder{name: filepath.Clean(name)}
	if pids, err := f.processes(); err != nil {
		return nil, err
	} else if len(pids) > 0 {
		return nil, fmt.Errorf("an earlier demo is still running in %s; stop it with: make demo-stop", name)
	}
	if err := f.remove(); err != nil {
		return nil, err
	}
	if err := f.make(); err != nil {
		return nil, fmt.Errorf("create the demo's folder: %w", err)
	}
	return f, nil
}

// make makes and marks the folder, and the link to it if it needs one.
func (f *folder) make() error {
	path, err := filepath.Abs(f.name)
	if err != nil {
		return err
	}
	linked := len(path)+len("/server") > spiretest.MaxDir
	if linked {
		path, err = os.MkdirTemp("", "demo")
	} else {
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(path, markFile), nil, 0o600)
	if err == nil && linked {
		err = os.Symlink(path, f.name)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(path))
	}
	f.path = path
	return nil
}

// made returns the path of the folder that a demo has made under the name, and follows the link.
// If nothing has that name, the path is empty. If something else has it, that is an error.
func (f *folder) made() (string, error) {
	if _, err := os.Lstat(f.name); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	path, err := filepath.EvalSymlinks(f.name)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err == nil {
		_, err = os.Lstat(filepath.Join(path, markFile))
	}
	if err != nil {
		return "", fmt.Errorf("%s exists but was not created by a demo, so it is left alone: "+
			"remove it, or name another folder with -dir (%w)", f.name, err)
	}
	return path, nil
}

// remove removes the folder, if it is there and a demo has made it.
func (f *folder) remove() error {
	path, err := f.made()
	if err != nil || path == "" {
		return err
	}
	for _, p := range []string{path, f.name} {
		if err := os.RemoveAll(p); err != nil {
			return fmt.Errorf("remove the demo's folder: %w", err)
		}
	}
	return nil
}

func (f *folder) recordProcesses(ps []*spiretest.Process) error {
	var b strings.Builder
	for _, p := range ps {
		fmt.Fprintln(&b, p.PID(), p.Name)
	}
	if err := os.WriteFile(filepath.Join(f.path, processFile), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("record the processes: %w", err)
	}
	return nil
}

// processes returns the recorded processes that still run, the newest first.
func (f *folder) processes() ([]int, error) {
	path, err := f.made()
	if err != nil || path == "" {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(path, processFile)) //nolint:gosec // G304: the demo's own folder.
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(b)) {
		number, _, _ := strings.Cut(line, " ")
		pid, err := strconv.Atoi(number)
		if err != nil || pid <= 1 {
			return nil, fmt.Errorf("%s in %s: not a process: %q", processFile, path, line)
		}
		if ours(pid, path) {
			pids = append([]int{pid}, pids...)
		}
	}
	return pids, nil
}

// ours reports whether the process has the folder at path in its command line. If not, another
// program has got the process ID.
func ours(pid int, path string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(b), path+string(filepath.Separator))
}

// stopProcesses ends the recorded processes and returns how many there were.
func (f *folder) stopProcesses() (int, error) {
	pids, err := f.processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended
		deadline := time.Now().Add(10 * time.Second)
		for syscall.Kill(pid, 0) == nil && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
		_ = syscall.Kill(-pid, syscall.SIGKILL) // itself, or what it has started
	}
	return len(pids), nil
}
