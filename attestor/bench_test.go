package attestor_test

import (
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// benchmarks are the pairs of an EK and an AK whose attestation is measured.
// The bar: an attestation takes at most twice its floor.
var benchmarks = []attestortest.Options{
	{EK: attestor.RSA2048, AK: attestor.P256},
	{EK: attestor.RSA2048, AK: attestor.RSA2048},
	{EK: attestor.RSA3072, AK: attestor.P256},
	{EK: attestor.P256, AK: attestor.P256},
	{EK: attestor.P384, AK: attestor.P256},
}

func benchName(o attestortest.Options) string { return fmt.Sprintf("ek=%s/ak=%s", o.EK, o.AK) }

// BenchmarkAttestation is everything that the server computes for one
// attestation: the payload, the challenge and the response.
func BenchmarkAttestation(b *testing.B) {
	for _, o := range benchmarks {
		b.Run(benchName(o), func(b *testing.B) { benchmark(b, attestation(b, o)) })
	}
}

// BenchmarkAttestationCertificate is the same with an EK certificate in the
// payload. Its key is read; nobody parses it or checks its chain here.
func BenchmarkAttestationCertificate(b *testing.B) {
	ca := attestortest.NewCA(b, "bench")
	for _, o := range benchmarks {
		o.CA = ca
		b.Run(benchName(o), func(b *testing.B) { benchmark(b, attestation(b, o)) })
	}
}

// BenchmarkFloor is the cryptography that every attestation needs: verifying the AK's
// signature, encrypting a seed to the EK (OAEP, or an ephemeral key and ECDH), deriving
// two keys, AES and HMAC.
func BenchmarkFloor(b *testing.B) {
	for _, o := range benchmarks {
		b.Run(benchName(o), func(b *testing.B) { benchmark(b, floor(b, o)) })
	}
}

func benchmark(b *testing.B, f func()) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		f()
	}
}

// BenchmarkAttestationOverFloor runs the two by turns, so that other work on the machine
// slows down both, and reports the ratio of their medians.
func BenchmarkAttestationOverFloor(b *testing.B) {
	for _, o := range benchmarks {
		b.Run(benchName(o), func(b *testing.B) {
			fast, whole := floor(b, o), attestation(b, o)
			var floors, wholes []time.Duration
			for b.Loop() {
				start := time.Now()
				fast()
				middle := time.Now()
				whole()
				floors = append(floors, middle.Sub(start))
				wholes = append(wholes, time.Since(middle))
			}
			slices.Sort(floors)
			slices.Sort(wholes)
			f, w := floors[len(floors)/2], wholes[len(wholes)/2]
			b.ReportMetric(float64(f.Nanoseconds()), "floor-ns")
			b.ReportMetric(float64(w.Nanoseconds()), "attestation-ns")
			b.ReportMetric(float64(w)/float64(f), "ratio")
		})
	}
}

// wrongAnswer is well formed. It costs the server as much as the right answer, which would
// take a TPM's time to make.
var wrongAnswer = []byte(`{"Secret":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}`)

func attestation(b *testing.B, o attestortest.Options) func() {
	b.Helper()
	payload := attestortest.New(b, o).Payload(b)
	var v attestor.Verifier
	return func() {
		s, err := v.Begin(payload)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Challenge(attestor.Ask{}); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Finish(wrongAnswer); err == nil {
			b.Fatal("a wrong answer is taken")
		}
	}
}

