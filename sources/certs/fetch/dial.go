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
	// dialTimeout bounds one connection, with all addresses of a name.
	dialTimeout = 5 * time.Second
	// handshakeTimeout bounds a TLS handshake.
	handshakeTimeout = 5 * time.Second
	// maxHeaders is the size of the headers of an answer, in bytes.
	maxHeaders = 64 << 10
)

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// askedKey is the key of a function in the context of a request.
type askedKey struct{}

// whenAsked has f be called when a connection is being made for a request: it has waited
// for others to the same host until then.
func whenAsked(ctx context.Context, f func()) context.Context {
	return context.WithValue(ctx, askedKey{}, f)
}

// newTransport returns what makes connections: one for each request, since
// requests are few and an idle connection is one more thing to bound. It uses no
// proxy, shows no certificate, keeps no cookie and decodes nothing.
//
// own is for hosts that the operator has written for this purpose. Any others may
// not be anywhere but at a public address, or at the address that stands for them
// in the URL. These two never share a transport.
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

// onlyPublic returns a function that a dialer calls with the address that it is
// about to connect to, after it has resolved the name: whatever a name server says,
// and whenever, it is that address which is looked at.
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
