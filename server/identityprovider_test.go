package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"time"

	identityproviderv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/identityprovider/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// fakeIdentityProvider is SPIRE's host service of that name. Until answer is set, it returns
// the error that SPIRE returns while it starts.
type fakeIdentityProvider struct {
	identityproviderv1.UnimplementedIdentityProviderServer
	mu     sync.Mutex
	answer *identityproviderv1.FetchX509IdentityResponse
	asked  int
}

func (f *fakeIdentityProvider) FetchX509Identity(
	context.Context, *identityproviderv1.FetchX509IdentityRequest,
) (*identityproviderv1.FetchX509IdentityResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if f.answer == nil {
		return nil, status.Error(codes.FailedPrecondition, "IdentityProvider host service has not been initialized")
	}
	return f.answer, nil
}

func (f *fakeIdentityProvider) set(answer *identityproviderv1.FetchX509IdentityResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answer = answer
}

func (f *fakeIdentityProvider) calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// svid issues a certificate for a SPIFFE ID; if by is nil, it is self-signed.
func svid(t *testing.T, id string, by *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	uri, err := url.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), URIs: []*url.URL{uri}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature,
	}
	issuer, issuerKey := template, key
	if by == nil {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
	} else {
		issuer = by.Leaf
		issuerKey, _ = by.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// identity is what SPIRE says of a server with this SVID.
func identity(t *testing.T, own, ca tls.Certificate) *identityproviderv1.FetchX509IdentityResponse {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return &identityproviderv1.FetchX509IdentityResponse{
		Identity: &identityproviderv1.X509Identity{CertChain: own.Certificate, PrivateKey: key},
		Bundle: &types.Bundle{
			TrustDomain:     "example.org",
			X509Authorities: []*types.X509Certificate{{Asn1: ca.Certificate[0]}},
		},
	}
}

// allowlist serves a list of one TPM to whoever shows the server's SVID.
func allowlist(t *testing.T, ca tls.Certificate, tpm *attestortest.TPM) *httptest.Server {
	t.Helper()
	web := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if id := r.TLS.PeerCertificates[0].URIs[0].String(); id != "spiffe://example.org/spire/server" {
			http.Error(w, id, http.StatusForbidden)
			return
		}
		_, _ = fmt.Fprintf(w, `{"keys": [%q]}`, tpm.EKHash())
	}))
	web.Config.ErrorLog = log.New(io.Discard, "", 0)
	web.TLS = &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{svid(t, "spiffe://example.org/allowlist", &ca)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: x509.NewCertPool(),
	}
	web.TLS.ClientCAs.AddCert(ca.Leaf)
	web.StartTLS()
	t.Cleanup(web.Close)
	return web
}

// A list is requested with the server's own identity once SPIRE has that, which is after it has
// configured its plugins. Until then nobody is admitted, and no restart is needed. A
// configuration that leaves the source as it is keeps its list.
func TestListByTheServersOwnIdentity(t *testing.T) {
	ca := svid(t, "spiffe://example.org", nil)
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	web := allowlist(t, ca, tpm)
	provider := &fakeIdentityProvider{}
	p := serve(t, identityproviderv1.IdentityProviderServiceServer(provider))
	text := fmt.Sprintf(`source "http" "inventory" {
		url = %q
		auth = "spiffe"
		server_id = "spiffe://example.org/allowlist"
		poll_interval = "2s"
	}
	`, web.URL)
	validate := &configv1.ValidateRequest{
		CoreConfiguration: configureRequest(text).GetCoreConfiguration(), HclConfiguration: text,
	}
	if resp, err := p.config.Validate(t.Context(), validate); err != nil || !resp.GetValid() {
		t.Fatalf("Validate: %v, %v", resp, err)
	}
	if n := provider.calls(); n != 0 {
		t.Errorf("Validate has asked for the identity %d times", n)
	}
	p.configure(t, text)
	_, err := p.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "cannot tell right now")
	p.log.await(t, "which is available once SPIRE has started")

	provider.set(identity(t, svid(t, "spiffe://example.org/spire/server", &ca), ca))
	for late := time.After(time.Minute); err != nil; _, err = p.attestTPM(t, tpm) {
		select {
		case <-late:
			t.Fatal(err)
		default:
		}
	}
	web.Close()
	p.configure(t, text+"reattest = true")
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Errorf("after a reconfiguration: %v", err)
	}
}

// If SPIRE answers with anything but an identity, this poll fails.
func TestIdentityThatIsNone(t *testing.T) {
	ca := svid(t, "spiffe://example.org", nil)
	own := svid(t, "spiffe://example.org/spire/server", &ca)
	for want, change := range map[string]func(*identityproviderv1.FetchX509IdentityResponse){
		"no certificates found": func(r *identityproviderv1.FetchX509IdentityResponse) {
			r.Identity.CertChain = nil
		},
		"the identity from SPIRE's": func(r *identityproviderv1.FetchX509IdentityResponse) { r.Identity = nil },
		"cannot parse DER encoded private key": func(r *identityproviderv1.FetchX509IdentityResponse) {
			r.Identity.PrivateKey = nil
		},
		"does not match private key": func(r *identityproviderv1.FetchX509IdentityResponse) {
			r.Identity.PrivateKey = identity(t, ca, ca).GetIdentity().GetPrivateKey()
		},
		"the bundle from SPIRE's": func(r *identityproviderv1.FetchX509IdentityResponse) { r.Bundle = nil },
		"cannot parse certificate": func(r *identityproviderv1.FetchX509IdentityResponse) {
			r.Bundle.X509Authorities[0].Asn1 = []byte("x")
		},
	} {
		t.Run(want, func(t *testing.T) {
			answer := identity(t, own, ca)
			change(answer)
			provider := &fakeIdentityProvider{answer: answer}
			p := serve(t, identityproviderv1.IdentityProviderServiceServer(provider))
			p.configure(t, `source "http" "inventory" {
				url = "https://127.0.0.1:1/"
				auth = "spiffe"
				server_id = "spiffe://example.org/allowlist"
			}`)
			p.log.await(t, want)
		})
	}
}

// If SPIRE lacks the service, the plugin says so, and starts.
func TestNoIdentityProvider(t *testing.T) {
	p := serve(t)
	p.configure(t, `source "http" "inventory" {
		url = "https://127.0.0.1:1/"
		auth = "spiffe"
		server_id = "spiffe://example.org/allowlist"
	}`)
	p.log.await(t, "SPIRE offers no IdentityProvider")
}
