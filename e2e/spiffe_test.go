package e2e_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A svidServer is a web server with an X.509-SVID. It answers only the SPIRE server, which it
// knows by that server's X.509-SVID.
type svidServer struct {
	listener net.Listener
	svid     atomic.Pointer[x509svid.SVID]
	list     atomic.Pointer[string]
}

// GetX509SVID implements x509svid.Source.
func (v *svidServer) GetX509SVID() (*x509svid.SVID, error) { return v.svid.Load(), nil }

// mint returns an X.509-SVID from a SPIRE server, like `spire-server x509 mint`.
func (w *world) mint(s *spiretest.Server, id string) *x509svid.SVID {
	w.t.Helper()
	dir := w.folder("svid")
	if _, err := s.Ctl(w.ctx, "x509", "mint", "-spiffeID", id, "-write", dir); err != nil {
		w.t.Fatal(err)
	}
	svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	if err != nil {
		w.t.Fatal(err)
	}
	return svid
}

// start serves until the test ends. Before start, connections wait.
func (v *svidServer) start(w *world, s *spiretest.Server) {
	w.t.Helper()
	td := spiffeid.RequireTrustDomainFromString(s.TrustDomain)
	bundle, err := x509bundle.Load(td, s.BundlePath)
	if err != nil {
		w.t.Fatal(err)
	}
	config := tlsconfig.MTLSServerConfig(v, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromPath(td, "/spire/server")))
	web := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(rw, *v.list.Load())
	}), ErrorLog: log.New(io.Discard, "", 0)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = web.Serve(tls.NewListener(v.listener, config)) // Close ends it
	}()
	w.t.Cleanup(func() {
		web.Close()
		<-done
	})
}

// The web server with a list and the SPIRE server authenticate each other by their X.509-SVIDs.
// Machines on the list are admitted as soon as both have one, without a restart. A list from a web
// server with another SPIFFE ID of the same trust domain is not used, even if nothing else is
// wrong with it; in the end the server cannot tell.
func TestListBySPIFFEID(t *testing.T) {
	w := newWorld(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &svidServer{listener: listener}
	t.Cleanup(func() { listener.Close() })
	publish := func(list string) { v.list.Store(&list) }
	listed, unknown := stranger(t, 0), stranger(t, 1)
	publish(w.jsonList(1, entry{Hash: listed.EKHash()}))
	s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(`source "http" "inventory" {
		url           = "https://%s/tpm.json"
		auth          = "spiffe"
		server_id     = "spiffe://example.org/allowlist"
		poll_interval = "1s"
		timeout       = "1s"
		max_staleness = "5s"
	}`, listener.Addr())})
	w.waitLog(s.Process, 0, "source failed to load", "inventory", "IdentityProvider")
	w.wantCode(s, listed, codes.Unavailable)

	v.svid.Store(w.mint(s, "spiffe://example.org/allowlist"))
	v.start(w, s)
	w.wantCodeSoon(s, listed, codes.OK)
	w.wantCode(s, unknown, codes.PermissionDenied)

	mark := s.Mark()
	v.svid.Store(w.mint(s, "spiffe://example.org/somebody"))
	publish(w.jsonList(2, entry{Hash: unknown.EKHash()}))
	w.waitLog(s.Process, mark, "the last good data stays",
		`is \"spiffe://example.org/somebody\", not \"spiffe://example.org/allowlist\"`)
	w.wantCodeSoon(s, unknown, codes.Unavailable)
	w.wantCode(s, listed, codes.Unavailable)

	v.svid.Store(w.mint(s, "spiffe://example.org/allowlist")) // like a rotation
	w.wantCodeSoon(s, unknown, codes.OK)
	w.wantCode(s, listed, codes.PermissionDenied)
}
