package attestor_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// somePCRs are the PCRs of a machine that has booted. Each has a value of its own.
func somePCRs() map[string]map[int][]byte {
	pcrs := map[string]map[int][]byte{"sha256": {}, "sha384": {}}
	for i := range 24 {
		short, long := sha256.Sum256([]byte{byte(i)}), sha512.Sum384([]byte{byte(i)})
		pcrs["sha256"][i], pcrs["sha384"][i] = short[:], long[:]
	}
	return pcrs
}

func someAsk() attestor.Ask {
	return attestor.Ask{Quote: &attestor.QuoteRequest{Bank: "sha256", PCRs: []int{0, 2, 4, 7}}, EventLog: true}
}

func everyPCR() []int {
	var all []int
	for i := range 24 {
		all = append(all, i)
	}
	return all
}

// fullChallenge and fullResponse are the messages as other programs may declare them.
type (
	fullChallenge struct {
		Nonce    []byte
		Quote    *attestor.QuoteRequest
		EventLog bool
		DevID    bool
	}
	fullResponse struct {
		Secret   []byte
		Nonce    []byte                `json:",omitempty"`
		Quote    *attestor.SignedQuote `json:",omitempty"`
		EventLog []byte
		DevID    *attestor.SignedDevID   `json:",omitempty"`
		SVIDKey  *attestor.SignedSVIDKey `json:",omitempty"`
	}
)

