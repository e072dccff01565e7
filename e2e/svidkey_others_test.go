package e2e_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// issued is what a server issues to everybody but this plugin's agents, without what differs each time.
func (w *world) issued(c spiretest.ServerConfig) map[string]string {
	w.t.Helper()
	s := w.server(c)
	issued := map[string]string{}
	bundle, err := os.ReadFile(s.BundlePath)
	if err != nil {
		w.t.Fatal(err)
	}
	block, _ := pem.Decode(bundle)
	issued["the server's CA"] = w.document(block.Bytes)

	// An agent of another attestor attests, renews its SVID, and gets those of a workload.
	token, err := s.Ctl(w.ctx, "token", "generate", "-spiffeID", "spiffe://example.org/other")
	if err != nil {
		w.t.Fatal(err)
	}
	token = strings.TrimSpace(strings.TrimPrefix(token, "Token:"))
	key := newKey(w.t)
	svid, err := w.client(s).withKey(w.t, key).svidBy(w.ctx, "join_token", []byte(token), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	svid.Id.Path = strings.ReplaceAll(svid.Id.Path, token, "TOKEN")
	issued["another attestor's agent"] = strings.ReplaceAll(w.document(svid.CertChain[0]), token, "TOKEN")
	td := spiffeid.RequireTrustDomainFromString(s.TrustDomain)
	parent := "/spire/agent/join_token/" + token
	w.register(s, "/workload", parent, ownUser())
	agent := w.connect(s, &x509svid.SVID{
		ID: spiffeid.RequireFromPath(td, parent), Certificates: w.chain(svid.CertChain), PrivateKey: key,
	})
	renewed, err := agentv1.NewAgentClient(agent).RenewAgent(w.ctx, &agentv1.RenewAgentRequest{
		Params: &agentv1.AgentX509SVIDParams{Csr: csrOf(w.t, newKey(w.t))},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	issued["its renewal"] = strings.ReplaceAll(w.document(renewed.Svid.CertChain[0]), token, "TOKEN")
	w.workload(issued, s, agent)
	w.nested(issued, s)
	return issued
}

// workload adds what the agent gets for its workload.
func (w *world) workload(issued map[string]string, s *spiretest.Server, agent *grpc.ClientConn) {
	w.t.Helper()
	admin, err := s.API()
	if err != nil {
		w.t.Fatal(err)
	}
	entries, err := entryv1.NewEntryClient(admin).ListEntries(w.ctx, &entryv1.ListEntriesRequest{
		Filter: &entryv1.ListEntriesRequest_Filter{BySpiffeId: &types.SPIFFEID{TrustDomain: s.TrustDomain, Path: "/workload"}},
	})
	if err != nil || len(entries.Entries) != 1 {
		w.t.Fatal(entries, err)
	}
	// SPIRE's cache of entries is reloaded every second.
	var svids *svidv1.BatchNewX509SVIDResponse
	err = spiretest.Poll(w.ctx, func() (err error) {
		svids, err = svidv1.NewSVIDClient(agent).BatchNewX509SVID(w.ctx, &svidv1.BatchNewX509SVIDRequest{
			Params: []*svidv1.NewX509SVIDParams{{EntryId: entries.Entries[0].Id, Csr: csrOf(w.t, newKey(w.t))}},
		})
		if err == nil && svids.Results[0].Status.Code != 0 {
			err = errors.New(svids.Results[0].Status.Message)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	issued["a workload's X.509-SVID"] = w.document(svids.Results[0].Svid.CertChain[0])
	jwt, err := svidv1.NewSVIDClient(agent).NewJWTSVID(w.ctx, &svidv1.NewJWTSVIDRequest{
		EntryId: entries.Entries[0].Id, Audience: []string{"a", "b"},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	issued["a workload's JWT-SVID"] = w.claims(jwt.Svid.Token)
	minted, err := s.Ctl(w.ctx, "jwt", "mint", "-spiffeID", "spiffe://example.org/minted", "-audience", "x", "-ttl", "1h")
	if err != nil {
		w.t.Fatal(err)
	}
	issued["a minted JWT-SVID"] = w.claims(strings.TrimSpace(minted))
}

// nested adds what a nested server gets.
func (w *world) nested(issued map[string]string, s *spiretest.Server) {
	w.t.Helper()
	svid := w.mint(s, "spiffe://example.org/nested")
	issued["a minted X.509-SVID"] = w.document(svid.Certificates[0].Raw)
	conn, err := s.API()
	if err != nil {
		w.t.Fatal(err)
	}
	id := func(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: s.TrustDomain, Path: path} }
	_, err = entryv1.NewEntryClient(conn).BatchCreateEntry(w.ctx, &entryv1.BatchCreateEntryRequest{
		Entries: []*types.Entry{{SpiffeId: id("/nested"), ParentId: id("/x"), Selectors: []*types.Selector{ownUser()}, Downstream: true}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	downstream := svidv1.NewSVIDClient(w.connect(s, svid))
	var ca *svidv1.NewDownstreamX509CAResponse
	err = spiretest.Poll(w.ctx, func() (err error) {
		ca, err = downstream.NewDownstreamX509CA(w.ctx, &svidv1.NewDownstreamX509CARequest{Csr: csrOf(w.t, newKey(w.t))})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	issued["a nested server's CA"] = w.document(ca.CaCertChain[0])
}

// connect returns a connection to a server's API for agents with an SVID.
func (w *world) connect(s *spiretest.Server, svid *x509svid.SVID) *grpc.ClientConn {
	w.t.Helper()
	td := spiffeid.RequireTrustDomainFromString(s.TrustDomain)
	bundle, err := x509bundle.Load(td, s.BundlePath)
	if err != nil {
		w.t.Fatal(err)
	}
	config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromPath(td, "/spire/server")))
	conn, err := grpc.NewClient(s.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func csrOf(t *testing.T, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func (w *world) chain(ders [][]byte) (chain []*x509.Certificate) {
	w.t.Helper()
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			w.t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	return chain
}

// document returns what a certificate says, without its keys, serial numbers and times.
func (w *world) document(der []byte) string {
	w.t.Helper()
	cert := w.chain([][]byte{der})[0]
	var extensions []string
	for _, e := range cert.Extensions {
		extensions = append(extensions, fmt.Sprint(e.Id, e.Critical, len(e.Value)))
	}
	return fmt.Sprint(cert.Subject.CommonName, cert.Subject.Organization, cert.Issuer.Organization, cert.URIs, cert.DNSNames,
		cert.KeyUsage, cert.ExtKeyUsage, cert.IsCA, cert.MaxPathLen, cert.NotAfter.Sub(cert.NotBefore).Round(time.Minute), extensions)
}

// claims returns the claims of a token, with a 0 for each digit: SPIRE writes times without an
// exponent.
func (w *world) claims(token string) string {
	w.t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		w.t.Fatalf("a token of %d parts", len(parts))
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		w.t.Fatal(err)
	}
	return regexp.MustCompile(`[0-9]`).ReplaceAllString(string(text), "0")
}

// The composer changes nothing of what SPIRE issues to anybody but this plugin's agents: to agents of
// other attestors and at their renewals, to workloads (X.509 and JWT), to nested servers and to the server.
func TestSVIDKeyLeavesOthersAlone(t *testing.T) {
	w := newWorld(t)
	hashes := w.folder("hashes")
	without := w.issued(spiretest.ServerConfig{PluginData: fmt.Sprintf("hash_path = %q", hashes)})
	with := w.issued(w.composed(w.folder("server"), "required", hashes))
	for what, want := range without {
		if with[what] != want {
			t.Errorf("%s:\n%s\nand without the composer\n%s", what, with[what], want)
		}
	}
	if len(with) != len(without) || len(with) != 8 {
		t.Errorf("%d and %d documents", len(with), len(without))
	}
}
