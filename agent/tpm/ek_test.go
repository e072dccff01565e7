package tpm

import (
	"bytes"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// persist makes a primary key and makes it persistent at a handle.
func persist(t *testing.T, device string, hierarchy tpm2.TPMHandle, pub tpm2.TPMTPublic, at tpm2.TPMHandle) {
	t.Helper()
	direct(t, device, func(c transport.TPM) {
		rsp := must(t, c, tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(pub)})
		must(t, c, tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: rsp.ObjectHandle, Name: rsp.Name},
			PersistentHandle: at,
		})
		must(t, c, tpm2.FlushContext{FlushHandle: rsp.ObjectHandle})
	})
}

// evict removes a persistent key.
func evict(t *testing.T, device string, handle tpm2.TPMHandle) {
	t.Helper()
	direct(t, device, func(c transport.TPM) {
		rsp := must(t, c, tpm2.ReadPublic{ObjectHandle: handle})
		must(t, c, tpm2.EvictControl{
			Auth:             tpm2.TPMRHOwner,
			ObjectHandle:     &tpm2.NamedHandle{Handle: handle, Name: rsp.Name},
			PersistentHandle: handle,
		})
	})
}

// otherNonce returns a template whose key has the form of an RSA 2048 EK, but is not the
// EK. Anybody who may use the endorsement hierarchy can make such keys.
func otherNonce() tpm2.TPMTPublic {
	template := tpm2.RSAEKTemplate
	template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA,
		&tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{7}, 256)})
	return template
}

// A persistent key at an EK's handle that is not the EK is not used. Otherwise whoever may
// use the TPM could give the machine another SPIFFE ID.
func TestWrongPersistentKeyIsNotUsed(t *testing.T) {
	ekTemplate, otherUnique := tpm2.RSAEKTemplate, otherNonce()
	for _, tt := range []struct {
		name      string
		hierarchy tpm2.TPMHandle
		public    tpm2.TPMTPublic
		options   swtpmtest.Options
	}{
		{"a storage key", tpm2.TPMRHOwner, tpm2.RSASRKTemplate, swtpmtest.Options{Blank: true}},
		{"an ECC key", tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate, swtpmtest.Options{Blank: true}},
		{"an EK of the owner hierarchy", tpm2.TPMRHOwner, ekTemplate, swtpmtest.Options{Blank: true}},
		{"an EK of another nonce", tpm2.TPMRHEndorsement, otherUnique, swtpmtest.Options{Blank: true}},
		{"an EK that the certificate is not for", tpm2.TPMRHEndorsement, otherUnique, swtpmtest.Options{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tpm := swtpmtest.Start(t, tt.options)
			want := attest(t, newTPM(t, Config{Device: tpm.Device})).Hash
			if !tt.options.Blank {
				evict(t, tpm.Device, 0x81010001)
			}
			persist(t, tpm.Device, tt.hierarchy, tt.public, 0x81010001)
			if got := attest(t, newTPM(t, Config{Device: tpm.Device})).Hash; got != want {
				t.Errorf("EK %x, want %x", got, want)
			}
		})
	}
}

// A key with another nonce at a lower handle than the EK's does not give the machine
// another SPIFFE ID, neither when the agent starts nor while it runs. The agent still uses
// the persistent EK.
func TestLowerHandleIsNotPreferred(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	persist(t, tpm.Device, tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate, 0x81010001)
	running := newTPM(t, Config{Device: tpm.Device})
	want := attest(t, running).Hash
	persist(t, tpm.Device, tpm2.TPMRHEndorsement, otherNonce(), 0x81010000)
	for name, device := range map[string]*TPM{"running": running, "started": newTPM(t, Config{Device: tpm.Device})} {
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if a.EKHash != want || a.Persistent != 0x81010001 {
			t.Errorf("%s: EK %x at %#x, want %x", name, a.EKHash, a.Persistent, want)
		}
	}
	// The EK is evicted, and another key takes its handle.
	evict(t, tpm.Device, 0x81010001)
	persist(t, tpm.Device, tpm2.TPMRHEndorsement, otherNonce(), 0x81010001)
	if got := attest(t, running).Hash; got != want {
		t.Errorf("EK %x, want %x", got, want)
	}
	wantNothingLoaded(t, tpm.Device)
}