func ask(t testing.TB, s *attestor.Session, ask attestor.Ask) []byte {
	t.Helper()
	msg, err := s.Challenge(ask)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

func read[M any](t testing.TB, msg []byte) (m M) {
	t.Helper()
	if err := json.Unmarshal(msg, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func write(t testing.TB, m any) []byte {
	t.Helper()
	msg, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return msg
}

// A TPM quotes with every kind of AK, and the server learns the values of exactly the PCRs that
// it asked for. The largest response fits.
func TestQuote(t *testing.T) {
	t.Parallel()
	log := bytes.Repeat([]byte("l"), attestor.MaxEventLogSize)
	for _, o := range []attestortest.Options{
		{AK: attestor.P256},
		{AK: attestor.P384},
		{AK: attestor.P521},
		{AK: attestor.RSA2048},
		{AK: attestor.RSA2048, PSS: true},
	} {
		for _, bank := range []string{"sha256", "sha384"} {
			for _, pcrs := range [][]int{{0}, {23}, {0, 2, 4, 7}, everyPCR()} {
				t.Run(fmt.Sprintf("%s/%s/%d", describe(o), bank, pcrs), func(t *testing.T) {
					t.Parallel()
					o := o
					o.EK, o.PCRs, o.EventLog = attestor.P256, somePCRs(), log
					tpm := attestortest.New(t, o)
					s := begin(t, tpm)
					msg := ask(t, s, attestor.Ask{Quote: &attestor.QuoteRequest{Bank: bank, PCRs: pcrs}, EventLog: true})
					answer, err := s.Finish(tpm.Answer(t, msg))
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(answer.EventLog, log) {
						t.Errorf("a log of %d bytes arrives", len(answer.EventLog))
					}
					if q := answer.Quote; q.Bank != bank || len(q.PCRs) != len(pcrs) {
						t.Fatalf("a quote of %d PCRs of %s", len(q.PCRs), q.Bank)
					}
					for _, pcr := range pcrs {
						if want := o.PCRs[bank][pcr]; !bytes.Equal(answer.Quote.PCRs[pcr], want) {
							t.Errorf("PCR %d is %x, want %x", pcr, answer.Quote.PCRs[pcr], want)
						}
					}
				})
			}
		}
	}
}

// Old and new agents and servers understand each other: what an agent does not offer is not
// asked for, and what is not asked for is not sent. A log comes only with a quote.
func TestAskedIsWhatIsOffered(t *testing.T) {
	t.Parallel()
	pcrs, quote := somePCRs(), someAsk().Quote
	for name, test := range map[string]struct {
		options attestortest.Options
		ask     attestor.Ask
		asked   []string // the members of the challenge
		sent    []string // the members of the response
	}{
		"everything": {
			attestortest.Options{PCRs: pcrs, EventLog: []byte("log")},
			someAsk(),
			[]string{"EC", "EventLog", "Nonce", "Quote"},
			[]string{"EventLog", "Nonce", "Quote", "Secret"},
		},
		"no log asked for": {
			attestortest.Options{PCRs: pcrs, EventLog: []byte("log")},
			attestor.Ask{Quote: quote},
			[]string{"EC", "Nonce", "Quote"},
			[]string{"Nonce", "Quote", "Secret"},
		},
		"no log offered": {
			attestortest.Options{PCRs: pcrs},
			someAsk(),
			[]string{"EC", "Nonce", "Quote"},
			[]string{"Nonce", "Quote", "Secret"},
		},
		"a log without a quote": {
			attestortest.Options{PCRs: pcrs, EventLog: []byte("log")},
			attestor.Ask{EventLog: true},
			[]string{"EC"},
			[]string{"Secret"},
		},
		"a log without PCRs":   {attestortest.Options{EventLog: []byte("log")}, someAsk(), []string{"EC"}, []string{"Secret"}},
		"an older agent":       {attestortest.Options{}, someAsk(), []string{"EC"}, []string{"Secret"}},
		"nothing is asked for": {attestortest.Options{PCRs: pcrs}, attestor.Ask{}, []string{"EC"}, []string{"Secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.options.EK = attestor.P256
			tpm := attestortest.New(t, test.options)
			s := begin(t, tpm)
			if s.Can(attestor.CanPCRs) != (test.options.PCRs != nil) || s.Can("devid") ||
				s.Can(attestor.CanEventLog) != (test.options.EventLog != nil) {
				t.Error("the server does not know what the agent can")
			}
			challenge := ask(t, s, test.ask)
			if got := names(t, challenge); !slices.Equal(got, test.asked) {
				t.Errorf("the challenge has %v, want %v", got, test.asked)
			}
			response := tpm.Answer(t, challenge)
			if got := names(t, response); !slices.Equal(got, test.sent) {
				t.Errorf("the response has %v, want %v", got, test.sent)
			}
			answer, err := s.Finish(response)
			if err != nil {
				t.Fatal(err)
			}
			if quoted := slices.Contains(test.sent, "Quote"); (answer.Quote != nil) != quoted {
				t.Errorf("a quote: %v", answer.Quote)
			}
			if logged := slices.Contains(test.sent, "EventLog"); (answer.EventLog != nil) != logged {
				t.Errorf("a log: %q", answer.EventLog)
			}
		})
	}
}

func names(t *testing.T, msg []byte) []string {
	t.Helper()
	var all []string
	for name := range read[map[string]any](t, msg) {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// The session keeps only known words of a payload's Can: strangers must not fill the memory.
func TestCanOfAStranger(t *testing.T) {
	t.Parallel()
	m := membersOf(t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))
	m["Can"] = []string{strings.Repeat("x", 64), attestor.CanPCRs, "PCRS"}
	var v attestor.Verifier
	s, err := v.Begin(m.encode(t))
	if err != nil {
		t.Fatal(err)
	}
	if !s.Can(attestor.CanPCRs) || s.Can(attestor.CanEventLog) || s.Can("PCRS") || s.Can(strings.Repeat("x", 64)) {
		t.Error("the wrong words are kept")
	}
}

// A server cannot ask for what no agent would answer: its configuration is wrong.
func TestBadAsks(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs()})
	for name, q := range map[string]attestor.QuoteRequest{
		"no bank":    {PCRs: []int{0}},
		"SHA-1":      {Bank: "sha1", PCRs: []int{0}},
		"no PCRs":    {Bank: "sha256"},
		"PCR 24":     {Bank: "sha256", PCRs: []int{24}},
		"PCR -1":     {Bank: "sha256", PCRs: []int{-1}},
		"twice":      {Bank: "sha256", PCRs: []int{7, 7}},
		"descending": {Bank: "sha256", PCRs: []int{7, 0}},
	} {
		s := begin(t, tpm)
		if msg, err := s.Challenge(attestor.Ask{Quote: &q}); err == nil {
			t.Errorf("%s: %s", name, msg)
		}
		if _, err := s.Finish(wrongAnswer); err == nil {
			t.Errorf("%s: the session goes on", name)
		}
		if got := q.Selection(); len(got.PCRSelect) != 0 {
			t.Errorf("%s: it selects %x", name, got.PCRSelect)
		}
	}
}

// quoted changes the TPMS_QUOTE_INFO of a quote before it is signed.
func quoted(change func(*tpm2.TPMSQuoteInfo)) func(*tpm2.TPMSAttest) {
	return func(a *tpm2.TPMSAttest) {
		q, err := a.Attested.Quote()
		if err != nil {
			return
		}
		change(q)
		a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, q)
	}
}

// selects makes a quote of other selections.
func selects(all ...tpm2.TPMSPCRSelection) func(*tpm2.TPMSAttest) {
	return quoted(func(q *tpm2.TPMSQuoteInfo) { q.PCRSelect.PCRSelections = all })
}

// lying are TPMs that sign something else than a quote of the PCRs that were asked for.
func lying() map[string]func(*tpm2.TPMSAttest) {
	asked := someAsk().Quote.Selection()
	of := func(bank tpm2.TPMAlgID, selected ...byte) func(*tpm2.TPMSAttest) {
		return selects(tpm2.TPMSPCRSelection{Hash: bank, PCRSelect: selected})
	}
	first, second, third := asked.PCRSelect[0], asked.PCRSelect[1], asked.PCRSelect[2]
	sums := sha512.Sum384([]byte("another hash"))
	return map[string]func(*tpm2.TPMSAttest){
		"another bank":       of(tpm2.TPMAlgSHA384, first, second, third),
		"SHA-1":              of(tpm2.TPMAlgSHA1, first, second, third),
		"one PCR more":       of(tpm2.TPMAlgSHA256, first, second|1, third),
		"one PCR less":       of(tpm2.TPMAlgSHA256, first&^1, second, third),
		"no PCR":             of(tpm2.TPMAlgSHA256, 0, 0, 0),
		"an empty selection": of(tpm2.TPMAlgSHA256),
		"two bytes":          of(tpm2.TPMAlgSHA256, first, second),
		"PCR 24":             of(tpm2.TPMAlgSHA256, first, second, third, 1),
		"a needless byte":    of(tpm2.TPMAlgSHA256, first, second, third, 0),
		"no selection":       selects(),
		"two selections":     selects(asked, tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA384, PCRSelect: asked.PCRSelect}),
		"a selection twice":  selects(asked, asked),
		"another digest": quoted(func(q *tpm2.TPMSQuoteInfo) {
			q.PCRDigest.Buffer = bytes.Repeat([]byte{1}, 32)
		}),
		"a digest of another size": quoted(func(q *tpm2.TPMSQuoteInfo) { q.PCRDigest.Buffer = sums[:] }),
		"no digest":                quoted(func(q *tpm2.TPMSQuoteInfo) { q.PCRDigest.Buffer = nil }),
		"no nonces":                func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = nil },
	}
}

