package certs

import (
	"slices"
	"testing"
	"time"
)

// Whatever is in a CA file, reading it ends well, uses nothing of a file that is
// refused, and refuses one that is cut off within a certificate.
func FuzzCAFile(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----\n-----BEGIN X-----"))
	f.Add([]byte{0x30, 0x82, 0xff, 0xff})
	now := time.Date(2026, 6, 1, 0, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, _, err := ParseFile(data)
		if (err == nil) != (len(entries) > 0) {
			t.Fatalf("%d entries, error %v", len(entries), err)
		}
		all, warnings, err := NewAnchors(t.Context(), []File{{Bundle: "b", Path: "p", Entries: entries}}, EK(), now)
		if err != nil || all.valid > len(entries) || len(warnings)+len(all.byName) < min(1, len(entries)) {
			t.Errorf("%d entries: %d valid, warnings %q, error %v", len(entries), all.valid, warnings, err)
		}
		cut := slices.Concat(data, []byte("\n-----BEGIN CERTIFICATE-----\nMIIB"))
		if entries, _, err := ParseFile(cut); err == nil || len(entries) > 0 {
			t.Errorf("cut off: %d entries, error %v", len(entries), err)
		}
	})
}
