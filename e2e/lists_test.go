package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// The server follows a list in a file, however the file is replaced. A machine has the name and
// the labels of the list, and the next list cuts it off without a signal to the server. The poll
// interval is an hour, so only the watch can see the change.
func TestCutOffByAFile(t *testing.T) {
	w := newWorld(t)
	for _, test := range []struct {
		name    string
		publish func(w *world, dir string, version int, list string)
	}{
		{"renamed over", func(w *world, dir string, _ int, list string) {
			w.replace(filepath.Join(dir, "machines.json"), list)
		}},
		{"ConfigMap", func(w *world, dir string, version int, list string) {
			w.publishConfigMap(dir, version, map[string]string{"machines.json": list})
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := w.in(t)
			dir := w.folder("lists")
			m := w.machine(nil)
			test.publish(w, dir, 1, w.jsonList(1, entry{m.hash, "edge-1", []string{"rack:12"}}))
			s := w.server(spiretest.ServerConfig{PluginData: fmt.Sprintf(`
				agent_path_template = "/tpm/{{ .Name }}"
				source "hash_file" "fleet" {
					path          = %q
					poll_interval = "1h"
				}`, filepath.Join(dir, "machines.json"))})
			a, known := w.admittedAs("spiffe://example.org/spire/agent/tpm/edge-1", s, m)
			w.wantSelectors(known, "pub_hash:"+m.hash, "rule:default", "source:fleet", "name:edge-1",
				"label:rack:12")
			w.wantWorkloadSVID(s, a, known)

			mark := s.Mark()
			test.publish(w, dir, 2, w.jsonList(2))
			w.waitLog(s.Process, mark, "Source status", "source=fleet", "serial=2")
			w.evict(s, known)
			ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
			defer cancel()
			if err := a.Wait(ctx); errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the machine is still in: %v", err)
			}
			w.refused(s, m)
		})
	}
}

