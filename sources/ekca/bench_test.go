package ekca_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/truststore"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// The unavoidable cost of a Check is the verification of one signature.
//
//	go test -bench 'Floor|Check' -count 10 ./sources/ekca | benchstat -col .name -
func BenchmarkFloor(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, ek *x509.Certificate) {
		b.Helper()
		for b.Loop() {
			if root.cert.CheckSignature(ek.SignatureAlgorithm, ek.RawTBSCertificate, ek.Signature) != nil {
				b.Fatal("the signature is wrong")
			}
		}
	})
}

// One CA is configured.
func BenchmarkCheck1(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, ek *x509.Certificate) {
		b.Helper()
		benchmarkCheck(b, trusting(b, root), ek)
	})
}

// 300 CAs are configured.
func BenchmarkCheck300(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, ek *x509.Certificate) {
		b.Helper()
		benchmarkCheck(b, trusting(b, crowd(b, root)...), ek)
	})
}

// BenchmarkCheck300OverOne takes turns between the two, so that what else the
// machine does meets both, and reports the ratio of their medians: with 300 CAs a
// Check takes at most 1.05 times as long as with one.
func BenchmarkCheck300OverOne(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, ek *x509.Certificate) {
		b.Helper()
		one, many, ev := trusting(b, root), trusting(b, crowd(b, root)...), evidence(ek)
		timed := func(src *ekca.Source) time.Duration {
			begun := time.Now()
			if v, err := src.Check(b.Context(), ev); err != nil || !v.Listed {
				b.Fatalf("Check = %+v, %v", v, err)
			}
			return time.Since(begun)
		}
		var ones, manies []time.Duration
		for b.Loop() {
			ones, manies = append(ones, timed(one)), append(manies, timed(many))
		}
		slices.Sort(ones)
		slices.Sort(manies)
		median, medianMany := ones[len(ones)/2], manies[len(manies)/2]
		b.ReportMetric(float64(median.Nanoseconds()), "one-ns")
		b.ReportMetric(float64(medianMany.Nanoseconds()), "300-ns")
		b.ReportMetric(float64(medianMany)/float64(median), "ratio")
	})
}

// The same with each CA in a bundle of its own.
func BenchmarkCheck300Bundles(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, ek *x509.Certificate) {
		b.Helper()
		bundles := make(map[string]string)
		for i, ca := range crowd(b, root) {
			bundles[fmt.Sprint("bundle-", i)] = certstest.File(b, ca.cert)
		}
		benchmarkCheck(b, load(b, ekca.Config{Config: truststore.Config{Bundles: bundles}}), ek)
	})
}

// The machine sends the CA certificate between its own and the configured one:
// two signatures.
func BenchmarkCheckSent(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, _ *x509.Certificate) {
		b.Helper()
		sub := root.sub(b, "Sub")
		benchmarkCheck(b, trusting(b, root), sub.ek(b), sub.cert)
	})
}

// Reading 300 CAs, each in a bundle.
func BenchmarkLoad300(b *testing.B) {
	bundles := make(map[string]string)
	for i, ca := range crowd(b, newRoot(b, "Root")) {
		bundles[fmt.Sprint("bundle-", i)] = certstest.File(b, ca.cert)
	}
	src := newSource(b, ekca.Config{Config: truststore.Config{Bundles: bundles}})
	for b.Loop() {
		if err := src.Load(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// crowd returns root among 299 others, 99 of which bear its name.
func crowd(b *testing.B, root *authority) []*authority {
	b.Helper()
	var cas []*authority
	for i := range 299 {
		name := fmt.Sprint("CA ", i)
		if i%3 == 0 {
			name = root.cert.Subject.CommonName
		}
		cas = append(cas, newRoot(b, name))
	}
	return append(cas, root)
}

func benchmarkCheck(b *testing.B, src *ekca.Source, ek *x509.Certificate, sent ...*x509.Certificate) {
	b.Helper()
	ev := evidence(ek, sent...)
	b.ReportAllocs()
	for b.Loop() {
		if v, err := src.Check(b.Context(), ev); err != nil || !v.Listed {
			b.Fatalf("Check = %+v, %v", v, err)
		}
	}
}

// eachKind runs f with CAs of the two kinds of keys that CAs of TPMs have.
func eachKind(b *testing.B, f func(b *testing.B, root *authority, ek *x509.Certificate)) {
	b.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		b.Fatal(err)
	}
	for name, signer := range map[string]crypto.Signer{"RSA": key, "P256": certstest.NewKey(b)} {
		b.Run(name, func(b *testing.B) {
			root := newRootWithKey(b, "Root", signer)
			f(b, root, root.ek(b))
		})
	}
}
