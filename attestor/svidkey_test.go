package attestor_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// withSVIDKey returns a TPM with an SVID key, and with whatever else a response may hold.
func withSVIDKey(t testing.TB, k attestortest.SVIDKey) *attestortest.TPM {
	t.Helper()
	return attestortest.New(t, attestortest.Options{
		EK: attestor.P256, PCRs: somePCRs(), EventLog: []byte("log"),
		DevID: &attestortest.DevID{CA: attestortest.NewCA(t, "devices")}, SVIDKey: &k,
	})
}

// spkiHash is the hash of what SPIRE's server hands to a CredentialComposer.
func spkiHash(t testing.TB, key crypto.PublicKey) [sha256.Size]byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(der)
}

// softwareKey returns a new key in software.
func softwareKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// An SVID key is proved with each type of AK, alone or with whatever else is asked for. It needs no
// word in the challenge, which an older server could not send.
func TestSVIDKey(t *testing.T) {
	t.Parallel()
	for _, o := range []attestortest.Options{
		{AK: attestor.P256}, {AK: attestor.P384}, {AK: attestor.RSA2048}, {AK: attestor.RSA2048, PSS: true},
	} {
		for _, a := range []attestor.Ask{
			{SVIDKey: true},
			{SVIDKey: true, DevID: true, EventLog: true, Quote: &attestor.QuoteRequest{Bank: "sha384", PCRs: everyPCR()}},
		} {
			o.EK, o.PCRs, o.EventLog = attestor.P256, somePCRs(), bytes.Repeat([]byte("l"), attestor.MaxEventLogSize)
			o.DevID = &attestortest.DevID{CA: attestortest.NewCA(t, "devices")}
			o.SVIDKey = new(attestortest.SVIDKey)
			tpm := attestortest.New(t, o)
			s := begin(t, tpm)
			msg := ask(t, s, a)
			if bytes.Contains(msg, []byte("SVID")) {
				t.Errorf("the challenge is %s", msg)
			}
			answer, err := s.Finish(tpm.Answer(t, msg))
			if err != nil {
				t.Fatal(err)
			}
			want := &tpm.SVIDKey().PublicKey
			if got := answer.SVIDKey; !want.Equal(got.Public) || got.SPKIHash != spkiHash(t, want) {
				t.Errorf("the key is %v, want %v", got, want)
			}
			if (answer.Quote != nil) != (a.Quote != nil) || (answer.DevID != nil) != a.DevID {
				t.Error("an SVID key takes the place of something else")
			}
		}
	}
}

// A server that does not check SVID keys accepts any of them, in any form, and reports none. A
// machine without an SVID key, or one that sends null, has none; the caller decides whether that is
// enough.
func TestSVIDKeyThatIsNotLookedAt(t *testing.T) {
	t.Parallel()
	for form, member := range map[string]string{
		"none": ``, "null": `,"SVIDKey":null`, "a number": `,"SVIDKey":1`, "an object": `,"SVIDKey":{"Public":7}`,
		"a list": `,"SVIDKey":["Public",{"Public":[]}]`, "garbage": `,"SVIDKey":"???"`,
		"garbage inside": `,"SVIDKey":{"Public":"AAAA","Attest":"AAAA","Signature":"AAAA"}`,
	} {
		for _, look := range []bool{false, true} {
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
			s := begin(t, tpm)
			response := tpm.Answer(t, ask(t, s, attestor.Ask{SVIDKey: look}))
			response = append(bytes.TrimSuffix(response, []byte("}")), member+"}"...)
			answer, err := s.Finish(response)
			if taken := !look || form == "none" || form == "null"; (err == nil) != taken {
				t.Errorf("%s, looked at: %t: %v", form, look, err)
			}
			if err == nil && answer.SVIDKey != nil || errors.Is(err, attestor.ErrSVIDKeyFailed) {
				t.Errorf("%s, looked at: %t: %v, %v", form, look, answer, err)
			}
		}
	}
	// Its size is bounded all the same.
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	s := begin(t, tpm)
	response := tpm.Answer(t, challenge(t, s))
	fat := append(bytes.TrimSuffix(response, []byte("}")), `,"SVIDKey":"`+strings.Repeat("A", 8<<10)+`"}`...)
	if _, err := s.Finish(fat); err == nil {
		t.Error("a response of 8 KiB and more is taken")
	}
}

