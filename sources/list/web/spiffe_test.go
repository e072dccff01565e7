package web_test

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

const (
	serverID = "spiffe://example.org/allowlist"
	ownID    = "spiffe://example.org/spire/server"
)

// svid issues an X.509-SVID. change, which may be nil, makes it another one.
func svid(tb testing.TB, a *webtest.Authority, id string, change func(*x509.Certificate)) tls.Certificate {
	tb.Helper()
	uri, err := url.Parse(id)
	if err != nil {
		tb.Fatal(err)
	}
	key := webtest.NewKey(tb)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{uri}, BasicConstraintsValid: true,
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.Key)
	if err != nil {
		tb.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A trustDomain is what SPIRE's identity provider says. Tests change it.
type trustDomain struct {
	name  string
	roots []*webtest.Authority
	own   tls.Certificate
	err   error
	asked int
}

func newTrustDomain(tb testing.TB) (*trustDomain, *webtest.Authority) {
	tb.Helper()
	ca := webtest.NewAuthority(tb)
	return &trustDomain{name: "example.org", roots: []*webtest.Authority{ca}, own: svid(tb, ca, ownID, nil)}, ca
}

func (d *trustDomain) X509Identity(context.Context) (*x509svid.SVID, *x509bundle.Bundle, error) {
	d.asked++
	if d.err != nil {
		return nil, nil, d.err
	}
	key, err := x509.MarshalPKCS8PrivateKey(d.own.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	own, err := x509svid.ParseRaw(d.own.Certificate[0], key)
	if err != nil {
		return nil, nil, err
	}
	bundle := x509bundle.New(spiffeid.RequireTrustDomainFromString(d.name))
	for _, root := range d.roots {
		bundle.AddX509Authority(root.Cert)
	}
	return own, bundle, nil
}

// spiffeOrigin starts a web server that shows a certificate, and lets in who
// shows one of the CA, unless that is nil.
func spiffeOrigin(tb testing.TB, shown tls.Certificate, clients *webtest.Authority) *webtest.Server {
	tb.Helper()
	o := webtest.NewServer(tb, func(c *tls.Config) {
		c.Certificates = []tls.Certificate{shown}
		if clients != nil {
			c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
			c.ClientCAs.AddCert(clients.Cert)
		}
	})
	o.Answer(http.StatusOK, webtest.List("", "one"))
	return o
}

func (d *trustDomain) config(o *webtest.Server) web.Config {
	return web.Config{URL: o.URL + "/tpm.json", Auth: web.AuthSPIFFE, ServerID: serverID, Identity: d}
}

// Both sides are known by their X.509-SVIDs: no host name, no file of
// certificates; a bearer token goes with it.
func TestSPIFFE(t *testing.T) {
	d, ca := newTrustDomain(t)
	o := spiffeOrigin(t, svid(t, ca, serverID, nil), ca)
	shown, token := "", ""
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		shown, token = r.TLS.PeerCertificates[0].URIs[0].String(), r.Header.Get("Authorization")
		_, _ = io.WriteString(w, webtest.List("", "one"))
	})
	cfg := d.config(o)
	cfg.BearerTokenPath = webtest.Write(t, "token", []byte("secret"))
	s := newSource(t, cfg)
	if d.asked != 0 {
		t.Error("the identity was asked for before it was needed")
	}
	refresh(t, s)
	webtest.WantListed(t, s, "one")
	if shown != ownID || token != "Bearer secret" {
		t.Errorf("showed %q and %q", shown, token)
	}
}

// A web server that requests certificates of other authorities is shown the own
// one all the same, and refuses it by itself: it is not left without an answer.
func TestSPIFFEShownToAnybody(t *testing.T) {
	d, ca := newTrustDomain(t)
	other := webtest.NewAuthority(t)
	o := spiffeOrigin(t, svid(t, ca, serverID, nil), other)
	webtest.WantError(t, newSource(t, d.config(o)).Load(t.Context()), "tls: ")
	if o.Requests() != 0 {
		t.Error("it was let in")
	}
}