// What a quote of eight PCRs, and an event log of 50 KB, add to an attestation at the server.
func BenchmarkQuote(b *testing.B) {
	req := &attestor.QuoteRequest{Bank: "sha256", PCRs: []int{0, 1, 2, 3, 4, 5, 6, 7}}
	for _, ak := range []attestor.KeyType{attestor.P256, attestor.RSA2048} {
		tpm := attestortest.New(b, attestortest.Options{AK: ak, PCRs: somePCRs(), EventLog: make([]byte, 50_000)})
		payload := tpm.Payload(b)
		for name, ask := range map[string]attestor.Ask{
			"none": {}, "quote": {Quote: req}, "log": {Quote: req, EventLog: true},
		} {
			b.Run(string(ak)+"/"+name, func(b *testing.B) {
				secret, nonce, agent := [32]byte{1}, [32]byte{2}, [32]byte{3}
				q, err := tpm.Quote(req, attestor.QualifyingData(nonce[:], agent[:]))
				if err != nil {
					b.Fatal(err)
				}
				response := fullResponse{Secret: secret[:]}
				if ask.Quote != nil {
					response.Nonce, response.Quote = agent[:], q
				}
				if ask.EventLog {
					response.EventLog = make([]byte, 50_000)
				}
				msg := write(b, response)
				var v attestor.Verifier
				for b.Loop() {
					s, err := attestor.Challenged(&v, payload, ask, secret, nonce)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := s.Finish(msg); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func floor(b *testing.B, o attestortest.Options) func() {
	b.Helper()
	verify := floorVerify(b, o.AK)
	seed := floorSeed(b, attestortest.New(b, o).Claim().EK)
	hash, bits := crypto.SHA256, 128
	if o.EK != attestor.RSA2048 && o.EK != attestor.P256 {
		hash, bits = crypto.SHA384, 256
	}
	name := make([]byte, 34)
	return func() {
		verify()
		floorCredential(b, hash, bits, seed(hash), name)
	}
}

func floorVerify(b *testing.B, t attestor.KeyType) func() {
	sum := sha256.Sum256([]byte("what a TPM has made"))
	if t == attestor.RSA2048 {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			b.Fatal(err)
		}
		sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
		if err != nil {
			b.Fatal(err)
		}
		return func() {
			if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig); err != nil {
				b.Fatal(err)
			}
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
			b.Fatal("a good signature is refused")
		}
	}
}

func floorSeed(b *testing.B, ek crypto.PublicKey) func(crypto.Hash) []byte {
	switch ek := ek.(type) {
	case *rsa.PublicKey:
		return func(hash crypto.Hash) []byte {
			seed := make([]byte, hash.Size())
			_, _ = rand.Read(seed)
			if _, err := rsa.EncryptOAEP(hash.New(), rand.Reader, ek, seed, []byte("IDENTITY\x00")); err != nil {
				b.Fatal(err)
			}
			return seed
		}
	case *ecdsa.PublicKey:
		pub, err := ek.ECDH()
		if err != nil {
			b.Fatal(err)
		}
		return func(hash crypto.Hash) []byte { return floorECDH(b, hash, pub) }
	}
	b.Fatal("an EK of an unknown type")
	return nil
}

func floorECDH(b *testing.B, hash crypto.Hash, pub *ecdh.PublicKey) []byte {
	ephemeral, err := pub.Curve().GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	z, err := ephemeral.ECDH(pub)
	if err != nil {
		b.Fatal(err)
	}
	x := func(p *ecdh.PublicKey) []byte { c := p.Bytes()[1:]; return c[:len(c)/2] }
	return tpm2.KDFe(hash, z, "IDENTITY", x(ephemeral.PublicKey()), x(pub), hash.Size()*8)
}

func floorCredential(b *testing.B, hash crypto.Hash, bits int, seed, name []byte) {
	secret := make([]byte, 34)
	_, _ = rand.Read(secret[2:])
	block, err := aes.NewCipher(tpm2.KDFa(hash, seed, "STORAGE", name, nil, bits))
	if err != nil {
		b.Fatal(err)
	}
	//nolint:staticcheck // SA1019: CFB is what part 1, 24.4 asks for.
	cipher.NewCFBEncrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(secret, secret)
	h := hmac.New(hash.New, tpm2.KDFa(hash, seed, "INTEGRITY", nil, nil, hash.Size()*8))
	h.Write(secret)
	h.Write(name)
	h.Sum(nil)
}
