package tpm

import (
	"crypto"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// signingKey is the template by which SPIRE's tpm_devid has keys made: any signing key that stays
// in the TPM and is used with a password.
func signingKey(keyType attestor.KeyType, scheme, hash tpm2.TPMAlgID) tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, SignEncrypt: true,
		},
	}
	var details tpm2.TPMUAsymScheme
	switch scheme {
	case tpm2.TPMAlgRSASSA:
		details = tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash})
	case tpm2.TPMAlgRSAPSS:
		details = tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: hash})
	case tpm2.TPMAlgECDSA:
		details = tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})
	}
	rsa := map[attestor.KeyType]tpm2.TPMKeyBits{attestor.RSA2048: 2048, attestor.RSA3072: 3072}
	if bits, ok := rsa[keyType]; ok {
		p.Type = tpm2.TPMAlgRSA
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{
			KeyBits: bits, Scheme: tpm2.TPMTRSAScheme{Scheme: scheme, Details: details},
		})
		return p
	}
	curve := tpm2.TPMECCNistP256
	if keyType == attestor.P384 {
		curve = tpm2.TPMECCNistP384
	}
	p.Type = tpm2.TPMAlgECC
	p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSECCParms{
		CurveID: curve, Scheme: tpm2.TPMTECCScheme{Scheme: scheme, Details: details},
	})
	return p
}

// zeroUnique returns the template of a storage root key in the TCG's provisioning guidance, whose unique field is
// zeros. A TPM makes another key from it than from the templates H-1 and H-2.
func zeroUnique(p tpm2.TPMTPublic) tpm2.TPMTPublic {
	if p.Type == tpm2.TPMAlgRSA {
		return tpm2.RSASRKTemplate
	}
	return tpm2.ECCSRKTemplate
}

// provisioning makes DevIDs as SPIRE's tpm_devid has them.
type provisioning struct {
	tb     testing.TB
	device string
	dir    string
	ca     *attestortest.CA
	owner  string // the owner hierarchy's password
}

func provisionOn(tb testing.TB, device string) *provisioning {
	tb.Helper()
	return &provisioning{tb: tb, device: device, dir: tb.TempDir(), ca: attestortest.NewCA(tb, "devices")}
}

func (p *provisioning) ownerAuth() tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth([]byte(p.owner))}
}

// files makes a key under a parent and returns its configuration: the certificate and the blobs are
// in files.
func (p *provisioning) files(parent, template tpm2.TPMTPublic, password string) *DevIDConfig {
	p.tb.Helper()
	var private, public []byte
	direct(p.tb, p.device, func(c transport.TPM) {
		random := []byte("a random password") // tpm_devid gives the SRK one: it is not part of the key
		srk := must(p.tb, c, tpm2.CreatePrimary{
			PrimaryHandle: p.ownerAuth(), InPublic: tpm2.New2B(parent),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: random},
			}},
		})
		rsp := must(p.tb, c, tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: srk.ObjectHandle, Name: srk.Name, Auth: tpm2.PasswordAuth(random)},
			InPublic:     tpm2.New2B(template),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: []byte(password)},
			}},
		})
		must(p.tb, c, tpm2.FlushContext{FlushHandle: srk.ObjectHandle})
		private, public = rsp.OutPrivate.Buffer, rsp.OutPublic.Bytes()
	})
	return &DevIDConfig{
		CertPath: p.certify(public), Password: password,
		PrivPath: p.write("devid.priv", private), PubPath: p.write("devid.pub", public),
	}
}

func (p *provisioning) write(name string, b []byte) string {
	p.tb.Helper()
	dir, err := os.MkdirTemp(p.dir, "devid")
	if err != nil {
		p.tb.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		p.tb.Fatal(err)
	}
	return path
}

// certify returns the path of a certificate for a public area, and the CA's behind it.
func (p *provisioning) certify(public []byte) string {
	p.tb.Helper()
	der := p.ca.IssueDevID(p.tb, publicKey(p.tb, public), attestortest.Certificate{})
	leaf := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return p.write("devid.pem", slices.Concat([]byte("subject=device\n"), leaf, []byte("\nissuer\n"), p.ca.PEM()))
}

