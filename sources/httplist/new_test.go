package httplist_test

import (
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
)

// A configuration that cannot be meant is refused before anything runs, and no
// secret in it reaches a log.
func TestNewRefuses(t *testing.T) {
	const good = "https://example.org/tpm.json"
	for name, tt := range map[string]struct {
		cfg  httplist.Config
		want string
	}{
		"no URL":              {httplist.Config{}, "url is missing"},
		"plain HTTP":          {httplist.Config{URL: "http://example.org/"}, "not https://"},
		"no host":             {httplist.Config{URL: "https:///tpm.json"}, "not https://"},
		"no URL at all":       {httplist.Config{URL: "https://secret\x00/"}, "is malformed"},
		"user":                {httplist.Config{URL: "https://u:secret@example.org/"}, "contains a user"},
		"fragment":            {httplist.Config{URL: good + "#x"}, "fragment"},
		"certificate alone":   {httplist.Config{URL: good, ClientCertPath: "/x"}, "go together"},
		"key alone":           {httplist.Config{URL: good, ClientKeyPath: "/x"}, "go together"},
		"timeout":             {httplist.Config{URL: good, Timeout: -1}, "timeout is -1ns"},
		"poll interval":       {httplist.Config{URL: good, PollInterval: -time.Second}, "poll_interval is -1s"},
		"staleness":           {httplist.Config{URL: good, MaxStaleness: -time.Second}, "max_staleness is -1s"},
		"stale at once":       {httplist.Config{URL: good, MaxStaleness: time.Minute - 1}, "at least twice poll_interval"},
		"size":                {httplist.Config{URL: good, MaxBytes: -1}, "max_bytes is -1"},
		"size beyond":         {httplist.Config{URL: good, MaxBytes: 4 << 30}, "must be from 1 to"},
		"half a signature":    {httplist.Config{URL: good, PublicKeyPath: "/x"}, "signature_url is missing"},
		"signature elsewhere": {signed("https://elsewhere.org/sig"), "a different host"},
		"signature by HTTP":   {signed("http://example.org/sig"), "signature_url is not https"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := httplist.New(tt.cfg)
			webtest.WantError(t, err, tt.want)
		})
	}
	_, err := httplist.New(httplist.Config{URL: "http://u@x/#y", Timeout: -1})
	webtest.WantError(t, err, "https", "user", "fragment", "timeout") // all at once
	elsewhere := signed("http://u:secret@elsewhere.org/sig")
	elsewhere.Timeout = -1
	_, err = httplist.New(elsewhere)
	webtest.WantError(t, err, "signature_url is not https", "signature_url contains a user", "signature_url is on a different host", "timeout")
}

func signed(signature string) httplist.Config {
	return httplist.Config{
		URL: "https://example.org/l", SignatureURL: signature, PublicKeyPath: "/x", ListID: "fleet",
	}
}
