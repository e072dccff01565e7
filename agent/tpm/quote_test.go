package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

func eightPCRs() *attestor.QuoteRequest {
	return &attestor.QuoteRequest{Bank: "sha256", PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}}
}

// extend extends a PCR of all banks that the TPM has.
func extend(tb testing.TB, c transport.TPM, pcr uint32, what string) {
	tb.Helper()
	sum := sha256.Sum256([]byte(what))
	must(tb, c, tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{
			{HashAlg: tpm2.TPMAlgSHA256, Digest: sum[:]},
			{HashAlg: tpm2.TPMAlgSHA384, Digest: append(sum[:], make([]byte, 16)...)},
		}},
	})
}

// extended is the value of a SHA-256 PCR that was zero and is extended by what.
func extended(what ...string) []byte {
	value := make([]byte, sha256.Size)
	for _, w := range what {
		sum := sha256.Sum256([]byte(w))
		next := sha256.Sum256(slices.Concat(value, sum[:]))
		value = next[:]
	}
	return value
}

// quoteOf runs one attestation with a quote and returns what the server has verified.
func quoteOf(t *testing.T, device *TPM, req *attestor.QuoteRequest) *attestor.Quote {
	t.Helper()
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, proven, err := answer(a, attestor.Ask{Quote: req})
	if err != nil {
		t.Fatal(err)
	}
	if proven.Quote == nil {
		t.Fatalf("no quote; the agent offers %v", a.Claim.Can)
	}
	return proven.Quote
}

// A real TPM quotes its PCRs, as many as there are, of either bank, with each type of AK, and the
// server takes it. A TPM returns eight values at a time.
func TestQuote(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	direct(t, tpm.Device, func(c transport.TPM) {
		extend(t, c, 0, "firmware")
		extend(t, c, 7, "secure boot")
		extend(t, c, 7, "db")
	})
	var all []int
	for i := range 24 {
		all = append(all, i)
	}
	for _, ak := range []attestor.KeyType{attestor.P256, attestor.RSA2048} {
		for _, bank := range []string{"sha256", "sha384"} {
			for _, pcrs := range [][]int{{7}, {0, 2, 4, 7}, eightPCRs().PCRs, all[:9], all} {
				t.Run(fmt.Sprintf("%s/%s/%d", ak, bank, len(pcrs)), func(t *testing.T) {
					device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256, AK: ak})
					q := quoteOf(t, device, &attestor.QuoteRequest{Bank: bank, PCRs: pcrs})
					if len(q.PCRs) != len(pcrs) {
						t.Errorf("%d PCRs are quoted, want %d", len(q.PCRs), len(pcrs))
					}
					if want := extended("secure boot", "db"); bank == "sha256" && !bytes.Equal(q.PCRs[7], want) {
						t.Errorf("PCR 7 is %x, want %x", q.PCRs[7], want)
					}
					if slices.Contains(pcrs, 0) && bytes.Equal(q.PCRs[0], make([]byte, len(q.PCRs[0]))) {
						t.Error("PCR 0 is not extended")
					}
					wantNothingLoaded(t, tpm.Device)
				})
			}
		}
	}
}

// A quote of eight PCRs costs two commands, on the connection and with the keys that are there for
// the credential: other programs wait for their commands. The AK quotes nothing before the TPM has
// activated the credential.
func TestCommandsOfAQuote(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{})
	for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384} {
		device := newTPM(t, Config{Device: tpm.Device, EK: ek})
		tap := new(tap)
		tap.listen(device)
		attest(t, device)
		tap.commands, tap.opened = nil, 0
		attest(t, device)
		without, opened := tap.commands, tap.opened
		tap.commands, tap.opened = nil, 0
		quoteOf(t, device, eightPCRs())
		i := slices.Index(without, tpm2.TPMCCActivateCredential) + 1
		want := slices.Insert(slices.Clone(without), i, tpm2.TPMCCPCRRead, tpm2.TPMCCQuote)
		if !slices.Equal(tap.commands, want) || tap.opened != opened {
			t.Errorf("%s: with a quote\n%#x\nwant\n%#x; the TPM is opened %d times, want %d",
				ek, tap.commands, want, tap.opened, opened)
		}
	}
}

// A server that is not ours must not get a quote for a credential that it cannot make.
func TestNoQuoteWithoutActivation(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	tap := new(tap)
	tap.listen(device)
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done, err := a.Activate(t.Context(), &attestor.Activation{
		Credential: make([]byte, 64), Secret: make([]byte, 64),
		Quote: eightPCRs(), QualifyingData: make([]byte, 32),
	})
	if err == nil || done != nil || count(tap.commands, tpm2.TPMCCQuote)+count(tap.commands, tpm2.TPMCCPCRRead) > 0 {
		t.Errorf("%v, %v after the commands %#x", done, err, tap.commands)
	}
	wantNothingLoaded(t, tpm.Device)
}

