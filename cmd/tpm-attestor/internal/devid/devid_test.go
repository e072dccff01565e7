package devid

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// An enrolee is a machine whose TPM is in software, and may lie.
type enrolee struct {
	*attestortest.TPM
	forge func(*attestor.SignedDevID)
}

func newEnrolee(t *testing.T, number int, o attestortest.Options) *enrolee {
	t.Helper()
	o.EK, o.Number = attestor.P256, number
	if o.DevID == nil {
		o.DevID = &attestortest.DevID{}
	}
	o.DevID.CA = attestortest.NewCA(t, "not looked at")
	o.ForgePublic = func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = attestor.EnrolmentPolicy() }
	return &enrolee{TPM: attestortest.New(t, o)}
}

// Activate implements attestor.Activator.
func (e *enrolee) Activate(a *attestor.Activation) (*attestor.Activated, error) {
	done, err := e.TPM.Activate(a)
	if err == nil && done.DevID != nil {
		done.DevID.Chain = nil
		if e.forge != nil {
			e.forge(done.DevID)
		}
	}
	return done, err
}

func (e *enrolee) request(t *testing.T, csr []byte) []byte {
	t.Helper()
	request, err := exchanged{CSR: csr}.wrap(typeRequest, e.Payload(t))
	if err != nil {
		t.Fatal(err)
	}
	return request
}

func (e *enrolee) answer(t *testing.T, challenge []byte) []byte {
	t.Helper()
	message, err := attestor.NewProver(e.Claim(), e).Answer(challenge)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := exchanged{}.wrap(typeAnswer, message)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// issuing is the folder of somebody who issues DevIDs.
type issuing struct {
	t      *testing.T
	folder string
}

func newIssuing(t *testing.T, config string, listed ...*enrolee) *issuing {
	t.Helper()
	i := &issuing{t, t.TempDir()}
	if err := clitest.WriteAuthorities(i.folder); err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	list.WriteString("#\n")
	for n, e := range listed {
		fmt.Fprintf(&list, "%s laptop-%d\n", e.EKHash(), n)
	}
	i.write("list.txt", list.String())
	i.write("server.conf", strings.ReplaceAll(config, "DIR", i.folder))
	return i
}

const onlyListed = `source "hash_file" "list" {
	path        = "DIR/list.txt"
	allow_empty = true
}`

func (i *issuing) at(name string) string { return filepath.Join(i.folder, name) }

func (i *issuing) write(name, content string) {
	i.t.Helper()
	if err := os.WriteFile(i.at(name), []byte(content), 0o600); err != nil {
		i.t.Fatal(err)
	}
}

// run runs a command of the issuer, and returns its exit code.
func (i *issuing) run(stdin []byte, args ...string) (code int, stdout, stderr string) {
	i.t.Helper()
	args = append([]string{"devid", "issue"}, args...)
	args = append(args, "-", "--config", i.at("server.conf"), "--state", i.at("state"))
	var out, errs strings.Builder
	code = clitest.Run(i.t.Context(), New, args, cli.Streams{In: bytes.NewReader(stdin), Out: &out, Err: &errs})
	return code, out.String(), errs.String()
}

func (i *issuing) challenge(e *enrolee, csr []byte) []byte {
	i.t.Helper()
	code, challenge, stderr := i.run(e.request(i.t, csr), "challenge")
	if code != 0 {
		i.t.Fatalf("exit code %d: %s", code, stderr)
	}
	return []byte(challenge)
}

func (i *issuing) certificate(answer []byte, args ...string) (code int, stdout, stderr string) {
	i.t.Helper()
	if len(args) == 0 {
		args = []string{"--ca-cert", i.at("ca.pem"), "--ca-key", i.at("ca.key")}
	}
	return i.run(answer, append([]string{"certificate"}, args...)...)
}

// Nothing but the machine that was challenged, with a key that stays in its TPM and that its own AK has
// certified now, gets a certificate; and one try is all that a challenge is good for.
func TestDevIDIsIssuedToNobodyElse(t *testing.T) {
	t.Parallel()
	other := newEnrolee(t, 1, attestortest.Options{})
	for name, c := range map[string]struct {
		devid  attestortest.DevID
		forge  func(*attestor.SignedDevID)
		answer func(t *testing.T, e *enrolee, challenge []byte) []byte
		kept   bool // the challenge
	}{
		"the machine itself": {},
		"a key that can leave": {devid: attestortest.DevID{ForgePublic: func(p *tpm2.TPMTPublic) {
			p.ObjectAttributes.FixedTPM = false
		}}},
		"a key that decrypts": {devid: attestortest.DevID{ForgePublic: func(p *tpm2.TPMTPublic) {
			p.ObjectAttributes.Decrypt = true
		}}},
		"another key's certification": {devid: attestortest.DevID{ForgeCertify: func(a *tpm2.TPMSAttest) {
			a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{
				Name: tpm2.TPM2BName{Buffer: make([]byte, 34)}, QualifiedName: tpm2.TPM2BName{Buffer: make([]byte, 34)},
			})
		}}},
		"a certification of another session": {devid: attestortest.DevID{ForgeCertify: func(a *tpm2.TPMSAttest) {
			a.ExtraData.Buffer = make([]byte, 32)
		}}},
		"another signature": {forge: func(d *attestor.SignedDevID) { d.Signature[len(d.Signature)-1] ^= 1 }},
		"a certificate in the answer": {forge: func(d *attestor.SignedDevID) {
			d.Chain = [][]byte{attestortest.NewCA(t, "x").Certificate.Raw}
		}},
		"another TPM's answer": {answer: func(t *testing.T, _ *enrolee, challenge []byte) []byte {
			s, err := (&attestor.Verifier{Enrolment: true}).Begin(other.Payload(t))
			if err != nil {
				t.Fatal(err)
			}
			own, err := s.Challenge(attestor.Ask{DevID: true})
			if err != nil {
				t.Fatal(err)
			}
			return other.answer(t, own)
		}},
		"no DevID": {answer: func(t *testing.T, e *enrolee, challenge []byte) []byte {
			return bytes.Replace(e.answer(t, challenge), []byte(`"DevID"`), []byte(`"devID"`), 1)
		}},
		"cut off": {kept: true, answer: func(t *testing.T, e *enrolee, challenge []byte) []byte {
			return e.answer(t, challenge)[:500]
		}},
		"the challenge": {kept: true, answer: func(_ *testing.T, _ *enrolee, challenge []byte) []byte {
			return challenge
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnrolee(t, 0, attestortest.Options{DevID: &c.devid})
			e.forge = c.forge
			i := newIssuing(t, onlyListed, e, other)
			challenge := i.challenge(e, nil)
			if c.answer == nil {
				c.answer = func(t *testing.T, e *enrolee, challenge []byte) []byte { return e.answer(t, challenge) }
			}
			code, stdout, stderr := i.certificate(c.answer(t, e, challenge))
			want := cli.ExitRefused
			if name == "the machine itself" {
				want = 0
			}
			if code != want || (stdout == "") != (want != 0) {
				t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
			}
			if kept, err := exists(i.at("state")); err != nil || kept != c.kept {
				t.Errorf("the challenge is kept: %v, %v", kept, err)
			}
		})
	}
}

