package server_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An ID must belong to one machine and stay the same: neither a field that sources disagree
// about, nor a field that an outage hides, may decide about it.
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
		byDevID  = "/tpm/{{ .DevIDFingerprint }}"
	)
	devID := func(of string, bundles ...string) sources.Attributes {
		return sources.Attributes{CAs: bundles, DevID: &sources.DevIDCertificate{Fingerprint: strings.Repeat(of, 64)}}
	}
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
			"may only have letters", byName, lists(sources.Attributes{}), lists(sources.Attributes{}), codes.PermissionDenied,
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
		{
			"a DevID while one is down", byDevID, lists(devID("a")), down, codes.OK, "/tpm/" + strings.Repeat("a", 64),
		},
		{"no DevID", byDevID, lists(sources.Attributes{}), lists(sources.Attributes{}), codes.PermissionDenied, ".DevIDFingerprint has no value"},
		{"no DevID while one is down", byDevID, lists(sources.Attributes{}), down, codes.Unavailable, "could not tell"},
		{
			"a DevID's bundle", "/tpm/{{ .CA }}/{{ .PubHash }}", lists(devID("a", "corp")), sourcetest.ListsNot(),
			codes.OK, "/tpm/corp/",
		},
		{ // two vendors may give one serial number, which no bundle of DevIDs tells apart
			"a DevID's bundle beside a serial number", byCA, lists(devID("a", "corp")),
			lists(sources.Attributes{Certificate: cert("a", "1f")}), codes.PermissionDenied, ".CA has no value",
		},
		{
			"the bundles of a DevID and an EK certificate", byCA, lists(devID("a", "corp")),
			lists(sources.Attributes{CAs: []string{"stm"}, Certificate: cert("a", "1f")}), codes.OK, "/tpm/stm/1f",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := server.New()
			log := &logBuffer{}
			p.SetLogger(log.logger())
			p.Use(t, withTemplate(tt.template),
				policy.AnyOf("x", "y"), member("x", tt.x), member("y", tt.y))
			wantID(t, p, log, tt.code, tt.want)
		})
	}
}

// An outage must not choose the ID, nor make an agent give up for good: if a source is down
// that could have named the machine, whichever rule admits it meanwhile, the agent is told to
// try again. A source whose answer could have changed nothing is no reason for that.
func TestIDWhileAnotherRuleMightHold(t *testing.T) {
	named := func(name string) sourcetest.Answer { return sourcetest.Lists(sources.Attributes{Name: name}) }
	stm := sourcetest.Lists(sources.Attributes{
		CAs: []string{"stm"}, Certificate: &sources.EKCertificate{IssuerKeyHash: strings.Repeat("a", 64), Serial: "1f"},
	})
	down, not := sourcetest.Fails(errors.New("down")), sourcetest.ListsNot()
	inventory := policy.Rule{Name: "a", Any: []string{"inventory"}}
	gated := policy.Rule{Name: "a", All: []string{"inventory", "gate"}}
	const byName, byCA = "/tpm/{{ .Name }}", "/tpm/{{ .CA }}/{{ .Serial }}"
	for _, tt := range []struct {
		name                    string
		rule                    policy.Rule
		inventory, gate, backup sourcetest.Answer
		template                string
		code                    codes.Code
		want                    string // of the path, or of the log
	}{
		{"all is well", inventory, named("n"), not, named(""), byName, codes.OK, "/n"},
		{"the one that names is down", inventory, down, not, named(""), byName, codes.Unavailable, "the source inventory may know"},
		{"the other one names it as well", inventory, down, not, named("o"), byName, codes.Unavailable, "the source inventory may know"},
		{"and the hash is all that is needed", inventory, down, not, named(""), "/tpm/{{ .PubHash }}", codes.OK, "/tpm/"},
		{"down, in a rule that cannot hold", gated, down, not, named("o"), byName, codes.OK, "/o"},
		{"down, in a rule that cannot hold, and no name", gated, down, not, named(""), byName, codes.PermissionDenied, "no value"},
		{"what its rule needs as well is down", gated, named("n"), down, named("o"), byName, codes.Unavailable, "the source gate may know"},
		{"it does not list, and what its rule needs is down", gated, not, down, named("o"), byName, codes.OK, "/o"},
		{
			"a rule on trial",
			policy.Rule{Name: "a", Any: []string{"inventory"}, Trial: true},
			down, not, named("o"), byName, codes.OK, "/o",
		},
		{"a bundle", inventory, down, not, stm, byCA, codes.Unavailable, "needs .CA, which the source inventory may know"},
		{"an issuer", inventory, down, not, stm, "/tpm/{{ .Issuer }}/{{ .Serial }}", codes.OK, "/1f"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, log := server.New(), &logBuffer{}
			p.SetLogger(log.logger())
			p.Use(t, withTemplate(tt.template), policy.Policy{Allow: []policy.Rule{
				tt.rule, {Name: "b", Any: []string{"backup"}}, {Name: "watched", Any: []string{"gate"}, Trial: true},
			}}, member("inventory", tt.inventory), member("gate", tt.gate), member("backup", tt.backup))
			wantID(t, p, log, tt.code, tt.want)
		})
	}
}

