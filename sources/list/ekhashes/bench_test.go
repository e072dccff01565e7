package ekhashes_test

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// million is how many entries the lists of the benchmarks have. EKHASHES_BENCH_10M=1
// has them run on ten million as well, which takes 3 GB.
const million = 1_000_000

func sizes() []int {
	if os.Getenv("EKHASHES_BENCH_10M") != "" {
		return []int{million, 10 * million}
	}
	return []int{million}
}

func sizeName(n int) string { return fmt.Sprintf("entries=%dM", n/million) }

// randomHashes returns hashes that are the same in each run.
func randomHashes(seed byte, n int) []sources.EKHash {
	random := rand.NewChaCha8([32]byte{seed})
	hashes := make([]sources.EKHash, n)
	for i := range hashes {
		random.Read(hashes[i][:])
	}
	return hashes
}

// textList writes the text form.
func textList(hashes []sources.EKHash) []byte {
	b := make([]byte, 0, 65*len(hashes))
	for _, h := range hashes {
		b = append(hex.AppendEncode(b, h[:]), '\n')
	}
	return b
}

// jsonList writes the JSON form.
func jsonList(hashes []sources.EKHash, entry func(b []byte, i int, hash sources.EKHash) []byte) []byte {
	b := []byte(`{"version": 1, "serial": 42, "keys": [`)
	for i, h := range hashes {
		if i > 0 {
			b = append(b, ",\n"...)
		}
		b = entry(b, i, h)
	}
	return append(b, "]}\n"...)
}

func plainEntry(b []byte, _ int, hash sources.EKHash) []byte {
	return append(hex.AppendEncode(append(b, '"'), hash[:]), '"')
}

func namedEntry(b []byte, i int, hash sources.EKHash) []byte {
	b = hex.AppendEncode(append(b, `{"hash": "`...), hash[:])
	return fmt.Appendf(b, `", "name": "us-east-%d", "labels": ["rack:%d", "env:prod"]}`, i, i/40)
}

func build(tb testing.TB, data []byte) *ekhashes.Document {
	tb.Helper()
	d, err := ekhashes.Parse(data, ekhashes.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// BenchmarkChallenge is the least that an attestation computes: it verifies the AK's
// signature and makes an ECDH on P-256, with a new key, for the secret that the TPM is
// challenged with. It stands for the floor of BenchmarkLookup, under the names of that.
func BenchmarkChallenge(b *testing.B) {
	ek, err := ecdh.P256().GenerateKey(crand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	ak, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := make([]byte, 32)
	signature, err := ecdsa.SignASN1(crand.Reader, ak, digest)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range sizes() {
		for _, name := range []string{"hit", "miss"} {
			b.Run(sizeName(n)+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if !ecdsa.VerifyASN1(&ak.PublicKey, digest, signature) {
						b.Fatal("the signature is not verified")
					}
					key, err := ecdh.P256().GenerateKey(crand.Reader)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := key.ECDH(ek.PublicKey()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkLookup is a look-up in a list that does not fit into the processor's cache.
func BenchmarkLookup(b *testing.B) {
	for _, n := range sizes() {
		hashes := randomHashes(1, n)
		d := build(b, textList(hashes))
		for name, asked := range map[string][]sources.EKHash{"hit": hashes[:1<<16], "miss": randomHashes(2, 1<<16)} {
			b.Run(sizeName(n)+"/"+name, func(b *testing.B) {
				i := 0
				for b.Loop() {
					if _, ok := d.Lookup(asked[i%len(asked)]); ok != (name == "hit") {
						b.Fatal(name)
					}
					i += 7919
				}
			})
		}
	}
}

// BenchmarkText is a text list from its bytes to serving.
func BenchmarkText(b *testing.B) {
	for _, n := range sizes() {
		data := textList(randomHashes(1, n))
		b.Run(sizeName(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				runtime.KeepAlive(build(b, data))
			}
		})
	}
}

// BenchmarkJSON is to be compared with BenchmarkJSONMap.
func BenchmarkJSON(b *testing.B) {
	hashes := randomHashes(1, million)
	for name, entry := range map[string]func([]byte, int, sources.EKHash) []byte{"plain": plainEntry, "named": namedEntry} {
		data := jsonList(hashes, entry)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				runtime.KeepAlive(build(b, data))
			}
		})
	}
}

// BenchmarkJSONMap decodes a plain list by encoding/json and puts it into a map.
func BenchmarkJSONMap(b *testing.B) {
	data := jsonList(randomHashes(1, million), plainEntry)
	b.Run("plain", func(b *testing.B) {
		for b.Loop() {
			var decoded struct {
				Keys []string `json:"keys"`
			}
			if err := json.Unmarshal(data, &decoded); err != nil {
				b.Fatal(err)
			}
			m := map[sources.EKHash]struct{}{}
			for _, k := range decoded.Keys {
				var h sources.EKHash
				hex.Decode(h[:], []byte(k))
				m[h] = struct{}{}
			}
			runtime.KeepAlive(m)
		}
	})
}
