package e2e_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A chipmaker has a root CA, an issuing CA, and an nginx. The nginx serves the certificate and
// the CRL of the issuing CA, and EK certificates that its TPMs do not hold.
type chipmaker struct {
	*webServer
	root, issuer *attestortest.CA
}

// plainSite is an nginx configuration that serves files over HTTP, like vendors and mirrors.
const plainSite = `server {
    listen 127.0.0.1:%d;
    root www;
  }`

func (w *world) chipmaker() *chipmaker {
	w.t.Helper()
	m := &chipmaker{webServer: w.webServer()}
	m.configure(fmt.Sprintf(plainSite, m.port))
	m.root = attestortest.NewCA(w.t, "Example chipmaker's root")
	m.issuer = m.root.NewCAWith(w.t, "Example chipmaker's EK CA", func(c *x509.Certificate) {
		c.CRLDistributionPoints = []string{m.url("/cas/root.crl")}
	})
	m.serve("/cas/root.crl", m.root.CRL(w.t, nil))
	m.serve("/cas/ek ca.crt", m.issuer.Certificate.Raw) // some vendors have blanks in paths
	m.revoke()
	m.start()
	return m
}

func (m *chipmaker) url(path string) string { return "http://" + m.address() + path }

// serve publishes a file.
func (m *chipmaker) serve(path string, content []byte) {
	m.w.t.Helper()
	name := m.path(filepath.Join("www", path))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		m.w.t.Fatal(err)
	}
	m.w.replace(name, string(content))
}

// revoke publishes a CRL with the certificates of the given TPMs.
func (m *chipmaker) revoke(tpms ...*attestortest.TPM) {
	m.w.t.Helper()
	der := m.issuer.CRL(m.w.t, func(l *x509.RevocationList) {
		for _, tpm := range tpms {
			cert, err := x509.ParseCertificate(tpm.Claim().Certificate)
			if err != nil {
				m.w.t.Fatal(err)
			}
			l.RevokedCertificateEntries = append(l.RevokedCertificateEntries, x509.RevocationListEntry{
				SerialNumber: cert.SerialNumber, RevocationTime: l.ThisUpdate,
			})
		}
	})
	m.serve("/cas/ek.crl", der)
}

// ekCertificate returns an EK certificate with the URLs of its issuer and its CRL.
func (m *chipmaker) ekCertificate() attestortest.Certificate {
	return attestortest.Certificate{Change: func(c *x509.Certificate) {
		c.IssuingCertificateURL = []string{m.url("/cas/ek ca.crt")}
		c.CRLDistributionPoints = []string{m.url("/cas/ek.crl")}
	}}
}

// tpm returns a TPM with a certificate that names its issuer.
func (m *chipmaker) tpm(number int) *attestortest.TPM {
	m.w.t.Helper()
	return attestortest.New(m.w.t, attestortest.Options{
		EK: attestor.P256, Number: number, CA: m.issuer, Certificate: m.ekCertificate(),
	})
}

// bare returns a TPM without a certificate. The EK certificate service at path has the
// certificate.
func (m *chipmaker) bare(number int, path string) *attestortest.TPM {
	m.w.t.Helper()
	tpm := attestortest.New(m.w.t, attestortest.Options{EK: attestor.P256, Number: number})
	m.serveEK(path, tpm.Claim().EK)
	return tpm
}

// serveEK publishes a certificate for an ECC EK under the name that AMD's service uses: the
// first half of the SHA-256 of 0x00004444 and the point's coordinates, in hex.
func (m *chipmaker) serveEK(path string, ek crypto.PublicKey) {
	m.w.t.Helper()
	key, ok := ek.(*ecdsa.PublicKey)
	if !ok {
		m.w.t.Fatalf("the EK is a %T", ek)
	}
	point, err := key.Bytes() // 0x04, X, Y
	if err != nil {
		m.w.t.Fatal(err)
	}
	sum := sha256.Sum256(slices.Concat([]byte{0, 0, 0x44, 0x44}, point[1:]))
	m.serve(path+hex.EncodeToString(sum[:16]), m.issuer.Issue(m.w.t, ek, m.ekCertificate()))
}

// source returns a source of the kind ek_ca that trusts the chipmaker, with further keys.
func (m *chipmaker) source(keys ...string) string {
	m.w.t.Helper()
	root := m.path("root.pem")
	m.w.write(root, string(m.root.PEM()))
	return fmt.Sprintf("source \"ek_ca\" \"vendors\" {\n\tbundles = { chipmaker = %q }\n\t%s\n}\n", root,
		strings.Join(keys, "\n\t"))
}

// hosts returns the key that allows requests to the chipmaker.
func (m *chipmaker) hosts() string { return fmt.Sprintf("aia_hosts = [%q]", m.address()) }

