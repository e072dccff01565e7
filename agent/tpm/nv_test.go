package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// nvContent is an NV index for a test to define.
type nvContent struct {
	index      tpm2.TPMHandle
	content    []byte // nil leaves it unwritten
	attributes tpm2.TPMANV
	password   string
}

// readable are the attributes that the profile requires of EK certificates, as far as the
// owner can set them.
var readable = tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true, NoDA: true}

func defineNV(t *testing.T, device string, nv nvContent) {
	t.Helper()
	size := len(nv.content)
	if nv.content == nil {
		size = 100
	}
	direct(t, device, func(c transport.TPM) {
		defineSpace(t, c, nv, size)
		writeNV(t, c, nv.index, nv.content)
	})
}

// defineSpace defines an index without writing to it.
func defineSpace(t *testing.T, c transport.TPM, nv nvContent, size int) {
	t.Helper()
	must(t, c, tpm2.NVDefineSpace{
		AuthHandle: tpm2.TPMRHOwner,
		Auth:       tpm2.TPM2BAuth{Buffer: []byte(nv.password)},
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: nv.index, NameAlg: tpm2.TPMAlgSHA256, Attributes: nv.attributes, DataSize: uint16(size),
		}),
	})
}

// writeNV writes content to a defined index.
func writeNV(t *testing.T, c transport.TPM, index tpm2.TPMHandle, content []byte) {
	t.Helper()
	for offset := 0; offset < len(content); offset += 512 {
		pub := must(t, c, tpm2.NVReadPublic{NVIndex: index})
		must(t, c, tpm2.NVWrite{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
			NVIndex:    tpm2.NamedHandle{Handle: index, Name: pub.NVName},
			Data:       tpm2.TPM2BMaxNVBuffer{Buffer: content[offset:min(offset+512, len(content))]},
			Offset:     uint16(offset),
		})
	}
}

func undefineNV(t *testing.T, device string, index tpm2.TPMHandle) {
	t.Helper()
	direct(t, device, func(c transport.TPM) {
		pub := must(t, c, tpm2.NVReadPublic{NVIndex: index})
		must(t, c, tpm2.NVUndefineSpace{
			AuthHandle: tpm2.TPMRHOwner, NVIndex: tpm2.NamedHandle{Handle: index, Name: pub.NVName},
		})
	})
}

// ekCertificate returns a certificate for pub, in DER.
func ekCertificate(t *testing.T, pub any) []byte {
	t.Helper()
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7),
		Subject:      pkix.Name{CommonName: strings.Repeat("a long name ", 5)},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		// More than one TPM2_NV_Read returns, like some vendors' certificates.
		ExtraExtensions: []pkix.Extension{{Id: []int{1, 2, 3}, Value: bytes.Repeat([]byte{0xFF}, 1300)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, ca)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// If some NV indices cannot be read, or hold something else, the agent still finds the EK
// certificate at another index. One bad index must not cost a machine its certificate.
func TestBadIndicesDoNotHideTheGoodOne(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	ek := attest(t, newTPM(t, Config{Device: tpm.Device, EK: attestor.P384}))
	der := ekCertificate(t, ek.Public)
	setLocked := readable
	setLocked.AuthRead, setLocked.OwnerRead, setLocked.PolicyRead = false, false, true
	for _, nv := range []nvContent{
		{0x01C00002, []byte("no certificate"), readable, ""},
		{0x01C0000A, nil, readable, ""},
		{0x01C00012, der, setLocked, ""},
		{0x01C00014, der, tpm2.TPMANV{OwnerWrite: true, AuthRead: true, NoDA: true}, "a password"},
		{0x01C00016, append(append([]byte{0x10, 1, 0, byte(len(der) >> 8), byte(len(der))}, der...),
			bytes.Repeat([]byte{0xFF}, 100)...), readable, ""},
		{0x01C00018, make([]byte, 2000), readable, ""},
	} {
		defineNV(t, tpm.Device, nv)
	}
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P384})
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.Claim.Certificate, der) {
		t.Error("the good certificate was not found")
	}
	if _, err := finish(a); err != nil {
		t.Error(err)
	}
	want := []string{"0x01c00002", "nothing was written", "neither with its own", "password", "", "0x01c00018"}
	if len(a.Certificates) != len(want) {
		t.Fatalf("%d indices, want %d", len(a.Certificates), len(want))
	}
	for i, cert := range a.Certificates {
		switch {
		case want[i] == "":
			if cert.Err != nil || cert.Certificate == nil {
				t.Errorf("index %#x: %v", cert.Index, cert.Err)
			}
		case cert.Err == nil || cert.Certificate != nil || !strings.Contains(cert.Err.Error(), want[i]):
			t.Errorf("index %#x: %v, want %q", cert.Index, cert.Err, want[i])
		}
	}
}

