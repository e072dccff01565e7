package httplist

import (
	"net/http"
	"testing"
	"time"
)

// A server may ask for patience up to the interval, and what it says else is not
// heard: a huge Retry-After would be a way to freeze a list.
func TestRetryAfterValues(t *testing.T) {
	now := time.Now()
	const interval, otherwise = 30 * time.Second, firstPause
	for value, want := range map[string]time.Duration{
		"":                              otherwise,
		"5":                             5 * time.Second,
		" 5 ":                           5 * time.Second,
		"30":                            interval,
		"31":                            interval,
		"86400":                         interval,
		"9999999999":                    interval,
		"99999999999999999999999999":    interval,
		"0":                             otherwise,
		"-5":                            otherwise,
		"5s":                            otherwise,
		"1e9":                           otherwise,
		"soon":                          otherwise,
		"Mon, 02 Jan 2006 15:04:05":     otherwise,
		"Mon, 02 Jan 2006 15:04:05 GMT": otherwise,
		now.Add(time.Hour).UTC().Format(http.TimeFormat):           interval,
		now.Add(1000000 * time.Hour).UTC().Format(http.TimeFormat): interval,
	} {
		s, err := New(Config{URL: "https://example.org/", PollInterval: interval})
		if err != nil {
			t.Fatal(err)
		}
		s.pause.Store(int64(retryAfter(http.Header{"Retry-After": {value}}, now)))
		if got := s.afterFailure(0); got != want {
			t.Errorf("Retry-After %q: waits for %v, want %v", value, got, want)
		}
	}
}
