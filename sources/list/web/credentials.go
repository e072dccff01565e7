package web

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

const (
	// maxToken and maxHeader are the maximum lengths of a bearer token and of the header of an
	// answer, in bytes.
	maxToken, maxHeader = 8 << 10, 64 << 10
	// maxRedirects is the maximum number of redirects, all on the same host.
	maxRedirects = 3
)

// readToken reads the bearer token in a file; it is empty if there is no path.
func readToken(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	data, err := smallfile.Read(path, maxToken)
	if err != nil {
		return "", fmt.Errorf("read the bearer token: %w", err)
	}
	token := strings.TrimSpace(string(data))
	// RFC 6750, 2.1. The token itself is never part of an error.
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fmt.Errorf("there is no bearer token in %q: write one line without blanks", path)
	}
	return token, nil
}

// transport returns a transport with the certificates that are now in the files. It does not keep
// connections, so each attempt verifies the server's certificate, resolves its name and presents
// the current client certificate.
func (o *Origin) transport(ctx context.Context) (*http.Transport, error) {
	config, err := o.tlsConfig(ctx)
	if err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: o.cfg.Timeout}
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		OnProxyConnectResponse: checkProxy,
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    o.cfg.Timeout,
		ResponseHeaderTimeout:  o.cfg.Timeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableKeepAlives:      true,
		DisableCompression:     true, // decoded here, within limits
	}, nil
}

// tlsConfig returns the TLS configuration for the certificates as they are now.
func (o *Origin) tlsConfig(ctx context.Context) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, Time: o.cfg.Now}
	if o.cfg.ServerID != "" {
		if err := o.mutualSPIFFE(ctx, config); err != nil {
			return nil, err
		}
		return config, nil
	}
	if path := o.cfg.CAPath; path != "" {
		pool, err := smallfile.CertPool(path)
		if err != nil {
			return nil, err
		}
		config.RootCAs = pool
	}
	if o.cfg.ClientCertPath != "" {
		pair, err := smallfile.KeyPair(o.cfg.ClientCertPath, o.cfg.ClientKeyPath)
		if err != nil {
			return nil, err
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

var errRedirect = errors.New("redirected to another host, or too often: configure the final URL")

// checkRedirect keeps credentials from being sent to any other host, and trust from being extended
// to one.
func (o *Origin) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects || req.URL.Scheme != "https" || !strings.EqualFold(req.URL.Host, o.url.Host) ||
		req.URL.User != nil {
		return errRedirect
	}
	return nil
}