// svidParms changes the parameters of an SVID key.
func svidParms(change func(*tpm2.TPMSECCParms)) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			return
		}
		change(parms)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, parms)
	}
}

func svidScheme(alg, hash tpm2.TPMAlgID) func(*tpm2.TPMTPublic) {
	return svidParms(func(p *tpm2.TPMSECCParms) {
		p.Scheme = tpm2.TPMTECCScheme{Scheme: alg}
		switch alg {
		case tpm2.TPMAlgECDSA:
			p.Scheme.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})
		case tpm2.TPMAlgRSASSA:
			p.Scheme.Details = tpm2.NewTPMUAsymScheme(alg, &tpm2.TPMSSigSchemeRSASSA{HashAlg: hash})
		}
	})
}

// A key that the AK certifies is not an SVID key if it can leave its TPM, was made elsewhere, signs
// only what the TPM makes, decrypts, or is of a kind that SPIRE's agents do not use: a copy of it
// might be used elsewhere. Nor is a key that is certified under another name or over other data.
func TestSVIDKeyOfABadKey(t *testing.T) {
	t.Parallel()
	attributes := func(change func(*tpm2.TPMAObject)) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) { change(&p.ObjectAttributes) }
	}
	for name, k := range map[string]attestortest.SVIDKey{
		"leaves its TPM":      {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.FixedTPM = false })},
		"leaves its parent":   {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.FixedParent = false })},
		"was imported":        {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })},
		"needs a policy":      {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.UserWithAuth = false })},
		"cannot sign":         {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.SignEncrypt = false })},
		"is restricted":       {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.Restricted = true })},
		"decrypts":            {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.Decrypt = true })},
		"a name by SHA-1":     {ForgePublic: func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }},
		"a name by SHA-384":   {ForgePublic: func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 }},
		"signs with SHA-1":    {ForgePublic: svidScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA1)},
		"signs by RSASSA":     {ForgePublic: svidScheme(tpm2.TPMAlgRSASSA, tpm2.TPMAlgSHA256)},
		"signs with SHA-384":  {ForgePublic: svidScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA384)},
		"has no scheme":       {ForgePublic: svidScheme(tpm2.TPMAlgNull, tpm2.TPMAlgNull)},
		"of P-384":            {Key: softwareKey(t, elliptic.P384())},
		"of P-521":            {Key: softwareKey(t, elliptic.P521())},
		"with another curve":  {ForgePublic: svidParms(func(p *tpm2.TPMSECCParms) { p.CurveID = tpm2.TPMECCNistP384 })},
		"with an SM2 curve":   {ForgePublic: svidParms(func(p *tpm2.TPMSECCParms) { p.CurveID = tpm2.TPMECCSM2P256 })},
		"with a BN curve":     {ForgePublic: svidParms(func(p *tpm2.TPMSECCParms) { p.CurveID = tpm2.TPMECCBNP256 })},
		"off the curve":       {ForgePublic: svidPoint(func(p *tpm2.TPMSECCPoint) { p.X.Buffer[5] ^= 1 })},
		"without a point":     {ForgePublic: svidPoint(func(p *tpm2.TPMSECCPoint) { p.X.Buffer, p.Y.Buffer = nil, nil })},
		"with half of one":    {ForgePublic: svidPoint(func(p *tpm2.TPMSECCPoint) { p.Y.Buffer = nil })},
		"at infinity":         {ForgePublic: svidPoint(func(p *tpm2.TPMSECCPoint) { clear(p.X.Buffer); clear(p.Y.Buffer) })},
		"with a longer point": {ForgePublic: svidPoint(func(p *tpm2.TPMSECCPoint) { p.X.Buffer = slices.Insert(p.X.Buffer, 0, 0) })},
		"of RSA":              {ForgePublic: svidOfRSA},
		"no name":             {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) { c.Name.Buffer = nil })},
		"another name":        {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) { c.Name.Buffer[33] ^= 1 })},
		"its qualified name": {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) {
			c.Name.Buffer, c.QualifiedName.Buffer = bytes.Repeat([]byte{0, 11}, 17), bytes.Clone(c.Name.Buffer)
		})},
		"its name without the algorithm": {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) {
			c.Name.Buffer = c.Name.Buffer[2:]
		})},
		"over nothing": {ForgeCertify: func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = nil }},
		"over more":    {ForgeCertify: func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = append(a.ExtraData.Buffer, 0) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := withSVIDKey(t, k)
			s := begin(t, tpm)
			answer, err := s.Finish(tpm.Answer(t, ask(t, s, attestor.Ask{SVIDKey: true})))
			if !errors.Is(err, attestor.ErrSVIDKeyFailed) || answer != nil {
				t.Errorf("%v: want ErrSVIDKeyFailed", err)
			}
		})
	}
}

