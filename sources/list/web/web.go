// Package web is an origin of lists: a web server.
//
// The list is asked for over HTTPS with conditional requests (RFC 9110, 13), and its
// signature, if there is one, beside it. What must be trusted is the web server, as its
// certificate or its X.509-SVID names it, or, if lists are signed, the holders of the
// keys instead.
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

// Config says where the list is. Only URL is required. All files are read anew at each
// attempt, so that replacing one needs no restart; each is a regular file.
type Config struct {
	// URL is the list's, of scheme https, without user and fragment. Redirects are
	// followed on the same host and port only.
	URL string
	// SignatureURL is the URL of the signature beside the list, on the same host and
	// port; empty if there is none.
	SignatureURL string
	// CAPath is a PEM file of the CA certificates that may vouch for the server; the
	// system's if it is empty.
	CAPath string
	// ClientCertPath and ClientKeyPath are PEM files of the certificate, with its
	// chain, and the key that are shown to a server that asks for one. Both are set,
	// or neither.
	ClientCertPath, ClientKeyPath string
	// BearerTokenPath is a file whose content, without blanks around it, goes into the
	// Authorization header (RFC 6750, 2.1).
	BearerTokenPath string
	// ServerID is the SPIFFE ID of the web server, if both sides are known by
	// X.509-SVIDs and not by the files above: the web server must show an SVID with
	// exactly this ID, of the trust domain of Identity, whatever its host name, and is
	// shown this server's own. It is empty if they are not.
	ServerID string
	// Auth is AuthSPIFFE if ServerID is set, and otherwise empty.
	Auth string
	// Identity is asked at each attempt if ServerID is set, and needed then.
	Identity IdentityProvider
	// Timeout limits one attempt, from the connection to the last byte and with all
	// retries; DefaultTimeout if it is zero.
	Timeout time.Duration
	// MaxBytes limits the list, both as it is sent and decoded; list.DefaultMaxBytes if
	// it is zero.
	MaxBytes int64
	// Now is the clock, by which the server's certificate is verified as well; time.Now
	// if it is nil.
	Now func() time.Time
}

// An Origin is a web server. It implements list.Origin.
type Origin struct {
	cfg            Config
	url, signature *url.URL      // signature is nil if there is none
	retryPause     time.Duration // between the first two requests of an attempt; tests have a shorter one

	// Read alone uses what follows.
	unconditional bool  // the next request is to be
	length        int64 // of the last list
}

// New checks the configuration and returns the origin. It reads nothing. The error is of
// all that is wrong, a sources.FieldError each.
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

// Read implements list.Origin: it asks for the list, and for its signature if there is
// a new list, within Config.Timeout.
func (o *Origin) Read(ctx context.Context, tag string) (list.Copy, error) {
	within, cancel := context.WithTimeout(ctx, o.cfg.Timeout)
	defer cancel()
	c, err := o.ask(within, tag)
	if err == nil {
		err = within.Err() // a body without a length ends where the connection ends
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
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is of no use
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
	defer resp.Body.Close() //nolint:errcheck // it was read to its end, or is of no use
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("fetch the signature: %w", statusOf(resp, o.signature))
	}
	sig, err := read(resp, signature.MaxSignature, 0)
	if err != nil {
		return nil, fmt.Errorf("fetch the signature: %w", err)
	}
	return sig, nil
}
