package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// BenchmarkServerDevIDOverFloor takes turns between attestations of a machine to a server that
// asks for its DevID, and attestations to one that does not, to which the cryptography is added
// that a DevID needs: to parse its certificate and verify the signature of its CA, and to verify
// the signatures of the AK and of the DevID. It reports the ratio of their medians.
func BenchmarkServerDevIDOverFloor(b *testing.B) {
	for _, ek := range benchEKs {
		ca := attestortest.NewCA(b, "Device CA")
		tpm := attestortest.New(b, attestortest.Options{EK: ek, DevID: &attestortest.DevID{CA: ca}})
		dir := b.TempDir()
		list(b, dir, "ca.pem", string(ca.PEM()))
		inventory := oneHashDir(hashDir(b, tpm))
		plain := benchAttest(b, benchPlugin(b, inventory), tpm)
		with := benchAttest(b, benchPlugin(b, inventory+fmt.Sprintf(
			`source "devid" "laptops" { ca_path = "%s/ca.pem" } allow "x" { all = ["factory", "laptops"] }`, dir)), tpm)
		floor := benchDevIDFloor(b, tpm)
		b.Run(fmt.Sprintf("ek=%s", ek), func(b *testing.B) {
			b.ReportAllocs()
			over(b, "floor-ns", "devid-ns", func() time.Duration { return plain() + timed(floor)() }, with)
		})
	}
}

// benchDevIDFloor returns the cryptography that no server can do without that proves a DevID.
func benchDevIDFloor(b *testing.B, tpm *attestortest.TPM) func() {
	b.Helper()
	signed, err := tpm.DevID(&attestor.DevIDRequest{})
	if err != nil {
		b.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	sum := sha256.Sum256([]byte("what a TPM or an authority has signed"))
	sig, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		b.Fatal(err)
	}
	return func() {
		if _, err := x509.ParseCertificate(signed.Chain[0]); err != nil {
			b.Fatal(err)
		}
		for range 3 {
			if !ecdsa.VerifyASN1(&key.PublicKey, sum[:], sig) {
				b.Fatal("a good signature is refused")
			}
		}
	}
}