// The sources are asked again when the answer comes: who was taken off the list meanwhile gets nothing,
// and if they cannot tell, the answer may be brought again.
func TestDevIDIsIssuedByTheListsOfNow(t *testing.T) {
	t.Parallel()
	e := newEnrolee(t, 0, attestortest.Options{})
	i := newIssuing(t, onlyListed, e)
	answer := e.answer(t, i.challenge(e, nil))
	i.write("list.txt", "#\n")
	code, _, stderr := i.certificate(answer)
	if code != cli.ExitRefused || !strings.Contains(stderr, "no allow rule holds") {
		t.Errorf("not listed any more: exit code %d, %s", code, stderr)
	}
	i.write("list.txt", "torn")
	if code, _, stderr := i.certificate(answer); code != cli.ExitCannotTell {
		t.Errorf("a torn list: exit code %d, %s", code, stderr)
	}
	i.write("list.txt", e.EKHash()+"\n")
	if code, _, stderr := i.certificate(answer); code != 0 {
		t.Errorf("listed again: exit code %d, %s", code, stderr)
	}
}

// A certificate request is passed on only if the DevID's key has signed it and it asks for nothing that
// was not proved: the CA behind it believes what is in it.
func TestCertificateRequestIsChecked(t *testing.T) {
	t.Parallel()
	e, other := newEnrolee(t, 0, attestortest.Options{}), newEnrolee(t, 1, attestortest.Options{})
	hash, err := hex.DecodeString(e.EKHash())
	if err != nil {
		t.Fatal(err)
	}
	san, err := hardwareName(hash)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := hardwareName(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	ca := pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}}
	own, admin := pkix.Name{SerialNumber: e.EKHash()}, pkix.Name{CommonName: "admin"}
	// szOID_CERT_EXTENSIONS, which some authorities heed as they heed extensionRequest.
	microsofts := map[string][]pkix.AttributeTypeAndValueSET{"to be a CA, by another's attribute": {{
		Type:  asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 311, 2, 1, 14},
		Value: [][]pkix.AttributeTypeAndValue{{{Type: ca.Id, Value: ca.Value}}},
	}}}
	for name, c := range map[string]struct {
		key     crypto.Signer
		subject pkix.Name
		with    []pkix.Extension
		spoil   bool
		why     string // empty: it is printed
	}{
		"as it should be": {e.DevIDKey(), own, []pkix.Extension{san}, false, ""},
		"another's key":   {other.DevIDKey(), own, []pkix.Extension{san}, false, "its key is not the DevID's"},
		"another name":    {e.DevIDKey(), admin, []pkix.Extension{san}, false, "it asks for the subject"},
		"one name more": {
			e.DevIDKey(),
			pkix.Name{CommonName: "x", SerialNumber: e.EKHash()},
			[]pkix.Extension{san},
			false,
			"it asks for the subject",
		},
		"to be a CA":     {e.DevIDKey(), own, []pkix.Extension{san, ca}, false, "it asks for other extensions"},
		"another serial": {e.DevIDKey(), own, []pkix.Extension{foreign}, false, "it asks for other extensions"},
		"nothing":        {e.DevIDKey(), own, nil, false, "it asks for other extensions"},
		"spoilt":         {e.DevIDKey(), own, []pkix.Extension{san}, true, "the certificate request: "},
		"to be a CA, by another's attribute": {
			e.DevIDKey(), own, []pkix.Extension{san}, false, "it asks for other extensions",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der, err := x509.CreateCertificateRequest(rand.Reader,
				&x509.CertificateRequest{
					Subject: c.subject, ExtraExtensions: c.with,
					Attributes: microsofts[name], //nolint:staticcheck // SA1019: it is what writes other attributes
				}, c.key)
			if err != nil {
				t.Fatal(err)
			}
			if c.spoil {
				der[len(der)-1] ^= 1
			}
			i := newIssuing(t, onlyListed, e)
			code, stdout, stderr := i.certificate(e.answer(t, i.challenge(e, der)), "--csr")
			if c.why == "" {
				if code != 0 || !strings.HasPrefix(stdout, "-----BEGIN CERTIFICATE REQUEST-----") {
					t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
				}
				return
			}
			if code != cli.ExitRefused || stdout != "" || !strings.Contains(stderr, c.why) {
				t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
			}
		})
	}
	i := newIssuing(t, onlyListed, e)
	if code, _, stderr := i.certificate(e.answer(t, i.challenge(e, nil)), "--csr"); code != cli.ExitRefused {
		t.Errorf("no certificate request: exit code %d, %s", code, stderr)
	}
}