func publicKey(tb testing.TB, public []byte) crypto.PublicKey {
	tb.Helper()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil {
		tb.Fatal(err)
	}
	pub, err := tpm2.Pub(*area)
	if err != nil {
		tb.Fatal(err)
	}
	return pub
}

// primary makes a primary key of a hierarchy, persistent if handle is not zero, and returns its
// public area.
func (p *provisioning) primary(hierarchy tpm2.AuthHandle, template tpm2.TPMTPublic, handle tpm2.TPMHandle) []byte {
	p.tb.Helper()
	var public []byte
	direct(p.tb, p.device, func(c transport.TPM) {
		rsp := must(p.tb, c, tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)})
		public = rsp.OutPublic.Bytes()
		if handle != 0 {
			must(p.tb, c, tpm2.EvictControl{
				Auth:             p.ownerAuth(),
				ObjectHandle:     tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
				PersistentHandle: handle,
			})
		}
		must(p.tb, c, tpm2.FlushContext{FlushHandle: rsp.ObjectHandle})
	})
	return public
}

// proved runs one attestation and returns the DevID that the server has verified.
func proved(device *TPM, tb testing.TB) (*attestor.DevID, error) {
	tb.Helper()
	a, err := device.Begin(tb.Context())
	if err != nil {
		return nil, err
	}
	_, proven, err := answer(a, attestor.Ask{DevID: true, Quote: eightPCRs()})
	if err != nil {
		return nil, err
	}
	if proven.DevID == nil || proven.Quote == nil {
		return nil, fmt.Errorf("the server has %v, the agent offers %v", proven, a.Claim.Can)
	}
	return proven.DevID, nil
}

// A key that was provisioned for SPIRE's tpm_devid is proved unchanged: of each type and scheme,
// under either SRK, with a password or without, its blobs with their size or without. A TPM has
// room for three keys, and nothing is left in it.
func TestDevIDFromFiles(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	rsa, ecc := srkTemplates(tpm2.TPMAlgRSA)[0], srkTemplates(tpm2.TPMAlgECC)[0]
	for name, test := range map[string]struct {
		parent   tpm2.TPMTPublic
		key      tpm2.TPMTPublic
		password string
		sized    bool
	}{
		"RSA":             {rsa, signingKey(attestor.RSA2048, tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256), "", false},
		"RSA, password":   {rsa, signingKey(attestor.RSA2048, tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256), "devid", false},
		"RSA, sizes":      {rsa, signingKey(attestor.RSA2048, tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256), "", true},
		"RSAPSS":          {rsa, signingKey(attestor.RSA2048, tpm2.TPMAlgRSAPSS, tpm2.TPMAlgSHA384), "", false},
		"RSA, no scheme":  {rsa, signingKey(attestor.RSA2048, tpm2.TPMAlgNull, 0), "", false},
		"RSA 3072":        {rsa, signingKey(attestor.RSA3072, tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA384), "", false},
		"ECC":             {ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "", false},
		"ECC, password":   {ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "devid", false},
		"ECC, sizes":      {ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "", true},
		"ECC, no scheme":  {ecc, signingKey(attestor.P256, tpm2.TPMAlgNull, 0), "", false},
		"P-384":           {ecc, signingKey(attestor.P384, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA384), "", false},
		"ECC under RSA":   {rsa, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "", false},
		"RSA under ECC":   {ecc, signingKey(attestor.RSA2048, tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256), "", false},
		"P-384, SHA-256":  {ecc, signingKey(attestor.P384, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "", false},
		"P-384, password": {ecc, signingKey(attestor.P384, tpm2.TPMAlgNull, 0), strings.Repeat("p", 32), true},
	} {
		t.Run(name, func(t *testing.T) {
			p := provisionOn(t, tpm.Device)
			config := p.files(test.parent, test.key, test.password)
			if test.sized {
				addSize(t, config.PrivPath)
				addSize(t, config.PubPath)
			}
			device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: config})
			for range 2 {
				got, err := proved(device, t)
				if err != nil {
					t.Fatal(err)
				}
				if len(got.Chain) != 2 || !slices.Equal(got.Chain[1], p.ca.Certificate.Raw) {
					t.Errorf("a chain of %d", len(got.Chain))
				}
				wantNothingLoaded(t, tpm.Device)
			}
		})
	}
}

