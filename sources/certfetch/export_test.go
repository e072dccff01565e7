package certfetch

import (
	"crypto/x509"
	"net"
	"net/netip"
	"time"
)

// Public is what decides on addresses.
func Public(a netip.Addr) bool { return public(a) }

// Hurry makes a Fetcher impatient.
func (f *Fetcher) Hurry(timeout, retryPause time.Duration) {
	f.timeout, f.retryPause = timeout, retryPause
}

// Connect makes its connections by another resolver and with other roots.
func (f *Fetcher) Connect(resolver *net.Resolver, roots *x509.CertPool) { f.connect(resolver, roots) }

// Flights returns the number of URLs that are asked for or wait to be.
func (f *Fetcher) Flights() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.flights)
}

// Waiting returns the number of those who wait for a URL.
func (f *Fetcher) Waiting(kind Kind, url string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[name{kind, url}]; fl != nil {
		return fl.waiters
	}
	return 0
}

// Running reports whether Run is at work.
func (f *Fetcher) Running() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.running
}
