package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/agent/keydir"
	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/agent/tpm"
	"github.com/spire-tpm/spire-tpm-attestor/attestor"
)

const slotA, slotB = "agent-svid-A", "agent-svid-B"

// keyManager is a KeyManager that is called through gRPC, as by SPIRE.
type keyManager struct {
	*KeyManager
	keys      keymanagerv1.KeyManagerPluginClient
	service   configv1.ConfigServiceClient
	log       *logBuffer
	directory string
}

// serveKeys serves a KeyManager of a TPM and a directory until the test ends.
func serveKeys(t *testing.T, device, directory string) *keyManager {
	t.Helper()
	m := &keyManager{KeyManager: NewKeyManager(), log: new(logBuffer), directory: directory}
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:   keymanagerv1.KeyManagerPluginServer(m.KeyManager),
		PluginClient:   &m.keys,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(m.KeyManager)},
		ServiceClients: []pluginsdk.ServiceClient{&m.service},
		Logger:         hclog.New(&hclog.LoggerOptions{Output: m.log, Level: hclog.Debug}),
	})
	if device != "" {
		if err := m.configure(t, fmt.Sprintf("device = %q\ndirectory = %q", device, directory)); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func (m *keyManager) configure(t testing.TB, config string) error {
	t.Helper()
	_, err := m.service.Configure(t.Context(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: config,
	})
	return err
}

func (m *keyManager) generate(t testing.TB, id string) *keymanagerv1.PublicKey {
	t.Helper()
	resp, err := m.keys.GenerateKey(t.Context(), &keymanagerv1.GenerateKeyRequest{
		KeyId: id, KeyType: keymanagerv1.KeyType_EC_P256,
	})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetPublicKey()
}

func (m *keyManager) list(t testing.TB) map[string]*keymanagerv1.PublicKey {
	t.Helper()
	resp, err := m.keys.GetPublicKeys(t.Context(), new(keymanagerv1.GetPublicKeysRequest))
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]*keymanagerv1.PublicKey)
	for _, k := range resp.GetPublicKeys() {
		all[k.GetId()] = k
	}
	return all
}

// sign signs with a key and verifies the signature, as SPIRE and its peers do.
func (m *keyManager) sign(ctx context.Context, k *keymanagerv1.PublicKey) error {
	digest := sha256.Sum256([]byte("a handshake"))
	resp, err := m.keys.SignData(ctx, &keymanagerv1.SignDataRequest{
		KeyId: k.GetId(), Data: digest[:],
		SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256},
	})
	if err != nil {
		return err
	}
	pub, err := x509.ParsePKIXPublicKey(k.GetPkixData())
	if err != nil {
		return err
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || !ecdsa.VerifyASN1(key, digest[:], resp.GetSignature()) {
		return errors.New("it is not the key's signature")
	}
	if resp.GetKeyFingerprint() != k.GetFingerprint() {
		return errors.New("another fingerprint")
	}
	return nil
}

func same(a, b *keymanagerv1.PublicKey) bool {
	return a != nil && b != nil && bytes.Equal(a.GetPkixData(), b.GetPkixData()) && a.GetFingerprint() == b.GetFingerprint()
}

// loadedIn returns the handles of the keys and sessions in a TPM.
func loadedIn(t testing.TB, s *swtpmtest.TPM) []tpm2.TPMHandle {
	t.Helper()
	c, err := linuxudstpm.Open(s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all []tpm2.TPMHandle
	for _, first := range []uint32{0x80000000, 0x02000000, 0x03000000} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: first, PropertyCount: 64}.Execute(c)
		if err != nil {
			t.Fatal(err)
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, handles.Handle...)
	}
	return all
}

func keyDirectory(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "tpm")
}