// A certificate for another key, perhaps from before the TPM got a new EK, is not sent:
// the server would refuse the machine.
func TestCertificateOfAnotherKeyIsNotSent(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	defineNV(t, tpm.Device, nvContent{0x01C0000A, ekCertificate(t, other.Public()), readable, ""})
	if ek := attest(t, newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})); ek.Certificate != nil {
		t.Error("a certificate of another key was sent")
	}
}

// A certificate that is written while the agent runs is found at the next attestation. The
// agent need not be restarted.
func TestCertificateComesLater(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	ek := attest(t, device)
	if ek.Certificate != nil {
		t.Fatal("a blank TPM has a certificate")
	}
	defineNV(t, tpm.Device, nvContent{0x01C0000A, ekCertificate(t, ek.Public), readable, ""})
	if ek := attest(t, device); ek.Certificate == nil {
		t.Error("the certificate is not found")
	}
}

// So is a certificate at an index that existed before, unwritten.
func TestCertificateIsWrittenLater(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	ek := attest(t, device)
	content := ekCertificate(t, ek.Public)
	direct(t, tpm.Device, func(c transport.TPM) {
		defineSpace(t, c, nvContent{index: 0x01C0000A, attributes: readable}, len(content))
	})
	attest(t, device)
	direct(t, tpm.Device, func(c transport.TPM) { writeNV(t, c, 0x01C0000A, content) })
	if ek := attest(t, device); ek.Certificate == nil {
		t.Error("the certificate is not found")
	}
}

// If a certificate cannot be read for a while, perhaps since the TPM is locked out, the
// next attestation reads it again. The agent need not be restarted.
func TestCertificateIsReadAgain(t *testing.T) {
	for name, opts := range map[string]swtpmtest.Options{"persistent": {}, "transient": {Blank: true}} {
		t.Run(name, func(t *testing.T) {
			tpm := swtpmtest.Start(t, opts)
			if opts.Blank {
				ek := attest(t, newTPM(t, Config{Device: tpm.Device}))
				defineNV(t, tpm.Device, nvContent{0x01C00002, ekCertificate(t, ek.Public), readable, ""})
			}
			device := newTPM(t, Config{Device: tpm.Device})
			failing := true
			(&tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) {
				if failing && cc == tpm2.TPMCCNVRead {
					return response(tpm2.TPMRCLockout), nil
				}
				return nil, nil
			}}).listen(device)
			first := attest(t, device)
			if first.Certificate != nil {
				t.Fatal("a certificate that could not be read")
			}
			failing = false
			for i := range 2 {
				if ek := attest(t, device); ek.Certificate == nil || ek.Hash != first.Hash {
					t.Errorf("attestation %d: EK %x, want %x and its certificate", i, ek.Hash, first.Hash)
				}
			}
			wantNothingLoaded(t, tpm.Device)
		})
	}
}

// An index that only the owner may read is read with the owner's password. Without that
// password, the error names the key to set. The agent must not try a wrong password that
// counts towards the TPM's lockout while another authorization is left.
func TestOwnerReadsCertificate(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	ek := attest(t, newTPM(t, Config{Device: tpm.Device, EK: attestor.P256}))
	der := ekCertificate(t, ek.Public)
	defineNV(t, tpm.Device, nvContent{0x01C0000A, der, tpm2.TPMANV{OwnerWrite: true, OwnerRead: true}, ""})
	counting := tpm2.TPMANV{OwnerWrite: true, OwnerRead: true, AuthRead: true}
	defineNV(t, tpm.Device, nvContent{0x01C00014, der, counting, "a password"})
	setPasswords(t, tpm.Device, "", "owned")

	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, OwnerPassword: "owned"})
	report, err := device.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if report.EK.Certificate == nil {
		t.Error("the certificate that only the owner may read was not read")
	}
	for _, cert := range report.Certificates {
		if cert.Err != nil {
			t.Error(cert.Err)
		}
	}
	direct(t, tpm.Device, func(c transport.TPM) {
		rsp := must(t, c, tpm2.GetCapability{
			Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1,
		})
		props, err := rsp.CapabilityData.Data.TPMProperties()
		if err != nil || props.TPMProperty[0].Value != 0 {
			t.Errorf("the lockout counter stands at %v: %v", props, err)
		}
	})

	undefined := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	report, err = undefined.Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if e := report.Certificates[0].Err; !errors.Is(e, ErrSetup) || !strings.Contains(e.Error(), "owner_password") {
		t.Errorf("without the owner's password: %v", e)
	}
	wantNothingLoaded(t, tpm.Device)
}

