package attestor_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// withDevID returns a TPM with a DevID.
func withDevID(t testing.TB, d attestortest.DevID) *attestortest.TPM {
	t.Helper()
	if d.CA == nil {
		d.CA = attestortest.NewCA(t, "devices")
	}
	return attestortest.New(t, attestortest.Options{EK: attestor.P256, PCRs: somePCRs(), DevID: &d})
}

// A DevID of each type and scheme is proved with each type of AK. The server gets the chain as it
// was sent, and the key.
func TestDevID(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "devices")
	below := ca.NewCA(t, "building 7")
	for _, d := range []attestortest.DevID{
		{},
		{Type: attestor.P256, Scheme: tpm2.TPMAlgECDSA, Hash: tpm2.TPMAlgSHA256},
		{Type: attestor.P384},
		{Type: attestor.P384, Scheme: tpm2.TPMAlgECDSA, Hash: tpm2.TPMAlgSHA384},
		{Type: attestor.P384, Scheme: tpm2.TPMAlgECDSA, Hash: tpm2.TPMAlgSHA512},
		{Type: attestor.RSA2048},
		{Type: attestor.RSA2048, Scheme: tpm2.TPMAlgRSASSA, Hash: tpm2.TPMAlgSHA256},
		{Type: attestor.RSA2048, Scheme: tpm2.TPMAlgRSAPSS, Hash: tpm2.TPMAlgSHA256},
		{Type: attestor.RSA3072, Scheme: tpm2.TPMAlgRSAPSS, Hash: tpm2.TPMAlgSHA384},
		{Type: attestor.RSA4096, Scheme: tpm2.TPMAlgRSASSA, Hash: tpm2.TPMAlgSHA512},
	} {
		for _, ak := range []attestor.KeyType{attestor.P256, attestor.RSA2048} {
			t.Run(fmt.Sprintf("%s-%#x-%#x/%s", d.Type, d.Scheme, d.Hash, ak), func(t *testing.T) {
				t.Parallel()
				d := d
				d.CA, d.Above = below, []*attestortest.CA{below, ca}
				tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, AK: ak, DevID: &d})
				s := begin(t, tpm)
				if !s.Can(attestor.CanDevID) {
					t.Fatal("the server does not know what the agent can")
				}
				answer, err := s.Finish(tpm.Answer(t, ask(t, s, attestor.Ask{DevID: true})))
				if err != nil {
					t.Fatal(err)
				}
				got := answer.DevID
				if k, ok := got.Key.(interface{ Equal(crypto.PublicKey) bool }); !ok || !k.Equal(tpm.DevIDKey().Public()) {
					t.Errorf("the key is %v", got.Key)
				}
				if len(got.Chain) != 3 || !bytes.Equal(got.Chain[1], below.Certificate.Raw) ||
					!bytes.Equal(got.Chain[2], ca.Certificate.Raw) {
					t.Errorf("a chain of %d", len(got.Chain))
				}
			})
		}
	}
}