// SPIRE's agent makes keys in two slots in turn and signs with them. After its restart, and after that of
// the machine, the keys are the same. Nothing is left in the TPM, and the directory holds no more than
// two small files.
func TestKeyManager(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, s.Device, keyDirectory(t))
	if got := m.list(t); len(got) != 0 {
		t.Fatalf("a new machine has %v", got)
	}
	a, b := m.generate(t, slotA), m.generate(t, slotB)
	if same(a, b) || a.GetType() != keymanagerv1.KeyType_EC_P256 || a.GetId() != slotA {
		t.Fatalf("%v and %v", a, b)
	}
	again := m.generate(t, slotA)
	if same(a, again) {
		t.Error("a key is not replaced")
	}
	check := func(when string, m *keyManager) {
		t.Helper()
		got := m.list(t)
		if len(got) != 2 || !same(got[slotA], again) || !same(got[slotB], b) {
			t.Errorf("%s: the keys are %v", when, got)
		}
		for _, k := range got {
			if err := m.sign(t.Context(), k); err != nil {
				t.Errorf("%s: %v", when, err)
			}
			one, err := m.keys.GetPublicKey(t.Context(), &keymanagerv1.GetPublicKeyRequest{KeyId: k.GetId()})
			if err != nil || !same(one.GetPublicKey(), k) {
				t.Errorf("%s: %v, %v", when, one, err)
			}
		}
		if left := loadedIn(t, s); len(left) > 0 {
			t.Errorf("%s: left in the TPM are %v", when, left)
		}
	}
	check("at once", m)
	check("after a restart of the agent", serveKeys(t, s.Device, m.directory))
	s.Restart()
	for _, k := range []*keymanagerv1.PublicKey{again, b} {
		if err := m.sign(t.Context(), k); err != nil {
			t.Errorf("after a restart of the TPM alone: %v", err)
		}
	}
	check("after a restart of the machine", serveKeys(t, s.Device, m.directory))
	entries, err := os.ReadDir(m.directory)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 || info.Size() > 512 {
			t.Errorf("%s has %v and %d bytes, %v", e.Name(), info.Mode(), info.Size(), err)
		}
	}
	if err := m.configure(t, fmt.Sprintf("device = %q\ndirectory = %q", s.Device, m.directory)); err != nil {
		t.Fatal(err)
	}
	if err := m.sign(t.Context(), b); err != nil {
		t.Errorf("once it is configured anew: %v", err)
	}
	if err := m.sign(t.Context(), &keymanagerv1.PublicKey{Id: "none"}); status.Code(err) != codes.NotFound {
		t.Errorf("a key that does not exist: %v", err)
	}
}

// A copy of a machine's data on a machine with another TPM has no keys: the agent there starts as a new
// one, and says so, instead of failing at every start. What the copy writes harms nobody.
func TestCopiedDirectory(t *testing.T) {
	one, two := swtpmtest.Start(t, swtpmtest.Options{Blank: true}), swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, one.Device, keyDirectory(t))
	a := m.generate(t, slotA)
	stolen := keyDirectory(t)
	if err := os.CopyFS(stolen, os.DirFS(m.directory)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(stolen, 0o700); err != nil {
		t.Fatal(err)
	}
	thief := serveKeys(t, two.Device, stolen)
	if got := thief.list(t); len(got) != 0 {
		t.Errorf("the thief has %v", got)
	}
	if !strings.Contains(thief.log.String(), "leaving out a key of another TPM") {
		t.Errorf("the log does not say why: %s", thief.log)
	}
	if err := thief.sign(t.Context(), a); status.Code(err) != codes.NotFound {
		t.Errorf("the thief signs: %v", err)
	}
	made := thief.generate(t, slotB)
	if same(made, a) || len(thief.list(t)) != 1 {
		t.Errorf("the thief's own key is %v", made)
	}
	// The thief's attestor certifies the newest key.
	if l, err := keydir.List(stolen); err != nil || l.Slots[0].ID != slotB {
		t.Errorf("the newest is %v, %v", l, err)
	}
	// A TPM that is replaced under a running agent refuses to sign, and does not sign with another key.
	two.Stop()
	if err := m.configure(t, fmt.Sprintf("device = %q\ndirectory = %q", one.Device, m.directory)); err != nil {
		t.Fatal(err)
	}
	m.list(t)
	swapped, err := tpm.New(tpm.Config{Device: two.Device})
	if err != nil {
		t.Fatal(err)
	}
	two.Restart()
	m.KeyManager.keys.Load().tpm = swapped
	err = m.sign(t.Context(), a)
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "the key of another TPM") {
		t.Errorf("in another TPM: %v", err)
	}
	if left := loadedIn(t, two); len(left) > 0 {
		t.Errorf("left in the TPM are %v", left)
	}
}

