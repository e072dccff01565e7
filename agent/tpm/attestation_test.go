package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Each type of EK attests, persistent and made for the occasion, with a
// certificate and without; and whichever certificates and persistent keys there
// are, auto is RSA 2048: a machine keeps its ID.
func TestAttestWithEachEK(t *testing.T) {
	full := swtpmtest.Start(t, swtpmtest.Options{})
	large := swtpmtest.Start(t, swtpmtest.Options{RSA3072: true})
	blank := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for _, tt := range []struct {
		name        string
		tpm         *swtpmtest.TPM
		ek, want    attestor.KeyType
		handle      uint32
		certificate bool
	}{
		{"auto", full, "", attestor.RSA2048, 0x81010001, true},
		{"auto, with an RSA 3072 certificate", large, "", attestor.RSA2048, 0, false},
		{"auto, without anything", blank, "", attestor.RSA2048, 0, false},
		{"RSA 2048, persistent", full, attestor.RSA2048, attestor.RSA2048, 0x81010001, true},
		{"P-256, transient", full, attestor.P256, attestor.P256, 0, false},
		{"P-384, persistent", full, attestor.P384, attestor.P384, 0x81010016, true},
		{"RSA 3072, persistent", large, attestor.RSA3072, attestor.RSA3072, 0x8101001C, true},
		{"RSA 3072, transient", full, attestor.RSA3072, attestor.RSA3072, 0, false},
		{"P-384, transient", blank, attestor.P384, attestor.P384, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			device := newTPM(t, Config{Device: tt.tpm.Device, EK: tt.ek})
			a, err := device.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			wantNothingLoaded(t, tt.tpm.Device) // SPIRE kills the plugin of a refused agent
			ek, err := finish(a)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := attestor.KeyTypeOf(ek.Public); got != tt.want {
				t.Errorf("the EK is %s, want %s: %v", got, tt.want, err)
			}
			if a.EKHash != ek.Hash || a.KeyType != tt.want || a.Persistent != tt.handle {
				t.Errorf("EK %s %s at %#x; the server saw %s, want it at %#x",
					a.KeyType, a.EKHash, a.Persistent, ek.Hash, tt.handle)
			}
			if got := ek.Certificate != nil; got != tt.certificate {
				t.Errorf("certificate: %v, want %v", got, tt.certificate)
			}
			wantNothingLoaded(t, tt.tpm.Device)
		})
	}
}

// The key that is made from the template is the one that the manufacturer made
// persistent: the ID does not depend on which of the two is used.
func TestPersistentAndTransientEKAreOne(t *testing.T) {
	for _, opts := range []swtpmtest.Options{{}, {RSA3072: true}} {
		tpm := swtpmtest.Start(t, opts)
		types := []attestor.KeyType{attestor.RSA2048, attestor.P384}
		if opts.RSA3072 {
			types = []attestor.KeyType{attestor.RSA3072}
		}
		for _, keyType := range types {
			device := newTPM(t, Config{Device: tpm.Device, EK: keyType})
			persistent := attest(t, device)
			hidden := new(tap)
			hidden.after = hidePersistent
			device = newTPM(t, Config{Device: tpm.Device, EK: keyType})
			hidden.listen(device)
			if transient := attest(t, device); transient.Hash != persistent.Hash {
				t.Errorf("%s: made %s, persistent %s", keyType, transient.Hash, persistent.Hash)
			}
			if count(hidden.commands, tpm2.TPMCCReadPublic) != 0 {
				t.Error("the persistent EK was used")
			}
		}
	}
}

// hidePersistent hides the persistent keys of a TPM.
func hidePersistent(cc tpm2.TPMCC, command, rsp []byte) []byte {
	if cc == tpm2.TPMCCGetCapability && bytes.Equal(command[10:16], []byte{0, 0, 0, 1, 0x81, 1}) {
		return response(tpm2.TPMRCSuccess, 0, 0, 0, 0, 1, 0, 0, 0, 0)
	}
	return rsp
}

