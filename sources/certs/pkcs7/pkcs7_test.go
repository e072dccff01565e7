package pkcs7_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/pkcs7"
)

// certificate returns one in DER, the same in every process.
func certificate(tb testing.TB, name string) []byte {
	tb.Helper()
	seed := make([]byte, ed25519.SeedSize)
	copy(seed, name)
	key := ed25519.NewKeyFromSeed(seed)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1e9, 0),
	}
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return der
}

// tlv returns a DER element.
func tlv(tag byte, parts ...[]byte) []byte {
	content := bytes.Join(parts, nil)
	switch n := len(content); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

// open returns an element of indefinite length.
func open(tag byte, parts ...[]byte) []byte {
	return append(append([]byte{tag, 0x80}, bytes.Join(parts, nil)...), 0, 0)
}

var (
	signedData = []byte("\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02")
	data       = []byte("\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01")
)

// bundle returns a certs-only message, each element made by wrap.
func bundle(wrap func(tag byte, parts ...[]byte) []byte, certs ...[]byte) []byte {
	return wrap(0x30, signedData, wrap(0xa0, wrap(0x30,
		[]byte{2, 1, 1}, wrap(0x31), wrap(0x30, data), wrap(0xa0, certs...), wrap(0x31))))
}

// Vendors publish issuers in bundles, some by tools that write BER. Each gives
// back the certificates byte by byte, since a signature is over them.
func TestCertificates(t *testing.T) {
	a, b := certificate(t, "a"), certificate(t, "b")
	for name, c := range map[string]struct {
		in   []byte
		want [][]byte
	}{
		"DER":                   {bundle(tlv, a), [][]byte{a}},
		"DER, two":              {bundle(tlv, b, a), [][]byte{b, a}},
		"BER":                   {bundle(open, a, b), [][]byte{a, b}},
		"one of a kind unknown": {bundle(tlv, tlv(0xa1, []byte{2, 1, 1}), a), [][]byte{a}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := pkcs7.Certificates(c.in, 2)
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

// Anything that is not a complete bundle, or has more certificates than allowed, gives nothing: no
// part of a truncated bundle is used in a chain.
func TestRefused(t *testing.T) {
	a := certificate(t, "a")
	whole := bundle(tlv, a)
	deep := []byte{5, 0}
	for range 100 {
		deep = open(0x30, deep)
	}
	for name, in := range map[string][]byte{
		"nothing":            nil,
		"a certificate":      a,
		"HTML":               []byte("<!DOCTYPE html><html></html>"),
		"no certificates":    bundle(tlv),
		"three certificates": bundle(tlv, a, a, a),
		"something behind":   append(bytes.Clone(whole), 0),
		"another type":       tlv(0x30, data, tlv(0xa0, tlv(0x30))),
		"no version":         tlv(0x30, signedData, tlv(0xa0, tlv(0x30, tlv(0x31)))),
		"no field":           tlv(0x30, signedData, tlv(0xa0, tlv(0x30, []byte{2, 1, 1}, tlv(0x31), tlv(0x30)))),
		"only signers": tlv(0x30, signedData, tlv(0xa0, tlv(0x30, []byte{2, 1, 1},
			tlv(0x31), tlv(0x30, data), tlv(0x31)))),
		"nested deep":              deep,
		"nested deep among others": bundle(open, deep),
		"length of gigabytes":      {0x30, 0x84, 0x7f, 0xff, 0xff, 0xff},
		"length of nine bytes":     {0x30, 0x89, 1, 1, 1, 1, 1, 1, 1, 1, 1},
		"length cut off":           {0x30, 0x82, 1},
		"tag of several bytes":     {0x3f, 0x81, 0x01, 0x00},
		"open and primitive":       {0x04, 0x80, 0x00, 0x00},
		"never closed":             {0x30, 0x80, 0x02, 0x01, 0x01},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := pkcs7.Certificates(in, 2); err == nil || got != nil {
				t.Errorf("got %d certificates, %v", len(got), err)
			}
		})
	}
	for _, whole := range [][]byte{whole, bundle(open, a)} {
		for n := range whole {
			if got, err := pkcs7.Certificates(whole[:n], 2); err == nil || got != nil {
				t.Fatalf("cut at %d: %d certificates, %v", n, len(got), err)
			}
		}
	}
}

// No bytes stop the reader, and what it returns is in them and no more than was
// asked for.
func FuzzPKCS7(f *testing.F) {
	a, b := certificate(f, "a"), certificate(f, "b")
	f.Add(bundle(tlv, a))
	f.Add(bundle(open, a, b))
	f.Add(bundle(open))
	f.Add([]byte{0x30, 0x80, 0x30, 0x80, 0x30, 0x80, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		const most = 3
		got, err := pkcs7.Certificates(in, most)
		if (err == nil) != (len(got) > 0) || len(got) > most {
			t.Fatalf("%d certificates, %v", len(got), err)
		}
		size := 0
		for _, c := range got {
			if size += len(c); !bytes.Contains(in, c) || c[0] != 0x30 {
				t.Errorf("a certificate that is not in the input: %x", c)
			}
		}
		if size > len(in) {
			t.Error("certificates that overlap")
		}
	})
}

// A bundle of 32 small certificates is read in microseconds, however it is
// nested: an open element within open ones is gone over once a level, 16 times at
// most.
func BenchmarkCertificates(b *testing.B) {
	a := certificate(b, "a")
	certs := make([][]byte, 32)
	for i := range certs {
		certs[i] = a
	}
	for name, wrap := range map[string]func(byte, ...[]byte) []byte{"DER": tlv, "BER": open} {
		in := bundle(wrap, certs...)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if _, err := pkcs7.Certificates(in, 32); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
