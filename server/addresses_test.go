package server_test

import (
	"testing"

	"google.golang.org/grpc/metadata"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
)

// A TPM that was copied together with its machine is found, and told by the EK and
// both addresses; a machine that moved, or that was not admitted, is not.
func TestCopiedTPM(t *testing.T) {
	copied := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	moved := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
	stranger := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 2})
	p, log := server.New(), &logBuffer{}
	t.Cleanup(func() { _ = p.Close() })
	p.SetLogger(log.logger())
	if _, err := p.Configure(t.Context(), configureRequest(oneHashDir(hashDir(t, copied, moved)))); err != nil {
		t.Fatal(err)
	}
	attest := func(tpm *attestortest.TPM, from string) {
		t.Helper()
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs(addressHeader, from))
		if err := p.Attest(honest(ctx, t, tpm)); (err == nil) != (tpm != stranger) {
			t.Errorf("from %s: %v", from, err)
		}
	}
	const one, two = "192.0.2.1", "192.0.2.2"
	for _, from := range []string{one, two, "nonsense"} {
		attest(moved, from)
	}
	for _, from := range []string{one, two, one} {
		attest(stranger, from)
	}
	const message = "An EK attests from several addresses in turn"
	if log.has(message) {
		t.Error("a machine that moved, or a stranger, is taken for a copy")
	}
	for _, from := range []string{one, two, one} {
		attest(copied, from)
	}
	entry := log.find(t, message)
	if entry["ek_hash"] != copied.EKHash() || entry["peer"] != one || entry["other_peer"] != two {
		t.Errorf("%v", entry)
	}
}

// What sources serve is in the log of a server that was only just configured.
func TestStatusIsLogged(t *testing.T) {
	p := serve(t)
	p.configure(t, oneHashDir(hashDir(t)))
	p.log.await(t, "Source status")
	if entry := p.log.find(t, "Source status"); entry["source"] != "factory" || entry["up"] != true {
		t.Errorf("%v", entry)
	}
}
