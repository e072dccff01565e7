package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	identityproviderv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/identityprovider/v1"
)

// identityProvider is SPIRE's IdentityProvider, for sources that authenticate by the server's own X.509-SVID. It
// caches nothing, since SPIRE rotates the SVID, and answers at once from memory and its datastore. All
// configurations share one identityProvider, so that a source that has not changed is recognized.
type identityProvider struct {
	client identityproviderv1.IdentityProviderServiceClient
}

// X509Identity returns the server's X.509-SVID and its trust domain's bundle. While SPIRE
// configures its plugins it has neither, and the call fails.
func (p *identityProvider) X509Identity(ctx context.Context) (*x509svid.SVID, *x509bundle.Bundle, error) {
	if !p.client.IsInitialized() {
		return nil, nil, errors.New("SPIRE offers no IdentityProvider")
	}
	resp, err := p.client.FetchX509Identity(ctx, &identityproviderv1.FetchX509IdentityRequest{})
	if err != nil {
		return nil, nil, fmt.Errorf("ask SPIRE's IdentityProvider, which is available once SPIRE has started: %w", err)
	}
	var chain []byte
	for _, cert := range resp.GetIdentity().GetCertChain() {
		chain = append(chain, cert...)
	}
	svid, err := x509svid.ParseRaw(chain, resp.GetIdentity().GetPrivateKey())
	if err != nil {
		return nil, nil, fmt.Errorf("parse the identity from SPIRE's IdentityProvider: %w", err)
	}
	td, err := spiffeid.TrustDomainFromString(resp.GetBundle().GetTrustDomain())
	if err != nil {
		return nil, nil, fmt.Errorf("parse the bundle from SPIRE's IdentityProvider: %w", err)
	}
	bundle := x509bundle.New(td)
	for _, authority := range resp.GetBundle().GetX509Authorities() {
		// SPIRE removes a tainted authority when it is revoked. Until then it counts.
		certs, err := x509bundle.ParseRaw(td, authority.GetAsn1())
		if err != nil {
			return nil, nil, fmt.Errorf("parse the bundle from SPIRE's IdentityProvider: %w", err)
		}
		for _, cert := range certs.X509Authorities() {
			bundle.AddX509Authority(cert)
		}
	}
	return svid, bundle, nil
}
