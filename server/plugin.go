// Package server is the server side of the node attestor "tpm": a SPIRE plugin that
// admits machines by their TPM.
//
// An attestation has four stages: package attestor checks the evidence, the
// configured sources are asked whether they know the TPM, the machine is challenged
// to prove that it holds the endorsement key, and what is known about the TPM becomes
// the agent's SPIFFE ID and selectors.
//
// The status of a failed attestation tells the agent whether to try again, but not
// what any list holds; that is in the log.
package server

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metricsv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	agentstorev1 "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

const (
	// maxUnderWay is how many attestations may be under way at once. An EK is no secret:
	// whoever knows the EK of a listed machine gets as far as its challenge, and is under
	// way until answerTimeout.
	maxUnderWay = 4096
	// maxOpen is how many streams of attestations may be open, including streams whose
	// payload has not come yet. It is below the limit of the gRPC server, so that Configure
	// can still open a stream.
	maxOpen = maxUnderWay + 2048
	// maxUnknown is how many of the attestations under way may wait if no source lists their TPMs so far: for a
	// slow source, for an early load, or for the answer to a challenge after which the network may have to be
	// asked. Anybody can make an EK that no source lists, and must not keep listed machines out.
	maxUnknown = maxUnderWay / 4
)

// Plugin is the SPIRE plugin. Use New to make one. It is safe for concurrent use.
type Plugin struct {
	nodeattestorv1.UnimplementedNodeAttestorServer
	configv1.UnimplementedConfigServer

	// Version is the plugin's version, for its metrics. It is set before the plugin is
	// served.
	Version string

	// Set by SPIRE before any call.
	log        hclog.Logger
	metrics    *metrics
	agentStore agentstorev1.AgentStoreServiceClient
	identity   *identityProvider

	loader *config.Loader
	// configuring is held while a configuration is loaded and started.
	configuring sync.Mutex
	closed      bool
	current     atomic.Pointer[generation]
	open        atomic.Int64      // streams of attestations
	underWay    atomic.Int64      // attestations whose payload has arrived
	strangers   *admission.Places // for attestations of TPMs that no source lists so far

	family   handover.Family // the composer must be of this family
	reserved reservations    // of IDs, if reattest is false

	held     budgets
	checking chan struct{} // has an element for each payload that is being checked

	watch     *watch // starts with the first configuration
	watching  sync.Once
	addresses *addresses
}

var (
	_ pluginsdk.NeedsLogger       = (*Plugin)(nil)
	_ pluginsdk.NeedsHostServices = (*Plugin)(nil)
)

// generation is one configuration in service. An attestation is decided by the generation that
// is current when the answer to its challenge arrives.
type generation struct {
	*config.Config
	set      *admission.Set
	verifier attestor.Verifier
	composer *handover.Client // nil if svid_key is "off"
}

// New returns a plugin that is not configured yet. Call it when the process starts: see
// handover.Own.
func New() *Plugin {
	p := &Plugin{
		log: hclog.NewNullLogger(), loader: config.NewLoader(), identity: &identityProvider{},
		watch: newWatch(), addresses: newAddresses(), strangers: admission.NewPlaces(maxUnknown),
		family: handover.Own(), held: newBudgets(), checking: make(chan struct{}, maxChecking),
	}
	p.loader.Identity = p.identity
	return p
}

// SetLogger implements pluginsdk.NeedsLogger.
func (p *Plugin) SetLogger(log hclog.Logger) { p.log = log }

// BrokerHostServices implements pluginsdk.NeedsHostServices. The plugin starts even if
// SPIRE lacks one of the services.
func (p *Plugin) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	var client metricsv1.MetricsServiceClient
	if broker.BrokerClient(&client) && p.metrics == nil {
		p.metrics = startMetrics(&client)
	}
	broker.BrokerClient(&p.agentStore)
	broker.BrokerClient(&p.identity.client)
	return nil
}

// startWatch starts the watch.
func (p *Plugin) startWatch() {
	p.watch.log, p.watch.metrics, p.watch.version = p.log, p.metrics, p.Version
	p.watch.status = func() []admission.SourceStatus {
		if g := p.current.Load(); g != nil {
			return g.set.Status()
		}
		return nil
	}
	p.watch.policy = func() policy.Policy {
		if g := p.current.Load(); g != nil {
			return g.Policy
		}
		return policy.Policy{}
	}
	p.watch.used = p.used
	p.watch.start()
}

// used returns how much of each limit is in use, from 0 to 1.
func (p *Plugin) used() map[reason]float64 {
	share := func(n, most int64) float64 { return float64(n) / float64(most) }
	return map[reason]float64{
		reasonOpen:       share(p.open.Load(), maxOpen),
		reasonUnderWay:   share(p.underWay.Load(), maxUnderWay),
		reasonStrangers:  share(int64(p.strangers.Taken()), maxUnknown),
		reasonMessages:   max(p.held.payloads.share(), p.held.responses.share()),
		reasonCerts:      p.held.strangers.share(),
		reasonAnswers:    p.held.answers.share(),
		reasonAdmissions: share(p.reserved.count(), maxReserved),
	}
}

// Close stops everything that the plugin has started. SPIRE calls it before it ends the
// process.
func (p *Plugin) Close() error {
	p.configuring.Lock()
	defer p.configuring.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	if g := p.current.Swap(nil); g != nil {
		g.set.Close()
	}
	p.watch.close()
	p.metrics.close()
	return nil
}
