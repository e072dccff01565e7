package ekca_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/certstest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/ekca"
)

// An attestation whose chain was fetched takes at most 1.1 times as long as one
// whose chain is configured. The two take turns, since the machine has other
// things to do as well.
func BenchmarkFetchedOverConfigured(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, _ *x509.Certificate) {
		b.Helper()
		web := newSite(b)
		low := root.subWithKey(b, "Low", otherKey(b, root.key))
		ek := low.ek(b, issuersAt(web.put("/low", low.cert.Raw)))
		benchmarkTurns(b, ek, trusting(b, root, low), fetching(b, root, web))
	})
}

// The same with a CRL for each certificate.
func BenchmarkRevocationOverNone(b *testing.B) {
	eachKind(b, func(b *testing.B, root *authority, _ *x509.Certificate) {
		b.Helper()
		web := newSite(b)
		low := root.subWithKey(b, "Low", otherKey(b, root.key), crlsAt(web.put("/root.crl", root.crl(b))))
		ek := low.ek(b, issuersAt(web.put("/low", low.cert.Raw)), crlsAt(web.put("/low.crl", low.crl(b))))
		cfg := fetchConfig(b, root, web)
		plain := load(b, cfg)
		cfg.CRL = ekca.CRLRequired
		benchmarkTurns(b, ek, plain, load(b, cfg))
	})
}

// benchmarkTurns measures how many times the second source takes of the first
// one's time.
func benchmarkTurns(b *testing.B, ek *x509.Certificate, one, other *ekca.Source) {
	b.Helper()
	ev := evidence(ek)
	for _, src := range []*ekca.Source{one, other} {
		if v, err := asked(b, src, ev); err != nil || !v.Listed {
			b.Fatalf("%+v, %v", v, err)
		}
	}
	var took [2]time.Duration
	turn := func(i int, src *ekca.Source) {
		begun := time.Now()
		checkMany(b, src, ev)
		took[i] += time.Since(begun)
	}
	for b.Loop() {
		turn(0, one)
		turn(1, other)
	}
	b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
}

func checkMany(b *testing.B, src *ekca.Source, ev *sources.Evidence) {
	b.Helper()
	for range 10 {
		if v, err := src.Check(b.Context(), ev); err != nil || !v.Listed {
			b.Fatalf("%+v, %v", v, err)
		}
	}
}

// otherKey returns another key of the same kind.
func otherKey(b *testing.B, key crypto.Signer) crypto.Signer {
	b.Helper()
	if _, ok := key.(*rsa.PrivateKey); ok {
		return newRSAKey(b)
	}
	return certstest.NewKey(b)
}
