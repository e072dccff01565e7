package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// A site has a fleet: its TPMs are of a vendor, its DevIDs of a CA of its own.
type site struct {
	vendor, devices *attestortest.CA
	text            string // two sources, "vendors" and "laptops"
	tpms            int
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{vendor: attestortest.NewCA(t, "vendor"), devices: attestortest.NewCA(t, "Device CA")}
	dir := t.TempDir()
	list(t, dir, "vendor.pem", string(s.vendor.PEM()))
	list(t, dir, "devices.pem", string(s.devices.PEM()))
	s.text = fmt.Sprintf("source \"ek_ca\" \"vendors\" { ca_path = \"%[1]s/vendor.pem\" }\n"+
		"source \"devid\" \"laptops\" { bundles = { corp = \"%[1]s/devices.pem\" } }\n", dir)
	return s
}

// tpm returns a TPM of the vendor.
func (s *site) tpm(t *testing.T, d *attestortest.DevID) *attestortest.TPM {
	t.Helper()
	s.tpms++
	return attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: s.tpms, CA: s.vendor, DevID: d})
}

// devID describes a DevID of the site.
func (s *site) devID() *attestortest.DevID { return &attestortest.DevID{CA: s.devices} }

// A liar changes what its TPM says of its DevID.
type liar struct {
	*attestortest.TPM
	lie func(*attestor.SignedDevID) *attestor.SignedDevID
}

// Activate implements attestor.Activator.
func (l *liar) Activate(a *attestor.Activation) (*attestor.Activated, error) {
	done, err := l.TPM.Activate(a)
	if err == nil && a.DevID != nil {
		done.DevID = l.lie(done.DevID)
	}
	return done, err
}

