package server_test

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// quoting returns a machine that has booted as log says, and sends sent as its log; nil if its
// agent offers none.
func quoting(t *testing.T, log *eventlogtest.Log, sent []byte) *attestortest.TPM {
	t.Helper()
	return attestortest.New(t, attestortest.Options{
		EK: attestor.P256, EventLog: sent,
		PCRs: map[string]map[int][]byte{"sha256": log.PCRs("sha256"), "sha384": log.PCRs("sha384")},
	})
}

// booted returns the log of a boot with Secure Boot, with both banks.
func booted() *eventlogtest.Log { return eventlogtest.Boot{Banks: []string{"sha256", "sha384"}}.Log() }

// What a machine proves of its boot becomes selectors, and nothing else does: not a PCR that the
// operator has not chosen, and not what a log says that does not hash to the quote.
func TestBootSelectors(t *testing.T) {
	log := booted()
	value := func(bank string, pcr int) string { return hex.EncodeToString(log.PCRs(bank)[pcr]) }
	forged := log.Clone()
	forged.Events[slices.IndexFunc(forged.Events, func(e eventlogtest.Event) bool { return e.PCR == 7 })].Data = []byte("x")
	for _, tt := range []struct {
		name, quote string
		sent        []byte
		want        []string
		logged      string
	}{
		{"no quote", ``, log.Bytes(), nil, ""},
		{"PCRs alone", `quote { pcrs = [0, 4, 7] }`, log.Bytes(), nil, "sha256 PCRs 0,4,7; no event log was asked for"},
		{
			"chosen PCRs", `quote { pcrs = [0, 4, 7] selectors = [4, 0] }`, log.Bytes(),
			[]string{"pcr:0:sha256:" + value("sha256", 0), "pcr:4:sha256:" + value("sha256", 4)},
			"",
		},
		{
			"another bank", `quote { pcrs = [7] bank = "sha384" selectors = [7] event_log = "optional" }`, log.Bytes(),
			[]string{"pcr:7:sha384:" + value("sha384", 7), "secureboot:enabled"},
			"",
		},
		{"Secure Boot", `quote { pcrs = [7] event_log = "required" }`, log.Bytes(), []string{"secureboot:enabled"}, ""},
		{
			"Secure Boot without PCR 7", `quote { pcrs = [4] event_log = "required" }`, log.Bytes(), nil,
			"sha256 PCRs 4; the event log replays; Secure Boot unknown: ",
		},
		{"no log", `quote { pcrs = [7] event_log = "optional" }`, []byte{}, nil, "the machine sent no event log"},
		{"no log offered", `quote { pcrs = [7] event_log = "optional" }`, nil, nil, "the machine sent no event log"},
		{"no log in it", `quote { pcrs = [7] event_log = "optional" }`, []byte("x"), nil, "the event log cannot be read"},
		{
			"another machine's log", `quote { pcrs = [7] event_log = "optional" }`, forged.Bytes(), nil,
			"sha256 PCRs 7; the event log does not replay to PCR 7; Secure Boot unknown: ",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tpm := quoting(t, log, tt.sent)
			p := serve(t)
			p.configure(t, oneHashDir(hashDir(t, tpm))+tt.quote)
			got, err := p.attestTPM(t, tpm)
			if err != nil {
				t.Fatal(err)
			}
			want := append([]string{"pub_hash:" + tpm.EKHash(), "rule:default", "source:factory"}, tt.want...)
			slices.Sort(want)
			if !slices.Equal(got.SelectorValues, want) {
				t.Errorf("selectors %q, want %q", got.SelectorValues, want)
			}
			p.log.await(t, "Machine admitted")
			line := p.log.find(t, "Machine admitted")
			if said, _ := line["boot"].(string); !strings.Contains(said, tt.logged) || (said == "") != (tt.quote == "") {
				t.Errorf("logged %q, want %q", said, tt.logged)
			}
			if n := p.Arriving(); n != 0 {
				t.Errorf("%d bytes are still counted as arriving", n)
			}
		})
	}
}

