package examples_test

import (
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// Firewalls are opened by this table, and an example that leaves a host out
// refuses a vendor's machines: what real certificates name is in both, and the
// table says "in certificates" of nothing else.
func TestHostsOfVendors(t *testing.T) {
	named := hostsInCertificates(t)
	said := map[string]bool{}
	for _, row := range tableOf(t, "examples/vendor-certificates/README.md", "| Vendor |") {
		if host := spans(row[1])[0]; strings.Contains(row[4], "in certificates") {
			said[host] = true
		}
	}
	if !maps.Equal(named, said) {
		t.Errorf("certificates name %q, the table says so of %q",
			slices.Sorted(maps.Keys(named)), slices.Sorted(maps.Keys(said)))
	}
	for _, file := range []string{"examples/vendor-certificates/server.conf", "examples/air-gapped/server.conf"} {
		for host := range named {
			if !strings.Contains(read(t, file), `"`+host+`"`) {
				t.Errorf("%s: aia_hosts has no %q", file, host)
			}
		}
	}
}

// tableOf returns the rows of the table that begins so, without its head.
func tableOf(t *testing.T, file, head string) [][]string {
	t.Helper()
	p := pageOf(t, file)
	p.prose = strings.Replace(p.prose, head, "<!-- it -->\n"+head, 1)
	return marked(t, p, "it")
}

// hostsInCertificates returns the hosts of the issuers and CRLs in real EK
// certificates and those of their CAs, which are not part of this repository.
func hostsInCertificates(t *testing.T) map[string]bool {
	t.Helper()
	dir := attestortest.FieldCertificates(t)
	hosts := map[string]bool{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !slices.Contains([]string{".der", ".bin", ".pem"}, filepath.Ext(path)) {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if block, _ := pem.Decode(content); block != nil {
			content = block.Bytes
		}
		cert, err := x509.ParseCertificate(content)
		if err != nil {
			cert, err = attestor.ParseEKCertificate(content) // with padding behind it
		}
		if err != nil {
			return err
		}
		for _, raw := range slices.Concat(cert.IssuingCertificateURL, cert.CRLDistributionPoints) {
			u, err := url.Parse(raw)
			if err != nil {
				return err
			}
			hosts[u.Host] = true
		}
		return nil
	})
	if err != nil || len(hosts) < 4 {
		t.Fatalf("%d hosts in %s: %v", len(hosts), dir, err)
	}
	return hosts
}
