package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A tpm is a software TPM with an EK certificate, and the CA that issued it.
type tpm struct {
	*spiretest.Process
	device string // the value of the agent's key device
	caPath string // the file with the CA's certificate
}

// startTPM makes a TPM in a new folder, with its own CA as its vendor, and switches it on.
func startTPM(ctx context.Context, dir string, detached bool) (*tpm, error) {
	state, ca := filepath.Join(dir, "tpm"), filepath.Join(dir, "tpm-vendor")
	for _, d := range []string{dir, state, ca} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("make the TPM: %w", err)
		}
	}
	t := &tpm{
		device: "unix:" + filepath.Join(dir, "tpm.sock"),
		caPath: filepath.Join(ca, "issuercert.pem"),
	}
	if err := manufacture(ctx, state, ca, t.caPath); err != nil {
		return nil, err
	}
	socket := filepath.Join(dir, "tpm.sock")
	//nolint:gosec,noctx // G204: the paths are this program's own. It outlives ctx; Stop ends it.
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--server", "type=unixio,path="+socket,
		"--tpmstate", "dir="+state, "--flags", "not-need-init,startup-clear")
	var err error
	t.Process, err = spiretest.Start("swtpm", cmd, filepath.Join(dir, "tpm.log"), detached)
	if err != nil {
		return nil, err
	}
	err = spiretest.Poll(ctx, func() error {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		t.Stop()
		return nil, fmt.Errorf("wait for swtpm: %w\n%s", err, t.Tail())
	}
	return t, nil
}

// manufacture makes a TPM's endorsement keys and their certificates. All files of swtpm are in the
// demo's folder.
func manufacture(ctx context.Context, state, ca, issuer string) error {
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return fmt.Errorf("make the TPM: %w", err)
	}
	path := func(name string) string { return filepath.Join(ca, name) }
	for name, content := range map[string]string{
		"setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\n"+
			"create_certs_tool_options = %s\n", localca, path("ca.conf"), path("ca.options")),
		"ca.conf": fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
			ca, path("signkey.pem"), issuer, path("certserial")),
		"ca.options": "--platform-manufacturer Example\n--platform-model Demo\n--platform-version 1.0\n",
	} {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			return fmt.Errorf("make the TPM: %w", err)
		}
	}
	//nolint:gosec // G204: the paths are this program's own.
	cmd := exec.CommandContext(ctx, "swtpm_setup", "--tpm2", "--tpmstate", "dir://"+state,
		"--config", path("setup.conf"), "--create-ek-cert", "--pcr-banks", "sha256")
	cmd.Env = append(os.Environ(), "TMPDIR="+ca)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("swtpm_setup: %w\n%s", err, out)
	}
	return nil
}
