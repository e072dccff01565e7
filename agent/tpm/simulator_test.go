//go:build simulator

package tpm

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-tpm-tools/simulator"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// simulated starts the simulator, and returns how to open it.
func simulated(t *testing.T) func(context.Context, string) (channel, error) {
	t.Helper()
	open, _ := simulatedWithReset(t)
	return open
}

// simulatedWithReset also returns how to switch it off and on again.
func simulatedWithReset(t *testing.T) (open func(context.Context, string) (channel, error), reset func() error) {
	t.Helper()
	sim, err := simulator.Get()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() }) // nothing depends on its success
	return func(context.Context, string) (channel, error) {
		return fakeChannel(func(_ context.Context, command []byte) ([]byte, error) {
			if _, err := sim.Write(command); err != nil {
				return nil, err
			}
			rsp := make([]byte, maxResponse)
			n, err := sim.Read(rsp)
			return rsp[:n], err
		}), nil
	}, sim.Reset
}

// A DevID's key is made, enrolled and proved with the TCG's reference implementation, too. Like swtpm, it
// has no RSA 4096, and the error says so; .ci/rsa4096 runs this test with a simulator that has it.
func TestDevIDWithTheSimulator(t *testing.T) {
	open := simulated(t)
	fresh := func(devID *DevIDConfig) *TPM {
		device := newTPM(t, Config{EK: attestor.P256, DevID: devID})
		device.open = open
		return device
	}
	ca := attestortest.NewCA(t, "devices")
	for _, keyType := range []attestor.KeyType{attestor.P256, attestor.P384, attestor.RSA2048, attestor.RSA4096} {
		t.Run(string(keyType), func(t *testing.T) {
			private, public, err := fresh(nil).CreateDevID(t.Context(), keyType, "")
			if keyType == attestor.RSA4096 && errors.Is(err, ErrSetup) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			config := writeDevIDFiles(t, private, public, "")
			got := enrolled(t, func() *TPM { return fresh(nil) }, config, func() {})
			config.CertPath = filepath.Join(t.TempDir(), "devid.pem")
			der := ca.IssueDevID(t, got, attestortest.Certificate{})
			cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
			if err := os.WriteFile(config.CertPath, cert, 0o600); err != nil {
				t.Fatal(err)
			}
			proven, err := proved(fresh(&config), t)
			if err != nil || !sameKey(proven.Key, got) {
				t.Errorf("proved: %v, %v", proven, err)
			}
			if made, err := attestor.KeyTypeOf(got); made != keyType || err != nil {
				t.Errorf("a key of the type %s, %v", made, err)
			}
		})
	}
}

// The agent works not only with swtpm but also with another implementation of a TPM, one
// without certificates and persistent keys. The simulator needs cgo.
func TestAttestWithTheSimulator(t *testing.T) {
	open := simulated(t)
	for _, ek := range []attestor.KeyType{"", attestor.RSA2048, attestor.P256, attestor.P384} {
		t.Run(string(ek), func(t *testing.T) {
			device := newTPM(t, Config{EK: ek})
			device.open = open
			attest(t, device)
			quoteOf(t, device, eightPCRs())
		})
	}
	// The simulator does not support RSA 3072, and the error says so.
	device := newTPM(t, Config{EK: attestor.RSA3072})
	device.open = open
	if _, err := device.Begin(t.Context()); !errors.Is(err, ErrSetup) {
		t.Errorf("RSA 3072: %v", err)
	}
}

// An SVID key is the same after a reset of another implementation of a TPM, signs there, and is
// certified.
func TestSVIDKeyWithTheSimulator(t *testing.T) {
	open, reset := simulatedWithReset(t)
	device := newTPM(t, Config{EK: attestor.P256})
	device.open = open
	k := makeSVIDKey(t, device, newUnique())
	for range 2 {
		if err := signed(t.Context(), device, k); err != nil {
			t.Error(err)
		}
		answer, err := certified(t, device, slotOf(k), attestor.Ask{})
		if err != nil || answer.SVIDKey == nil {
			t.Errorf("%v, %v", answer, err)
		}
		if err := reset(); err != nil {
			t.Fatal(err)
		}
		device.known = nil
	}
	if again := makeSVIDKey(t, device, k.unique); !bytes.Equal(again.Name, k.Name) {
		t.Error("it is another key after a reset")
	}
}
