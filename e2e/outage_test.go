package e2e_test

import (
	"fmt"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A web server that accepts connections and then sends nothing, or a byte now and then, blocks
// its clients. Attestations must not wait for it: not on the running server, not on one that
// starts from its cache, and not on one without a list. When the web server works again, all
// follow it.
func TestHangingWebServer(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name       string
		sick, well func(n *webServer)
	}{
		{"stopped", (*webServer).freeze, (*webServer).thaw},
		{"dripping", func(n *webServer) { n.restart("limit_rate 5;") }, func(n *webServer) { n.restart("") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := w.in(t)
			n := w.webServer()
			listed, unknown := stranger(t, 0), stranger(t, 1)
			n.publish(w.jsonList(1, entry{Hash: listed.EKHash()}))
			n.start()
			cached := spiretest.ServerConfig{PluginData: n.source("inventory", `poll_interval = "1s"`, `timeout = "1s"`,
				fmt.Sprintf("cache_path = %q", filepath.Join(w.dir, "inventory.db")))}
			s := w.server(cached)
			w.wantCode(s, listed, codes.OK)

			mark := s.Mark()
			test.sick(n)
			w.waitLog(s.Process, mark, "the last good data stays", "inventory", "not finished within the timeout of 1s")
			for _, want := range []struct {
				tpm  int
				code codes.Code
			}{{0, codes.OK}, {1, codes.PermissionDenied}} {
				begun := time.Now()
				w.wantCode(s, stranger(t, want.tpm), want.code)
				// A miss may wait for the timeout of one poll.
				if took := time.Since(begun); took > time.Second+busy {
					t.Errorf("attesting to end with %v took %v", want.code, took)
				}
			}

			s.Stop()
			s = w.server(cached)
			w.wantCode(s, listed, codes.OK)
			w.wantCode(s, unknown, codes.PermissionDenied)
			empty := w.server(spiretest.ServerConfig{PluginData: n.source("inventory", `poll_interval = "1s"`, `timeout = "1s"`)})
			w.wantCode(empty, listed, codes.Unavailable)
			w.wantCode(empty, unknown, codes.Unavailable)

			n.publish(w.jsonList(2, entry{Hash: unknown.EKHash()}))
			test.well(n)
			for _, s := range []*spiretest.Server{s, empty} {
				w.wantCodeSoon(s, unknown, codes.OK)
				w.wantCodeSoon(s, listed, codes.PermissionDenied)
			}
		})
	}
}

// freeze stops the process with SIGSTOP: its connections stay open, and the kernel accepts new
// ones.
func (n *webServer) freeze() {
	n.w.t.Helper()
	if err := n.run.Signal(syscall.SIGSTOP); err != nil {
		n.w.t.Fatal(err)
	}
	n.w.t.Cleanup(func() { _ = n.run.Signal(syscall.SIGCONT) }) // so that it can end
}

func (n *webServer) thaw() {
	n.w.t.Helper()
	if err := n.run.Signal(syscall.SIGCONT); err != nil {
		n.w.t.Fatal(err)
	}
}

// restart restarts nginx with one more directive in its server block.
func (n *webServer) restart(directive string) {
	n.w.t.Helper()
	n.stop()
	n.configure(fmt.Sprintf(nginxSite, n.port, directive))
	n.start()
}