// The TPM's serial number in the certificate is of the EK certificate only if a source has verified that
// one: a machine that is on a list could send one that it has made itself.
func TestSerialNumberIsVerified(t *testing.T) {
	t.Parallel()
	vendor := attestortest.NewCA(t, "vendor")
	e := newEnrolee(t, 0, attestortest.Options{CA: vendor})
	for config, want := range map[string]string{
		onlyListed: "",
		`source "ek_ca" "vendors" { ca_path = "DIR/vendor.pem" }`: "414D4400:",
	} {
		i := newIssuing(t, config, e)
		i.write("vendor.pem", string(vendor.PEM()))
		code, stdout, stderr := i.certificate(e.answer(t, i.challenge(e, nil)))
		if code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		if known := !strings.Contains(stderr, "is for you to say"); known != (want == "") {
			t.Errorf("that nobody knows the machine is told: %s", stderr)
		}
		block, _ := pem.Decode([]byte(stdout))
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		at := slices.IndexFunc(cert.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(oidSubjectAltName) })
		hash, err := hex.DecodeString(e.EKHash())
		if err != nil {
			t.Fatal(err)
		}
		if want == "" {
			want = string(hash)
		}
		if san := cert.Extensions[at].Value; !bytes.Contains(san, []byte(want)) {
			t.Errorf("the serial number in %x: want %x", san, want)
		}
	}
}