// A quote and a DevID are made over the same nonces, and each is sent only if it is asked for and
// offered. An agent that offers a DevID but sends none has none, and that is not a failure.
func TestDevIDAndQuote(t *testing.T) {
	t.Parallel()
	both := attestor.Ask{Quote: someAsk().Quote, DevID: true}
	devices := attestortest.NewCA(t, "devices")
	for name, test := range map[string]struct {
		options attestortest.Options
		ask     attestor.Ask
		asked   []string // the members of the challenge
		sent    []string // the members of the response
	}{
		"both": {
			attestortest.Options{PCRs: somePCRs(), DevID: &attestortest.DevID{CA: devices}},
			both,
			[]string{"DevID", "EC", "Nonce", "Quote"},
			[]string{"DevID", "Nonce", "Quote", "Secret"},
		},
		"a DevID alone": {
			attestortest.Options{PCRs: somePCRs(), DevID: &attestortest.DevID{CA: devices}},
			attestor.Ask{DevID: true},
			[]string{"DevID", "EC", "Nonce"},
			[]string{"DevID", "Nonce", "Secret"},
		},
		"a TPM that cannot quote": {
			attestortest.Options{DevID: &attestortest.DevID{CA: devices}},
			both,
			[]string{"DevID", "EC", "Nonce"},
			[]string{"DevID", "Nonce", "Secret"},
		},
		"no DevID": {
			attestortest.Options{PCRs: somePCRs()},
			both,
			[]string{"EC", "Nonce", "Quote"},
			[]string{"Nonce", "Quote", "Secret"},
		},
		"not asked for": {
			attestortest.Options{DevID: &attestortest.DevID{CA: devices}},
			attestor.Ask{},
			[]string{"EC"},
			[]string{"Secret"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.options.EK = attestor.P256
			tpm := attestortest.New(t, test.options)
			s := begin(t, tpm)
			msg := ask(t, s, test.ask)
			if got := names(t, msg); !slices.Equal(got, test.asked) {
				t.Errorf("the challenge has %v, want %v", got, test.asked)
			}
			response := tpm.Answer(t, msg)
			if got := names(t, response); !slices.Equal(got, test.sent) {
				t.Errorf("the response has %v, want %v", got, test.sent)
			}
			answer, err := s.Finish(response)
			if err != nil {
				t.Fatal(err)
			}
			if (answer.DevID != nil) != slices.Contains(test.sent, "DevID") ||
				(answer.Quote != nil) != slices.Contains(test.sent, "Quote") {
				t.Errorf("the answer is %v", answer)
			}
		})
	}
	for _, none := range []string{``, `,"DevID":null`, `,"Nonce":"` + encode64(make([]byte, 32)) + `"`} {
		tpm := withDevID(t, attestortest.DevID{CA: devices})
		s := begin(t, tpm)
		secret := read[fullResponse](t, tpm.Answer(t, ask(t, s, attestor.Ask{DevID: true}))).Secret
		answer, err := s.Finish([]byte(`{"Secret":"` + encode64(secret) + `"` + none + `}`))
		if err != nil || answer.DevID != nil {
			t.Errorf("%s: %v, %v", none, answer, err)
		}
	}
}

// certified changes the TPMS_CERTIFY_INFO of a certification before it is signed.
func certified(change func(*tpm2.TPMSCertifyInfo)) func(*tpm2.TPMSAttest) {
	return func(a *tpm2.TPMSAttest) {
		c, err := a.Attested.Certify()
		if err != nil {
			return
		}
		change(c)
		a.Attested = tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, c)
	}
}

// A key that the AK certifies is not a DevID if it can leave its TPM, was made elsewhere, signs
// only what the TPM makes, decrypts, has a weak name, or is certified under another name.
func TestDevIDOfABadKey(t *testing.T) {
	t.Parallel()
	attributes := func(change func(*tpm2.TPMAObject)) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) { change(&p.ObjectAttributes) }
	}
	rsaParms := func(change func(*tpm2.TPMSRSAParms)) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) {
			parms, err := p.Parameters.RSADetail()
			if err != nil {
				return
			}
			change(parms)
			p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, parms)
		}
	}
	for name, d := range map[string]attestortest.DevID{
		"leaves its TPM":     {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.FixedTPM = false })},
		"leaves its parent":  {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.FixedParent = false })},
		"was imported":       {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false })},
		"cannot sign":        {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.SignEncrypt = false })},
		"is restricted":      {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.Restricted = true })},
		"decrypts":           {ForgePublic: attributes(func(a *tpm2.TPMAObject) { a.Decrypt = true })},
		"a name by SHA-1":    {ForgePublic: func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }},
		"signs with SHA-1":   {Type: attestor.RSA2048, Scheme: tpm2.TPMAlgRSASSA, Hash: tpm2.TPMAlgSHA1},
		"of P-521":           {Type: attestor.P521},
		"of RSA 1024":        {Type: attestor.RSA2048, ForgePublic: rsaParms(func(p *tpm2.TPMSRSAParms) { p.KeyBits = 1024 })},
		"with an exponent":   {Type: attestor.RSA2048, ForgePublic: rsaParms(func(p *tpm2.TPMSRSAParms) { p.Exponent = 3 })},
		"with another curve": {ForgePublic: devIDOnCurve(tpm2.TPMECCNistP384)},
		"no name":            {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) { c.Name.Buffer = nil })},
		"a name with a size": {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) {
			c.Name.Buffer = append([]byte{0, byte(len(c.Name.Buffer))}, c.Name.Buffer...)
		})},
		"another name": {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) { c.Name.Buffer[33] ^= 1 })},
		"its name without the algorithm": {ForgeCertify: certified(func(c *tpm2.TPMSCertifyInfo) {
			c.Name.Buffer = c.Name.Buffer[2:]
		})},
		"no nonces": {ForgeCertify: func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := withDevID(t, d)
			s := begin(t, tpm)
			answer, err := s.Finish(tpm.Answer(t, ask(t, s, attestor.Ask{DevID: true})))
			if !errors.Is(err, attestor.ErrDevIDFailed) || answer != nil {
				t.Errorf("%v: want ErrDevIDFailed", err)
			}
		})
	}
}

