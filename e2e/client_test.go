package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A client calls SPIRE's API for agents, with whatever messages a test wants.
type client struct {
	agentv1.AgentClient
	conn *grpc.ClientConn
	csr  []byte
}

// client returns a client that is closed when the test ends.
func (w *world) client(s *spiretest.Server) client {
	w.t.Helper()
	c := w.newClient(s)
	w.t.Cleanup(func() { c.conn.Close() })
	return c
}

// newClient returns a client that connects to s when it is first used. Like an agent, it
// verifies the server's SVID. The caller closes its connection.
func (w *world) newClient(s *spiretest.Server) client {
	w.t.Helper()
	td := spiffeid.RequireTrustDomainFromString(s.TrustDomain)
	bundle, err := x509bundle.Load(td, s.BundlePath)
	if err != nil {
		w.t.Fatal(err)
	}
	config := tlsconfig.TLSClientConfig(bundle,
		tlsconfig.AuthorizeID(spiffeid.RequireFromPath(td, "/spire/server")))
	conn, err := grpc.NewClient(s.Address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		w.t.Fatal(err)
	}
	return client{AgentClient: agentv1.NewAgentClient(conn), conn: conn, csr: csr}
}

// errLeft is the error of an answer function that drops the attestation.
var errLeft = errors.New("left in the middle")

// attest sends a payload and, if the server challenges, what answer returns for the challenge.
// It returns the SPIFFE ID from the server.
func (c client) attest(ctx context.Context, payload []byte,
	answer func(challenge []byte) ([]byte, error),
) (string, error) {
	return c.attestBy(ctx, "tpm", payload, answer)
}

// attestBy is like attest, for a node attestor of another name.
func (c client) attestBy(ctx context.Context, attestor string, payload []byte,
	answer func(challenge []byte) ([]byte, error),
) (string, error) {
	svid, err := c.svidBy(ctx, attestor, payload, answer)
	if err != nil {
		return "", err
	}
	return "spiffe://" + svid.Id.TrustDomain + svid.Id.Path, nil
}

// svidBy is like attestBy, and returns the SVID.
func (c client) svidBy(ctx context.Context, attestor string, payload []byte,
	answer func(challenge []byte) ([]byte, error),
) (*types.X509SVID, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	rsp, err := exchange(stream, &agentv1.AttestAgentRequest{
		Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: attestor, Payload: payload},
			Params: &agentv1.AgentX509SVIDParams{Csr: c.csr},
		}},
	})
	if err != nil {
		return nil, err
	}
	if challenge := rsp.GetChallenge(); challenge != nil {
		response, err := answer(challenge)
		if err != nil {
			return nil, err
		}
		rsp, err = exchange(stream, &agentv1.AttestAgentRequest{
			Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: response},
		})
		if err != nil {
			return nil, err
		}
	}
	svid := rsp.GetResult().GetSvid()
	if svid.GetId() == nil {
		return nil, fmt.Errorf("the server answers neither with an SVID nor with an error: %v", rsp)
	}
	return svid, nil
}

func exchange(stream agentv1.Agent_AttestAgentClient, req *agentv1.AttestAgentRequest,
) (*agentv1.AttestAgentResponse, error) {
	// If the server has ended the stream, Recv returns the reason.
	_ = stream.Send(req)
	return stream.Recv()
}