// svidPoint changes the point of an SVID key.
func svidPoint(change func(*tpm2.TPMSECCPoint)) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		point, err := p.Unique.ECC()
		if err != nil {
			return
		}
		point.X.Buffer, point.Y.Buffer = bytes.Clone(point.X.Buffer), bytes.Clone(point.Y.Buffer)
		change(point)
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, point)
	}
}

func svidOfRSA(p *tpm2.TPMTPublic) {
	p.Type = tpm2.TPMAlgRSA
	p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSRSAParms{KeyBits: 2048, Scheme: tpm2.TPMTRSAScheme{
		Scheme:  tpm2.TPMAlgRSASSA,
		Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
	}})
	p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Repeat([]byte{0xFF}, 256)})
}

// A coordinate may begin with zeros, and a TPM may leave them out: one key in 128 has such a
// coordinate. The hash is that of the key either way, or SPIRE's would not be equal to it.
func TestSVIDKeyWithALeadingZero(t *testing.T) {
	t.Parallel()
	var key *ecdsa.PrivateKey
	point := bytes.Repeat([]byte{1}, 65)
	for point[1] != 0 && point[33] != 0 {
		key = softwareKey(t, elliptic.P256())
		var err error
		if point, err = key.PublicKey.Bytes(); err != nil {
			t.Fatal(err)
		}
	}
	strip := func(p *tpm2.TPMSECCPoint) {
		p.X.Buffer, p.Y.Buffer = bytes.TrimLeft(p.X.Buffer, "\x00"), bytes.TrimLeft(p.Y.Buffer, "\x00")
	}
	for form, forge := range map[string]func(*tpm2.TPMTPublic){"padded": nil, "stripped": svidPoint(strip)} {
		tpm := withSVIDKey(t, attestortest.SVIDKey{Key: key, ForgePublic: forge})
		s := begin(t, tpm)
		answer, err := s.Finish(tpm.Answer(t, ask(t, s, attestor.Ask{SVIDKey: true})))
		if err != nil || !key.PublicKey.Equal(answer.SVIDKey.Public) || answer.SVIDKey.SPKIHash != spkiHash(t, &key.PublicKey) {
			t.Errorf("%s: %v, %v", form, answer, err)
		}
	}
}

// Only TPM2_Certify proves an SVID key. Any other attestation by the AK is refused, even over the
// right secret. An attestation of the key's creation says as much about the key, but the AK makes it
// for anybody who has the key's creation ticket.
func TestOtherAttestationsOfAnSVIDKey(t *testing.T) {
	t.Parallel()
	for name, forge := range otherAttestations() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := withSVIDKey(t, attestortest.SVIDKey{ForgeCertify: forge})
			s := begin(t, tpm)
			response := tpm.Answer(t, ask(t, s, attestor.Ask{SVIDKey: true}))
			wantRefused(t, s, response, attestor.ErrSVIDKeyFailed, false)
		})
	}
}

// svids is a scene of an attestation with an SVID key, which a machine may change.
type svids struct {
	scene
	t *testing.T
}

// certify returns the certification of the key of a TPM over data.
func (s *svids) certify(tpm *attestortest.TPM, data []byte) *attestor.SignedSVIDKey {
	s.t.Helper()
	k, err := tpm.CertifySVIDKey(data)
	if err != nil {
		s.t.Fatal(err)
	}
	return k
}

// data is what the machine's AK is to certify over in this session.
func (s *svids) data() []byte { return attestor.SVIDKeyData(s.response.Secret) }

// labelled is that with another label.
func (s *svids) labelled(label string) []byte {
	sum := sha256.Sum256(append([]byte(label), s.response.Secret...))
	return sum[:]
}

