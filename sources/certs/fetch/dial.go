package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"
)

const (
	// dialTimeout limits making one connection, including all addresses of a name.
	dialTimeout = 5 * time.Second
	// handshakeTimeout limits a TLS handshake.
	handshakeTimeout = 5 * time.Second
	// maxHeaders is the maximum size of the headers of an answer, in bytes.
	maxHeaders = 64 << 10
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// askedKey is the key of a function in the context of a request.
type askedKey struct{}

// whenAsked returns a context with which f is called when a connection is being made for a request:
// until then, the request has waited for others to the same host.
func whenAsked(ctx context.Context, f func()) context.Context {
	return context.WithValue(ctx, askedKey{}, f)
}

// newTransport returns a transport that makes one connection for each request: requests are few,
// and idle connections would have to be limited as well. It uses no proxy, presents no certificate,
// keeps no cookies and decodes nothing.
//
// own is true for hosts that the operator has configured for this purpose. Other hosts must be at a
// public address, or at the address that their URL names instead of a host name. The two never
// share a transport.
//
// dial makes the connections if it is not nil.
func newTransport(
	own bool, dial dialFunc, resolver *net.Resolver, roots *x509.CertPool, now func() time.Time,
) *http.Transport {
	if dial == nil {
		dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialer := net.Dialer{Resolver: resolver}
			if !own {
				dialer.ControlContext = onlyPublic(address)
			}
			return dialer.DialContext(ctx, network, address)
		}
	}
	return &http.Transport{
		Proxy: nil, // it would resolve names itself
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			if asked, ok := ctx.Value(askedKey{}).(func()); ok {
				asked()
			}
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return dial(ctx, network, address)
		},
		MaxConnsPerHost:        maxPerHost,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: now},
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxResponseHeaderBytes: maxHeaders,
		DisableKeepAlives:      true,
		DisableCompression:     true,
	}
}

// onlyPublic returns a function that a dialer calls with the address to which it is about to
// connect, after it has resolved the name. So the address that is checked is the one that is used,
// whatever a name server says, and whenever.
func onlyPublic(asked string) func(context.Context, string, string, syscall.RawConn) error {
	host, _, err := net.SplitHostPort(asked)
	literal, literalErr := netip.ParseAddr(host)
	return func(_ context.Context, network, address string, _ syscall.RawConn) error {
		if err != nil || network != "tcp4" && network != "tcp6" {
			return fmt.Errorf("connect to %q by %s", asked, network)
		}
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("connect to %q", address)
		}
		at := to.Addr().Unmap()
		if literalErr == nil && at == literal || literalErr != nil && public(at) {
			return nil
		}
		return &forbiddenError{host: host, at: at}
	}
}
