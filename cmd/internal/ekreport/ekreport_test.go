package ekreport

import (
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// The report says which certificates of a TPM cannot be read. Otherwise somebody would enrol a
// machine by a certificate that its agent never sends.
func TestReportOfBadCertificates(t *testing.T) {
	got := Text(FromTPM(&tpm.Report{
		EK:           tpm.EK{KeyType: attestor.P256, Hash: [32]byte{30: 0xaa, 31: 0xff}},
		Certificates: []tpm.Certificate{{Index: 0x01C00002, Err: errors.New("NV index 0x01c00002: nothing")}},
		Chain:        [][]byte{nil, nil},
		ChainErr:     errors.New("EK certificate chain: NV index 0x01c00101: locked"),
	}))
	want := `EK hash: ` + strings.Repeat("00", 30) + `aaff  (p256)
EK: created when needed; none is persistent
EK certificate: the TPM has none for this EK; servers can admit the machine by its EK hash

Certificate at NV index 0x01c00002: nothing

CA certificates in the TPM: 2

EK certificate chain: NV index 0x01c00101: locked
`
	if got != want {
		t.Errorf("report:\n%s\nwant:\n%s", got, want)
	}
}

// The sample in the documentation has the same lines as the report, in the same order.
func TestSampleInTheDocumentation(t *testing.T) {
	maker := attestortest.New(t, attestortest.Options{CA: attestortest.NewCA(t, "Example vendor")})
	cert, err := x509.ParseCertificate(maker.Claim().Certificate)
	if err != nil {
		t.Fatal(err)
	}
	cert.IssuingCertificateURL = []string{"http://pki.example.org/ca.crt"}
	hash, err := attestor.HashEK(maker.Claim().EK)
	if err != nil {
		t.Fatal(err)
	}
	found := tpm.Certificate{Index: 0x01C00002, Certificate: cert}
	report := Text(FromTPM(&tpm.Report{
		EK:           tpm.EK{KeyType: attestor.RSA2048, Hash: hash, Certificate: &found},
		Certificates: []tpm.Certificate{found},
	}))
	page, err := os.ReadFile("../../../docs/plugin_agent_nodeattestor_tpm.md")
	if err != nil {
		t.Fatal(err)
	}
	_, sample, _ := strings.Cut(string(page), "tpm-attestor-agent -ek\n")
	sample, _, ok := strings.Cut(sample, "```")
	if got, want := labels(sample), labels(report); !ok || len(want) < 10 || !slices.Equal(got, want) {
		t.Errorf("the sample has the lines %q, the report %q", got, want)
	}
}

// labels returns the beginning of each line, up to a colon.
func labels(report string) []string {
	var all []string
	for line := range strings.Lines(report) {
		label, _, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		all = append(all, label)
	}
	return all
}

// The PEM, from which mirrors are filled, has every certificate that could be read, including
// the chain. A certificate that could not be read must not become an empty block, and a report
// without a key must not become a file.
func TestPEM(t *testing.T) {
	ca := attestortest.NewCA(t, "Example vendor")
	text, err := PEM(&tpm.Report{
		EK: tpm.EK{Public: ca.Certificate.PublicKey},
		Certificates: []tpm.Certificate{
			{Err: errors.New("unreadable")},
			{Certificate: ca.Certificate},
		},
		Chain: [][]byte{ca.Certificate.Raw},
	})
	if err != nil || strings.Count(text, "BEGIN CERTIFICATE") != 2 || !strings.HasPrefix(text, "-----BEGIN PUBLIC KEY") {
		t.Errorf("%v\n%s", err, text)
	}
	if text, err := PEM(&tpm.Report{}); err == nil || text != "" {
		t.Errorf("without a key: %q", text)
	}
}

// A malformed subject alternative name costs the TPM's name in the report, and nothing else.
func TestUnreadableAlternativeName(t *testing.T) {
	for _, der := range [][]byte{nil, {0x30, 0x05}, {0x30, 0x02, 0xA4, 0x00}, {0x30, 0x03, 0x82, 0x01, 'x'}} {
		if attrs := directoryName(der); len(attrs) > 0 {
			t.Errorf("%x: %v", der, attrs)
		}
	}
}

// A certificate may hold control characters. They must not reach the terminal.
func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"CN=Infineon":  "CN=Infineon",
		"a \"b\" \\":   `a "b" \\`,
		"\x1b[2Jgone":  `\x1b[2Jgone`,
		"two\nlines":   `two\nlines`,
		"\u202eright":  `\u202eright`,
		"Zürich \xff?": `Z\u00fcrich \xff?`,
	} {
		if got := printable(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

// A remedy that names a key of a configuration which the command does not read leads nowhere.
func TestByFlags(t *testing.T) {
	t.Parallel()
	known := &tpm.Error{Class: tpm.ErrSetup, Err: errors.New("no EK"), Key: "ek", Hint: "set ek to another type"}
	other := &tpm.Error{Class: tpm.ErrSetup, Err: errors.New("no ek"), Hint: "name the ek"}
	for _, test := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("ask the TPM: %w", known), "ask the TPM: no EK: set --ek-type to another type"},
		{other, "no ek: name the ek"},
		{errors.New("ek"), "ek"},
	} {
		err := ByFlags(test.err, map[string]string{"ek": "--ek-type"})
		if err.Error() != test.want || !errors.Is(err, test.err) {
			t.Errorf("%q, want %q", err, test.want)
		}
	}
	if err := ByFlags(nil, nil); err != nil {
		t.Error(err)
	}
}