func devIDOnCurve(id tpm2.TPMECCCurve) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			return
		}
		parms.CurveID = id
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, parms)
	}
}

// otherAttestations returns functions by name. Each changes the TPMS_ATTEST of TPM2_Certify into a structure that does
// not certify the key.
func otherAttestations() map[string]func(*tpm2.TPMSAttest) {
	as := func(typ tpm2.TPMST, attested tpm2.TPMUAttest) func(*tpm2.TPMSAttest) {
		return func(a *tpm2.TPMSAttest) { a.Type, a.Attested = typ, attested }
	}
	return map[string]func(*tpm2.TPMSAttest){
		"magic": func(a *tpm2.TPMSAttest) { a.Magic = 0xFF544346 },
		"QUOTE": as(tpm2.TPMSTAttestQuote, tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{})),
		"CREATION": func(a *tpm2.TPMSAttest) {
			c, err := a.Attested.Certify()
			if err != nil {
				return
			}
			a.Type = tpm2.TPMSTAttestCreation
			a.Attested = tpm2.NewTPMUAttest(a.Type, &tpm2.TPMSCreationInfo{ObjectName: c.Name})
		},
		"TIME": as(tpm2.TPMSTAttestTime, tpm2.NewTPMUAttest(tpm2.TPMSTAttestTime, &tpm2.TPMSTimeAttestInfo{})),
		"NV":   as(tpm2.TPMSTAttestNV, tpm2.NewTPMUAttest(tpm2.TPMSTAttestNV, &tpm2.TPMSNVCertifyInfo{})),
	}
}

// Only TPM2_Certify proves a DevID's key. Any other attestation by the AK is refused, even over the
// right nonces.
func TestOtherAttestationsOfADevID(t *testing.T) {
	t.Parallel()
	for name, forge := range otherAttestations() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tpm := withDevID(t, attestortest.DevID{ForgeCertify: forge})
			s := begin(t, tpm)
			response := tpm.Answer(t, ask(t, s, attestor.Ask{DevID: true}))
			wantRefused(t, s, response, attestor.ErrDevIDFailed, false)
		})
	}
}

// devices is a scene of an attestation with a DevID, which the machine may forge.
type devices struct {
	scene
	ca *attestortest.CA
	t  *testing.T
}

