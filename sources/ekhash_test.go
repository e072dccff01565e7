package sources_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// TestParseEKHash: what is almost a hash must not be accepted, or a list that denies machines would
// let the intended machine pass.
func TestParseEKHash(t *testing.T) {
	const digits = "0123456789abcdef"
	good := strings.Repeat(digits, 4)
	for _, s := range []string{good, strings.ToUpper(good), good[:32] + strings.ToUpper(good[32:])} {
		h, err := sources.ParseEKHash(s)
		if err != nil || h.String() != good {
			t.Errorf("%q: %v, %v", s, h, err)
		}
	}
	const count, kind = " characters instead of a hash's 64 hex digits", "64 characters that are not all hex digits"
	for s, want := range map[string]string{
		"": "0" + count, "abc": "3" + count, good[1:]: "63" + count, good + "0": "65" + count, " " + good: "65" + count,
		good + "\n": "65" + count, good + "\x00": "65" + count, "0x" + good: "66" + count, good[:62] + "é": kind,
		good[:63] + "g": kind, " " + good[1:]: kind, "0x" + good[2:]: kind, good[:63] + "\x00": kind,
		"../" + good[3:]: kind,
	} {
		if h, err := sources.ParseEKHash(s); err == nil || err.Error() != want || h != (sources.EKHash{}) {
			t.Errorf("%q: %v, %v, want %s", s, h, err, want)
		}
	}
	for c := range 256 {
		s := string(append([]byte(good[:63]), byte(c)))
		_, err := sources.ParseEKHash(s)
		if isDigit := strings.IndexByte(digits+"ABCDEF", byte(c)) >= 0; isDigit != (err == nil) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// TestEKHashText: a hash is text in JSON, as a value and as a key, and what cannot be read
// changes nothing.
func TestEKHashText(t *testing.T) {
	h, err := sources.ParseEKHash(strings.Repeat("0A", 32))
	if err != nil {
		t.Fatal(err)
	}
	in := map[sources.EKHash]sources.EKHash{h: h}
	b, err := json.Marshal(in)
	if want := `{"` + h.String() + `":"` + h.String() + `"}`; err != nil || string(b) != want {
		t.Errorf("%s, %v, want %s", b, err, want)
	}
	var out map[sources.EKHash]sources.EKHash
	if err := json.Unmarshal(b, &out); err != nil || out[h] != h {
		t.Errorf("%v, %v", out, err)
	}
	was := h
	if err := h.UnmarshalText([]byte(strings.Repeat("0g", 32))); err == nil || h != was {
		t.Errorf("%v, %v", h, err)
	}
}
