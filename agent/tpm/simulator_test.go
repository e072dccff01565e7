//go:build simulator

package tpm

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-tpm-tools/simulator"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// The agent works not only with swtpm but also with another implementation of a TPM, one
// without certificates and persistent keys. The simulator needs cgo.
func TestAttestWithTheSimulator(t *testing.T) {
	sim, err := simulator.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer sim.Close()
	open := func(context.Context, string) (channel, error) {
		return fakeChannel(func(_ context.Context, command []byte) ([]byte, error) {
			if _, err := sim.Write(command); err != nil {
				return nil, err
			}
			rsp := make([]byte, maxResponse)
			n, err := sim.Read(rsp)
			return rsp[:n], err
		}), nil
	}
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
