package attestor_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// The EK hash is what lists hold and SPIFFE IDs end with: it never changes.
func TestHashEK(t *testing.T) {
	t.Parallel()
	// openssl pkey -pubin -pubout -outform der | sha256sum
	for kind, want := range map[attestor.KeyType]string{
		attestor.RSA2048: "254467a39eaad0116f3d87c63501703fd1d3d8e984ef183402cf2e67d4fd2be8",
		attestor.P256:    "8104cdd08b6e0ce1fb0e1e88d24e7b15cd3a643610662017085255e8d2802ddb",
	} {
		pub := attestortest.New(t, attestortest.Options{EK: kind}).Claim().EK
		if got, err := attestor.HashEK(pub); err != nil || hex.EncodeToString(got[:]) != want {
			t.Errorf("%s: %x, %v, want %s", kind, got, err, want)
		}
	}
	for _, kind := range []attestor.KeyType{
		attestor.RSA2048, attestor.RSA3072, attestor.RSA4096, attestor.P256, attestor.P384, attestor.P521,
	} {
		pub := attestortest.New(t, attestortest.Options{EK: kind}).Claim().EK
		der, err := x509.MarshalPKIXPublicKey(pub)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(der)
		if got, err := attestor.HashEK(pub); err != nil || got != sum {
			t.Errorf("%s: %x, %v, want %x", kind, got, err, sum)
		}
	}
	for name, pub := range badKeys(t) {
		if got, err := attestor.HashEK(pub); err == nil || got != [sha256.Size]byte{} {
			t.Errorf("%s: %x, %v, want an error", name, got, err)
		}
	}
}