// forgedSVIDKeys are the SVID keys of machines that lie; wrong are those that are well formed.
func forgedSVIDKeys() map[string]struct {
	change func(*svids)
	wrong  bool
} {
	type forgery = struct {
		change func(*svids)
		wrong  bool
	}
	member := func(change func(*attestor.SignedSVIDKey)) func(*svids) {
		return func(s *svids) { change(s.response.SVIDKey) }
	}
	return map[string]forgery{
		"another session's": {func(s *svids) {
			s.response.SVIDKey = read[fullResponse](s.t, s.tpm.Answer(s.t, challenge(s.t, begin(s.t, s.tpm)))).SVIDKey
		}, true},
		"another AK's": {func(s *svids) {
			s.response.SVIDKey = s.certify(withSVIDKey(s.t, attestortest.SVIDKey{}), s.data())
		}, true},
		"another AK's, of the same key": {func(s *svids) {
			s.response.SVIDKey = s.certify(withSVIDKey(s.t, attestortest.SVIDKey{Key: s.tpm.SVIDKey()}), s.data())
		}, true},
		"certified by itself": {func(s *svids) {
			k := s.response.SVIDKey
			k.Signature = attestortest.SignAK(s.t, s.tpm.SVIDKey(), k.Attest)
		}, true},
		"another key's public area": {func(s *svids) {
			s.response.SVIDKey.Public = s.certify(withSVIDKey(s.t, attestortest.SVIDKey{}), nil).Public
		}, true},
		"a key in software": {func(s *svids) {
			area, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.response.SVIDKey.Public)
			point, err2 := softwareKey(s.t, elliptic.P256()).PublicKey.Bytes()
			if err != nil || err2 != nil {
				s.t.Fatal(err, err2)
			}
			area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
				X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
			})
			s.response.SVIDKey.Public = tpm2.Marshal(area)
		}, true},
		"the AK": {func(s *svids) { s.response.SVIDKey.Public = s.tpm.Claim().AK.Public }, true},
		"the DevID": {func(s *svids) {
			d, err := s.tpm.DevID(&attestor.DevIDRequest{QualifyingData: s.data()})
			if err != nil {
				s.t.Fatal(err)
			}
			s.response.SVIDKey = &attestor.SignedSVIDKey{Public: d.Public, Attest: d.Attest, Signature: d.AttestSignature}
		}, true},
		"the AK's creation": {func(s *svids) {
			ak := s.tpm.Claim().AK
			s.response.SVIDKey.Attest, s.response.SVIDKey.Signature = ak.CreateAttestation, ak.CreateSignature
		}, false},
		"a quote": {func(s *svids) {
			q, err := s.tpm.Quote(someAsk().Quote, s.data())
			if err != nil {
				s.t.Fatal(err)
			}
			s.response.SVIDKey.Attest, s.response.SVIDKey.Signature = q.Attest, q.Signature
		}, false},
		"over the bare secret": {func(s *svids) { s.response.SVIDKey = s.certify(s.tpm, s.response.Secret) }, true},
		"over another label": {func(s *svids) {
			s.response.SVIDKey = s.certify(s.tpm, s.labelled("spire-tpm-attestor svid key 2\x00"))
		}, true},
		"over the label without its end": {func(s *svids) {
			s.response.SVIDKey = s.certify(s.tpm, s.labelled("spire-tpm-attestor svid key 1"))
		}, true},
		"over a DevID's label": {func(s *svids) {
			s.response.SVIDKey = s.certify(s.tpm, s.labelled("spire-tpm-attestor devid certify 1\x00"))
		}, true},
		"altered":            {member(func(k *attestor.SignedSVIDKey) { k.Attest[len(k.Attest)-1] ^= 1 }), true},
		"no magic":           {member(func(k *attestor.SignedSVIDKey) { k.Attest[0] ^= 1 }), false},
		"another signature":  {member(func(k *attestor.SignedSVIDKey) { k.Signature[20] ^= 1 }), true},
		"another hash":       {member(func(k *attestor.SignedSVIDKey) { k.Signature[3] ^= 7 }), true},
		"another scheme":     {member(func(k *attestor.SignedSVIDKey) { k.Signature[1] ^= 1 }), true},
		"a byte behind":      {member(func(k *attestor.SignedSVIDKey) { k.Public = append(k.Public, 0) }), false},
		"a byte behind that": {member(func(k *attestor.SignedSVIDKey) { k.Attest = append(k.Attest, 0) }), false},
		"a byte behind it":   {member(func(k *attestor.SignedSVIDKey) { k.Signature = append(k.Signature, 0) }), false},
		"a sized area": {member(func(k *attestor.SignedSVIDKey) {
			k.Public = slices.Insert(k.Public, 0, 0, byte(len(k.Public)))
		}), false},
		"cut":                {member(func(k *attestor.SignedSVIDKey) { k.Public = k.Public[:40] }), false},
		"cut there":          {member(func(k *attestor.SignedSVIDKey) { k.Attest = k.Attest[:90] }), false},
		"cut here":           {member(func(k *attestor.SignedSVIDKey) { k.Signature = k.Signature[:30] }), false},
		"no public area":     {member(func(k *attestor.SignedSVIDKey) { k.Public = nil }), false},
		"no certification":   {member(func(k *attestor.SignedSVIDKey) { k.Attest = nil }), false},
		"no signature":       {member(func(k *attestor.SignedSVIDKey) { k.Signature = nil }), false},
		"nothing":            {member(func(k *attestor.SignedSVIDKey) { *k = attestor.SignedSVIDKey{} }), false},
		"too long":           {member(func(k *attestor.SignedSVIDKey) { k.Public = make([]byte, 1025) }), false},
		"a long signature":   {member(func(k *attestor.SignedSVIDKey) { k.Signature = make([]byte, 1025) }), false},
		"a long attestation": {member(func(k *attestor.SignedSVIDKey) { k.Attest = make([]byte, 1025) }), false},
	}
}

