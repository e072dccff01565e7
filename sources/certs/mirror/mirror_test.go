package mirror_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// A mirror has, byte for byte, what the vendor serves: the certificate of an EK that comes without
// one, each chain up to the root, and all CRLs. Each object is fetched once, however many machines
// need it.
func TestFill(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	bare := v.tpm(3)
	path := v.serveEK(bare)
	m := machines(t, inPEM(t, true, v.tpm(1), v.tpm(2)), inPEM(t, false, bare))
	s, out := fill(t, v.config(dir), m)
	want(t, s, out, mirror.Summary{Fetched: 5})
	wantFiles(t, dir, v.all(path)...)
	for name, content := range tree(t, dir) {
		_, path, _ := strings.Cut(name, "/")
		if served := string(v.files["/"+path]); content != served || v.asked("/"+path) != 1 {
			t.Errorf("%s: %d bytes of %d, %d requests", name, len(content), len(served), v.asked("/"+path))
		}
	}
	for _, line := range []string{"fetched  " + v.host + "/sub.crt, ", "/3] fetched"} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
}

// What Intel's service replies is kept as it is, JSON and all, under the name that a
// server asks the mirror for; and an ek_ca that asks the mirror, with the vendor
// gone, admits the machine.
func TestAServerUsesTheMirror(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	tpm := v.tpm(1)
	at, ok := certs.EKCertificateURL(certs.EKServiceIntel, v.url+"/ekcertservice/", tpm.Claim().EK)
	u, err := url.Parse(at)
	if !ok || err != nil {
		t.Fatal(at, err)
	}
	cert := strings.ReplaceAll(base64.URLEncoding.EncodeToString(tpm.Claim().Certificate), "=", "%3D")
	v.put(u.Path, []byte(`{"pubhash": "x", "certificate": "`+cert+`"}`))
	cfg := v.config(dir)
	cfg.Services = []mirror.Service{{Name: certs.EKServiceIntel, Base: v.url + "/ekcertservice/"}}
	s, out := fill(t, cfg, machines(t, inPEM(t, false, tpm)))
	want(t, s, out, mirror.Summary{Fetched: 5})
	wantFiles(t, dir, v.all(u.Path)...)
	for path := range v.files {
		v.remove(path)
	}

	served := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer served.Close()
	roots := filepath.Join(t.TempDir(), "root.pem")
	if err := os.WriteFile(roots, v.root.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := ekca.New(ekca.Config{
		Config: truststore.Config{
			CAPath:    roots,
			AIAHosts:  []string{v.host},
			MirrorURL: served.URL,
			CRL:       ekca.CRLRequired,
		},
		EKCertificateURLs: map[string]string{certs.EKServiceIntel: served.URL + "/" + v.host + "/ekcertservice/"},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	if err := source.Load(ctx); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- source.Watch(ctx, func() {}) }()
	hash, err := sources.ParseEKHash(tpm.EKHash())
	if err != nil {
		t.Fatal(err)
	}
	verdict, err := source.Fetch(ctx, &sources.Evidence{EK: tpm.Claim().EK, EKHash: hash})
	if err != nil || !verdict.Listed {
		t.Errorf("%+v, %v", verdict, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A run continues where the last one stopped: certificates and CRLs that are there are not fetched
// again, except for CRLs after some time, and for everything with Force.
func TestRefresh(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	bare := v.tpm(3)
	path := v.serveEK(bare)
	m := machines(t, inPEM(t, false, bare))
	cfg := v.config(dir)
	fill(t, cfg, m)
	s, out := fill(t, cfg, m)
	want(t, s, out, mirror.Summary{Kept: 5})

	newer := v.sub.CRL(t, nil, v.root.Certificate.SerialNumber)
	v.put("/crls/sub.crl", newer)
	cfg.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	s, out = fill(t, cfg, m)
	want(t, s, out, mirror.Summary{Kept: 3, Fetched: 2})
	if got := tree(t, dir)[v.host+"/crls/sub.crl"]; got != string(newer) {
		t.Error("the CRL is not the new one")
	}
	cfg.Now, cfg.Force = nil, true
	s, out = fill(t, cfg, m)
	want(t, s, out, mirror.Summary{Fetched: 5})
	if v.asked(path) != 2 || v.asked("/root.crl") != 3 {
		t.Errorf("%d and %d requests", v.asked(path), v.asked("/root.crl"))
	}
}

// A vendor that is down for an hour does not take away what is there and good;
// what has expired meanwhile is missing, since no server would use it.
func TestVendorIsDown(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	m := machines(t, inPEM(t, true, v.tpm(1)))
	cfg := v.config(dir)
	fill(t, cfg, m)
	for path := range v.files {
		v.put(path, nil)
	}
	before := tree(t, dir)
	cfg.Force = true
	s, out := fill(t, cfg, m)
	want(t, s, out, mirror.Summary{Kept: 4})
	if !strings.Contains(out, "since it could not be updated") {
		t.Errorf("nothing is said of it:\n%s", out)
	}
	cfg.Now = func() time.Time { return time.Now().Add(48 * time.Hour) }
	s, out = fill(t, cfg, m)
	want(t, s, out, mirror.Summary{Kept: 4, Missing: 2})
	for name, content := range tree(t, dir) {
		if before[name] != content {
			t.Errorf("%s was changed", name)
		}
	}
}

// A file that was truncated, by a full disk or a bad USB stick, is fetched again, and files that an
// interrupted run has left half-written are removed.
func TestDamagedFiles(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	m := machines(t, inPEM(t, true, v.tpm(1)))
	fill(t, v.config(dir), m)
	good := tree(t, dir)
	for name, content := range good {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content[:len(content)/2]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, v.host, ".fill-LEFT"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s, out := fill(t, v.config(dir), m)
	want(t, s, out, mirror.Summary{Fetched: 4})
	wantFiles(t, dir, v.all()...)
	if got := tree(t, dir)[v.host+"/sub.crt"]; got != good[v.host+"/sub.crt"] {
		t.Error("the file is still damaged")
	}
}

// Stops a wrong answer, once, from taking away what was there and good: another CA's
// certificate, another CA's CRL, one that was issued before the one that is there. The
// files stay, and the next run has what is newer.
func TestWrongAnswersReplaceNothing(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	other := attestortest.NewCA(t, "root")
	m := machines(t, inPEM(t, true, v.tpm(1)))
	at := func(age time.Duration) []byte {
		return v.root.CRL(t, func(l *x509.RevocationList) {
			l.ThisUpdate = time.Now().Add(-age)
			l.NextUpdate = l.ThisUpdate.Add(24 * time.Hour)
		})
	}
	v.put("/root.crl", at(time.Hour))
	cfg := v.config(dir)
	fill(t, cfg, m)
	good := tree(t, dir)
	cfg.Force = true
	v.put("/root.crt", other.Certificate.Raw)
	v.put("/crls/sub.crl", other.CRL(t, nil))
	v.put("/root.crl", at(2*time.Hour))
	s, out := fill(t, cfg, m)
	want(t, s, out, mirror.Summary{Fetched: 1, Kept: 3})
	for _, says := range []string{"did not sign the certificate", "from another issuer", "before the one in the folder"} {
		if !strings.Contains(out, says) {
			t.Errorf("nothing says %q:\n%s", says, out)
		}
	}
	if diff := cmp.Diff(good, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
	newer := at(time.Minute)
	v.put("/root.crl", newer)
	fill(t, cfg, m)
	if got := tree(t, dir)[v.host+"/root.crl"]; got != string(newer) {
		t.Error("the CRL is not the newer one")
	}
	// A CA whose clock is a year ahead for a moment does not keep its next CRLs out.
	v.put("/root.crl", at(-365*24*time.Hour))
	fill(t, cfg, m)
	right := at(time.Second)
	v.put("/root.crl", right)
	fill(t, cfg, m)
	if got := tree(t, dir)[v.host+"/root.crl"]; got != string(right) {
		t.Error("the CRL is the one from the future")
	}
}

// An indirect CRL, by a CA above the issuer of the certificate that names it, is one
// that an ek_ca accepts: a mirror without it admits none of Intel's newer machines
// under "required". One by a stranger is missing.
func TestIndirectCRL(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	element := func(tag byte, parts ...[]byte) []byte {
		content := bytes.Join(parts, nil)
		return append([]byte{tag, byte(len(content))}, content...)
	}
	url := element(0x86, []byte(v.url+"/indirect.crl"))
	issuer := element(0xa2, element(0xa4, v.root.Certificate.RawSubject))
	point := element(0x30, element(0x30, element(0xa0, element(0xa0, url)), issuer))
	m := machines(t, inPEM(t, true, v.tpmThatNames(1, func(c *x509.Certificate) {
		c.IssuingCertificateURL = []string{v.url + "/sub.crt"}
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 31}, Value: point})
	})))
	indirect := func(l *x509.RevocationList) {
		l.ExtraExtensions = []pkix.Extension{{
			Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 3, 0x84, 1, 0xff},
		}}
	}
	v.put("/indirect.crl", attestortest.NewCA(t, "root").CRL(t, indirect))
	if _, out := fill(t, v.config(dir), m); !strings.Contains(out, "it is not signed by its issuer") {
		t.Errorf("a stranger's:\n%s", out)
	}
	list := v.root.CRL(t, indirect)
	v.put("/indirect.crl", list)
	_, out := fill(t, v.config(dir), m)
	if got := tree(t, dir)[v.host+"/indirect.crl"]; got != string(list) {
		t.Errorf("it is not in the folder:\n%s", out)
	}
}

// Files that no server accepts, as an earlier release or a bad stick may have left
// them, are not fresh, however new they are: they are fetched again.
func TestWrongFilesAreReplaced(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	other := attestortest.NewCA(t, "root")
	m := machines(t, inPEM(t, true, v.tpm(1)))
	fill(t, v.config(dir), m)
	good := tree(t, dir)
	for name, content := range map[string][]byte{"/root.crt": other.Certificate.Raw, "/root.crl": other.CRL(t, nil)} {
		if err := os.WriteFile(filepath.Join(dir, v.host, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, out := fill(t, v.config(dir), m)
	want(t, s, out, mirror.Summary{Fetched: 2, Kept: 2})
	if diff := cmp.Diff(good, tree(t, dir)); diff != "" {
		t.Error(diff)
	}
}

// An issuer's certificate in the folder expires: the one that the vendor has renewed
// is fetched, and one that has expired as well is missing and not written.
func TestIssuerInTheFolderExpires(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	ends := time.Now().Add(24 * time.Hour)
	v.sub = v.root.NewCAWith(t, "sub", func(c *x509.Certificate) {
		v.names("/root.crt", "/root.crl")(c)
		c.NotAfter = ends
	})
	v.put("/sub.crt", v.sub.Certificate.Raw)
	v.put("/crls/sub.crl", v.sub.CRL(t, func(l *x509.RevocationList) { l.NextUpdate = ends.Add(time.Hour) }))
	m := machines(t, inPEM(t, true, v.tpm(1)))
	cfg := v.config(dir)
	fill(t, cfg, m)
	asked := v.asked("/sub.crt")
	cfg.Now = func() time.Time { return ends.Add(time.Minute) }
	for _, folder := range []string{dir, t.TempDir()} {
		cfg.Folder = folder
		before := tree(t, folder)
		s, out := fill(t, cfg, m)
		want(t, s, out, mirror.Summary{Missing: 1})
		if asked++; v.asked("/sub.crt") != asked || !strings.Contains(out, "it exists, but expired on ") {
			t.Errorf("%d requests:\n%s", v.asked("/sub.crt"), out)
		}
		if diff := cmp.Diff(before, tree(t, folder)); diff != "" {
			t.Error(diff)
		}
	}
}

// The CRL of a root that no URL leads to is verified by the root's own certificate, in
// a file beside those of the machines.
func TestRootInAFile(t *testing.T) {
	v := newVendor(t)
	v.remove("/root.crt")
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.root.Certificate.Raw})
	s, out := fill(t, v.config(t.TempDir()), machines(t, inPEM(t, true, v.tpm(1)), root))
	want(t, s, out, mirror.Summary{Fetched: 3})
	if !strings.Contains(out, "root.crl, ") {
		t.Error(out)
	}
}

// A CA certificate that no server would use to verify a CRL is not used here either, and a line
// says so beside the CRL that is missing.
func TestUselessCAInAFile(t *testing.T) {
	v := newVendor(t)
	v.remove("/root.crt")
	useless := v.root.NewCAWith(t, "root", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
	s, out := fill(t, v.config(t.TempDir()), machines(t, inPEM(t, true, v.tpm(1)), useless.PEM()))
	want(t, s, out, mirror.Summary{Fetched: 2, Missing: 1})
	if !strings.Contains(out, `note     "the machines' files": certificate 1 belongs to a CA that may not sign certificates`) {
		t.Error(out)
	}
}

// Stops a machine whose file is full of CA certificates that it has made up, under the name of a
// vendor's CA, from keeping other machines' certificates and CRLs out of the mirror.
func TestForgedCAsInAFile(t *testing.T) {
	v := newVendor(t)
	v.remove("/root.crt")
	forged, forger := inPEM(t, true, v.tpm(1)), attestortest.NewCA(t, "forger")
	for range 300 {
		forged = append(forged, forger.NewCAWith(t, "root", func(c *x509.Certificate) {
			c.SubjectKeyId = v.root.Certificate.SubjectKeyId
		}).PEM()...)
	}
	s, out := fill(t, v.config(t.TempDir()), machines(t, forged, inPEM(t, true, v.tpm(2)), v.root.PEM()))
	want(t, s, out, mirror.Summary{Fetched: 3})
}

// A URL has the issuers of two machines' certificates, and the file in the folder that
// of the first alone: it is fetched again for the second, and counts once.
func TestFileForOneOfTwo(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	one := machines(t, inPEM(t, true, v.tpm(1)))
	fill(t, v.config(dir), one)
	first := v.sub.Certificate
	v.sub = v.root.NewCAWith(t, "sub", v.names("/root.crt", "/root.crl"))
	both := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: first.Raw})
	both = append(both, v.sub.PEM()...)
	v.put("/sub.crt", both)
	second := v.tpmThatNames(2, func(c *x509.Certificate) { c.IssuingCertificateURL = []string{v.url + "/sub.crt"} })
	if err := one.Read(inPEM(t, true, second)); err != nil {
		t.Fatal(err)
	}
	s, out := fill(t, v.config(dir), one)
	want(t, s, out, mirror.Summary{Fetched: 1, Kept: 3})
	if got := tree(t, dir)[v.host+"/sub.crt"]; got != string(both) {
		t.Error("the file has not both")
	}
}

// A devid that fetches from a mirror trusts CAs that an ek_ca would not: those for TLS clients, or for
// another use than EKs. What they have issued and what they name is mirrored, for machines whose DevIDs
// are in the files; below an EK such a CA is still of no use, whatever came first.
func TestDevIDs(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	v.sub = v.root.NewCAWith(t, "devices", func(c *x509.Certificate) {
		v.names("/root.crt", "/root.crl")(c)
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	v.put("/sub.crt", v.sub.Certificate.Raw)
	v.put("/crls/sub.crl", v.sub.CRL(t, nil))
	tpm := v.tpm(1)
	devID := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.sub.IssueDevID(t, tpm.Claim().EK,
		attestortest.Certificate{Change: v.names("/sub.crt", "/crls/sub.crl")})})
	m := machines(t, devID, devID)
	if m.Len() != 0 || m.DevIDs() != 1 {
		t.Errorf("%d EKs, %d DevIDs", m.Len(), m.DevIDs())
	}
	s, out := fill(t, v.config(dir), m)
	want(t, s, out, mirror.Summary{Fetched: 4})
	wantFiles(t, dir, v.all()...)
	if !strings.Contains(out, "[0/1] fetched") {
		t.Error(out)
	}
	s, out = fill(t, v.config(t.TempDir()), machines(t, inPEM(t, true, tpm)))
	want(t, s, out, mirror.Summary{Missing: 1})
	s, out = fill(t, v.config(t.TempDir()), machines(t, devID, inPEM(t, true, tpm)))
	want(t, s, out, mirror.Summary{Fetched: 4, Missing: 1})
	own := machines(t, devID, v.root.PEM(), v.sub.PEM()) // a CA that is given need not be fetched
	v.remove("/root.crt")
	v.remove("/sub.crt")
	s, out = fill(t, v.config(t.TempDir()), own)
	want(t, s, out, mirror.Summary{Fetched: 2})
}

// What cannot be had is told, with its URL and what to do, and counted, so that
// the command fails; all else is there.
func TestMissing(t *testing.T) {
	other := attestortest.NewCA(t, "other")
	for name, tt := range map[string]struct {
		change func(*vendor) *mirror.Machines
		want   mirror.Summary
		says   string
	}{
		"issuer is not there": {func(v *vendor) *mirror.Machines {
			v.remove("/root.crt")
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 2, Missing: 1}, `MISSING  issuer "root": "`},
		"CRL of a CA that nobody knows": {func(v *vendor) *mirror.Machines {
			v.sub = v.root.NewCAWith(v.t, "sub", func(c *x509.Certificate) { c.CRLDistributionPoints = []string{v.url + "/root.crl"} })
			v.put("/sub.crt", v.sub.Certificate.Raw)
			v.put("/crls/sub.crl", v.sub.CRL(v.t, nil))
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 2, Missing: 1}, `MISSING  CRL of "root": its issuer is not known`},
		"issuer is not the issuer": {func(v *vendor) *mirror.Machines {
			v.put("/root.crt", other.Certificate.Raw)
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 2, Missing: 1}, "did not sign the certificate that names it"},
		"issuer is HTML": {func(v *vendor) *mirror.Machines {
			v.put("/sub.crt", []byte("<html>"))
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Missing: 1}, `MISSING  issuer "sub": "`},
		"host is not allowed": {func(v *vendor) *mirror.Machines {
			return machines(v.t, inPEM(v.t, true, v.tpmThatNames(1, func(c *x509.Certificate) {
				c.IssuingCertificateURL = []string{"http://169.254.169.254/latest", "http://elsewhere.example.org/a.crt"}
			})))
		}, mirror.Summary{Missing: 1}, "add the host to aia_hosts"},
		"CRL is not there": {func(v *vendor) *mirror.Machines {
			v.remove("/crls/sub.crl")
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 3, Missing: 1}, `MISSING  CRL of "sub": "`},
		"CRL is another CA's": {func(v *vendor) *mirror.Machines {
			v.put("/crls/sub.crl", other.CRL(v.t, nil))
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 3, Missing: 1}, "it is from another issuer"},
		"CRL has expired": {func(v *vendor) *mirror.Machines {
			v.put("/crls/sub.crl", v.sub.CRL(v.t, func(l *x509.RevocationList) {
				l.ThisUpdate, l.NextUpdate = time.Now().Add(-48*time.Hour), time.Now().Add(-24*time.Hour)
			}))
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 4, Missing: 1}, "it expired on "},
		"CRL in PEM": {func(v *vendor) *mirror.Machines {
			v.put("/crls/sub.crl", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: v.sub.CRL(v.t, nil)}))
			return machines(v.t, inPEM(v.t, true, v.tpm(1)))
		}, mirror.Summary{Fetched: 4}, ""},
		"EK is known to no service": {func(v *vendor) *mirror.Machines {
			return machines(v.t, inPEM(v.t, false, v.tpm(1)))
		}, mirror.Summary{Missing: 1}, "MISSING  EK "},
		"EK service has another's": {func(v *vendor) *mirror.Machines {
			v.put(v.serveEK(v.tpm(1)), v.tpm(2).Claim().Certificate)
			return machines(v.t, inPEM(v.t, false, v.tpm(1)))
		}, mirror.Summary{Missing: 1}, "for another key"},
		"one of two URLs": {func(v *vendor) *mirror.Machines {
			return machines(v.t, inPEM(v.t, true, v.tpmThatNames(1, func(c *x509.Certificate) {
				c.IssuingCertificateURL = []string{v.url + "/gone", v.url + "/sub.crt"}
			})))
		}, mirror.Summary{Fetched: 3}, "note     issuer"},
		// An ek_ca asks the first four URLs that it may ask: the mirror has the same.
		"the fifth URL": {func(v *vendor) *mirror.Machines {
			return machines(v.t, inPEM(v.t, true, v.tpmThatNames(1, func(c *x509.Certificate) {
				c.IssuingCertificateURL = []string{
					"ldap://ldap.example.org", "http://a.example.org/1", "http://b.example.org/2",
					"http://c.example.org/3", v.url + "/sub.crt",
				}
			})))
		}, mirror.Summary{Fetched: 3}, "note     issuer"},
		"nothing says where": {func(v *vendor) *mirror.Machines {
			return machines(v.t, inPEM(v.t, true, v.tpmThatNames(1, func(*x509.Certificate) {})))
		}, mirror.Summary{}, "add it to the configured CAs"},
		"two that differ by case": {func(v *vendor) *mirror.Machines {
			v.put("/SUB.crt", v.sub.Certificate.Raw)
			return machines(v.t, inPEM(v.t, true, v.tpm(1)), inPEM(v.t, true,
				v.tpmThatNames(2, v.names("/SUB.crt", "/crls/sub.crl"))))
		}, mirror.Summary{Fetched: 4, Missing: 1}, "only in upper and lower case"},
		"a file where a folder is": {func(v *vendor) *mirror.Machines {
			v.put("/sub.crt/x", v.sub.Certificate.Raw)
			return machines(v.t, inPEM(v.t, true, v.tpmThatNames(1, func(c *x509.Certificate) {
				c.IssuingCertificateURL = []string{v.url + "/sub.crt/../sub.crt", v.url + "/a//b", v.url + "/.htaccess"}
			})))
		}, mirror.Summary{Missing: 1}, "MISSING  issuer"},
	} {
		t.Run(name, func(t *testing.T) {
			v, dir := newVendor(t), t.TempDir()
			s, out := fill(t, v.config(dir), tt.change(v))
			want(t, s, out, tt.want)
			if !strings.Contains(out, tt.says) {
				t.Errorf("nothing says %q:\n%s", tt.says, out)
			}
			if n := len(tree(t, dir)); n != tt.want.Fetched {
				t.Errorf("%d files", n)
			}
		})
	}
}

// A certificate can name any URL of an allowed host, and a forged one is in a file as
// easily as a real one: whichever comes first, what it names keeps no other machine's
// certificates out of the mirror, and ends no run.
func TestURLsThatCollide(t *testing.T) {
	for name, url := range map[string]string{
		"a folder where a file is": "/sub.crt/x", "a file where a folder is": "/crls",
		"another case": "/Sub.crt", "a folder in another case": "/CRLs/other.crt",
	} {
		for _, first := range []bool{true, false} {
			for _, served := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s, first %v, served %v", name, first, served), func(t *testing.T) {
					v, dir := newVendor(t), t.TempDir()
					// A server may answer any path below a script's.
					forged := attestortest.New(t, attestortest.Options{
						EK: attestor.P256, Number: 2, CA: attestortest.NewCA(t, "nobody"),
						Certificate: attestortest.Certificate{Change: v.names(url, url)},
					})
					if served {
						v.put(url, v.sub.Certificate.Raw)
					}
					files := [][]byte{inPEM(t, true, forged), inPEM(t, true, v.tpm(1))}
					if !first {
						slices.Reverse(files)
					}
					for range 2 { // from scratch, and with what is there
						s, out := fill(t, v.config(dir), machines(t, files...))
						if s.Fetched+s.Kept != 4 || s.Missing != 1 {
							t.Errorf("%+v:\n%s", s, out)
						}
					}
					wantFiles(t, dir, v.all()...)
				})
			}
		}
	}
}