// proof returns the DevID with its proof over other data.
func (d *devices) proof(data, message []byte) *attestor.SignedDevID {
	d.t.Helper()
	s, err := d.tpm.DevID(&attestor.DevIDRequest{QualifyingData: data, Message: message})
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

func (d *devices) certify(data []byte) {
	s := d.proof(data, nil)
	d.response.DevID.Attest, d.response.DevID.AttestSignature = s.Attest, s.AttestSignature
}

func (d *devices) sign(message []byte) { d.response.DevID.Signature = d.proof(nil, message).Signature }

func (d *devices) nonces() (server, agent []byte) { return d.challenge.Nonce, d.response.Nonce }

// akName returns the name of the machine's AK.
func (d *devices) akName() []byte {
	sum := sha256.Sum256(d.tpm.Claim().AK.Public)
	return append([]byte{0, 0x0B}, sum[:]...)
}

// issue replaces the certificate by one for another key.
func (d *devices) issue(pub crypto.PublicKey) {
	d.response.DevID.Chain[0] = d.ca.IssueDevID(d.t, pub, attestortest.Certificate{})
}

// fat sets a chain of n certificates of a CA.
func (d *devices) fat(n int, change func(*x509.Certificate)) {
	der := d.ca.NewCAWith(d.t, "fat", change).Certificate.Raw
	d.response.DevID.Chain = append(d.response.DevID.Chain, slices.Repeat([][]byte{der}, n)...)
}

// software replaces the DevID by a key in software that has a genuine certificate, with a public
// area that says what it should.
func (d *devices) software() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		d.t.Fatal(err)
	}
	d.issue(&key.PublicKey)
	public, err := tpm2.Unmarshal[tpm2.TPMTPublic](d.response.DevID.Public)
	if err != nil {
		d.t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		d.t.Fatal(err)
	}
	public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
	})
	d.response.DevID.Public = tpm2.Marshal(public)
	server, agent := d.nonces()
	d.response.DevID.Signature = attestortest.SignAK(d.t, key, attestor.DevIDMessage(server, agent, d.akName()))
	return key
}

// bigKey is a modulus of 16384 bits.
func bigKey() *big.Int { return new(big.Int).SetBit(big.NewInt(1), 16383, 1) }