// swtpm returns a machine with a software TPM, and its EK.
func (w *world) swtpm() (machine, crypto.PublicKey) {
	w.t.Helper()
	m := w.enrol(swtpmtest.Start(w.t, swtpmtest.Options{Blank: true}), "p256")
	out, err := exec.CommandContext(w.ctx, w.programs.AgentPlugin, "-pem", "-device", m.tpm.Device, "-key", m.ek).Output()
	if err != nil {
		w.t.Fatal(err)
	}
	block, _ := pem.Decode(out)
	if block == nil {
		w.t.Fatalf("no PEM: %s", out)
	}
	ek, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		w.t.Fatal(err)
	}
	return m, ek
}

// selectors returns the selectors of a machine that the chipmaker's certificate has admitted.
func (m *chipmaker) selectors(hash string) []string {
	return []string{
		"pub_hash:" + hash, "rule:default", "source:vendors", "ca:chipmaker", "ek:issuer:cn:Example chipmaker's EK CA",
		"ek:serial:.+", "manufacturer:.+", "model:.+", "version:.+",
	}
}

// If a TPM holds its certificate but not the issuer's, the server fetches the issuer from the
// vendor. The machine has the selectors of the certificate. Later it is admitted without the
// network, even after a restart of the server. A certificate that names that web server but was
// not signed by its issuer admits nobody.
func TestIssuerFromTheVendor(t *testing.T) {
	w := newWorld(t)
	m := w.chipmaker()
	known, ek := w.swtpm()
	known.tpm.WriteNV(0x01C0000A, m.issuer.Issue(t, ek, m.ekCertificate()))
	cache := filepath.Join(w.folder("cache"), "certificates.db")
	config := m.source(m.hosts(), fmt.Sprintf("cache_path = %q", cache), `crl = "required"`)

	s := w.server(spiretest.ServerConfig{PluginData: config})
	_, listed := w.admitted(s, known)
	w.wantSelectors(listed, m.selectors(known.hash)...)
	stranger := attestortest.New(t, attestortest.Options{
		EK: attestor.P256, Number: 9, CA: attestortest.NewCA(t, "Example chipmaker's EK CA"), Certificate: m.ekCertificate(),
	})
	w.wantCode(s, stranger, codes.Unavailable) // the issuer there has not signed its certificate

	m.stop()
	w.admitted(s, known)
	s.Stop()
	s = w.server(spiretest.ServerConfig{PluginData: config})
	w.admitted(s, known)
}

// If the vendor's web server is down and nothing is in the cache, nobody is admitted, but agents
// try again. A machine is admitted when the web server is back.
func TestVendorIsDown(t *testing.T) {
	w := newWorld(t)
	m := w.chipmaker()
	m.stop()
	s := w.server(spiretest.ServerConfig{PluginData: m.source(m.hosts())})
	tpm := m.tpm(1)
	w.wantCode(s, tpm, codes.Unavailable)
	w.waitLog(s.Process, 0, "outcome=unavailable", tpm.EKHash(), "vendors: cannot tell")
	if agents := w.agents(s); len(agents) > 0 {
		t.Errorf("agents were admitted: %v", agents)
	}
	m.start()
	other := w.server(spiretest.ServerConfig{PluginData: m.source(m.hosts())}) // has not seen the failure
	w.wantCode(other, tpm, codes.OK)
}

// A revoked certificate admits nobody, while others of the same CA do. If the CRL cannot be
// fetched, the key crl decides.
func TestRevokedCertificate(t *testing.T) {
	w := newWorld(t)
	m := w.chipmaker()
	good, revoked := m.tpm(1), m.tpm(2)
	m.revoke(revoked)
	for _, mode := range []string{"required", "if_available"} {
		s := w.server(spiretest.ServerConfig{PluginData: m.source(m.hosts(), fmt.Sprintf("crl = %q", mode))})
		w.wantCode(s, good, codes.OK)
		w.wantCode(s, revoked, codes.PermissionDenied)
		w.waitLog(s.Process, 0, "outcome=refused", revoked.EKHash(), "has been revoked")
	}
	if err := os.Remove(m.path("www/cas/ek.crl")); err != nil {
		t.Fatal(err)
	}
	required := w.server(spiretest.ServerConfig{PluginData: m.source(m.hosts(), `crl = "required"`)})
	w.wantCode(required, good, codes.Unavailable)
	w.wantCode(required, revoked, codes.Unavailable)
	available := w.server(spiretest.ServerConfig{PluginData: m.source(m.hosts(), `crl = "if_available"`)})
	w.wantCode(available, good, codes.OK)
}