// An agent that is killed after it has made a key and before it has written the key's file, or during that, still has
// the earlier key and can make the next one. A file that is torn or another program's hides no other key.
func TestKeysAfterAKill(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, s.Device, keyDirectory(t))
	a, b := m.generate(t, slotA), m.generate(t, slotB)
	torn := filepath.Join(m.directory, slotA+".json")
	if err := os.WriteFile(filepath.Join(m.directory, slotA+".new"), []byte(`{"version`), 0o600); err != nil {
		t.Fatal(err)
	}
	m = serveKeys(t, s.Device, m.directory)
	if got := m.list(t); !same(got[slotA], a) || !same(got[slotB], b) {
		t.Errorf("killed while it wrote: %v", got)
	}
	content, err := os.ReadFile(torn)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"torn": content[:len(content)/2], "empty": nil, "garbage": []byte("\x00\x01")} {
		if err := os.WriteFile(torn, data, 0o600); err != nil {
			t.Fatal(err)
		}
		m = serveKeys(t, s.Device, m.directory)
		if got := m.list(t); len(got) != 1 || !same(got[slotB], b) {
			t.Errorf("%s: %v", name, got)
		}
		if !strings.Contains(m.log.String(), torn) {
			t.Errorf("%s: the log does not name the file: %s", name, m.log)
		}
	}
	if k := m.generate(t, slotA); !same(m.list(t)[slotA], k) {
		t.Error("a torn file is not replaced")
	}
}

