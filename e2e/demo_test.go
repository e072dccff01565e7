package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// If somebody interrupts a demo, or nobody reads its output any more ("make demo | head"), it
// leaves neither processes nor files.
func TestDemoIsInterrupted(t *testing.T) {
	w := newWorld(t)
	program := filepath.Join(w.dir, "demo")
	if out, err := exec.CommandContext(w.ctx, "go", "build", "-o", program, "./demo").CombinedOutput(); err != nil {
		t.Fatalf("build the demo: %v\n%s", err, out)
	}
	for name, interrupt := range map[string]func(p *os.Process, output *os.File) error{
		"SIGINT":    func(p *os.Process, _ *os.File) error { return p.Signal(syscall.SIGINT) },
		"no reader": func(_ *os.Process, output *os.File) error { return output.Close() },
	} {
		dir := filepath.Join(w.folder("kept"), "demo")
		cmd := exec.CommandContext(w.ctx, program, "-dir", dir)
		cmd.Env = append(os.Environ(),
			"SPIRE_DIR="+filepath.Dir(w.programs.Server), "PLUGIN_DIR="+filepath.Dir(w.programs.ServerPlugin))
		output, in, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stdout = in
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		_ = in.Close() // the demo has its own
		lines := bufio.NewScanner(output)
		running := false
		for !running && lines.Scan() {
			running = strings.Contains(lines.Text(), "a SPIRE server runs")
		}
		if !running {
			t.Fatal("the demo has not begun")
		}
		if err := interrupt(cmd.Process, output); err != nil {
			t.Fatal(err)
		}
		go func() { _ = cmd.Wait() }() // its exit code does not matter
		w.soon(func() error { return leftBehind(dir) })
		_ = output.Close()
		t.Logf("%s: nothing is left", name)
	}
}

// leftBehind returns an error if dir exists, or if a process has dir in its command line.
func leftBehind(dir string) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is still there", dir)
	}
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, name := range all {
		if line, err := os.ReadFile(name); err == nil && strings.Contains(string(line), dir) {
			return fmt.Errorf("still running: %q", line)
		}
	}
	return nil
}
