package attestor_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// payloadOf is the payload of a claim that a Prover would not send.
func payloadOf(t testing.TB, c attestor.Claim) []byte {
	t.Helper()
	m := members{
		"EK": pemForms(t, c)["key"],
		"AK": map[string]any{
			"Public":            c.AK.Public,
			"CreateData":        c.AK.CreateData,
			"CreateAttestation": c.AK.CreateAttestation,
			"CreateSignature":   c.AK.CreateSignature,
		},
	}
	if c.EKPublic != nil {
		m["EKPublic"] = c.EKPublic
	}
	return m.encode(t)
}

func eccScheme(alg, hash tpm2.TPMAlgID) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		parms, err := p.Parameters.ECCDetail()
		if err != nil {
			return
		}
		parms.Scheme.Scheme = alg
		if alg != tpm2.TPMAlgNull {
			parms.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: hash})
		}
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, parms)
	}
}

func rsaParms(change func(*tpm2.TPMSRSAParms)) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		parms, err := p.Parameters.RSADetail()
		if err != nil {
			return
		}
		change(parms)
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, parms)
	}
}

// A key without the attributes, the name or the scheme of an AK is refused, even if everything that
// it says is consistent and signed: its owner could sign what no TPM has made, or decrypt what is
// meant for the TPM.
func TestAKsThatAreNone(t *testing.T) {
	t.Parallel()
	attr := func(change func(*tpm2.TPMAObject)) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) { change(&p.ObjectAttributes) }
	}
	nameAlg := func(alg tpm2.TPMAlgID) func(*tpm2.TPMTPublic) {
		return func(p *tpm2.TPMTPublic) { p.NameAlg = alg }
	}
	for name, test := range map[string]struct {
		forge func(*tpm2.TPMTPublic)
		ak    attestor.KeyType
		want  string
	}{
		"that leaves the TPM":      {attr(func(a *tpm2.TPMAObject) { a.FixedTPM = false }), "", "fixedTPM"},
		"that leaves its parent":   {attr(func(a *tpm2.TPMAObject) { a.FixedParent = false }), "", "fixedParent"},
		"made outside":             {attr(func(a *tpm2.TPMAObject) { a.SensitiveDataOrigin = false }), "", "sensitiveDataOrigin"},
		"that signs anything":      {attr(func(a *tpm2.TPMAObject) { a.Restricted = false }), "", "restricted"},
		"that cannot sign":         {attr(func(a *tpm2.TPMAObject) { a.SignEncrypt = false }), "", "sign"},
		"that decrypts":            {attr(func(a *tpm2.TPMAObject) { a.Decrypt = true }), "", "decrypt"},
		"that decrypts, RSA":       {attr(func(a *tpm2.TPMAObject) { a.Decrypt = true }), attestor.RSA2048, "decrypt"},
		"named by SHA-1":           {nameAlg(tpm2.TPMAlgSHA1), "", "name algorithm"},
		"without a scheme":         {eccScheme(tpm2.TPMAlgNull, 0), "", "no signing scheme"},
		"without a scheme, RSA":    {rsaParms(func(p *tpm2.TPMSRSAParms) { p.Scheme = tpm2.TPMTRSAScheme{} }), attestor.RSA2048, "no signing scheme"},
		"that signs SHA-1":         {eccScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA1), "", "signing scheme"},
		"of another hash":          {eccScheme(tpm2.TPMAlgECDSA, tpm2.TPMAlgSHA384), "", "AK.CreateSignature"},
		"with a storage algorithm": {rsaParms(withAES), attestor.RSA2048, "symmetric"},
		"of the exponent 3":        {rsaParms(func(p *tpm2.TPMSRSAParms) { p.Exponent = 3 }), attestor.RSA2048, "exponent"},
		"of other bits":            {rsaParms(func(p *tpm2.TPMSRSAParms) { p.KeyBits = 3072 }), attestor.RSA2048, "modulus"},
		"of 1024 bits":             {weakRSA, attestor.RSA2048, "1024 bits"},
		"off its curve":            {offCurve, "", "not on the curve"},
		"on an unknown curve":      {onCurve(tpm2.TPMECCNistP224), "", "curve"},
		"on another curve":         {onCurve(tpm2.TPMECCNistP384), "", "not on the curve"},
		"with a huge coordinate":   {hugeCoordinate, "", "AK.Public"},
		"without a point":          {func(p *tpm2.TPMTPublic) { p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPMSECCPoint{}) }, "", "coordinate"},
		"of a keyed hash":          {keyedHash, "", "RSA or ECC"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := attestortest.Options{EK: attestor.P256, AK: test.ak, ForgePublic: test.forge}
			var v attestor.Verifier
			refused(t, &v, payloadOf(t, attestortest.New(t, o).Claim()), test.want)
		})
	}
}

