package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// newUnique returns new random bytes to make a key from.
func newUnique() (unique [keydir.UniqueSize]byte) {
	_, _ = rand.Read(unique[:]) // it never fails
	return unique
}

func makeSVIDKey(tb testing.TB, t *TPM, unique [keydir.UniqueSize]byte) *SVIDKey {
	tb.Helper()
	k, err := t.MakeSVIDKey(tb.Context(), unique)
	if err != nil {
		tb.Fatal(err)
	}
	return k
}

// signed has the TPM sign something, and verifies the signature.
func signed(ctx context.Context, t *TPM, k *SVIDKey) error {
	digest := sha256.Sum256([]byte("a handshake"))
	sig, err := t.SignSVID(ctx, k, digest[:])
	if err != nil {
		return err
	}
	pub, err := attestor.ReadSVIDKey(k.Public)
	if err == nil && !ecdsa.VerifyASN1(pub, digest[:], sig) {
		err = errors.New("it is not the key's signature")
	}
	return err
}

func slotOf(k *SVIDKey) *keydir.Slot {
	return &keydir.Slot{ID: "agent-svid-A", Serial: 1, Unique: k.unique, Name: k.Name}
}

// certified runs one attestation in which the AK certifies the key of a slot, and returns what the server
// knows of it.
func certified(tb testing.TB, t *TPM, slot *keydir.Slot, ask attestor.Ask) (*attestor.Answer, error) {
	tb.Helper()
	a, err := t.Begin(tb.Context())
	if err != nil {
		return nil, err
	}
	a.UseSVIDKey(slot)
	ask.SVIDKey = true
	_, answer, err := answer(a, ask)
	return answer, err
}

// How many commands a key costs, each time. Nothing stays in the TPM between the calls, and what a key
// costs does not grow with the number of keys that were made before.
func TestCommandsOfAnSVIDKey(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: s.Device, EK: attestor.P256})
	seen := new(tap)
	seen.listen(device)
	var k *SVIDKey
	expect := func(what string, f func() error, want ...tpm2.TPMCC) {
		t.Helper()
		seen.commands = nil
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if !slices.Equal(seen.commands, want) {
			t.Errorf("%s costs %v, want %v", what, seen.commands, want)
		}
		wantNothingLoaded(t, s.Device)
	}
	const create, load, save, flush = tpm2.TPMCCCreatePrimary, tpm2.TPMCCContextLoad, tpm2.TPMCCContextSave, tpm2.TPMCCFlushContext
	for range 5 {
		expect("making", func() error { k = makeSVIDKey(t, device, newUnique()); return nil }, create, save, flush)
		for range 3 {
			expect("signing", func() error { return signed(t.Context(), device, k) }, load, tpm2.TPMCCSign, flush)
		}
	}
	s.Restart()
	expect("signing after a restart of the TPM", func() error { return signed(t.Context(), device, k) },
		load, create, save, tpm2.TPMCCSign, flush)
	expect("signing then", func() error { return signed(t.Context(), device, k) }, load, tpm2.TPMCCSign, flush)

	attest(t, device) // takes the inventory
	commands := func(slot *keydir.Slot) int {
		seen.commands = nil
		if _, err := certified(t, device, slot, attestor.Ask{}); err != nil {
			t.Fatal(err)
		}
		wantNothingLoaded(t, s.Device)
		return len(seen.commands)
	}
	if without, with := commands(nil), commands(slotOf(k)); with != without+3 {
		t.Errorf("an attestation has %d commands, and %d with an SVID key: want three more", without, with)
	}
}

// The key is the same whatever the TPM has been through short of another endorsement seed: a restart, and
// TPM2_Clear, which the reinstallation of a machine may bring. It needs nobody's authorization but that
// of the endorsement hierarchy, which a clear resets.
func TestSVIDKeyStays(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: s.Device, EK: attestor.P256})
	k := makeSVIDKey(t, device, newUnique())
	same := func(when string) {
		t.Helper()
		again := makeSVIDKey(t, newTPM(t, Config{Device: s.Device}), k.unique)
		if !slices.Equal(again.Public, k.Public) || !slices.Equal(again.Name, k.Name) {
			t.Errorf("%s, it is another key", when)
		}
		if err := signed(t.Context(), device, k); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	same("at once")
	s.Restart()
	same("after a restart")
	direct(t, s.Device, func(c transport.TPM) {
		must(t, c, tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHPlatform, Auth: tpm2.PasswordAuth(nil)}})
	})
	same("after a clear")
	other := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	if stolen := makeSVIDKey(t, newTPM(t, Config{Device: other.Device}), k.unique); slices.Equal(stolen.Name, k.Name) {
		t.Error("another TPM makes the same key")
	}
}