// What SPIRE's agent never asks for is refused, with what to do about it, before the TPM is used.
func TestKeyManagerRefuses(t *testing.T) {
	m := serveKeys(t, "unix:/nowhere", keyDirectory(t))
	digest := make([]byte, 32)
	hash := func(h keymanagerv1.HashAlgorithm) *keymanagerv1.SignDataRequest_HashAlgorithm {
		return &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: h}
	}
	for _, keyType := range []keymanagerv1.KeyType{
		keymanagerv1.KeyType_UNSPECIFIED_KEY_TYPE, keymanagerv1.KeyType_EC_P384,
		keymanagerv1.KeyType_RSA_2048, keymanagerv1.KeyType_RSA_4096, 99,
	} {
		_, err := m.keys.GenerateKey(t.Context(), &keymanagerv1.GenerateKeyRequest{KeyId: slotA, KeyType: keyType})
		if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "EC_P256") {
			t.Errorf("%v: %v", keyType, err)
		}
	}
	for _, id := range []string{"", strings.Repeat("x", 65)} {
		_, err := m.keys.GenerateKey(t.Context(), &keymanagerv1.GenerateKeyRequest{
			KeyId: id, KeyType: keymanagerv1.KeyType_EC_P256,
		})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("the ID %q: %v", id, err)
		}
	}
	for name, req := range map[string]*keymanagerv1.SignDataRequest{
		"no algorithm": {Data: digest},
		"unspecified":  {Data: digest, SignerOpts: hash(keymanagerv1.HashAlgorithm_UNSPECIFIED_HASH_ALGORITHM)},
		"SHA-384":      {Data: make([]byte, 48), SignerOpts: hash(keymanagerv1.HashAlgorithm_SHA384)},
		"SHA3-256":     {Data: digest, SignerOpts: hash(keymanagerv1.HashAlgorithm_SHA3_256)},
		"a message":    {Data: make([]byte, 33), SignerOpts: hash(keymanagerv1.HashAlgorithm_SHA256)},
		"nothing":      {SignerOpts: hash(keymanagerv1.HashAlgorithm_SHA256)},
		"PSS": {Data: digest, SignerOpts: &keymanagerv1.SignDataRequest_PssOptions{
			PssOptions: &keymanagerv1.SignDataRequest_PSSOptions{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256},
		}},
	} {
		req.KeyId = slotA
		if _, err := m.keys.SignData(t.Context(), req); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Calls at the same time do not disturb each other: each signature is its key's, and the last key of each
// slot is the one in the directory.
func TestKeyManagerAtOnce(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, s.Device, keyDirectory(t))
	fixed := m.generate(t, "fixed")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for range 5 {
				if err := m.sign(t.Context(), fixed); err != nil {
					t.Error(err)
				}
			}
		})
		all.Go(func() {
			id := []string{slotA, slotB}[i%2]
			resp, err := m.keys.GenerateKey(t.Context(), &keymanagerv1.GenerateKeyRequest{
				KeyId: id, KeyType: keymanagerv1.KeyType_EC_P256,
			})
			if err != nil || resp.GetPublicKey().GetId() != id {
				t.Errorf("%v, %v", resp, err)
			}
		})
		all.Go(func() {
			if _, err := m.keys.GetPublicKeys(t.Context(), new(keymanagerv1.GetPublicKeysRequest)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	l, err := keydir.List(m.directory)
	if err != nil || len(l.Slots) != 3 || l.Slots[0].Serial != 5 {
		t.Errorf("%v, %v", l, err)
	}
	before := m.known(t)
	if got := m.list(t); len(got) != 3 || !same(got[slotA], before[slotA].public) || !same(got[slotB], before[slotB].public) {
		t.Error("what is in the directory is not what is in memory")
	}
	if left := loadedIn(t, s); len(left) > 0 {
		t.Errorf("left in the TPM are %v", left)
	}
}

func (m *keyManager) known(t *testing.T) map[string]*managedKey {
	t.Helper()
	return m.KeyManager.keys.Load().known()
}

// If the TPM is not there yet at the agent's start, at a rotation or at a handshake, the KeyManager waits
// for it. TestAttemptsEnd is about a TPM that does not come.
func TestKeyManagerWaitsForTheTPM(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, s.Device, keyDirectory(t))
	a := m.generate(t, slotA)
	for _, tt := range []struct {
		name string
		call func() error
	}{
		{"at the start", func() error {
			resp, err := serveKeys(t, s.Device, m.directory).keys.GetPublicKeys(t.Context(), new(keymanagerv1.GetPublicKeysRequest))
			if err == nil && len(resp.GetPublicKeys()) == 0 {
				err = fmt.Errorf("the keys %v", resp.GetPublicKeys())
			}
			return err
		}},
		{"at a rotation", func() error {
			_, err := m.keys.GenerateKey(t.Context(), &keymanagerv1.GenerateKeyRequest{
				KeyId: slotB, KeyType: keymanagerv1.KeyType_EC_P256,
			})
			return err
		}},
		{"at a handshake", func() error { return m.sign(t.Context(), a) }},
	} {
		s.Stop()
		done := make(chan error, 1)
		go func() { done <- tt.call() }()
		select {
		case err := <-done:
			t.Errorf("%s: it does not wait: %v", tt.name, err)
			done <- err
		case <-time.After(300 * time.Millisecond): // a wrong implementation has failed by then
		}
		s.Restart()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// A program that holds the TPM delays a call and does not fail it. How long a call waits is
// TestAttemptsEnd's matter.
func TestKeyManagerWhileTheTPMIsHeld(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, s.Device, keyDirectory(t))
	a := m.generate(t, slotA)
	holder, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	getRandom := []byte{0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x7b, 0, 1}
	if _, err := holder.Write(getRandom); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(holder, make([]byte, 13)); err != nil { // swtpm serves it, and nobody else
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // as SPIRE's
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- m.sign(ctx, a) }()
	select {
	case err := <-done:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(300 * time.Millisecond): // a wrong implementation has failed by then
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// Attempts go on until SPIRE would give up, and not for longer, and the last one says what was missing.
func TestAttemptsEnd(t *testing.T) {
	away := &tpm.Error{Class: tpm.ErrNotReady, Err: errors.New("no TPM"), Hint: "plug it in"}
	for name, test := range map[string]struct {
		takes time.Duration
		err   error
		fail  int // how many attempts fail
		want  string
		after time.Duration
	}{
		"away for a while":  {0, away, 10, "", 0},
		"away":              {0, away, 1 << 30, "no TPM: plug it in", callTimeout},
		"slow and away":     {5 * time.Second, away, 1 << 30, "no TPM: plug it in", callTimeout + time.Second},
		"hangs":             {time.Hour, nil, 1 << 30, "the TPM was not free within", callTimeout + time.Second},
		"cannot be mended":  {0, &tpm.Error{Class: tpm.ErrSetup, Err: fs.ErrPermission}, 1 << 30, "permission denied", 0},
		"an unknown error":  {0, fs.ErrClosed, 1 << 30, "file already closed", 0},
		"a panic of a call": {0, nil, -1, "panic", 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := NewKeyManager()
				m.keys.Store(&keyStore{edge: &m.edge})
				s, ctx, cancel, err := m.call(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer cancel()
				begun, attempts := time.Now(), 0
				_, err = withTPM(ctx, s, func() (*struct{}, error) {
					if test.fail < 0 {
						panic("a bug")
					}
					time.Sleep(test.takes)
					if attempts++; attempts > test.fail {
						return new(struct{}), nil
					}
					return nil, test.err
				})
				if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
					t.Errorf("%v, want %q", err, test.want)
				}
				if test.after > 0 && (time.Since(begun) < test.after-2*time.Second || time.Since(begun) > test.after) {
					t.Errorf("after %v, want %v", time.Since(begun), test.after)
				}
				if err != nil && status.Code(failedKey("", err)) == codes.PermissionDenied {
					t.Error("PermissionDenied makes SPIRE's agent give up")
				}
				time.Sleep(2 * test.takes) // until the call that nobody waits for has ended
			})
		})
	}
}

// A file system that hangs is not the TPM's fault, and the error says so: to the call that hangs, and to those
// that wait for it. A TPM that hangs is not the file system's.
func TestWhatHangs(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		hang func(s *keyStore, ctx context.Context, block func()) error
		want string
	}{
		"the directory": {func(_ *keyStore, _ context.Context, block func()) error {
			block()
			return nil
		}, "the directory has not answered in time: mend the file system"},
		"the TPM": {func(s *keyStore, ctx context.Context, block func()) error {
			_, err := inTurnAtTPM(ctx, s, func() (*struct{}, error) {
				block()
				return new(struct{}), nil
			})
			return err
		}, "the TPM was not free within"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := NewKeyManager()
				m.keys.Store(&keyStore{edge: &m.edge, turn: make(chan struct{}, 1)})
				var calls sync.WaitGroup
				mended := make(chan struct{})
				for range 2 {
					time.Sleep(5 * time.Second) // the second waits for the first
					calls.Go(func() {
						s, ctx, cancel, err := m.call(t.Context())
						if err != nil {
							t.Error(err)
							return
						}
						defer cancel()
						err = s.inDirectory(ctx, func() error { return test.hang(s, ctx, func() { <-mended }) })
						if err == nil || !strings.Contains(err.Error(), test.want) {
							t.Errorf("%v, want %q", err, test.want)
						}
					})
				}
				calls.Wait()
				close(mended)
			})
		})
	}
}