// A quote that the AK has signed and that is not of exactly the PCRs that were asked for, in one
// selection, over this session's nonces, is refused.
func TestQuoteOfSomethingElse(t *testing.T) {
	t.Parallel()
	for name, forge := range lying() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs(), ForgeQuote: forge})
			s := begin(t, tpm)
			wantRefused(t, s, tpm.Answer(t, ask(t, s, someAsk())), attestor.ErrQuoteFailed, true)
		})
	}
}

// What the AK signs by other commands is no quote, even if it is over the right nonces; nor is a
// structure that a TPM cannot have made.
func TestOtherAttestations(t *testing.T) {
	t.Parallel()
	as := func(typ tpm2.TPMST, attested tpm2.TPMUAttest) func(*tpm2.TPMSAttest) {
		return func(a *tpm2.TPMSAttest) { a.Type, a.Attested = typ, attested }
	}
	for name, forge := range map[string]func(*tpm2.TPMSAttest){
		"magic":   func(a *tpm2.TPMSAttest) { a.Magic = 0xFF544346 },
		"CERTIFY": as(tpm2.TPMSTAttestCertify, tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})),
		"CREATION": as(tpm2.TPMSTAttestCreation,
			tpm2.NewTPMUAttest(tpm2.TPMSTAttestCreation, &tpm2.TPMSCreationInfo{})),
		"TIME": as(tpm2.TPMSTAttestTime, tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})),
		"NV":   as(tpm2.TPMSTAttestNV, tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, &tpm2.TPMSNVCertifyInfo{})),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs(), ForgeQuote: forge})
			s := begin(t, tpm)
			wantRefused(t, s, tpm.Answer(t, ask(t, s, someAsk())), attestor.ErrQuoteFailed, false)
		})
	}
}

