package agentpath_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/spire-tpm/spire-tpm-attestor/server/agentpath"
)

const (
	hashA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	hashC = "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
	hashB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

func full() *agentpath.Values {
	return &agentpath.Values{
		agentpath.PubHash: hashA, agentpath.Name: "web-1", agentpath.CA: "infineon",
		agentpath.Issuer: hashB, agentpath.Serial: "1f", agentpath.DevIDFingerprint: hashC,
	}
}

// The IDs that templates form are part of every registration entry of a site:
// a change in one cuts its workloads off.
func TestID(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for _, tt := range []struct{ template, path string }{
		{agentpath.Default, "/tpm/" + hashA},
		{"/tpm/{{.PubHash}}", "/tpm/" + hashA},
		{"/{{ .PluginName }}/{{ .PubHash }}", "/tpm/" + hashA},
		{"/tpm/{{- /* the list's */ -}}{{ .Name }}", "/tpm/web-1"},
		{"/tpm/{{ .Issuer }}/{{ .Serial }}", "/tpm/" + hashB + "/1f"},
		{"/tpm/{{ .Serial }}{{ .Issuer }}", "/tpm/1f" + hashB},
		{"/tpm/{{ .CA }}/{{ .Serial }}", "/tpm/infineon/1f"},
		{"/tpm/{{ .CA }}-{{ .Serial }}", "/tpm/infineon-1f"},
		{"/tpm/{{ .Serial }}-{{ .CA }}", "/tpm/1f-infineon"},
		{"/tpm/{{ .Name }}/{{ .PubHash }}", "/tpm/web-1/" + hashA},
		{"/fleet/{{ .CA }}.{{ .Name }}", "/fleet/infineon.web-1"},
		{"/tpm/{{ .DevIDFingerprint }}", "/tpm/" + hashC},
		{"/tpm/{{ .CA }}{{ .DevIDFingerprint }}", "/tpm/infineon" + hashC},
	} {
		tmpl, err := agentpath.Parse(tt.template)
		if err != nil {
			t.Errorf("Parse(%q): %v", tt.template, err)
			continue
		}
		id, err := tmpl.ID(td, full())
		if err != nil || id.String() != "spiffe://example.org/spire/agent"+tt.path {
			t.Errorf("%q: %v, %v; want the path %s", tt.template, id, err, tt.path)
		}
		if tmpl.String() != tt.template {
			t.Errorf("String() = %q, want %q", tmpl.String(), tt.template)
		}
	}
}

// A template that forms one ID for two machines gives one of them the workloads of the other.
func TestParseRefuses(t *testing.T) {
	for _, tt := range []struct{ template, want string }{
		{"", "must begin with a slash"},
		{"{{ .PubHash }}", "must begin with a slash"},
		{"/", "SPIFFE ID path"},
		{"/tpm/{{ .PubHash }}/", "SPIFFE ID path"},
		{"/tpm//{{ .PubHash }}", "SPIFFE ID path"},
		{"/../{{ .PubHash }}", "SPIFFE ID path"},
		{"/tpm/é{{ .PubHash }}", "SPIFFE ID path"},
		{"/tpm", "several machines"},
		{"/tpm/{{ .PluginName }}", "several machines"},
		{"/tpm/{{ .CA }}", "several machines"},
		{"/tpm/{{ .Issuer }}", "several machines"},
		{"/tpm/{{ .Serial }}", "several machines"},
		{"/tpm/{{ .Issuer }}/{{ .CA }}", "several machines"},
		{"/tpm/{{ .Serial }}{{ .CA }}", "slash between"},
		{"/tpm/{{ .CA }}{{ .Serial }}", "slash between"},
		{"/tpm/{{ .Serial }}ab{{ .CA }}", "slash between"},
		{"/tpm/{{ .CA }}-{{ .Name }}", "slash between"},
		{"/tpm/{{ .Name }}.{{ .Name }}", "slash between"},
		{"/tpm/{{ .Serial }}-{{ .CA }}.{{ .Name }}", "slash between"},
		{"/tpm/{{ if .Name }}{{ .PubHash }}{{ end }}", "only fields"},
		{"/tpm/{{ with .Name }}{{ . }}{{ end }}", "only fields"},
		{"/tpm/{{ range .Name }}{{ .PubHash }}{{ end }}", "only fields"},
		{"/tpm/{{ .PubHash | len }}", "only fields"},
		{"/tpm/{{ len .PubHash }}", "only fields"},
		{"/tpm/{{ .PubHash.Name }}", "only fields"},
		{"/tpm/{{ $x := .PubHash }}", "only fields"},
		{"/tpm/{{ . }}", "only fields"},
		{"/tpm/{{ .PubHash }}{{ break }}", "is not a valid template"},
		{`/tpm/{{ .PubHash }}{{ template "agent_path_template" }}`, "only fields"},
		{`/tpm/{{ .PubHash }}{{ define "x" }}y{{ end }}`, "defines a template"},
		{"/tpm/{{ .pubhash }}", "unknown field"},
		{"/tpm/{{ .TPMPublicKey }}", "unknown field"},
		{"/tpm/{{ .PubHash", "is not a valid template"},
		{"/tpm/{{ " + strings.Repeat("(", 900) + " }}", "is not a valid template"},
		{"/" + strings.Repeat("a", 2000) + "{{ .PubHash }}", "at most 1024"},
	} {
		tmpl, err := agentpath.Parse(tt.template)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Parse(%.60q) = %v, %v; want an error with %q", tt.template, tmpl, err, tt.want)
		}
	}
}

