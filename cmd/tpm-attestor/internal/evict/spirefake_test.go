package evict

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// A fakeSPIRE is SPIRE Server's agent API on a socket. It pages and filters as SPIRE does.
type fakeSPIRE struct {
	agentv1.UnimplementedAgentServer
	socket string
	server *grpc.Server

	mu      sync.Mutex
	agents  []*types.Agent
	deleted []string
	failing error
	// onGet and onDelete are called before an agent is looked at or deleted, and onList after the
	// agents were listed.
	onGet, onDelete func(id string)
	// deletes answers DeleteAgent, if it is not nil.
	deletes func(*types.SPIFFEID) error
	onList  func()
	// answers changes an answer of ListAgents, if it is not nil.
	answers func(*agentv1.ListAgentsResponse)
}

// startSPIRE starts a SPIRE without agents.
func startSPIRE(tb testing.TB) *fakeSPIRE {
	tb.Helper()
	dir, err := os.MkdirTemp("", "spire") // the paths of testing's folders are too long for sockets
	if err != nil {
		tb.Fatal(err)
	}
	f := &fakeSPIRE{socket: filepath.Join(dir, "api.sock")}
	f.start(tb)
	tb.Cleanup(func() {
		f.server.Stop()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return f
}

// start serves the socket, as after a restart.
func (f *fakeSPIRE) start(tb testing.TB) {
	tb.Helper()
	listener, err := net.Listen("unix", f.socket)
	if err != nil {
		tb.Fatal(err)
	}
	f.server = grpc.NewServer()
	agentv1.RegisterAgentServer(f.server, f)
	go func() { _ = f.server.Serve(listener) }()
}

// add adds an agent of the machine with an EK hash.
func (f *fakeSPIRE) add(path, hash string, change ...func(*types.Agent)) *types.Agent {
	a := &types.Agent{
		Id: &types.SPIFFEID{TrustDomain: "example.org", Path: path}, AttestationType: attestorName,
		X509SvidSerialNumber: "1", X509SvidExpiresAt: time.Now().Add(time.Hour).Unix(), CanReattest: true,
		Selectors: []*types.Selector{
			{Type: attestorName, Value: "pub_hash:" + hash}, {Type: attestorName, Value: "rule:default"},
		},
	}
	for _, c := range change {
		c(a)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.agents = append(f.agents, a)
	return a
}

// fleet adds the agents of n machines, and returns their EK hashes.
func (f *fakeSPIRE) fleet(n int) (hashes []string) {
	for i := range n {
		hashes = append(hashes, hashOf(i))
		f.add("/spire/agent/tpm/"+hashOf(i), hashOf(i))
	}
	return hashes
}

func hashOf(i int) string { return fmt.Sprintf("%064x", i+1) }

// fail makes all calls fail from now on; nil mends them.
func (f *fakeSPIRE) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing = err
}

func (f *fakeSPIRE) evicted() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.deleted)
}

func (f *fakeSPIRE) ListAgents(_ context.Context, req *agentv1.ListAgentsRequest) (*agentv1.ListAgentsResponse, error) {
	if f.onList != nil {
		defer f.onList()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failing != nil {
		return nil, f.failing
	}
	from := 0
	if req.PageToken != "" {
		var err error
		if from, err = strconv.Atoi(req.PageToken); err != nil {
			return nil, status.Error(codes.InvalidArgument, "page token")
		}
	}
	rsp := &agentv1.ListAgentsResponse{}
	for i := from; i < len(f.agents); i++ {
		if len(rsp.Agents) == int(req.PageSize) {
			rsp.NextPageToken = strconv.Itoa(i)
			break
		}
		a := f.agents[i]
		if (req.Filter.ByAttestationType == "" || req.Filter.ByAttestationType == a.AttestationType) &&
			(req.Filter.ByBanned == nil || req.Filter.ByBanned.Value == a.Banned) {
			rsp.Agents = append(rsp.Agents, a)
		}
	}
	if f.answers != nil {
		f.answers(rsp)
	}
	return rsp, nil
}

func (f *fakeSPIRE) find(id *types.SPIFFEID) (int, error) {
	if f.failing != nil {
		return 0, f.failing
	}
	i := slices.IndexFunc(f.agents, func(a *types.Agent) bool { return a.Id.GetPath() == id.GetPath() })
	if i < 0 {
		return 0, status.Error(codes.NotFound, "agent not found")
	}
	return i, nil
}

func (f *fakeSPIRE) GetAgent(_ context.Context, req *agentv1.GetAgentRequest) (*types.Agent, error) {
	if f.onGet != nil {
		f.onGet(req.Id.GetPath())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.find(req.Id)
	if err != nil {
		return nil, err
	}
	return f.agents[i], nil
}

func (f *fakeSPIRE) DeleteAgent(_ context.Context, req *agentv1.DeleteAgentRequest) (*emptypb.Empty, error) {
	if f.onDelete != nil {
		f.onDelete(req.Id.GetPath())
	}
	if f.deletes != nil {
		return &emptypb.Empty{}, f.deletes(req.Id)
	}
	return &emptypb.Empty{}, f.remove(req.Id)
}

func (f *fakeSPIRE) remove(id *types.SPIFFEID) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	i, err := f.find(id)
	if err != nil {
		return err
	}
	f.agents = slices.Delete(f.agents, i, i+1)
	f.deleted = append(f.deleted, id.Path)
	return nil
}

var errSocket = errors.New("unavailable")