// The EK is made with the vendor's EK nonce. Without it, the TPM would make another key
// than the one in the vendor's certificate. So a nonce that cannot be used is an error.
func TestEKNonce(t *testing.T) {
	for _, tt := range []struct {
		ek    attestor.KeyType
		index tpm2.TPMHandle
		size  int
	}{{attestor.RSA2048, 0x01C00003, 64}, {attestor.P256, 0x01C0000B, 32}} {
		t.Run(string(tt.ek), func(t *testing.T) {
			tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
			plain := attest(t, newTPM(t, Config{Device: tpm.Device, EK: tt.ek}))
			nonce := bytes.Repeat([]byte{0xA5}, tt.size)
			defineNV(t, tpm.Device, nvContent{tt.index, nonce, readable, ""})

			template, err := attestor.TemplateFor(tt.ek)
			if err != nil {
				t.Fatal(err)
			}
			if tt.ek == attestor.RSA2048 {
				template.Public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA,
					&tpm2.TPM2BPublicKeyRSA{Buffer: append(nonce, make([]byte, 256-tt.size)...)})
			} else {
				template.Public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
					X: tpm2.TPM2BECCParameter{Buffer: nonce}, Y: tpm2.TPM2BECCParameter{Buffer: make([]byte, 32)},
				})
			}
			var want [sha256.Size]byte
			direct(t, tpm.Device, func(c transport.TPM) {
				rsp := must(t, c, tpm2.CreatePrimary{
					PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template.Public),
				})
				must(t, c, tpm2.FlushContext{FlushHandle: rsp.ObjectHandle})
				ek, err := newEndorsementKey(key{public: rsp.OutPublic.Bytes()}, template)
				if err != nil {
					t.Fatal(err)
				}
				want = ek.hash
			})
			got := attest(t, newTPM(t, Config{Device: tpm.Device, EK: tt.ek}))
			if got.Hash != want || got.Hash == plain.Hash {
				t.Errorf("EK %x, want %x; without the nonce %x", got.Hash, want, plain.Hash)
			}

			// If a nonce does not fit or cannot be read, the error says what to do.
			for content, attributes := range map[string]tpm2.TPMANV{
				strings.Repeat("\x00", 257): readable,
				string(nonce):               {OwnerWrite: true, PolicyRead: true},
			} {
				undefineNV(t, tpm.Device, tt.index)
				defineNV(t, tpm.Device, nvContent{tt.index, []byte(content), attributes, ""})
				_, err := newTPM(t, Config{Device: tpm.Device, EK: tt.ek}).Begin(t.Context())
				if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "set ek to a type without a nonce") {
					t.Errorf("a nonce of %d bytes: %v", len(content), err)
				}
			}
			// If the TPM is locked out, a later attempt may succeed.
			undefineNV(t, tpm.Device, tt.index)
			defineNV(t, tpm.Device, nvContent{tt.index, nonce, readable, ""})
			device := newTPM(t, Config{Device: tpm.Device, EK: tt.ek})
			(&tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) {
				if cc == tpm2.TPMCCNVRead {
					return response(tpm2.TPMRCLockout), nil
				}
				return nil, nil
			}}).listen(device)
			if _, err := device.Begin(t.Context()); !errors.Is(err, ErrNotReady) || errors.Is(err, ErrSetup) {
				t.Errorf("a nonce in a TPM that is locked out: %v", err)
			}
		})
	}
}

// If the index for a nonce is defined but unwritten, there is no nonce, and the machine
// attests. Once the nonce has been written, the EK is made with it. The agent need not be
// restarted.
func TestUnwrittenEKNonce(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	plain := attest(t, device)
	nonce := bytes.Repeat([]byte{0xA5}, 32)
	direct(t, tpm.Device, func(c transport.TPM) {
		defineSpace(t, c, nvContent{index: 0x01C0000B, attributes: readable}, len(nonce))
	})
	for range 2 {
		if ek := attest(t, device); ek.Hash != plain.Hash {
			t.Errorf("EK %x, want %x", ek.Hash, plain.Hash)
		}
	}
	direct(t, tpm.Device, func(c transport.TPM) { writeNV(t, c, 0x01C0000B, nonce) })
	started := attest(t, newTPM(t, Config{Device: tpm.Device, EK: attestor.P256}))
	if ek := attest(t, device); ek.Hash != started.Hash || ek.Hash == plain.Hash {
		t.Errorf("EK %x, want %x", ek.Hash, started.Hash)
	}
	wantNothingLoaded(t, tpm.Device)
}

// Padding after a certificate in NV memory is ignored, whatever it is. One vendor pads with
// 0x11; its machines would otherwise attest without their certificate.
func TestPaddedCertificates(t *testing.T) {
	dir := filepath.Join(attestortest.FieldCertificates(t), "..", "ek-more")
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for index, name := range map[tpm2.TPMHandle]string{
		0x01C00002: "nuvoton-npct6xx-rsaoaep2048-sha1-padded-11.bin",
		0x01C00100: filepath.Join("odca", "tgl-nv-0x01c00100.bin"),
	} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defineNV(t, tpm.Device, nvContent{index, content, readable, ""})
	}
	report, err := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256}).Inspect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Certificates) != 1 || report.Certificates[0].Err != nil {
		t.Errorf("certificates %v", report.Certificates)
	}
	if len(report.Chain) == 0 || report.ChainErr != nil {
		t.Errorf("a chain of %d: %v", len(report.Chain), report.ChainErr)
	}
}