// An SVID key whose proof does not hold refuses the attestation, and nothing that a machine sends
// stops the server.
func TestForgedSVIDKeys(t *testing.T) {
	t.Parallel()
	for name, test := range forgedSVIDKeys() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := withSVIDKey(t, attestortest.SVIDKey{})
			session := begin(t, tpm)
			challenge := ask(t, session, attestor.Ask{SVIDKey: true})
			s := &svids{scene{tpm, read[fullChallenge](t, challenge), read[fullResponse](t, tpm.Answer(t, challenge))}, t}
			test.change(s)
			wantRefused(t, session, write(t, s.response), attestor.ErrSVIDKeyFailed, test.wrong)
		})
	}
}

// A good SVID key does not make up for anything else, and an attestor that issues DevIDs does not
// take it for one.
func TestSVIDKeyWithoutTheRest(t *testing.T) {
	t.Parallel()
	for want, change := range map[error]func(*fullResponse){
		attestor.ErrChallengeFailed: func(r *fullResponse) { r.Secret[0] ^= 1 },
		attestor.ErrQuoteFailed:     func(r *fullResponse) { r.Quote = nil },
		attestor.ErrDevIDFailed:     func(r *fullResponse) { r.DevID.Signature = r.SVIDKey.Signature },
	} {
		tpm := withSVIDKey(t, attestortest.SVIDKey{})
		s := begin(t, tpm)
		all := attestor.Ask{Quote: someAsk().Quote, DevID: true, SVIDKey: true}
		r := read[fullResponse](t, tpm.Answer(t, ask(t, s, all)))
		change(&r)
		if answer, err := s.Finish(write(t, r)); !errors.Is(err, want) || answer != nil {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

// The wire has the members of an SVID key under their names, and what the AK certifies over is what
// other programs compute.
func TestSVIDKeyOnTheWire(t *testing.T) {
	t.Parallel()
	sum := sha256.Sum256([]byte("spire-tpm-attestor svid key 1\x00secret"))
	if got := attestor.SVIDKeyData([]byte("secret")); !bytes.Equal(got, sum[:]) {
		t.Errorf("the AK certifies over %x", got)
	}
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	msg := []byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"}}`)
	done := &attestor.Activated{Secret: []byte("secret"), SVIDKey: &attestor.SignedSVIDKey{
		Public: []byte{1}, Attest: []byte{2}, Signature: []byte{3},
	}}
	const want = `{"Secret":"c2VjcmV0","SVIDKey":{"Public":"AQ==","Attest":"Ag==","Signature":"Aw=="}}`
	answer, err := attestor.NewProver(tpm.Claim(), fixed{done}).Answer(msg)
	if err != nil || string(answer) != want {
		t.Errorf("the wire has %s, %v: want %s", answer, err, want)
	}
	if first := read[firstResponse](t, answer); string(first.Secret) != "secret" {
		t.Errorf("a server of the first version reads %q", first.Secret)
	}
	done.SVIDKey = nil
	answer, err = attestor.NewProver(tpm.Claim(), fixed{done}).Answer(msg)
	if err != nil || strings.Contains(string(answer), "SVID") {
		t.Errorf("a machine without an SVID key sends %s, %v", answer, err)
	}
}

// An agent reads its own key with the server's limits, before it is used.
func TestReadSVIDKey(t *testing.T) {
	t.Parallel()
	tpm := withSVIDKey(t, attestortest.SVIDKey{})
	k, err := tpm.CertifySVIDKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := attestor.ReadSVIDKey(k.Public); err != nil || !key.Equal(&tpm.SVIDKey().PublicKey) {
		t.Errorf("%v, %v", key, err)
	}
	for _, public := range [][]byte{nil, k.Public[1:], append(k.Public, 0), tpm.Claim().AK.Public, tpm.Claim().EKPublic} {
		if key, err := attestor.ReadSVIDKey(public); err == nil {
			t.Errorf("%x is an SVID key: %v", public, key)
		}
	}
}

// Any bytes are refused as an SVID key, or are a public area that go-tpm reads in the same way. Any
// bytes are refused as a response with an SVID key, or hold the key that the AK has certified.
func FuzzSVIDKey(f *testing.F) {
	tpm := withSVIDKey(f, attestortest.SVIDKey{})
	secret := [32]byte{1}
	look := attestor.Ask{SVIDKey: true}
	waiting, err := attestor.Challenged(new(attestor.Verifier), tpm.Payload(f), look, secret, [32]byte{})
	if err != nil {
		f.Fatal(err)
	}
	k, err := tpm.CertifySVIDKey(attestor.SVIDKeyData(secret[:]))
	if err != nil {
		f.Fatal(err)
	}
	msg := members{"Secret": secret[:], "SVIDKey": k}.encode(f)
	f.Add(msg, k.Public)
	f.Add(bytes.ReplaceAll(msg, []byte(`"Attest":`), []byte(`"Attest":"",`)), tpm.Claim().AK.Public)
	f.Fuzz(func(t *testing.T, msg, public []byte) {
		checkPublic(t, public)
		if key, err := attestor.ReadSVIDKey(public); err == nil && key.Curve != elliptic.P256() {
			t.Fatalf("public area %x: a key on %v", public, key.Curve)
		}
		answer, err := waiting.Copy().Finish(msg)
		switch {
		case err != nil && answer != nil:
			t.Fatal("an answer with an error")
		case err != nil || answer.SVIDKey == nil:
			return
		}
		if want := &tpm.SVIDKey().PublicKey; !want.Equal(answer.SVIDKey.Public) || answer.SVIDKey.SPKIHash != spkiHash(t, want) {
			t.Fatalf("the key is %v", answer.SVIDKey.Public)
		}
	})
}

// A response that says two things of the SVID key is refused, since readers of JSON differ in which they take;
// under another spelling it says nothing of it. The order of the members does not matter.
func TestSVIDKeyTwice(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change func(response string) string
		ok     bool // the response is taken
		key    bool // and has an SVID key
	}{
		"as it is": {func(r string) string { return r }, true, true},
		"first": {func(r string) string {
			secret, key, _ := strings.Cut(strings.Trim(r, "{}"), `,"SVIDKey":`)
			return `{"SVIDKey":` + key + "}," + secret + "}"
		}, true, true},
		"null and itself": {func(r string) string { return strings.Replace(r, `"SVIDKey":`, `"SVIDKey":null,"SVIDKey":`, 1) }, false, false},
		"itself and null": {func(r string) string { return strings.TrimSuffix(r, "}") + `,"SVIDKey":null}` }, false, false},
		"by an escape":    {func(r string) string { return strings.TrimSuffix(r, "}") + `,"SVID\u004bey":null}` }, false, false},
		"a public area twice": {func(r string) string {
			return strings.Replace(r, `"SVIDKey":{`, `"SVIDKey":{"Public":"AAAA",`, 1)
		}, false, false},
		"in small letters": {func(r string) string { return strings.Replace(r, `"SVIDKey":`, `"svidkey":`, 1) }, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, SVIDKey: new(attestortest.SVIDKey)})
			s := begin(t, tpm)
			response := string(tpm.Answer(t, ask(t, s, attestor.Ask{SVIDKey: true})))
			if !strings.Contains(response, `,"SVIDKey":{"Public":`) {
				t.Fatalf("the response is %s", response)
			}
			answer, err := s.Finish([]byte(test.change(response)))
			if (err == nil) != test.ok || err == nil && (answer.SVIDKey != nil) != test.key {
				t.Errorf("%v, %v", answer, err)
			}
		})
	}
}