// addSize makes the content of a file a TPM2B structure, as tpm2-tools write it.
func addSize(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// The agent loads a key below the persistent SRK. If another SRK has wrapped the key, the agent has the
// TPM make that SRK, which alone needs the owner's password.
func TestParentsOfADevID(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	ecc := srkTemplates(tpm2.TPMAlgECC)[0]
	p.primary(p.ownerAuth(), zeroUnique(ecc), srkHandle)
	below := p.files(zeroUnique(ecc), signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "")
	beside := p.files(ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "")
	direct(t, tpm.Device, func(c transport.TPM) {
		must(t, c, tpm2.HierarchyChangeAuth{
			AuthHandle: p.ownerAuth(), NewAuth: tpm2.TPM2BAuth{Buffer: []byte("owner")},
		})
	})
	for name, test := range map[string]struct {
		devid   *DevIDConfig
		owner   string
		created int
		fails   string
	}{
		"below the persistent SRK":                {below, "", 0, ""},
		"beside the persistent SRK":               {beside, "owner", 1, ""},
		"beside the persistent SRK, no password":  {beside, "", 1, "set owner_password"},
		"beside the persistent SRK, another word": {beside, "proprietor", 1, "set owner_password"},
	} {
		t.Run(name, func(t *testing.T) {
			device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, OwnerPassword: test.owner, DevID: test.devid})
			a, err := device.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			tap := new(tap)
			tap.listen(device)
			_, proven, err := answer(a, attestor.Ask{DevID: true})
			if (err == nil) != (test.fails == "") || err == nil && proven.DevID == nil {
				t.Fatalf("%v, %v", proven, err)
			}
			if err != nil && (!strings.Contains(err.Error(), test.fails) || !errors.Is(err, ErrSetup)) {
				t.Error(err)
			}
			if got := count(tap.commands, tpm2.TPMCCCreatePrimary); got != test.created {
				t.Errorf("%d keys are made, want %d", got, test.created)
			}
			wantNothingLoaded(t, tpm.Device)
		})
	}
}

// The agent uses a persistent key by its handle, and does not evict it.
func TestDevIDAtAHandle(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	public := p.primary(p.ownerAuth(), signingKey(attestor.P384, tpm2.TPMAlgNull, 0), 0x81000010)
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: &DevIDConfig{
		CertPath: p.certify(public), Handle: "0x81000010",
	}})
	for range 2 {
		if _, err := proved(device, t); err != nil {
			t.Fatal(err)
		}
		wantNothingLoaded(t, tpm.Device)
	}
}

// An IDevID is made again from the TCG's template, with a scheme of its own or without, and the
// policy in the template admits its certification for whoever may use the endorsement hierarchy.
func TestIDevID(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	endorsement := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth([]byte("endorsement"))}
	direct(t, tpm.Device, func(c transport.TPM) {
		must(t, c, tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("endorsement")},
		})
	})
	for _, name := range idevidNames {
		templates, err := idevidTemplates(name)
		if err != nil {
			t.Fatal(err)
		}
		for i, template := range templates {
			t.Run(fmt.Sprint(name, i), func(t *testing.T) {
				public := p.primary(endorsement, template, 0)
				device := newTPM(t, Config{
					Device: tpm.Device, EK: attestor.P256, EndorsementPassword: "endorsement",
					DevID: &DevIDConfig{CertPath: p.certify(public), IDevID: name},
				})
				for range 2 {
					if _, err := proved(device, t); err != nil {
						t.Fatal(err)
					}
					wantNothingLoaded(t, tpm.Device)
				}
			})
		}
	}
	// Such a key may be persistent as well.
	templates, err := idevidTemplates(idevidP256)
	if err != nil {
		t.Fatal(err)
	}
	public := p.primary(endorsement, templates[0], 0x81020000)
	device := newTPM(t, Config{
		Device: tpm.Device, EK: attestor.P256, EndorsementPassword: "endorsement",
		DevID: &DevIDConfig{CertPath: p.certify(public), Handle: "0x81020000"},
	})
	if _, err := proved(device, t); err != nil {
		t.Error(err)
	}
	wantNothingLoaded(t, tpm.Device)
}

