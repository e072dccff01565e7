package e2e_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// devIDs are the machines of the example devid, and their CA.
type devIDs struct {
	site   *site
	ca     *x509.Certificate
	key    crypto.Signer
	folder string // with devid-ca.pem, devid-ca.key and what openssl ca needs
	host   string // of the CRL

	mu  sync.Mutex
	due time.Time // when the last CRL that was fetched ends

	laptop machine // with a DevID by the tool
	moved  machine // provisioned for SPIRE's tpm_devid
	bare   machine // listed as the laptops are, without a DevID
	rack   machine
}

// layDevID makes a CA as the README says, publishes its CRL, and gives the machines their DevIDs.
func (s *site) layDevID() {
	s.t.Helper()
	d := &devIDs{site: s, folder: s.folder("issuer")}
	s.devIDs = d
	d.makeCA()
	server := httptest.NewServer(http.HandlerFunc(d.serveCRL))
	s.t.Cleanup(server.Close)
	d.host = strings.TrimPrefix(server.URL, "http://")
	s.replacements = append(s.replacements, "pki.example.org", d.host)
	ca := swtpmtest.NewCA(s.t)
	for _, m := range []*machine{&d.laptop, &d.moved, &d.bare, &d.rack} {
		*m = s.machine(ca)
	}
	for _, m := range []machine{d.laptop, d.moved, d.bare} {
		s.put("/srv/tpm/hashes/"+m.hash, "")
	}
	s.put("/etc/tpm/racks.txt", d.rack.hash+" rack-12\n")
	d.laptop.devID = s.folder("devid")
	d.issue()
	d.moved.devID = s.folder("tpmdevid")
	d.provision(d.moved)
}

func (d *devIDs) at(name string) string { return filepath.Join(d.folder, name) }

func (d *devIDs) makeCA() {
	s := d.site
	s.t.Helper()
	s.sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "7300",
		"-keyout", d.at("devid-ca.key"), "-out", d.at("devid-ca.pem"), "-subj", "/O=Example/CN=Example Device CA",
		"-addext", "keyUsage=critical,keyCertSign,cRLSign")
	var err error
	if d.ca, err = x509.ParseCertificate(d.block("devid-ca.pem")); err != nil {
		s.t.Fatal(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(d.block("devid-ca.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		s.t.Fatalf("a key of the type %T", key)
	}
	d.key = signer
	s.write(d.at("ca.cnf"), s.read("ca.cnf"))
	s.write(d.at("revoked.txt"), "")
	s.write(d.at("crlnumber"), "01\n")
	s.put("/etc/tpm/devid-ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: d.ca.Raw})))
}

// block returns the content of the first PEM block of a file.
func (d *devIDs) block(name string) []byte {
	text, err := os.ReadFile(d.at(name))
	if err != nil {
		d.site.t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		d.site.t.Fatalf("no PEM in %s", name)
	}
	return block.Bytes
}

// crlLife is how long a CRL is valid. A server keeps what it has fetched for a minute at least.
const crlLife = 61 * time.Second

// serveCRL serves a new CRL each time, by the command of the README that runs from a timer.
func (d *devIDs) serveCRL(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out, err := d.openssl(r.Context(), "-gencrl", "-crlsec", strconv.Itoa(int(crlLife.Seconds()))).Output()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	d.due = time.Now().Add(crlLife)
	_, _ = w.Write(out) // the server may have gone
}

func (d *devIDs) openssl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "openssl", append([]string{"ca", "-config", "ca.cnf"}, args...)...)
	cmd.Dir = d.folder
	return cmd
}

// revoke revokes a machine's DevID as the README says.
func (d *devIDs) revoke(m machine) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if out, err := d.openssl(d.site.ctx, "-revoke", m.devID+"/devid.pem").CombinedOutput(); err != nil {
		d.site.t.Fatalf("openssl ca -revoke: %v\n%s", err, out)
	}
}

// nextUpdate waits until the CRL that the server has fetched has ended.
func (d *devIDs) nextUpdate() {
	err := spiretest.Poll(d.site.ctx, func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if time.Now().Before(d.due) {
			return errors.New("the CRL is still valid")
		}
		return nil
	})
	if err != nil {
		d.site.t.Fatal(err)
	}
}

