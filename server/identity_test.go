package server_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An ID must belong to one machine and stay the same: what sources disagree
// about, or what an outage hides, must not decide it.
func TestIDFromSources(t *testing.T) {
	lists := sourcetest.Lists
	cert := func(issuer, serial string) *sources.EKCertificate {
		return &sources.EKCertificate{IssuerKeyHash: strings.Repeat(issuer, 64), Serial: serial}
	}
	down := sourcetest.Fails(errors.New("down"))
	const (
		byName   = "/tpm/{{ .Name }}"
		byCA     = "/tpm/{{ .CA }}/{{ .Serial }}"
		byIssuer = "/tpm/{{ .Issuer }}/{{ .Serial }}"
	)
	for _, tt := range []struct {
		name, template string
		x, y           sourcetest.Answer
		code           codes.Code
		want           string // of the path, or of the log
	}{
		{"a name", byName, lists(sources.Attributes{Name: "web-1"}), lists(sources.Attributes{}), codes.OK, "/web-1"},
		{
			"the same name", byName, lists(sources.Attributes{Name: "web-1"}),
			lists(sources.Attributes{Name: "web-1"}), codes.OK, "/web-1",
		},
		{
			"two names", byName, lists(sources.Attributes{Name: "web-1"}), lists(sources.Attributes{Name: "db-1"}),
			codes.PermissionDenied, ".Name is ambiguous",
		},
		{
			"no name", byName, lists(sources.Attributes{}), lists(sources.Attributes{}), codes.PermissionDenied,
			".Name has no value",
		},
		{
			"a name that is no path", byName, lists(sources.Attributes{Name: "a/b"}), sourcetest.ListsNot(),
			codes.PermissionDenied, "cannot be a segment",
		},
		{
			"a name while one is down", byName, lists(sources.Attributes{Name: "web-1"}), down,
			codes.Unavailable, "could not tell",
		},
		{"no name while one is down", byName, lists(sources.Attributes{}), down, codes.Unavailable, "could not tell"},
		{"the hash while one is down", "/tpm/{{ .PubHash }}", lists(sources.Attributes{}), down, codes.OK, "/tpm/"},
		{
			"a bundle", byCA, lists(sources.Attributes{CAs: []string{"stm"}, Certificate: cert("a", "1f")}),
			sourcetest.ListsNot(), codes.OK, "/stm/1f",
		},
		{
			"two bundles", byCA,
			lists(sources.Attributes{CAs: []string{"infineon", "stm"}, Certificate: cert("a", "1f")}),
			sourcetest.ListsNot(), codes.PermissionDenied, ".CA is ambiguous",
		},
		{
			"a bundle while one is down", byCA,
			lists(sources.Attributes{CAs: []string{"stm"}, Certificate: cert("a", "1f")}),
			down, codes.Unavailable, "could not tell",
		},
		{
			"an issuer while one is down", byIssuer, lists(sources.Attributes{Certificate: cert("a", "1f")}),
			down, codes.OK, strings.Repeat("a", 64) + "/1f",
		},
		{
			"no issuer while one is down", byIssuer, lists(sources.Attributes{}), down, codes.Unavailable,
			"could not tell",
		},
		{
			"two issuers", byIssuer, lists(sources.Attributes{Certificate: cert("a", "1f")}),
			lists(sources.Attributes{Certificate: cert("b", "1f")}), codes.PermissionDenied, ".Issuer is ambiguous",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := server.New()
			log := &logBuffer{}
			p.SetLogger(log.logger())
			p.Use(t, withTemplate(tt.template),
				sources.AnyOf("x", "y"), member("x", tt.x), member("y", tt.y))
			s := honest(t.Context(), t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))
			wantStatus(t, p.Attest(s), tt.code, "")
			if tt.code == codes.OK {
				if !strings.Contains(s.attributes.GetSpiffeId(), tt.want) {
					t.Errorf("ID %s, want one with %s", s.attributes.GetSpiffeId(), tt.want)
				}
				return
			}
			if reason := fmt.Sprint(log.find(t, "Attestation failed")["reason"]); !strings.Contains(reason, tt.want) {
				t.Errorf("the log says %q, want %q", reason, tt.want)
			}
		})
	}
}

// withTemplate is a configuration in which the template can have a value.
func withTemplate(template string) string {
	return fmt.Sprintf(`source "hash_dir" "list" { path = "/x" }
		source "ek_ca" "vendors" { bundles = { stm = "/y" } }
		allow "all" { all = ["list", "vendors"] }
		agent_path_template = %q`, template)
}

// fakeAgentStore is SPIRE's AgentStore host service.
type fakeAgentStore struct {
	agentstorev1.UnimplementedAgentStoreServer
	mu     sync.Mutex
	agents map[string]error // nil: there is one
}

func (
	s *fakeAgentStore) GetAgentInfo(_ context.Context, req *agentstorev1.GetAgentInfoRequest,
) (*agentstorev1.GetAgentInfoResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err, known := s.agents[req.GetAgentId()]
	if !known {
		return nil, status.Error(codes.NotFound, "no such agent")
	}
	return &agentstorev1.GetAgentInfoResponse{Info: &agentstorev1.AgentInfo{AgentId: req.GetAgentId()}}, err
}

// With reattest = false a machine is admitted once: a second use is refused, and
// so is one about which SPIRE cannot say whether it is the second.
func TestReattestFalse(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	text := oneHashDir(hashDir(t, tpm)) + "reattest = false"
	id := "spiffe://example.org/spire/agent/tpm/" + tpm.EKHash()

	store := &fakeAgentStore{agents: map[string]error{}}
	p := serve(t, agentstorev1.AgentStoreServiceServer(store))
	p.configure(t, text)
	got, err := p.attestTPM(t, tpm)
	if err != nil || got.GetCanReattest() || got.GetSpiffeId() != id {
		t.Errorf("the first use: %v, %v", got, err)
	}
	set := func(err error) {
		store.mu.Lock()
		defer store.mu.Unlock()
		store.agents[id] = err
	}
	set(nil)
	_, err = p.attestTPM(t, tpm)
	wantStatus(t, err, codes.PermissionDenied, "admitted before")
	if line := p.log.find(t, "Attestation failed"); !strings.Contains(fmt.Sprint(line["reason"]), "evict that agent") {
		t.Errorf("the log says %v", line)
	}
	set(status.Error(codes.Internal, "the database is down"))
	_, err = p.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "cannot tell now")
	if strings.Contains(err.Error(), "database") {
		t.Errorf("the agent learns %v", err)
	}

	without := serve(t)
	without.configure(t, text)
	without.log.find(t, "Configuration: reattest = false needs SPIRE's AgentStore")
	_, err = without.attestTPM(t, tpm)
	wantStatus(t, err, codes.Internal, "cannot tell")
}
