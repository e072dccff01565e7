package attestor_test

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"testing"

	"github.com/google/go-attestation/attest"
	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// seeds are TPMs. The fuzzers begin with their messages.
func seeds(f *testing.F) []*attestortest.TPM {
	f.Helper()
	ca := attestortest.NewCA(f, "root")
	var all []*attestortest.TPM
	for _, o := range []attestortest.Options{
		{EK: attestor.RSA2048, AK: attestor.RSA2048, CA: ca},
		{EK: attestor.RSA2048, CA: ca, Certificate: attestortest.Certificate{OAEP: true}},
		{EK: attestor.P256, CA: ca},
		{EK: attestor.P384, AK: attestor.P384},
		{EK: attestor.RSA3072, AK: attestor.RSA2048, PSS: true},
	} {
		all = append(all, attestortest.New(f, o))
	}
	return all
}

// checkEK checks what holds for every accepted EK: its hash is the hash of its key, its
// certificate is for that key, and it can be challenged.
func checkEK(t *testing.T, ek *attestor.EK) {
	t.Helper()
	if hash, err := attestor.HashEK(ek.Public); err != nil || hash != ek.Hash {
		t.Fatalf("the hash %x is not that of the key, %x, %v", ek.Hash, hash, err)
	}
	if ek.Certificate == nil {
		return
	}
	cert, err := attestor.ParseEKCertificate(ek.Certificate)
	if err != nil { // it was not parsed before
		return
	}
	if hash, err := attestor.HashEK(cert.PublicKey); err != nil || hash != ek.Hash {
		t.Fatalf("the certificate is for another key: %s, %v", hash, err)
	}
}

// Any bytes are refused as a payload, or begin a session in which everything is consistent.
func FuzzPayload(f *testing.F) {
	for _, tpm := range seeds(f) {
		f.Add(tpm.Payload(f))
		f.Add(payloadOf(f, tpm.Claim()))
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var v attestor.Verifier
		s, err := v.Begin(msg)
		if err != nil {
			if s != nil {
				t.Fatal("a session with an error")
			}
			return
		}
		checkEK(t, s.EK())
		if s.AK() == nil || len(s.Chain()) > 16 || len(msg) > attestor.MaxPayloadSize {
			t.Fatal("a session that cannot be")
		}
		if _, err := s.Challenge(attestor.Ask{}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Finish(wrongAnswer); err == nil {
			t.Fatal("zeros are the secret")
		}
	})
}

// Any bytes are refused as PEM, or have at most two blocks in which every reader finds the
// same key.
func FuzzEKPEM(f *testing.F) {
	for _, tpm := range seeds(f) {
		for _, text := range pemForms(f, tpm.Claim()) {
			f.Add(text)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		ek, err := attestor.ParseEK(text)
		if err != nil {
			return
		}
		checkEK(t, ek)
		blocks := 0
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			blocks++
			if block.Type != "PUBLIC KEY" {
				continue
			}
			key, err := x509.ParsePKIXPublicKey(block.Bytes)
			if err != nil {
				t.Fatal(err)
			}
			if hash, err := attestor.HashEK(key); err != nil || hash != ek.Hash {
				t.Fatalf("another reader's key is %x, not %x", hash, ek.Hash)
			}
		}
		if blocks == 0 || blocks > 2 {
			t.Fatalf("%d blocks", blocks)
		}
	})
}

// Any bytes are refused as a structure of an AK, or read to the last byte, with the same
// result as by go-tpm. go-attestation accepts every AK that is accepted here.
func FuzzAKBlobs(f *testing.F) {
	tpms := seeds(f)
	for _, tpm := range tpms {
		ak := tpm.Claim().AK
		f.Add(ak.Public, ak.CreateData, ak.CreateAttestation, ak.CreateSignature)
		f.Add(tpm.Claim().EKPublic, ak.CreateData, ak.CreateAttestation, ak.CreateSignature)
	}
	claim := tpms[2].Claim()
	f.Fuzz(func(t *testing.T, public, data, attestation, signature []byte) {
		checkPublic(t, public)
		if attestor.CheckCreationData(data) == nil {
			if d, err := tpm2.Unmarshal[tpm2.TPMSCreationData](data); err != nil || !bytes.Equal(tpm2.Marshal(d), data) {
				t.Fatalf("creation data %x: go-tpm reads other ones, %v", data, err)
			}
		}
		checkCreation(t, attestation)

		c := claim
		c.EKPublic = nil
		c.AK = attestor.AKParameters{
			Public: public, CreateData: data, CreateAttestation: attestation, CreateSignature: signature,
		}
		var v attestor.Verifier
		if _, err := v.Begin(payloadOf(t, c)); err != nil {
			return
		}
		if p, err := tpm2.Unmarshal[tpm2.TPMTSignature](signature); err == nil && p.SigAlg == tpm2.TPMAlgRSAPSS {
			return // the comparison is for PKCS #1 alone
		}
		params := attest.ActivationParameters{EK: c.EK, AK: *firstAK(c)}
		if err := params.CheckAKParameters(); err != nil {
			t.Fatalf("go-attestation refuses it: %v", err)
		}
	})
}

