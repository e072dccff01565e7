package server_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// A stolen machine that holds a challenge open must not survive its removal from the list, a
// new deny entry and the eviction after both for another 60 seconds: what is current when its
// answer arrives decides.
func TestChallengeHeldOpen(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	const both = `source "hash_dir" "factory" { path = %q }
		source "hash_dir" "stolen" { path = %q marker = "mounted" }
		allow "factory" { any = ["factory"] }
		deny "stolen" { any = ["stolen"] }`
	for _, tt := range []struct {
		name string
		// meanwhile is what the operator does while the challenge is open.
		meanwhile func(t *testing.T, p *plugin, listed, stolen string)
		code      codes.Code
		selector  string
	}{
		{"nothing", func(*testing.T, *plugin, string, string) {}, codes.OK, "rule:factory"},
		{"removed", func(t *testing.T, _ *plugin, listed, _ string) {
			t.Helper()
			if err := os.Remove(filepath.Join(listed, tpm.EKHash())); err != nil {
				t.Fatal(err)
			}
		}, codes.PermissionDenied, ""},
		{"denied by an entry", func(t *testing.T, _ *plugin, _, stolen string) {
			t.Helper()
			list(t, stolen, tpm.EKHash(), "")
		}, codes.PermissionDenied, ""},
		{"the denylist is unmounted", func(t *testing.T, _ *plugin, _, stolen string) {
			t.Helper()
			if err := os.Remove(filepath.Join(stolen, "mounted")); err != nil {
				t.Fatal(err)
			}
		}, codes.Unavailable, ""},
		{"denied by a new configuration", func(t *testing.T, p *plugin, listed, _ string) {
			t.Helper()
			also := t.TempDir()
			list(t, also, "mounted", "")
			list(t, also, tpm.EKHash(), "")
			p.configure(t, fmt.Sprintf(both, listed, also))
		}, codes.PermissionDenied, ""},
		{"another list by a new configuration", func(t *testing.T, p *plugin, _, _ string) {
			t.Helper()
			p.configure(t, oneHashDir(t.TempDir()))
		}, codes.PermissionDenied, ""},
		{"another rule by a new configuration", func(t *testing.T, p *plugin, listed, _ string) {
			t.Helper()
			p.configure(t, oneHashDir(listed)+`agent_path_template = "/new/{{ .PubHash }}"`)
		}, codes.OK, "rule:default"},
		{"trust on first use by a new configuration", func(t *testing.T, p *plugin, listed, _ string) {
			t.Helper()
			p.configure(t, oneHashDir(listed)+"reattest = false")
		}, codes.Internal, ""}, // SPIRE offers no AgentStore here
		{"the plugin stops", func(t *testing.T, p *plugin, _, _ string) {
			t.Helper()
			if err := p.Close(); err != nil {
				t.Fatal(err)
			}
		}, codes.Unavailable, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := serve(t)
			listed, stolen := hashDir(t, tpm), t.TempDir()
			list(t, stolen, "mounted", "")
			p.configure(t, fmt.Sprintf(both, listed, stolen))
			got, err := p.attest(t, tpm.Payload(t), func(c []byte) []byte {
				tt.meanwhile(t, p, listed, stolen)
				return tpm.Answer(t, c)
			})
			wantStatus(t, err, tt.code, "")
			if tt.selector != "" && !slices.Contains(got.GetSelectorValues(), tt.selector) {
				t.Errorf("selectors: %v", got.GetSelectorValues())
			}
			if isNew := strings.Contains(got.GetSpiffeId(), "/new/"); isNew != (tt.selector == "rule:default") {
				t.Errorf("ID %s: not by the template that is current", got.GetSpiffeId())
			}
		})
	}
}

// If a source fails between the two steps, it is asked again, and the machine is told to try
// again: what the source said before the challenge clears nobody after it.
func TestSourceFailsDuringTheChallenge(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	fake := sourcetest.NewFake(sourcetest.Lists(sources.Attributes{}))
	p := server.New()
	p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), admission.Member{Name: "x", Kind: "fake", Source: fake})
	s := honest(t.Context(), t, tpm)
	s.sent = func() { fake.Set(sourcetest.Panics("gone")) }
	wantStatus(t, p.Attest(s), codes.Unavailable, "cannot tell right now")
	if s.attributes != nil {
		t.Error("admitted")
	}
}

// A machine that is denied while a slow source is asked about it, for 25 seconds if the
// network is, would be admitted after that by the rules that were replaced, and after the
// eviction that followed.
func TestDeniedWhileASourceIsAsked(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	for name, tt := range map[string]struct {
		next sourcetest.Answer
		code codes.Code
	}{
		"removed":     {sourcetest.ListsNot(), codes.PermissionDenied},
		"cannot tell": {sourcetest.Panics("gone"), codes.Unavailable},
		"still there": {sourcetest.Lists(sources.Attributes{}), codes.OK},
	} {
		t.Run(name, func(t *testing.T) {
			p := server.New()
			use := func(a sourcetest.Answer) {
				p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"),
					admission.Member{Name: "x", Kind: "fake", Source: sourcetest.NewFake(a)})
			}
			use(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
				if ev.Proof != nil {
					use(tt.next)
				}
				return sources.Verdict{Listed: true}, nil
			})
			s := honest(t.Context(), t, tpm)
			wantStatus(t, p.Attest(s), tt.code, "")
			if admitted := s.attributes != nil; admitted != (tt.code == codes.OK) {
				t.Errorf("admitted: %v", admitted)
			}
		})
	}
}