// If an EK certificate in the TPM is for a persistent key, that key is the EK, even if the
// TPM makes another key from the template. While that certificate cannot be read, the
// machine must not attest: with the other key it would be refused, and its agent would
// give up.
func TestCertificateDecidesForAPersistentKey(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	persist(t, tpm.Device, tpm2.TPMRHEndorsement, otherNonce(), 0x81010001)
	made := attest(t, newTPM(t, Config{Device: tpm.Device}))
	var vendors *endorsementKey
	direct(t, tpm.Device, func(c transport.TPM) {
		template, err := attestor.TemplateFor(attestor.RSA2048)
		if err != nil {
			t.Fatal(err)
		}
		rsp := must(t, c, tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(0x81010001)})
		if vendors, err = newEndorsementKey(persistentKey(0x81010001, rsp), template); err != nil {
			t.Fatal(err)
		}
	})
	defineNV(t, tpm.Device, nvContent{0x01C00002, ekCertificate(t, vendors.pub), readable, ""})
	device := newTPM(t, Config{Device: tpm.Device})
	failing := true
	(&tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) {
		if failing && cc == tpm2.TPMCCNVRead {
			return response(tpm2.TPMRCLockout), nil
		}
		return nil, nil
	}}).listen(device)
	a, err := device.Begin(t.Context())
	if err == nil {
		t.Fatalf("while the certificate cannot be read, the EK is %x", a.EKHash)
	}
	if !errors.Is(err, ErrNotReady) || errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "tpm2_evictcontrol") {
		t.Errorf("while the certificate cannot be read: %v", err)
	}
	wantNothingLoaded(t, tpm.Device)
	failing = false
	if got := attest(t, device); got.Hash != vendors.hash || got.Hash == made.Hash || got.Certificate == nil {
		t.Errorf("EK %x, want %x", got.Hash, vendors.hash)
	}
}

// The agent finds a persistent EK at an unusual handle. After the EK has been evicted, the
// machine attests with the same EK, made from the template.
func TestPersistentEKComesAndGoes(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	const handle = 0x81010003
	persist(t, tpm.Device, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate, handle)
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a.Persistent != handle {
		t.Errorf("the EK is at %#x", a.Persistent)
	}
	evict(t, tpm.Device, handle)
	if ek := attest(t, device); ek.Hash != a.EKHash {
		t.Errorf("EK %x, want %x", ek.Hash, a.EKHash)
	}
	wantNothingLoaded(t, tpm.Device)
}

// setPasswords sets the passwords of the hierarchies.
func setPasswords(t *testing.T, device, endorsement, owner string) {
	t.Helper()
	direct(t, device, func(c transport.TPM) {
		for hierarchy, password := range map[tpm2.TPMHandle]string{
			tpm2.TPMRHEndorsement: endorsement, tpm2.TPMRHOwner: owner,
		} {
			must(t, c, tpm2.HierarchyChangeAuth{
				AuthHandle: hierarchy, NewAuth: tpm2.TPM2BAuth{Buffer: []byte(password)},
			})
		}
	})
}

// If a site has set passwords for the hierarchies, its machines attest with the endorsement
// hierarchy's. If that is missing or wrong, the error names the key of the configuration to
// set. EK certificates that follow the profile do not need the owner's.
func TestPasswords(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	setPasswords(t, tpm.Device, "endorsed", "owned")
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384} {
		attest(t, newTPM(t, Config{Device: tpm.Device, EK: ek, EndorsementPassword: "endorsed"}))
		for _, password := range []string{"", "wrong"} {
			device := newTPM(t, Config{Device: tpm.Device, EK: ek, EndorsementPassword: password})
			_, err := device.Begin(t.Context())
			if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "endorsement_password") {
				t.Errorf("%s with the password %q: %v", ek, password, err)
			}
			wantNothingLoaded(t, tpm.Device)
		}
	}
}

