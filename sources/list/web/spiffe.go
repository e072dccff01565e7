package web

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// An IdentityProvider provides the identity of this server in its trust domain. It is safe for
// concurrent use.
type IdentityProvider interface {
	// X509Identity returns the server's X.509-SVID, and the bundle of its trust domain, both as
	// they are at this moment. It returns an error if there is none, as there may be while the
	// server starts.
	X509Identity(ctx context.Context) (*x509svid.SVID, *x509bundle.Bundle, error)
}

// mutualSPIFFE sets up mutual TLS with X.509-SVIDs. It fetches the server's own SVID and the bundle
// at each attempt, since both rotate, and an authority that was removed from the bundle must no
// longer be trusted.
func (o *Origin) mutualSPIFFE(ctx context.Context, config *tls.Config) error {
	want, err := spiffeid.FromString(o.cfg.ServerID)
	if err != nil {
		return fmt.Errorf("the SPIFFE ID of the web server: %w", err)
	}
	own, bundle, err := o.cfg.Identity.X509Identity(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("get this server's own X.509-SVID: %w", err)
	case own == nil || len(own.Certificates) == 0 || bundle == nil:
		return errors.New("get this server's own X.509-SVID: there is none, or no trust bundle")
	}
	pair := tls.Certificate{PrivateKey: own.PrivateKey, Leaf: own.Certificates[0]}
	for _, cert := range own.Certificates {
		pair.Certificate = append(pair.Certificate, cert.Raw)
	}
	// Present the SVID whichever authorities the web server names in its request.
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	// An X.509-SVID names no host. VerifyConnection is called for each connection, including
	// resumed ones.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		err := verifySVID(state.PeerCertificates, bundle, want, o.cfg.Now())
		if err != nil { // this type of error is not retried within an attempt
			return &tls.CertificateVerificationError{UnverifiedCertificates: state.PeerCertificates, Err: err}
		}
		return nil
	}
	return nil
}

// verifySVID returns an error unless certs are the X.509-SVID with the ID want. It makes the checks
// of the X.509-SVID standard, 5.2: the leaf has a path to the bundle of the ID's own trust domain
// and a single URI, and is not a CA. It also makes the checks of RFC 5280, 4.2.1.3 and 4.2.1.12:
// the leaf is for digital signatures and for servers.
func verifySVID(certs []*x509.Certificate, bundle *x509bundle.Bundle, want spiffeid.ID, now time.Time) error {
	id, _, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now))
	if err != nil {
		return fmt.Errorf("the certificate of the web server: %w", err)
	}
	leaf := certs[0]
	usages := leaf.ExtKeyUsage
	switch {
	case id != want:
		return fmt.Errorf("the web server is %.200q, not %q", id, want)
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return errors.New("the certificate of the web server is not for digital signatures")
	case len(usages)+len(leaf.UnknownExtKeyUsage) > 0 &&
		!slices.Contains(usages, x509.ExtKeyUsageServerAuth) && !slices.Contains(usages, x509.ExtKeyUsageAny):
		return errors.New("the certificate of the web server is not for servers")
	}
	return nil
}