// The endorsement hierarchy's password is needed to make a key, and its lack is explained. Signing needs
// none while the TPM runs.
func TestSVIDKeyWithAPassword(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	direct(t, s.Device, func(c transport.TPM) {
		must(t, c, tpm2.HierarchyChangeAuth{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
			NewAuth:    tpm2.TPM2BAuth{Buffer: []byte("secret")},
		})
	})
	right := newTPM(t, Config{Device: s.Device, EndorsementPassword: "secret"})
	if err := signed(t.Context(), right, makeSVIDKey(t, right, newUnique())); err != nil {
		t.Error(err)
	}
	for _, password := range []string{"", "wrong"} {
		wrong := newTPM(t, Config{Device: s.Device, EndorsementPassword: password})
		if _, err := wrong.MakeSVIDKey(t.Context(), newUnique()); !errors.Is(err, ErrSetup) ||
			!strings.Contains(err.Error(), "set endorsement_password") {
			t.Errorf("%q: %v", password, err)
		}
	}
}

// The AK certifies exactly the key of the slot, beside a quote and a DevID, in a TPM with room for three
// keys. A key that the TPM makes differently is not certified, whatever the file says.
func TestCertifiedSVIDKey(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	devid := provisionOn(t, s.Device).files(
		srkTemplates(tpm2.TPMAlgECC)[0], signingKey(attestor.P256, tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA256), "")
	for _, ak := range []attestor.KeyType{attestor.P256, attestor.RSA2048} {
		device := newTPM(t, Config{Device: s.Device, EK: attestor.P256, AK: ak, DevID: devid})
		k := makeSVIDKey(t, device, newUnique())
		answer, err := certified(t, device, slotOf(k), attestor.Ask{Quote: eightPCRs(), DevID: true})
		if err != nil {
			t.Fatal(err)
		}
		want, err := attestor.ReadSVIDKey(k.Public)
		if err != nil || !want.Equal(answer.SVIDKey.Public) || answer.Quote == nil || answer.DevID == nil {
			t.Errorf("the server has %v, %v", answer, err)
		}
		wantNothingLoaded(t, s.Device)
		slot := slotOf(k)
		slot.Unique = newUnique()
		if _, err := certified(t, device, slot, attestor.Ask{}); !errors.Is(err, ErrSetup) {
			t.Errorf("a slot of another key: %v", err)
		}
		wantNothingLoaded(t, s.Device)
	}
}

// An agent that is killed after whichever command leaves at most one key, and neither the KeyManager nor
// the attestor runs out of room in a TPM without a resource manager.
func TestSVIDKeysOfKilledAgents(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	fresh := func(n int) *TPM {
		device := newTPM(t, Config{Device: s.Device, EK: attestor.P256})
		(&tap{killed: func(i int) bool { return i >= n }}).listen(device)
		return device
	}
	foreign := loadEKForm(t, s.Device, attestor.P256, 1)
	whole := newTPM(t, Config{Device: s.Device, EK: attestor.P256})
	k := makeSVIDKey(t, whole, newUnique())
	for n := range 3 {
		_, err := fresh(n).MakeSVIDKey(t.Context(), newUnique())
		if err == nil && n < 2 { // the response of the flush does not matter
			t.Error("the agent was not killed")
		}
		copied := *k
		_ = signed(t.Context(), fresh(n), &copied)
	}
	for n := range 40 {
		_, _ = certified(t, fresh(n), slotOf(k), attestor.Ask{})
	}
	if err := signed(t.Context(), newTPM(t, Config{Device: s.Device}), makeSVIDKey(t, whole, newUnique())); err != nil {
		t.Error(err)
	}
	if _, err := certified(t, whole, slotOf(k), attestor.Ask{}); err != nil {
		t.Error(err)
	}
	wantLoaded(t, s.Device, foreign)
}

// A call that SPIRE no longer waits for leaves nothing in the TPM either.
func TestCancelledSVIDKey(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	k := makeSVIDKey(t, newTPM(t, Config{Device: s.Device}), newUnique())
	for n := range 3 {
		for name, call := range map[string]func(context.Context, *TPM) error{
			"making":  func(ctx context.Context, d *TPM) error { _, err := d.MakeSVIDKey(ctx, newUnique()); return err },
			"signing": func(ctx context.Context, d *TPM) error { copied := *k; return signed(ctx, d, &copied) },
		} {
			ctx, cancel := context.WithCancel(t.Context())
			device := newTPM(t, Config{Device: s.Device})
			seen := new(tap)
			seen.before = func(channel, tpm2.TPMCC) {
				if len(seen.commands) == n+1 {
					cancel()
				}
			}
			seen.listen(device)
			if err := call(ctx, device); n == 0 && !errors.Is(err, context.Canceled) {
				t.Errorf("%s, cancelled in command %d: %v", name, n, err)
			}
			wantNothingLoaded(t, s.Device)
			cancel()
		}
	}
}

