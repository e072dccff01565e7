package agent

import (
	"fmt"
	"path/filepath"
	"testing"

	keymanagerv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
)

// BenchmarkKeyManager is what SPIRE's agent waits for: a new key, with its file on the disk, a signature,
// and the two keys of an agent that starts. The TPM's part alone is BenchmarkSVIDKey in agent/tpm.
func BenchmarkKeyManager(b *testing.B) {
	s := swtpmtest.Start(b, swtpmtest.Options{Blank: true})
	m := NewKeyManager()
	_, err := m.Configure(b.Context(), &configv1.ConfigureRequest{
		HclConfiguration: fmt.Sprintf("device = %q\ndirectory = %q", s.Device, filepath.Join(b.TempDir(), "tpm")),
	})
	if err != nil {
		b.Fatal(err)
	}
	generate := func(b *testing.B, id string) {
		_, err := m.GenerateKey(b.Context(), &keymanagerv1.GenerateKeyRequest{KeyId: id, KeyType: keymanagerv1.KeyType_EC_P256})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.Run("GenerateKey", func(b *testing.B) {
		for b.Loop() {
			generate(b, slotA)
		}
	})
	generate(b, slotB)
	b.Run("SignData", func(b *testing.B) {
		req := &keymanagerv1.SignDataRequest{
			KeyId: slotA, Data: make([]byte, 32),
			SignerOpts: &keymanagerv1.SignDataRequest_HashAlgorithm{HashAlgorithm: keymanagerv1.HashAlgorithm_SHA256},
		}
		for b.Loop() {
			if _, err := m.SignData(b.Context(), req); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("GetPublicKeys", func(b *testing.B) {
		for b.Loop() {
			if got, err := m.GetPublicKeys(b.Context(), nil); err != nil || len(got.GetPublicKeys()) != 2 {
				b.Fatalf("%v, %v", got, err)
			}
		}
	})
}