// A machine that is listed and does not prove what the configuration requires is refused, by a
// code upon which its agent gives up, and the log says why.
func TestBootRefusals(t *testing.T) {
	log := booted()
	plain := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	honest := quoting(t, log, log.Bytes())
	forge := func(f func(*tpm2.TPMSAttest)) *attestortest.TPM {
		return attestortest.New(t, attestortest.Options{
			EK: attestor.P256, PCRs: map[string]map[int][]byte{"sha256": log.PCRs("sha256")}, ForgeQuote: f,
		})
	}
	const required = `quote { pcrs = [0, 7] required = true }`
	const logRequired = `quote { pcrs = [0, 7] event_log = "required" }`
	for _, tt := range []struct {
		name, quote string
		tpm         *attestortest.TPM
		change      func(response []byte) []byte
		code        codes.Code
		told, why   string
	}{
		{"cannot quote", required, plain, nil, codes.PermissionDenied, "only machines that quote their PCRs", "does not offer"},
		{"cannot quote, and need not", `quote { pcrs = [7] }`, plain, nil, codes.OK, "", ""},
		{"a log is required of machines that quote", logRequired, plain, nil, codes.OK, "", ""},
		{"quotes", required, honest, nil, codes.OK, "", ""},
		{"offers a quote and sends none", `quote { pcrs = [7] }`, honest, func(r []byte) []byte {
			return bytes.Replace(r, []byte(`"Quote"`), []byte(`"Quota"`), 1)
		}, codes.PermissionDenied, "the quote in the answer to the challenge is missing or wrong", "sent none"},
		{"a forged quote", `quote { pcrs = [7] }`, forge(func(a *tpm2.TPMSAttest) {
			a.ExtraData.Buffer[0] ^= 1
		}), nil, codes.PermissionDenied, "the quote in the answer to the challenge is missing or wrong", "nonces"},
		{"no TPM structure", `quote { pcrs = [7] }`, forge(func(a *tpm2.TPMSAttest) {
			a.Magic = 0
		}), nil, codes.InvalidArgument, "response: Quote.Attest", ""},
		{
			"no log", logRequired, quoting(t, log, []byte{}), nil, codes.PermissionDenied,
			"only machines whose event log accounts for their PCRs", "the machine sent no event log",
		},
		{
			"no log offered", logRequired, quoting(t, log, nil), nil, codes.PermissionDenied,
			"only machines whose event log accounts for their PCRs", "the machine sent no event log",
		},
		{
			"a torn log", logRequired, quoting(t, log, log.Bytes()[:300]), nil, codes.PermissionDenied,
			"only machines whose event log accounts for their PCRs", "cannot be read",
		},
		{
			"a log of another boot", logRequired, quoting(t, log, eventlogtest.Boot{
				Banks: []string{"sha256", "sha384"}, SecureBoot: []byte{0},
			}.Log().Bytes()), nil, codes.PermissionDenied,
			"only machines whose event log accounts for their PCRs", "does not replay to PCR 7",
		},
		{"a longer response than was asked for", ``, honest, func(r []byte) []byte {
			return append(r, make([]byte, attestor.MaxResponseSize)...)
		}, codes.InvalidArgument, "the message is too long", ""},
		{"a response with a log that was not asked for", `quote { pcrs = [7] }`, honest, func(r []byte) []byte {
			return append(r, make([]byte, 2*attestor.MaxResponseSize)...)
		}, codes.InvalidArgument, "the message is too long", ""},
		{"a response longer than any log", logRequired, honest, func(r []byte) []byte {
			return append(r, make([]byte, 420<<10)...)
		}, codes.InvalidArgument, "the message is too long", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := serve(t)
			p.configure(t, oneHashDir(hashDir(t, tt.tpm))+tt.quote)
			_, err := p.attest(t, tt.tpm.Payload(t), func(c []byte) []byte {
				r := tt.tpm.Answer(t, c)
				if tt.change != nil {
					r = tt.change(r)
				}
				return r
			})
			wantStatus(t, err, tt.code, tt.told)
			if tt.why != "" && !p.log.has(tt.why) {
				t.Errorf("the log does not say %q: %v", tt.why, p.log.find(t, "Attestation"))
			}
		})
	}
}

// The configuration that is current when the answer arrives decides. A quote of other PCRs than
// it asks for says nothing about those that it does ask for: the agent tries again, and is asked
// anew.
func TestQuoteChangesMeanwhile(t *testing.T) {
	log := booted()
	tpm := quoting(t, log, log.Bytes())
	plain := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	for _, tt := range []struct {
		name, before, after string
		tpm                 *attestortest.TPM
		code                codes.Code
		secureBoot          bool
	}{
		{"the same", `quote { pcrs = [7] event_log = "optional" }`, `quote { event_log = "optional" pcrs = [7] }`, tpm, codes.OK, true},
		{"other PCRs", `quote { pcrs = [7] }`, `quote { pcrs = [4, 7] }`, tpm, codes.Unavailable, false},
		{"another bank", `quote { pcrs = [7] }`, `quote { pcrs = [7] bank = "sha384" }`, tpm, codes.Unavailable, false},
		{"a log", `quote { pcrs = [7] }`, `quote { pcrs = [7] event_log = "required" }`, tpm, codes.Unavailable, false},
		{"a quote", ``, `quote { pcrs = [7] }`, tpm, codes.Unavailable, false},
		{"no quote", `quote { pcrs = [7] event_log = "optional" }`, ``, tpm, codes.OK, false},
		{"required, of an agent that cannot", `quote { pcrs = [7] }`, `quote { pcrs = [7] required = true }`, plain, codes.PermissionDenied, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := serve(t)
			dir := oneHashDir(hashDir(t, tt.tpm))
			p.configure(t, dir+tt.before)
			got, err := p.attest(t, tt.tpm.Payload(t), func(c []byte) []byte {
				p.configure(t, dir+tt.after)
				return tt.tpm.Answer(t, c)
			})
			wantStatus(t, err, tt.code, "")
			if slices.Contains(got.GetSelectorValues(), "secureboot:enabled") != tt.secureBoot {
				t.Errorf("selectors %q", got.GetSelectorValues())
			}
		})
	}
}