func withAES(p *tpm2.TPMSRSAParms) {
	p.Symmetric = tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

func weakRSA(p *tpm2.TPMTPublic) {
	rsaParms(func(parms *tpm2.TPMSRSAParms) { parms.KeyBits = 1024 })(p)
	n := bytes.Repeat([]byte{0xFF}, 128)
	p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BPublicKeyRSA{Buffer: n})
}

func offCurve(p *tpm2.TPMTPublic) {
	point, err := p.Unique.ECC()
	if err == nil {
		point.Y.Buffer[31] ^= 1
	}
}

func onCurve(id tpm2.TPMECCCurve) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		if parms, err := p.Parameters.ECCDetail(); err == nil {
			parms.CurveID = id
		}
	}
}

func hugeCoordinate(p *tpm2.TPMTPublic) {
	if point, err := p.Unique.ECC(); err == nil {
		point.X.Buffer = make([]byte, 3000)
	}
}

func keyedHash(p *tpm2.TPMTPublic) {
	p.Type = tpm2.TPMAlgKeyedHash
	p.Parameters = tpm2.NewTPMUPublicParms(p.Type, &tpm2.TPMSKeyedHashParms{})
	p.Unique = tpm2.NewTPMUPublicID(p.Type, &tpm2.TPM2BDigest{Buffer: make([]byte, 32)})
}

// What a TPM certifies must be a creation, of exactly this key and exactly these creation data.
func TestAttestationsThatAreNone(t *testing.T) {
	t.Parallel()
	creation := func(change func(*tpm2.TPMSCreationInfo)) func(*tpm2.TPMSAttest) {
		return func(a *tpm2.TPMSAttest) {
			if c, err := a.Attested.Creation(); err == nil {
				change(c)
			}
		}
	}
	for name, test := range map[string]struct {
		forge func(*tpm2.TPMSAttest)
		want  string
	}{
		"certifies another key": {creation(func(c *tpm2.TPMSCreationInfo) { c.ObjectName.Buffer[9] ^= 1 }), "a key other"},
		"certifies no key":      {creation(func(c *tpm2.TPMSCreationInfo) { c.ObjectName.Buffer = nil }), "a key other"},
		"certifies a handle":    {creation(func(c *tpm2.TPMSCreationInfo) { c.ObjectName.Buffer = []byte{0x40, 0, 0, 1} }), "a key other"},
		"of other data":         {creation(func(c *tpm2.TPMSCreationInfo) { c.CreationHash.Buffer[9] ^= 1 }), "creation data other"},
		"of no data":            {creation(func(c *tpm2.TPMSCreationInfo) { c.CreationHash.Buffer = nil }), "creation data other"},
		"of a certification": {func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestCertify
			a.Attested = tpm2.NewTPMUAttest(a.Type, &tpm2.TPMSCertifyInfo{Name: a.QualifiedSigner})
		}, "of a creation"},
		"of a quote": {func(a *tpm2.TPMSAttest) {
			a.Type = tpm2.TPMSTAttestQuote
			a.Attested = tpm2.NewTPMUAttest(a.Type, &tpm2.TPMSQuoteInfo{})
		}, "of a creation"},
		"with huge extra data": {func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = make([]byte, 100) }, "AK.CreateAttestation"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := attestortest.Options{EK: attestor.P256, ForgeAttest: test.forge}
			var v attestor.Verifier
			refused(t, &v, payloadOf(t, attestortest.New(t, o).Claim()), test.want)
		})
	}
	// The magic by which a TPM marks what it has made itself: without it, a
	// restricted key would have signed what anybody handed to it.
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := attestortest.New(t, attestortest.Options{EK: attestor.P256, ForgePublic: ofKey(key)}).Claim()
	c.AK.CreateAttestation[0] ^= 1
	c.AK.CreateSignature = attestortest.SignAK(t, key, c.AK.CreateAttestation)
	var v attestor.Verifier
	refused(t, &v, payloadOf(t, c), "TPM_GENERATED_VALUE")
}

