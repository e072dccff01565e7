package ekca_test

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// A configuration that would fetch something else than somebody meant, or nothing
// where something was meant, is refused.
func TestNewRefusesFetching(t *testing.T) {
	services := map[string]string{"intel": "https://ek.test/"}
	for name, c := range map[string]struct {
		cfg  ekca.Config
		want string
	}{
		"unknown service":    {ekca.Config{EKCertificateURLs: map[string]string{"Intel": "https://ek.test/"}}, `"Intel"`},
		"no URL":             {ekca.Config{EKCertificateURLs: map[string]string{"intel": ""}}, ""},
		"a file":             {ekca.Config{EKCertificateURLs: map[string]string{"amd": "file:///etc/"}}, ""},
		"host with a scheme": {ekca.Config{Config: truststore.Config{AIAHosts: []string{"http://pki.test"}}}, ""},
		"host with a path":   {ekca.Config{Config: truststore.Config{AIAHosts: []string{"pki.test/x"}}}, ""},
		"empty host":         {ekca.Config{Config: truststore.Config{AIAHosts: []string{""}}}, ""},
		"unknown mode":       {ekca.Config{Config: truststore.Config{AIAHosts: []string{"pki.test"}, CRL: "on"}}, `crl must be one of "off"`},
		"CRLs from nobody":   {ekca.Config{Config: truststore.Config{CRL: ekca.CRLRequired}, EKCertificateURLs: services}, "crl is \"required\", but there are no hosts"},
		"mirror of nobody":   {ekca.Config{Config: truststore.Config{MirrorURL: "http://mirror.test/"}, EKCertificateURLs: services}, "mirror_url replaces the hosts"},
		"bad mirror":         {ekca.Config{Config: truststore.Config{AIAHosts: []string{"pki.test"}, MirrorURL: "mirror"}}, ""},
		"cache of nothing":   {ekca.Config{Config: truststore.Config{CachePath: "/x"}}, "nothing is fetched"},
	} {
		t.Run(name, func(t *testing.T) {
			c.cfg.CAPath = "/ca"
			src, err := ekca.New(c.cfg)
			if err == nil || src != nil {
				t.Fatalf("New = %v, %v", src, err)
			}
			wantText(t, err.Error(), c.want)
		})
	}
	for _, cfg := range []ekca.Config{
		{Config: truststore.Config{CRL: ekca.CRLOff}},
		{Config: truststore.Config{AIAHosts: []string{"pki.test", "pki.test:8080", "192.0.2.1", "[2001:db8::1]:80"}, CRL: ekca.CRLIfAvailable}},
		{Config: truststore.Config{CachePath: filepath.Join(t.TempDir(), "none", "cache.db")}, EKCertificateURLs: services},
	} {
		cfg.CAPath = "/ca"
		if _, err := ekca.New(cfg); err != nil {
			t.Errorf("New(%+v): %v", cfg, err)
		}
	}
}

// runUntilWritten runs a source until f has returned and what it has fetched is
// written.
func runUntilWritten(t *testing.T, src *ekca.Source, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- src.Watch(ctx, func() {}) }()
	f()
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// After a restart with the network gone, the fleet attests by what was fetched:
// issuers, CRLs and EK certificates. What was revoked stays so.
func TestRestartWithoutTheNetwork(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low", crlsAt(web.put("/root.crl", root.crl(t))))
	issuer := issuersAt(web.put("/low", low.cert.Raw))
	key := certstest.NewKey(t)
	ek := certstest.Sign(t, ekTemplate(t, issuer, crlsAt(web.url("/low.crl")), func(c *x509.Certificate) {
		c.SerialNumber = certstest.NewSerial(t)
	}), low.cert, key.Public(), low.key)
	bad := low.ek(t, issuer, crlsAt(web.url("/low.crl")))
	web.put("/low.crl", low.crl(t, revoking(bad)))
	web.put(pathOf(t, "amd", "/amd/", key.Public()), ek.Raw)
	cfg := fetchConfig(t, root, web)
	cfg.EKCertificateURLs = map[string]string{"amd": web.url("/amd/")}
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	cfg.CRL = ekca.CRLRequired
	check := func(src *ekca.Source) {
		t.Helper()
		if v, err := asked(t, src, bare(key.Public())); err != nil || !v.Listed {
			t.Errorf("%+v, %v", v, err)
		}
		wantOutcome(t, listed, "", src, ek)
		wantOutcome(t, notListed, "revoked", src, bad)
		if w := src.Status().Warnings; len(w) != 0 {
			t.Errorf("warnings: %q", w)
		}
	}
	first := load(t, cfg)
	runUntilWritten(t, first, func() { check(first) })
	asked := web.requests("")
	for range 2 {
		src := load(t, cfg)
		check(src)
		if _, err := src.Check(t.Context(), bare(key.Public())); err != nil {
			t.Errorf("Check alone: %v", err)
		}
	}
	web.wantRequests(t, asked)
}

