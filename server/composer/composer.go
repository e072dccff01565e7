// Package composer is SPIRE's credential composer "tpm". With it, SPIRE's server gives an agent of
// the node attestor "tpm" an SVID only for the key that the attestor has handed over for it.
//
// SPIRE asks its composers about everything that it signs, and does not restart a composer that has
// died: nobody gets an SVID then. So this composer has a table in memory, a mutex and a socket, and
// nothing else: it reads no lists and no files, and uses no network. It counts in memory, and another goroutine
// reports the counts to SPIRE. A panic ends one call alone.
package composer

import (
	"context"
	"crypto/sha256"
	"errors"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	composerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/server/guard"
	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// Plugin is the SPIRE plugin. Use New to make one. It is safe for concurrent use.
//
// Its answer is empty if it does not decide about a request. SPIRE then issues what it would issue without the
// plugin. The plugin never returns Unimplemented, which SPIRE treats like an empty answer.
type Plugin struct {
	composerv1.UnimplementedCredentialComposerServer
	configv1.UnimplementedConfigServer

	log     hclog.Logger
	family  handover.Family
	table   handover.Table // lives as long as the plugin, whatever the configuration
	metrics *metrics

	mu       sync.Mutex // held while a configuration is put into service
	listener *handover.Listener
	closed   bool
}

var (
	_ pluginsdk.NeedsLogger       = (*Plugin)(nil)
	_ pluginsdk.NeedsHostServices = (*Plugin)(nil)
)

// New returns a plugin that is not configured yet. Call it when the process starts: see
// handover.Own.
func New() *Plugin { return &Plugin{log: hclog.NewNullLogger(), family: handover.Own()} }

// SetLogger implements pluginsdk.NeedsLogger.
func (p *Plugin) SetLogger(log hclog.Logger) { p.log = log }

// BrokerHostServices implements pluginsdk.NeedsHostServices. The plugin starts even if SPIRE has no metrics.
func (p *Plugin) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	var client metricsv1.MetricsServiceClient
	if broker.BrokerClient(&client) && p.metrics == nil {
		p.metrics = startMetrics(&client, p.log)
	}
	return nil
}

// ComposeServerX509CA implements the CredentialComposer service.
func (*Plugin) ComposeServerX509CA(
	context.Context, *composerv1.ComposeServerX509CARequest,
) (*composerv1.ComposeServerX509CAResponse, error) {
	return &composerv1.ComposeServerX509CAResponse{}, nil
}

// ComposeServerX509SVID implements the CredentialComposer service.
func (*Plugin) ComposeServerX509SVID(
	context.Context, *composerv1.ComposeServerX509SVIDRequest,
) (*composerv1.ComposeServerX509SVIDResponse, error) {
	return &composerv1.ComposeServerX509SVIDResponse{}, nil
}

// ComposeAgentX509SVID implements the CredentialComposer service. It refuses an SVID for a key
// that has not been handed over, if the plugin decides about the agent's ID.
func (p *Plugin) ComposeAgentX509SVID(
	_ context.Context, req *composerv1.ComposeAgentX509SVIDRequest,
) (_ *composerv1.ComposeAgentX509SVIDResponse, err error) {
	defer guard.Recover(p.log, &err, "ComposeAgentX509SVID")
	id, decides, err := p.decides(req.GetSpiffeId())
	if err != nil {
		return nil, err
	}
	if decides {
		if err := p.table.Take(id.String(), sha256.Sum256(req.GetPublicKey())); err != nil {
			p.metrics.count(outcomeOf(err))
			p.log.Warn("SVID refused", "spiffe_id", id.String(), "reason", err.Error())
			return nil, status.Error(codes.PermissionDenied, refusal(err))
		}
		p.metrics.count(allowed)
	}
	return &composerv1.ComposeAgentX509SVIDResponse{}, nil
}

func outcomeOf(err error) outcome {
	if errors.Is(err, handover.ErrOtherKey) {
		return otherKey
	}
	return noKey
}

// refusal returns the message for the agent. SPIRE's server logs it too, with the agent's ID.
func refusal(err error) string {
	if errors.Is(err, handover.ErrOtherKey) {
		return "no SVID for this agent: its key is not the one that its TPM has certified in its attestation: " +
			`use KeyManager "tpm", and its directory as svid_key_directory of NodeAttestor "tpm"`
	}
	return "no SVID for this agent: " + err.Error()
}

