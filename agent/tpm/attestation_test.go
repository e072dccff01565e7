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

// A machine attests with each type of EK, persistent or not, with a certificate or
// without. Certificates and persistent keys must not change the EK that auto means:
// the machine would get another SPIFFE ID.
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
			wantNothingLoaded(t, tt.tpm.Device) // SPIRE Agent kills its plugin when it is refused
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

// The key that the TPM makes from the template is the key that the manufacturer has made
// persistent. Otherwise a machine whose persistent EK is evicted would get another
// SPIFFE ID.
func TestPersistentAndTransientEKAreTheSame(t *testing.T) {
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
				t.Errorf("%s: made %x, persistent %x", keyType, transient.Hash, persistent.Hash)
			}
			if count(hidden.commands, tpm2.TPMCCReadPublic) != 0 {
				t.Error("the persistent EK was used")
			}
		}
	}
}

// hidePersistent empties the list of a TPM's persistent keys.
func hidePersistent(cc tpm2.TPMCC, command, rsp []byte) []byte {
	if cc == tpm2.TPMCCGetCapability && bytes.Equal(command[10:16], []byte{0, 0, 0, 1, 0x81, 1}) {
		return response(tpm2.TPMRCSuccess, 0, 0, 0, 0, 1, 0, 0, 0, 0)
	}
	return rsp
}

// An attestation runs no unnecessary command: TPMs are slow, and other programs wait for
// theirs. The agent reads what a TPM can do and holds only for the first attestation.
func TestCommands(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	makeAK := []tpm2.TPMCC{
		tpm2.TPMCCCreatePrimary, tpm2.TPMCCCertifyCreation, tpm2.TPMCCContextSave, tpm2.TPMCCFlushContext,
	}
	// In between, the agent waits for the server, and nothing is in the TPM.
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
				tpm2.TPMCCGetCapability,                  // PCR banks
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
				tpm2.TPMCCContextLoad, tpm2.TPMCCFlushContext, // is it the same TPM?
				tpm2.TPMCCGetCapability, // does it hold a certificate now?
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

// An RSA key takes a hardware TPM seconds, so the EK is made only for the first
// attestation: to use it, or to compare it with a persistent key without a certificate.
// If a certificate cannot be read, later attestations read it again but make no EK.
func TestEKIsMadeOnce(t *testing.T) {
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

// Each attestation has its own AK. If two attestations had the same AK, anybody could
// link them, and the secret of the first challenge would answer the second.
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
		t.Error("two attestations have the same AK")
	}
}

// errFault is the failure of a connection.
var errFault = errors.New("connection lost")

// Whichever command fails, no key and no session stays in the TPM. Otherwise a machine
// that attests every hour would fill its TPM.
func TestFaultAtEachCommand(t *testing.T) {
	full := swtpmtest.Start(t, swtpmtest.Options{})
	bare := swtpmtest.Start(t, swtpmtest.Options{Blank: true}) // with a persistent EK to compare
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
		quoteOf(t, device, eightPCRs())
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
					// It may fail; not every attestation has an nth command.
					_, _, _ = answer(a, attestor.Ask{Quote: eightPCRs()})
				}
				if whole.commands[n] == tpm2.TPMCCFlushContext {
					tpm.Restart() // the key cannot be flushed
				} else {
					wantNothingLoaded(t, tpm.Device)
				}
			})
		}
	}
}

// A broken connection ends the attestation, and nothing more is sent on it: a late
// response would be taken for the response to another command.
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

// If an attestation is cancelled while the TPM makes a key, the key is flushed as soon as
// it is made. Otherwise each cancelled attestation would leave a key in the TPM.
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
		t.Errorf("%d keys were made, want 1", got)
	}
	wantNothingLoaded(t, tpm.Device)
}

// If the TPM is replaced between two attestations, as in a lab, the second attestation
// has nothing of the first TPM: not its EK, and not its certificate.
func TestReplacedTPM(t *testing.T) {
	first := swtpmtest.Start(t, swtpmtest.Options{})
	second := swtpmtest.Start(t, swtpmtest.Options{})
	device := newTPM(t, Config{Device: first.Device})
	one := attest(t, device)
	device.config.Device = second.Device
	two := attest(t, device)
	if one.Hash == two.Hash || two.Certificate == nil {
		t.Errorf("EKs %x and %x, certificate %v", one.Hash, two.Hash, two.Certificate != nil)
	}
	wantNothingLoaded(t, second.Device)
}

// A challenge that is too large for any TPM is refused before it is sent to the TPM. A
// wrong one leaves no session in the TPM.
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
		if _, err := a.Activate(t.Context(), &attestor.Activation{Credential: make([]byte, size[0]), Secret: make([]byte, size[1])}); err == nil {
			t.Errorf("a challenge of %d and %d bytes is accepted", size[0], size[1])
		}
	}
	if count(tap.commands, tpm2.TPMCCActivateCredential) != 0 {
		t.Error("it went to the TPM")
	}
	// The TPM itself refuses a challenge of the right size that is wrong.
	if _, err := a.Activate(t.Context(), &attestor.Activation{Credential: make([]byte, 64), Secret: make([]byte, 64)}); err == nil {
		t.Error("a wrong challenge is answered")
	}
	wantNothingLoaded(t, tpm.Device)
}
