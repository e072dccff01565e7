package tpm

import (
	"context"
	"encoding/binary"
	"flag"
	"io"
	"testing"
	"testing/synctest"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// script is a TPM that answers with the given responses, each after its length in two
// bytes. It corrects the size in the header, so that the fuzzer gets past the header.
type script struct{ rest []byte }

func (s *script) roundTrip(context.Context, []byte) ([]byte, error) {
	if len(s.rest) < 2 {
		return nil, io.EOF
	}
	size := int(binary.BigEndian.Uint16(s.rest))
	s.rest = s.rest[2:]
	rsp := append([]byte(nil), s.rest[:min(size, len(s.rest))]...)
	s.rest = s.rest[len(rsp):]
	if len(rsp) < headerSize {
		return nil, io.ErrUnexpectedEOF
	}
	binary.BigEndian.PutUint32(rsp[2:], uint32(len(rsp)))
	return rsp, checkTag(rsp)
}

func (*script) Close() error { return nil }

// record returns the script of a real attestation.
func record(tb testing.TB, config Config) []byte {
	tb.Helper()
	return recorded(newTPM(tb, config), func(device *TPM) {
		a, err := device.Begin(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		if _, _, err := answer(a, attestor.Ask{Quote: eightPCRs()}); err != nil {
			tb.Fatal(err)
		}
	})
}

// recorded returns the script of what f does.
func recorded(device *TPM, f func(*TPM)) []byte {
	var script []byte
	(&tap{after: func(_ tpm2.TPMCC, _, rsp []byte) []byte {
		script = binary.BigEndian.AppendUint16(script, uint16(len(rsp)))
		script = append(script, rsp...)
		return rsp
	}}).listen(device)
	f(device)
	return script
}

// recordSVIDKey returns the script of a key that is made, has signed, and is certified, and its name.
func recordSVIDKey(tb testing.TB, config Config) (name, script []byte) {
	tb.Helper()
	script = recorded(newTPM(tb, config), func(device *TPM) {
		k := makeSVIDKey(tb, device, [keydir.UniqueSize]byte{1})
		if err := signed(tb.Context(), device, k); err != nil {
			tb.Fatal(err)
		}
		if _, err := certified(tb, device, slotOf(k), attestor.Ask{}); err != nil {
			tb.Fatal(err)
		}
		name = k.Name
	})
	return name, script
}

// Whatever a broken or hostile TPM answers about an SVID key, the agent neither panics nor runs for ever, nor
// takes a key that servers refuse for its own.
func FuzzSVIDKeyResponses(f *testing.F) {
	if worker := flag.Lookup("test.fuzzworker"); worker == nil || worker.Value.String() != "true" {
		s := swtpmtest.Start(f, swtpmtest.Options{Blank: true})
		name, script := recordSVIDKey(f, Config{Device: s.Device, EK: attestor.P256})
		f.Add(name, script)
		s.Stop()
	}
	f.Fuzz(func(t *testing.T, name, responses []byte) {
		synctest.Test(t, func(t *testing.T) {
			device := newTPM(t, Config{EK: attestor.P256})
			opened := &script{responses}
			device.open = func(context.Context, string) (channel, error) { return opened, nil }
			k, err := device.MakeSVIDKey(t.Context(), [keydir.UniqueSize]byte{1})
			if err != nil {
				return
			}
			if _, err := attestor.ReadSVIDKey(k.Public); err != nil {
				t.Fatalf("a key that servers refuse: %v", err)
			}
			if sig, err := device.SignSVID(t.Context(), k, make([]byte, 32)); (err == nil) != (sig != nil) {
				t.Fatalf("%x, %v", sig, err)
			}
			a, err := device.Begin(t.Context())
			if err != nil {
				return
			}
			a.UseSVIDKey(&keydir.Slot{ID: "agent-svid-A", Serial: 1, Unique: [keydir.UniqueSize]byte{1}, Name: name})
			done, err := a.Activate(t.Context(), &attestor.Activation{Credential: make([]byte, 64), Secret: make([]byte, 64)})
			if err == nil && done.SVIDKey == nil {
				t.Fatal("the key is left out")
			}
		})
	})
}

// Whatever a broken or hostile TPM answers, the agent neither panics nor runs for ever.
func FuzzTPMResponses(f *testing.F) {
	types := []attestor.KeyType{"", attestor.P256, attestor.P384}
	// A worker gets its inputs from the process that started it, and needs no TPM.
	if worker := flag.Lookup("test.fuzzworker"); worker == nil || worker.Value.String() != "true" {
		tpm := swtpmtest.Start(f, swtpmtest.Options{})
		for i, ek := range types {
			f.Add(uint8(i), record(f, Config{Device: tpm.Device, EK: ek}))
		}
		tpm.Stop()
	}
	f.Fuzz(func(t *testing.T, ek uint8, responses []byte) {
		// In a bubble, the pauses between resends take no time.
		synctest.Test(t, func(t *testing.T) {
			device := newTPM(t, Config{EK: types[int(ek)%len(types)]})
			device.open = func(context.Context, string) (channel, error) { return &script{responses}, nil }
			_, _ = device.Inspect(t.Context())
			device.known = nil
			a, err := device.Begin(t.Context())
			if err != nil {
				return
			}
			_, _ = a.Activate(t.Context(), &attestor.Activation{
				Credential: make([]byte, 64), Secret: make([]byte, 64),
				Quote: eightPCRs(), QualifyingData: make([]byte, 32),
			})
		})
	})
}