// badKeys are keys that no EK may be.
func badKeys(t testing.TB) map[string]crypto.PublicKey {
	t.Helper()
	modulus := func(bits int) *big.Int {
		n := new(big.Int).Lsh(big.NewInt(1), uint(bits))
		return n.Sub(n, big.NewInt(1))
	}
	p256 := elliptic.P256().Params()
	keys := map[string]crypto.PublicKey{
		"nil":              nil,
		"RSA nil":          (*rsa.PublicKey)(nil),
		"RSA zero":         &rsa.PublicKey{},
		"RSA 1024":         &rsa.PublicKey{N: modulus(1024), E: 65537},
		"RSA 2047":         &rsa.PublicKey{N: modulus(2047), E: 65537},
		"RSA 2056":         &rsa.PublicKey{N: modulus(2056), E: 65537},
		"RSA 8192":         &rsa.PublicKey{N: modulus(8192), E: 65537},
		"RSA of e 3":       &rsa.PublicKey{N: modulus(2048), E: 3},
		"RSA even":         &rsa.PublicKey{N: new(big.Int).Sub(modulus(2048), big.NewInt(1)), E: 65537},
		"ECC nil":          (*ecdsa.PublicKey)(nil),
		"ECC zero":         &ecdsa.PublicKey{},
		"ECC no point":     &ecdsa.PublicKey{Curve: elliptic.P256()},
		"ECC off curve":    ecKey(elliptic.P256(), p256.Gx, p256.Gx),
		"ECC at infinity":  ecKey(elliptic.P256(), new(big.Int), new(big.Int)),
		"ECC negative":     ecKey(elliptic.P256(), big.NewInt(-1), p256.Gy),
		"ECC own curve":    ecKey(p256, p256.Gx, p256.Gy),
		"Ed25519":          ed25519.PublicKey(make([]byte, 32)),
		"an RSA structure": rsa.PublicKey{N: modulus(2048), E: 65537},
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	keys["P-224"] = &p224.PublicKey
	return keys
}

// ecKey is a key that no parser would return.
func ecKey(curve elliptic.Curve, x, y *big.Int) *ecdsa.PublicKey {
	return &ecdsa.PublicKey{Curve: curve, X: x, Y: y} //nolint:staticcheck // SA1019: it is to be invalid.
}

// keyPEM is the PEM of a key.
func keyPEM(t testing.TB, pub crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// A key of the wrong size, curve, exponent or algorithm is no EK, alone or in a
// certificate.
func TestKeysThatAreNoEK(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	m := membersOf(t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))
	delete(m, "EKPublic")
	for name, pub := range badKeys(t) {
		if name == "nil" || strings.HasPrefix(name, "ECC") || strings.HasSuffix(name, "nil") ||
			name == "RSA zero" || name == "an RSA structure" {
			continue // they have no encoding
		}
		var v attestor.Verifier
		m["EK"] = keyPEM(t, pub)
		t.Run(name, func(t *testing.T) { refused(t, &v, m.encode(t), "EK") })
		der := ca.Issue(t, pub, attestortest.Certificate{})
		m["EK"] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
		t.Run(name+" in a certificate", func(t *testing.T) { refused(t, &v, m.encode(t), "EK") })
	}
}

// The field EK holds a certificate, a key, or both. Two readers must never find different
// keys in it.
func TestEKPEM(t *testing.T) {
	t.Parallel()
	ca := attestortest.NewCA(t, "root")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca})
	other := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca, Number: 1})
	forms, others := pemForms(t, tpm.Claim()), pemForms(t, other.Claim())
	key, cert := string(forms["key"]), string(forms["certificate"])
	base := membersOf(t, tpm)

	var v attestor.Verifier
	for name, text := range map[string]string{
		"another key's certificate":      string(others["certificate"]) + key,
		"another key's certificate last": key + string(others["certificate"]),
		"another key":                    cert + string(others["key"]),
		"nothing":                        " ",
		"two keys":                       key + key,
		"two certificates":               cert + cert,
		"three blocks":                   cert + key + cert,
		"four blocks":                    cert + key + cert + key,
		"something behind":               key + "x",
		"something before":               "x" + key,
		"something between":              cert + "x" + key,
		"a comment before":               "subject=/CN=x\n" + key,
		"NUL behind":                     key + "\x00",
		"DER":                            "\x30\x82\x01\x02",
		"a block of another type":        strings.ReplaceAll(key, "PUBLIC KEY", "RSA PUBLIC KEY"),
		"a private key":                  strings.ReplaceAll(key, "PUBLIC KEY", "PRIVATE KEY"),
		"a certificate named otherwise":  strings.ReplaceAll(cert, "CERTIFICATE", "X509 CERTIFICATE"),
		"a key named a certificate":      strings.ReplaceAll(key, "PUBLIC KEY", "CERTIFICATE"),
		"headers":                        strings.Replace(key, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
		"a block that is spoiled, first": strings.Replace(cert, "\nMI", "\n*I", 1) + key,
		"a block that is spoiled, last":  key + strings.Replace(cert, "\nMI", "\n*I", 1),
		"a block without an end":         strings.Split(cert, "-----END")[0] + key,
		"a block that ends as another":   strings.Replace(cert, "END CERTIFICATE", "END PUBLIC KEY", 1) + key,
		"an empty block":                 "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
		"a cut key":                      string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: decoded(key)[:50]})),
		"a key and a byte":               string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: append(decoded(key), 0)})),
		"a cut certificate":              string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: decoded(cert)[:200]})),
		"a certificate and a byte":       string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: append(decoded(cert), 7)})),
	} {
		m := members{"EK": []byte(text), "AK": base["AK"]}
		t.Run(name, func(t *testing.T) { refused(t, &v, m.encode(t), "EK: ") })
	}
	for name, text := range map[string]string{
		"CRLF":        strings.ReplaceAll(cert+key, "\n", "\r\n"),
		"white space": "\n \t" + cert + "\n\n" + key + " \r\n",
		"no last end": strings.TrimSpace(cert + key),
		"padding": string(pem.EncodeToMemory(&pem.Block{
			Type: "CERTIFICATE", Bytes: append(decoded(cert), bytes.Repeat([]byte{0xFF}, 400)...),
		})),
	} {
		m := members{"EK": []byte(text), "AK": base["AK"]}
		if _, err := v.Begin(m.encode(t)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func decoded(text string) []byte {
	block, _ := pem.Decode([]byte(text))
	return slices.Clone(block.Bytes)
}

// EKPublic determines from which template a key was made, and so how the challenge is encrypted: it
// must contain the same key and fit a known template.
func TestEKPublic(t *testing.T) {
	t.Parallel()
	for _, kind := range []attestor.KeyType{attestor.RSA2048, attestor.RSA3072, attestor.P256, attestor.P384} {
		tpm := attestortest.New(t, attestortest.Options{EK: kind})
		other := attestortest.New(t, attestortest.Options{EK: kind, Number: 1}).Claim()
		honest := tpm.Claim()
		forge := func(change func(*tpm2.TPMTPublic)) []byte {
			p, err := tpm2.Unmarshal[tpm2.TPMTPublic](honest.EKPublic)
			if err != nil {
				t.Fatal(err)
			}
			change(p)
			return tpm2.Marshal(p)
		}
		aes := func(bits int, mode tpm2.TPMAlgID) func(*tpm2.TPMTPublic) {
			return func(p *tpm2.TPMTPublic) { setSymmetric(p, bits, mode) }
		}
		var v attestor.Verifier
		for name, public := range map[string][]byte{
			"of another key":     other.EKPublic,
			"of the AK":          honest.AK.Public,
			"cut":                honest.EKPublic[:len(honest.EKPublic)-1],
			"a byte too many":    append(slices.Clone(honest.EKPublic), 0),
			"that leaves":        forge(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false }),
			"unrestricted":       forge(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Restricted = false }),
			"that signs":         forge(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SignEncrypt = true }),
			"made outside":       forge(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false }),
			"without decrypt":    forge(func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = false }),
			"without policy":     forge(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer = nil }),
			"of another policy":  forge(func(p *tpm2.TPMTPublic) { p.AuthPolicy.Buffer[3] ^= 1 }),
			"named by SHA-1":     forge(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA1 }),
			"named by SHA-512":   forge(func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA512 }),
			"with AES-192":       forge(aes(192, tpm2.TPMAlgCFB)),
			"with AES in OFB":    forge(aes(128, tpm2.TPMAlgOFB)),
			"without an AES key": forge(aes(0, tpm2.TPMAlgNull)),
		} {
			m := membersOf(t, tpm)
			m["EKPublic"] = public
			t.Run(string(kind)+" "+name, func(t *testing.T) { refused(t, &v, m.encode(t), "EKPublic: ") })
		}
		// A TPM shows the default exponent as 0 or as 65537.
		m := membersOf(t, tpm)
		m["EKPublic"] = forge(rsaParms(func(p *tpm2.TPMSRSAParms) { p.Exponent = 65537 }))
		if _, err := v.Begin(m.encode(t)); err != nil {
			t.Errorf("%s of the exponent 65537: %v", kind, err)
		}
	}
}