// ComposeWorkloadX509SVID implements the CredentialComposer service. It refuses an SVID with an
// agent's ID, since no workload has such an ID.
func (p *Plugin) ComposeWorkloadX509SVID(
	_ context.Context, req *composerv1.ComposeWorkloadX509SVIDRequest,
) (_ *composerv1.ComposeWorkloadX509SVIDResponse, err error) {
	defer guard.Recover(p.log, &err, "ComposeWorkloadX509SVID")
	if err := p.refuseAgents(req.GetSpiffeId()); err != nil {
		return nil, err
	}
	return &composerv1.ComposeWorkloadX509SVIDResponse{}, nil
}

// ComposeWorkloadJWTSVID implements the CredentialComposer service. It refuses what ComposeWorkloadX509SVID
// refuses.
func (p *Plugin) ComposeWorkloadJWTSVID(
	_ context.Context, req *composerv1.ComposeWorkloadJWTSVIDRequest,
) (_ *composerv1.ComposeWorkloadJWTSVIDResponse, err error) {
	defer guard.Recover(p.log, &err, "ComposeWorkloadJWTSVID")
	if err := p.refuseAgents(req.GetSpiffeId()); err != nil {
		return nil, err
	}
	return &composerv1.ComposeWorkloadJWTSVIDResponse{}, nil
}

// decides reports whether the plugin decides about an ID. It returns an error if it cannot tell.
func (p *Plugin) decides(text string) (id spiffeid.ID, decides bool, err error) {
	id, err = spiffeid.FromString(text)
	if err != nil {
		p.metrics.count(malformed)
		p.log.Error("SVID refused", "spiffe_id", text, "reason", err.Error())
		return spiffeid.ID{}, false, status.Errorf(codes.InvalidArgument, "the SPIFFE ID %.80q: %v", text, err)
	}
	return id, handover.Guards(id), nil
}

func (p *Plugin) refuseAgents(text string) error {
	id, decides, err := p.decides(text)
	if err != nil || !decides {
		return err
	}
	p.metrics.count(notAnAgent)
	p.log.Error("SVID refused", "spiffe_id", id.String(), "reason", "a workload with the ID of an agent")
	return status.Error(codes.PermissionDenied, "no SVID for a workload with the ID of an agent")
}

// Configure puts a configuration into service. If it names another socket, the plugin first listens
// there and then closes the previous socket. Keys that have been handed over stay. If the
// configuration is refused, the previous one stays in service.
func (p *Plugin) Configure(
	ctx context.Context, req *configv1.ConfigureRequest,
) (_ *configv1.ConfigureResponse, err error) {
	defer guard.Recover(p.log, &err, "Configure")
	c, err := config.ParseComposer(req.GetHclConfiguration())
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "configuration: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return nil, status.Error(codes.Unavailable, "the plugin is shutting down")
	case p.listener != nil && p.listener.Path() == c.Socket:
		return &configv1.ConfigureResponse{}, nil
	}
	next, err := handover.Listen(ctx, c.Socket, p.family, &p.table, p.log)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "configuration: socket: %v", err)
	}
	if p.listener != nil {
		p.listener.Close()
	}
	p.listener = next
	return &configv1.ConfigureResponse{}, nil
}

// Validate returns a note for each mistake in a configuration, and none if it is valid, since SPIRE treats any note
// as an error. It opens no file and changes nothing.
func (p *Plugin) Validate(
	_ context.Context, req *configv1.ValidateRequest,
) (_ *configv1.ValidateResponse, err error) {
	defer guard.Recover(p.log, &err, "Validate")
	_, err = config.ParseComposer(req.GetHclConfiguration())
	var problems config.Problems
	switch {
	case err == nil:
		return &configv1.ValidateResponse{Valid: true}, nil
	case !errors.As(err, &problems):
		return &configv1.ValidateResponse{Notes: []string{err.Error()}}, nil
	}
	resp := &configv1.ValidateResponse{}
	for _, problem := range problems {
		resp.Notes = append(resp.Notes, problem.String())
	}
	return resp, nil
}

// Close stops listening. SPIRE calls it before it ends the process.
func (p *Plugin) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil && !p.closed {
		p.listener.Close()
	}
	p.closed = true
	p.metrics.close()
	return nil
}
