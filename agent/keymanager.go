package agent

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

// A KeyManager implements SPIRE's services KeyManager and Config. It keeps the key of the agent's own
// SVID in the TPM. It is safe for concurrent use; calls use the TPM one after the other.
//
// While the TPM is missing or in use, a call waits for it, for 27 seconds at most: SPIRE gives up after 30.
type KeyManager struct {
	keymanagerv1.UnimplementedKeyManagerServer
	configv1.UnimplementedConfigServer

	edge
	keys atomic.Pointer[keyStore]
}

// NewKeyManager returns a plugin that is not configured yet.
func NewKeyManager() *KeyManager { return &KeyManager{edge: newEdge()} }

const (
	// callTimeout is how long a call may take. SPIRE gives up after 30 seconds, and its log would not say
	// what the call was waiting for.
	callTimeout = 27 * time.Second
	// The pauses between attempts to use a TPM that is not ready.
	firstAttemptPause = 50 * time.Millisecond
	maxAttemptPause   = time.Second
)

// errTPMBusy is the error of a call that has taken callTimeout.
var errTPMBusy = &tpm.Error{
	Class: tpm.ErrNotReady, Err: fmt.Errorf("the TPM was not free within %v", callTimeout),
	Hint: "check what else uses it, and use /dev/tpmrm0, which programs can share",
}

// Configure puts a configuration into use. It makes the directory if it is not there, and does not open
// the TPM: SPIRE does not repeat Configure.
func (m *KeyManager) Configure(ctx context.Context, req *configv1.ConfigureRequest) (
	_ *configv1.ConfigureResponse, err error,
) {
	defer m.guard(&err)
	config, problems := ParseKeyManagerConfig(req.GetHclConfiguration())
	if len(problems) > 0 {
		return nil, status.Error(codes.InvalidArgument, strings.Join(notes(problems), "; "))
	}
	t, err := tpm.New(tpm.Config{Device: config.Device, EndorsementPassword: config.EndorsementPassword})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s := &keyStore{edge: &m.edge, tpm: t, directory: config.Directory, turn: make(chan struct{}, 1)}
	_, err = inTime(ctx, &m.edge, s.turn, errDirectoryHangs, func() (*struct{}, error) {
		return nil, keydir.Prepare(s.directory)
	})
	if err != nil {
		return nil, failedKey("prepare the directory", err)
	}
	m.keys.Store(s)
	return &configv1.ConfigureResponse{}, nil
}

var errDirectoryHangs = &tpm.Error{
	Class: tpm.ErrNotReady, Err: errors.New("the directory has not answered in time"),
	Hint: "mend the file system that it is on, or use a directory on a disk of this machine",
}

// Validate checks the text of a configuration as Configure does. It opens neither the directory nor the TPM.
func (m *KeyManager) Validate(_ context.Context, req *configv1.ValidateRequest) (
	_ *configv1.ValidateResponse, err error,
) {
	defer m.guard(&err)
	_, problems := ParseKeyManagerConfig(req.GetHclConfiguration())
	return &configv1.ValidateResponse{Valid: len(problems) == 0, Notes: notes(problems)}, nil
}

// call prepares a call: it returns the keys of the current configuration, and a context that ends before SPIRE
// stops waiting.
func (m *KeyManager) call(ctx context.Context) (*keyStore, context.Context, context.CancelFunc, error) {
	s := m.keys.Load()
	if s == nil {
		return nil, nil, nil, status.Error(codes.FailedPrecondition, "not configured")
	}
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, errTPMBusy)
	return s, ctx, cancel, nil
}

// GenerateKey makes a key, in place of an earlier key with its ID.
func (m *KeyManager) GenerateKey(ctx context.Context, req *keymanagerv1.GenerateKeyRequest) (
	_ *keymanagerv1.GenerateKeyResponse, err error,
) {
	defer m.guard(&err)
	if t := req.GetKeyType(); t != keymanagerv1.KeyType_EC_P256 {
		return nil, status.Errorf(codes.InvalidArgument, "make a key of the type %v: this KeyManager makes keys "+
			"of the type EC_P256 alone, which SPIRE Agent uses for its own SVID; workload_x509_svid_key_type is about "+
			"workloads' keys, which no KeyManager makes", t)
	}
	if err := keydir.CheckID(req.GetKeyId()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "make a key: %v", err)
	}
	s, ctx, cancel, err := m.call(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	k, err := s.generate(ctx, req.GetKeyId())
	if err != nil {
		return nil, failedKey(fmt.Sprintf("make the key %q in the TPM", req.GetKeyId()), err)
	}
	m.logger.Debug("made a key in the TPM", "key_id", k.slot.ID, "serial", k.slot.Serial)
	return &keymanagerv1.GenerateKeyResponse{PublicKey: k.public}, nil
}