// Somebody who answers in place of the web server, with any certificate that they can get, can
// serve no list and receives no request.
func TestSPIFFEWrongServer(t *testing.T) {
	d, ca := newTrustDomain(t)
	same := func(*x509.Certificate) {}
	for name, tt := range map[string]struct {
		by     *webtest.Authority
		id     string
		change func(*x509.Certificate)
		want   string
	}{
		"another ID":             {ca, "spiffe://example.org/other", same, `is "spiffe://example.org/other", not "` + serverID},
		"an ID above":            {ca, "spiffe://example.org", same, "\", not \""},
		"an ID below":            {ca, serverID + "/x", same, "\", not \""},
		"another case":           {ca, "spiffe://example.org/Allowlist", same, "\", not \""},
		"the own ID":             {ca, ownID, same, "\", not \""},
		"another authority":      {webtest.NewAuthority(t), serverID, same, "unknown authority"},
		"another trust domain":   {ca, "spiffe://example.com/allowlist", same, `no X.509 bundle found for trust domain: "example.com"`},
		"no SPIFFE ID":           {ca, "https://example.org/allowlist", same, "scheme is missing or invalid"},
		"no SAN":                 {ca, serverID, func(c *x509.Certificate) { c.URIs = nil }, "no URI SAN"},
		"a host name alone":      {ca, serverID, hostName, "no URI SAN"},
		"two URIs":               {ca, serverID, func(c *x509.Certificate) { c.URIs = append(c.URIs, c.URIs[0]) }, "more than one URI SAN"},
		"the right one second":   {ca, ownID, func(c *x509.Certificate) { c.URIs = append(c.URIs, parsed(serverID)) }, "more than one URI SAN"},
		"a CA":                   {ca, serverID, func(c *x509.Certificate) { c.IsCA = true }, "CA flag"},
		"signs certificates":     {ca, serverID, usage(x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign), "KeyCertSign"},
		"signs CRLs":             {ca, serverID, usage(x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign), "KeyCrlSign"},
		"signs nothing":          {ca, serverID, usage(x509.KeyUsageKeyEncipherment), "not for digital signatures"},
		"for clients":            {ca, serverID, purposes(x509.ExtKeyUsageClientAuth), "not for servers"},
		"for an unknown purpose": {ca, serverID, unknownPurpose, "not for servers"},
		"expired":                {ca, serverID, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "expired"},
		"not yet valid":          {ca, serverID, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }, "not yet valid"},
	} {
		t.Run(name, func(t *testing.T) {
			o := spiffeOrigin(t, svid(t, tt.by, tt.id, tt.change), nil)
			var handshakes atomic.Int64
			o.TLS.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
				handshakes.Add(1)
				return nil, nil //nolint:nilnil // the one that there is
			}
			s := newSource(t, d.config(o))
			webtest.WantError(t, s.Load(t.Context()), tt.want)
			webtest.WantCannotTell(t, s, "no list")
			if n := o.Requests(); n != 0 {
				t.Errorf("%d requests were made", n)
			}
			if n := handshakes.Load(); n != 1 { // a person has to mend it
				t.Errorf("it was tried %d times", n)
			}
		})
	}
}

func parsed(id string) *url.URL {
	u, _ := url.Parse(id)
	return u
}

// hostName makes what is a good certificate where hosts are known by names.
func hostName(c *x509.Certificate) {
	c.URIs, c.IPAddresses, c.DNSNames = nil, []net.IP{net.IPv4(127, 0, 0, 1)}, []string{"localhost"}
}

func usage(u x509.KeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.KeyUsage = u }
}

func purposes(p ...x509.ExtKeyUsage) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.ExtKeyUsage = p }
}

func unknownPurpose(c *x509.Certificate) {
	c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
}

// An X.509-SVID without optional parts, or with additional ones, does not keep a list from being
// loaded.
func TestSPIFFEGoodServers(t *testing.T) {
	d, ca := newTrustDomain(t)
	for name, change := range map[string]func(*x509.Certificate){
		"no extended key usage": purposes(),
		"any purpose":           purposes(x509.ExtKeyUsageAny),
		"a host name as well":   func(c *x509.Certificate) { c.DNSNames = []string{"elsewhere.example.org"} },
	} {
		t.Run(name, func(t *testing.T) {
			webtest.WantListed(t, loaded(t, d.config(spiffeOrigin(t, svid(t, ca, serverID, change), ca))), "one")
		})
	}
}

