package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/agent/swtpmtest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
)

// theBoot is how the machine of these tests has booted.
func theBoot(kernel string) *eventlogtest.Log {
	l := eventlogtest.Boot{
		Banks: []string{"sha1", "sha256"}, Images: [][]byte{[]byte("boot loader"), []byte(kernel)},
	}.Log()
	return l.Add(1, eventlogtest.CRTMVersion, []byte("Serial Number 4711"))
}

// bootedTPM returns the TPM of a machine that has booted.
func bootedTPM(t *testing.T) *swtpmtest.TPM {
	t.Helper()
	tpm := swtpmtest.Start(t, swtpmtest.Options{Blank: true})
	for _, e := range theBoot("6.1.0-49").Events {
		if e.Extends() {
			tpm.Extend(int(e.PCR), map[string][]byte{"sha1": e.Digest("sha1"), "sha256": e.Digest("sha256")})
		}
	}
	return tpm
}

// writeLogs writes the event logs of the machine and of others.
func writeLogs(folder string) error {
	insecure := eventlogtest.Boot{SecureBoot: []byte{0}}.Log()
	var all []error
	for name, content := range map[string][]byte{
		"boot.log":     theBoot("6.1.0-49").Bytes(),
		"newer.log":    theBoot("6.1.0-50").Bytes(),
		"insecure.log": insecure.Bytes(),
		"sha1.log":     eventlogtest.Boot{Banks: []string{"sha1"}}.Log().SHA1Form(),
		"empty.log":    {},
	} {
		all = append(all, os.WriteFile(filepath.Join(folder, name), content, 0o600))
	}
	return errors.Join(all...)
}

// What show prints as JSON of the logs of real machines is what these machines say, and nothing in it
// identifies them unless somebody asks.
func TestBootShowOfRealLogs(t *testing.T) {
	t.Parallel()
	dir := attestortest.EventLogs(t)
	index, err := os.ReadFile(filepath.Join(dir, "pcrs.json"))
	if err != nil {
		t.Fatal(err)
	}
	var facts map[string]struct {
		Replayed map[string]map[string]string
	}
	if err := json.Unmarshal(index, &facts); err != nil {
		t.Fatal(err)
	}
	for name, want := range facts {
		var out, stderr strings.Builder
		args := []string{"boot", "show", "--events", "--output", "json", "--log", filepath.Join(dir, name)}
		if code := run(t.Context(), args, streams{strings.NewReader(""), &out, &stderr}); code != 0 {
			t.Errorf("%s: exit code %d: %s", name, code, &stderr)
			continue
		}
		var got struct {
			Version    int
			Replayed   map[string]map[string]string
			SecureBoot string
		}
		if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
			t.Fatal(err)
		}
		if got.Version != 1 || !slices.Contains([]string{"enabled", "disabled", "unknown"}, got.SecureBoot) {
			t.Errorf("%s: version %d, Secure Boot %q", name, got.Version, got.SecureBoot)
		}
		for bank, pcrs := range want.Replayed {
			for pcr, value := range pcrs {
				if got.Replayed[bank][pcr] != value {
					t.Errorf("%s: PCR %s, %s: %s, want %s", name, pcr, bank, got.Replayed[bank][pcr], value)
				}
			}
		}
		for _, private := range []string{"root=", "UUID", "HD("} {
			if strings.Contains(out.String(), private) {
				t.Errorf("%s: %q is shown", name, private)
			}
		}
	}
}
