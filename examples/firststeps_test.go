package examples_test

import (
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// blockWith returns the first code block of a page that has some text, as a shell
// takes it: without prompts, and with what is printed left out.
func blockWith(t *testing.T, file, text string) string {
	t.Helper()
	for _, b := range pageOf(t, file).blocks {
		if strings.Contains(b.text, text) {
			return regexp.MustCompile(`(?m)^\$ `).ReplaceAllString(b.text, "")
		}
	}
	t.Fatalf("%s: no block has %q", file, text)
	return ""
}

// The commands of the nginx example make certificates by which each side knows the
// other, and not one that a client could use as the server's.
func TestNginxCertificates(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", blockWith(t, "examples/nginx-json/README.md", "openssl req"))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, tt := range []struct {
		leaf, ca string
		usage    x509.ExtKeyUsage
		host     string
		valid    bool
	}{
		{"server.pem", "servers-ca.pem", x509.ExtKeyUsageServerAuth, "allowlist.example.org", true},
		{"client.pem", "clients-ca.pem", x509.ExtKeyUsageClientAuth, "", true},
		{"client.pem", "servers-ca.pem", x509.ExtKeyUsageServerAuth, "", false},
		{"server.pem", "clients-ca.pem", x509.ExtKeyUsageClientAuth, "", false},
	} {
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM([]byte(readFile(t, filepath.Join(dir, tt.ca))))
		leaf := parsePEM(t, filepath.Join(dir, tt.leaf))
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, KeyUsages: []x509.ExtKeyUsage{tt.usage}, DNSName: tt.host,
		})
		if (err == nil) != tt.valid {
			t.Errorf("%s by %s: %v", tt.leaf, tt.ca, err)
		}
	}
	for _, key := range []string{"server.key", "client-key.pem"} {
		if text := readFile(t, filepath.Join(dir, key)); !strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("%s holds no key", key)
		}
	}
}

// Who has no TPM can follow the quickstart all the same: the software TPM that it
// starts is one that the agent takes.
func TestSoftwareTPMOfTheQuickstart(t *testing.T) {
	_, command, found := strings.Cut(blockWith(t, "examples/quickstart/README.md", "swtpm socket"), "sudo swtpm ")
	if !found {
		t.Fatal("no swtpm is started")
	}
	dir, err := os.MkdirTemp("", "tpm") // testing's own are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "tpm.sock")
	args := strings.Fields(strings.NewReplacer("\\\n", " ", "/var/lib/swtpm", dir, "/run/swtpm.sock", socket,
		"--daemon", "").Replace(command))
	cmd := exec.CommandContext(t.Context(), "swtpm", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatalf("start swtpm, which e2e/install.sh test installs: %v", err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ready := func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "unix", socket)
		return err == nil && c.Close() == nil
	}
	for begun := time.Now(); !ready(); {
		if time.Since(begun) > time.Minute {
			t.Fatal("swtpm does not answer")
		}
	}
	agent := exec.CommandContext(t.Context(), "go", "run", "./cmd/tpm-attestor-agent", "-ek", "-device", "unix:"+socket)
	agent.Dir = root
	if out, err := agent.CombinedOutput(); err != nil || !strings.Contains(string(out), "EK hash: ") {
		t.Errorf("%v: %s", err, out)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func parsePEM(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode([]byte(readFile(t, path)))
	if block == nil {
		t.Fatalf("%s is no PEM", path)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}
