// Package web implements an origin of package list: a web server.
//
// The list, and its signature if there is one, are requested over HTTPS with conditional requests
// (RFC 9110, 13). What must be trusted is the web server, identified by its certificate or its
// X.509-SVID, or, if lists are signed, the holders of the signing keys instead.
package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
)

// DefaultTimeout is Config.Timeout if that is zero.
const DefaultTimeout = 10 * time.Second

// Config says where the list is. Only URL is required. All files must be regular files. They are
// read again at each attempt, so that replacing one needs no restart.
type Config struct {
	// URL is the URL of the list, with the scheme https and without user and fragment. Redirects
	// are followed only on the same host and port.
	URL string
	// SignatureURL is the URL of the list's detached signature, on the same host and port; empty if
	// there is none.
	SignatureURL string
	// CAPath is a PEM file of the trusted CA certificates; the system's are used if it is empty.
	CAPath string
	// ClientCertPath and ClientKeyPath are PEM files of the client certificate, with its chain, and
	// of its key, for a server that asks for one. Both are set, or neither.
	ClientCertPath, ClientKeyPath string
	// BearerTokenPath is a file whose content, without blanks around it, goes into the
	// Authorization header (RFC 6750, 2.1).
	BearerTokenPath string
	// ServerID is the SPIFFE ID of the web server. If it is set, both sides authenticate with
	// X.509-SVIDs instead of the files above: the web server must present an SVID with exactly this
	// ID, in the trust domain of Identity, whatever its host name, and this server presents its
	// own.
	ServerID string
	// Auth is AuthSPIFFE if ServerID is set, and otherwise empty.
	Auth string
	// Identity is required if ServerID is set, and is then used at each attempt.
	Identity IdentityProvider
	// Timeout limits one attempt, from the connection to the last byte and including all retries;
	// DefaultTimeout if it is zero.
	Timeout time.Duration
	// MaxBytes limits the list both as it is sent and decoded; list.DefaultMaxBytes if it is zero.
	MaxBytes int64
	// Now is the clock, also for verifying the server's certificate; time.Now if it is nil.
	Now func() time.Time
}

// An Origin is a web server. It implements list.Origin.
type Origin struct {
	cfg            Config
	url, signature *url.URL      // signature is nil if there is none
	retryPause     time.Duration // between the first two requests of an attempt; shorter in tests

	// Only Read uses the following fields.
	unconditional bool  // the next request must not be conditional
	length        int64 // of the last list
}

// New checks the configuration and returns the origin. It reads nothing. If the configuration is
// invalid, it returns the joined errors, one sources.FieldError for each problem.
func New(cfg Config) (*Origin, error) {
	u, err := parseURL("url", cfg.URL)
	signature, badSignature := parseSignatureURL(cfg.SignatureURL, u)
	limit, badLimit := list.LimitOf(cfg.MaxBytes)
	errs := []error{err, badSignature, badLimit, cfg.checkServer()}
	if cfg.Timeout < 0 {
		errs = append(errs, sources.BadField("timeout", "is %v, but must be positive", cfg.Timeout))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	cfg.MaxBytes = limit
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Origin{cfg: cfg, url: u, signature: signature, retryPause: retryPause}, nil
}

// Warnings implements list.Origin.
func (o *Origin) Warnings() []string { return nil }

// Read implements list.Origin. Within Config.Timeout, it requests the list, and its signature if
// the list is new.
func (o *Origin) Read(ctx context.Context, tag string) (list.Copy, error) {
	within, cancel := context.WithTimeout(ctx, o.cfg.Timeout)
	defer cancel()
	c, err := o.ask(within, tag)
	if err == nil {
		err = within.Err() // without a Content-Length, a broken connection looks like the end of the body
	}
	if err == nil {
		o.unconditional = false
		return c, nil
	}
	if within.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("not finished within the timeout of %v: %w", o.cfg.Timeout, err)
	}
	o.unconditional = o.unconditional || errors.Is(err, errOtherVersion)
	if status := (*statusError)(nil); errors.As(err, &status) {
		err = sources.Later(err, status.retryAfter)
	}
	return list.Copy{}, err
}

// ask makes one attempt.
func (o *Origin) ask(ctx context.Context, tag string) (list.Copy, error) {
	session, err := o.open(ctx)
	if err != nil {
		return list.Copy{}, err
	}
	held := validatorsIn(tag)
	if o.unconditional {
		held = validators{}
	}
	resp, err := session.get(ctx, o.url, held)
	if err != nil {
		return list.Copy{}, session.withClientFault(err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is not needed
	at := o.cfg.Now()
	switch {
	case resp.StatusCode == http.StatusNotModified && held != validators{}:
		return list.Copy{Tag: tag, At: at}, held.confirmedBy(resp.Header)
	case resp.StatusCode != http.StatusOK:
		return list.Copy{}, session.withClientFault(statusOf(resp, o.url))
	}
	data, err := read(resp, o.cfg.MaxBytes, o.length)
	if err != nil {
		return list.Copy{}, err
	}
	o.length = int64(len(data))
	sig, err := o.readSignature(ctx, session)
	return list.Copy{Data: data, Signature: sig, Tag: validatorsOf(resp.Header).tag(), At: at}, err
}

// readSignature returns the signature; nil if there is none.
func (o *Origin) readSignature(ctx context.Context, session *session) ([]byte, error) {
	if o.signature == nil {
		return nil, nil
	}
	resp, err := session.get(ctx, o.signature, validators{})
	if err != nil {
		return nil, fmt.Errorf("fetch the signature: %w", err)
	}
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is not needed
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch the signature: %w", statusOf(resp, o.signature))
	}
	sig, err := read(resp, signature.MaxSignature, 0)
	if err != nil {
		return nil, fmt.Errorf("fetch the signature: %w", err)
	}
	return sig, nil
}