func (p *plugin) attestLiar(t *testing.T, l *liar) (*nodeattestorv1.AgentAttributes, error) {
	t.Helper()
	return p.attest(t, l.Payload(t), func(c []byte) []byte {
		b, err := attestor.NewProver(l.Claim(), l).Answer(c)
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// fingerprintOf returns the SHA-256 of the certificate of a TPM's DevID.
func fingerprintOf(t *testing.T, tpm *attestortest.TPM) string {
	t.Helper()
	signed, err := tpm.DevID(&attestor.DevIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(signed.Chain[0])
	return hex.EncodeToString(sum[:])
}

// One fleet has machines with a DevID and machines that have only an EK: rules say which is
// enough. What a machine proves becomes selectors of its rule, and its ID if a template says
// so; the log has it, too.
func TestDevIDFleet(t *testing.T) {
	s := newSite(t)
	laptop, rack := s.tpm(t, s.devID()), s.tpm(t, nil)
	rules := oneHashDir(hashDir(t, rack)) +
		`allow "laptops" { all = ["laptops", "vendors"] } allow "racks" { all = ["factory", "vendors"] }` + "\n"
	p := serve(t)
	p.configure(t, s.text+rules)
	shown := fingerprintOf(t, laptop)
	for tpm, want := range map[*attestortest.TPM][]string{
		laptop: {
			"ca:corp", "rule:laptops", "source:laptops", "source:vendors",
			"devid:subject:cn:device", "devid:subject:o:attestortest", "devid:subject:serialnumber:SN-1",
			"devid:issuer:cn:Device CA", "devid:fingerprint:" + shown,
		},
		rack: {"rule:racks", "source:factory", "source:vendors"},
	} {
		got, err := p.attestTPM(t, tpm)
		if err != nil {
			t.Fatal(err)
		}
		have := slices.DeleteFunc(slices.Clone(got.SelectorValues), func(s string) bool {
			return strings.HasPrefix(s, "devid:serial:") || strings.HasPrefix(s, "ek:") || strings.HasPrefix(s, "m") ||
				strings.HasPrefix(s, "version:")
		})
		want = append(want, "pub_hash:"+tpm.EKHash())
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Errorf("selectors %q, want %q", have, want)
		}
		p.log.await(t, tpm.EKHash())
	}
	p.log.await(t, shown)
	if n := p.Answers(); n != 0 {
		t.Errorf("%d bytes of answers are still counted", n)
	}
	p.configure(t, s.text+`allow "laptops" { all = ["laptops", "vendors"] } agent_path_template = "/tpm/{{ .CA }}/{{ .DevIDFingerprint }}"`)
	if got, err := p.attestTPM(t, laptop); err != nil || got.SpiffeId != "spiffe://example.org/spire/agent/tpm/corp/"+shown {
		t.Errorf("%v, %v", got.GetSpiffeId(), err)
	}
	p.configure(t, strings.Replace(s.text, `.pem" } }`, `.pem" } attributes = false }`, 1)+rules)
	if got, err := p.attestTPM(t, laptop); err != nil || slices.ContainsFunc(got.SelectorValues, func(s string) bool {
		return strings.HasPrefix(s, "devid:") || strings.HasPrefix(s, "ca:")
	}) {
		t.Errorf("with attributes = false: %q, %v", got.GetSelectorValues(), err)
	}
}

// Nothing of a DevID is asked of a machine if no source needs it: a DevID says who the machine
// is to a server that has no use for it.
func TestDevIDIsNotAskedFor(t *testing.T) {
	s := newSite(t)
	laptop := s.tpm(t, s.devID())
	p := serve(t)
	p.configure(t, oneHashDir(hashDir(t, laptop)))
	_, err := p.attestLiar(t, &liar{laptop, func(*attestor.SignedDevID) *attestor.SignedDevID {
		t.Error("a DevID was asked for")
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if p.log.await(t, "Machine admitted"); p.log.find(t, "Machine admitted")["devid"] != nil {
		t.Error("a DevID is logged that was not proved")
	}
}

// Each of these must be refused although a CA that counts has signed the certificate that the
// machine sends, and each by what is wrong with it: a proof that does not hold refuses the
// attestation whatever the rules say, and a certificate that does not count is only not listed.
func TestDevIDAttacks(t *testing.T) {
	s := newSite(t)
	honest, other := s.tpm(t, s.devID()), s.tpm(t, s.devID())
	soft := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: attestortest.NewCA(t, "mine"), DevID: s.devID()})
	bare := attestortest.New(t, attestortest.Options{EK: attestor.P256, DevID: s.devID()})
	change := func(f func(*x509.Certificate)) *attestortest.TPM {
		d := s.devID()
		d.Certificate.Change = f
		return s.tpm(t, d)
	}
	expired := s.devices.NewCAWith(t, "Expired", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Hour) })
	below := s.tpm(t, &attestortest.DevID{CA: expired, Above: []*attestortest.CA{expired}})
	stranger := attestortest.NewCA(t, "Device CA")
	otherCA := s.tpm(t, &attestortest.DevID{CA: stranger, Above: []*attestortest.CA{stranger}})
	lies := func(tpm *attestortest.TPM, lie func(d *attestor.SignedDevID)) *liar {
		return &liar{tpm, func(d *attestor.SignedDevID) *attestor.SignedDevID {
			lie(d)
			return d
		}}
	}
	truth := func(tpm *attestortest.TPM) *liar { return lies(tpm, func(*attestor.SignedDevID) {}) }
	const wrong, refused = "the DevID in the answer to the challenge is wrong", "this TPM is not admitted"
	for _, tt := range []struct {
		name string
		tpm  *liar
		code codes.Code
		told string
		why  string // in the log
	}{
		{"honest", truth(honest), codes.OK, "", ""},
		{"a software key under a rule that also vouches for the EK", truth(soft), codes.PermissionDenied, refused, "vendors: not listed (no configured CA has issued the EK certificate"},
		{"a software key without an EK certificate", truth(bare), codes.PermissionDenied, refused, "there is no EK certificate"},
		{"no DevID", truth(s.tpm(t, nil)), codes.PermissionDenied, refused, "laptops: not listed (the machine has proved no DevID"},
		{"offers a DevID and sends none", &liar{honest, func(*attestor.SignedDevID) *attestor.SignedDevID { return nil }}, codes.PermissionDenied, refused, "the machine has proved no DevID"},
		{
			"one TPM's DevID with another's EK", &liar{honest, func(*attestor.SignedDevID) *attestor.SignedDevID {
				d, err := other.DevID(&attestor.DevIDRequest{})
				if err != nil {
					t.Error(err)
				}
				return d
			}}, codes.PermissionDenied, wrong, "DevID.Attest",
		},
		{"another's certificate", lies(honest, func(d *attestor.SignedDevID) {
			o, err := other.DevID(&attestor.DevIDRequest{})
			if err != nil {
				t.Error(err)
			}
			d.Chain = o.Chain
		}), codes.PermissionDenied, wrong, "the key in its certificate"},
		{"a signature by the AK in the DevID's place", lies(honest, func(d *attestor.SignedDevID) {
			d.Signature = d.AttestSignature
		}), codes.PermissionDenied, wrong, "DevID.Signature"},
		{"a signature by the DevID in the AK's place", lies(honest, func(d *attestor.SignedDevID) {
			d.AttestSignature = d.Signature
		}), codes.PermissionDenied, wrong, "DevID.AttestSignature"},
		{"an expired intermediate CA", truth(below), codes.PermissionDenied, refused, `the certificate of the CA \"CN=Expired\" has expired`},
		{"a CA of the same name", truth(otherCA), codes.PermissionDenied, refused, "but another key"},
		{"a CA's certificate", truth(change(func(c *x509.Certificate) {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
		})), codes.PermissionDenied, refused, "the DevID certificate is a CA certificate"},
		{"expired", truth(change(func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Hour)
		})), codes.PermissionDenied, refused, "the DevID certificate has expired"},
		{"a chain of 17", lies(honest, func(d *attestor.SignedDevID) {
			d.Chain = append(d.Chain, slices.Repeat([][]byte{s.devices.Certificate.Raw}, 16)...)
		}), codes.InvalidArgument, "DevID.Chain", ""},
		{"a chain of 16", lies(honest, func(d *attestor.SignedDevID) {
			d.Chain = append(d.Chain, slices.Repeat([][]byte{s.devices.Certificate.Raw}, 15)...)
		}), codes.OK, "", ""},
		{"a fat certificate", lies(honest, func(d *attestor.SignedDevID) {
			d.Chain = append(d.Chain, make([]byte, 9<<10))
		}), codes.InvalidArgument, "DevID.Chain", ""},
		{"a certificate of 600 values", truth(change(func(c *x509.Certificate) {
			for range 600 {
				c.Subject.ExtraNames = append(c.Subject.ExtraNames, pkix.AttributeTypeAndValue{Type: []int{2, 5, 4, 11}, Value: "u"})
			}
		})), codes.InvalidArgument, "DevID.Chain", ""},
		{"a chain of 64 KiB, in base64", lies(honest, func(d *attestor.SignedDevID) {
			long := append(slices.Clone(d.Chain[0]), make([]byte, 7<<10)...)
			d.Chain = append(d.Chain, slices.Repeat([][]byte{long}, 6)...)
		}), codes.InvalidArgument, "DevID.Chain", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := serve(t)
			p.configure(t, s.text+`allow "laptops" { all = ["laptops", "vendors"] }`)
			_, err := p.attestLiar(t, tt.tpm)
			wantStatus(t, err, tt.code, tt.told)
			if tt.why != "" && !p.log.has(tt.why) {
				t.Errorf("the log does not say %q: %v", tt.why, p.log.find(t, "Attestation"))
			}
			if n := p.Answers(); n != 0 {
				t.Errorf("%d bytes of answers are still counted", n)
			}
		})
	}
}