// Everything rotates, and each poll uses what is there at that moment: with an authority that was
// withdrawn, or an SVID or a bundle that has expired, no list is loaded, and a new one works
// without a restart.
func TestSPIFFERotation(t *testing.T) {
	d, ca := newTrustDomain(t)
	c := newClock()
	o := spiffeOrigin(t, svid(t, ca, serverID, nil), ca)
	cfg := d.config(o)
	cfg.Now = c.Now
	s := loaded(t, cfg)

	next := webtest.NewAuthority(t)
	d.roots = []*webtest.Authority{next}
	webtest.WantError(t, s.Load(t.Context()), "unknown authority")
	webtest.WantListed(t, s, "one") // the last good list stays
	d.roots = []*webtest.Authority{next, ca}
	refresh(t, s)
	d.name = "example.com" // as a server that was moved to another trust domain
	webtest.WantError(t, s.Load(t.Context()), "no X.509 bundle found for trust domain")
	d.name = "example.org"

	d.own = svid(t, ca, "spiffe://example.org/spire/server2", nil)
	shown := ""
	o.Serve(func(w http.ResponseWriter, r *http.Request) {
		shown = r.TLS.PeerCertificates[0].URIs[0].Path
		_, _ = io.WriteString(w, webtest.List("", "two"))
	})
	refresh(t, s)
	webtest.WantListed(t, s, "two")
	if shown != "/spire/server2" {
		t.Errorf("showed %q", shown)
	}
	c.move(2 * time.Hour)
	webtest.WantError(t, s.Load(t.Context()), "expired")
	c.move(webtest.Years) // the bundle's authority has expired as well
	webtest.WantError(t, s.Load(t.Context()), "expired")
	webtest.WantCannotTell(t, s, "stale")
}

// The provider has no identity while SPIRE starts: until it has one, the source cannot tell and no
// server is asked. No restart is needed afterwards.
func TestSPIFFENoIdentityYet(t *testing.T) {
	d, ca := newTrustDomain(t)
	o := spiffeOrigin(t, svid(t, ca, serverID, nil), ca)
	d.err = errors.New("not initialized")
	s := newSource(t, d.config(o))
	webtest.WantError(t, s.Load(t.Context()), "get this server's own X.509-SVID: not initialized")
	webtest.WantCannotTell(t, s, "no list")
	if n := o.Requests(); n != 0 {
		t.Errorf("%d requests were made", n)
	}
	d.err = nil
	refresh(t, s)
	webtest.WantListed(t, s, "one")

	empty := newSource(t, web.Config{URL: o.URL, Auth: web.AuthSPIFFE, ServerID: serverID, Identity: nobody{}})
	webtest.WantError(t, empty.Load(t.Context()), "there is none, or no trust bundle")
}

// nobody is a provider that answers with nothing at all.
type nobody struct{}

func (nobody) X509Identity(context.Context) (*x509svid.SVID, *x509bundle.Bundle, error) {
	return nil, nil, nil
}

// A redirect on the host leads to a server with the same ID, or nowhere; one to
// another host is not followed, whoever it is.
func TestSPIFFERedirect(t *testing.T) {
	d, ca := newTrustDomain(t)
	o := spiffeOrigin(t, svid(t, ca, serverID, nil), ca)
	elsewhere := spiffeOrigin(t, svid(t, ca, serverID, nil), ca)
	o.Answer(http.StatusFound, "", "Location", elsewhere.URL+"/tpm.json")
	webtest.WantError(t, newSource(t, d.config(o)).Load(t.Context()), "redirected to another host")
	if n := elsewhere.Requests(); n != 0 {
		t.Errorf("another host got %d requests", n)
	}
}

// Two ways to authenticate the web server, one of which might be mistaken for both, are refused,
// and so is an ID that nobody can have.
func TestSPIFFENewRefuses(t *testing.T) {
	d, _ := newTrustDomain(t)
	good := web.Config{URL: "https://example.org/tpm.json", Auth: web.AuthSPIFFE, ServerID: serverID, Identity: d}
	for name, tt := range map[string]struct {
		change func(*web.Config)
		want   string
	}{
		"CA":           {func(c *web.Config) { c.CAPath = "/x" }, "ca_path cannot be combined with auth"},
		"certificate":  {func(c *web.Config) { c.ClientCertPath, c.ClientKeyPath = "/x", "/y" }, "client_key_path cannot be combined"},
		"no provider":  {func(c *web.Config) { c.Identity = nil }, "nothing provides the X.509-SVID"},
		"no ID":        {func(c *web.Config) { c.ServerID = "https://example.org/" }, "server_id must be the SPIFFE ID"},
		"no server ID": {func(c *web.Config) { c.ServerID = "" }, "server_id is missing"},
		"no auth":      {func(c *web.Config) { c.Auth = "" }, "auth is missing"},
		"another auth": {func(c *web.Config) { c.Auth = "tls" }, "auth must be"},
		"trust domain": {func(c *web.Config) { c.ServerID = "spiffe://example.org" }, "server_id must be the SPIFFE ID"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := good
			tt.change(&cfg)
			_, err := web.New(cfg)
			webtest.WantError(t, err, tt.want)
		})
	}
	if _, err := web.New(good); err != nil || d.asked != 0 {
		t.Errorf("New: %v, asked %d times", err, d.asked)
	}
}