// The attestor waits for the KeyManager, another process, which may have a device without a resource
// manager open. Without a KeyManager, it says at once that another program holds the device.
func TestWaitsForTheKeyManager(t *testing.T) {
	busy := explainOpen("/dev/tpm0", syscall.EBUSY)
	for _, test := range []struct {
		directory string
		times     int
		want      bool
	}{{"/var/lib/keys", 0, true}, {"/var/lib/keys", 6, true}, {"/var/lib/keys", 100, false}, {"", 1, false}} {
		synctest.Test(t, func(t *testing.T) {
			device := newTPM(t, Config{SVIDKeyDirectory: test.directory})
			n := 0
			device.open = func(context.Context, string) (channel, error) {
				if n++; n <= test.times {
					return nil, busy
				}
				return fakeChannel(hang), nil
			}
			begun := time.Now()
			c, err := device.connect(t.Context())
			if (c != nil) != test.want || (err == nil) != test.want || err != nil && !errors.Is(err, ErrNotReady) {
				t.Errorf("%v: %v, %v", test, c, err)
			}
			if took := time.Since(begun); took > 12*time.Second || test.directory == "" && took > 0 {
				t.Errorf("%v: it takes %v", test, took)
			}
		})
	}
}

// A TPM that answers with something else, or with an error, is no reason to panic or to sign with another
// key, and errors say what was being done.
func TestFaultsOfAnSVIDKey(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	good := newTPM(t, Config{Device: s.Device})
	k := makeSVIDKey(t, good, newUnique())
	for name, test := range map[string]struct {
		instead func(cc tpm2.TPMCC) []byte
		want    string
	}{
		"no room for a context": {func(cc tpm2.TPMCC) []byte {
			if cc == tpm2.TPMCCContextLoad || cc == tpm2.TPMCCCreatePrimary {
				return response(tpm2.TPMRCObjectMemory)
			}
			return nil
		}, exhausted},
		"no P-256": {func(cc tpm2.TPMCC) []byte {
			if cc == tpm2.TPMCCContextLoad {
				return response(tpm2.TPMRCIntegrity)
			}
			if cc == tpm2.TPMCCCreatePrimary {
				return response(tpm2.TPMRCCurve)
			}
			return nil
		}, "does not make keys on P-256"},
		"cannot sign": {func(cc tpm2.TPMCC) []byte {
			if cc == tpm2.TPMCCSign {
				return response(tpm2.TPMRCFailure)
			}
			return nil
		}, "sign with the SVID key"},
		"an empty signature": {func(cc tpm2.TPMCC) []byte {
			if cc == tpm2.TPMCCSign {
				return response(tpm2.TPMRCSuccess)
			}
			return nil
		}, ""},
	} {
		device := newTPM(t, Config{Device: s.Device})
		(&tap{instead: func(_ int, cc tpm2.TPMCC, _ []byte) ([]byte, error) { return test.instead(cc), nil }}).listen(device)
		copied := *k
		if err := signed(t.Context(), device, &copied); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
		wantNothingLoaded(t, s.Device)
	}
	if _, err := good.SignSVID(t.Context(), k, make([]byte, 20)); err == nil {
		t.Error("a digest by SHA-1 is signed")
	}
}

// BenchmarkSVIDKey is what the KeyManager and the attestor have the TPM do: each over what the bare
// commands cost in the same run.
func BenchmarkSVIDKey(b *testing.B) {
	s := swtpmtest.Start(b, swtpmtest.Options{Blank: true})
	device := newTPM(b, Config{Device: s.Device, EK: attestor.P256})
	k := makeSVIDKey(b, device, newUnique())
	attest(b, device) // takes the inventory
	b.Run("make", func(b *testing.B) {
		for b.Loop() {
			makeSVIDKey(b, device, newUnique())
		}
	})
	digest := sha256.Sum256(nil)
	for name, forget := range map[string]bool{"sign": false, "sign, made again": true} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if forget {
					k.key.context = nil
				}
				if _, err := device.SignSVID(b.Context(), k, digest[:]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, slot := range []*keydir.Slot{nil, slotOf(k)} {
		b.Run(fmt.Sprintf("attest, certified %t", slot != nil), func(b *testing.B) {
			for b.Loop() {
				if _, err := certified(b, device, slot, attestor.Ask{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
