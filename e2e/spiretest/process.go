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

// How often Poll asks, and how long a process may take to end.
const (
	pollInterval = 50 * time.Millisecond
	stopTimeout  = 10 * time.Second
)

// A Process is a program that runs in the background in its own process group. Its output goes
// to a file. A Process is safe for concurrent use.
type Process struct {
	// Name is the name in errors.
	Name string
	// LogPath is the file with its standard output and error.
	LogPath string

	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; set before done is closed
}

// Start starts cmd. It appends the output to the file at logPath. Unless detached is true, the
// kernel sends SIGTERM to the process when the caller's process dies.
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

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends a signal to the process, but not to its children.
func (p *Process) Signal(s os.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Stop ends the process and everything that it has started, and waits until the process has
// ended. It may be called more than once.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
	}
	// If the process was killed, or has not ended, its children are still in the group.
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	<-p.done
}

// Wait waits until the process has ended by itself. It returns nil if the exit code is 0.
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

// Mark returns the present length of the log, for WaitLog.
func (p *Process) Mark() int64 {
	info, err := os.Stat(p.LogPath)
	if err != nil {
		return 0
	}
	return info.Size()
}

// WaitLog waits for a complete line after mark that contains all of words, and returns the line.
// If the process ends without such a line, that is an error.
func (p *Process) WaitLog(ctx context.Context, mark int64, words ...string) (string, error) {
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		ended := p.ended() // before the log is read, so that no line is missed
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

// Tail returns the process's name and the last lines of its log.
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

// Poll calls f until f returns nil or ctx ends, and then returns f's last error. Use it if
// nothing else tells when f succeeds.
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

// Children returns the running processes that the process pid has started.
func Children(pid int) ([]int, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(tasks) == 0 {
		return nil, fmt.Errorf("children of process %d: no such process", pid)
	}
	var children []int
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended meanwhile
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
