package config_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
	lists "github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A key that is not set has the default that the documentation names, and a key that is set
// reaches the source.
func TestHashFile(t *testing.T) {
	for text, want := range map[string]hashfile.Config{
		`source "hash_file" "lab" { path = "/etc/lab.txt" }`: {
			Path: "/etc/lab.txt", PollInterval: 30 * time.Second, MaxStaleness: 24 * time.Hour,
			MaxBytes: lists.DefaultMaxBytes,
		},
		`{"source": {"hash_file": {"lab": {"path": "/etc/lab.txt", "poll_interval": "1s", "max_staleness": "48h",
			"max_bytes": 1000, "allow_empty": true, "attributes": false}}}}`: {
			Path: "/etc/lab.txt", PollInterval: time.Second, MaxStaleness: 48 * time.Hour,
			MaxBytes: 1000, AllowEmpty: true,
		},
	} {
		m := mustParse(t, text).Members[0]
		if d := cmp.Diff(any(want), m.Config); d != "" {
			t.Errorf("%s (-want +got):\n%s", text, d)
		}
		if m.NoAttributes != strings.Contains(text, `"attributes": false`) {
			t.Errorf("%s: no attributes is %v", text, m.NoAttributes)
		}
	}
}

// A mistake in a list's configuration is refused, by its place.
func TestHashFileProblems(t *testing.T) {
	for keys, want := range map[string]string{
		``:                                  `path: is missing: write path = "/etc/tpm/machines.txt"`,
		`path = "/x" poll_interval = "1"`:   `poll_interval: is the string "1", but must be a duration`,
		`path = "/x" poll_interval = "1ms"`: `poll_interval: is the string "1ms", but must be from 1s to 24h0m0s`,
		`path = "/x" max_staleness = "0s"`:  `max_staleness: is the string "0s", but must be from 2s to 8784h0m0s`,
		`path = "/x" poll_interval = "24h"`: `max_staleness: is 24h0m0s, but must be at least twice poll_interval, ` +
			`which is 24h0m0s`,
		`path = "/x" max_bytes = "1000"`: `max_bytes: is the string "1000", but must be a number without quotes`,
		`path = "/x" max_bytes = 0`:      `max_bytes: is the number 0, but must be a whole number from 1 to 4294967295`,
		`path = "/x" max_bytes = 1.5`:    `max_bytes: is the number 1.5, but must be a whole number`,
		`path = "/x" allow_empty = 1`:    `allow_empty: is the number 1, but must be true or false`,
		`path = "/x" marker = "m"`:       `marker: unknown key; choose from allow_empty, attributes, max_bytes,`,
	} {
		text := fmt.Sprintf("source \"hash_file\" \"lab\" { %s }", strings.ReplaceAll(keys, `" `, "\"\n"))
		_, err := config.Parse(text, trustDomain)
		if err == nil || !strings.Contains(err.Error(), `source "hash_file" "lab": `+want) {
			t.Errorf("%s\n error %v, want %q", text, err, want)
		}
	}
}

// A deny rule may name a list without further keys: if the list's file goes away, the source keeps
// what it has loaded, and later cannot tell. A path that leads nowhere is a mistake.
func TestHashFileLoads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stolen.txt")
	text := factoryIn(t) + fmt.Sprintf("source \"hash_file\" \"stolen\" { path = %q }\n", path) +
		`allow "a" { any = ["factory"] } deny "s" { any = ["stolen"] }`
	if _, err := config.NewLoader().Load(t.Context(), text, trustDomain); err == nil ||
		!strings.Contains(err.Error(), `source "hash_file" "stolen": path`) ||
		!strings.Contains(err.Error(), "does not exist") {
		t.Errorf("Load without the file: %v", err)
	}
	// A folder, or a FIFO that nobody would ever write to, is no list.
	for bad, want := range map[string]string{filepath.Dir(path): "is a folder: name a file in it", fifo(t): "is not a regular file"} {
		text := strings.ReplaceAll(text, path, bad)
		if _, err := config.NewLoader().Load(t.Context(), text, trustDomain); err == nil ||
			!strings.Contains(err.Error(), `source "hash_file" "stolen": path: "`+bad+`" `+want) {
			t.Errorf("Load with %s: %v", bad, err)
		}
	}
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.NewLoader().Load(t.Context(), text, trustDomain); err != nil {
		t.Errorf("Load: %v: a list that is torn is no mistake of the configuration", err)
	}
}

// factoryIn configures a directory that exists.
func factoryIn(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("source \"hash_dir\" \"factory\" { path = %q }\n", t.TempDir())
}

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
