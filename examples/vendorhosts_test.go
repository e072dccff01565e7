package examples_test

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
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
	hosts := map[string]bool{}
	for _, cert := range fieldCertificates(t) {
		for _, raw := range slices.Concat(cert.IssuingCertificateURL, cert.CRLDistributionPoints) {
			u, err := url.Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if u.Host != "" { // an issuer may be "x-selfsigned:"
				hosts[u.Host] = true
			}
		}
	}
	if len(hosts) < 4 {
		t.Fatalf("%d hosts", len(hosts))
	}
	return hosts
}

// fieldCertificates returns real EK certificates and those of their CAs, by the path
// of their files.
func fieldCertificates(t *testing.T) map[string]*x509.Certificate {
	t.Helper()
	all := map[string]*x509.Certificate{}
	for _, dir := range []string{attestortest.FieldCertificates(t), attestortest.MoreFieldCertificates(t)} {
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			switch {
			case err == nil && d.IsDir() && d.Name() == "odd": // what is no certificate
				return fs.SkipDir
			case err != nil || d.IsDir() || !slices.Contains([]string{".der", ".bin", ".pem"}, filepath.Ext(path)):
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if block, _ := pem.Decode(content); block != nil {
				content = block.Bytes
			}
			var der asn1.RawValue // without what stands behind it in NV
			if _, err := asn1.Unmarshal(content, &der); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			cert, err := x509.ParseCertificate(der.FullBytes)
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			all[path] = cert
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// The example admits the machines that it is for, with the CAs that its table names
// and nothing but what their certificates say where it is: a table with roots alone
// refuses nearly all of a vendor's.
func TestVendorsMachines(t *testing.T) {
	all := fieldCertificates(t)
	mirror := mirrorOf(t, all)
	config := vendorsConfig(t, all, mirror.URL)
	want := map[string]policy.Outcome{
		"infineon-slb9670-eccp256-mfrca035.der":          policy.Admitted,
		"infineon-slb9670-rsa2048-mfrca035.der":          policy.Admitted,
		"infineon-slb9672-eccp256-ca056.der":             policy.Admitted,
		"intel-ptt-spt-rsa2048-ekop.der":                 policy.Admitted,
		"intel-cml-eccp256.der":                          policy.Admitted,
		"nuvoton-npct6xx-rsa2048-root2110.der":           policy.Admitted,
		"stm-st33htphahb4-rsa2048-padded-ff.bin":         policy.Admitted,
		"stm-st33-rsa2048-ica05.der":                     policy.Admitted,
		"stm-st33-rsa2048-ica06.der":                     policy.Admitted,
		"gce-rsa2048-encryption.der":                     policy.Admitted,
		"gce-rsa2048-signing-not-an-ek.der":              policy.Refused,
		"vmware-eccp256-selfsigned.der":                  policy.Refused,
		"nuvoton-npct6xx-rsaoaep2048-sha1-padded-11.bin": policy.Refused, // its CA has signed by SHA-1
		"swtpm-rsa2048.der":                              policy.Refused,
	}
	set, err := config.NewSet(admission.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer set.Close()
	set.Start(t.Context(), nil)
	for path, cert := range all {
		outcome, ok := want[filepath.Base(path)]
		if !ok {
			continue
		}
		delete(want, filepath.Base(path))
		cert, err := attestor.ParseEKCertificate(cert.Raw) // which knows more kinds of keys
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		hash, err := attestor.HashEK(cert.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		ev := &sources.Evidence{EKHash: hash, EK: cert.PublicKey, Certificate: cert.Raw, Proof: &sources.Proof{}}
		if d := set.AfterChallenge(t.Context(), ev); d.Outcome != outcome {
			t.Errorf("%s: %v, want %v: %s", filepath.Base(path), d.Outcome, outcome, d.Explain())
		}
	}
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
}

// mirrorOf serves the CA certificates where the certificates below them say that they
// are, as the example's mirror does.
func mirrorOf(t *testing.T, all map[string]*x509.Certificate) *httptest.Server {
	t.Helper()
	files := map[string][]byte{}
	for _, child := range all {
		for _, at := range child.IssuingCertificateURL {
			name, err := mirror.Path(at)
			for _, issuer := range all {
				if err == nil && child.CheckSignatureFrom(issuer) == nil {
					files["/"+name] = issuer.Raw
				}
			}
		}
	}
	if len(files) < 8 {
		t.Fatalf("%d files in the mirror", len(files))
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		content, ok := files[r.URL.Path]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content) // the client may have gone
	}))
	t.Cleanup(s.Close)
	return s
}

// vendorsConfig returns the example's configuration with files that hold what its
// table says, and a mirror in place of the vendors.
func vendorsConfig(t *testing.T, all map[string]*x509.Certificate, mirror string) *config.Config {
	t.Helper()
	dir := t.TempDir()
	for _, row := range marked(t, pageOf(t, "examples/vendor-certificates/README.md"), "anchors") {
		var bundle bytes.Buffer
		for _, name := range spans(row[1]) {
			n := bundle.Len()
			for _, c := range all {
				if c.IsCA && (c.Subject.CommonName == name || slices.Contains(c.Subject.OrganizationalUnit, name)) {
					must(t, pem.Encode(&bundle, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
				}
			}
			if bundle.Len() == n {
				t.Errorf("no certificate is of the CA %q", name)
			}
		}
		must(t, os.WriteFile(filepath.Join(dir, spans(row[0])[0]+".pem"), bundle.Bytes(), 0o600))
	}
	must(t, os.Mkdir(filepath.Join(dir, "hashes"), 0o700))
	for _, c := range all {
		ek, err := attestor.ParseEKCertificate(c.Raw)
		if err != nil {
			continue // a CA's
		}
		if hash, err := attestor.HashEK(ek.PublicKey); err == nil {
			must(t, os.WriteFile(filepath.Join(dir, "hashes", hex.EncodeToString(hash[:])), nil, 0o600))
		}
	}
	data, err := snippet{
		place: "server.conf", text: read(t, "examples/vendor-certificates/server.conf"), whole: true,
	}.data()
	must(t, err)
	text := strings.NewReplacer(
		"/etc/tpm/", dir+"/", "/srv/tpm/hashes", filepath.Join(dir, "hashes"), "/var/lib/spire/server", dir,
		"aia_hosts", "mirror_url = \""+mirror+"/\"\naia_hosts",
		"https://ekop.intel.com", mirror+"/ekop.intel.com", "https://ftpm.amd.com", mirror+"/ftpm.amd.com",
	).Replace(data.text)
	c, err := config.NewLoader().Load(t.Context(), text, "example.org")
	must(t, err)
	return c
}