// The policies of IDevIDs are the digests that the TCG has published ("TPM 2.0 Keys for Device
// Identity and Attestation", 7.3.6.6, table 19): a TPM derives another key from any other.
func TestIDevIDPolicies(t *testing.T) {
	for hash, want := range map[tpm2.TPMAlgID]string{
		tpm2.TPMAlgSHA256: "ad6b3a2284fd698a0710bf5cc1b9bdf15e2532e3f601fa4b93a6a8fa8de579ea",
		tpm2.TPMAlgSHA384: "4db1aa836d0b5615df6ee53a40ef70c61c217f4303d44695" +
			"925972bc927006cfa5cbdf6dc18c4dbe329b2f1542c3dd33",
	} {
		branches, err := idevidPolicy(hash)
		if err != nil {
			t.Fatal(err)
		}
		policy, err := policyDigest(hash, tpm2.PolicyOr{PHashList: branches})
		if got := hex.EncodeToString(policy.Buffer); err != nil || got != want {
			t.Errorf("%#x: %s, %v", hash, got, err)
		}
	}
}

// A DevID costs an attestation a load, a certification and a signature; making its parent or an
// IDevID again is not repeated. Nothing is certified or signed before the TPM has activated the
// credential, and nothing at all is done for a server that does not ask.
func TestCommandsOfADevID(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	ecc := srkTemplates(tpm2.TPMAlgECC)[0]
	files := p.files(ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "")
	public := p.primary(p.ownerAuth(), signingKey(attestor.P256, tpm2.TPMAlgNull, 0), 0x81000010)
	handle := &DevIDConfig{CertPath: p.certify(public), Handle: "0x81000010"}
	templates, err := idevidTemplates(idevidP384)
	if err != nil {
		t.Fatal(err)
	}
	endorsement := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	idevid := &DevIDConfig{CertPath: p.certify(p.primary(endorsement, templates[0], 0)), IDevID: idevidP384}
	const flush, policy = tpm2.TPMCCFlushContext, tpm2.TPMCCPolicyCommandCode
	for _, test := range []struct {
		name  string
		devid *DevIDConfig
		more  []tpm2.TPMCC // between the activation and the flushing of the AK
	}{
		{"files", files, []tpm2.TPMCC{tpm2.TPMCCContextLoad, tpm2.TPMCCCertify, tpm2.TPMCCSign, flush}},
		{"handle", handle, []tpm2.TPMCC{tpm2.TPMCCCertify, tpm2.TPMCCSign}},
		{"IDevID", idevid, []tpm2.TPMCC{
			tpm2.TPMCCContextLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCPolicySecret, policy, tpm2.TPMCCPolicyOR,
			tpm2.TPMCCCertify, tpm2.TPMCCSign, flush,
		}},
	} {
		device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: test.devid})
		tap := new(tap)
		tap.listen(device)
		if _, err := proved(device, t); err != nil {
			t.Fatal(err)
		}
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		tap.commands, tap.opened = nil, 0
		if _, _, err := answer(a, attestor.Ask{}); err != nil {
			t.Fatal(err)
		}
		without := tap.commands
		tap.commands, tap.opened = nil, 0
		if _, proven, err := answer(a, attestor.Ask{DevID: true}); err != nil || proven.DevID == nil {
			t.Fatal(err)
		}
		i := slices.Index(without, tpm2.TPMCCActivateCredential) + 1
		want := slices.Concat(without[:i], []tpm2.TPMCC{flush}, test.more, []tpm2.TPMCC{flush})
		if len(without) != i+2 || !slices.Equal(tap.commands, want) || tap.opened != 1 {
			t.Errorf("%s: with a DevID\n%#x\nwant\n%#x; the TPM is opened %d times", test.name, tap.commands, want, tap.opened)
		}
		// A server that is not ours cannot make a credential.
		tap.commands = nil
		done, err := a.Activate(t.Context(), &attestor.Activation{
			Credential: make([]byte, 64), Secret: make([]byte, 64),
			DevID: &attestor.DevIDRequest{QualifyingData: make([]byte, 32), Message: []byte("sign this")},
		})
		if err == nil || done != nil || count(tap.commands, tpm2.TPMCCCertify)+count(tap.commands, tpm2.TPMCCSign) > 0 {
			t.Errorf("%s: without an activation: %v, %#x", test.name, done, tap.commands)
		}
		wantNothingLoaded(t, tpm.Device)
	}
}