// publishConfigMap writes a mounted ConfigMap like the kubelet: it writes the files to a folder
// for the version, swaps a link to that folder, and removes the folder before.
func (w *world) publishConfigMap(dir string, version int, files map[string]string) {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	data, folder := filepath.Join(dir, "..data"), fmt.Sprintf("..2030_01_01_00_00_00.%09d", version)
	before, linkErr := os.Readlink(data)
	must(os.Mkdir(filepath.Join(dir, folder), 0o755))
	for name, content := range files {
		w.write(filepath.Join(dir, folder, name), content)
	}
	must(os.Symlink(folder, data+"_tmp"))
	must(os.Rename(data+"_tmp", data))
	if linkErr == nil {
		must(os.RemoveAll(filepath.Join(dir, before)))
		return
	}
	for name := range files {
		must(os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
	}
}

// nginx serves a list only to the holder of a client certificate. A machine on the list is
// admitted, with its name and labels from the list; another is refused.
func TestAdmittedByAWebServer(t *testing.T) {
	w := newWorld(t)
	n := w.webServer()
	m := w.machine(nil)
	n.publish(w.jsonList(1, entry{m.hash, "edge-1", []string{"rack:12", "env:prod"}}))
	n.start()
	if got := n.statusWithout(); got != 400 {
		t.Fatalf("nginx says %d to a client without a certificate", got)
	}
	s := w.server(spiretest.ServerConfig{
		PluginData: n.source("inventory") + `agent_path_template = "/tpm/{{ .Name }}"`,
	})
	a, known := w.admittedAs("spiffe://example.org/spire/agent/tpm/edge-1", s, m)
	w.wantSelectors(known, "pub_hash:"+m.hash, "rule:default", "source:inventory", "name:edge-1",
		"label:rack:12", "label:env:prod")
	w.wantWorkloadSVID(s, a, known)
	w.refused(s, w.machine(nil))
}

// A machine that was listed a moment ago is admitted at its first attempt, although the next
// poll is an hour away. But strangers cannot cause a request to the web server for each of them.
func TestListedAMomentAgo(t *testing.T) {
	w := newWorld(t)
	n := w.webServer()
	n.publish(w.jsonList(1))
	n.start()
	s := w.server(spiretest.ServerConfig{PluginData: n.source("inventory", `poll_interval = "1h"`)})
	m := w.machine(nil)
	n.publish(w.jsonList(2, entry{Hash: m.hash}))
	w.admitted(s, m)

	for i := range 24 {
		w.wantCode(s, stranger(t, i), codes.PermissionDenied)
	}
	// The first load and three early ones. Since dates have whole seconds, each may be
	// repeated if the file had changed just before.
	if got := n.requests(); got > 8 {
		t.Errorf("nginx was asked %d times", got)
	}
}

// A machine that is removed from the list is refused by every server within the promised time,
// the poll interval and two seconds. No other machine is.
func TestRemovalReachesEveryServer(t *testing.T) {
	w := newWorld(t)
	n := w.webServer()
	gone, stays := stranger(t, 0), stranger(t, 1)
	n.publish(w.jsonList(1, entry{Hash: gone.EKHash()}, entry{Hash: stays.EKHash()}))
	n.start()
	const interval = 2 * time.Second
	config := spiretest.ServerConfig{
		PluginData: n.source("inventory", fmt.Sprintf("poll_interval = %q", interval)),
	}
	servers := []*spiretest.Server{w.server(config), w.server(config)}
	for _, s := range servers {
		w.wantCode(s, gone, codes.OK)
	}
	payload := gone.Payload(t)
	n.publish(w.jsonList(2, entry{Hash: stays.EKHash()}))
	begun := time.Now()
	var wg sync.WaitGroup
	for i, s := range servers {
		c := w.client(s)
		wg.Go(func() {
			err := spiretest.Poll(w.ctx, func() error {
				_, err := c.attest(w.ctx, payload, incumbentAnswer(gone))
				if got := status.Code(err); got != codes.PermissionDenied {
					return fmt.Errorf("attesting ends with %v: %w", got, err)
				}
				return nil
			})
			took := time.Since(begun)
			t.Logf("server %d refuses after %v", i, took.Round(time.Millisecond))
			if err != nil || took > interval+2*time.Second+busy {
				t.Errorf("server %d refuses after %v: %v", i, took, err)
			}
		})
	}
	wg.Wait()
	for _, s := range servers {
		w.wantCode(s, stays, codes.OK)
	}
}

// While the web server is down, listed machines are admitted and strangers are refused, by the
// running server and by one that starts from its cache. A server without a cache, or with a list
// that is too old, admits nobody, and agents try again. When the web server is back, all servers
// follow it.
func TestOutageOfTheWebServer(t *testing.T) {
	w := newWorld(t)
	n := w.webServer()
	listed, unknown := stranger(t, 0), stranger(t, 1)
	n.publish(w.jsonList(1, entry{Hash: listed.EKHash()}))
	n.start()
	cached := spiretest.ServerConfig{PluginData: n.source("inventory", `poll_interval = "1s"`,
		fmt.Sprintf("cache_path = %q", filepath.Join(w.dir, "inventory.db")))}
	short := n.source("inventory", `poll_interval = "1s"`, `max_staleness = "4s"`)
	s, strict := w.server(cached), w.server(spiretest.ServerConfig{PluginData: short})
	for _, s := range []*spiretest.Server{s, strict} {
		w.wantCode(s, listed, codes.OK)
		w.wantCode(s, unknown, codes.PermissionDenied)
	}

	mark := s.Mark()
	n.stop()
	w.waitLog(s.Process, mark, "the last good data stays", "inventory")
	w.wantCode(s, listed, codes.OK)
	w.wantCode(s, unknown, codes.PermissionDenied)

	s.Stop()
	s = w.server(cached)
	w.waitLog(s.Process, 0, "source failed to load", "inventory")
	w.wantCode(s, listed, codes.OK)
	w.wantCode(s, unknown, codes.PermissionDenied)

	empty := w.server(spiretest.ServerConfig{PluginData: short})
	w.wantCode(empty, listed, codes.Unavailable)
	w.wantCode(empty, unknown, codes.Unavailable)
	w.wantCodeSoon(strict, listed, codes.Unavailable)
	w.wantCode(strict, unknown, codes.Unavailable)

	n.publish(w.jsonList(2, entry{Hash: unknown.EKHash()}))
	n.start()
	for _, s := range []*spiretest.Server{s, strict, empty} {
		w.wantCodeSoon(s, unknown, codes.OK)
		w.wantCodeSoon(s, listed, codes.PermissionDenied)
	}
}

// Two servers that share one cache by mistake do not harm each other. Both follow the list, and
// both have the last list after a restart while the web server is down.
func TestTwoServersWithOneCache(t *testing.T) {
	w := newWorld(t)
	n := w.webServer()
	n.publish(w.jsonList(0))
	n.start()
	config := spiretest.ServerConfig{PluginData: n.source("inventory", `poll_interval = "1s"`,
		fmt.Sprintf("cache_path = %q", filepath.Join(w.dir, "inventory.db")))}
	servers := []*spiretest.Server{w.server(config), w.server(config)}
	const versions = 4
	for i := 1; i <= versions; i++ {
		n.publish(w.jsonList(i, entry{Hash: stranger(t, i).EKHash()}))
		for _, s := range servers {
			w.wantCodeSoon(s, stranger(t, i), codes.OK)
			w.wantCodeSoon(s, stranger(t, i-1), codes.PermissionDenied)
		}
	}
	n.stop()
	for _, s := range servers {
		s.Stop()
	}
	for range servers {
		s := w.server(config)
		w.wantCode(s, stranger(t, versions), codes.OK)
		w.wantCode(s, stranger(t, versions-1), codes.PermissionDenied)
	}
}

// stranger returns the TPM with the given number.
func stranger(t *testing.T, number int) *attestortest.TPM {
	t.Helper()
	return attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: number})
}

// wantCode attests to s with a TPM and checks the status code.
func (w *world) wantCode(s *spiretest.Server, tpm *attestortest.TPM, want codes.Code) {
	w.t.Helper()
	_, err := w.client(s).attest(w.ctx, tpm.Payload(w.t), incumbentAnswer(tpm))
	if got := status.Code(err); got != want {
		w.t.Errorf("attesting ends with %v, want %v: %v", got, want, err)
	}
}

// wantCodeSoon attests to s with a TPM until the status code is want.
func (w *world) wantCodeSoon(s *spiretest.Server, tpm *attestortest.TPM, want codes.Code) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 20*time.Second)
	defer cancel()
	c, payload := w.client(s), tpm.Payload(w.t)
	err := spiretest.Poll(ctx, func() error {
		_, err := c.attest(ctx, payload, incumbentAnswer(tpm))
		if got := status.Code(err); got != want {
			return fmt.Errorf("attesting ends with %v, want %v: %w", got, want, err)
		}
		return nil
	})
	if err != nil {
		w.t.Error(err)
	}
}
