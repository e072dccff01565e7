package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/rogpeppe/go-internal/testscript"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/spire-tpm/spire-tpm-attestor/agent"
	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/ekreport"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
)

func TestMain(m *testing.M) {
	os.Exit(testscript.RunMain(m, map[string]func() int{
		"tpm-attestor": func() int { main(); return 0 },
	}))
}

// Operators' scripts call the command and parse its output, so neither may change.
func TestScripts(t *testing.T) {
	device := swtpmtest.Start(t, swtpmtest.Options{}).Device
	report := inspect(t, device)
	booted := clitest.BootedTPM(t)
	vendor := newVendor(t)
	keys := agentKeys(t, device)
	testscript.Run(t, testscript.Params{
		Dir: "testdata", RequireExplicitExec: true, UpdateScripts: os.Getenv("UPDATE_GOLDEN") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"timeless": timeless},
		Setup: func(env *testscript.Env) error {
			env.Setenv("GORACE", os.Getenv("GORACE")) // how long a command waits when it has ended
			env.Setenv("TPM", device)
			env.Setenv("TPMSOCKET", strings.TrimPrefix(device, "unix:"))
			env.Setenv("VENDOR", vendor.host)
			env.Setenv("BOOTED", booted.Device)
			env.Setenv("KEYS", keys)
			return errors.Join(writePublicAreas(env.WorkDir), clitest.WriteKeys(env.WorkDir), clitest.WriteBootLogs(env.WorkDir),
				writeCertificates(env.WorkDir), vendor.write(env.WorkDir),
				clitest.WriteAuthorities(filepath.Join(env.WorkDir, "device")), writeNames(env.WorkDir, report),
				os.Chmod(filepath.Dir(env.WorkDir), 0o711), os.Chmod(env.WorkDir, 0o711)) // for validate --user
		},
	})
}