// After a restart of the TPM, which spoils saved contexts, a DevID is proved as before.
func TestDevIDAfterARestart(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	ecc := srkTemplates(tpm2.TPMAlgECC)[0]
	templates, err := idevidTemplates(idevidP256)
	if err != nil {
		t.Fatal(err)
	}
	endorsement := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	for name, devid := range map[string]*DevIDConfig{
		"files":  p.files(ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), ""),
		"IDevID": {CertPath: p.certify(p.primary(endorsement, templates[0], 0)), IDevID: idevidP256},
	} {
		device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: devid})
		if _, err := proved(device, t); err != nil {
			t.Fatal(err)
		}
		restart(t, tpm)
		_, err := proved(device, t)
		if errors.Is(err, ErrNotReady) { // the next one starts anew
			_, err = proved(device, t)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLoaded(t, tpm.Device)
	}
}

// restart restarts a TPM as a machine does that is shut down. A TPM that loses its power after the use
// of a key that is subject to the lockout counts a wrong password (part 1, 19.8.6).
func restart(t *testing.T, tpm *swtpmtest.TPM) {
	t.Helper()
	direct(t, tpm.Device, func(c transport.TPM) { must(t, c, tpm2.Shutdown{ShutdownType: tpm2.TPMSUClear}) })
	tpm.Restart()
}

// A DevID that cannot be used fails the attestation before anything is sent, with what is wrong
// with which file, and what to do.
func TestUnusableDevIDs(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	ecc := srkTemplates(tpm2.TPMAlgECC)[0]
	template := signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256)
	good, other := p.files(ecc, template, ""), p.files(ecc, template, "")
	key := func(change func(*tpm2.TPMAObject)) func(*DevIDConfig) {
		bad := template
		change(&bad.ObjectAttributes)
		return func(d *DevIDConfig) { *d = *p.files(ecc, bad, "") }
	}
	cert, err := os.ReadFile(good.CertPath)
	if err != nil {
		t.Fatal(err)
	}
	chain := func(text ...[]byte) func(*DevIDConfig) {
		return func(d *DevIDConfig) { d.CertPath = p.write("devid.pem", slices.Concat(text...)) }
	}
	block := func(kind string, b []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}) }
	for name, test := range map[string]struct {
		change func(*DevIDConfig)
		want   string
	}{
		"no certificate":           {func(d *DevIDConfig) { d.CertPath += "x" }, "devid.pemx: no such file or directory: provision the machine, or correct cert_path"},
		"a folder":                 {func(d *DevIDConfig) { d.CertPath = p.dir }, "not a regular file"},
		"an empty file":            {chain(), "no certificate: the file has to hold"},
		"no PEM":                   {chain([]byte("certificate")), "no certificate: the file has to hold"},
		"a private key":            {chain(cert, block("PRIVATE KEY", []byte("x"))), `a PEM block of the type "PRIVATE KEY"`},
		"a broken certificate":     {chain(block("CERTIFICATE", []byte("x"))), "not a certificate"},
		"a chain of 17":            {chain(cert, slices.Concat(slices.Repeat([][]byte{p.ca.PEM()}, 15)...)), "17 certificates, at most 16"},
		"a huge file":              {chain(make([]byte, maxDevIDChainFile+1)), "longer than 65536 bytes"},
		"a huge chain":             {chain(cert, slices.Concat(slices.Repeat([][]byte{fatCA(t)}, 6)...)), "certificates of 4"},
		"the CA first":             {chain(p.ca.PEM(), cert), "is not for the key in"},
		"another certificate":      {func(d *DevIDConfig) { d.CertPath = other.CertPath }, "use the certificate and the key of the same provisioning"},
		"another key":              {func(d *DevIDConfig) { d.PubPath, d.PrivPath = other.PubPath, other.PrivPath }, "is not for the key in"},
		"no private area":          {func(d *DevIDConfig) { d.PrivPath += "x" }, "correct priv_path"},
		"no public area":           {func(d *DevIDConfig) { d.PubPath += "x" }, "correct pub_path"},
		"a certificate as area":    {func(d *DevIDConfig) { d.PubPath = d.CertPath }, "its TPM2B_PUBLIC as the TPM has returned it"},
		"a huge public area":       {func(d *DevIDConfig) { d.PubPath = p.write("devid.pub", make([]byte, 5000)) }, "longer than 4096 bytes"},
		"an exportable key":        {key(func(a *tpm2.TPMAObject) { a.FixedTPM, a.FixedParent = false, false }), "fixedTPM is clear"},
		"a restricted key":         {key(func(a *tpm2.TPMAObject) { a.Restricted = true }), "restricted is set"},
		"a key with a policy":      {key(func(a *tpm2.TPMAObject) { a.AdminWithPolicy = true }), "a policy that this plugin does not know"},
		"a key without a password": {key(func(a *tpm2.TPMAObject) { a.UserWithAuth = false }), "userWithAuth is clear"},
		"no such handle":           {func(d *DevIDConfig) { *d = DevIDConfig{CertPath: d.CertPath, Handle: "0x81000099"} }, "or correct handle"},
		"another machine's IDevID": {func(d *DevIDConfig) { *d = DevIDConfig{CertPath: d.CertPath, IDevID: idevidP256} }, "is not for the IDevID"},
		"IDevID of another type":   {func(d *DevIDConfig) { *d = DevIDConfig{CertPath: d.CertPath, IDevID: idevidRSA2048} }, "is not for the IDevID"},
	} {
		t.Run(name, func(t *testing.T) {
			config := *good
			test.change(&config)
			device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: &config})
			a, err := device.Begin(t.Context())
			if a != nil || !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			wantNothingLoaded(t, tpm.Device)
		})
	}
}

