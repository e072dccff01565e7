package e2e_test

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// wantWorkloadSVID registers a workload on the agent and gets its SVID through the agent's
// Workload API, which is the purpose of an attestation.
func (w *world) wantWorkloadSVID(s *spiretest.Server, a *spiretest.Agent, known *types.Agent) {
	w.t.Helper()
	w.register(s, "/workload", known.Id.Path, ownUser())
	if err := spiretest.Poll(w.ctx, func() error { return w.fetch(a) }); err != nil {
		w.t.Errorf("a workload on the admitted machine gets no SVID: %v", err)
	}
}

// ownUser selects workloads that run as the user of this test.
func ownUser() *types.Selector {
	return &types.Selector{Type: "unix", Value: fmt.Sprintf("uid:%d", os.Getuid())}
}

// register creates an entry: whatever the selector selects, below parent, gets the ID path.
func (w *world) register(s *spiretest.Server, path, parent string, selector *types.Selector) {
	w.t.Helper()
	conn, err := s.API()
	if err != nil {
		w.t.Fatal(err)
	}
	id := func(path string) *types.SPIFFEID { return &types.SPIFFEID{TrustDomain: s.TrustDomain, Path: path} }
	rsp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(w.ctx, &entryv1.BatchCreateEntryRequest{
		Entries: []*types.Entry{{SpiffeId: id(path), ParentId: id(parent), Selectors: []*types.Selector{selector}}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if code := rsp.Results[0].Status.Code; code != int32(codes.OK) {
		w.t.Fatalf("create entry: code %d: %s", code, rsp.Results[0].Status.Message)
	}
}

// fetch gets an SVID from the agent's Workload API, like a workload.
func (w *world) fetch(a *spiretest.Agent) error {
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	defer cancel()
	svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr("unix://"+a.Socket))
	if err != nil {
		return err
	}
	if want := "spiffe://example.org/workload"; svid.ID.String() != want {
		return fmt.Errorf("the SVID is for %s, want %s", svid.ID, want)
	}
	return nil
}