// scene is an attestation whose response a machine may change.
type scene struct {
	tpm       *attestortest.TPM
	challenge fullChallenge
	response  fullResponse
}

func (s *scene) forge(t *testing.T, data []byte) {
	t.Helper()
	q, err := s.tpm.Quote(s.challenge.Quote, data)
	if err != nil {
		t.Fatal(err)
	}
	s.response.Quote = q
}

// A response whose values are not exactly those that were quoted, or whose quote is not this
// session's, is refused.
func TestForgedQuotes(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(*testing.T, *scene)
		wrong  bool // well formed and wrong
	}{
		"no quote":      {func(_ *testing.T, s *scene) { s.response.Quote, s.response.Nonce = nil, nil }, true},
		"only a nonce":  {func(_ *testing.T, s *scene) { s.response.Quote = nil }, true},
		"forged first":  {func(_ *testing.T, s *scene) { s.insert(0, attestor.PCR{Index: 0, Digest: make([]byte, 32)}) }, true},
		"forged second": {func(_ *testing.T, s *scene) { s.insert(1, attestor.PCR{Index: 0, Digest: make([]byte, 32)}) }, true},
		"one for another": {func(_ *testing.T, s *scene) {
			s.response.Quote.PCRs[1] = s.response.Quote.PCRs[0]
		}, true},
		"missing":     {func(_ *testing.T, s *scene) { s.response.Quote.PCRs = s.response.Quote.PCRs[:3] }, true},
		"none":        {func(_ *testing.T, s *scene) { s.response.Quote.PCRs = []attestor.PCR{} }, true},
		"extra":       {func(_ *testing.T, s *scene) { s.insert(4, attestor.PCR{Index: 8, Digest: make([]byte, 32)}) }, true},
		"PCR 24":      {func(_ *testing.T, s *scene) { s.response.Quote.PCRs[3].Index = 24 }, true},
		"another PCR": {func(_ *testing.T, s *scene) { s.response.Quote.PCRs[3].Index = 8 }, true},
		"25 values": {func(_ *testing.T, s *scene) {
			s.response.Quote.PCRs = slices.Repeat(s.response.Quote.PCRs[:1], 25)
		}, false},
		"another order": {func(_ *testing.T, s *scene) { slices.Reverse(s.response.Quote.PCRs) }, true},
		"swapped values": {func(_ *testing.T, s *scene) {
			p := s.response.Quote.PCRs
			p[0].Digest, p[1].Digest = p[1].Digest, p[0].Digest
		}, true},
		"another value": {func(_ *testing.T, s *scene) { s.response.Quote.PCRs[3].Digest[31] ^= 1 }, true},
		"cut elsewhere": {func(_ *testing.T, s *scene) {
			p := s.response.Quote.PCRs
			p[0].Digest, p[1].Digest = append(p[0].Digest, p[1].Digest[0]), p[1].Digest[1:]
		}, true},
		"no value": {func(_ *testing.T, s *scene) { s.response.Quote.PCRs[0].Digest = nil }, false},
		"the other bank's values": {func(_ *testing.T, s *scene) {
			for i, p := range s.response.Quote.PCRs {
				s.response.Quote.PCRs[i].Digest = somePCRs()["sha384"][p.Index]
			}
		}, true},
		"a byte behind the quote": {func(_ *testing.T, s *scene) {
			s.response.Quote.Attest = append(s.response.Quote.Attest, 0)
		}, false},
		"a byte behind the signature": {func(_ *testing.T, s *scene) {
			s.response.Quote.Signature = append(s.response.Quote.Signature, 0)
		}, false},
		"cut":            {func(_ *testing.T, s *scene) { s.response.Quote.Attest = s.response.Quote.Attest[:90] }, false},
		"no attestation": {func(_ *testing.T, s *scene) { s.response.Quote.Attest = nil }, false},
		"no signature":   {func(_ *testing.T, s *scene) { s.response.Quote.Signature = nil }, false},
		"a huge quote":   {func(_ *testing.T, s *scene) { s.response.Quote.Attest = make([]byte, 1025) }, false},
		"altered":        {func(_ *testing.T, s *scene) { s.response.Quote.Attest[60] ^= 1 }, true},
		"another scheme": {func(_ *testing.T, s *scene) { s.response.Quote.Signature[1] ^= 1 }, true},
		"another hash":   {func(_ *testing.T, s *scene) { s.response.Quote.Signature[3] ^= 1 }, true},
		"the AK's own": {func(_ *testing.T, s *scene) {
			s.response.Quote.Signature = s.tpm.Claim().AK.CreateSignature
		}, true},
		"the creation": {func(_ *testing.T, s *scene) {
			ak := s.tpm.Claim().AK
			s.response.Quote.Attest, s.response.Quote.Signature = ak.CreateAttestation, ak.CreateSignature
		}, false},
		"another AK's": {func(t *testing.T, s *scene) {
			other := scene{
				tpm:       attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs()}),
				challenge: s.challenge,
			}
			other.forge(t, attestor.QualifyingData(s.challenge.Nonce, s.response.Nonce))
			s.response.Quote = other.response.Quote
		}, true},
		"another session's": {func(t *testing.T, s *scene) {
			other := begin(t, s.tpm)
			r := read[fullResponse](t, s.tpm.Answer(t, ask(t, other, someAsk())))
			s.response.Quote, s.response.Nonce = r.Quote, r.Nonce
		}, true},
		"the server's nonce alone": {func(t *testing.T, s *scene) { s.forge(t, s.challenge.Nonce) }, true},
		"the server's nonce hashed": {func(t *testing.T, s *scene) {
			s.forge(t, attestor.QualifyingData(s.challenge.Nonce, nil))
		}, true},
		"the agent's nonce alone": {func(t *testing.T, s *scene) {
			s.forge(t, attestor.QualifyingData(nil, s.response.Nonce))
		}, true},
		"nonces in another order": {func(t *testing.T, s *scene) {
			s.forge(t, attestor.QualifyingData(s.response.Nonce, s.challenge.Nonce))
		}, true},
		"no nonce": {func(_ *testing.T, s *scene) { s.response.Nonce = nil }, false},
		"no nonce, signed": {func(t *testing.T, s *scene) {
			s.response.Nonce = nil
			s.forge(t, attestor.QualifyingData(s.challenge.Nonce, nil))
		}, false},
		"a short nonce": {func(t *testing.T, s *scene) {
			s.response.Nonce = s.response.Nonce[:31]
			s.forge(t, attestor.QualifyingData(s.challenge.Nonce, s.response.Nonce))
		}, false},
		"a long nonce": {func(t *testing.T, s *scene) {
			s.response.Nonce = append(s.response.Nonce, 0)
			s.forge(t, attestor.QualifyingData(s.challenge.Nonce, s.response.Nonce))
		}, false},
		"another nonce": {func(_ *testing.T, s *scene) { s.response.Nonce[0] ^= 1 }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs()})
			session := begin(t, tpm)
			challenge := ask(t, session, someAsk())
			s := &scene{tpm, read[fullChallenge](t, challenge), read[fullResponse](t, tpm.Answer(t, challenge))}
			test.change(t, s)
			wantRefused(t, session, write(t, s.response), attestor.ErrQuoteFailed, test.wrong)
		})
	}
}