func setSymmetric(p *tpm2.TPMTPublic, bits int, mode tpm2.TPMAlgID) {
	sym := tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}
	if bits != 0 {
		sym = tpm2.TPMTSymDefObject{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(bits)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, mode),
		}
	}
	if parms, err := p.Parameters.RSADetail(); err == nil {
		parms.Symmetric = sym
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, parms)
	}
	if parms, err := p.Parameters.ECCDetail(); err == nil {
		parms.Symmetric = sym
		p.Parameters = tpm2.NewTPMUPublicParms(p.Type, parms)
	}
}

// A TPM that leaves out the leading zeros of a coordinate names the same key.
func TestEKPublicWithoutLeadingZeros(t *testing.T) {
	t.Parallel()
	for number := range 4096 {
		tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: number})
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](tpm.Claim().EKPublic)
		if err != nil {
			t.Fatal(err)
		}
		point, err := p.Unique.ECC()
		if err != nil {
			t.Fatal(err)
		}
		if point.X.Buffer[0] != 0 {
			continue
		}
		point.X.Buffer = point.X.Buffer[1:]
		m := membersOf(t, tpm)
		m["EKPublic"] = tpm2.Marshal(p)
		var v attestor.Verifier
		if _, err := v.Begin(m.encode(t)); err != nil {
			t.Error(err)
		}
		return
	}
	t.Error("no key begins with a zero")
}

// A key that can be computed from its certificate proves nothing: it is refused unless the
// operator allows it.
func TestROCA(t *testing.T) {
	t.Parallel()
	m := membersOf(t, attestortest.New(t, attestortest.Options{}))
	delete(m, "EKPublic")
	m["EK"] = keyPEM(t, &rsa.PublicKey{N: rocaModulus(t), E: 65537})
	var v attestor.Verifier
	refused(t, &v, m.encode(t), "CVE-2017-15361")
	v.AllowWeakEK = true
	if _, err := v.Begin(m.encode(t)); err != nil {
		t.Errorf("with AllowWeakEK: %v", err)
	}
	// A weak key has no stronger template, certificate or AK than others.
	delete(m.ak(), "Public")
	refused(t, &v, m.encode(t), "AK.Public")
}

// rocaModulus is the product of two primes of the form k·M + (65537^a mod M),
// where M is the product of the first 126 primes: an RSA 2048 modulus as the
// faulty library made them.
func rocaModulus(t testing.TB) *big.Int {
	t.Helper()
	m, found := big.NewInt(1), 0
	for p := int64(2); found < 126; p++ {
		if big.NewInt(p).ProbablyPrime(0) {
			m.Mul(m, big.NewInt(p))
			found++
		}
	}
	prime := func() *big.Int {
		limit := new(big.Int).Lsh(big.NewInt(1), uint(1024-m.BitLen()))
		for {
			a, err := rand.Int(rand.Reader, m)
			if err != nil {
				t.Fatal(err)
			}
			k, err := rand.Int(rand.Reader, limit)
			if err != nil {
				t.Fatal(err)
			}
			p := new(big.Int).Exp(big.NewInt(65537), a, m)
			p.Add(p, k.Mul(k, m))
			if p.BitLen() == 1024 && p.ProbablyPrime(8) {
				return p
			}
		}
	}
	for {
		if n := new(big.Int).Mul(prime(), prime()); n.BitLen() == 2048 {
			return n
		}
	}
}
