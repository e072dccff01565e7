package boot

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/eventlog/eventlogtest"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
)

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
		if code := clitest.Run(t.Context(), New, args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &stderr}); code != 0 {
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

// A log names what its machine likes. Without --data, show prints only names and texts that firmware of all
// machines has; with it, nothing that steers a terminal.
func TestBootShowOfStrangeNames(t *testing.T) {
	t.Parallel()
	const secret = "SN4711"
	l := eventlogtest.Boot{}.Log()
	for _, name := range []string{secret, "Boot" + secret, "db" + secret, "\x1b]0;" + secret, "\u009b31m" + secret, "\u202e" + secret} {
		utf16 := eventlogtest.Variable(eventlogtest.Global, "", nil)[:32]
		for _, r := range name {
			utf16 = append(utf16, byte(r), byte(r>>8))
		}
		utf16[16] = byte((len(utf16) - 32) / 2)
		for _, typ := range []uint32{eventlogtest.VariableConfig, eventlogtest.VariableAuthority, 0x80000002, 0x8000000c} {
			l.Add(1, typ, utf16)
		}
		l.Text(1, name)
	}
	path := filepath.Join(t.TempDir(), "strange.log")
	if err := os.WriteFile(path, l.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{{"--events"}, {"--events", "--output", "json"}, {"--data"}, {"--data", "--output", "json"}} {
		var out, stderr strings.Builder
		args := append([]string{"boot", "show", "--log", path}, flags...)
		if code := clitest.Run(t.Context(), New, args, cli.Streams{In: strings.NewReader(""), Out: &out, Err: &stderr}); code != 0 {
			t.Fatalf("%q: exit code %d: %s", flags, code, &stderr)
		}
		said := out.String() + stderr.String()
		if got := strings.Contains(said, secret); got != slices.Contains(flags, "--data") {
			t.Errorf("%q: %q is shown: %v", flags, secret, got)
		}
		if strings.ContainsAny(said, "\x1b\u009b\u202e") || strings.Contains(said, `\u00`) {
			t.Errorf("%q: control characters: %q", flags, said)
		}
		if !strings.Contains(said, "SecureBoot") || !strings.Contains(said, "Calling EFI Application from Boot Option") {
			t.Errorf("%q: %s", flags, said)
		}
	}
}
