package devid

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// booted is a machine that has booted a kernel, and can quote it.
func booted(t *testing.T, kernel string, change func(*attestortest.Options)) *enrolee {
	t.Helper()
	log := clitest.BootLog(kernel)
	o := attestortest.Options{
		PCRs: map[string]map[int][]byte{"sha256": log.PCRs("sha256")}, EventLog: log.Bytes(),
	}
	change(&o)
	return newEnrolee(t, 0, o)
}

// Whoever is given a DevID has to boot as the rules ask for, and to prove it: the machine is asked for a
// quote and for the event log in its challenge, and rules of a boot_policy are judged by them. Otherwise a
// machine that has booted something else would take a DevID along, and keep it.
func TestEnrolmentWithAQuote(t *testing.T) {
	t.Parallel()
	log := clitest.BootLog("kernel")
	profiles := fmt.Sprintf(`{"profiles": [{"name": "web", "pcrs": {"sha256": {"4": ["%x"]}},
		"secureboot": {"enabled": true}}]}`, log.PCRs("sha256")[4])
	const quote = `quote {
		pcrs      = [0, 1, 2, 3, 4, 5, 6, 7]
		event_log = "optional"
	}
	source "hash_file" "list" { path = "DIR/list.txt" }
	source "boot_policy" "boot" { path = "DIR/boot.json" }
	source "devid" "laptops" { ca_path = "DIR/ca.pem" }
	allow "laptops" { all = ["list", "boot", "laptops"] }`
	as := func(*attestortest.Options) {}
	for name, c := range map[string]struct {
		kernel    string
		change    func(*attestortest.Options)
		config    func(string) string
		challenge string // why there is none
		why       string // why there is no certificate
	}{
		"as it should be": {kernel: "kernel"},
		"another kernel":  {kernel: "evil", why: "boot: not listed"},
		"no PCRs": {
			kernel: "kernel", change: func(o *attestortest.Options) { o.PCRs, o.EventLog = nil, nil },
			why: "boot: not listed",
		},
		"no PCRs, which are required": {
			kernel: "kernel", change: func(o *attestortest.Options) { o.PCRs, o.EventLog = nil, nil },
			config: func(s string) string {
				return strings.Replace(s, `event_log = "optional"`, "event_log = \"optional\"\n\t\trequired  = true", 1)
			},
			challenge: "the configuration requires a quote of PCRs, and the machine cannot quote them",
		},
		"no event log": {
			kernel: "kernel", change: func(o *attestortest.Options) { o.EventLog = []byte{} },
			why: "boot: not listed",
		},
		"no event log, which is required": {
			kernel: "kernel", change: func(o *attestortest.Options) { o.EventLog = []byte{} },
			config: func(s string) string { return strings.Replace(s, "optional", "required", 1) },
			why:    `quote: event_log is "required": the machine sent no event log`,
		},
		"another's event log": {
			kernel: "kernel", change: func(o *attestortest.Options) { o.EventLog = clitest.BootLog("evil").Bytes() },
			config: func(s string) string { return strings.Replace(s, "optional", "required", 1) },
			why:    "the event log does not replay to PCR 4",
		},
		"a quote of another session": {
			kernel: "kernel", change: func(o *attestortest.Options) {
				o.ForgeQuote = func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = make([]byte, 32) }
			},
			why: "the answer proves nothing",
		},
		"PCRs that the TPM does not have": {
			kernel: "kernel", change: func(o *attestortest.Options) {
				o.ForgeQuote = func(a *tpm2.TPMSAttest) {
					q, err := a.Attested.Quote()
					if err != nil {
						return
					}
					q.PCRDigest.Buffer = make([]byte, 32)
					a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, q)
				}
			},
			why: "the answer proves nothing",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.change == nil {
				c.change = as
			}
			config := quote
			if c.config != nil {
				config = c.config(quote)
			}
			e := booted(t, c.kernel, c.change)
			i := newIssuing(t, config, e)
			i.write("boot.json", profiles)
			if c.challenge != "" {
				code, _, stderr := i.run(e.request(t, nil), "challenge")
				if code != cli.ExitRefused || !strings.Contains(stderr, c.challenge) {
					t.Errorf("exit code %d, %s", code, stderr)
				}
				return
			}
			code, stdout, stderr := i.certificate(e.answer(t, i.challenge(e, nil)))
			want := cli.ExitRefused
			if c.why == "" {
				want = 0
			}
			if code != want || (stdout == "") != (want != 0) || !strings.Contains(stderr, c.why) {
				t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
			}
		})
	}
}