func checkPublic(t *testing.T, b []byte) {
	t.Helper()
	key, err := attestor.ReadPublic(b)
	if err != nil {
		return
	}
	p, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(p), b) {
		t.Fatalf("public area %x: go-tpm reads another one, %v", b, err)
	}
	if key == nil {
		return
	}
	other, err := tpm2.Pub(*p)
	if err != nil {
		t.Fatal(err)
	}
	one, err := attestor.HashEK(key)
	if err != nil {
		t.Fatal(err)
	}
	if two, err := attestor.HashEK(other); err != nil || one != two {
		t.Fatalf("public area %x: go-tpm reads another key, %v", b, err)
	}
}

func checkCreation(t *testing.T, b []byte) {
	t.Helper()
	name, hash, err := attestor.ReadCreation(b)
	if err != nil {
		return
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(a), b) {
		t.Fatalf("attestation %x: go-tpm reads another one, %v", b, err)
	}
	c, err := a.Attested.Creation()
	if err != nil || !bytes.Equal(c.ObjectName.Buffer, name) || !bytes.Equal(c.CreationHash.Buffer, hash) {
		t.Fatalf("attestation %x: go-tpm reads another creation, %v", b, err)
	}
}

// Any bytes are refused as a certificate, or contain one whole certificate. It is the same
// when it is read again, and every reader finds the same key in it.
func FuzzEKCertificate(f *testing.F) {
	for _, tpm := range seeds(f) {
		der := tpm.Claim().Certificate
		if der == nil {
			continue
		}
		f.Add(der)
		f.Add(append([]byte{0x10, 0x01, 0x00, byte(len(der) >> 8), byte(len(der))}, der...))
		f.Add(append([]byte{0x10, 0x01, 0x00, byte(len(der) >> 8), byte(len(der)), 0x10, 0x02}, der...))
		f.Add(append(bytes.Clone(der), 0xFF, 0xFF, 0xFF, 0))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		cert, err := attestor.ParseEKCertificate(b)
		if err != nil {
			if cert != nil {
				t.Fatal("a certificate with an error")
			}
			return
		}
		if !bytes.Contains(b, cert.Raw) || len(b) > 8<<10 {
			t.Fatal("a certificate from elsewhere")
		}
		again, err := attestor.ParseEKCertificate(cert.Raw)
		if err != nil || !bytes.Equal(again.Raw, cert.Raw) {
			t.Fatalf("read again, it is another one: %v", err)
		}
		hash, err := attestor.HashEK(cert.PublicKey)
		if err != nil {
			return
		}
		// The key that is challenged is not read by the parser that sources use.
		key, err := attestor.CertificateKey(cert.Raw)
		if err != nil {
			t.Fatalf("its key cannot be found without the parser: %v", err)
		}
		if other, err := attestor.HashEK(key); err != nil || other != hash {
			t.Fatalf("another key is found without the parser: %v", err)
		}
	})
}

// everything is what an agent can answer.
var everything = []string{attestor.CanPCRs, attestor.CanEventLog}

