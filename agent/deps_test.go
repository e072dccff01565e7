package agent

import (
	"os/exec"
	"strings"
	"testing"
)

// The agent runs on every machine of a fleet, so its binary has neither the server's packages
// nor a database, a file watcher or an HTTP client.
func TestAgentBinaryStaysSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../cmd/tpm-attestor-agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d packages", len(deps))
	}
	const module = "github.com/spire-tpm/spire-tpm-attestor"
	for _, dep := range deps {
		for _, unwanted := range []string{
			module + "/server", module + "/sources", "go.etcd.io/bbolt", "github.com/fsnotify/fsnotify",
			"github.com/hashicorp/go-retryablehttp",
		} {
			if dep == unwanted || strings.HasPrefix(dep, unwanted+"/") {
				t.Errorf("the agent links %s", dep)
			}
		}
	}
}
