package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tap records the commands to a TPM, and may answer in place of the TPM.
type tap struct {
	commands []tpm2.TPMCC
	// instead returns the response to the nth command, counted from 0, or nil if
	// the TPM is to answer.
	instead func(n int, cc tpm2.TPMCC, command []byte) ([]byte, error)
	// killed reports whether the agent is killed after the TPM has run the nth
	// command: the agent then never sees the response.
	killed func(n int) bool
	// opened counts the connections.
	opened int
	// before is called before a command is sent, and may send others.
	before func(ch channel, cc tpm2.TPMCC)
	// after may change the TPM's response.
	after func(cc tpm2.TPMCC, command, rsp []byte) []byte
}

// listen puts the tap between t and its TPM.
func (tp *tap) listen(t *TPM) {
	open := t.open
	t.open = func(ctx context.Context, device string) (channel, error) {
		ch, err := open(ctx, device)
		if err != nil {
			return nil, err
		}
		tp.opened++
		return &tapped{ch, tp}, nil
	}
}

type tapped struct {
	channel
	tap *tap
}

func (c *tapped) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	cc := tpm2.TPMCC(binary.BigEndian.Uint32(command[6:]))
	n := len(c.tap.commands)
	c.tap.commands = append(c.tap.commands, cc)
	if c.tap.instead != nil {
		if rsp, err := c.tap.instead(n, cc, command); rsp != nil || err != nil {
			return rsp, err
		}
	}
	if c.tap.before != nil {
		c.tap.before(c.channel, cc)
	}
	rsp, err := c.channel.roundTrip(ctx, command)
	if err == nil && c.tap.killed != nil && c.tap.killed(n) {
		return nil, errFault
	}
	if err == nil && c.tap.after != nil {
		rsp = c.tap.after(cc, command, rsp)
	}
	return rsp, err
}

// fakeChannel is a TPM that is a function.
type fakeChannel func(ctx context.Context, command []byte) ([]byte, error)

func (f fakeChannel) roundTrip(ctx context.Context, command []byte) ([]byte, error) {
	return f(ctx, command)
}

func (fakeChannel) Close() error { return nil }

// response returns a response without sessions.
func response(code tpm2.TPMRC, body ...byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(tpm2.TPMSTNoSessions))
	b = binary.BigEndian.AppendUint32(b, uint32(headerSize+len(body)))
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return append(b, body...)
}

func newTPM(tb testing.TB, config Config) *TPM {
	tb.Helper()
	t, err := New(config)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// attest runs one whole attestation, with the server's half, and returns the EK that the
// server has seen.
func attest(tb testing.TB, t *TPM) *attestor.EK {
	tb.Helper()
	a, err := t.Begin(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	ek, err := finish(a)
	if err != nil {
		tb.Fatal(err)
	}
	return ek
}

// finish runs the rest of an attestation that has begun.
func finish(a *Attestation) (*attestor.EK, error) {
	ek, _, err := answer(a, attestor.Ask{})
	return ek, err
}

// answer runs the rest of an attestation that has begun, in which the server asks for more than
// the secret.
func answer(a *Attestation, ask attestor.Ask) (*attestor.EK, *attestor.Answer, error) {
	prover := attestor.NewProver(a.Claim, activator{a})
	payload, err := prover.Payload()
	if err != nil {
		return nil, nil, err
	}
	session, err := new(attestor.Verifier).Begin(payload)
	if err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	ek := *session.EK() // with the certificate, which Challenge drops
	challenge, err := session.Challenge(ask)
	if err != nil {
		return nil, nil, fmt.Errorf("server: %w", err)
	}
	response, err := prover.Answer(challenge)
	if err != nil {
		return nil, nil, err
	}
	proven, err := session.Finish(response)
	return &ek, proven, err
}

// activator is an attestation that nobody cancels.
type activator struct{ *Attestation }

func (a activator) Activate(task *attestor.Activation) (*attestor.Activated, error) {
	done, err := a.Attestation.Activate(context.Background(), task)
	if err == nil && task.EventLog {
		done.EventLog, err = a.tpm.EventLog()
	}
	return done, err
}

// direct runs f with a connection that no tap sees.
func direct(tb testing.TB, device string, f func(transport.TPM)) {
	tb.Helper()
	ch, err := openChannel(tb.Context(), device)
	if err != nil {
		tb.Fatal(err)
	}
	defer ch.Close()
	f(newConn(tb.Context(), ch))
}

// must runs a command and returns its response.
func must[C tpm2.Command[R, *R], R any](tb testing.TB, c transport.TPM, cmd C) *R {
	tb.Helper()
	rsp, err := cmd.Execute(c)
	if err != nil {
		tb.Fatalf("%T: %v", cmd, err)
	}
	return rsp
}

// loaded returns the handles of all loaded keys and sessions.
func loaded(tb testing.TB, device string) []tpm2.TPMHandle {
	tb.Helper()
	var all []tpm2.TPMHandle
	direct(tb, device, func(c transport.TPM) {
		for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
			rsp := must(tb, c, tpm2.GetCapability{
				Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64,
			})
			handles, err := rsp.CapabilityData.Data.Handles()
			if err != nil {
				tb.Fatal(err)
			}
			all = append(all, handles.Handle...)
		}
	})
	return all
}

// wantNothingLoaded checks that no key and no session is loaded.
func wantNothingLoaded(tb testing.TB, device string) {
	tb.Helper()
	if left := loaded(tb, device); len(left) > 0 {
		tb.Errorf("left in the TPM: %#x", left)
	}
}

func count(commands []tpm2.TPMCC, cc tpm2.TPMCC) int {
	return len(slices.DeleteFunc(slices.Clone(commands), func(c tpm2.TPMCC) bool { return c != cc }))
}
