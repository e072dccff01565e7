package server_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
)

// Configure and Validate must agree, and SPIRE reads any note of Validate as a
// failure.
func TestConfigureAndValidate(t *testing.T) {
	dir := hashDir(t)
	p := serve(t)
	for _, tt := range []struct {
		text, domain string
		notes        []string
	}{
		{oneHashDir(dir), "example.org", nil},
		{fmt.Sprintf("hash_path = %q", dir), "example.org", nil},
		{fmt.Sprintf("ca_path = %q", dir), "example.org", nil}, // a warning is no note
		{
			"", "example.org",
			[]string{"source: no source is configured: write " +
				`source "hash_dir" "machines" { path = "/srv/tpm/hashes" }`},
		},
		{
			fmt.Sprintf("hash_path = %q reatest = true\nbogus = 1", dir+"/none"), "example.org",
			[]string{
				"bogus: unknown key; choose from agent_path_template, allow, allow_weak_ek, ca_path, check_timeout, " +
					"deny, hash_path, quote, reattest, source, svid_key, svid_key_socket",
				fmt.Sprintf("hash_path: %q does not exist (no such file or directory): "+
					"create it, or correct the path", dir+"/none"),
				"reatest: unknown key; did you mean reattest?",
			},
		},
		{oneHashDir(dir), "", []string{"trust_domain: SPIRE passed an invalid one: trust domain is missing"}},
	} {
		core := &configv1.CoreConfiguration{TrustDomain: tt.domain}
		resp, err := p.config.Validate(t.Context(), &configv1.ValidateRequest{
			CoreConfiguration: core, HclConfiguration: tt.text,
		})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.notes, resp.GetNotes()); d != "" || resp.GetValid() != (tt.notes == nil) {
			t.Errorf("%s: valid %v, notes (-want +got):\n%s", tt.text, resp.GetValid(), d)
		}
		_, err = p.config.Configure(t.Context(), &configv1.ConfigureRequest{
			CoreConfiguration: core, HclConfiguration: tt.text,
		})
		if tt.notes == nil {
			if err != nil {
				t.Errorf("%s: %v", tt.text, err)
			}
			continue
		}
		wantStatus(t, err, codes.InvalidArgument, "configuration: "+strings.Join(tt.notes, "; "))
	}
	_, err := p.config.Configure(t.Context(), &configv1.ConfigureRequest{HclConfiguration: oneHashDir(dir)})
	wantStatus(t, err, codes.InvalidArgument, "trust_domain")
	resp, err := p.config.Validate(t.Context(), &configv1.ValidateRequest{HclConfiguration: oneHashDir(dir)})
	if err != nil || resp.GetValid() || len(resp.GetNotes()) != 1 {
		t.Errorf("Validate without a core configuration: %v, %v", resp, err)
	}
}

// Validate must change nothing in a server that runs.
func TestValidateChangesNothing(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p := serve(t)
	p.configure(t, oneHashDir(hashDir(t, tpm)))
	before := p.InService()
	for _, text := range []string{oneHashDir(hashDir(t)), "bogus"} {
		req := configureRequest(text)
		if _, err := p.config.Validate(t.Context(), &configv1.ValidateRequest{
			CoreConfiguration: req.GetCoreConfiguration(), HclConfiguration: text,
		}); err != nil {
			t.Fatal(err)
		}
	}
	if p.InService() != before {
		t.Error("Validate has put another configuration in place")
	}
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Error(err)
	}
}

// A mistake in plugin_data_file must not stop a server that runs.
func TestRefusedConfigurationLeavesTheOldOne(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p := serve(t)
	p.configure(t, oneHashDir(hashDir(t, tpm)))
	for _, text := range []string{"", "bogus = 1", `hash_path = "/does/not/exist"`} {
		wantStatus(t, p.tryConfigure(text), codes.InvalidArgument, "configuration: ")
		if _, err := p.attestTPM(t, tpm); err != nil {
			t.Errorf("after %q: %v", text, err)
		}
	}
	p.configure(t, oneHashDir(hashDir(t)))
	_, err := p.attestTPM(t, tpm)
	wantStatus(t, err, codes.PermissionDenied, "this TPM is not admitted")
}