// agentKeys returns the directory of a KeyManager that has made a key in a TPM.
func agentKeys(t *testing.T, device string) string {
	t.Helper()
	m, directory := agent.NewKeyManager(), filepath.Join(t.TempDir(), "tpm")
	_, err := m.Configure(t.Context(), &configv1.ConfigureRequest{
		HclConfiguration: fmt.Sprintf("device = %q\ndirectory = %q", device, directory),
	})
	if err == nil {
		_, err = m.GenerateKey(t.Context(), &keymanagerv1.GenerateKeyRequest{
			KeyId: "agent-svid-A", KeyType: keymanagerv1.KeyType_EC_P256,
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return directory
}

// timeless writes the standard output without its times to timeless.json.
func timeless(ts *testscript.TestScript, _ bool, _ []string) {
	moments := regexp.MustCompile(`[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z`)
	text := moments.ReplaceAllString(ts.ReadFile("stdout"), "<time>")
	ts.Check(os.WriteFile(ts.MkAbs("timeless.json"), []byte(text), 0o600))
}

// writePublicAreas writes an EK as a TPMT_PUBLIC and as a TPM2B_PUBLIC.
func writePublicAreas(folder string) error {
	template, err := attestor.TemplateFor(attestor.RSA2048)
	if err != nil {
		return err
	}
	public := template.Public
	modulus := append([]byte{0xC1}, make([]byte, 254)...)
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: append(modulus, 1)})
	return errors.Join(
		os.WriteFile(filepath.Join(folder, "ek.tpmt"), tpm2.Marshal(public), 0o600),
		os.WriteFile(filepath.Join(folder, "ek.tpm2b"), tpm2.Marshal(tpm2.New2B(public)), 0o600),
	)
}

func inspect(t *testing.T, device string) *tpm.Report {
	t.Helper()
	asked, err := ekreport.Open(device, "auto", os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	report, err := ekreport.Inspect(t.Context(), asked)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// writeNames writes a list that has the name of the machine with a TPM.
func writeNames(folder string, r *tpm.Report) error {
	line := hex.EncodeToString(r.EK.Hash[:]) + " laptop-17\n"
	return os.WriteFile(filepath.Join(folder, "names.txt"), []byte(line), 0o600)
}

// If the output cannot be written, the command fails. Otherwise a script would enrol a machine
// by an empty hash.
func TestUnwritableOutputFails(t *testing.T) {
	t.Parallel()
	config := filepath.Join(t.TempDir(), "server.hcl")
	if err := os.WriteFile(config, []byte(`source "hash_dir" "a" { path = "/" }`), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	for _, args := range [][]string{{"validate", config}, {"validate", config, "-o", "json"}} {
		if code := run(t.Context(), args, cli.Streams{In: strings.NewReader(""), Out: clitest.FullDisk{}, Err: &stderr}); code != cli.ExitFailed {
			t.Errorf("%q: exit code %d: %s", args, code, &stderr)
		}
	}
}

// Scripts distinguish a wrong command line from a failure by the exit code. The last line names
// the help.
func TestUsageErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"bogus"},
		{"certificates", "bogus"},
		{"ek", "--bogus"},
		{"ek", "-o", "xml"},
		{"ek", "--hash", "--pem"},
		{"ek", "--hash", "-o", "json"},
		{"ek", "--pem", "file"},
		{"ek", "--ek-type", "rsa1024"},
		{"validate"},
		{"validate", "a", "b"},
		{"validate", "a", "--user", "nobody-of-this-name"},
		{"doctor", "a", "b"},
		{"doctor", "--server", "a", "b"},
		{"doctor", "--device", "tpm0"},
		{"doctor", "--user", "nobody-of-this-name"},
		{"check"},
		{"check", "a", "b", "c"},
		{"check", "a", "b", "--tests", "c"},
		{"check", "-", "-"},
		{"explain"},
		{"explain", "a", "b"},
		{"explain", "a", "--log", "b"},
		{"list", "bogus"},
		{"list", "lint"},
		{"list", "build"},
		{"list", "build", "a", "--from", "xml"},
		{"list", "build", "a", "--form", "xml"},
		{"list", "build", "a", "--to", "b", "--to-dir", "c"},
		{"list", "build", "a", "--to-dir", "c", "--form", "text"},
		{"list", "build", "a", "--to-dir", "c", "--serial", "5"},
		{"list", "build", "a", "--form", "text", "--serial", "5"},
		{"list", "build", "a", "--sharded"},
		{"list", "build", "a", "--expires", "tomorrow"},
		{"list", "build", "a", "--expires", "2020-01-01T00:00:00Z"},
		{"list", "build", "a", "-o", "json"},
		{"list", "convert"},
		{"list", "convert", "a"},
		{"list", "diff", "a"},
		{"list", "diff", "-", "-"},
		{"list", "sign", "a"},
		{"list", "sign", "-", "--key", "k"},
		{"list", "sign", "a", "--key", "k", "--signature", "-"},
		{"list", "verify", "a"},
		{"devid", "bogus"},
		{"devid", "request"},
		{"devid", "request", "a", "--key-type", "p521"},
		{"devid", "request", "a", "--handle", "81000010"},
		{"devid", "request", "a", "--subject", "CN=x"},
		{"devid", "request", "a", "--csr", "--subject", "x"},
		{"devid", "request", "a", "--challenge", "c", "--csr"},
		{"devid", "issue", "bogus"},
		{"devid", "issue", "challenge"},
		{"devid", "issue", "challenge", "a", "--state", "s"},
		{"devid", "issue", "challenge", "a", "--config", "c"},
		{"devid", "issue", "certificate", "a", "--config", "c", "--state", "s"},
		{"devid", "issue", "certificate", "a", "--config", "c", "--state", "s", "--ca-cert", "x"},
		{"devid", "issue", "certificate", "a", "--config", "c", "--state", "s", "--csr", "--days", "1"},
		{
			"devid", "issue", "certificate", "a", "--config", "c", "--state", "s",
			"--ca-cert", "x", "--ca-key", "y", "--crl-url", "ldap://x",
		},
		{"certificates", "fill"},
		{"certificates", "fill", "folder"},
		{"certificates", "fill", "folder", "file"},
		{"certificates", "fill", "folder", "file", "--ek-certificate-url", "https://x/"},
	} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), args, cli.Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
		if code != cli.ExitUsage || stdout.Len() > 0 || !strings.HasSuffix(stderr.String(), "--help.\n") {
			t.Errorf("%q: exit code %d, %q, %q", args, code, &stdout, &stderr)
		}
	}
}

// Every command has a help with an example, and prints it to standard output.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"ek"},
		{"validate"},
		{"doctor"},
		{"check"},
		{"explain"},
		{"certificates", "fill"},
		{"devid", "request"},
		{"devid", "issue", "challenge"},
		{"devid", "issue", "certificate"},
		{"list", "lint"},
		{"list", "build"},
		{"list", "convert"},
		{"list", "diff"},
		{"list", "sign"},
		{"list", "verify"},
	} {
		var stdout strings.Builder
		code := run(t.Context(), append(args, "--help"), cli.Streams{In: strings.NewReader(""), Out: &stdout, Err: io.Discard})
		if code != 0 || !strings.Contains(stdout.String(), "Examples:\n  tpm-attestor "+strings.Join(args, " ")) {
			t.Errorf("%q: exit code %d\n%s", args, code, &stdout)
		}
	}
}