// forged are the DevIDs of machines that lie; wrong are those that are well formed.
func forged() map[string]struct {
	change func(*devices)
	wrong  bool
} {
	type forgery = struct {
		change func(*devices)
		wrong  bool
	}
	return map[string]forgery{
		"a certificate for another key": {func(d *devices) {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				d.t.Fatal(err)
			}
			d.issue(&key.PublicKey)
		}, true},
		"a key in software": {func(d *devices) { d.software() }, true},
		"a key in software, named by itself": {func(d *devices) {
			key := d.software()
			forger := withDevID(d.t, attestortest.DevID{ForgeCertify: func(a *tpm2.TPMSAttest) {
				sum := sha256.Sum256(d.response.DevID.Public)
				name := tpm2.TPM2BName{Buffer: append([]byte{0, 0x0B}, sum[:]...)}
				a.Attested = tpm2.NewTPMUAttest(a.Type, &tpm2.TPMSCertifyInfo{Name: name, QualifiedName: name})
			}})
			s, err := forger.DevID(&attestor.DevIDRequest{QualifyingData: attestor.CertifyData(d.nonces())})
			if err != nil {
				d.t.Fatal(err)
			}
			d.response.DevID.Attest = s.Attest
			d.response.DevID.AttestSignature = attestortest.SignAK(d.t, key, s.Attest)
		}, true},
		"another TPM's": {func(d *devices) {
			other := *d
			other.tpm = withDevID(d.t, attestortest.DevID{})
			server, agent := d.nonces()
			d.response.DevID = other.proof(attestor.CertifyData(server, agent),
				attestor.DevIDMessage(server, agent, d.akName()))
		}, true},
		"another TPM's, certified by this one as its own": {func(d *devices) {
			other := *d
			other.tpm = withDevID(d.t, attestortest.DevID{})
			server, agent := d.nonces()
			s := other.proof(nil, attestor.DevIDMessage(server, agent, d.akName()))
			d.response.DevID.Chain, d.response.DevID.Public, d.response.DevID.Signature = s.Chain, s.Public, s.Signature
		}, true},
		"the AK": {func(d *devices) {
			d.response.DevID.Public = d.tpm.Claim().AK.Public
		}, true},
		"the AK's creation": {func(d *devices) {
			ak := d.tpm.Claim().AK
			d.response.DevID.Attest, d.response.DevID.AttestSignature = ak.CreateAttestation, ak.CreateSignature
		}, false},
		"a quote": {func(d *devices) {
			q, err := d.tpm.Quote(someAsk().Quote, attestor.CertifyData(d.nonces()))
			if err != nil {
				d.t.Fatal(err)
			}
			d.response.DevID.Attest, d.response.DevID.AttestSignature = q.Attest, q.Signature
		}, false},
		"another session's": {func(d *devices) {
			other := read[fullResponse](d.t, d.tpm.Answer(d.t, ask(d.t, begin(d.t, d.tpm), attestor.Ask{DevID: true})))
			d.response.DevID = other.DevID
		}, true},
		"another session's, with its nonce": {func(d *devices) {
			other := read[fullResponse](d.t, d.tpm.Answer(d.t, ask(d.t, begin(d.t, d.tpm), attestor.Ask{DevID: true})))
			d.response.DevID, d.response.Nonce = other.DevID, other.Nonce
		}, true},
		"certified in another session": {func(d *devices) {
			other := read[fullResponse](d.t, d.tpm.Answer(d.t, ask(d.t, begin(d.t, d.tpm), attestor.Ask{DevID: true})))
			d.response.DevID.Attest, d.response.DevID.AttestSignature = other.DevID.Attest, other.DevID.AttestSignature
		}, true},
		"signed in another session": {func(d *devices) {
			other := read[fullResponse](d.t, d.tpm.Answer(d.t, ask(d.t, begin(d.t, d.tpm), attestor.Ask{DevID: true})))
			d.response.DevID.Signature = other.DevID.Signature
		}, true},
		"certified with the quote's text": {func(d *devices) {
			d.certify(attestor.QualifyingData(d.nonces()))
		}, true},
		"certified over the server's nonce": {func(d *devices) { d.certify(d.challenge.Nonce) }, true},
		"certified over swapped nonces": {func(d *devices) {
			d.certify(attestor.CertifyData(d.response.Nonce, d.challenge.Nonce))
		}, true},
		"signed over the server's nonce": {func(d *devices) { d.sign(d.challenge.Nonce) }, true},
		"signed over swapped nonces": {func(d *devices) {
			d.sign(attestor.DevIDMessage(d.response.Nonce, d.challenge.Nonce, d.akName()))
		}, true},
		"signed without the AK": {func(d *devices) {
			server, agent := d.nonces()
			d.sign(attestor.DevIDMessage(server, agent, nil))
		}, true},
		"signed with another AK": {func(d *devices) {
			server, agent := d.nonces()
			name := d.akName()
			name[20] ^= 1
			d.sign(attestor.DevIDMessage(server, agent, name))
		}, true},
		"hashed twice": {func(d *devices) {
			server, agent := d.nonces()
			sum := sha256.Sum256(attestor.DevIDMessage(server, agent, d.akName()))
			d.sign(sum[:])
		}, true},
		"the certification's signature as its own": {func(d *devices) {
			d.response.DevID.Signature = d.response.DevID.AttestSignature
		}, true},
		"signed by the DevID in the AK's place": {func(d *devices) {
			d.response.DevID.AttestSignature = attestortest.SignAK(d.t, d.tpm.DevIDKey(), d.response.DevID.Attest)
		}, true},
		"the signatures swapped": {func(d *devices) {
			s := d.response.DevID
			s.Signature, s.AttestSignature = s.AttestSignature, s.Signature
		}, true},
		"another nonce":      {func(d *devices) { d.response.Nonce[0] ^= 1 }, true},
		"no nonce":           {func(d *devices) { d.response.Nonce = nil }, false},
		"altered":            {func(d *devices) { d.response.DevID.Attest[60] ^= 1 }, true},
		"another hash":       {func(d *devices) { d.response.DevID.Signature[3] ^= 7 }, true},
		"another scheme":     {func(d *devices) { d.response.DevID.Signature[1] ^= 1 }, true},
		"a byte behind":      {func(d *devices) { d.response.DevID.Public = append(d.response.DevID.Public, 0) }, false},
		"a byte behind that": {func(d *devices) { d.response.DevID.Attest = append(d.response.DevID.Attest, 0) }, false},
		"a byte behind it": {func(d *devices) {
			d.response.DevID.Signature = append(d.response.DevID.Signature, 0)
		}, false},
		"cut":                    {func(d *devices) { d.response.DevID.Attest = d.response.DevID.Attest[:90] }, false},
		"no certification":       {func(d *devices) { d.response.DevID.Attest = nil }, false},
		"no signature of the AK": {func(d *devices) { d.response.DevID.AttestSignature = nil }, false},
		"no signature":           {func(d *devices) { d.response.DevID.Signature = nil }, false},
		"no public area":         {func(d *devices) { d.response.DevID.Public = nil }, false},
		"no chain":               {func(d *devices) { d.response.DevID.Chain = nil }, false},
		"an empty chain":         {func(d *devices) { d.response.DevID.Chain = [][]byte{} }, false},
		"an empty certificate":   {func(d *devices) { d.response.DevID.Chain[0] = []byte{} }, false},
		"no certificate":         {func(d *devices) { d.response.DevID.Chain[0] = []byte("certificate") }, false},
		"padding": {func(d *devices) {
			d.response.DevID.Chain[0] = append(d.response.DevID.Chain[0], 0xFF)
		}, false},
		"a chain of 17":          {func(d *devices) { d.fat(16, func(*x509.Certificate) {}) }, false},
		"a chain of 48 KiB":      {func(d *devices) { d.fat(6, attestortest.Padding(7500)) }, false},
		"a chain of 64 KiB":      {func(d *devices) { d.fat(8, attestortest.Padding(7500)) }, false},
		"a certificate of 9 KiB": {func(d *devices) { d.fat(1, attestortest.Padding(9<<10)) }, false},
		"a certificate of 600 values": {func(d *devices) {
			d.fat(1, attestortest.Usages(600))
		}, false},
		"a certificate of a large key": {func(d *devices) {
			d.issue(&rsa.PublicKey{N: bigKey(), E: 65537})
			d.response.DevID.Chain = slices.Insert(d.response.DevID.Chain, 0,
				d.ca.IssueDevID(d.t, d.tpm.DevIDKey().Public(), attestortest.Certificate{}))
		}, false},
	}
}