// ofKey puts another public key into an AK's public area.
func ofKey(key *ecdsa.PrivateKey) func(*tpm2.TPMTPublic) {
	return func(p *tpm2.TPMTPublic) {
		point, err := key.PublicKey.Bytes()
		if err != nil {
			return
		}
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]},
			Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		})
	}
}

// Creation data is limited in size, and nothing else is accepted as creation data.
func TestCreationDataThatIsNone(t *testing.T) {
	t.Parallel()
	selection := func(n, size int) func(*tpm2.TPMSCreationData) {
		return func(d *tpm2.TPMSCreationData) {
			for range n {
				d.PCRSelect.PCRSelections = append(d.PCRSelect.PCRSelections,
					tpm2.TPMSPCRSelection{Hash: tpm2.TPMAlgSHA256, PCRSelect: make([]byte, size)})
			}
		}
	}
	for name, test := range map[string]struct {
		forge func(*tpm2.TPMSCreationData)
		good  bool
	}{
		"no banks":            {selection(0, 0), true},
		"two banks":           {selection(2, 3), true},
		"17 banks":            {selection(17, 3), false},
		"200 PCRs":            {selection(1, 25), false},
		"a huge parent":       {func(d *tpm2.TPMSCreationData) { d.ParentName.Buffer = make([]byte, 67) }, false},
		"a huge digest":       {func(d *tpm2.TPMSCreationData) { d.PCRDigest.Buffer = make([]byte, 65) }, false},
		"huge outside info":   {func(d *tpm2.TPMSCreationData) { d.OutsideInfo.Buffer = make([]byte, 2000) }, false},
		"a nonce of 32 bytes": {func(d *tpm2.TPMSCreationData) { d.OutsideInfo.Buffer = make([]byte, 32) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := attestortest.Options{EK: attestor.P256, ForgeCreation: test.forge}
			payload := payloadOf(t, attestortest.New(t, o).Claim())
			var v attestor.Verifier
			if !test.good {
				refused(t, &v, payload, "AK.CreateData")
			} else if _, err := v.Begin(payload); err != nil {
				t.Error(err)
			}
		})
	}
}

// If anything in an AK's parameters is changed, by one bit, by truncation or by an extra byte, they
// are refused: nothing in them goes unread or unsigned.
func TestAKParametersChanged(t *testing.T) {
	t.Parallel()
	for _, o := range []attestortest.Options{
		{EK: attestor.P256, AK: attestor.P256},
		{EK: attestor.P256, AK: attestor.RSA2048},
		{EK: attestor.P256, AK: attestor.RSA2048, PSS: true},
	} {
		tpm := attestortest.New(t, o)
		fields := func(c *attestor.Claim) map[string]*[]byte {
			return map[string]*[]byte{
				"Public": &c.AK.Public, "CreateData": &c.AK.CreateData,
				"CreateAttestation": &c.AK.CreateAttestation, "CreateSignature": &c.AK.CreateSignature,
			}
		}
		honest := tpm.Claim()
		for name, whole := range fields(&honest) {
			t.Run(fmt.Sprintf("%s/%s", describe(o), name), func(t *testing.T) {
				t.Parallel()
				var v attestor.Verifier
				try := func(what string, changed []byte) {
					c := tpm.Claim()
					*fields(&c)[name] = changed
					if _, err := v.Begin(payloadOf(t, c)); err == nil {
						t.Errorf("%s: it is taken", what)
					}
				}
				for i := range *whole {
					changed := bytes.Clone(*whole)
					changed[i] ^= 1 << (i % 8)
					try(fmt.Sprintf("a bit of byte %d", i), changed)
					try(fmt.Sprintf("cut at %d", i), bytes.Clone((*whole)[:i]))
				}
				try("a byte too many", append(bytes.Clone(*whole), 0))
				try("twice", append(bytes.Clone(*whole), *whole...))
			})
		}
	}
}