// A TPM that is locked out after wrong passwords still attests. Otherwise anybody who can
// send wrong passwords to the TPM could take the machine's identity from it.
func TestLockedOutTPMAttests(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	direct(t, tpm.Device, func(c transport.TPM) {
		// TPM2_DictionaryAttackParameters of TPM_RH_LOCKOUT with an empty password:
		// one try, a thousand seconds.
		limit, err := hex.DecodeString("8002" + "00000027" + "0000013a" + "4000000a" +
			"00000009" + "40000009" + "0000" + "00" + "0000" + "00000001" + "000003e8" + "000003e8")
		if err != nil {
			t.Fatal(err)
		}
		if rsp, err := c.Send(limit); err != nil || binary.BigEndian.Uint32(rsp[6:]) != 0 {
			t.Fatalf("set the limit of tries: %x %v", rsp, err)
		}
		sealed := must(t, c, tpm2.CreatePrimary{
			PrimaryHandle: tpm2.TPMRHOwner,
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: []byte("right")},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: []byte("data")}),
			}},
			InPublic: tpm2.New2B(tpm2.TPMTPublic{
				Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
				ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true},
			}),
		})
		for range 3 {
			_, err := tpm2.Unseal{ItemHandle: tpm2.AuthHandle{
				Handle: sealed.ObjectHandle, Name: sealed.Name, Auth: tpm2.PasswordAuth([]byte("wrong")),
			}}.Execute(c)
			if errors.Is(err, tpm2.TPMRCLockout) {
				must(t, c, tpm2.FlushContext{FlushHandle: sealed.ObjectHandle})
				return
			}
		}
		t.Fatal("the TPM is not locked out")
	})
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384} {
		attest(t, newTPM(t, Config{Device: tpm.Device, EK: ek}))
	}
}

// without returns a function for tap.after that hides algorithms and curves of a TPM.
func without(hidden ...uint16) func(tpm2.TPMCC, []byte, []byte) []byte {
	return func(cc tpm2.TPMCC, command, rsp []byte) []byte {
		if cc != tpm2.TPMCCGetCapability {
			return rsp
		}
		capability := tpm2.TPMCap(binary.BigEndian.Uint32(command[10:]))
		size := map[tpm2.TPMCap]int{tpm2.TPMCapAlgs: 6, tpm2.TPMCapECCCurves: 2}[capability]
		if size == 0 {
			return rsp
		}
		const listAt = headerSize + 1 + 4 + 4 // after moreData, capability and count
		var kept []byte
		n := uint32(0)
		for list := rsp[listAt:]; len(list) >= size; list = list[size:] {
			if slices.Contains(hidden, binary.BigEndian.Uint16(list)) {
				continue
			}
			kept = append(kept, list[:size]...)
			n++
		}
		body := append([]byte{rsp[headerSize]}, rsp[headerSize+1:headerSize+5]...)
		body = binary.BigEndian.AppendUint32(body, n)
		return response(tpm2.TPMRCSuccess, append(body, kept...)...)
	}
}