// A DevID whose proof does not hold refuses the attestation, and nothing that a machine sends
// stops the server.
func TestForgedDevIDs(t *testing.T) {
	t.Parallel()
	for name, test := range forged() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := attestortest.NewCA(t, "devices")
			tpm := withDevID(t, attestortest.DevID{CA: ca})
			session := begin(t, tpm)
			challenge := ask(t, session, attestor.Ask{DevID: true})
			d := &devices{
				scene{tpm, read[fullChallenge](t, challenge), read[fullResponse](t, tpm.Answer(t, challenge))}, ca, t,
			}
			test.change(d)
			wantRefused(t, session, write(t, d.response), attestor.ErrDevIDFailed, test.wrong)
		})
	}
}

// An RSA key is its modulus and its exponent: a certificate for the same modulus with another
// exponent is for a key that anybody may have chosen.
func TestDevIDOfAnotherExponent(t *testing.T) {
	t.Parallel()
	for _, e := range []int{3, 17, 65539} {
		ca := attestortest.NewCA(t, "devices")
		tpm := withDevID(t, attestortest.DevID{CA: ca, Type: attestor.RSA2048})
		pub, ok := tpm.DevIDKey().Public().(*rsa.PublicKey)
		if !ok {
			t.Fatal("no RSA key")
		}
		s := begin(t, tpm)
		r := read[fullResponse](t, tpm.Answer(t, ask(t, s, attestor.Ask{DevID: true})))
		r.DevID.Chain[0] = ca.IssueDevID(t, &rsa.PublicKey{N: pub.N, E: e}, attestortest.Certificate{})
		if answer, err := s.Finish(write(t, r)); !errors.Is(err, attestor.ErrDevIDFailed) || answer != nil {
			t.Errorf("exponent %d: %v, want ErrDevIDFailed", e, err)
		}
	}
}

