package certfetch_test

import (
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certfetch"
)

// FuzzCacheRecord reads records that somebody has written who may write the file. What is accepted is within the limits, is kept by its own
// name, and is what it is when it is written again.
func FuzzCacheRecord(f *testing.F) {
	for _, seed := range certfetch.SampleRecords() {
		f.Add(seed)
	}
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := certfetch.CheckRecord(content); err != nil {
			t.Fatal(err)
		}
	})
}
