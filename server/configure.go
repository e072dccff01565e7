package server

import (
	"context"
	"errors"
	"log/slog"
	"time"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/server/guard"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
)

// startTimeout is how long Configure waits for sources to load.
const startTimeout = 10 * time.Second

// Configure loads a configuration, starts its sources and replaces the previous configuration. The previous
// configuration serves until then, and goes on serving if the new one is refused. Sources that have not changed
// keep what they have loaded. Concurrent calls run one after the other.
func (p *Plugin) Configure(
	ctx context.Context, req *configv1.ConfigureRequest,
) (resp *configv1.ConfigureResponse, err error) {
	defer guard.Recover(p.log, &err, "Configure", "peer", peer(ctx))
	p.configuring.Lock()
	defer p.configuring.Unlock()
	if p.closed {
		return nil, status.Error(codes.Unavailable, "the plugin is shutting down")
	}
	if err := p.configure(ctx, req); err != nil {
		p.metrics.add(ofConfig(configRefused), 1)
		return nil, err
	}
	p.metrics.add(ofConfig(configAccepted), 1)
	p.watching.Do(p.startWatch)
	p.watch.changed()
	return &configv1.ConfigureResponse{}, nil
}

// configure loads a configuration and replaces the previous one.
func (p *Plugin) configure(ctx context.Context, req *configv1.ConfigureRequest) error {
	c, err := p.loader.Load(ctx, req.GetHclConfiguration(), req.GetCoreConfiguration().GetTrustDomain())
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "configuration: %v", err)
	}
	next, err := p.start(ctx, c, p.current.Load())
	if err != nil {
		return err
	}
	p.warn(next)
	if looksAtSVIDKey(c) { // zero before the first event: see metrics
		p.metrics.add(ofSVIDKey(svidKeyInTPM), 0)
		p.metrics.add(ofSVIDKey(svidKeyNone), 0)
	}
	if previous := p.current.Swap(next); previous != nil {
		previous.set.Close()
	}
	return nil
}

// start starts the sources of a configuration.
func (p *Plugin) start(ctx context.Context, c *config.Config, previous *generation) (*generation, error) {
	set, err := c.NewSet(admission.Options{
		Log: slog.New(&logHandler{log: p.log}), Changed: p.watch.changed, Wait: p.wait,
	})
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "configuration: %v", err)
	}
	var before *admission.Set
	if previous != nil {
		before = previous.set
	}
	within, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	set.Start(within, before)
	if err := ctx.Err(); err != nil { // SPIRE counts this as a refusal
		set.Close()
		return nil, status.FromContextError(err).Err()
	}
	return &generation{
		Config: c, set: set, verifier: attestor.Verifier{AllowWeakEK: c.AllowWeakEK}, composer: p.composer(c),
	}, nil
}

// warn logs what an operator should know about a configuration.
func (p *Plugin) warn(g *generation) {
	for _, w := range g.Warnings {
		p.log.Warn("Configuration: " + clean(w, maxLogged))
	}
	if !g.Reattest && !p.agentStore.IsInitialized() {
		p.log.Warn("Configuration: reattest = false needs SPIRE's AgentStore, which is not available: " +
			"no machine can be admitted")
	}
}

// Validate returns a note for each mistake in a configuration, and none if it is valid, since SPIRE treats any note
// as an error. It asks no source, opens no file and changes nothing.
func (p *Plugin) Validate(
	ctx context.Context, req *configv1.ValidateRequest,
) (resp *configv1.ValidateResponse, err error) {
	defer guard.Recover(p.log, &err, "Validate", "peer", peer(ctx))
	_, err = p.loader.Load(ctx, req.GetHclConfiguration(), req.GetCoreConfiguration().GetTrustDomain())
	var problems config.Problems
	switch {
	case err == nil:
		return &configv1.ValidateResponse{Valid: true}, nil
	case !errors.As(err, &problems):
		return &configv1.ValidateResponse{Notes: []string{err.Error()}}, nil
	}
	resp = &configv1.ValidateResponse{}
	for _, problem := range problems {
		resp.Notes = append(resp.Notes, problem.String())
	}
	return resp, nil
}