// A cache that is torn or something else is said and fetched anew. It admits
// nobody and stops nothing.
func TestBrokenCache(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	ek := low.ek(t, issuersAt(web.put("/low", low.cert.Raw)))
	cfg := fetchConfig(t, root, web)
	cfg.CachePath = certstest.Write(t, filepath.Join(t.TempDir(), "cache.db"), []byte("no database"))
	src := load(t, cfg)
	wantWarning(t, src.Status().Warnings, "cache.db")
	wantOutcome(t, listed, "", src, ek)
	if src.Status().Entries != 1 {
		t.Errorf("Status = %+v", src.Status())
	}
	if err := os.Remove(cfg.CachePath); err != nil {
		t.Fatal(err)
	}
	runUntilWritten(t, src, func() {})
	wantOutcome(t, listed, "", load(t, cfg), ek)
}

// The real certificates of Infineon and Intel, whose issuers are fetched from a
// mirror by the real URLs in them.
func TestRealChainsFromAMirror(t *testing.T) {
	dir := attestortest.FieldCertificates(t)
	web := newSite(t)
	for path, ca := range map[string]string{
		"pki.infineon.com/OptigaRsaMfrCA035/OptigaRsaMfrCA035.crt":                      "Infineon-OPTIGA-TM-RSA-Manufacturing-CA-035",
		"pki.infineon.com/OptigaEccMfrCA035/OptigaEccMfrCA035.crt":                      "Infineon-OPTIGA-TM-ECC-Manufacturing-CA-035",
		"upgrades.intel.com/content/CRL/ekcert/SPTHEPIDPROD_EK_Platform_Public_Key.cer": "intel-TPM-EK-intermediate-for-SPTH-EPID-PROD",
		"secure.globalsign.com/stmtpmekint05.crt":                                       "STM-TPM-EK-Intermediate-CA-05",
		"www.nuvoton.com/security/NTC-TPM-EK-Cert/Nuvoton%20TPM%20Root%20CA%202110.cer": "Nuvoton-TPM-Root-CA-2110",
	} {
		web.put("/"+path, readCA(t, caNamed(t, dir, ca)).Raw)
	}
	hosts := []string{"pki.infineon.com", "upgrades.intel.com", "www.nuvoton.com", "secure.globalsign.com"}
	for _, ek := range realEKs() {
		cert := readEK(t, filepath.Join(dir, ek.file))
		if len(cert.IssuingCertificateURL) == 0 {
			continue
		}
		t.Run(ek.file, func(t *testing.T) {
			src := load(t, ekca.Config{
				Config: truststore.Config{
					CAPath:    caNamed(t, dir, ek.cas[min(1, len(ek.cas)-1)]),
					AIAHosts:  hosts,
					MirrorURL: web.url("/"),
				},
			})
			got := wantOutcome(t, listed, "", src, cert).Attributes.Certificate
			ek.want.IssuerKeyHash = got.IssuerKeyHash
			if diff := cmp.Diff(&ek.want, got); diff != "" {
				t.Error(diff)
			}
			if len(ek.cas) > 1 { // the root is no CA of a stranger's
				stranger := load(t, ekca.Config{
					Config: truststore.Config{
						CAPath:    caNamed(t, dir, "swtpm-localca-rootca"),
						AIAHosts:  hosts,
						MirrorURL: web.url("/"),
					},
				})
				if v, err := asked(t, stranger, evidence(cert)); v.Listed {
					t.Errorf("listed by another's CA: %+v, %v", v, err)
				}
			}
		})
	}
}