func (s *scene) insert(i int, pcr attestor.PCR) {
	s.response.Quote.PCRs = slices.Insert(s.response.Quote.PCRs, i, pcr)
}

// A good quote does not make up for a wrong secret: without the secret it proves nothing, since
// the AK may be in another TPM.
func TestQuoteWithoutTheSecret(t *testing.T) {
	t.Parallel()
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs()})
	s := begin(t, tpm)
	r := read[fullResponse](t, tpm.Answer(t, ask(t, s, someAsk())))
	r.Secret[0] ^= 1
	if answer, err := s.Finish(write(t, r)); !errors.Is(err, attestor.ErrChallengeFailed) || answer != nil {
		t.Errorf("%v, want ErrChallengeFailed", err)
	}
}

// JSON that other readers may read in another way is refused.
func TestQuoteInStrangeJSON(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][2]string{
		"index with a fraction":     {`"Index":2`, `"Index":2.0`},
		"index with an exponent":    {`"Index":2`, `"Index":2e0`},
		"negative":                  {`"Index":2`, `"Index":-2`},
		"of 2^32+2":                 {`"Index":2`, `"Index":4294967298`},
		"a string":                  {`"Index":2`, `"Index":"2"`},
		"null":                      {`"Index":2`, `"Index":null`},
		"no index":                  {`"Index":0,`, ``},
		"an index twice":            {`"Index":2`, `"Index":0,"Index":2`},
		"PCRs twice":                {`"PCRs":[`, `"PCRs":[],"PCRs":[`},
		"PCRs an object":            {`"PCRs":[`, `"PCRs":{},"x":[`},
		"a value that is no object": {`"PCRs":[`, `"PCRs":[0,`},
		"a value twice":             {`"Digest":`, `"Digest":"AAAA","Digest":`},
		"an empty value":            {`"Digest":"`, `"Digest":"","x":"`},
		"a value of line ends":      {`"Digest":"`, `"Digest":"\n`},
		"a value with a line end":   {`="}`, `\n="}`},
		"a value without padding":   {`="}`, `"}`},
		"a value in base64url":      {`"Digest":"`, `"Digest":"__--`},
		"values of one who counts":  {`"PCRs":[`, `"PCRs":[` + strings.Repeat(`0,`, 5000)},
		"an unknown member twice":   {`"Quote":{`, `"Quote":{"x":1,"x":1,`},
		"twice, further inside":     {`"Quote":{`, `"y":[{"x":{"a":1,"a":1}}],"Quote":{`},
		"a name in lower case":      {`"Index":2`, `"index":2`},
		"Attest twice":              {`"Attest":`, `"Attest":"AAAA","Attest":`},
		"Signature twice":           {`"Signature":`, `"Signature":"AAAA","Signature":`},
		"Quote twice":               {`"Quote":`, `"Quote":null,"Quote":`},
		"Nonce twice":               {`"Nonce":`, `"Nonce":"AAAA","Nonce":`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs()})
			s := begin(t, tpm)
			msg := string(tpm.Answer(t, ask(t, s, someAsk())))
			changed := strings.Replace(msg, change[0], change[1], 1)
			if changed == msg {
				t.Fatalf("nothing to change in %s", msg)
			}
			if answer, err := s.Finish([]byte(changed)); err == nil || answer != nil {
				t.Error("it is taken")
			}
		})
	}
}

