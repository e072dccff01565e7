// Package agent is the agent's side of the SPIRE node attestor plugin "tpm". It proves
// the identity of the machine with the machine's TPM 2.0.
package agent

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// A Plugin implements SPIRE's services NodeAttestor and Config. It is safe for concurrent
// use; attestations use the TPM one after the other.
type Plugin struct {
	nodeattestorv1.UnimplementedNodeAttestorServer
	configv1.UnimplementedConfigServer

	edge
	tpm     atomic.Pointer[configured]
	reading chan struct{} // of capacity 1; the attestation that has sent to it may read the event log
}

// configured is the state of one configuration.
type configured struct {
	*tpm.TPM
	files chan struct{} // of capacity 1; who has sent to it may read the files of the DevID and the SVID key
}

// New returns a plugin that is not configured yet.
func New() *Plugin {
	return &Plugin{edge: newEdge(), reading: make(chan struct{}, 1)}
}

// Configure puts a configuration into use. It does not open the device: SPIRE repeats an
// attestation whose TPM is not ready yet, but it does not repeat Configure.
func (p *Plugin) Configure(_ context.Context, req *configv1.ConfigureRequest) (
	_ *configv1.ConfigureResponse, err error,
) {
	defer p.guard(&err)
	config, problems := ParseConfig(req.GetHclConfiguration())
	if len(problems) > 0 {
		return nil, status.Error(codes.InvalidArgument, strings.Join(notes(problems), "; "))
	}
	t, err := tpm.New(config)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	p.tpm.Store(&configured{t, make(chan struct{}, 1)})
	return &configv1.ConfigureResponse{}, nil
}

// Validate checks a configuration as Configure does, but does not put it into use. A valid configuration has no
// notes, since SPIRE treats any note as an error.
func (p *Plugin) Validate(_ context.Context, req *configv1.ValidateRequest) (_ *configv1.ValidateResponse, err error) {
	defer p.guard(&err)
	_, problems := ParseConfig(req.GetHclConfiguration())
	return &configv1.ValidateResponse{Valid: len(problems) == 0, Notes: notes(problems)}, nil
}

func notes(problems []tpm.Problem) []string {
	var all []string
	for _, p := range problems {
		all = append(all, p.String())
	}
	return all
}

// AidAttestation sends the payload, waits for the challenge, and answers it.
func (p *Plugin) AidAttestation(stream nodeattestorv1.NodeAttestor_AidAttestationServer) (err error) {
	defer p.guard(&err)
	device := p.tpm.Load()
	if device == nil {
		return status.Error(codes.FailedPrecondition, "not configured")
	}
	ctx := stream.Context()
	files, err := p.readDevID(ctx, device.files, device.ReadDevID)
	if err != nil {
		return failed("use the DevID", err, codes.Internal)
	}
	svidKey, err := p.readSVIDKey(ctx, device.files, device.ReadSVIDKey)
	if err != nil {
		return failed("use the SVID key", err, codes.Internal)
	}
	var a *tpm.Attestation
	err = p.use(ctx, func() (err error) {
		a, err = device.BeginWith(ctx, files)
		return err
	})
	if err != nil {
		return failed("use the TPM", err, codes.Internal)
	}
	a.UseSVIDKey(svidKey)
	p.report(a)
	return prove(stream, attestor.NewProver(a.Claim, &activator{p, ctx, device.TPM, a}))
}

// readTimeout is how long reading the DevID's files, the SVID key's or the event log may take: a file system may
// hang. A server waits longer than that for an answer.
const readTimeout = 10 * time.Second

// errKeysHang is the error of a key directory that cannot be read in time.
var errKeysHang = &tpm.Error{
	Class: tpm.ErrNotReady, Err: fmt.Errorf("svid_key_directory could not be read within %v", readTimeout),
	Hint: "mend the file system that it is on, or use a directory on a disk of this machine",
}