// A Fetch whose time is over cannot tell, whatever the mode, and is no failure of
// the server's.
func TestFetchStopsWithItsContext(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	key := certstest.NewKey(t)
	ek := certstest.Sign(t, ekTemplate(t, crlsAt(web.put("/crl", root.crl(t)))), root.cert, key.Public(), root.key)
	web.put(pathOf(t, "amd", "/amd/", key.Public()), ek.Raw)
	cfg := crlConfig(t, ekca.CRLIfAvailable, root, web)
	cfg.EKCertificateURLs = map[string]string{"amd": web.url("/amd/")}
	src := load(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, ev := range []*sources.Evidence{evidence(ek), bare(key.Public())} {
		if v, err := src.Fetch(ctx, ev); !errors.Is(err, context.Canceled) || v.Listed {
			t.Errorf("Fetch = %+v, %v", v, err)
		}
		if v, err := asked(t, src, ev); err != nil || !v.Listed {
			t.Errorf("then: %+v, %v", v, err)
		}
	}
}

// Whatever a URL for an issuer serves stops nobody, and joins only what a
// configured CA has signed.
func FuzzFetchedIssuer(f *testing.F) {
	root := fixedCA(f, "Root", nil)
	low := fixedCA(f, "Low", root)
	f.Add(low.cert.Raw)
	f.Add(certstest.PEM(low.cert, root.cert))
	f.Add(bundleOfCerts(false, low.cert))
	f.Add(bundleOfCerts(true, root.cert, low.cert))
	ek := certstest.Sign(f, ekTemplate(f), low.cert, fixedEK(f), low.key)
	key, ok := root.cert.PublicKey.(interface{ Equal(x crypto.PublicKey) bool })
	if !ok {
		f.Fatal("the test's CA has a key of another kind")
	}
	src := trusting(f, root)
	f.Fuzz(func(t *testing.T, body []byte) {
		certs, err := certs.ReadIssuers(body, certs.EK())
		if (err == nil) != (len(certs) > 0) || len(certs) > 32 {
			t.Fatalf("%d certificates, %v", len(certs), err)
		}
		signed := false
		for _, c := range certs {
			if !c.IsCA {
				t.Error("a certificate that is no CA's")
			}
			signed = signed || root.cert.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil &&
				!key.Equal(c.PublicKey)
		}
		if v, err := src.Check(t.Context(), evidence(ek, certs...)); err == nil && v.Listed && !signed {
			t.Errorf("listed: %+v", v)
		}
	})
}

// Stops whoever has a TPM in software from making the server forget: what he names,
// any URLs that lead to some CA's certificate, pushes out neither the CRL that lists a
// machine nor an issuer that has been of use. When the vendor's server is gone, both
// count as before, over a restart too.
func TestStrangersPushOutNothing(t *testing.T) {
	web := newSite(t)
	root := newRoot(t, "Root")
	low := root.sub(t, "Low")
	issuer, list := issuersAt(web.put("/low", low.cert.Raw)), crlsAt(web.url("/low.crl"))
	good := low.ek(t, issuer, list, func(c *x509.Certificate) { c.SerialNumber = certstest.NewSerial(t) })
	bad := low.ek(t, issuer, list)
	web.put("/low.crl", low.crl(t, revoking(bad)))
	cfg := crlConfig(t, ekca.CRLIfAvailable, root, web)
	cfg.CachePath = filepath.Join(t.TempDir(), "cache.db")
	src := load(t, cfg)
	both := func(src *ekca.Source) {
		t.Helper()
		wantOutcome(t, listed, "", src, good)
		wantOutcome(t, notListed, "revoked", src, bad)
	}
	flood := func(src *ekca.Source, series string) {
		forger, key := newRoot(t, "Forger"), certstest.NewKey(t)
		for i := range 75 { // 300 URLs, more than the room there is for what was of no use
			var urls []string
			for k := range 4 {
				urls = append(urls, web.url(fmt.Sprint("/low?", series, i, ".", k)))
			}
			ek := certstest.Sign(t, ekTemplate(t, issuersAt(urls...)), forger.cert, key.Public(), forger.key)
			if v, err := src.Fetch(t.Context(), evidence(ek)); outcomeOf(v, err) != cannotTell {
				t.Fatalf("%+v, %v", v, err)
			}
		}
	}
	runUntilWritten(t, src, func() {
		both(src)
		flood(src, "a")
	})
	restarted := load(t, cfg)
	flood(restarted, "b")
	web.handle("/low", nil)
	web.handle("/low.crl", nil)
	asked := web.requests("")
	both(src)
	both(restarted)
	both(load(t, cfg))
	web.wantRequests(t, asked)
}