// Configure refuses a configuration with a mistake. Otherwise it makes the directory, without the TPM.
// Validate makes nothing.
func TestKeyManagerConfig(t *testing.T) {
	m := serveKeys(t, "", "")
	_, err := m.keys.GetPublicKeys(t.Context(), new(keymanagerv1.GetPublicKeysRequest))
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("not configured: %v", err)
	}
	directory := keyDirectory(t)
	for config, want := range map[string]string{
		``:                                  "directory: it is missing",
		`directory = "var/lib"`:             "is not an absolute path",
		`directory = 7`:                     "not a string",
		`directory = "/a", directory = "b"`: "set twice",
		`directory = "/a"` + "\n" + `device = "tpm0"`:                                                "is not a TPM device",
		`directory = "/a"` + "\n" + `ek = "rsa2048"`:                                                 "unknown key",
		fmt.Sprintf("directory = %q", directory+"/no"):                                               "the directory above it does not exist",
		fmt.Sprintf("directory = %q\nendorsement_password = %q", directory, strings.Repeat("x", 65)): "at most 64 bytes",
	} {
		if err := m.configure(t, config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", config, err, want)
		}
	}
	good := fmt.Sprintf(`{"directory": %q, "device": "unix:/nowhere", "endorsement_password": "x"}`, directory)
	resp, err := m.service.Validate(t.Context(), &configv1.ValidateRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"}, HclConfiguration: good,
	})
	if err != nil || !resp.GetValid() || len(resp.GetNotes()) > 0 {
		t.Errorf("%v, %v", resp, err)
	}
	if _, err := os.Stat(directory); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Validate has made the directory: %v", err)
	}
	if err := m.configure(t, good); err != nil {
		t.Errorf("without the TPM: %v", err)
	}
	if info, err := os.Stat(directory); err != nil || info.Mode() != fs.ModeDir|0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
}