// A TPM without a certificate is admitted by the certificate that the vendor's service has for
// it, fetched from a mirror. If the service has none, the TPM is refused.
func TestCertificateFromAService(t *testing.T) {
	w := newWorld(t)
	m := w.chipmaker()
	const path = "/ftpm.amd.com/pki/aia/"
	known, ek := w.swtpm()
	m.serveEK(path, ek)
	s := w.server(spiretest.ServerConfig{PluginData: m.source(m.hosts(),
		fmt.Sprintf("ek_certificate_urls = { amd = %q }", m.url(path)))})
	_, listed := w.admitted(s, known)
	w.wantSelectors(listed, m.selectors(known.hash)...)
	stranger, _ := w.swtpm()
	if line := w.refused(s, stranger); !strings.Contains(line, "no service has one for the EK") {
		t.Errorf("the log does not say why: %s", line)
	}
}

// inPlaceOf returns replacements for the vendors' hosts and the mirror in the examples.
func (m *chipmaker) inPlaceOf(mirror string) []string {
	return []string{
		"https://ekop.intel.com", m.url(""), "https://ftpm.amd.com", m.url(""),
		`"pki.infineon.com"`, fmt.Sprintf("%q", m.address()),
		"http://10.0.0.5/ekop.intel.com", "http://" + mirror + "/" + m.address(),
		"http://10.0.0.5/ftpm.amd.com", "http://" + mirror + "/" + m.address(),
		"http://10.0.0.5", "http://" + mirror,
	}
}

// layChipmaker gives a site a chipmaker's machines. The first has a certificate but not the
// issuer's, the second has none, and the third has a revoked one. These three, and a machine
// without any vendor, are in the inventory.
func (s *site) layChipmaker(mirror string) *chipmaker {
	s.t.Helper()
	m := s.chipmaker()
	s.one, s.two, s.three = m.tpm(1), m.bare(2, "/pki/aia/"), m.tpm(3)
	s.stranger = m.tpm(5)
	m.revoke(s.three)
	for _, tpm := range []*attestortest.TPM{s.one, s.two, s.three, s.uncertified} {
		s.put("/srv/tpm/hashes/"+tpm.EKHash(), "")
	}
	s.replacements = append(s.replacements, m.inPlaceOf(mirror)...)
	return m
}

func (s *site) layVendorCertificates() {
	m := s.layChipmaker("")
	for _, name := range []string{"amd", "google", "infineon", "intel", "nuvoton", "stm"} {
		s.put("/etc/tpm/"+name+".pem", string(m.root.PEM()))
	}
}

func (s *site) vendorCertificates(server *spiretest.Server) {
	s.admits(server, s.one, s.two)
	s.refuses(server, s.three, s.uncertified)
}

// layAirGapped fills the mirror with the command and the configuration of the example, switches
// the vendor off, and serves the mirror with another nginx.
func (s *site) layAirGapped() {
	nginx := s.webServer()
	m := s.layChipmaker(nginx.address())
	s.put("/etc/tpm/cas/root.pem", string(m.root.PEM()))
	dir := s.folder("internet")
	path := func(name string) string { return filepath.Join(dir, name) }
	s.write(path("server.conf"), s.moved(s.read("server.conf")))
	files := []string{path("root.pem")}
	s.write(files[0], string(m.root.PEM()))
	for i, tpm := range []*attestortest.TPM{s.one, s.two, s.three, s.stranger} {
		files = append(files, path(fmt.Sprintf("machine-%d.pem", i)))
		s.write(files[i+1], machineInPEM(s.t, tpm))
	}
	// The vendor of this test serves HTTP only.
	args := append([]string{
		"certificates", "fill", s.root + "/srv/tpm-mirror", "--config", path("server.conf"),
		"--ek-certificate-url", "amd=" + m.url("/pki/aia/"),
	}, files...)
	out := s.fillMirror(s.ctx, args...)
	for _, line := range []string{"fetched  " + m.address() + "/cas/ek ca.crt, ", "4 EKs: 4 fetched, 0 kept, 0 missing"} {
		if !strings.Contains(out, line) {
			s.t.Errorf("no %q in\n%s", line, out)
		}
	}
	m.stop()
	nginx.configure(strings.NewReplacer(
		"listen 10.0.0.5:80", "listen "+nginx.address(),
		"/srv/tpm-mirror", s.root+"/srv/tpm-mirror",
	).Replace(s.read("mirror.nginx")))
	nginx.start()
}

// fillMirror runs tpm-attestor certificates fill, and returns its output.
func (w *world) fillMirror(ctx context.Context, args ...string) string {
	w.t.Helper()
	out, err := exec.CommandContext(ctx, w.programs.Tool, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%q: %v\n%s", args, err, out)
	}
	return string(out)
}

// machineInPEM returns what `tpm-attestor-agent -pem` prints for a TPM.
func machineInPEM(t *testing.T, tpm *attestortest.TPM) string {
	t.Helper()
	claim := tpm.Claim()
	der, err := x509.MarshalPKIXPublicKey(claim.EK)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	if claim.Certificate != nil {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: claim.Certificate})...)
	}
	return string(text)
}