// A source that is down withholds no ID if it contributes no attributes, or none of the kind
// that the ID needs, unless another source's attributes depend on it.
func TestIDWhileWhatNamesNobodyIsDown(t *testing.T) {
	named := func(name string) sourcetest.Answer { return sourcetest.Lists(sources.Attributes{Name: name}) }
	down := sourcetest.Fails(errors.New("down"))
	either := []policy.Rule{{Name: "a", Any: []string{"vendors"}}, {Name: "b", Any: []string{"backup"}}}
	together := []policy.Rule{{Name: "a", All: []string{"vendors", "inventory"}}, {Name: "b", Any: []string{"backup"}}}
	for _, tt := range []struct {
		name         string
		rules        []policy.Rule
		noAttributes bool
		template     string
		code         codes.Code
		want         string
	}{
		{"an ek_ca", either, false, "/tpm/{{ .Name }}", codes.OK, "/o"},
		{"an ek_ca in the rule that holds", policy.AnyOf("vendors", "backup").Allow, false, "/tpm/{{ .Name }}", codes.OK, "/o"},
		{"its bundle", either, false, "/tpm/{{ .CA }}/{{ .Serial }}", codes.Unavailable, "the source vendors may know"},
		{"without attributes", either, true, "/tpm/{{ .CA }}/{{ .Serial }}", codes.PermissionDenied, "no value"},
		{"what depends on it", together, true, "/tpm/{{ .Name }}", codes.Unavailable, "the source inventory may know"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, log := server.New(), &logBuffer{}
			p.SetLogger(log.logger())
			vendors := member("vendors", down) // an ek_ca, by withTemplate
			vendors.NoAttributes = tt.noAttributes
			watched := []policy.Rule{{Name: "watched", Any: []string{"inventory"}, Trial: true}}
			p.Use(t, withTemplate(tt.template), policy.Policy{Allow: slices.Concat(tt.rules, watched)},
				vendors, member("inventory", named("n")), member("backup", named("o")))
			wantID(t, p, log, tt.code, tt.want)
		})
	}
}

// wantID fails the test unless the machine gets an ID that contains want or, if code is not OK,
// is refused with code and a reason that contains want.
func wantID(t *testing.T, p *server.Plugin, log *logBuffer, code codes.Code, want string) {
	t.Helper()
	s := honest(t.Context(), t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))
	wantStatus(t, p.Attest(s), code, "")
	if code == codes.OK {
		if id := s.attributes.GetSpiffeId(); !strings.Contains(id, want) {
			t.Errorf("ID %s, want one with %s", id, want)
		}
		return
	}
	if reason := fmt.Sprint(log.find(t, "Attestation failed")["reason"]); !strings.Contains(reason, want) {
		t.Errorf("the log says %q, want %q", reason, want)
	}
}

// withTemplate is a configuration in which every field of the template can have a value.
func withTemplate(template string) string {
	return fmt.Sprintf(`source "hash_dir" "list" { path = "/x" }
		source "ek_ca" "vendors" { bundles = { stm = "/y" } }
		source "devid" "laptops" { bundles = { corp = "/z" } }
		allow "all" { all = ["list", "vendors", "laptops"] }
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

// With reattest = false a machine is admitted once: a second use is refused, and so is a use of
// which SPIRE cannot say whether it is the second.
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
	if line := p.log.find(t, "Attestation failed"); !strings.Contains(fmt.Sprint(line["reason"]), "evict it to admit") {
		t.Errorf("the log says %v", line)
	}
	set(status.Error(codes.Internal, "the database is down"))
	_, err = p.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "cannot tell right now")
	if strings.Contains(err.Error(), "database") {
		t.Errorf("the agent learns %v", err)
	}

	without := serve(t)
	without.configure(t, text)
	without.log.find(t, "Configuration: reattest = false needs SPIRE's AgentStore")
	_, err = without.attestTPM(t, tpm)
	wantStatus(t, err, codes.Internal, "cannot tell")
}
