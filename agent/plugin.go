// Package agent is the agent's side of the SPIRE node attestor plugin "tpm": it
// proves, with the TPM 2.0 of the machine it runs on, that this is the machine.
package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// Plugin implements the NodeAttestor and the Config service. It is safe for
// concurrent use; attestations take turns at the TPM.
type Plugin struct {
	nodeattestorv1.UnimplementedNodeAttestorServer
	configv1.UnimplementedConfigServer

	logger hclog.Logger
	tpm    atomic.Pointer[tpm.TPM]
	turn   chan struct{} // holds a token while an attestation uses the TPM
}

// New returns a plugin that is not configured yet.
func New() *Plugin {
	return &Plugin{logger: hclog.NewNullLogger(), turn: make(chan struct{}, 1)}
}

// SetLogger is called by the plugin framework, before anything else.
func (p *Plugin) SetLogger(logger hclog.Logger) { p.logger = logger }

// Configure takes a configuration into use. It opens no device: a TPM whose
// driver is not there yet is an attestation's concern, which SPIRE repeats,
// while it does not repeat this.
func (p *Plugin) Configure(_ context.Context, req *configv1.ConfigureRequest) (
	_ *configv1.ConfigureResponse, err error,
) {
	defer p.guard(&err)
	config, problems := parseConfig(req.GetHclConfiguration())
	if len(problems) > 0 {
		return nil, status.Error(codes.InvalidArgument, strings.Join(problems, "; "))
	}
	t, err := tpm.New(config)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p.tpm.Store(t)
	return &configv1.ConfigureResponse{}, nil
}

// Validate checks a configuration as Configure does and leaves the one in use.
// SPIRE takes any note for a failure, so there is none where it is valid.
func (p *Plugin) Validate(_ context.Context, req *configv1.ValidateRequest) (_ *configv1.ValidateResponse, err error) {
	defer p.guard(&err)
	_, problems := parseConfig(req.GetHclConfiguration())
	return &configv1.ValidateResponse{Valid: len(problems) == 0, Notes: problems}, nil
}

// AidAttestation sends the payload, waits for the challenge, and answers it.
func (p *Plugin) AidAttestation(stream nodeattestorv1.NodeAttestor_AidAttestationServer) (err error) {
	defer p.guard(&err)
	device := p.tpm.Load()
	if device == nil {
		return status.Error(codes.FailedPrecondition, "not configured")
	}
	ctx := stream.Context()
	var a *tpm.Attestation
	err = p.use(ctx, func() (err error) {
		a, err = device.Begin(ctx)
		return err
	})
	if err != nil {
		return failed("use the TPM", err, codes.Internal)
	}
	p.report(a)
	return prove(stream, attestor.NewProver(a.Claim, &activator{p, ctx, a}))
}

// use runs f, which uses the TPM, when its turn has come. It returns soon after ctx has
// ended; the next turn comes when f has returned as well.
func (p *Plugin) use(ctx context.Context, f func() error) error {
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	return tpm.Do(ctx, func() (err error) {
		defer func() { <-p.turn }()
		defer p.guard(&err)
		return f()
	})
}

// activator answers a challenge when the TPM's turn has come. While an attestation waits
// for the server, the TPM is free: a server may never answer, and SPIRE kills the plugin
// as soon as an attestation has failed.
type activator struct {
	plugin      *Plugin
	ctx         context.Context //nolint:containedctx // attestor.Activator's method takes none
	attestation *tpm.Attestation
}

// ActivateCredential implements attestor.Activator.
func (a *activator) ActivateCredential(credential, secret []byte) ([]byte, error) {
	var answer []byte
	err := a.plugin.use(a.ctx, func() (err error) {
		answer, err = a.attestation.Activate(a.ctx, credential, secret)
		return err
	})
	if err != nil {
		return nil, err
	}
	return answer, nil
}

// report logs what this machine attests with: the hash is what an operator
// enrols it by.
func (p *Plugin) report(a *tpm.Attestation) {
	p.logger.Info("attesting with the TPM", "ek_hash", hex.EncodeToString(a.EKHash[:]), "ek", string(a.KeyType),
		"ek_certificate", a.Claim.Certificate != nil, "ek_persistent", a.Persistent != 0)
	if types := otherTypes(a); len(types) > 0 {
		p.logger.Info("the EK certificates in the TPM are for other keys: to attest with one of them, set ek",
			"ek", strings.Join(types, " or "))
	}
	if a.ChainErr != nil {
		p.logger.Warn("skipping CA certificates of the TPM", "error", a.ChainErr)
	}
	for _, cert := range a.Certificates {
		if cert.Err != nil {
			p.logger.Warn("skipping an EK certificate", "error", cert.Err)
		}
	}
}

// otherTypes returns the types of EK for which there are certificates, if there is none for
// the one in use: ek = "auto" does not choose by them.
func otherTypes(a *tpm.Attestation) []string {
	if a.Claim.Certificate != nil {
		return nil
	}
	var types []string
	for _, cert := range a.Certificates {
		if cert.Err != nil {
			continue
		}
		t, err := attestor.KeyTypeOf(cert.Certificate.PublicKey)
		if _, unusable := tpm.ParseEK(string(t)); err == nil && unusable == nil && t != a.KeyType {
			types = append(types, string(t))
		}
	}
	return types
}

// prove is the dialogue of one attestation.
func prove(stream nodeattestorv1.NodeAttestor_AidAttestationServer, prover *attestor.Prover) error {
	payload, err := prover.Payload()
	if err != nil {
		return failed("make the attestation payload", err, codes.Internal)
	}
	if err := stream.Send(&nodeattestorv1.PayloadOrChallengeResponse{
		Data: &nodeattestorv1.PayloadOrChallengeResponse_Payload{Payload: payload},
	}); err != nil {
		return err // a status of gRPC
	}
	challenge, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil // the server has decided, and wants to know no more
	}
	if err != nil {
		return err // a status of gRPC
	}
	response, err := prover.Answer(challenge.GetChallenge())
	if err != nil {
		return failed("answer the server's challenge", err, codes.InvalidArgument)
	}
	return stream.Send(&nodeattestorv1.PayloadOrChallengeResponse{
		Data: &nodeattestorv1.PayloadOrChallengeResponse_ChallengeResponse{ChallengeResponse: response},
	})
}

// failed returns the status for an error. None is PermissionDenied, upon which
// SPIRE Agent would give up instead of trying again: FailedPrecondition lasts
// until somebody acts, Unavailable may pass by itself.
func failed(doing string, err error, unexpected codes.Code) error {
	code := unexpected
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		code = status.FromContextError(err).Code()
	case errors.Is(err, tpm.ErrSetup):
		code = codes.FailedPrecondition
	case errors.Is(err, tpm.ErrNotReady):
		code = codes.Unavailable
	}
	return status.Error(code, fmt.Sprintf("%s: %v", doing, err))
}

// guard turns a panic into the error of one call: SPIRE does not start a plugin
// again that has died.
func (p *Plugin) guard(err *error) {
	if r := recover(); r != nil {
		p.logger.Error("panic", "value", r, "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "panic: %v", r)
	}
}
