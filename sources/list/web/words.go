package web

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// shown returns a URL for an error, without its query, which may be a secret.
func shown(u *url.URL) string {
	public := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if u.RawQuery != "" {
		return public.String() + "?…"
	}
	return public.String()
}

// bare returns an error without the URL, whose query may be a secret.
func bare(err error) error {
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// A proxyError is an answer that came from a proxy and not from the list's server.
type proxyError struct{ proxy, status string }

func (e *proxyError) Error() string {
	return fmt.Sprintf("the proxy %s, which the environment names, answered %s: let it pass, or set NO_PROXY",
		e.proxy, e.status)
}

// checkProxy is http.Transport.OnProxyConnectResponse.
func checkProxy(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	const most = 64 // the status text is chosen by the proxy
	return &proxyError{proxy.Host, fmt.Sprintf("%.*q", most, resp.Status)}
}

func isProxyStatus(err error) bool {
	_, ok := errors.AsType[*proxyError](err)
	return ok
}

// inWords adds whose fault an error is, and when a certificate expired. The error of package x509
// has the current time instead, which differs from attempt to attempt.
func (s *session) inWords(err error) error {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok &&
		invalid.Reason == x509.Expired && invalid.Cert != nil {
		return &certificateError{fault: validity(invalid.Cert, s.now()), err: err}
	}
	op, ok := errors.AsType[*net.OpError](err)
	switch {
	case ok && op.Op == "remote error":
		return fmt.Errorf("the list's server refused the TLS connection: %w: check the client certificate", err)
	case ok && op.Op == "proxyconnect":
		return fmt.Errorf("the proxy, which the environment names, cannot be reached: %w", err)
	}
	return err
}

// A certificateError says that a certificate of the list's server is not valid now.
type certificateError struct {
	fault string
	err   error
}

func (e *certificateError) Error() string { return "a certificate of the list's server " + e.fault }
func (e *certificateError) Unwrap() error { return e.err }

// validity says why a certificate is not valid at a time, or returns an empty string.
func validity(c *x509.Certificate, now time.Time) string {
	switch {
	case now.Before(c.NotBefore):
		from := c.NotBefore.UTC().Format(time.RFC3339)
		return fmt.Sprintf("(%.80q) is not yet valid: it is from %s on", c.Subject.String(), from)
	case now.After(c.NotAfter):
		return fmt.Sprintf("(%.80q) expired at %s", c.Subject.String(), c.NotAfter.UTC().Format(time.RFC3339))
	}
	return ""
}

// clientFault says why the client certificate is not valid now, or returns an empty string.
func (o *Origin) clientFault(transport *http.Transport) string {
	for _, pair := range transport.TLSClientConfig.Certificates {
		if pair.Leaf == nil {
			continue
		}
		if fault := validity(pair.Leaf, o.cfg.Now()); fault != "" {
			return fmt.Sprintf("the client certificate %q %s", o.cfg.ClientCertPath, fault)
		}
	}
	return ""
}

// withClientFault adds to the error of a request that the client certificate is not valid. Servers
// report that in many ways, or not at all.
func (s *session) withClientFault(err error) error {
	if s.clientFault == "" {
		return err
	}
	return fmt.Errorf("%s; %w", s.clientFault, err)
}
