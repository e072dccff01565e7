package eventlog_test

import (
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog"
)

// BenchmarkJudge reads and judges the log of a real server with 50 KB and 158 events, quoted in the PCRs 0 to 7.
func BenchmarkJudge(b *testing.B) {
	for _, f := range fieldLogs(b) {
		if f.name != "gdc-host-locality3-dma.bin" {
			continue
		}
		pcrs := f.pcrs(b, "sha256")
		for pcr := range pcrs {
			if pcr > 7 {
				delete(pcrs, pcr)
			}
		}
		b.SetBytes(int64(len(f.data)))
		b.ReportAllocs()
		for b.Loop() {
			l, err := eventlog.Parse(f.data)
			if err != nil {
				b.Fatal(err)
			}
			if j, err := l.Judge("sha256", pcrs); err != nil || j.SecureBoot != "disabled" {
				b.Fatal(err)
			}
		}
	}
}