// A real certificate that names a URL whose place in the folder is taken by another certificate's
// file is missing, and nothing else is.
func TestRealURLsThatCollide(t *testing.T) {
	for _, url := range []string{"/sub.crt/x", "/crls"} {
		v, dir := newVendor(t), t.TempDir()
		all := machines(t, inPEM(t, true, v.tpm(1)))
		fill(t, v.config(dir), all)
		v.put(url, v.sub.Certificate.Raw)
		other := v.tpmThatNames(2, func(c *x509.Certificate) { c.IssuingCertificateURL = []string{v.url + url} })
		if err := all.Read(inPEM(t, true, other)); err != nil {
			t.Fatal(err)
		}
		s, out := fill(t, v.config(dir), all)
		want(t, s, out, mirror.Summary{Kept: 4, Missing: 1})
		if !strings.Contains(out, "another certificate's file has that place") {
			t.Errorf("it is not said why:\n%s", out)
		}
	}
}

// For a TPM that sends its own chain, nothing needs to be fetched from URLs that do not exist. A
// machine without a certificate, if no service may be asked, is reported.
func TestChainFromTheMachine(t *testing.T) {
	v := newVendor(t)
	tpm := v.tpmThatNames(1, func(*x509.Certificate) {})
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.sub.Certificate.Raw})
	s, out := fill(t, v.config(t.TempDir()), machines(t, slices.Concat(inPEM(t, true, tpm), chain)))
	want(t, s, out, mirror.Summary{Fetched: 2}) // the root's, named by the one in the middle

	cfg := v.config(t.TempDir())
	cfg.Services = nil
	s, out = fill(t, cfg, machines(t, inPEM(t, false, tpm)))
	want(t, s, out, mirror.Summary{Missing: 1})
	if !strings.Contains(out, "ek_certificate_urls") {
		t.Errorf("nothing says what to write:\n%s", out)
	}
}

