package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server/composer"
)

// BenchmarkServerSVIDKeyOverPlain takes turns between attestations of a machine to a server with
// svid_key = "required" and to one without. It reports the ratio of their medians. What is in it
// beside the hand-over is to verify one more signature, which "verify-ns" is.
func BenchmarkServerSVIDKeyOverPlain(b *testing.B) {
	for _, ek := range benchEKs {
		tpm := attestortest.New(b, attestortest.Options{EK: ek, SVIDKey: &attestortest.SVIDKey{}})
		inventory := oneHashDir(hashDir(b, tpm))
		socket := filepath.Join(b.TempDir(), "tpm", "svid.sock")
		c := composer.New()
		if _, err := c.Configure(b.Context(), configureRequest(fmt.Sprintf("socket = %q", socket))); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = c.Close() })
		plain := benchAttest(b, benchPlugin(b, inventory), tpm)
		with := benchAttest(b, benchPlugin(b, inventory+fmt.Sprintf(
			"\nsvid_key = \"required\"\nsvid_key_socket = %q\n", socket)), tpm)
		b.Run(fmt.Sprintf("ek=%s", ek), func(b *testing.B) {
			over(b, "plain-ns", "svidkey-ns", plain, with)
			b.ReportMetric(float64(verification(b).Nanoseconds()), "verify-ns")
		})
	}
}

// verification returns how long it takes to verify a signature on P-256.
func verification(b *testing.B) time.Duration {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	sum := sha256.Sum256([]byte("what a TPM has signed"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	const times = 100
	begun := time.Now()
	for range times {
		if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
			b.Fatal("a good signature is refused")
		}
	}
	return time.Since(begun) / times
}