// Who can sign as a CA is looked at before a machine's answer is used up, and a chain that no server
// would take is not issued.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	at := func(name string) string { return filepath.Join(folder, name) }
	if err := clitest.WriteAuthorities(folder); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"empty": "", "text": "hello", "torn": "-----BEGIN CERTIFICATE-----\nMII",
	} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ed := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	if err := clitest.WritePEM(at("ed.key"), ed, x509.MarshalPKCS8PrivateKey, "PRIVATE KEY"); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{
		{"ca.pem", "gone"},
		{"gone", "ca.key"},
		{"ca.pem", "ca.pem"},
		{"ca.key", "ca.key"},
		{"empty", "ca.key"},
		{"text", "ca.key"},
		{"torn", "ca.key"},
		{"ca.pem", "empty"},
		{"ca.pem", "torn"},
		{"ca.pem", "ed.key"},
		{"leaf.pem", "ca.key"},
		{"old.pem", "ca.key"},
	} {
		if _, err := readAuthority(at(c[0]), at(c[1])); err == nil {
			t.Errorf("%s with %s can sign", c[0], c[1])
		}
	}
	if _, err := readAuthority(at("ca.pem"), at("ca.key")); err != nil {
		t.Error(err)
	}
}

// An issuer whose CA no server takes is refused, before and not after the answer is used up: the machine
// would be refused otherwise, and nobody would know why. What is checked is certs.CheckAuthority's.
func TestAuthorityThatNoServerTakes(t *testing.T) {
	t.Parallel()
	e := newEnrolee(t, 0, attestortest.Options{})
	root := attestortest.NewCA(t, "root")
	for name, change := range map[string]func(*x509.Certificate){
		"name constraints": func(c *x509.Certificate) { c.PermittedDNSDomains = []string{"example.org"} },
		"critical extension": func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		},
		"ECDSA-SHA1": func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 },
		"expired":    func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) },
	} {
		ca := root.NewCAWith(t, "devices", change)
		i := newIssuing(t, onlyListed, e)
		i.write("ca.pem", string(ca.PEM())+string(root.PEM()))
		if err := clitest.WritePEM(i.at("ca.key"), ca.Key(), x509.MarshalPKCS8PrivateKey, "PRIVATE KEY"); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := i.certificate(e.answer(t, i.challenge(e, nil)))
		if code != cli.ExitUsage || stdout != "" || !strings.Contains(stderr, name) ||
			!strings.Contains(stderr, "no server would take a DevID by it; use another CA") {
			t.Errorf("%s: exit code %d, %q, %s", name, code, stdout, stderr)
		}
		if kept, err := exists(i.at("state")); err != nil || !kept {
			t.Errorf("%s: the challenge is kept: %v, %v", name, kept, err)
		}
	}
}

// A subject has what an operator may write and nothing else, so that a typing error does not become part
// of a name that rules rely on.
func TestSubject(t *testing.T) {
	t.Parallel()
	name, err := parseSubject([]string{"CN=a=b", "O=One", "O=Two", "OU=x", "C=DE", "L=Ulm", "ST=BW", "serialNumber=7"})
	if err != nil || name.String() != `SERIALNUMBER=7,CN=a=b,OU=x,O=One+O=Two,L=Ulm,ST=BW,C=DE` {
		t.Errorf("%v, %v", name, err)
	}
	for _, wrong := range []string{"CN", "CN=", "cn=x", "X=y", "CN=a\nb", "CN=\xff", "CN=" + strings.Repeat("x", 65)} {
		if _, err := parseSubject([]string{wrong}); err == nil {
			t.Errorf("%q was taken", wrong)
		}
	}
	if _, err := parseSubject([]string{"CN=a", "CN=b"}); err == nil {
		t.Error("two common names were taken")
	}
}

// If the configuration asks for more PCRs by now than the challenge did, a server would ask again: an
// issuer must not take what was quoted before for it.
func TestIssuerJudgesTheQuoteOfNow(t *testing.T) {
	t.Parallel()
	i := &issuer{Config: &config.Config{Quote: &config.Quote{Bank: "sha256", PCRs: []int{0, 7}, Required: true}}}
	value := make([]byte, 32)
	for name, c := range map[string]struct {
		boot *sources.Boot
		why  string // empty: it will do
	}{
		"all of it":    {&sources.Boot{Bank: "sha256", PCRs: map[int][]byte{0: value, 7: value}}, ""},
		"a PCR less":   {&sources.Boot{Bank: "sha256", PCRs: map[int][]byte{7: value}}, "make a new challenge"},
		"another bank": {&sources.Boot{Bank: "sha384", PCRs: map[int][]byte{0: value, 7: value}}, "make a new challenge"},
		"no quote":     {nil, "make a new challenge"},
	} {
		err := i.checkBoot(c.boot)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