// The parameters of two honest AKs cannot be mixed.
func TestAKParametersMixed(t *testing.T) {
	t.Parallel()
	for _, other := range []attestortest.Options{
		{EK: attestor.P256},
		{EK: attestor.P256, AK: attestor.RSA2048}, // an RSA signature by an ECC key and the reverse
		{EK: attestor.P256, AK: attestor.RSA2048, PSS: true},
		{EK: attestor.P256, AK: attestor.P384},
	} {
		for _, ak := range []attestor.KeyType{attestor.P256, attestor.RSA2048} {
			one := attestortest.New(t, attestortest.Options{EK: attestor.P256, AK: ak}).Claim()
			two := attestortest.New(t, other).Claim()
			for name, mix := range map[string]func(*attestor.Claim){
				"Public":          func(c *attestor.Claim) { c.AK.Public = two.AK.Public },
				"Attestation":     func(c *attestor.Claim) { c.AK.CreateAttestation = two.AK.CreateAttestation },
				"CreateSignature": func(c *attestor.Claim) { c.AK.CreateSignature = two.AK.CreateSignature },
				"Attestation and signature": func(c *attestor.Claim) {
					c.AK.CreateAttestation = two.AK.CreateAttestation
					c.AK.CreateSignature = two.AK.CreateSignature
				},
			} {
				if bytes.Equal(one.AK.Public, two.AK.Public) && name != "CreateSignature" {
					continue // the RSA AK in stock is one
				}
				c := one
				mix(&c)
				t.Run(fmt.Sprintf("%s with %s of %s", ak, name, describe(other)), func(t *testing.T) {
					t.Parallel()
					var v attestor.Verifier
					if _, err := v.Begin(payloadOf(t, c)); err == nil && !bytes.Equal(c.AK.CreateSignature, one.AK.CreateSignature) {
						t.Error("it is taken")
					}
				})
			}
		}
	}
}

// A signature of zeros, or of the curve's order, is refused.
func TestSignaturesOutOfRange(t *testing.T) {
	t.Parallel()
	order := elliptic.P256().Params().N.Bytes()
	one := []byte{1}
	for name, rs := range map[string][2][]byte{
		"r zero":      {{}, one},
		"s zero":      {one, make([]byte, 32)},
		"both zero":   {make([]byte, 32), make([]byte, 32)},
		"r the order": {order, one},
		"s the order": {one, order},
		"r huge":      {bytes.Repeat([]byte{0xFF}, 66), one},
		"s too huge":  {one, bytes.Repeat([]byte{0xFF}, 3000)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := attestortest.New(t, attestortest.Options{EK: attestor.P256}).Claim()
			c.AK.CreateSignature = tpm2.Marshal(&tpm2.TPMTSignature{
				SigAlg: tpm2.TPMAlgECDSA,
				Signature: tpm2.NewTPMUSignature(tpm2.TPMAlgECDSA, &tpm2.TPMSSignatureECC{
					Hash:       tpm2.TPMAlgSHA256,
					SignatureR: tpm2.TPM2BECCParameter{Buffer: rs[0]},
					SignatureS: tpm2.TPM2BECCParameter{Buffer: rs[1]},
				}),
			})
			var v attestor.Verifier
			refused(t, &v, payloadOf(t, c), "AK.CreateSignature")
		})
	}
}

// The name of an AK may be longer than the EK's: a TPM names each key with the key's own algorithm.
func TestAKNamedBySHA512(t *testing.T) {
	t.Parallel()
	for _, alg := range []tpm2.TPMAlgID{tpm2.TPMAlgSHA384, tpm2.TPMAlgSHA512} {
		for _, ek := range []attestor.KeyType{attestor.RSA2048, attestor.P256, attestor.P384} {
			tpm := attestortest.New(t, attestortest.Options{
				EK: ek, ForgePublic: func(p *tpm2.TPMTPublic) { p.NameAlg = alg },
			})
			s := begin(t, tpm)
			if _, err := s.Finish(tpm.Answer(t, challenge(t, s))); err != nil {
				t.Errorf("%#04x, %s: %v", uint16(alg), ek, err)
			}
		}
	}
}
