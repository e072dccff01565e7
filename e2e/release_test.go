package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// release returns the folder of a release: the one that RELEASE_DIR names, or a new one.
func release(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("RELEASE_DIR"); dir != "" {
		return dir
	}
	dir := filepath.Join(t.TempDir(), "release")
	build := exec.CommandContext(t.Context(), "../packaging/build", dir)
	build.Env = append(os.Environ(), "ARCHS="+runtime.GOARCH, "TOOL_FOR=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("packaging/build: %v\n%s", err, out)
	}
	return dir
}

// Operators take plugin_checksum from SHA256SUMS. SPIRE must start the plugin in the release's archive
// with that sum, and with no other: if the sums were of something else, no server would start after an
// upgrade.
func TestChecksumOfARelease(t *testing.T) {
	dir := release(t)
	sums, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^([0-9a-f]{64})  ((\S+_linux_` + runtime.GOARCH + `)/tpm-attestor-server)$`).FindSubmatch(sums)
	if line == nil {
		t.Fatalf("SHA256SUMS has no line for the server's plugin:\n%s", sums)
	}
	sum, program, archive := string(line[1]), string(line[2]), string(line[3])
	unpacked := t.TempDir()
	tar := exec.CommandContext(t.Context(), "tar", "-C", unpacked, "-xzf", filepath.Join(dir, archive+".tar.gz"))
	if out, err := tar.CombinedOutput(); err != nil {
		t.Fatalf("unpack the archive: %v\n%s", err, out)
	}

	s := newSite(t, "quickstart")
	layouts[s.example](s)
	config := func(sum string) spiretest.ServerConfig {
		text := strings.Replace(s.moved(s.read("server.conf")), `plugin_cmd = "`+s.programs.ServerPlugin+`"`,
			`plugin_cmd = "`+filepath.Join(unpacked, program)+`"`+"\n    plugin_checksum = \""+sum+`"`, 1)
		if !strings.Contains(text, sum) {
			t.Fatalf("the configuration has no plugin_cmd to replace:\n%s", text)
		}
		return spiretest.ServerConfig{Whole: text}
	}
	s.quickstart(s.server(config(sum)))

	wrong := config(strings.Repeat("0", len(sum)))
	wrong.Dir = s.folder("wrong")
	server, err := s.programs.StartServer(s.ctx, wrong)
	if err == nil {
		server.Stop()
		t.Error("SPIRE starts the plugin with another sum")
	} else if !strings.Contains(err.Error(), "checksums did not match") {
		t.Errorf("SPIRE does not start, but not for the sum: %v", err)
	}
}
