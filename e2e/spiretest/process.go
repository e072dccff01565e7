package spiretest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// How often a process that cannot tell by itself is looked at, and how long it
// has to end when it is asked to.
const (
	pollInterval = 50 * time.Millisecond
	stopTimeout  = 10 * time.Second
)

// A Process is a program that runs in the background, in a process group of its
// own, with its output in a file. It may be used by several goroutines.
type Process struct {
	// Name is how errors speak of it.
	Name string
	// LogPath is the file with its standard output and error.
	LogPath string

	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; readable once done is closed
}

// Start starts cmd with its output appended to the file at logPath. Unless it
// is detached the process gets SIGTERM when the caller's process dies, however
// that comes about.
func Start(name string, cmd *exec.Cmd, logPath string, detached bool) (*Process, error) {
	f, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !detached {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{Name: name, LogPath: logPath, cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.err = cmd.Wait()
	}()
	return p, nil
}

// PID returns the process's id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process, not to its children.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Stop ends the process and whatever it started, and returns when it has ended.
// It may be called more than once.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
	// Children of a process that was killed, or did not end, are in its group.
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.done
}

// Wait waits until the process has ended by itself and returns how it ended:
// nil for exit code 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w\n%s", p.Name, ctx.Err(), p.Tail())
	}
}

// Log returns what the process has written so far.
func (p *Process) Log() string {
	b, err := os.ReadFile(p.LogPath)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Mark returns how much the process has written so far, for WaitLog.
func (p *Process) Mark() int64 {
	info, err := os.Stat(p.LogPath)
	if err != nil {
		return 0
	}
	return info.Size()
}

// WaitLog waits for a whole line after mark with all of words in it and returns
// it. It fails when the process ends without it.
func (p *Process) WaitLog(ctx context.Context, mark int64, words ...string) (string, error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ended := p.ended() // before the log is read, so that nothing is missed
		if line, ok := findLine(p.Log(), mark, words); ok {
			return line, nil
		}
		if ended {
			return "", fmt.Errorf("%s ended (%w) and did not log %q:\n%s",
				p.Name, p.endedWith(), words, p.Tail())
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s did not log %q: %w:\n%s", p.Name, words, ctx.Err(), p.Tail())
		case <-ticker.C:
		}
	}
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *Process) endedWith() error {
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

// Tail returns the last lines of the log under the process's name.
func (p *Process) Tail() string {
	const lines = 15
	all := strings.Split(strings.TrimSpace(p.Log()), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return fmt.Sprintf("the end of %s:\n  %s", p.LogPath, strings.Join(all, "\n  "))
}

func findLine(log string, mark int64, words []string) (string, bool) {
	if int64(len(log)) <= mark {
		return "", false
	}
	rest := []byte(log)[mark:]
	for {
		line, after, whole := bytes.Cut(rest, []byte("\n"))
		if !whole {
			return "", false
		}
		if containsAll(string(line), words) {
			return string(line), true
		}
		rest = after
	}
}

func containsAll(s string, words []string) bool {
	for _, w := range words {
		if !strings.Contains(s, w) {
			return false
		}
	}
	return true
}

// Poll calls f until it returns nil or ctx ends, and then returns f's last
// error. It is for what only a question can find out: a list, a process table.
func Poll(ctx context.Context, f func() error) error {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w, the last time: %w", ctx.Err(), err)
		case <-ticker.C:
		}
	}
}

// Children returns the processes that the process pid has started and that
// still run.
func Children(pid int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		return nil, fmt.Errorf("children of process %d: no such process", pid)
	}
	var children []int
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // a thread that has ended since has no children
		}
		for field := range strings.FieldsSeq(string(b)) {
			child, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("children of process %d: %w", pid, err)
			}
			children = append(children, child)
		}
	}
	return children, nil
}