// A revoked DevID is refused by what the CRL says, at the next attestation; its machine, whose
// EK is on a list, stays welcome by a rule that asks for nothing more.
func TestRevokedDevID(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Device CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1},
	}
	sign := func(c *x509.Certificate, pub any) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, template, pub, key)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	ca := sign(template, key.Public())
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour)}
	list.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(3), RevocationTime: time.Now()}}
	crl, err := x509.CreateRevocationList(rand.Reader, list, template, key)
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(crl) }))
	t.Cleanup(web.Close)
	s := newSite(t)
	tpm := s.tpm(t, s.devID())
	path := hashDir(t, tpm) // for the CA, too: a list passes over what is no entry
	caPath := caFileOf(t, ca)
	p := serve(t)
	p.configure(t, oneHashDir(path)+fmt.Sprintf(
		`source "devid" "laptops" { ca_path = %q aia_hosts = [%q] crl = "required" } `,
		caPath, strings.TrimPrefix(web.URL, "http://"))+`allow "laptops" { all = ["factory", "laptops"] }`)
	for serial, code := range map[int64]codes.Code{2: codes.OK, 3: codes.PermissionDenied} {
		leaf := sign(&x509.Certificate{
			SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
			KeyUsage: x509.KeyUsageDigitalSignature, CRLDistributionPoints: []string{web.URL + "/crl"},
		}, tpm.DevIDKey().Public())
		_, err := p.attestLiar(t, &liar{tpm, func(d *attestor.SignedDevID) *attestor.SignedDevID {
			d.Chain = [][]byte{leaf}
			return d
		}})
		wantStatus(t, err, code, "")
	}
	if !p.log.has("the DevID certificate has been revoked, according to the CRL at") {
		t.Error("the log does not say that it has been revoked")
	}
	p.configure(t, oneHashDir(path)+fmt.Sprintf(`source "devid" "laptops" { ca_path = %q } `, caPath)+
		`allow "all" { any = ["factory"] } allow "laptops" { all = ["factory", "laptops"] }`)
	if _, err := p.attestTPM(t, tpm); err != nil { // its own certificate is of a CA that is not configured
		t.Errorf("by its EK alone: %v", err)
	}
}

func caFileOf(t *testing.T, der []byte) string {
	t.Helper()
	dir := t.TempDir()
	list(t, dir, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return dir + "/ca.pem"
}

// The configuration that is current when the answer arrives decides. If that one needs a DevID for
// which the server has not asked the machine, the server tells the agent to try again; otherwise the
// agent would give up for good.
func TestDevIDChangesMeanwhile(t *testing.T) {
	s := newSite(t)
	laptop, rack := s.tpm(t, s.devID()), s.tpm(t, nil)
	without := strings.Split(s.text, "\n")[0] + "\n"
	with := s.text + `allow "laptops" { all = ["laptops", "vendors"] }`
	for _, tt := range []struct {
		name, before, after string
		tpm                 *attestortest.TPM
		code                codes.Code
		told                string
	}{
		{"the same", with, with, laptop, codes.OK, ""},
		{"a DevID", without, with, laptop, codes.Unavailable, "cannot tell right now"},
		{"a DevID, of an agent that has none", without, with, rack, codes.PermissionDenied, "not admitted"},
		{"no DevID", with, without, laptop, codes.OK, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := serve(t)
			p.configure(t, tt.before)
			_, err := p.attest(t, tt.tpm.Payload(t), func(c []byte) []byte {
				p.configure(t, tt.after)
				return tt.tpm.Answer(t, c)
			})
			wantStatus(t, err, tt.code, tt.told)
		})
	}
}