// A value that cannot be told apart from another, or that climbs out of its place, must not
// become an ID.
func TestIDRefuses(t *testing.T) {
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for _, tt := range []struct {
		template string
		field    agentpath.Field
		value    string
	}{
		{"/x/{{ .Name }}", agentpath.Name, ""},
		{"/x/{{ .Name }}", agentpath.Name, "a/b"},
		{"/x/{{ .Name }}", agentpath.Name, ".."},
		{"/x/{{ .Name }}", agentpath.Name, "."},
		{"/x/{{ .Name }}", agentpath.Name, "rack 12"},
		{"/x/{{ .Name }}", agentpath.Name, "é"},
		{"/x/{{ .Name }}", agentpath.Name, strings.Repeat("a", 3000)},
		{"/x/{{ .Serial }}/{{ .CA }}", agentpath.Serial, "1F"},
		{"/x/{{ .Serial }}/{{ .CA }}", agentpath.Serial, "-1"},
		{"/x/{{ .Serial }}/{{ .CA }}", agentpath.CA, "a.b"},
		{"/x/{{ .Serial }}{{ .Issuer }}", agentpath.Issuer, "ab"},
		{"/x/{{ .PubHash }}", agentpath.PubHash, strings.ToUpper(hashA)},
		{"/x/{{ .DevIDFingerprint }}", agentpath.DevIDFingerprint, ""},
		{"/x/{{ .CA }}{{ .DevIDFingerprint }}", agentpath.DevIDFingerprint, hashA[1:]},
	} {
		tmpl, err := agentpath.Parse(tt.template)
		if err != nil {
			t.Fatal(err)
		}
		v := full()
		v[tt.field] = tt.value
		id, err := tmpl.ID(td, v)
		if err == nil || !id.IsZero() {
			t.Errorf("%q with %s = %.20q: %v, %v; want an error", tt.template, tt.field, tt.value, id, err)
		}
		if got, want := errors.Is(err, agentpath.ErrMissing), tt.value == ""; got != want {
			t.Errorf("%q with %s = %.20q: %v is ErrMissing: %v", tt.template, tt.field, tt.value, err, got)
		}
	}
}

// SPIRE will refuse IDs outside the plugin's own folder in a later release, so an operator has
// to hear of them.
func TestFollowsConvention(t *testing.T) {
	for template, want := range map[string]bool{
		agentpath.Default:                   true,
		"/{{ .PluginName }}/{{ .PubHash }}": true,
		"/tpmx/{{ .PubHash }}":              false,
		"/x509pop/{{ .PubHash }}":           false,
	} {
		tmpl, err := agentpath.Parse(template)
		if err != nil {
			t.Fatal(err)
		}
		if got := tmpl.FollowsConvention(); got != want {
			t.Errorf("%q: %v, want %v", template, got, want)
		}
	}
}

// If two sets of values form one path, they must agree in what identifies a machine. The values
// are short and awkward, so that a collision is likely if there can be one.
func FuzzIDsDiffer(f *testing.F) {
	f.Add("/x/{{ .Serial }}-{{ .CA }}", "1", "a-2", "1", "b", "x", "y")
	f.Add("/x/{{ .CA }}-{{ .Serial }}", "1", "a", "1", "a-1", "x", "y")
	f.Add("/{{ .CA }}.{{ .Name }}", "1", "a", "1", "a", "a.b", "b")
	td := spiffeid.RequireTrustDomainFromString("example.org")
	f.Fuzz(func(t *testing.T, template, s1, c1, s2, c2, n1, n2 string) {
		tmpl, err := agentpath.Parse(template)
		if err != nil {
			return
		}
		a := &agentpath.Values{hashA, n1, c1, hashB, s1, hashC}
		b := &agentpath.Values{hashA, n2, c2, hashB, s2, hashC}
		idA, errA := tmpl.ID(td, a)
		idB, errB := tmpl.ID(td, b)
		if errA != nil || errB != nil || idA != idB {
			return
		}
		for i := range a {
			field := agentpath.Field(i)
			if tmpl.Uses(field) && a[field] != b[field] {
				t.Errorf("%q gives %q and %q the same ID %s", template, a, b, idA)
			}
		}
	})
}

// Two CAs may give one serial number: beside it, the bundle of a DevID must not stand for that
// of the EK certificate.
func TestOfEKCertificate(t *testing.T) {
	for template, want := range map[string]bool{
		"/tpm/{{ .CA }}/{{ .Serial }}":           true,
		"/tpm/{{ .CA }}/{{ .PubHash }}":          false,
		"/tpm/{{ .CA }}/{{ .DevIDFingerprint }}": false,
	} {
		tmpl, err := agentpath.Parse(template)
		if err != nil {
			t.Fatal(err)
		}
		if got := tmpl.OfEKCertificate(agentpath.CA); got != want {
			t.Errorf("%q: %v, want %v", template, got, want)
		}
	}
}