// errFilesHang is the error of DevID files that cannot be read in time.
var errFilesHang = &tpm.Error{
	Class: tpm.ErrNotReady, Err: fmt.Errorf("the DevID's files could not be read within %v", readTimeout),
	Hint: "mend the file system that they are on, or move them to a disk of this machine (cert_path, priv_path, " +
		"pub_path in the block devid)",
}

// readDevID reads the DevID's files. The TPM is free meanwhile. While a read hangs, the same configuration
// starts no other: further attestations wait for it and fail.
func (p *Plugin) readDevID(
	ctx context.Context, turn chan struct{}, read func() (*tpm.DevIDFiles, error),
) (*tpm.DevIDFiles, error) {
	return inTime(ctx, &p.edge, turn, errFilesHang, read)
}

// readSVIDKey reads which SVID key is the newest, as readDevID reads the DevID's files.
func (p *Plugin) readSVIDKey(
	ctx context.Context, turn chan struct{}, read func() (*keydir.Slot, error),
) (*keydir.Slot, error) {
	return inTime(ctx, &p.edge, turn, errKeysHang, read)
}

// activator answers a challenge with the TPM. While an attestation waits for the challenge,
// others may use the TPM: the server may never answer.
type activator struct {
	plugin      *Plugin
	ctx         context.Context //nolint:containedctx // attestor.Activator's method takes none
	tpm         *tpm.TPM
	attestation *tpm.Attestation
}

// Activate implements attestor.Activator.
func (a *activator) Activate(task *attestor.Activation) (*attestor.Activated, error) {
	var done *attestor.Activated
	err := a.plugin.use(a.ctx, func() (err error) {
		done, err = a.attestation.Activate(a.ctx, task)
		return err
	})
	if err != nil {
		return nil, err
	}
	if task.EventLog {
		done.EventLog = a.plugin.readEventLog(a.ctx, a.tpm.EventLog)
	}
	return done, nil
}

var errEventLogHangs = fmt.Errorf("it could not be read within %v", readTimeout)

// readEventLog returns the event log, or nil if it cannot be read: the server decides what that
// means. The TPM is free meanwhile. While a read hangs, no other is started.
func (p *Plugin) readEventLog(ctx context.Context, read func() ([]byte, error)) []byte {
	ctx, cancel := context.WithTimeoutCause(ctx, readTimeout, errEventLogHangs)
	defer cancel()
	var log []byte
	err := p.inTurn(ctx, p.reading, func() (err error) {
		log, err = read()
		return err
	})
	if err != nil {
		p.logger.Warn("sending no event log, which the server has asked for", "error", err)
		return nil
	}
	return log
}

// report logs the EK of this machine, and which certificates in the TPM cannot be used. An
// operator enrols the machine by the hash.
func (p *Plugin) report(a *tpm.Attestation) {
	p.logger.Info("attesting with the TPM", "ek_hash", hex.EncodeToString(a.EKHash[:]), "ek", string(a.KeyType),
		"ek_certificate", a.Claim.Certificate != nil, "ek_persistent", a.Persistent != 0,
		"devid", slices.Contains(a.Claim.Can, attestor.CanDevID), "svid_key", a.SVIDKeyID())
	if types := otherTypes(a); len(types) > 0 {
		p.logger.Info("the EK certificates in the TPM are for other keys: to attest with one of them, set ek",
			"ek", strings.Join(types, " or "))
	}
	if a.ChainErr != nil {
		p.logger.Warn("skipping CA certificates of the TPM", "error", a.ChainErr)
	}
	for _, cert := range a.Certificates {
		switch {
		case cert.Err != nil && cert.Raw != nil && bytes.Equal(cert.Raw, a.Claim.Certificate):
			p.logger.Warn("sending an EK certificate that cannot be read", "error", cert.Err)
		case cert.Err != nil:
			p.logger.Warn("skipping an EK certificate", "error", cert.Err)
		}
	}
}

// otherTypes returns the types of EK for which the TPM holds certificates, if it holds none
// for the EK in use. The type that ek = "auto" means does not depend on certificates.
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

// prove runs the agent's half of one attestation.
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
		return nil // the server has decided without a challenge
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
