// Package ekca is a source that knows a TPM by the authority that issued its EK
// certificate.
//
// A TPM is listed when its EK certificate chains to a CA certificate that the
// operator has configured. Every configured CA certificate is a trust anchor,
// one of an intermediate CA too. Certificates that the attesting machine sends
// may join its EK certificate to an anchor and never are one.
//
// A machine chooses which certificates it sends, and may send none: it is then not
// listed. So the source says who is welcome. Under a deny rule it keeps out only
// who has to send that certificate, since an allow rule asks for one as well.
//
// How certificates are read from files stands at [Config], what makes an EK
// certificate vouch for its TPM at [Source.Check].
package ekca

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Source is a set of authorities. It is safe for concurrent use.
type Source struct {
	paths    []location
	interval time.Duration
	now      func() time.Time

	// files reads the paths, one reader at a time.
	files aside
	// state is what the last successful Refresh loaded, nil before it. It is
	// never changed, only replaced.
	state atomic.Pointer[state]
	// confirmed is when the files were last found to be what state holds.
	confirmed atomic.Pointer[time.Time]
}

// location is a configured path with the name of its bundle, which is empty for
// Config.CAPath.
type location struct {
	bundle string
	path   string
}

// state is what one successful Refresh has loaded.
type state struct {
	authorities *authorities
	// seen is what the files were, files what they held.
	seen   fileSet
	files  []caFile
	status sources.Status
}

var errNotLoaded = errors.New("no CA certificates have been loaded yet")

// New checks the configuration and returns the source. It opens nothing: the
// first Refresh does.
func New(cfg Config) (*Source, error) {
	paths, err := locations(cfg)
	if err != nil {
		return nil, err
	}
	if err := validFetching(cfg); err != nil {
		return nil, err
	}
	if cfg.PollInterval < 0 {
		return nil, fmt.Errorf("poll interval %v is negative", cfg.PollInterval)
	}
	s := &Source{paths: paths, interval: cfg.PollInterval, now: cfg.Now, files: newAside()}
	if s.interval == 0 {
		s.interval = DefaultPollInterval
	}
	if s.now == nil {
		s.now = time.Now
	}
	return s, nil
}

// Check implements sources.Source.
//
// The TPM is listed when ev.Certificate
//
//   - is an X.509 v3 certificate that is valid now, is not a CA's, and is meant
//     for an EK as far as it says (TCG EK Credential Profile 2.5, 3.2): where
//     there is a key usage it has keyEncipherment or keyAgreement, where there is
//     an extended key usage it has tcg-kp-EKCertificate (2.23.133.8.1) or
//     anyExtendedKeyUsage;
//   - has no critical extension other than those that are processed here (RFC
//     5280, 4.2);
//   - is joined to a configured CA certificate by a chain of at most 8 CA
//     certificates, the configured one among them, in which each is named by the
//     one below as its issuer (RFC 5280, 7.1), has signed it with SHA-256 or
//     stronger, is valid now, may sign certificates, and allows a chain of that
//     length.
//
// It is not listed where there is no certificate or no such chain. It cannot be
// told before the first successful Refresh, where the certificate is not the
// EK's, and where the chain is so tangled that more than 32 signatures would
// have to be verified.
//
// Check reads no file, takes no lock and verifies one signature for each
// certificate of the chain below the first configured CA, whatever the number of
// configured ones.
func (s *Source) Check(ctx context.Context, ev *sources.Evidence) (sources.Verdict, error) {
	st := s.state.Load()
	if st == nil {
		return sources.Verdict{}, errNotLoaded
	}
	if err := ctx.Err(); err != nil {
		return sources.Verdict{}, fmt.Errorf("verify the EK certificate: %w", err)
	}
	cert := ev.Certificate
	if cert == nil {
		return sources.Verdict{Reason: "there is no EK certificate"}, nil
	}
	if !sameKey(cert.PublicKey, ev.EK) {
		return sources.Verdict{}, errors.New("the key in the EK certificate is not the EK")
	}
	now := s.now()
	if why := faultOfEK(cert, now); why != "" {
		return sources.Verdict{Reason: "the EK certificate " + why}, nil
	}
	found, err := st.authorities.vouch(ctx, cert, ev.Chain, now)
	switch {
	case err != nil:
		return sources.Verdict{}, err
	case found == nil:
		return sources.Verdict{
			Reason: "no configured CA has issued the EK certificate, whose issuer is " + describe(cert.Issuer),
		}, nil
	}
	return sources.Verdict{
		Listed: true,
		Reason: found.reason(cert),
		Attributes: sources.Attributes{
			CAs:         found.bundles,
			Certificate: attributes(cert, found.issuer),
		},
	}, nil
}

// InMemory implements sources.InMemory.
func (s *Source) InMemory() bool { return true }

// reason says for people who has vouched for cert.
func (f *finding) reason(cert *x509.Certificate) string {
	by := "the EK certificate by " + strconv.Quote(presentable(cert.Issuer.CommonName)) +
		" chains to a configured CA"
	if len(f.bundles) > 0 {
		by += " in " + strings.Join(f.bundles, ", ")
	}
	return by
}

// sameKey reports whether a and b are one public key, of the kinds that an EK
// can be.
func sameKey(a, b crypto.PublicKey) bool {
	switch a := a.(type) {
	case *rsa.PublicKey:
		b, ok := b.(*rsa.PublicKey)
		return ok && a != nil && b != nil && a.N != nil && b.N != nil && a.Equal(b)
	case *ecdsa.PublicKey:
		b, ok := b.(*ecdsa.PublicKey)
		return ok && whole(a) && whole(b) && a.Equal(b)
	}
	return false
}

// whole reports whether k is a key, and not the zero value of one.
func whole(k *ecdsa.PublicKey) bool {
	//nolint:staticcheck // SA1019: the coordinates are looked at and not changed
	return k != nil && k.Curve != nil && k.X != nil && k.Y != nil
}

// Status implements sources.Reporter. Entries is the number of different CA
// certificates that were valid when they were loaded.
func (s *Source) Status() sources.Status {
	st := s.state.Load()
	if st == nil {
		return sources.Status{}
	}
	status := st.status
	status.Warnings = slices.Clone(status.Warnings)
	if at := s.confirmed.Load(); at != nil {
		status.Confirmed = *at
	}
	return status
}