// Nothing is written outside of the folder, whatever links are in it; such a
// folder is no place to go on in.
func TestLinksOutOfTheFolder(t *testing.T) {
	v, dir, outside := newVendor(t), t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, v.host)); err != nil {
		t.Fatal(err)
	}
	_, err := mirror.Fill(t.Context(), v.config(dir), machines(t, inPEM(t, true, v.tpm(1))))
	if err == nil {
		t.Error("no error")
	}
	wantFiles(t, outside)
}

// A disk that is full, or a folder that is not to be written to, ends the run at
// once with what is wrong, instead of a hundred thousand lines.
func TestFolderThatCannotBeUsed(t *testing.T) {
	v, dir := newVendor(t), t.TempDir()
	m := machines(t, inPEM(t, true, v.tpm(1)))
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mirror.Fill(t.Context(), v.config(file), m); err == nil {
		t.Error("a file served as a folder")
	}
	if err := os.WriteFile(filepath.Join(dir, v.host), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := mirror.Fill(t.Context(), v.config(dir), m); err == nil || !strings.Contains(err.Error(), v.host) {
		t.Errorf("a file where a host's folder has to be: %v", err)
	}
	cfg := v.config(t.TempDir())
	cfg.Progress = fullDisk{}
	if _, err := mirror.Fill(t.Context(), cfg, m); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("progress that nobody sees: %v", err)
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

// Ctrl-C ends the run, and does not count as an answer from the vendor.
func TestInterrupted(t *testing.T) {
	v := newVendor(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("interrupted"))
	_, err := mirror.Fill(ctx, v.config(t.TempDir()), machines(t, inPEM(t, true, v.tpm(1))))
	if err == nil || !strings.Contains(err.Error(), "interrupted") {
		t.Error(err)
	}
}

// Mistakes in what may be asked are found before anything is written.
func TestBadConfiguration(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	for _, cfg := range []mirror.Config{
		{Folder: dir, Hosts: []string{"http://x/"}},
		{Folder: dir, Services: []mirror.Service{{Name: "amd", Base: "ftp://x/"}}},
	} {
		if _, err := mirror.Fill(t.Context(), cfg, &mirror.Machines{}); err == nil {
			t.Errorf("%+v is accepted", cfg)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the folder was made")
	}
}

// Machines' files come from anywhere: content that is truncated, is not an EK's, or has a weak key
// is an error with its place, and nothing from the file is added.
func TestReadMachines(t *testing.T) {
	v := newVendor(t)
	one, two := v.tpm(1), v.tpm(2)
	good := inPEM(t, true, one)
	bad := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	for name, tt := range map[string]struct {
		content []byte
		want    int
		err     string
	}{
		"one":                 {good, 1, ""},
		"again":               {slices.Concat(good, good), 1, ""},
		"two":                 {inPEM(t, false, one, two), 2, ""},
		"DER":                 {one.Claim().Certificate, 1, ""},
		"with words":          {slices.Concat([]byte("EK hash: …\n"), good, bad("X509 CRL", nil)), 1, ""},
		"byte order mark":     {slices.Concat([]byte("\ufeff"), inPEM(t, false, one, two)), 2, ""},
		"nothing":             {nil, 0, "neither PEM nor an EK certificate"},
		"words":               {[]byte("EK hash: 00"), 0, "neither PEM nor an EK certificate"},
		"a CA alone":          {bad("CERTIFICATE", v.root.Certificate.Raw), 0, ""},
		"a key of no TPM's":   {bad("RSA PRIVATE KEY", nil), 0, "tpm-attestor-agent -pem"},
		"cut off":             {good[:len(good)-50], 0, "begins 2 PEM blocks, but only 1"},
		"damaged certificate": {slices.Concat(good, bad("CERTIFICATE", []byte("x"))), 0, "PEM block 3: "},
		"damaged key":         {slices.Concat(good, bad("PUBLIC KEY", []byte("x"))), 0, "PEM block 3: read the public key"},
	} {
		t.Run(name, func(t *testing.T) {
			var m mirror.Machines
			err := m.Read(tt.content)
			if m.Len() != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%d, %v", m.Len(), err)
			}
		})
	}
}

// The URL that a server without the Internet asks says where the vendor's is.
func TestUpstream(t *testing.T) {
	const intel = "https://ekop.intel.com/ekcertservice/"
	for _, tt := range []struct{ base, mirror, want string }{
		{intel, "", intel},
		{intel, "http://10.0.0.5/", intel},
		{"http://10.0.0.5/ekop.intel.com/ekcertservice/", "http://10.0.0.5/", intel},
		{"http://10.0.0.5/ekop.intel.com/ekcertservice/", "http://10.0.0.5", intel},
		{"http://m/tpm/ekop.intel.com/ekcertservice/", "http://m/tpm/", intel},
		{"http://m/tpm/10.0.0.7:8080/x/", "http://m/tpm/", "https://10.0.0.7:8080/x/"},
		{"http://m/intel/", "http://m/", "http://m/intel/"},
		{"http://m/intel.com", "http://m/", "http://m/intel.com"},
		{"http://mm/ekop.intel.com/x/", "http://m", "http://mm/ekop.intel.com/x/"},
	} {
		if got := mirror.Upstream(tt.base, tt.mirror); got != tt.want {
			t.Errorf("%q, %q: %q, want %q", tt.base, tt.mirror, got, tt.want)
		}
	}
}

// FuzzMachines: whatever is in a file of machines, nothing panics, and a file that cannot be read
// adds nothing.
func FuzzMachines(f *testing.F) {
	tpm := attestortest.New(f, attestortest.Options{EK: attestor.P256, CA: attestortest.NewCA(f, "root")})
	der, err := x509.MarshalPKIXPublicKey(tpm.Claim().EK)
	if err != nil {
		f.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: tpm.Claim().Certificate})
	for _, seed := range [][]byte{nil, key, slices.Concat(key, cert), cert[:100], tpm.Claim().Certificate} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		var m mirror.Machines
		switch err := m.Read(content); {
		case err != nil && m.Len() != 0:
			t.Fatalf("%d machines with the error %v", m.Len(), err)
		case err == nil && m.Read(content) != nil:
			t.Fatal("the same file is refused the second time")
		}
	})
}