// looking is the server's half that looks at the SVID key.
type looking struct {
	session *attestor.Session
	answer  *attestor.Answer
}

func (s *looking) challenge(payload []byte) (_ []byte, err error) {
	if s.session, err = new(attestor.Verifier).Begin(payload); err != nil {
		return nil, err
	}
	return s.session.Challenge(attestor.Ask{SVIDKey: true})
}

func (s *looking) finish(response []byte) (err error) {
	s.answer, err = s.session.Finish(response)
	return err
}

// The attestor certifies the key that was made last, in whichever slot it is, to servers that look and to
// those that know nothing of it, and leaves nothing in the TPM. Without a directory, nothing is sent.
func TestAttestedSVIDKey(t *testing.T) {
	s := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	m := serveKeys(t, s.Device, keyDirectory(t))
	p := serve(t, fmt.Sprintf("device = %q\nek = \"p256\"\nsvid_key_directory = %q", s.Device, m.directory))
	for i, id := range []string{slotA, slotB, slotB, slotA} {
		if i == 2 {
			s.Restart()
		}
		k := m.generate(t, id)
		server := new(looking)
		if err := p.attest(t.Context(), server); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(k.GetPkixData())
		if got := server.answer.SVIDKey; got == nil || got.SPKIHash != sum {
			t.Errorf("the server has %v, want %x", got, sum)
		}
		if err := p.attest(t.Context(), new(ours)); err != nil {
			t.Errorf("a server that does not look: %v", err)
		}
		if err := p.attest(t.Context(), new(incumbent)); err != nil {
			t.Errorf("an older server: %v", err)
		}
		if left := loadedIn(t, s); len(left) > 0 {
			t.Errorf("left in the TPM are %v", left)
		}
	}
	server := new(looking)
	if err := serve(t, fmt.Sprintf("device = %q\nek = \"p256\"", s.Device)).attest(t.Context(), server); err != nil || server.answer.SVIDKey != nil {
		t.Errorf("without a directory: %v, %v", server.answer, err)
	}
}

// If an agent is configured to certify an SVID key and cannot, it says why and does not attest. Otherwise a
// server that requires the key would refuse it without the reason, and no other server would notice.
func TestSVIDKeyThatCannotBeAttested(t *testing.T) {
	s, other := swtpmtest.Start(t, swtpmtest.Options{Blank: true}), swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	base := t.TempDir()
	foreign := filepath.Join(base, "foreign")
	serveKeys(t, other.Device, foreign).generate(t, slotA)
	empty := filepath.Join(base, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	torn := filepath.Join(base, "torn")
	if err := errors.Join(os.Mkdir(torn, 0o700), os.WriteFile(filepath.Join(torn, slotA+".json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for directory, want := range map[string]string{
		filepath.Join(base, "none"): "the KeyManager",
		empty:                       "there is none in " + empty + `: configure the KeyManager "tpm"`,
		torn:                        slotA + ".json cannot be read",
		foreign:                     "it is the key of another TPM",
	} {
		p := serve(t, fmt.Sprintf("device = %q\nek = \"p256\"\nsvid_key_directory = %q", s.Device, directory))
		err := p.attest(t.Context(), new(looking))
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", directory, err, want)
		}
		if left := loadedIn(t, s); len(left) > 0 {
			t.Errorf("left in the TPM are %v", left)
		}
	}
}
