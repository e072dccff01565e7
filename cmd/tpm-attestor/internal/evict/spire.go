package evict

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// attestorName is the name of the node attestor, which is the type of its selectors too.
const attestorName = "tpm"

const (
	// callTimeout is how long one call to SPIRE may take.
	callTimeout = 10 * time.Second
	// listTimeout is how long SPIRE may take to list all agents.
	listTimeout = 2 * time.Minute
	// pageSize is the number of agents in one answer of SPIRE, and maxAgents the number of agents that are
	// read. An agent has at most some 70 selectors of 255 bytes.
	pageSize, maxAgents = 500, 2_000_000
	maxMessage          = 64 << 20
)

// An agent is SPIRE's record of an agent that was attested by its TPM.
type agent struct {
	id   *types.SPIFFEID
	name string // the ID as a URI
	// machine is the name of the machine in the list that admitted it; it may be empty.
	machine string
	// hash is the EK hash. If unknown is true, SPIRE does not say it.
	hash    sources.EKHash
	unknown bool
	// serial is the serial number of its SVID. It changes with each attestation and, if renews is true, when
	// the agent renews its SVID.
	serial string
	renews bool
	// attested is when a look first saw this attestation; zero if that was the first look with --once.
	attested time.Time
}

// sameAttestation reports whether two records of an agent are of one attestation. An agent that renews its
// SVID, by reattest = false, does so as often as it likes, and asks no attestor: if its new serial counted as a
// new attestation, a machine that was removed would stay in by renewing every second.
func (a *agent) sameAttestation(b *agent) bool {
	return !a.unknown && !b.unknown && a.hash == b.hash && (a.serial == b.serial || a.renews && b.renews)
}

// spire is SPIRE Server's API on its local socket.
type spire struct {
	socket string
	conn   *grpc.ClientConn
	api    agentv1.AgentClient
	now    func() time.Time
}

// dial returns the API at a socket, which connects when it is first called. If the server was restarted, the API
// connects again within an interval.
func dial(socket string) (*spire, error) {
	conn, err := grpc.NewClient("passthrough:///spire", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: callTimeout, Backoff: backoff.Config{
			BaseDelay: interval / 10, Multiplier: 2, Jitter: 0.2, MaxDelay: interval,
		}}),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}))
	if err != nil {
		return nil, err
	}
	return &spire{socket, conn, agentv1.NewAgentClient(conn), time.Now}, nil
}

func (s *spire) close() { _ = s.conn.Close() }

// A callError is why a call has failed.
type callError struct {
	text string
	// silent is true if SPIRE has not answered: it may have done what it was asked or not, and the next call
	// would wait for as long.
	silent bool
}

func (e *callError) Error() string { return e.text }

// failed returns the error of a call.
func (s *spire) failed(what string, err error) error {
	switch st := status.Convert(err); st.Code() {
	case codes.Unavailable:
		return &callError{fmt.Sprintf("%s: SPIRE Server does not answer: is it running, is %s its socket_path, and "+
			"may this user use it? (%s)", what, s.socket, st.Message()), true}
	case codes.DeadlineExceeded, codes.Canceled:
		return &callError{fmt.Sprintf("%s: SPIRE Server has not answered: %s", what, st.Message()), true}
	default:
		return &callError{fmt.Sprintf("%s: SPIRE Server answers %v: %s", what, st.Code(), st.Message()), false}
	}
}

// silent reports whether an error is not an answer from SPIRE.
func silent(err error) bool {
	failed, ok := errors.AsType[*callError](err)
	return !ok || failed.silent
}

// mask returns the fields of an agent that SPIRE is asked for.
func mask() *types.AgentMask {
	return &types.AgentMask{
		AttestationType: true, X509SvidSerialNumber: true, X509SvidExpiresAt: true, Selectors: true, Banned: true,
		CanReattest: true,
	}
}

// list returns the agents that were attested by their TPM and whose SVID has not expired: an agent without
// a valid SVID is out already. An agent that attests while SPIRE lists it may be in two answers: the later counts.
func (s *spire) list(ctx context.Context) ([]*agent, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	filter := &agentv1.ListAgentsRequest_Filter{ByAttestationType: attestorName, ByBanned: wrapperspb.Bool(false)}
	req := &agentv1.ListAgentsRequest{Filter: filter, OutputMask: mask(), PageSize: pageSize}
	all, pages := map[string]*agent{}, map[string]bool{}
	for len(all) <= maxAgents {
		rsp, err := s.page(ctx, req)
		if err != nil {
			return nil, err
		}
		for _, a := range rsp.Agents {
			if s.evictable(a) {
				known := newAgent(a)
				all[known.name] = known
			}
		}
		switch next := rsp.NextPageToken; {
		case next == "":
			return slices.Collect(maps.Values(all)), nil
		case pages[next]:
			return nil, errors.New("list the agents: SPIRE gives the same page again")
		default:
			pages[next], req.PageToken = true, next
		}
	}
	return nil, fmt.Errorf("list the agents: there are more than %d", maxAgents)
}

// page asks for one page of the list.
func (s *spire) page(ctx context.Context, req *agentv1.ListAgentsRequest) (*agentv1.ListAgentsResponse, error) {
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	rsp, err := s.api.ListAgents(within, req)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("list the agents: SPIRE Server has not listed all within %v", listTimeout)
	case err != nil:
		return nil, s.failed("list the agents", err)
	}
	return rsp, nil
}

// evictable reports whether an agent may be evicted at all. To delete a banned agent would lift the ban.
func (s *spire) evictable(a *types.Agent) bool {
	return a.AttestationType == attestorName && !a.Banned && a.Id != nil &&
		time.Unix(a.X509SvidExpiresAt, 0).After(s.now())
}

// newAgent reads a record. The EK hash is the one in the selector pub_hash, which the attestor
// always gives. A record that has none, or several, is of an unknown machine. So is a record without a serial,
// which does not tell whether the agent attests again.
func newAgent(a *types.Agent) *agent {
	known := &agent{
		id: a.Id, name: "spiffe://" + a.Id.TrustDomain + a.Id.Path,
		serial: a.X509SvidSerialNumber, renews: !a.CanReattest, unknown: true,
	}
	if known.serial == "" {
		return known
	}
	for _, selector := range a.Selectors {
		if selector.Type != attestorName {
			continue
		}
		if name, ok := strings.CutPrefix(selector.Value, sources.PrefixName); ok {
			known.machine = name
		}
		text, ok := strings.CutPrefix(selector.Value, sources.PrefixPubHash)
		if !ok {
			continue
		}
		hash, err := sources.ParseEKHash(text)
		if err != nil || !known.unknown && hash != known.hash {
			known.unknown = true
			return known
		}
		known.hash, known.unknown = hash, false
	}
	return known
}

// unchanged reports whether SPIRE still has the agent as it was listed: it has not attested again
// since, or been banned.
func (s *spire) unchanged(ctx context.Context, a *agent) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	now, err := s.api.GetAgent(ctx, &agentv1.GetAgentRequest{Id: a.id, OutputMask: mask()})
	switch {
	case status.Code(err) == codes.NotFound:
		return false, nil
	case err != nil:
		return false, s.failed("look at "+a.name, err)
	case !s.evictable(now):
		return false, nil
	}
	return newAgent(now).sameAttestation(a), nil
}

// evict deletes an agent. It reports false if the agent was gone already.
func (s *spire) evict(ctx context.Context, a *agent) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := s.api.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: a.id})
	if status.Code(err) == codes.NotFound {
		return false, nil
	}
	if err != nil {
		return false, s.failed("evict "+a.name, err)
	}
	return true, nil
}
