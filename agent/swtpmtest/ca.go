package swtpmtest

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A CA issues EK certificates to TPMs, like a vendor's. It consists of a root CA and an
// issuing CA. Its files exist after the first TPM has been made with it.
type CA struct {
	// RootPath is the PEM file with the root's certificate.
	RootPath string
	// IssuerPath is the PEM file with the certificate of the CA that signs
	// EK certificates.
	IssuerPath string

	setupConfig string
	vendor      *vendor
}

// NewCA returns a CA that several TPMs can share. Its keys are made with the first TPM. No two CAs of tests that
// run at the same time in a process have the same keys; a test that has ended may have had them. The CA's files are
// removed when the test ends.
func NewCA(tb testing.TB) *CA {
	tb.Helper()
	dir := tempDir(tb)
	path := func(name string) string { return filepath.Join(dir, name) }
	ca := &CA{
		RootPath:    path("swtpm-localca-rootca-cert.pem"),
		IssuerPath:  path("issuercert.pem"),
		setupConfig: path("swtpm_setup.conf"),
		vendor:      vendors.take(),
	}
	ca.vendor.files.write(tb, dir)
	tb.Cleanup(func() {
		ca.vendor.files = readFolder(tb, dir)
		vendors.giveBack(ca.vendor)
	})
	// Without these files, swtpm_setup would use files of the system or of the user, and
	// a CA in a folder of the system.
	files := map[string]string{
		ca.setupConfig: fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\n"+
			"create_certs_tool_options = %s\n", program(tb, "swtpm_localca"),
			path("swtpm-localca.conf"), path("swtpm-localca.options")),
		path("swtpm-localca.conf"): fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\n"+
			"certserial = %s\n", dir, path("signkey.pem"), ca.IssuerPath, path("certserial")),
		path("swtpm-localca.options"): "--platform-manufacturer Example\n--platform-model Test\n" +
			"--platform-version 1.0\n",
	}
	for name, content := range files {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	return ca
}