// A good DevID does not make up for a wrong secret or a wrong quote.
func TestDevIDWithoutTheSecret(t *testing.T) {
	t.Parallel()
	for want, change := range map[error]func(*fullResponse){
		attestor.ErrChallengeFailed: func(r *fullResponse) { r.Secret[0] ^= 1 },
		attestor.ErrQuoteFailed:     func(r *fullResponse) { r.Quote = nil },
	} {
		tpm := withDevID(t, attestortest.DevID{})
		s := begin(t, tpm)
		r := read[fullResponse](t, tpm.Answer(t, ask(t, s, attestor.Ask{Quote: someAsk().Quote, DevID: true})))
		change(&r)
		if answer, err := s.Finish(write(t, r)); !errors.Is(err, want) || answer != nil {
			t.Errorf("%v, want %v", err, want)
		}
	}
}

// The largest chain fits into a response, with a quote or without.
func TestLargestDevID(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "devices")
	var above []*attestortest.CA
	for range 5 {
		above = append(above, ca.NewCAWith(t, "fat", attestortest.Padding(7700)))
	}
	for range 10 {
		above = append(above, ca)
	}
	tpm := withDevID(t, attestortest.DevID{CA: ca, Above: above, Type: attestor.RSA4096})
	for _, a := range []attestor.Ask{{DevID: true}, {DevID: true, Quote: &attestor.QuoteRequest{Bank: "sha384", PCRs: everyPCR()}}} {
		s := begin(t, tpm)
		answer, err := s.Finish(tpm.Answer(t, ask(t, s, a)))
		if err != nil || len(answer.DevID.Chain) != 16 {
			t.Errorf("%v, %v", answer, err)
		}
	}
}

// A rogue server cannot choose what a DevID's key signs or what it is certified over. A challenge
// that is not exactly one of ours makes the machine sign nothing.
func TestRogueDevIDChallenges(t *testing.T) {
	t.Parallel()
	tpm := withDevID(t, attestortest.DevID{})
	nonce := `"Nonce":"` + encode64(make([]byte, 32)) + `"`
	for name, members := range map[string]string{
		"no nonce":           `"DevID":true`,
		"a short nonce":      `"DevID":true,"Nonce":"` + encode64(make([]byte, 31)) + `"`,
		"a long nonce":       `"DevID":true,"Nonce":"` + encode64(make([]byte, 33)) + `"`,
		"a whole structure":  `"DevID":true,"Nonce":"` + encode64(tpm.Claim().AK.CreateAttestation) + `"`,
		"DevID of 1":         `"DevID":1,` + nonce,
		"DevID of null":      `"DevID":null,` + nonce,
		"DevID of a message": `"DevID":"` + encode64([]byte("sign this")) + `",` + nonce,
		"DevID an object":    `"DevID":{"Message":"AAAA"},` + nonce,
		"two DevIDs":         `"DevID":true,"DevID":true,` + nonce,
	} {
		claim := tpm.Claim()
		p := attestor.NewProver(claim, unreached{t})
		if b, err := p.Answer([]byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"},` + members + `}`)); err == nil {
			t.Errorf("%s: the answer is %s", name, b)
		}
	}
}

