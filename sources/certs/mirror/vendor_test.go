package mirror_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A vendor has a web server with the issuers and CRLs that its EK certificates
// name, and with EK certificates that its TPMs do not carry.
type vendor struct {
	t         *testing.T
	url, host string
	root, sub *attestortest.CA

	mu       sync.Mutex
	files    map[string][]byte // by path
	requests map[string]int
}

func newVendor(t *testing.T) *vendor {
	t.Helper()
	v := &vendor{t: t, files: map[string][]byte{}, requests: map[string]int{}}
	server := httptest.NewServer(v)
	t.Cleanup(server.Close)
	v.url, v.host = server.URL, strings.TrimPrefix(server.URL, "http://")
	v.root = attestortest.NewCA(t, "root")
	v.sub = v.root.NewCAWith(t, "sub", v.names("/root.crt", "/root.crl"))
	v.put("/root.crt", v.root.Certificate.Raw)
	v.put("/sub.crt", v.sub.Certificate.Raw)
	v.put("/root.crl", v.root.CRL(t, nil))
	v.put("/crls/sub.crl", v.sub.CRL(t, nil))
	return v
}

// names has a certificate say where its issuer and the CRL are.
func (v *vendor) names(issuer, crl string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.IssuingCertificateURL = []string{v.url + issuer}
		c.CRLDistributionPoints = []string{v.url + crl}
	}
}

// ServeHTTP implements http.Handler.
func (v *vendor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requests[r.URL.Path]++
	content, ok := v.files[r.URL.Path]
	switch {
	case !ok:
		http.NotFound(w, r)
	case content == nil:
		http.Error(w, "out of order", http.StatusInternalServerError)
	default:
		_, _ = w.Write(content) // the client may have gone
	}
}

// put publishes a file; nil is one that the server fails to serve.
func (v *vendor) put(path string, content []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.files[path] = content
}

func (v *vendor) remove(path string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.files, path)
}

// asked returns how often a path has been asked for.
func (v *vendor) asked(path string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.requests[path]
}

// tpm returns a TPM with a certificate by the vendor.
func (v *vendor) tpm(number int) *attestortest.TPM {
	return v.tpmThatNames(number, v.names("/sub.crt", "/crls/sub.crl"))
}

func (v *vendor) tpmThatNames(number int, change func(*x509.Certificate)) *attestortest.TPM {
	v.t.Helper()
	return attestortest.New(v.t, attestortest.Options{
		EK: attestor.P256, Number: number, CA: v.sub,
		Certificate: attestortest.Certificate{Change: change},
	})
}

// serveEK publishes a TPM's certificate where AMD's service would have it.
func (v *vendor) serveEK(tpm *attestortest.TPM) (path string) {
	v.t.Helper()
	at, ok := certs.EKCertificateURL(certs.EKServiceAMD, v.url+"/pki/aia/", tpm.Claim().EK)
	u, err := url.Parse(at)
	if !ok || err != nil {
		v.t.Fatal(at, err)
	}
	v.put(u.Path, tpm.Claim().Certificate)
	return u.Path
}

// config returns a configuration that fills dir from the vendor.
func (v *vendor) config(dir string) mirror.Config {
	return mirror.Config{
		Folder: dir, Hosts: []string{v.host}, CRLs: true,
		Services: []mirror.Service{{Name: certs.EKServiceAMD, Base: v.url + "/pki/aia/"}},
	}
}

// inPEM returns what `tpm-attestor-agent -pem` prints.
func inPEM(t *testing.T, withCertificate bool, tpms ...*attestortest.TPM) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, tpm := range tpms {
		der, err := x509.MarshalPKIXPublicKey(tpm.Claim().EK)
		if err != nil {
			t.Fatal(err)
		}
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
		if withCertificate {
			b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tpm.Claim().Certificate}))
		}
	}
	return b.Bytes()
}

func machines(t *testing.T, content ...[]byte) *mirror.Machines {
	t.Helper()
	var m mirror.Machines
	for _, c := range content {
		if err := m.Read(c); err != nil {
			t.Fatal(err)
		}
	}
	return &m
}

// fill runs Fill, and returns what it printed.
func fill(t *testing.T, cfg mirror.Config, m *mirror.Machines) (mirror.Summary, string) {
	t.Helper()
	var out strings.Builder
	cfg.Progress = &out
	s, err := mirror.Fill(t.Context(), cfg, m)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return s, out.String()
}

// want checks what a run has done.
func want(t *testing.T, got mirror.Summary, out string, want mirror.Summary) {
	t.Helper()
	if got != want {
		t.Errorf("%+v, want %+v:\n%s", got, want, out)
	}
}

// tree returns the files in a folder, by path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		files[rel] = string(content)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func wantFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(tree(t, dir))); !slices.Equal(got, want) {
		t.Errorf("the files are %q, want %q", got, want)
	}
}

func (v *vendor) all(more ...string) []string {
	var files []string
	for _, path := range append([]string{"/root.crt", "/sub.crt", "/root.crl", "/crls/sub.crl"}, more...) {
		files = append(files, fmt.Sprintf("%s%s", v.host, path))
	}
	return files
}