// In a TPM without RSA, auto means a P-256 EK; in a TPM without ECC, an RSA AK. If the
// configuration names a type that the TPM does not support, that is an error and never
// another key: the server may accept no other.
func TestTPMWithoutSomeAlgorithms(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	noRSA, noECC := without(uint16(tpm2.TPMAlgRSA)), without(uint16(tpm2.TPMAlgECC))
	noP256 := without(uint16(tpm2.TPMAlgRSA), uint16(tpm2.TPMECCNistP256))
	noECDSA := without(uint16(tpm2.TPMAlgECDSA))
	all := without()
	for _, tt := range []struct {
		name   string
		after  func(tpm2.TPMCC, []byte, []byte) []byte
		config Config
		want   attestor.KeyType
		ak     tpm2.TPMAlgID
		err    string
	}{
		{"auto", all, Config{}, attestor.RSA2048, tpm2.TPMAlgECC, ""},
		{"auto without RSA", noRSA, Config{}, attestor.P256, tpm2.TPMAlgECC, ""},
		{"auto without ECC", noECC, Config{}, attestor.RSA2048, tpm2.TPMAlgRSA, ""},
		{"auto without ECDSA", noECDSA, Config{}, attestor.RSA2048, tpm2.TPMAlgRSA, ""},
		{"auto without both", noP256, Config{}, "", 0, "set ek to a type that it supports"},
		{"RSA 2048 without RSA", noRSA, Config{EK: attestor.RSA2048}, "", 0, "not support endorsement keys of type rsa2048"},
		{"P-384 without ECC", noECC, Config{EK: attestor.P384}, "", 0, "not support endorsement keys of type p384"},
		{"an AK without both", noP256, Config{EK: attestor.P384}, "", 0, "this TPM cannot attest"},
		{"an AK in RSA", all, Config{AK: attestor.RSA2048}, attestor.RSA2048, tpm2.TPMAlgRSA, ""},
		{"an AK in RSA for an ECC EK", all, Config{EK: attestor.P384, AK: attestor.RSA2048}, attestor.P384, tpm2.TPMAlgRSA, ""},
		{"an AK on P-256", all, Config{AK: attestor.P256}, attestor.RSA2048, tpm2.TPMAlgECC, ""},
		{"an AK in RSA without RSA", noRSA, Config{AK: attestor.RSA2048}, "", 0, "not support attestation keys of type rsa2048"},
		{"an AK on P-256 without ECC", noECC, Config{AK: attestor.P256}, "", 0, "not support attestation keys of type p256"},
		{"an AK on P-256 without ECDSA", noECDSA, Config{AK: attestor.P256}, "", 0, "not support attestation keys of type p256"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Device = tpm.Device
			device := newTPM(t, tt.config)
			(&tap{after: tt.after}).listen(device)
			a, err := device.Begin(t.Context())
			if tt.err != "" {
				if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := finish(a); err != nil {
				t.Error(err)
			}
			if a.KeyType != tt.want {
				t.Errorf("EK %x, want %x", a.KeyType, tt.want)
			}
			if ak := tpm2.TPMAlgID(binary.BigEndian.Uint16(a.Claim.AK.Public)); ak != tt.ak {
				t.Errorf("AK %#x, want %#x", ak, tt.ak)
			}
		})
	}
}

// Whether a TPM supports a key size shows only when it makes the key. The error then says
// what to set. It must not advise to leave ek out: auto means RSA 2048 too.
func TestUnsupportedEKSize(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCValue, tpm2.TPMRCKeySize | 0x2C0, tpm2.TPMRCCurve} {
		device := newTPM(t, Config{Device: tpm.Device, EK: attestor.RSA3072})
		(&tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) {
			if cc == tpm2.TPMCCCreatePrimary {
				return response(code), nil
			}
			return nil, nil
		}}).listen(device)
		_, err := device.Begin(t.Context())
		if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "not support endorsement keys of type rsa3072") {
			t.Errorf("%v: %v", code, err)
		}
	}
	device := newTPM(t, Config{Device: tpm.Device})
	(&tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) {
		if cc == tpm2.TPMCCCreatePrimary {
			return response(tpm2.TPMRCValue), nil
		}
		return nil, nil
	}}).listen(device)
	_, err := device.Begin(t.Context())
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "set ek to another type") ||
		strings.Contains(err.Error(), "leave it out") {
		t.Errorf("auto: %v", err)
	}
}

// The policy digests are the ones that the profile prints. With a wrong digest, only real EKs
// of the high range would fail. PolicyC cannot be computed, since it depends on an NV index's name; but
// the policy that EKs carry is computed from PolicyA and PolicyC.
func TestPolicyDigests(t *testing.T) {
	calculator, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA384)
	if err != nil {
		t.Fatal(err)
	}
	if err := (tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement}).Update(calculator); err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(calculator.Hash().Digest); got != policyASHA384 {
		t.Errorf("PolicyA is %s", got)
	}
	digests, err := policyDigests(tpm2.TPMAlgSHA384)
	if err != nil {
		t.Fatal(err)
	}
	h := sha512.New384()
	h.Write(make([]byte, sha512.Size384))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyOR)))
	for _, d := range digests.Digests {
		h.Write(d.Buffer)
	}
	for _, keyType := range []attestor.KeyType{attestor.P384, attestor.RSA3072} {
		template, err := attestor.TemplateFor(keyType)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(h.Sum(nil), template.Public.AuthPolicy.Buffer) {
			t.Errorf("the policy of %s is not PolicyA or PolicyC", keyType)
		}
	}
	if _, err := policyDigests(tpm2.TPMAlgSHA512); err == nil {
		t.Error("a policy for a hash that no type of EK has")
	}
}