// The agent itself forms what the AK certifies over and what the DevID's key signs. They depend on
// a nonce of the agent, even if a server repeats its own nonce, and differ from each other and from
// what a quote is made over. An agent without a DevID asks for nothing.
func TestDevIDRequests(t *testing.T) {
	t.Parallel()
	tpm := withDevID(t, attestortest.DevID{})
	server := strings.Repeat("s", 32)
	msg := []byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"},"Nonce":"` + encode64([]byte(server)) +
		`","Quote":{"Bank":"sha256","PCRs":[0]},"DevID":true}`)
	name := sha256.Sum256(tpm.Claim().AK.Public)
	seen := make(map[string]bool)
	for range 3 {
		var got recorder
		answer, err := attestor.NewProver(tpm.Claim(), &got).Answer(msg)
		if err != nil {
			t.Fatal(err)
		}
		nonces := server + string(read[fullResponse](t, answer).Nonce)
		quote := sha256.Sum256([]byte("spire-tpm-attestor quote 1\x00" + nonces))
		certify := sha256.Sum256([]byte("spire-tpm-attestor devid certify 1\x00" + nonces))
		sign := "spire-tpm-attestor devid sign 1\x00" + nonces + "\x00\x0b" + string(name[:])
		a := got.activation
		if !bytes.Equal(a.QualifyingData, quote[:]) || !bytes.Equal(a.DevID.QualifyingData, certify[:]) ||
			string(a.DevID.Message) != sign {
			t.Errorf("the TPM gets %x, %x and %q", a.QualifyingData, a.DevID.QualifyingData, a.DevID.Message)
		}
		seen[nonces] = true
	}
	if len(seen) != 3 {
		t.Error("the agent's nonces repeat")
	}
	claim := tpm.Claim()
	claim.Can = everything
	var got recorder
	if _, err := attestor.NewProver(claim, &got).Answer(msg); err != nil || got.activation.DevID != nil {
		t.Errorf("%v, %v", got.activation.DevID, err)
	}
}

// The wire has the members of a DevID under their names.
func TestDevIDOnTheWire(t *testing.T) {
	t.Parallel()
	tpm := withDevID(t, attestortest.DevID{})
	msg := []byte(`{"EC":{"Credential":"AAEA","Secret":"AAEA"},"Nonce":"` + encode64(make([]byte, 32)) + `","DevID":true}`)
	done := &attestor.Activated{Secret: []byte("secret"), DevID: &attestor.SignedDevID{
		Chain: [][]byte{{1}, {2}}, Public: []byte{3}, Attest: []byte{4}, AttestSignature: []byte{5}, Signature: []byte{6},
	}}
	const want = `"DevID":{"Chain":["AQ==","Ag=="],"Public":"Aw==","Attest":"BA==","AttestSignature":"BQ==","Signature":"Bg=="}}`
	answer, err := attestor.NewProver(tpm.Claim(), fixed{done}).Answer(msg)
	if err != nil || !strings.HasSuffix(string(answer), want) {
		t.Errorf("the wire has %s, %v: want %s", answer, err, want)
	}
	done.DevID = nil
	answer, err = attestor.NewProver(tpm.Claim(), fixed{done}).Answer(msg)
	if err != nil || strings.Contains(string(answer), "DevID") {
		t.Errorf("a machine without a DevID sends %s, %v", answer, err)
	}
}

// An agent reads its own chain and key with the server's limits, before it sends anything.
func TestReadDevIDKey(t *testing.T) {
	t.Parallel()
	tpm := withDevID(t, attestortest.DevID{Type: attestor.RSA2048, Scheme: tpm2.TPMAlgRSAPSS, Hash: tpm2.TPMAlgSHA384})
	s, err := tpm.DevID(new(attestor.DevIDRequest))
	if err != nil {
		t.Fatal(err)
	}
	key, err := attestor.ReadDevIDKey(s.Public)
	if err != nil || key.Scheme != tpm2.TPMAlgRSAPSS || key.Hash != tpm2.TPMAlgSHA384 {
		t.Fatalf("%v, %v", key, err)
	}
	leaf, err := attestor.ReadDevIDChain(s.Chain)
	if pub, ok := leaf.(*rsa.PublicKey); err != nil || !ok || !pub.Equal(key.Public) {
		t.Errorf("the certificate is for %v, %v", leaf, err)
	}
	for _, public := range [][]byte{nil, s.Public[1:], tpm.Claim().AK.Public, tpm.Claim().EKPublic} {
		if key, err := attestor.ReadDevIDKey(public); err == nil {
			t.Errorf("%x is a DevID's key: %v", public, key)
		}
	}
}
