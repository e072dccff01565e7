// Demo shows what this project does, with a real SPIRE server and agent and a software TPM. Run it
// with `make demo`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// timeLimit ends a demo that hangs.
const timeLimit = 3 * time.Minute

func main() {
	dir := flag.String("dir", "demo", "the `folder` for all files; it must not exist, unless a demo created it")
	keep := flag.Bool("keep", false, "leave everything running at the end")
	stop := flag.Bool("stop", false, "stop what an earlier -keep left running")
	flag.Parse()
	os.Exit(run(*dir, *keep, *stop))
}

func run(name string, keep, stop bool) int {
	n := newNarrator(os.Stdout)
	if stop {
		return stopKept(n, name)
	}
	ctx, cancel := signal.NotifyContext(context.Background(),
		os.Interrupt, syscall.SIGTERM, syscall.SIGHUP,
		syscall.SIGPIPE) // nobody reads the output any more, as in "make demo | head"
	defer cancel()
	ctx, cancel = context.WithTimeoutCause(ctx, timeLimit,
		fmt.Errorf("it took longer than %v", timeLimit))
	defer cancel()

	dir, err := openDir(name)
	if err != nil {
		n.failure(err)
		return 1
	}
	d := &demo{narrator: n, dir: dir, keep: keep}
	err = d.run(ctx)
	switch {
	case err == nil && keep:
		return d.leaveRunning()
	case err == nil:
		d.stop()
		d.remove()
		n.line("")
		n.line(fmt.Sprintf("Done in %v. Nothing is left running, and no file.", n.elapsed()))
		return 0
	case errors.Is(context.Cause(ctx), context.Canceled):
		d.stop()
		d.remove()
		n.line("")
		n.line("Interrupted: everything is stopped and removed.")
		return 130
	default:
		d.stop()
		n.failure(err)
		n.line(fmt.Sprintf("Everything is stopped. The logs and configurations are in %s.", dir.name))
		return 1
	}
}

// leaveRunning leaves the demo running and says how to look around and how to end it.
func (d *demo) leaveRunning() int {
	if err := d.dir.recordProcesses(d.processes); err != nil {
		d.stop()
		d.failure(err)
		return 1
	}
	d.line("")
	d.line("Left running. To look around:")
	server, agent := d.shown(d.server.Socket), d.shown(d.agent.Socket)
	for _, command := range [][]string{
		{d.programs.Server, "agent", "list", "-socketPath", server},
		{d.programs.Server, "entry", "show", "-socketPath", server},
		{d.programs.Agent, "api", "fetch", "x509", "-socketPath", agent},
		{d.programs.Tool, "ek", "--device", d.shown(d.tpm.device)},
		{d.programs.Tool, "explain", "--log", d.shown(d.server.LogPath)},
		{d.programs.Tool, "doctor", d.shown(d.path("agent/agent.conf"))},
		{"tail", "-f", d.shown(d.server.LogPath), d.shown(d.evicter.LogPath), d.shown(d.agent.LogPath)},
		{"ls", d.dir.name},
	} {
		d.command(command...)
	}
	d.line("To stop it and remove its files:")
	d.command("make demo-stop")
	return 0
}

func (d *demo) remove() {
	if err := d.dir.remove(); err != nil {
		d.failure(err)
	}
}

func stopKept(n *narrator, name string) int {
	dir := &folder{name: filepath.Clean(name)}
	if _, err := os.Lstat(dir.name); errors.Is(err, fs.ErrNotExist) {
		n.line(fmt.Sprintf("Nothing to stop: there is no %s here.", name))
		return 0
	}
	stopped, err := dir.stopProcesses()
	if err == nil {
		err = dir.remove()
	}
	if err != nil {
		n.failure(err)
		return 1
	}
	n.line(fmt.Sprintf("Stopped %d processes and removed %s.", stopped, name))
	return 0
}