// Anything that a machine sends instead of a log counts as no log, and does not fail the
// attestation. A response that exceeds its limit is refused; a log that exceeds its own limit is
// handed over, so that it is treated like any log that cannot be read.
func TestEventLogs(t *testing.T) {
	t.Parallel()
	log := func(n int) string { return `"` + encode64(make([]byte, n)) + `"` }
	for name, test := range map[string]struct {
		member string
		want   int // the size of the log; -1 if the response is refused
	}{
		"null":                       {`"EventLog":null`, 0},
		"empty":                      {`"EventLog":""`, 0},
		"absent":                     {`"x":0`, 0},
		"a byte":                     {`"EventLog":"AA=="`, 1},
		"of 256 KiB":                 {`"EventLog":` + log(256<<10), 256 << 10},
		"longer than a log":          {`"EventLog":` + log(256<<10+1), 256<<10 + 1},
		"of 300 KiB":                 {`"EventLog":` + log(300<<10), 300 << 10},
		"longer than its part":       {`"EventLog":` + log(300<<10+1), -1},
		"longer than the response":   {`"EventLog":` + log(320<<10), -1},
		"not base64":                 {`"EventLog":"!!!!"`, -1},
		"an array":                   {`"EventLog":[1,2]`, -1},
		"a number":                   {`"EventLog":1`, -1},
		"twice":                      {`"EventLog":null,"EventLog":"AA=="`, -1},
		"more than the known values": {`"x":[` + strings.Repeat("0,", 400) + `0]`, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs(), EventLog: []byte{}})
			s := begin(t, tpm)
			all := someAsk()
			all.Quote.PCRs = everyPCR()
			msg := tpm.Answer(t, ask(t, s, all))
			if !bytes.Contains(msg, []byte(`"EventLog":null`)) {
				t.Fatalf("an agent without a log sends %s", msg)
			}
			msg = bytes.Replace(msg, []byte(`"EventLog":null`), []byte(test.member), 1)
			answer, err := s.Finish(msg)
			switch {
			case test.want < 0 && err == nil:
				t.Error("it is taken")
			case test.want >= 0 && err != nil:
				t.Error(err)
			case err == nil && (len(answer.EventLog) != test.want || (answer.EventLog == nil) != (test.want == 0)):
				t.Errorf("a log of %d bytes, want %d", len(answer.EventLog), test.want)
			}
		})
	}
}