// If something is measured between the reading of the PCRs and the quote, the PCRs are read again,
// and the server sees the value that is quoted. If that never ends, the agent gives up, and says
// what to ask for instead.
func TestPCRThatChanges(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for _, changes := range []int{1, quoteTries - 1, quoteTries} {
		tpm.Restart() // PCRs are zero
		device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
		tap, quotes := new(tap), 0
		var measured []string
		tap.before = func(ch channel, cc tpm2.TPMCC) {
			if cc != tpm2.TPMCCQuote {
				return
			}
			if quotes++; quotes <= changes {
				measured = append(measured, strconv.Itoa(quotes))
				extend(t, newConn(t.Context(), ch), 10, measured[len(measured)-1])
			}
		}
		tap.listen(device)
		a, err := device.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, proven, err := answer(a, attestor.Ask{Quote: &attestor.QuoteRequest{Bank: "sha256", PCRs: []int{7, 10}}})
		if changes == quoteTries {
			if !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), "0 to 7") || quotes != quoteTries {
				t.Errorf("%v after %d quotes", err, quotes)
			}
			wantNothingLoaded(t, tpm.Device)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if want := extended(measured...); !bytes.Equal(proven.Quote.PCRs[10], want) || quotes != changes+1 {
			t.Errorf("PCR 10 is %x after %d quotes, want %x", proven.Quote.PCRs[10], quotes, want)
		}
	}
}

// A TPM without the bank that a server asks for says which it has and what to do. A TPM whose only
// bank is SHA-1 offers no quote: servers that require none still admit the machine.
func TestBankThatIsMissing(t *testing.T) {
	tpm := swtpmtest.Start(t, swtpmtest.Options{}) // only SHA-256
	device := newTPM(t, Config{Device: tpm.Device, EK: attestor.P256})
	a, err := device.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = answer(a, attestor.Ask{Quote: &attestor.QuoteRequest{Bank: "sha384", PCRs: []int{7}}})
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "its banks are sha256:") ||
		!strings.Contains(err.Error(), "tpm2_pcrallocate") {
		t.Errorf("error %v", err)
	}
	wantNothingLoaded(t, tpm.Device)
	quoteOf(t, device, eightPCRs())

	old := swtpmtest.Start(t, swtpmtest.Options{PCRBanks: "sha1"})
	device = newTPM(t, Config{Device: old.Device, EK: attestor.P256, EventLogPath: "/log"})
	if a, err = device.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(a.Claim.Can) > 0 {
		t.Errorf("it offers %v", a.Claim.Can)
	}
	if _, proven, err := answer(a, attestor.Ask{Quote: eightPCRs(), EventLog: true}); err != nil || proven.Quote != nil {
		t.Errorf("%v, %v", proven, err)
	}
}

// A broken or hostile TPM cannot make the agent read for ever, nor send values of other PCRs.
func TestStrangePCRs(t *testing.T) {
	value := slices.Concat([]byte{0, 32}, make([]byte, 32))
	list := func(values ...[]byte) []byte {
		return slices.Concat(append([][]byte{binary.BigEndian.AppendUint32(nil, uint32(len(values)))}, values...)...)
	}
	selects := func(bank tpm2.TPMAlgID, selected ...byte) []byte {
		return slices.Concat([]byte{0, 0, 0, 1, byte(bank >> 8), byte(bank), byte(len(selected))}, selected)
	}
	for name, tt := range map[string]struct {
		body []byte // behind the update counter
		want string // the error
	}{
		"none":            {slices.Concat(selects(tpm2.TPMAlgSHA256, 0, 0, 0), list()), "does not have all of the PCRs [0 7]"},
		"no selection":    {slices.Concat([]byte{0, 0, 0, 0}, list()), "does not have all of the PCRs"},
		"a value of none": {slices.Concat([]byte{0, 0, 0, 0}, list(value)), "1 values of 0 PCRs"},
		"another PCR":     {slices.Concat(selects(tpm2.TPMAlgSHA256, 2, 0, 0), list(value)), "not asked for"},
		"PCR 24":          {slices.Concat(selects(tpm2.TPMAlgSHA256, 0, 0, 0, 1), list(value)), "not asked for"},
		"another bank":    {slices.Concat(selects(tpm2.TPMAlgSHA1, 1, 0, 0), list(value)), "bank sha1"},
		"no value":        {slices.Concat(selects(tpm2.TPMAlgSHA256, 1, 0, 0), list()), "no value of PCR 0"},
		"a short value":   {slices.Concat(selects(tpm2.TPMAlgSHA256, 1, 0, 0), list([]byte{0, 1, 0})), "no value of PCR 0"},
		"the same again":  {slices.Concat(selects(tpm2.TPMAlgSHA256, 1, 0, 0), list(value)), "not asked for"},
	} {
		t.Run(name, func(t *testing.T) {
			sent := 0
			c := newConn(t.Context(), fakeChannel(func(context.Context, []byte) ([]byte, error) {
				sent++
				return response(tpm2.TPMRCSuccess, append([]byte{0, 0, 0, 1}, tt.body...)...), nil
			}))
			a := &Attestation{banks: []tpm2.TPMAlgID{tpm2.TPMAlgSHA256}}
			values, err := a.readPCRs(c, &attestor.QuoteRequest{Bank: "sha256", PCRs: []int{0, 7}})
			if err == nil || !strings.Contains(err.Error(), tt.want) || sent > 2 {
				t.Errorf("%v, %v after %d commands, want %q", values, err, sent, tt.want)
			}
		})
	}
	// TPMs that do not know the algorithm at all answer with a code.
	for _, code := range []tpm2.TPMRC{tpm2.TPMRCHash, tpm2.TPMRCValue} {
		c := newConn(t.Context(), fakeChannel(func(context.Context, []byte) ([]byte, error) {
			return response(code), nil
		}))
		a := &Attestation{banks: []tpm2.TPMAlgID{tpm2.TPMAlgSHA256, 0x0012}}
		_, err := a.readPCRs(c, &attestor.QuoteRequest{Bank: "sha384", PCRs: []int{0}})
		if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "its banks are sha256, 0x0012") {
			t.Errorf("%v: %v", code, err)
		}
	}
}