// Any bytes are refused as a challenge, or the TPM gets structures of a bounded size and, if it
// is to quote, a valid request. The agent answers an older server, which knows no quotes, in
// the same way whatever it can.
func FuzzChallenge(f *testing.F) {
	for _, tpm := range seeds(f) {
		s := begin(f, tpm)
		f.Add(challenge(f, s))
	}
	quoting := attestortest.New(f, attestortest.Options{EK: attestor.P256, PCRs: somePCRs(), EventLog: []byte("log")})
	msg, err := begin(f, quoting).Challenge(someAsk())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	msg, err = begin(f, withDevID(f, attestortest.DevID{})).Challenge(attestor.Ask{DevID: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	claim := quoting.Claim()
	claim.Can = append(claim.Can, attestor.CanDevID)
	f.Fuzz(func(t *testing.T, msg []byte) {
		var tpm recorder
		answer, err := attestor.NewProver(claim, &tpm).Answer(msg)
		if err != nil {
			return
		}
		a := tpm.activation
		if len(a.Credential) == 0 || len(a.Credential) > 256 || len(a.Secret) == 0 || len(a.Secret) > 1024 {
			t.Fatalf("the TPM gets %d and %d bytes", len(a.Credential), len(a.Secret))
		}
		if a.Quote == nil && a.EventLog {
			t.Fatal("a log without a quote")
		}
		if a.Quote != nil && (a.Quote.Validate() != nil || len(a.QualifyingData) != 32) {
			t.Fatalf("the TPM is to quote %v over %d bytes", a.Quote, len(a.QualifyingData))
		}
		if d := a.DevID; d != nil && (len(d.QualifyingData) != 32 || len(d.Message) != 32+32+32+34) {
			t.Fatalf("the TPM is to certify over %d bytes and to sign %d", len(d.QualifyingData), len(d.Message))
		}
		asked := attestor.Ask{Quote: a.Quote, EventLog: a.EventLog, DevID: a.DevID != nil}
		secret, nonce, _, _, err := attestor.DecodeResponse(answer, asked)
		if err != nil || string(secret) != "secret" || (nonce != nil) != (a.Quote != nil || a.DevID != nil) {
			t.Fatalf("the answer is %s, %v", answer, err)
		}
	})
}

// recorder is a TPM that keeps what it got.
type recorder struct{ activation attestor.Activation }

func (r *recorder) Activate(a *attestor.Activation) (*attestor.Activated, error) {
	r.activation = *a
	done := &attestor.Activated{Secret: []byte("secret")}
	if a.Quote != nil {
		done.Quote = &attestor.SignedQuote{Attest: []byte{1}, Signature: []byte{1}}
	}
	return done, nil
}

// Any bytes are refused as a response, or hold one secret of a bounded size, and as much more
// as was asked for.
func FuzzResponse(f *testing.F) {
	f.Add(wrongAnswer)
	f.Add([]byte(`{"Secret":"\u0041AAA","EventLog":[{"a":null}]}`))
	f.Add([]byte(`{"Secret":"AAAA","EventLog":"AAAA","Quote":null}`))
	f.Fuzz(func(t *testing.T, msg []byte) {
		for _, ask := range []attestor.Ask{{}, {Quote: someAsk().Quote}, someAsk(), {DevID: true}} {
			secret, nonce, log, quote, err := attestor.DecodeResponse(msg, ask)
			if err != nil {
				continue
			}
			if len(secret) == 0 || len(secret) > 64 {
				t.Fatalf("a secret of %d bytes", len(secret))
			}
			if ask.Quote == nil && (quote != nil || nonce != nil && !ask.DevID) || !ask.EventLog && log != nil {
				t.Fatal("it holds what was not asked for")
			}
			if len(log) > 300<<10 || quote != nil && len(nonce) != 32 {
				t.Fatalf("a log of %d bytes and a nonce of %d", len(log), len(nonce))
			}
		}
	})
}

// Any bytes are refused as a quote, or are the TPMS_ATTEST that go-tpm reads, of exactly the PCRs
// that were asked for. Any bytes are refused as a response with a quote, or hold exactly the
// values that the AK has signed.
func FuzzQuote(f *testing.F) {
	tpm := attestortest.New(f, attestortest.Options{EK: attestor.P256, PCRs: somePCRs(), EventLog: []byte("log")})
	ask := someAsk()
	secret, server, agent := [32]byte{1}, [32]byte{2}, [32]byte{3}
	waiting, err := attestor.Challenged(new(attestor.Verifier), tpm.Payload(f), ask, secret, server)
	if err != nil {
		f.Fatal(err)
	}
	q, err := tpm.Quote(ask.Quote, attestor.QualifyingData(server[:], agent[:]))
	if err != nil {
		f.Fatal(err)
	}
	msg := members{"Secret": secret[:], "Nonce": agent[:], "Quote": q, "EventLog": []byte("log")}.encode(f)
	f.Add(msg, q.Attest)
	f.Add(bytes.ReplaceAll(msg, []byte(`"Index":4`), []byte(`"Index":0`)), q.Attest[:len(q.Attest)-1])
	values := somePCRs()["sha256"]
	f.Fuzz(func(t *testing.T, msg, b []byte) {
		checkQuote(t, b, ask.Quote)
		answer, err := waiting.Copy().Finish(msg)
		if err != nil {
			if answer != nil {
				t.Fatal("an answer with an error")
			}
			return
		}
		if answer.Quote.Bank != "sha256" || len(answer.Quote.PCRs) != len(ask.Quote.PCRs) {
			t.Fatalf("a quote of %v", answer.Quote)
		}
		for _, pcr := range ask.Quote.PCRs {
			if !bytes.Equal(answer.Quote.PCRs[pcr], values[pcr]) {
				t.Fatalf("PCR %d is %x, want %x", pcr, answer.Quote.PCRs[pcr], values[pcr])
			}
		}
	})
}

func checkQuote(t *testing.T, b []byte, req *attestor.QuoteRequest) {
	t.Helper()
	extraData, pcrDigest, err := attestor.ReadQuote(b, req.Selection())
	if err != nil {
		return
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(a), b) || !bytes.Equal(a.ExtraData.Buffer, extraData) {
		t.Fatalf("attestation %x: go-tpm reads another one, %v", b, err)
	}
	q, err := a.Attested.Quote()
	if err != nil || !bytes.Equal(q.PCRDigest.Buffer, pcrDigest) || len(q.PCRSelect.PCRSelections) != 1 {
		t.Fatalf("attestation %x: go-tpm reads another quote, %v", b, err)
	}
	if got := q.PCRSelect.PCRSelections[0]; got.Hash != tpm2.TPMAlgSHA256 || !bytes.Equal(got.PCRSelect, req.Selection().PCRSelect) {
		t.Fatalf("attestation %x: a quote of %v", b, got)
	}
}

// proving is a session that waits for the DevID of a TPM, with both nonces fixed.
type proving struct {
	tpm     *attestortest.TPM
	waiting *attestor.Session
	proof   *attestor.SignedDevID
	answer  []byte
}

// newProving returns a session of v with a TPM, and the answer to it.
func newProving(f *testing.F, v *attestor.Verifier, tpm *attestortest.TPM) *proving {
	f.Helper()
	secret, server, agent := [32]byte{1}, [32]byte{2}, [32]byte{3}
	waiting, err := attestor.Challenged(v, tpm.Payload(f), attestor.Ask{DevID: true}, secret, server)
	if err != nil {
		f.Fatal(err)
	}
	name := sha256.Sum256(tpm.Claim().AK.Public)
	d, err := tpm.DevID(&attestor.DevIDRequest{
		QualifyingData: attestor.CertifyData(server[:], agent[:]),
		Message:        attestor.DevIDMessage(server[:], agent[:], append([]byte{0, 0x0B}, name[:]...)),
	})
	if err != nil {
		f.Fatal(err)
	}
	if v.Enrolment {
		d.Chain = [][]byte{}
	}
	answer := members{"Secret": secret[:], "Nonce": agent[:], "DevID": d}.encode(f)
	if got, err := waiting.Copy().Finish(answer); err != nil || got.DevID == nil {
		f.Fatal(got, err)
	}
	return &proving{tpm, waiting, d, answer}
}

// checkProved checks a DevID that was accepted: it is one of those that were proved. All have the same AK.
func checkProved(t *testing.T, all []*proving, d *attestor.DevID) {
	t.Helper()
	if !slices.ContainsFunc(all, func(p *proving) bool { return sameKey(p.tpm.DevIDKey().Public(), d.Key) }) {
		t.Fatalf("a DevID of %v", d.Key)
	}
}

// fuzzedDevIDs are TPMs with DevIDs of each form of key and signature. Their keys are the same in every
// process, since the fuzzer makes the seeds in one process and tries them in others.
func fuzzedDevIDs(f *testing.F, forge func(*tpm2.TPMTPublic)) []*attestortest.TPM {
	f.Helper()
	ca := attestortest.NewCA(f, "devices")
	var all []*attestortest.TPM
	for _, d := range []attestortest.DevID{
		{},
		{Type: attestor.P256, Scheme: tpm2.TPMAlgECDSA, Hash: tpm2.TPMAlgSHA256},
		{Type: attestor.P384, Scheme: tpm2.TPMAlgECDSA, Hash: tpm2.TPMAlgSHA384},
		{Type: attestor.RSA2048},
		{Type: attestor.RSA2048, Scheme: tpm2.TPMAlgRSAPSS, Hash: tpm2.TPMAlgSHA256},
		{Type: attestor.RSA3072, Scheme: tpm2.TPMAlgRSASSA, Hash: tpm2.TPMAlgSHA256},
		{Type: attestor.RSA4096, Scheme: tpm2.TPMAlgRSASSA, Hash: tpm2.TPMAlgSHA512},
	} {
		d.CA, d.Fixed = ca, true
		all = append(all, attestortest.New(f, attestortest.Options{
			EK: attestor.P256, AK: attestor.RSA2048, DevID: &d, ForgePublic: forge,
		}))
	}
	return all
}

// Any bytes are refused as a certification, or are the TPMS_ATTEST that go-tpm reads. Any bytes are refused
// as a response with a DevID, or hold the key that the AK has certified, with a certificate for it within
// the limits.
func FuzzDevID(f *testing.F) {
	var all []*proving
	for i, tpm := range fuzzedDevIDs(f, nil) {
		p := newProving(f, new(attestor.Verifier), tpm)
		all = append(all, p)
		f.Add(byte(i), p.answer, p.proof.Attest, p.proof.Public)
	}
	first := all[0]
	f.Add(byte(0), bytes.ReplaceAll(first.answer, []byte(`"Chain":[`), []byte(`"Chain":["",`)),
		first.proof.Attest[:len(first.proof.Attest)-1], first.tpm.Claim().AK.Public)
	f.Fuzz(func(t *testing.T, of byte, msg, attest, public []byte) {
		checkCertify(t, attest)
		if key, err := attestor.ReadDevIDKey(public); err == nil && (key.Public == nil || key.Scheme == 0 || key.Hash == 0) {
			t.Fatalf("public area %x: %v", public, key)
		}
		p := all[int(of)%len(all)]
		answer, err := p.waiting.Copy().Finish(msg)
		switch {
		case err != nil && answer != nil:
			t.Fatal("an answer with an error")
		case err != nil || answer.DevID == nil:
			return
		}
		checkProved(t, all, answer.DevID)
		if key, err := attestor.ReadDevIDChain(answer.DevID.Chain); err != nil || !sameKey(key, answer.DevID.Key) {
			t.Fatalf("a certificate for %v, %v", key, err)
		}
	})
}

// Of an enrolment, a request, a state and an answer come from files. Whatever is in them is refused, or
// proves the DevID of that TPM; whoever writes the state may choose the secret and the nonce.
func FuzzEnrolment(f *testing.F) {
	var all []*proving
	v := &attestor.Verifier{Enrolment: true}
	mark := func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = attestor.EnrolmentPolicy() }
	for i, tpm := range fuzzedDevIDs(f, mark) {
		p := newProving(f, v, tpm)
		state, err := p.waiting.Copy().Suspend()
		if err != nil {
			f.Fatal(err)
		}
		all = append(all, p)
		f.Add(byte(i), p.tpm.Payload(f), state, p.answer)
	}
	f.Fuzz(func(t *testing.T, of byte, request, state, msg []byte) {
		p := all[int(of)%len(all)]
		s, err := v.Resume(request, state)
		if (s == nil) != (err != nil) {
			t.Fatal(s, err)
		}
		if err != nil {
			s = p.waiting.Copy() // to go on with the answer
		}
		answer, err := s.Finish(msg)
		switch {
		case err != nil && answer != nil:
			t.Fatal("an answer with an error")
		case err != nil || answer.DevID == nil:
			return
		case answer.DevID.Chain != nil:
			t.Fatal("a certificate that is there already")
		}
		checkProved(t, all, answer.DevID)
	})
}

func sameKey(a, b crypto.PublicKey) bool {
	key, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && key.Equal(b)
}

func checkCertify(t *testing.T, b []byte) {
	t.Helper()
	extraData, name, err := attestor.ReadCertify(b)
	if err != nil {
		return
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](b)
	if err != nil || !bytes.Equal(tpm2.Marshal(a), b) || !bytes.Equal(a.ExtraData.Buffer, extraData) {
		t.Fatalf("attestation %x: go-tpm reads another one, %v", b, err)
	}
	c, err := a.Attested.Certify()
	if err != nil || !bytes.Equal(c.Name.Buffer, name) {
		t.Fatalf("attestation %x: go-tpm reads another name, %v", b, err)
	}
}
