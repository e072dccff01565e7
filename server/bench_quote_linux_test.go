package server_test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
)

// BenchmarkServerQuoteOverPlain takes turns between attestations of a machine to a server that asks
// for nothing but the secret, and to one that asks for eight PCRs as well, without and with a real
// event log of 50 KB. It reports the ratio of their medians. A quote is one more signature to verify,
// which by itself makes the cryptography of BenchmarkServerFloor 1.5 (P-256) or 1.7 times as much (RSA).
func BenchmarkServerQuoteOverPlain(b *testing.B) {
	for _, ek := range benchEKs {
		tpm := fieldTPM(b, attestortest.Options{EK: ek}, "gdc-host-locality3-dma.bin")
		sources := oneHashDir(hashDir(b, tpm))
		plain := benchAttest(b, benchPlugin(b, sources), tpm)
		for _, q := range []struct{ name, block string }{
			{"pcrs", `quote { pcrs = [0, 1, 2, 3, 4, 5, 6, 7] }`},
			{"log", `quote { pcrs = [0, 1, 2, 3, 4, 5, 6, 7] event_log = "required" selectors = [7] }`},
		} {
			b.Run(fmt.Sprintf("ek=%s/%s", ek, q.name), func(b *testing.B) {
				b.ReportAllocs()
				over(b, "plain-ns", "quote-ns", plain, benchAttest(b, benchPlugin(b, sources+q.block), tpm))
			})
		}
	}
}

// fieldTPM returns a machine that has booted like a real one, and sends its log.
func fieldTPM(tb testing.TB, o attestortest.Options, name string) *attestortest.TPM {
	tb.Helper()
	dir := attestortest.EventLogs(tb)
	index, err := os.ReadFile(filepath.Join(dir, "pcrs.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var facts map[string]struct {
		Replayed map[string]map[string]string
	}
	if err := json.Unmarshal(index, &facts); err != nil {
		tb.Fatal(err)
	}
	o.PCRs = map[string]map[int][]byte{}
	for bank, pcrs := range facts[name].Replayed {
		o.PCRs[bank] = map[int][]byte{}
		for pcr, value := range pcrs {
			index, err := strconv.Atoi(pcr)
			if err != nil {
				tb.Fatal(err)
			}
			if o.PCRs[bank][index], err = hex.DecodeString(value); err != nil {
				tb.Fatal(err)
			}
		}
	}
	if o.EventLog, err = os.ReadFile(filepath.Join(dir, name)); err != nil {
		tb.Fatal(err)
	}
	return attestortest.New(tb, o)
}