// A response may be as long as what was asked for needs, and no longer.
func TestMaxResponse(t *testing.T) {
	t.Parallel()
	devID := &attestortest.DevID{CA: attestortest.NewCA(t, "devices")}
	for _, test := range []struct {
		options attestortest.Options
		ask     attestor.Ask
		want    int
	}{
		{attestortest.Options{}, someAsk(), 8 << 10},
		{attestortest.Options{PCRs: somePCRs(), EventLog: []byte("log")}, attestor.Ask{}, 8 << 10},
		{attestortest.Options{PCRs: somePCRs()}, someAsk(), 16 << 10},
		{attestortest.Options{PCRs: somePCRs(), EventLog: []byte("log")}, someAsk(), 416 << 10},
		{attestortest.Options{}, attestor.Ask{DevID: true}, 8 << 10},
		{attestortest.Options{DevID: devID}, attestor.Ask{DevID: true}, 72 << 10},
		{attestortest.Options{PCRs: somePCRs(), DevID: devID}, attestor.Ask{Quote: someAsk().Quote, DevID: true}, 80 << 10},
	} {
		test.options.EK = attestor.P256
		tpm := attestortest.New(t, test.options)
		s := begin(t, tpm)
		msg := tpm.Answer(t, ask(t, s, test.ask))
		if got := s.MaxResponse(); got != test.want {
			t.Errorf("at most %d bytes, want %d", got, test.want)
		}
		msg = append(msg, bytes.Repeat([]byte(" "), test.want+1-len(msg))...)
		if _, err := s.Finish(msg); err == nil || errors.Is(err, attestor.ErrQuoteFailed) {
			t.Errorf("a response of %d bytes: %v", len(msg), err)
		}
	}
}

// A rogue server cannot choose what the AK signs, nor make the TPM do anything by a challenge
// that is not exactly one of ours.
func TestRogueChallenges(t *testing.T) {
	t.Parallel()
	const quote = `"Quote":{"Bank":"sha256","PCRs":[0,7]}`
	nonce := `"Nonce":"` + encode64(make([]byte, 32)) + `"`
	of := func(bank, pcrs string) string { return nonce + `,"Quote":{"Bank":` + bank + `,"PCRs":` + pcrs + `}` }
	for name, members := range map[string]string{
		"no nonce":               quote,
		"a short nonce":          quote + `,"Nonce":"` + encode64(make([]byte, 31)) + `"`,
		"a long nonce":           quote + `,"Nonce":"` + encode64(make([]byte, 33)) + `"`,
		"a huge nonce":           quote + `,"Nonce":"` + encode64(make([]byte, 4096)) + `"`,
		"a nonce of a structure": quote + `,"Nonce":"` + encode64([]byte("\xffTCG\x80\x18")) + `"`,
		"an empty nonce":         quote + `,"Nonce":""`,
		"two nonces":             quote + `,` + nonce + `,` + nonce,
		"two quotes":             quote + `,` + nonce + `,` + quote,
		"Quote null":             nonce + `,"Quote":null`,
		"Quote true":             nonce + `,"Quote":true`,
		"Quote empty":            nonce + `,"Quote":{}`,
		"SHA-1":                  of(`"sha1"`, `[0]`),
		"an unknown bank":        of(`"sha512"`, `[0]`),
		"a bank by its number":   of(`11`, `[0]`),
		"no PCRs":                of(`"sha256"`, `[]`),
		"PCR 24":                 of(`"sha256"`, `[24]`),
		"PCR -1":                 of(`"sha256"`, `[-1]`),
		"PCR 0.5":                of(`"sha256"`, `[0.5]`),
		"PCR a string":           of(`"sha256"`, `["0"]`),
		"a PCR twice":            of(`"sha256"`, `[7,7]`),
		"PCRs descending":        of(`"sha256"`, `[7,0]`),
		"25 PCRs":                of(`"sha256"`, `[`+strings.Repeat(`0,`, 24)+`0]`),
		"a log without a quote":  `"EventLog":true`,
		"a log of 1":             nonce + `,` + quote + `,"EventLog":1`,
		"a log of null":          nonce + `,` + quote + `,"EventLog":null`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := attestor.NewProver(attestor.Claim{Can: everything}, unreached{t})
			if b, err := p.Answer([]byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"},` + members + `}`)); err == nil {
				t.Errorf("the answer is %s", b)
			}
		})
	}
}