// GetPublicKey returns the public key with an ID.
func (m *KeyManager) GetPublicKey(ctx context.Context, req *keymanagerv1.GetPublicKeyRequest) (
	_ *keymanagerv1.GetPublicKeyResponse, err error,
) {
	defer m.guard(&err)
	s, ctx, cancel, err := m.call(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	k, err := s.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, failedKey(fmt.Sprintf("find the key %q", req.GetKeyId()), err)
	}
	return &keymanagerv1.GetPublicKeyResponse{PublicKey: k.public}, nil
}

// GetPublicKeys has the TPM make the keys in the directory again, and returns them. It leaves out the keys of
// another TPM, so that a copy of a machine's disk starts as a new agent.
func (m *KeyManager) GetPublicKeys(ctx context.Context, _ *keymanagerv1.GetPublicKeysRequest) (
	_ *keymanagerv1.GetPublicKeysResponse, err error,
) {
	defer m.guard(&err)
	s, ctx, cancel, err := m.call(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	all, err := s.reload(ctx)
	if err != nil {
		return nil, failedKey("make the keys again", err)
	}
	resp := new(keymanagerv1.GetPublicKeysResponse)
	for _, k := range all {
		resp.PublicKeys = append(resp.PublicKeys, k.public)
	}
	slices.SortFunc(resp.PublicKeys, func(a, b *keymanagerv1.PublicKey) int {
		return strings.Compare(a.GetId(), b.GetId())
	})
	return resp, nil
}

// SignData has the TPM sign a digest.
func (m *KeyManager) SignData(ctx context.Context, req *keymanagerv1.SignDataRequest) (
	_ *keymanagerv1.SignDataResponse, err error,
) {
	defer m.guard(&err)
	doing := fmt.Sprintf("sign with the key %q", req.GetKeyId())
	switch opts := req.GetSignerOpts().(type) {
	case *keymanagerv1.SignDataRequest_HashAlgorithm:
		if opts.HashAlgorithm != keymanagerv1.HashAlgorithm_SHA256 {
			return nil, status.Errorf(codes.InvalidArgument, "%s: the hash algorithm %v: want SHA256",
				doing, opts.HashAlgorithm)
		}
	default:
		return nil, status.Errorf(codes.InvalidArgument, "%s: want ECDSA with SHA256, not RSASSA-PSS or nothing", doing)
	}
	if n := len(req.GetData()); n != sha256.Size {
		return nil, status.Errorf(codes.InvalidArgument, "%s: a digest of %d bytes: want %d", doing, n, sha256.Size)
	}
	s, ctx, cancel, err := m.call(ctx)
	if err != nil {
		return nil, err
	}
	defer cancel()
	k, err := s.find(ctx, req.GetKeyId())
	if err != nil {
		return nil, failedKey(doing, err)
	}
	signature, err := s.sign(ctx, k, req.GetData())
	if err != nil {
		return nil, failedKey(doing, err)
	}
	return &keymanagerv1.SignDataResponse{Signature: signature, KeyFingerprint: k.public.GetFingerprint()}, nil
}

// errNoKey is the error for an ID without a key.
var errNoKey = errors.New("there is no such key in this TPM")

// failedKey returns the status for an error of a call.
func failedKey(doing string, err error) error {
	if errors.Is(err, errNoKey) {
		return status.Errorf(codes.NotFound, "%s: %v", doing, err)
	}
	if e, ok := errors.AsType[*keydir.Error](err); ok {
		return status.Errorf(codes.FailedPrecondition, "%s: %v", doing, e)
	}
	return failed(doing, err, codes.Internal)
}

// managedKey is a key that the TPM has made. It does not change, except for the saved context in key.
type managedKey struct {
	slot   keydir.Slot
	key    *tpm.SVIDKey // used by the call that has the TPM
	public *keymanagerv1.PublicKey
}

func newManagedKey(slot *keydir.Slot, key *tpm.SVIDKey) (*managedKey, error) {
	pub, err := attestor.ReadSVIDKey(key.Public)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &managedKey{slot: *slot, key: key, public: &keymanagerv1.PublicKey{
		Id: slot.ID, Type: keymanagerv1.KeyType_EC_P256, PkixData: der, Fingerprint: hex.EncodeToString(sum[:]),
	}}, nil
}

// random fills b with random bytes.
func random(b []byte) error {
	if _, err := rand.Read(b); err != nil {
		return fmt.Errorf("read random bytes: %w", err)
	}
	return nil
}