func fatCA(t *testing.T) []byte {
	t.Helper()
	return attestortest.NewCA(t, "fat").NewCAWith(t, "fat", attestortest.Padding(7500)).PEM()
}

// The error for a key that another TPM has wrapped differs from the error for a wrong password.
func TestDevIDOfAnotherTPM(t *testing.T) {
	tpm, other := swtpmtest.Start(t, swtpmtest.Options{Blank: true}), swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	template := signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256)
	devid := provisionOn(t, other.Device).files(srkTemplates(tpm2.TPMAlgECC)[0], template, "")
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: devid})
	if _, err := proved(device, t); !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "no parent in this TPM") {
		t.Error(err)
	}
	wantNothingLoaded(t, tpm.Device)
}

// A wrong password is tried once: the TPM counts wrong ones, and agents attest again and again. A
// new configuration, or a key that was provisioned anew, is tried again.
func TestWrongPasswordOfADevID(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	ecc := srkTemplates(tpm2.TPMAlgECC)[0]
	template := signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256)
	right := p.files(ecc, template, "right")
	wrong := *right
	wrong.Password = "wrong"
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: &wrong})
	tap := new(tap)
	tap.listen(device)
	for i := range 3 {
		tap.commands = nil
		if _, err := proved(device, t); !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "password in the block devid") {
			t.Error(err)
		}
		if i > 0 && len(tap.commands) > 0 {
			t.Errorf("the TPM is asked again: %#x", tap.commands)
		}
		wantNothingLoaded(t, tpm.Device)
	}
	again := p.files(ecc, template, "wrong")
	for from, to := range map[string]string{
		again.CertPath: wrong.CertPath, again.PrivPath: wrong.PrivPath, again.PubPath: wrong.PubPath,
	} {
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := proved(device, t); err != nil {
		t.Errorf("a key that was provisioned anew: %v", err)
	}
}