// What the AK signs over depends on a nonce of this agent, even if a server repeats its own. The
// text in front of the nonces keeps it apart from anything else that an AK may ever sign.
func TestQualifyingData(t *testing.T) {
	t.Parallel()
	server := bytes.Repeat([]byte("s"), 32)
	msg := []byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"},"Nonce":"` + encode64(server) +
		`","Quote":{"Bank":"sha384","PCRs":[0,23],"New":[1]},"EventLog":false,"DevID":true}`)
	seen := make(map[string]bool)
	for range 3 {
		var tpm recorder
		p := attestor.NewProver(attestor.Claim{Can: everything}, &tpm)
		answer, err := p.Answer(msg)
		if err != nil {
			t.Fatal(err)
		}
		r := read[fullResponse](t, answer)
		want := sha256.Sum256([]byte("spire-tpm-attestor quote 1\x00" + string(server) + string(r.Nonce)))
		if len(r.Nonce) != 32 || !bytes.Equal(tpm.activation.QualifyingData, want[:]) {
			t.Errorf("it signs over %x", tpm.activation.QualifyingData)
		}
		if q := tpm.activation.Quote; q.Bank != "sha384" || !slices.Equal(q.PCRs, []int{0, 23}) {
			t.Errorf("it quotes %v", q)
		}
		if strings.Contains(string(answer), "EventLog") {
			t.Errorf("it sends a log: %s", answer)
		}
		if _, err := p.Answer(msg); err == nil {
			t.Error("a second challenge is answered")
		}
		seen[string(want[:])] = true
	}
	if len(seen) != 3 {
		t.Error("the agent's nonces repeat")
	}
}

// An agent whose TPM did not quote must not send a response without a quote, and a log that no
// server would read is not sent.
func TestWhatTheMachineAnswers(t *testing.T) {
	t.Parallel()
	msg := []byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"},"Nonce":"` + encode64(make([]byte, 32)) +
		`","Quote":{"Bank":"sha256","PCRs":[0]},"EventLog":true}`)
	quote := &attestor.SignedQuote{Attest: []byte{1}, Signature: []byte{2}, PCRs: []attestor.PCR{{Index: 0, Digest: []byte{3}}}}
	for name, test := range map[string]struct {
		done *attestor.Activated
		want string // in the response; empty if there is none
	}{
		"nothing":  {nil, ""},
		"no quote": {&attestor.Activated{Secret: []byte("secret")}, ""},
		"no log":   {&attestor.Activated{Secret: []byte("secret"), Quote: quote}, `"EventLog":null`},
		"a log":    {&attestor.Activated{Secret: []byte("secret"), Quote: quote, EventLog: []byte("log")}, `"EventLog":"bG9n"`},
		"a long log": {
			&attestor.Activated{Secret: []byte("secret"), Quote: quote, EventLog: make([]byte, 256<<10+1)},
			`"EventLog":null`,
		},
		"a huge quote": {
			&attestor.Activated{Secret: []byte("secret"), Quote: &attestor.SignedQuote{Attest: make([]byte, 400<<10)}}, "",
		},
	} {
		answer, err := attestor.NewProver(attestor.Claim{Can: everything}, fixed{test.done}).Answer(msg)
		if (err != nil) != (test.want == "") || !strings.Contains(string(answer), test.want) {
			t.Errorf("%s: %.200s, %v", name, answer, err)
		}
	}
	const want = `"Quote":{"Attest":"AQ==","Signature":"Ag==","PCRs":[{"Index":0,"Digest":"Aw=="}]},"EventLog":null}`
	done := &attestor.Activated{Secret: []byte("secret"), Quote: quote}
	answer, err := attestor.NewProver(attestor.Claim{Can: everything}, fixed{done}).Answer(msg)
	if err != nil || !strings.HasSuffix(string(answer), want) {
		t.Errorf("the wire has %s, %v: want %s", answer, err, want)
	}
}

// fixed is a machine with one answer.
type fixed struct{ done *attestor.Activated }

func (f fixed) Activate(*attestor.Activation) (*attestor.Activated, error) { return f.done, nil }