// The commands of an attestation are the mandatory ones and nothing twice: what
// a TPM is and holds is read the first time, and then not again.
func TestCommands(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	makeAK := []tpm2.TPMCC{
		tpm2.TPMCCCreatePrimary, tpm2.TPMCCCertifyCreation, tpm2.TPMCCContextSave, tpm2.TPMCCFlushContext,
	}
	// Between the two the agent waits for the server, and there is nothing in the TPM.
	activate := []tpm2.TPMCC{
		tpm2.TPMCCContextLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCPolicySecret,
		tpm2.TPMCCActivateCredential, tpm2.TPMCCFlushContext,
	}
	highRange := slices.Insert(slices.Clone(activate), 3, tpm2.TPMCCPolicyOR)
	for _, tt := range []struct {
		ek            attestor.KeyType
		first, second []tpm2.TPMCC
	}{
		{
			attestor.RSA2048,
			slices.Concat([]tpm2.TPMCC{
				tpm2.TPMCCGetCapability,                  // algorithms
				tpm2.TPMCCGetCapability,                  // curves
				tpm2.TPMCCGetCapability,                  // NV buffer
				tpm2.TPMCCGetCapability,                  // NV indices
				tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVRead, // RSA 2048 certificate
				tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVRead, // P-384 certificate
				tpm2.TPMCCGetCapability, tpm2.TPMCCReadPublic, // persistent keys
			}, makeAK, activate),
			slices.Concat([]tpm2.TPMCC{tpm2.TPMCCReadPublic}, makeAK, activate),
		},
		{
			attestor.P384,
			nil,
			slices.Concat([]tpm2.TPMCC{tpm2.TPMCCReadPublic}, makeAK, highRange),
		},
		{
			attestor.P256,
			nil,
			slices.Concat([]tpm2.TPMCC{
				tpm2.TPMCCContextLoad, tpm2.TPMCCFlushContext, // the EK: is it the same TPM?
				tpm2.TPMCCGetCapability, // NV indices: is there a certificate now?
			}, makeAK, []tpm2.TPMCC{tpm2.TPMCCContextLoad}, activate, []tpm2.TPMCC{tpm2.TPMCCFlushContext}),
		},
	} {
		t.Run(string(tt.ek), func(t *testing.T) {
			device := newTPM(t, Config{Device: tpm.Device, EK: tt.ek})
			tap := new(tap)
			tap.listen(device)
			attest(t, device)
			if tt.first != nil && !slices.Equal(tap.commands, tt.first) {
				t.Errorf("first attestation:\n%#x\nwant\n%#x", tap.commands, tt.first)
			}
			tap.commands = nil
			attest(t, device)
			if !slices.Equal(tap.commands, tt.second) {
				t.Errorf("second attestation:\n%#x\nwant\n%#x", tap.commands, tt.second)
			}
		})
	}
}

// A TPM without a certificate, whose persistent EK is compared with the one that
// it makes, pays for that once, and so does one without a persistent EK; one whose
// certificate cannot be read reads it again, and makes no key for it. An RSA key takes a hardware TPM seconds.
func TestKeysMade(t *testing.T) {
	persistent := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	persist(t, persistent.Device, tpm2.TPMRHEndorsement, tpm2.RSAEKTemplate, 0x81010001)
	transient := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for _, tpm := range []*swtpmtest.TPM{persistent, transient} {
		for _, unreadable := range []bool{false, true} {
			t.Run(fmt.Sprintf("persistent %v, unreadable %v", tpm == persistent, unreadable), func(t *testing.T) {
				if unreadable {
					defineNV(t, tpm.Device, nvContent{0x01C00012, []byte("no certificate"), readable, ""})
				}
				device := newTPM(t, Config{Device: tpm.Device})
				tap := new(tap)
				tap.listen(device)
				for i, want := range []int{2, 1, 1} {
					tap.commands = nil
					attest(t, device)
					if got := count(tap.commands, tpm2.TPMCCCreatePrimary); got != want {
						t.Errorf("attestation %d made %d keys, want %d", i, got, want)
					}
					if i == 0 || unreadable {
						continue
					}
					if got := count(tap.commands, tpm2.TPMCCGetCapability); got != 1 {
						t.Errorf("attestation %d asked for %d capabilities, want the list of indices", i, got)
					}
				}
			})
		}
	}
}

// Each attestation has an AK of its own: two that shared one could be linked, and
// what the first was told would answer the second.
func TestEachAttestationHasItsOwnAK(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	var aks [][]byte
	for range 2 {
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		aks = append(aks, a.Claim.AK.Public)
	}
	if bytes.Equal(aks[0], aks[1]) {
		t.Error("two attestations have one AK")
	}
}

// errFault is the failure of TestFaultAtEachCommand that is no response code.
var errFault = errors.New("connection lost")