// An agent that is killed while it proves a DevID leaves keys or a session in a TPM without a resource
// manager. A later agent has room all the same.
func TestKilledWithADevID(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	templates, err := idevidTemplates(idevidP256)
	if err != nil {
		t.Fatal(err)
	}
	endorsement := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	idevid := &DevIDConfig{CertPath: p.certify(p.primary(endorsement, templates[0], 0)), IDevID: idevidP256}
	files := p.files(srkTemplates(tpm2.TPMAlgECC)[0],
		signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "")
	for _, test := range []struct {
		name  string
		devid *DevIDConfig
		last  tpm2.TPMCC // after which the agent is killed
		nth   int        // which of these commands, from 1
		times int        // how often it is killed
	}{
		{"making the parent", files, tpm2.TPMCCCreatePrimary, 3, 4},
		{"loading", files, tpm2.TPMCCLoad, 1, 4},
		{"certifying", files, tpm2.TPMCCCertify, 1, 4},
		{"signing", files, tpm2.TPMCCSign, 1, 4},
		{"making the IDevID", idevid, tpm2.TPMCCCreatePrimary, 2, 4},
		{"authorizing the IDevID", idevid, tpm2.TPMCCPolicySecret, 2, 4},
		{"authorizing its certification", idevid, tpm2.TPMCCPolicyCommandCode, 1, 4},
		{"with its policy", idevid, tpm2.TPMCCPolicyOR, 1, 4},
		{"certifying the IDevID", idevid, tpm2.TPMCCCertify, 1, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			restart(t, tpm)
			fresh := func() *TPM { return newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: test.devid}) }
			for range test.times {
				killed, tap, n := fresh(), new(tap), 0
				tap.after = func(cc tpm2.TPMCC, _, rsp []byte) []byte {
					if cc == test.last && binary.BigEndian.Uint32(rsp[6:]) == 0 {
						n++
					}
					return rsp
				}
				tap.instead = func(int, tpm2.TPMCC, []byte) ([]byte, error) {
					if n >= test.nth {
						return nil, errFault
					}
					return nil, nil
				}
				tap.listen(killed)
				// After the signature, there is only what it does not wait for.
				if _, err := proved(killed, t); n < test.nth || err != nil && !errors.Is(err, errFault) {
					t.Fatalf("the agent was not killed: %v", err)
				}
			}
			if _, err := proved(fresh(), t); err != nil {
				t.Error(err)
			}
		})
	}
}

// A key of another program that has the form of the DevID's parent stays loaded, under its handle, if
// an agent makes room in a TPM that is full.
func TestForeignParentStays(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	ecc := srkTemplates(tpm2.TPMAlgECC)[0]
	devid := p.files(ecc, signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "")
	foreign := make(map[tpm2.TPMHandle]string)
	direct(t, tpm.Device, func(c transport.TPM) {
		for range 3 {
			rsp := must(t, c, tpm2.CreatePrimary{PrimaryHandle: p.ownerAuth(), InPublic: tpm2.New2B(zeroUnique(ecc))})
			foreign[rsp.ObjectHandle] = string(rsp.Name.Buffer)
		}
	})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: devid})
	for range 2 {
		if _, err := device.Begin(t.Context()); !errors.Is(err, ErrNotReady) {
			t.Errorf("a TPM that is full: %v", err)
		}
	}
	direct(t, tpm.Device, func(c transport.TPM) {
		for handle, name := range foreign {
			if rsp := must(t, c, tpm2.ReadPublic{ObjectHandle: handle}); string(rsp.Name.Buffer) != name {
				t.Errorf("another key is at %#x", uint32(handle))
			}
		}
	})
}

// A certificate for the IDevID's other form, with a scheme of its own or without, is noticed while
// the agent runs.
func TestIDevIDOfTheOtherForm(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	p := provisionOn(t, tpm.Device)
	endorsement := tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)}
	templates, err := idevidTemplates(idevidP384)
	if err != nil {
		t.Fatal(err)
	}
	first := p.certify(p.primary(endorsement, templates[0], 0))
	second := p.certify(p.primary(endorsement, templates[1], 0))
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, DevID: &DevIDConfig{CertPath: first, IDevID: idevidP384}})
	if _, err := proved(device, t); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(second, first); err != nil {
		t.Fatal(err)
	}
	if _, err := proved(device, t); err != nil {
		t.Error(err)
	}
}
