package ekca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// A reply is what a service has said about an EK.
type reply struct {
	cert *x509.Certificate // nil with an error, or where it has none
	err  error
}

// fromServices returns the certificate for an EK that a service has, or nil where
// none of them has one. All are asked at once, and who has it first is believed:
// the certificate is one for this key, and who has signed it decides.
func (s *Source) fromServices(ctx context.Context, ek crypto.PublicKey, network bool) (*x509.Certificate, error) {
	var replies []reply
	for _, service := range s.services {
		replies = append(replies, s.askService(ctx, service, ek, false))
	}
	if network && needsNetwork(replies) {
		replies = s.askServices(ctx, ek)
	}
	var failures []error
	for i, r := range replies {
		switch {
		case r.cert != nil:
			return r.cert, nil
		case r.err != nil:
			failures = append(failures, fmt.Errorf("the service %q: %w", s.services[i].name, r.err))
		}
	}
	if needsNetwork(replies) {
		return nil, fmt.Errorf("find the EK certificate: %w", sources.ErrNeedsNetwork)
	}
	if err := errors.Join(failures...); err != nil {
		return nil, fmt.Errorf("find the EK certificate: %w", err)
	}
	return nil, nil //nolint:nilnil // no certificate is an answer
}

// needsNetwork reports whether nothing has been found, and something has not been
// asked for.
func needsNetwork(replies []reply) bool {
	return !slices.ContainsFunc(replies, func(r reply) bool { return r.cert != nil }) &&
		slices.ContainsFunc(replies, func(r reply) bool { return errors.Is(r.err, sources.ErrNeedsNetwork) })
}

// askServices asks all services over the network and returns when the first one
// has a certificate, or all have answered.
func (s *Source) askServices(ctx context.Context, ek crypto.PublicKey) []reply {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	replies := make([]reply, len(s.services))
	var asked sync.WaitGroup
	for i, service := range s.services {
		asked.Go(func() {
			defer func() {
				if p := recover(); p != nil {
					replies[i] = reply{err: fmt.Errorf("panic: %v", p)}
				}
			}()
			if replies[i] = s.askService(ctx, service, ek, true); replies[i].cert != nil {
				cancel()
			}
		})
	}
	asked.Wait()
	return replies
}

// askService looks up an EK at one service.
func (s *Source) askService(ctx context.Context, service ekService, ek crypto.PublicKey, network bool) reply {
	url, ok := EKCertificateURL(service.name, service.base, ek)
	if !ok {
		return reply{}
	}
	now := s.now()
	parse := func(body []byte) (any, time.Time, error) {
		cert, err := ReadReply(service.name, body, ek)
		if err != nil {
			return nil, time.Time{}, err
		}
		return cert, keptUntil(now, cert), nil
	}
	q := inquiry{store: s.store, network: network}
	object, err := q.lookUp(ctx, certfetch.EKCertificate, url, parse)
	switch {
	case errors.Is(err, certfetch.ErrNotFound):
		return reply{}
	case err != nil:
		return reply{err: err}
	}
	cert, ok := object.Value.(*x509.Certificate)
	if !ok || !sameKey(cert.PublicKey, ek) {
		return reply{err: errors.New("the certificate is for another key")}
	}
	return reply{cert: cert}
}