// Whichever command fails, and whether the TPM says so or gives up, no key and no
// session is left in the TPM: a machine that attests every hour would run out of
// room for them.
func TestFaultAtEachCommand(t *testing.T) {
	full := swtpmtest.Start(t, swtpmtest.Options{})
	bare := swtpmtest.Start(t, swtpmtest.Options{Blank: true}) // its persistent EK is compared
	persist(t, bare.Device, tpm2.TPMRHEndorsement, tpm2.ECCEKTemplate, 0x81010001)
	for _, tt := range []struct {
		name string
		tpm  *swtpmtest.TPM
		ek   attestor.KeyType
	}{
		{"rsa2048", full, attestor.RSA2048},
		{"p256", full, attestor.P256},
		{"p384", full, attestor.P384},
		{"p256, persistent without a certificate", bare, attestor.P256},
	} {
		tpm, ek := tt.tpm, tt.ek
		whole := new(tap)
		device := newTPM(t, Config{Device: tpm.Device, EK: ek})
		whole.listen(device)
		attest(t, device)
		for n := range whole.commands {
			t.Run(fmt.Sprintf("%s command %d", tt.name, n), func(t *testing.T) {
				device := newTPM(t, Config{Device: tpm.Device, EK: ek})
				faulty := &tap{instead: func(i int, _ tpm2.TPMCC, _ []byte) ([]byte, error) {
					if i == n {
						return response(tpm2.TPMRCFailure), nil
					}
					return nil, nil
				}}
				faulty.listen(device)
				a, err := device.Begin(t.Context())
				if err == nil {
					_, _ = finish(a) // it may fail, or not have needed the command
				}
				if whole.commands[n] == tpm2.TPMCCFlushContext {
					tpm.Restart() // the key is left behind, as it has to be
				} else {
					wantNothingLoaded(t, tpm.Device)
				}
			})
		}
	}
}

// A connection that breaks ends the attestation with its error, and is not used
// any further: a response that comes late would answer another command.
func TestBrokenConnectionIsNotUsedAgain(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device})
	broken := &tap{instead: func(i int, _ tpm2.TPMCC, _ []byte) ([]byte, error) {
		if i == 2 {
			return nil, errFault
		}
		return nil, nil
	}}
	broken.listen(device)
	if _, err := device.Begin(t.Context()); !errors.Is(err, errFault) {
		t.Errorf("error %v", err)
	}
	if len(broken.commands) != 3 {
		t.Errorf("commands %#x after the third failed", broken.commands)
	}
}

// An attestation that is given up while the TPM makes a key leaves nothing: the
// key is flushed when it is there.
func TestCancelledWhileTheTPMWorks(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	ctx, cancel := context.WithCancel(t.Context())
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	cancelling := &tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) {
		if cc == tpm2.TPMCCCreatePrimary {
			cancel()
		}
		return nil, nil
	}}
	cancelling.listen(device)
	if _, err := device.Begin(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if got := count(cancelling.commands, tpm2.TPMCCCreatePrimary); got != 1 {
		t.Errorf("%d keys made after the end", got)
	}
	wantNothingLoaded(t, tpm.Device)
}

// A TPM may be another one at the next attestation, in a lab at least: nothing of
// the first may then be said of the second.
func TestAnotherTPMUnderTheSameName(t *testing.T) {
	first := swtpmtest.Start(t, swtpmtest.Options{})
	second := swtpmtest.Start(t, swtpmtest.Options{})
	device := newTPM(t, Config{Device: first.Device})
	one := attest(t, device)
	device.config.Device = second.Device
	two := attest(t, device)
	if one.Hash == two.Hash || two.Certificate == nil {
		t.Errorf("EKs %s and %s, certificate %v", one.Hash, two.Hash, two.Certificate != nil)
	}
	wantNothingLoaded(t, second.Device)
}

// A challenge larger than any TPM takes is refused before it is sent there.
func TestOversizedChallenge(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	tap := new(tap)
	tap.listen(device)
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range [][2]int{{maxChallenge + 1, 32}, {32, maxChallenge + 1}} {
		if _, err := a.Activate(t.Context(), make([]byte, size[0]), make([]byte, size[1])); err == nil {
			t.Errorf("a challenge of %d and %d bytes is taken", size[0], size[1])
		}
	}
	if count(tap.commands, tpm2.TPMCCActivateCredential) != 0 {
		t.Error("it went to the TPM")
	}
	// One that is merely wrong is the TPM's to refuse, and leaves no session.
	if _, err := a.Activate(t.Context(), make([]byte, 64), make([]byte, 64)); err == nil {
		t.Error("a wrong challenge is answered")
	}
	wantNothingLoaded(t, tpm.Device)
}
