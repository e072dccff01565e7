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

// A folder has all files of a demo.
type folder struct {
	name string // as the user knows it
	path string // absolute
}

// processFile lists the processes of a demo that has been left running, one a
// line.
const processFile = "processes"

// openDir makes the folder, in the place of one that an earlier demo has left.
// Where its path is too long for sockets it becomes a link to a shorter one.
func openDir(name string) (*folder, error) {
	f := &folder{name: name}
	if pids, _ := f.processes(); len(pids) > 0 {
		return nil, fmt.Errorf("an earlier demo still runs in %s; end it with: make demo-stop", name)
	}
	if err := f.remove(); err != nil {
		return nil, err
	}
	path, err := filepath.Abs(name)
	if err != nil {
		return nil, fmt.Errorf("make the folder of the demo: %w", err)
	}
	if len(path)+len("/server") > spiretest.MaxDir {
		if path, err = os.MkdirTemp("", "demo"); err == nil {
			err = os.Symlink(path, name)
		}
	} else {
		err = os.Mkdir(path, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make the folder of the demo: %w", err)
	}
	f.path = path
	return f, nil
}

// remove removes the folder, if it is there.
func (f *folder) remove() error {
	if target, err := filepath.EvalSymlinks(f.name); err == nil {
		if err := os.RemoveAll(target); err != nil {
			return fmt.Errorf("remove the folder of the demo: %w", err)
		}
	}
	if err := os.RemoveAll(f.name); err != nil {
		return fmt.Errorf("remove the folder of the demo: %w", err)
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

// processes returns those processes of the recorded ones that still run, the
// last that was started first.
func (f *folder) processes() ([]int, error) {
	path, err := filepath.EvalSymlinks(f.name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(path, processFile))
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

// ours tells whether the process has a file of the folder at path in its
// command line: its number may have gone to another since.
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
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may end by itself meanwhile
		deadline := time.Now().Add(10 * time.Second)
		for syscall.Kill(pid, 0) == nil && time.Now().Before(deadline) {
			time.Sleep(50 * time.Millisecond)
		}
		_ = syscall.Kill(-pid, syscall.SIGKILL) // what it has started, or itself
	}
	return len(pids), nil
}