// certificate returns a machine's DevID.
func (d *devIDs) certificate(m machine) *x509.Certificate {
	t := d.site.t
	t.Helper()
	text, err := os.ReadFile(filepath.Join(m.devID, "devid.pem"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (d *devIDs) crlURL() string { return "http://" + d.host + "/devid.crl" }

// tool runs tpm-attestor devid.
func (d *devIDs) tool(args ...string) {
	s := d.site
	s.t.Helper()
	out, err := exec.CommandContext(s.ctx, s.programs.Tool, append([]string{"devid"}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("tpm-attestor devid %q: %v\n%s", args, err, out)
	}
}

// issue gives the laptop its DevID, with the commands of the README and the server's configuration.
func (d *devIDs) issue() {
	d.site.write(d.at("server.conf"), d.site.moved(d.site.read("server.conf")))
	config := []string{"--config", d.at("server.conf"), "--state", d.at("laptop.state")}
	dir, device := d.laptop.devID, d.laptop.tpm.Device
	d.tool("request", dir, "--device", device)
	d.tool(append([]string{"issue", "challenge", dir + "/request.json", "--to", d.at("challenge.json")}, config...)...)
	d.tool("request", dir, "--device", device, "--challenge", d.at("challenge.json"))
	d.tool(append([]string{
		"issue", "certificate", dir + "/answer.json", "--ca-cert", d.at("devid-ca.pem"), "--ca-key", d.at("devid-ca.key"),
		"--subject", "CN=laptop-17", "--crl-url", d.crlURL(), "--to", dir + "/devid.pem",
	}, config...)...)
}

// provision makes a DevID by the conventions of SPIRE's tpm_devid: an RSA key below the SRK of the
// template H-1, its blobs without their sizes, and a certificate that was issued for its public key.
func (d *devIDs) provision(m machine) {
	t := d.site.t
	t.Helper()
	tpm, err := linuxudstpm.Open(m.tpm.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	srk := tpm2.RSASRKTemplate
	srk.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	parent, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(srk)}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	made, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: parent.ObjectHandle, Name: parent.Name, Auth: tpm2.PasswordAuth(nil)},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{
				FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
			},
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
				KeyBits: 2048,
				Scheme: tpm2.TPMTRSAScheme{
					Scheme:  tpm2.TPMAlgRSASSA,
					Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
				},
			}),
		}),
	}.Execute(tpm)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: parent.ObjectHandle}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	area, err := made.OutPublic.Contents()
	if err != nil {
		t.Fatal(err)
	}
	key, err := tpm2.Pub(*area)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject: pkix.Name{CommonName: "laptop-4"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		CRLDistributionPoints: []string{d.crlURL()},
	}, d.ca, key, d.key)
	if err != nil {
		t.Fatal(err)
	}
	d.site.write(m.devID+"/devid.priv", string(made.OutPrivate.Buffer))
	d.site.write(m.devID+"/devid.pub", string(made.OutPublic.Bytes()))
	d.site.write(m.devID+"/devid.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
}

// wantDevID checks what the server knows of a laptop.
func (d *devIDs) wantDevID(server *spiretest.Server, m machine, name string) {
	_, known := d.site.admitted(server, m)
	cert := d.certificate(m)
	sum := sha256.Sum256(cert.Raw)
	d.site.wantSelectors(known, "pub_hash:"+m.hash, "rule:laptops", "source:inventory", "source:laptops",
		"devid:subject:cn:"+name, "devid:issuer:cn:Example Device CA", "devid:issuer:o:Example",
		"devid:serial:"+cert.SerialNumber.Text(16), "devid:fingerprint:"+hex.EncodeToString(sum[:]))
}

// A DevID that the tool has issued is admitted, and so is one that was provisioned for tpm_devid, beside a
// machine with only an EK. A laptop without its DevID is refused. Without a restart, the server refuses a laptop at
// once when it is removed from the inventory, and when its DevID is revoked, as soon as the server's CRL has expired.
func (s *site) devID(server *spiretest.Server) {
	d := s.devIDs
	d.wantDevID(server, d.laptop, "laptop-17")
	d.revoke(d.laptop)
	d.wantDevID(server, d.moved, "laptop-4")
	_, known := s.admitted(server, d.rack)
	s.wantSelectors(known, "pub_hash:"+d.rack.hash, "rule:racks", "source:racks", "name:rack-12")
	if line := s.refused(server, d.bare); !strings.Contains(line, "has proved no DevID") {
		s.t.Errorf("why a machine without a DevID is refused: %s", line)
	}
	if err := os.Remove(s.root + "/srv/tpm/hashes/" + d.moved.hash); err != nil {
		s.t.Fatal(err)
	}
	if line := d.evicted(server, d.moved); !strings.Contains(line, "inventory: not listed") {
		s.t.Errorf("why a machine that is not listed any more is refused: %s", line)
	}
	s.put("/srv/tpm/hashes/"+d.moved.hash, "")
	d.nextUpdate()
	if line := d.evicted(server, d.laptop); !strings.Contains(line, "revoked") {
		s.t.Errorf("why a revoked DevID is refused: %s", line)
	}
	d.wantDevID(server, d.moved, "laptop-4")
}

// evicted evicts a machine, and returns the line with which it is refused afterwards.
func (d *devIDs) evicted(server *spiretest.Server, m machine) string {
	s := d.site
	s.t.Helper()
	s.evict(server, s.agents(server)["spiffe://example.org/spire/agent/tpm/"+m.hash])
	return s.refused(server, m)
}
