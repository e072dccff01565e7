// Package spiretest runs real SPIRE servers and agents with the plugins of this project, for
// tests and for the demo.
//
// Each server or agent keeps all its files in one folder, which the caller names. The folder's
// path must be short, since it holds sockets: see MaxDir.
package spiretest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
)

// MaxDir is the length of the longest path of a server's or an agent's folder, in bytes. The path
// of a socket has at most 107 bytes, and go-plugin makes sockets two folders below.
const MaxDir = 64

// Programs are the paths of the programs to run.
type Programs struct {
	Server, Agent             string // SPIRE's
	ServerPlugin, AgentPlugin string // this project's
	Tool                      string // this project's tpm-attestor
}

// Find finds SPIRE's programs in the folder that SPIRE_DIR names, or in the PATH, and this
// project's in the folder that PLUGIN_DIR names.
func Find() (Programs, error) {
	var p Programs
	var errs []error
	for _, x := range []struct {
		path           *string
		variable, name string
		onPath         bool
	}{
		{&p.Server, "SPIRE_DIR", "spire-server", true},
		{&p.Agent, "SPIRE_DIR", "spire-agent", true},
		{&p.ServerPlugin, "PLUGIN_DIR", "tpm-attestor-server", false},
		{&p.AgentPlugin, "PLUGIN_DIR", "tpm-attestor-agent", false},
		{&p.Tool, "PLUGIN_DIR", "tpm-attestor", false},
	} {
		path, err := find(x.variable, x.name, x.onPath)
		if err != nil {
			errs = append(errs, err)
		}
		*x.path = path
	}
	if err := errors.Join(errs...); err != nil {
		return Programs{}, fmt.Errorf("%w\n(`make e2e` and `make demo` set these variables)", err)
	}
	return p, nil
}

func find(variable, name string, onPath bool) (string, error) {
	dir := os.Getenv(variable)
	if dir == "" && onPath {
		path, err := exec.LookPath(name)
		if err != nil {
			return "", fmt.Errorf("find %s: $%s is not set and: %w", name, variable, err)
		}
		return path, nil
	}
	if dir == "" {
		return "", fmt.Errorf("find %s: $%s is not set", name, variable)
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s in $%s: %w", name, variable, err)
	}
	return path, nil
}

// EKReport returns the agent plugin's report on the TPM at device and its EK of the type ek
// ("auto", "p256", …).
func (p Programs) EKReport(ctx context.Context, device, ek string) (string, error) {
	return run(ctx, "", p.AgentPlugin, "-ek", "-device", device, "-key", ek)
}

// ParseEKHash returns the EK hash in the first line of a report. Scripts rely on that line.
func ParseEKHash(report string) (string, error) {
	m := regexp.MustCompile(`\AEK hash: ([0-9a-f]{64})\b`).FindStringSubmatch(report)
	if m == nil {
		return "", fmt.Errorf("the first line is not an EK hash:\n%s", report)
	}
	return m[1], nil
}
