package fetch_test

import (
	"net/http"
	"sync/atomic"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// BenchmarkHundredWaiters is a hundred attestations that wait for one issuer, which
// the server sends when all of them wait. requests/op is what it was asked.
func BenchmarkHundredWaiters(b *testing.B) {
	const waiters = 100
	o := local(b)
	f := asking(b, o)
	var url atomic.Pointer[string]
	o.serve(func(w http.ResponseWriter, _ *http.Request) {
		eventually(b, "all wait", func() bool { return f.Waiting(fetch.Issuer, *url.Load()) == waiters })
		_, _ = w.Write([]byte("a certificate"))
	})
	n := 0
	for b.Loop() {
		at := numbered(o, n)
		n++
		url.Store(&at)
		together(waiters, func(int) {
			if _, err := f.Get(b.Context(), fetch.Issuer, at, text); err != nil {
				b.Error(err)
			}
		})
	}
	b.ReportMetric(float64(o.requests.Load())/float64(n), "requests/op")
	if o.requests.Load() != int64(n) {
		b.Errorf("%d requests for %d times %d waiters", o.requests.Load(), n, waiters)
	}
}

// BenchmarkCached is what an attestation pays for an issuer that is kept.
func BenchmarkCached(b *testing.B) {
	o := local(b)
	f := asking(b, o)
	wantGet(b, f, o.at("/a.crt"), "a certificate")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, kept, err := f.Cached(fetch.Issuer, o.at("/a.crt"), text); !kept || err != nil {
				b.Error(kept, err)
			}
		}
	})
}

// BenchmarkAllowed is what a URL in a certificate costs before anything else.
func BenchmarkAllowed(b *testing.B) {
	f := open(b, fetch.Config{Hosts: fleet})
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := f.Allows("https://pki.infineon.com/OptigaRsaMfrCA003/OptigaRsaMfrCA003.crt"); !ok {
			b.Fatal("not allowed")
		}
	}
}