// A configuration that has come to ask for more of the boot since the challenge decides: what was not asked
// for then is asked for anew.
func TestQuoteSinceTheChallenge(t *testing.T) {
	t.Parallel()
	e := booted(t, "kernel", func(*attestortest.Options) {})
	i := newIssuing(t, onlyListed, e)
	answer := e.answer(t, i.challenge(e, nil))
	config, err := os.ReadFile(i.at("server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	i.write("server.conf", string(config)+"\nquote {\n  pcrs     = [0, 7]\n  required = true\n}")
	code, stdout, stderr := i.certificate(answer)
	if code != cli.ExitRefused || stdout != "" || !strings.Contains(stderr, "make a new challenge") {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
}

// Whoever issues is told before the challenge already, and by the JSON, if the rules know the vendor of the
// TPM alone: anybody can buy such a machine.
func TestOnlyTheVendorIsKnown(t *testing.T) {
	t.Parallel()
	vendor := attestortest.NewCA(t, "vendor")
	const vouching = `source "ek_ca" "vendors" { ca_path = "DIR/vendor.pem" }
	source "hash_file" "list" {
		path        = "DIR/list.txt"
		allow_empty = true
	}
	allow "any" { any = ["vendors", "list"] }`
	e := newEnrolee(t, 0, attestortest.Options{CA: vendor})
	for name, listed := range map[string][]*enrolee{"the vendor": nil, "a list, too": {e}} {
		i := newIssuing(t, vouching, listed...)
		i.write("vendor.pem", string(vendor.PEM()))
		code, challenge, stderr := i.run(e.request(t, nil), "challenge")
		if told := strings.Contains(stderr, "no list knows this machine"); code != 0 || told != (listed == nil) {
			t.Errorf("%s: exit code %d, %s", name, code, stderr)
		}
		code, stdout, stderr := i.certificate(e.answer(t, []byte(challenge)),
			"--ca-cert", i.at("ca.pem"), "--ca-key", i.at("ca.key"), "--output", "json")
		var got struct {
			Known *bool `json:"machine_known"`
		}
		if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil || got.Known == nil || *got.Known != (listed != nil) {
			t.Errorf("%s: exit code %d, %q, %v, %s", name, code, stdout, err, stderr)
		}
		if told := strings.Contains(stderr, "has the EK hash "+e.EKHash()+", is for you to say"); told != (listed == nil) {
			t.Errorf("%s: %s", name, stderr)
		}
	}
}

// A DevID by a CA that the servers' configuration does not name is not issued: its machine would be refused.
// If the CA's files cannot be read, or a server may fetch what is between, the servers decide.
func TestCAThatNoSourceNames(t *testing.T) {
	t.Parallel()
	e := newEnrolee(t, 0, attestortest.Options{})
	other := attestortest.NewCA(t, "other")
	for _, c := range []struct {
		name, sources string
		refused       bool
	}{
		{"another CA", `source "devid" "laptops" { ca_path = "DIR/other.pem" }`, true},
		{"its CA in another source", `source "devid" "laptops" { ca_path = "DIR/other.pem" }
			source "devid" "more" { bundles = { devices = "DIR/ca.pem" } }`, false},
		{"a file that cannot be read", `source "devid" "laptops" { ca_path = "DIR/torn.pem" }`, false},
		{"a server that fetches", `source "devid" "laptops" {
			ca_path   = "DIR/other.pem"
			aia_hosts = ["pki.example.org"]
		}`, false},
	} {
		i := newIssuing(t, onlyListed+"\n"+c.sources+"\n"+`allow "any" { any = ["list"] }
			allow "laptops" { all = ["list", "laptops"] }`+strings.Repeat("\n"+`allow "more" { all = ["list", "more"] }`,
			strings.Count(c.sources, `"more"`)), e)
		i.write("other.pem", string(other.PEM()))
		i.write("torn.pem", "")
		code, stdout, stderr := i.certificate(e.answer(t, i.challenge(e, nil)))
		switch {
		case !c.refused && (code != 0 || stdout == ""):
			t.Errorf("%s: exit code %d, %s", c.name, code, stderr)
		case c.refused && (code != cli.ExitRefused || stdout != "" ||
			!strings.Contains(stderr, `laptops: the DevID certificate`) && !strings.Contains(stderr, "no configured CA has issued")):
			t.Errorf("%s: exit code %d, %q, %s", c.name, code, stdout, stderr)
		}
		if kept, err := exists(i.at("state")); err != nil || kept != c.refused {
			t.Errorf("%s: the challenge is kept: %v, %v", c.name, kept, err)
		}
	}
}

// Who can write to a folder in which a command runs as root points a link with the name of a file there at
// one of the system's. Nothing is written through it, neither by the machine nor by the issuer.
func TestFilesAreNotWrittenThroughLinks(t *testing.T) {
	t.Parallel()
	e := newEnrolee(t, 0, attestortest.Options{})
	i := newIssuing(t, onlyListed, e)
	i.write("precious", "precious")
	for _, name := range []string{"challenge.json", "linked", "devid.pem"} {
		if err := os.Symlink(i.at("precious"), i.at(name)); err != nil {
			t.Fatal(err)
		}
	}
	wantRefused := func(what string, code int, stderr string) {
		t.Helper()
		content, err := os.ReadFile(i.at("precious"))
		if code == 0 || !strings.Contains(stderr, "is there already") || err != nil || string(content) != "precious" {
			t.Errorf("%s: exit code %d, %s, %q, %v", what, code, stderr, content, err)
		}
	}
	request := e.request(t, nil)
	code, _, stderr := i.run(request, "challenge", "--to", i.at("challenge.json"))
	wantRefused("the challenge", code, stderr)
	if kept, err := exists(i.at("state")); kept || err != nil {
		t.Errorf("the state of a challenge that was not written is kept: %v", err)
	}
	answer := e.answer(t, i.challenge(e, nil))
	code, _, stderr = i.certificate(answer, "--ca-cert", i.at("ca.pem"), "--ca-key", i.at("ca.key"), "--to", i.at("devid.pem"))
	wantRefused("the certificate", code, stderr)
	if err := errors.Join(os.Remove(i.at("state")), os.Rename(i.at("linked"), i.at("state"))); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = i.run(request, "challenge")
	wantRefused("the state", code, stderr)

	if os.Geteuid() != 0 {
		t.Skip("only root can make what is another user's")
	}
	const stranger = 12345
	folder := i.at("theirs")
	link := filepath.Join(folder, "request.json")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.Symlink(i.at("precious"), link), os.Chown(folder, stranger, -1)); err != nil {
		t.Fatal(err)
	}
	err := writeExchanged(typeRequest, link, request)
	content, read := os.ReadFile(i.at("precious"))
	if err == nil || !strings.Contains(err.Error(), "is a link, which user 12345 can point elsewhere") ||
		read != nil || string(content) != "precious" {
		t.Errorf("the request: %v, %q", err, content)
	}
}

// Who can replace the state could have any answer accepted, and who can read it needs no TPM.
func TestStateOfOthers(t *testing.T) {
	t.Parallel()
	e := newEnrolee(t, 0, attestortest.Options{})
	i := newIssuing(t, onlyListed, e)
	answer := e.answer(t, i.challenge(e, nil))
	for _, mode := range []fs.FileMode{0o644, 0o660, 0o606} {
		if err := os.Chmod(i.at("state"), mode); err != nil {
			t.Fatal(err)
		}
		if code, stdout, stderr := i.certificate(answer); code != cli.ExitRefused || stdout != "" {
			t.Errorf("%o: exit code %d, %s", mode, code, stderr)
		}
	}
	if err := os.Chmod(i.at("state"), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(i.at("state"), 12345, -1); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := i.certificate(answer)
		if code != cli.ExitRefused || !strings.Contains(stderr, "it belongs to user 12345") {
			t.Errorf("another's: exit code %d, %s", code, stderr)
		}
		if err := os.Chown(i.at("state"), 0, -1); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, stderr := i.certificate(answer); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// What one reader of a file takes for its type, another must not take for its contents: a member is there
// once, and in its own letters.
func TestFilesAreReadInOneWay(t *testing.T) {
	t.Parallel()
	e := newEnrolee(t, 0, attestortest.Options{})
	request := e.request(t, nil)
	for name, spoilt := range map[string][]byte{
		"another type": bytes.Replace(request, []byte(typeRequest), []byte(typeAnswer), 1),
		"type twice":   bytes.Replace(request, []byte(`"type"`), []byte(`"type":"devid answer","type"`), 1),
		"Type":         bytes.Replace(request, []byte(`"type"`), []byte(`"Type"`), 1),
		"version 2":    bytes.Replace(request, []byte(`"version":1`), []byte(`"version":2`), 1),
		"two values":   slices.Concat(request, request),
		"a list":       slices.Concat([]byte("["), request, []byte("]")),
		"nothing":      {},
	} {
		if bytes.Equal(spoilt, request) {
			t.Fatal(name)
		}
		if _, err := unwrap(typeRequest, spoilt); err == nil {
			t.Errorf("%s: it is a request", name)
		}
	}
	if _, err := unwrap(typeRequest, request); err != nil {
		t.Error(err)
	}
}

// FuzzFiles: whatever is in the files that an issuer gets, nothing panics, and a certificate request is passed
// on only if it is the DevID's and asks for no name of a server.
func FuzzFiles(f *testing.F) {
	e := &enrolee{TPM: attestortest.New(f, attestortest.Options{
		EK: attestor.P256, DevID: &attestortest.DevID{CA: attestortest.NewCA(f, "ca"), Fixed: true},
	})}
	request, err := exchanged{CSR: []byte("csr")}.wrap(typeRequest, e.Payload(f))
	if err != nil {
		f.Fatal(err)
	}
	p := &proved{evidence: &sources.Evidence{}, devID: &attestor.DevID{Key: e.DevIDKey().Public()}}
	san, err := hardwareName(p.evidence.EKHash[:])
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{SerialNumber: p.evidence.EKHash.String()}, ExtraExtensions: []pkix.Extension{san},
	}, e.DevIDKey())
	if err != nil {
		f.Fatal(err)
	}
	if _, err := new(certificateFlags).checkRequest(der, p); err != nil {
		f.Fatal(err)
	}
	f.Add(request, der)
	f.Fuzz(func(t *testing.T, file, der []byte) {
		for _, typ := range []string{typeRequest, typeChallenge, typeAnswer, typeState} {
			if got, err := unwrap(typ, file); (got == nil) != (err != nil) {
				t.Fatal(got, err)
			}
		}
		csr, err := new(certificateFlags).checkRequest(der, p)
		if err != nil {
			return
		}
		if key, ok := csr.PublicKey.(equalKey); !ok || !key.Equal(p.devID.Key) || len(csr.DNSNames) > 0 {
			t.Fatalf("a request of %v for %v", csr.PublicKey, csr.DNSNames)
		}
	})
}
