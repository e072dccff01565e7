package fetch_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// FuzzCacheRecord reads records that somebody has written who may write the file. What is accepted is within the limits, is kept by its own
// name, and is what it is when it is written again.
func FuzzCacheRecord(f *testing.F) {
	for _, seed := range fetch.SampleRecords() {
		f.Add(seed)
	}
	f.Add([]byte(`{"body": "Ym9keQ=="}`)) // its time is over when it begins
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := fetch.CheckRecord(content); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzWhatIsKept holds that what is kept in memory can be kept in the file, and is the
// same after a restart. An empty body is none: no Parse accepts it.
func FuzzWhatIsKept(f *testing.F) {
	f.Add(byte(0), "http://pki.example.org/a.crt", []byte("body"), int64(1e9+3600), "404", uint8(0))
	f.Add(byte(1), "\xff"+strings.Repeat("x", 2000), []byte{0}, int64(-1<<63), "", uint8(255))
	f.Add(byte(2), "", []byte("{}"), int64(1<<63-1), "\x00\u2028"+strings.Repeat("ü", 500), uint8(9))
	f.Fuzz(func(t *testing.T, kind byte, url string, body []byte, wanted int64, problem string, failures uint8) {
		if len(url) > fetch.MaxURL || len(body) == 0 || len(body) > 64<<10 {
			return
		}
		kinds := []fetch.Kind{fetch.Issuer, fetch.EKCertificate, fetch.CRL.Of("\xff")}
		err := fetch.CheckKept(kinds[int(kind)%len(kinds)], url, body, time.Unix(wanted, 0), problem, failures)
		if err != nil {
			t.Fatal(err)
		}
	})
}