// Thousands of attestations while the configuration alternates: each sees one whole
// configuration, and nothing stays of the others.
func TestReconfigurationUnderLoad(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	ca := attestortest.NewCA(t, "CA")
	cas := t.TempDir()
	list(t, cas, "ca.pem", string(ca.PEM()))
	dir := hashDir(t, tpm)
	p := server.New()
	defer p.Close()
	configurations := []string{
		oneHashDir(dir) + `allow "one" { any = ["factory"] } agent_path_template = "/tpm/one/{{ .PubHash }}"`,
		oneHashDir(dir) + fmt.Sprintf(`source "ek_ca" "vendors" { ca_path = %q }
			allow "two" { any = ["factory", "vendors"] } agent_path_template = "/tpm/two/{{ .PubHash }}"`, cas),
	}
	configure := func(i int) {
		if _, err := p.Configure(context.Background(), configureRequest(configurations[i%2])); err != nil {
			t.Error(err)
		}
	}
	configure(0)
	const attestations = 2000
	var done atomic.Int64
	var load, flips sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for done.Add(1) <= attestations {
				s := honest(t.Context(), t, tpm)
				if err := p.Attest(s); err != nil {
					t.Error(err)
					return
				}
				id, selectors := s.attributes.GetSpiffeId(), s.attributes.GetSelectorValues()
				if strings.Contains(id, "/one/") != slices.Contains(selectors, "rule:one") ||
					strings.Contains(id, "/two/") != slices.Contains(selectors, "rule:two") {
					t.Errorf("parts of two configurations: %s, %v", id, selectors)
				}
			}
		})
	}
	for range 2 {
		flips.Go(func() {
			for i := 0; done.Load() < attestations; i++ {
				configure(i)
			}
		})
	}
	load.Wait()
	flips.Wait()
}

// SPIRE counts a call that was canceled as refused, so the plugin must, too.
func TestCanceledConfigure(t *testing.T) {
	p := server.New()
	defer p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.Configure(ctx, configureRequest(oneHashDir(hashDir(t))))
	wantStatus(t, err, codes.Canceled, "")
	if p.InService() != nil {
		t.Error("a configuration is in place")
	}
}

// After Close nothing runs and nothing starts.
func TestClose(t *testing.T) {
	p := server.New()
	if _, err := p.Configure(t.Context(), configureRequest(oneHashDir(hashDir(t)))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, err := p.Configure(t.Context(), configureRequest(oneHashDir(hashDir(t))))
	wantStatus(t, err, codes.Unavailable, "shutting down")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	wantStatus(t, p.Attest(honest(t.Context(), t, tpm)), codes.FailedPrecondition, "")
}

// A CA file that is torn is no mistake of the configuration: the server starts,
// says so, and cannot tell until the file is whole.
func TestTornSourceAtStart(t *testing.T) {
	ca := attestortest.NewCA(t, "CA")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca})
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("-----BEGIN CERT"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := serve(t)
	p.configure(t, fmt.Sprintf("ca_path = %q", file))
	_, err := p.attestTPM(t, tpm)
	wantStatus(t, err, codes.Unavailable, "cannot tell right now")
	line := p.log.find(t, "Attestation failed")
	if !strings.Contains(fmt.Sprint(line["sources"]), "ca_path: cannot tell: ") {
		t.Errorf("the log says %v", line)
	}
}

// The hardened chart always sets ca_path beside hash_path, to a folder that it makes. As long as the
// folder is empty, a machine that nobody has listed must not be told to try again for ever.
func TestEmptyCAFolderBesideHashes(t *testing.T) {
	listed := attestortest.New(t, attestortest.Options{})
	stranger := attestortest.New(t, attestortest.Options{Number: 1, CA: attestortest.NewCA(t, "Example vendor")})
	cas, hashes := t.TempDir(), hashDir(t, listed)
	for _, tt := range []struct {
		text string
		code codes.Code // of what the stranger is told
	}{
		{fmt.Sprintf("ca_path = %q\nhash_path = %q", cas, hashes), codes.PermissionDenied},
		// In all other configurations, an empty folder is a mount that is not there.
		{fmt.Sprintf("ca_path = %q", cas), codes.Unavailable},
		{fmt.Sprintf("ca_path = %q\nhash_path = %q", cas, ""), codes.Unavailable},
		{fmt.Sprintf(`source "ek_ca" "ca_path" { ca_path = %q }
			source "hash_dir" "hash_path" { path = %q }
			allow "default" { any = ["ca_path", "hash_path"] }`, cas, hashes), codes.Unavailable},
	} {
		p := serve(t)
		p.configure(t, tt.text)
		_, err := p.attestTPM(t, stranger)
		wantStatus(t, err, tt.code, "")
		if !strings.Contains(tt.text, hashes) {
			continue
		}
		if _, err := p.attestTPM(t, listed); err != nil {
			t.Errorf("%s: the listed machine: %v", tt.text, err)
		}
		if tt.code == codes.PermissionDenied {
			p.log.await(t, "is an empty folder")
		}
	}
}
