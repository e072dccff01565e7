package ekca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// The URLs are the vendors': each of these has been seen to work for a real TPM.
func TestEKCertificateURLs(t *testing.T) {
	rsaKey := func(modulus string) *rsa.PublicKey {
		n, err := hex.DecodeString(modulus)
		if err != nil {
			t.Fatal(err)
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	}
	amd := rsaKey("a3c203dcc44b6505a0ab65882b5a937b61d0c736608835a7e93cf0eae40ea172358b23bda7121a8a5471965d8d78ad65" +
		"4553ff74428257e986c2fef94fecb6326ce9161518fcee51b441bc4e2a1c0f0e9690744027d03d87538c3febc3de63c294da00f7fb2c" +
		"077ebfd1272656d611d204642fe7199004faaaba3bc73e1e44a2edf0a7d7e8e1bf63d9027c9b0a0c2b586dce0e6af1d27f5d5581b04b" +
		"b719bb8d2544fa99cefb1fe89baab00028d96d4e2aaeae0f51b0310f54bd749d9c67329a612b0203cc0c221a34ba661ade31af7a9b6e" +
		"9d70dc13df77065b141a32cd6d70b8696544b60a3dcaef7c80aaa1606144c7b32d9393583af5a836f71405ed8bd9")
	for _, base := range []string{"https://ftpm.amd.com/pki/aia", "https://ftpm.amd.com/pki/aia/"} {
		got, ok := certs.EKCertificateURL("amd", base, amd)
		if want := "https://ftpm.amd.com/pki/aia/d027b3ce6a9b6b56846d2b9935884a88"; got != want || !ok {
			t.Errorf("got %q", got)
		}
	}
}

// realIntelEK is a real EK that Intel's service has a certificate for, with the
// service's real reply.
func realIntelEK(tb testing.TB) (ek crypto.PublicKey, reply []byte) {
	tb.Helper()
	dir := attestortest.FieldCertificates(tb)
	reply, err := os.ReadFile(filepath.Join(dir, "aux-intel-ekop-response.json"))
	if err != nil {
		tb.Fatal(err)
	}
	return readEK(tb, filepath.Join(dir, "intel-ptt-spt-rsa2048-ekop.der")).PublicKey, reply
}

const realIntelPath = "/ekcertservice/WVEG2rRwkQ7m3RpXlUphgo6Y2HLxl18h6ZZkkOAdnBE%3D"

// A machine without a certificate, with Intel's real key and Intel's real reply
// and its real issuers on a mirror: what the certificate says becomes selectors as
// if the machine had sent it.
func TestRealIntelReply(t *testing.T) {
	dir := attestortest.FieldCertificates(t)
	ek, body := realIntelEK(t)
	web := newSite(t)
	web.put(realIntelPath, body)
	web.put("/mirror/upgrades.intel.com/content/CRL/ekcert/SPTHEPIDPROD_EK_Platform_Public_Key.cer",
		readCA(t, caNamed(t, dir, "intel-TPM-EK-intermediate")).Raw)
	src := load(t, ekca.Config{
		Config: truststore.Config{
			CAPath:    caNamed(t, dir, "intel-TPM-EK-root"),
			AIAHosts:  []string{"upgrades.intel.com"},
			MirrorURL: web.url("/mirror"),
		},
		EKCertificateURLs: map[string]string{"intel": web.url("/ekcertservice/")},
	})
	v, err := asked(t, src, bare(ek))
	if err != nil || !v.Listed {
		t.Fatalf("%+v, %v", v, err)
	}
	want := sources.EKCertificate{
		IssuerCN: "www.intel.com", Serial: "7d3f34f8", IssuerKeyHash: v.Attributes.Certificate.IssuerKeyHash,
		Manufacturer: "id:494E5443", Model: "SPT", Version: "id:00020000",
	}
	if diff := cmp.Diff(&want, v.Attributes.Certificate); diff != "" {
		t.Error(diff)
	}
	web.wantRequests(t, 2)
	if v, err = src.Check(t.Context(), bare(ek)); err != nil || !v.Listed {
		t.Errorf("the second time: %+v, %v", v, err)
	}
	web.wantRequests(t, 2)
}

// AMD's service has its CAs' certificates too. One of them is no certificate for an
// EK.
func TestRealAMDReply(t *testing.T) {
	root, err := os.ReadFile(filepath.Join(attestortest.FieldCertificates(t), "aux-amd-aia-response-AMDTPM-RSA-root.der"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(root)
	if err != nil {
		t.Fatal(err)
	}
	web := newSite(t)
	src := load(t, ekca.Config{
		Config: truststore.Config{
			CAPath: caNamed(t, attestortest.FieldCertificates(t), "amd-AMDTPM"),
		},
		EKCertificateURLs: map[string]string{"amd": web.url("/pki/aia/")},
	})
	for name, key := range map[string]crypto.PublicKey{"another's": newRSAKey(t).Public(), "its own": cert.PublicKey} {
		web.put(pathOf(t, "amd", "/pki/aia/", key), root)
		v, err := asked(t, src, bare(key))
		if v.Listed || (name == "another's") != (err != nil) {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

func newRSAKey(tb testing.TB) *rsa.PrivateKey {
	tb.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// bare is the evidence of a machine without a certificate.
func bare(ek crypto.PublicKey) *sources.Evidence {
	return &sources.Evidence{EK: ek}
}

// pathOf returns the path of a service's URL for an EK.
func pathOf(tb testing.TB, service, base string, ek crypto.PublicKey) string {
	tb.Helper()
	path, ok := certs.EKCertificateURL(service, base, ek)
	if !ok {
		tb.Fatalf("no URL at %q", service)
	}
	return path
}

// intelReply is a reply in the form of Intel's service.
func intelReply(tb testing.TB, der []byte) []byte {
	tb.Helper()
	text := strings.ReplaceAll(base64.URLEncoding.EncodeToString(der), "=", "%3D")
	body, err := json.Marshal(map[string]string{"pubhash": "x", "certificate": text})
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

// Both kinds of keys at both services.
func TestServices(t *testing.T) {
	root := newRoot(t, "Root")
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for kind, key := range map[string]crypto.Signer{"RSA": newRSAKey(t), "P-256": certstest.NewKey(t), "P-384": p384} {
		ek := certstest.Sign(t, ekTemplate(t), root.cert, key.Public(), root.key)
		for service, reply := range map[string][]byte{"intel": intelReply(t, ek.Raw), "amd": ek.Raw} {
			t.Run(kind+" "+service, func(t *testing.T) {
				web := newSite(t)
				path := pathOf(t, service, "/ek/", key.Public())
				web.put(path, reply)
				src := load(t, ekca.Config{
					Config: truststore.Config{
						CAPath: certstest.File(t, root.cert),
					},
					EKCertificateURLs: map[string]string{
						"intel": web.url("/ek"), "amd": web.url("/ek/"),
					},
				})
				v, err := asked(t, src, bare(key.Public()))
				if err != nil || !v.Listed || v.Attributes.Certificate.Serial != "abc" {
					t.Fatalf("%+v, %v", v, err)
				}
				if diff := cmp.Diff(wantListed(t, src, ek), v.Attributes); diff != "" {
					t.Error(diff)
				}
				if v, err := src.Check(t.Context(), bare(key.Public())); err != nil || !v.Listed {
					t.Errorf("the second time: %+v, %v", v, err)
				}
				if n := web.requests(path); n != 1 {
					t.Errorf("%d requests", n)
				}
			})
		}
	}
}

// What a service may answer, and what it means for a machine without a
// certificate. The other service has none.
func TestServiceReplies(t *testing.T) {
	root := newRoot(t, "Root")
	key := certstest.NewKey(t)
	ek := certstest.Sign(t, ekTemplate(t), root.cert, key.Public(), root.key)
	expired := certstest.Sign(t, ekTemplate(t, func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(-time.Hour) }),
		root.cert, key.Public(), root.key)
	aCA := certstest.Sign(t, certstest.CA(t, "CA"), root.cert, key.Public(), root.key)
	stranger := newRoot(t, "Stranger")
	unknown := certstest.Sign(t, ekTemplate(t), stranger.cert, key.Public(), stranger.key)
	text := base64.URLEncoding.EncodeToString(ek.Raw)
	unpadded := base64.RawURLEncoding.EncodeToString(ek.Raw)
	quote := func(s string) []byte { return []byte(`{"certificate":"` + s + `"}`) }
	for name, c := range map[string]struct {
		intel []byte
		want  outcome
	}{
		"good":                  {intelReply(t, ek.Raw), listed},
		"without padding":       {quote(unpadded), listed},
		"padding as it is":      {quote(text), listed},
		"spaces and more":       {[]byte(` { "x" : [1, {}], "certificate" : "` + text + `" } `), listed},
		"expired":               {intelReply(t, expired.Raw), notListed},
		"a CA's":                {intelReply(t, aCA.Raw), notListed},
		"by a stranger":         {intelReply(t, unknown.Raw), notListed},
		"another TPM's":         {intelReply(t, root.ek(t).Raw), cannotTell},
		"DER":                   {ek.Raw, cannotTell},
		"PEM inside":            {quote(strings.ReplaceAll(string(certstest.PEM(ek)), "\n", "\\n")), cannotTell},
		"no certificate":        {[]byte(`{}`), cannotTell},
		"empty certificate":     {quote(""), cannotTell},
		"null":                  {[]byte(`null`), cannotTell},
		"a number":              {[]byte(`{"certificate":5}`), cannotTell},
		"given twice":           {[]byte(`{"certificate":"` + text + `","certificate":"` + text + `"}`), cannotTell},
		"other case":            {[]byte(`{"Certificate":"` + text + `"}`), cannotTell},
		"something behind":      {append(intelReply(t, ek.Raw), '{'), cannotTell},
		"cut off":               {intelReply(t, ek.Raw)[:200], cannotTell},
		"cut certificate":       {intelReply(t, ek.Raw[:len(ek.Raw)-1]), cannotTell},
		"wrong alphabet":        {quote(strings.NewReplacer("-", "+", "_", "/").Replace(text) + "+/"), cannotTell},
		"line ends in base64":   {quote(text[:8] + `\n` + text[8:]), cannotTell},
		"too much padding":      {quote(unpadded + "%3D%3D%3D"), cannotTell},
		"HTML":                  {[]byte("<html>Welcome</html>"), cannotTell},
		"nothing":               {nil, cannotTell},
		"more than 64 KiB":      {[]byte(`{"certificate":"` + text + `","x":"` + strings.Repeat("x", 64<<10) + `"}`), cannotTell},
		"nested without an end": {bytes.Repeat([]byte(`{"certificate":`), 4000), cannotTell},
	} {
		t.Run(name, func(t *testing.T) {
			web := newSite(t)
			web.put(pathOf(t, "intel", "/intel/", key.Public()), c.intel)
			src := load(t, ekca.Config{
				Config: truststore.Config{
					CAPath: certstest.File(t, root.cert),
				},
				EKCertificateURLs: map[string]string{"intel": web.url("/intel/"), "amd": web.url("/amd/")},
			})
			for range 2 {
				v, err := asked(t, src, bare(key.Public()))
				if got := outcomeOf(v, err); got != c.want {
					t.Errorf("%s (%s %v), want %s", got, v.Reason, err, c.want)
				}
			}
			if n := web.requests(""); n > 2 {
				t.Errorf("%d requests, more than one each", n)
			}
		})
	}
}

// One service that has it is enough, whatever the other does; that none has one is
// only known when both have said so.
func TestEitherService(t *testing.T) {
	root := newRoot(t, "Root")
	key := certstest.NewKey(t)
	ek := certstest.Sign(t, ekTemplate(t), root.cert, key.Public(), root.key)
	page := func(code int, body []byte) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(code)
			_, _ = w.Write(body)
		}
	}
	hasIt, none, down := page(200, ek.Raw), page(404, nil), page(503, nil)
	for name, c := range map[string]struct {
		intel, amd http.HandlerFunc
		want       outcome
	}{
		"none and has it": {none, hasIt, listed},
		"down and has it": {down, hasIt, listed},
		"none":            {none, none, notListed},
		"gone":            {page(410, nil), none, notListed},
		"down and none":   {down, none, cannotTell},
		"none and down":   {none, down, cannotTell},
		"down":            {down, down, cannotTell},
	} {
		t.Run(name, func(t *testing.T) {
			web := newSite(t)
			var both sync.WaitGroup
			both.Add(2)
			at := func(service string, page http.HandlerFunc) {
				var once sync.Once
				web.handle(pathOf(t, service, "/"+service+"/", key.Public()), func(w http.ResponseWriter, r *http.Request) {
					once.Do(both.Done)
					both.Wait() // each is asked while the other one is
					page(w, r)
				})
			}
			at("intel", c.intel)
			at("amd", c.amd)
			src := load(t, ekca.Config{
				Config: truststore.Config{
					CAPath: certstest.File(t, root.cert),
				},
				EKCertificateURLs: map[string]string{"intel": web.url("/intel/"), "amd": web.url("/amd/")},
			})
			v, err := asked(t, src, bare(key.Public()))
			if got := outcomeOf(v, err); got != c.want {
				t.Errorf("%s (%s %v), want %s", got, v.Reason, err, c.want)
			}
		})
	}
}

// The certificate that a service had for an EK expires, and the vendor has renewed
// it there: that one is asked for then, and not a month later.
func TestEKCertificateIsRenewed(t *testing.T) {
	root, key := newRoot(t, "Root"), certstest.NewKey(t)
	web, now := newSite(t), newClock()
	until := func(d time.Duration) []byte {
		return certstest.Sign(t, ekTemplate(t, func(c *x509.Certificate) { c.NotAfter = certstest.Today().Add(d) }),
			root.cert, key.Public(), root.key).Raw
	}
	src := load(t, ekca.Config{
		Config: truststore.Config{
			CAPath: certstest.File(t, root.cert),
			Now:    now.read,
		},
		EKCertificateURLs: map[string]string{"amd": web.url("/amd/")},
	})
	path := pathOf(t, "amd", "/amd/", key.Public())
	want := func(want outcome, requests int) {
		t.Helper()
		if v, err := asked(t, src, bare(key.Public())); outcomeOf(v, err) != want {
			t.Errorf("%+v, %v, want %s", v, err, want)
		}
		web.wantRequests(t, requests)
	}
	web.put(path, until(24*time.Hour))
	want(listed, 1)
	now.pass(25 * time.Hour)
	want(notListed, 2) // it has not been renewed yet
	web.put(path, until(1000*time.Hour))
	want(notListed, 2)
	now.pass(time.Hour)
	want(listed, 3)
}

// Services have the keys that TPMs have by default.
func TestNoServiceForOddKeys(t *testing.T) {
	odd := *newRSAKey(t).Public().(*rsa.PublicKey)
	odd.E = 3
	for _, key := range []crypto.PublicKey{
		&odd, &rsa.PublicKey{}, (*rsa.PublicKey)(nil), &ecdsa.PublicKey{}, (*ecdsa.PublicKey)(nil), nil, "key",
	} {
		for _, service := range []string{"intel", "amd", "other"} {
			if url, ok := certs.EKCertificateURL(service, "https://ek.test/", key); ok {
				t.Errorf("%T at %q: %q", key, service, url)
			}
		}
	}
	web := newSite(t)
	src := load(t, ekca.Config{
		Config: truststore.Config{
			CAPath: certstest.File(t, newRoot(t, "Root").cert),
		},
		EKCertificateURLs: map[string]string{"intel": web.url("/intel/")},
	})
	if v, err := asked(t, src, bare(&odd)); err != nil || v.Listed {
		t.Errorf("%+v, %v", v, err)
	}
	web.wantRequests(t, 0)
}

// A certificate that the machine sends is the one that counts: no service is asked
// for another that might do better.
func TestServicesAreForMachinesWithoutACertificate(t *testing.T) {
	web := newSite(t)
	root, stranger := newRoot(t, "Root"), newRoot(t, "Stranger")
	src := load(t, ekca.Config{
		Config: truststore.Config{
			CAPath: certstest.File(t, root.cert),
		},
		EKCertificateURLs: map[string]string{"intel": web.url("/intel/")},
	})
	wantOutcome(t, notListed, "no configured CA", src, stranger.ek(t))
	web.wantRequests(t, 0)
}

// No reply is taken for a certificate of another key, and none stops the reader.
func FuzzEKServiceReply(f *testing.F) {
	root := fixedCA(f, "Root", nil)
	ek := certstest.Sign(f, ekTemplate(f), root.cert, fixedEK(f), root.key)
	f.Add(intelReply(f, ek.Raw))
	f.Add(ek.Raw)
	f.Add([]byte(`{"certificate":"AAAA%3D"}`))
	f.Add([]byte(`{"certificate":"","pubhash":"x"}`))
	key, ok := ek.PublicKey.(*ecdsa.PublicKey)
	if !ok {
		f.Fatal("the test's EK is of another kind")
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, service := range []string{"intel", "amd"} {
			cert, err := certs.ReadReply(service, body, key)
			if (cert == nil) != (err != nil) || cert != nil && !key.Equal(cert.PublicKey) {
				t.Errorf("%s: %v, %v", service, cert, err)
			}
		}
	})
}
