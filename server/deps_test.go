package server_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/spire-tpm/spire-tpm-attestor"

// goList runs go list and returns its lines.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %s: %v", strings.Join(args, " "), err)
	}
	return strings.Fields(string(out))
}

func isStandard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// under says whether a path is a folder, or below it.
func under(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// An arrow forbids imports, by names of packages below the module.
type arrow struct {
	because string
	forbids func(name, dep string) bool
}

var arrows = []arrow{
	{"sources uses the standard library only", func(name, dep string) bool {
		return name == "sources" && !isStandard(dep)
	}},
	{"a source knows sources, attestor for what an EK is, and event logs", func(name, dep string) bool {
		return under(name, "sources") && !strings.HasSuffix(name, "test") && under(dep, module) &&
			!under(dep, module+"/sources") && dep != module+"/attestor" && dep != module+"/attestor/eventlog"
	}},
	{"an event log is judged with the standard library, and without I/O", func(name, dep string) bool {
		return name == "attestor/eventlog" && (!isStandard(dep) || dep == "os" || dep == "net" || dep == "time")
	}},
	{"attestor knows nothing but itself", func(name, dep string) bool {
		return under(name, "attestor") && under(dep, module) && !under(dep, module+"/attestor")
	}},
	{"server/config is the only package of the server that knows HCL", func(name, dep string) bool {
		return under(dep, "github.com/hashicorp/hcl") && name != "server/config" && !under(name, "agent")
	}},
	{"server/config is the only package that knows the kinds of sources", func(name, dep string) bool {
		return strings.HasPrefix(dep, module+"/sources/") && dep != module+"/sources/policy" &&
			dep != module+"/sources/admission" && name != "server/config" && !under(name, "sources") &&
			!under(name, "cmd/tpm-attestor")
	}},
	{"only the operator's tool fills mirrors", func(name, dep string) bool {
		return dep == module+"/sources/certs/mirror" && !under(name, "cmd/tpm-attestor")
	}},
	{"server/handover imports nothing of the module, server/composer only it, server/config and server/guard", func(
		name, dep string,
	) bool {
		return name == "server/handover" && under(dep, module) || name == "server/composer" && under(dep, module) &&
			dep != module+"/server/handover" && dep != module+"/server/config" && dep != module+"/server/guard"
	}},
	{"the agent knows neither server nor sources", func(name, dep string) bool {
		return under(name, "agent") && (under(dep, module+"/server") || under(dep, module+"/sources"))
	}},
	{"the server does not know the agent", func(name, dep string) bool {
		return under(name, "server") && under(dep, module+"/agent")
	}},
	{"each plugin calls its own half, and nothing calls a command", func(name, dep string) bool {
		return name == "cmd/tpm-attestor-server" && under(dep, module+"/agent") ||
			name == "cmd/tpm-attestor-agent" && under(dep, module+"/server") ||
			under(dep, module+"/cmd") && (!under(name, "cmd") || !under(dep, module+"/cmd/internal")) &&
				!under(name, "cmd/tpm-attestor")
	}},
	{"a command of the operator's tool knows what commands share, and no other command", func(name, dep string) bool {
		const tool = "cmd/tpm-attestor"
		command, ok := strings.CutPrefix(dep, module+"/"+tool+"/internal/")
		return ok && name != tool+"/internal/root" &&
			!slices.Contains([]string{"cli", "clitest", "ekfile", "finding", "pcrs", "preview", "root"}, command)
	}},
	{"one package puts the operator's tool together, and cli knows none of it", func(name, dep string) bool {
		const tool = "cmd/tpm-attestor"
		return dep == module+"/"+tool+"/internal/root" && name != tool && name != tool+"/gendocs" ||
			name == tool+"/internal/cli" && under(dep, module)
	}},
	{"the contract of sources knows nobody, and the policy the contract alone", func(name, dep string) bool {
		return name == "sources" && under(dep, module) ||
			name == "sources/policy" && under(dep, module) && dep != module+"/sources"
	}},
	{"a source does not know who runs it", func(name, dep string) bool {
		runs := under(dep, module+"/sources/admission") || under(dep, module+"/sources/policy")
		return runs && under(name, "sources") && name != "sources/admission" && name != "sources/sourcetest"
	}},
	{"finding a chain does no I/O", func(name, dep string) bool {
		return name == "sources/certs" && (dep == "os" || dep == "net" || dep == "net/http" ||
			under(dep, module+"/sources/certs/fetch") || under(dep, module+"/sources/boltfile"))
	}},
	{"a list knows neither its documents nor its origins, and they do not know each other", func(name, dep string) bool {
		parts := []string{"bootprofiles", "ekhashes", "file", "web"}
		for _, part := range parts {
			if dep == module+"/sources/list/"+part &&
				(name == "sources/list" || strings.HasPrefix(name, "sources/list/")) {
				return true
			}
		}
		return false
	}},
	{"helpers of tests are for tests", func(name, dep string) bool {
		return under(dep, module) && strings.HasSuffix(dep, "test") && !strings.HasSuffix(name, "test")
	}},
}

// If a dependency points the wrong way, a protocol package gets to know HCL, or an agent links
// a database: this keeps the arrows as the documentation draws them.
func TestDependencies(t *testing.T) {
	lines := goList(t, "-f", `{{ $p := .ImportPath }}{{ range .Imports }}{{ $p }}>{{ . }} {{ end }}`, module+"/...")
	if len(lines) < 100 {
		t.Fatalf("go list found %d imports only", len(lines))
	}
	for _, line := range lines {
		pkg, dep, _ := strings.Cut(line, ">")
		name := strings.TrimPrefix(strings.TrimPrefix(pkg, module), "/")
		for _, a := range arrows {
			if a.forbids(name, dep) {
				t.Errorf("%s imports %s: %s", pkg, dep, a.because)
			}
		}
	}
}

// The binaries link what they need and no more: an agent is on every machine.
func TestWhatBinariesLink(t *testing.T) {
	// What reads a stranger's event log is written here (docs/design/0026-event-logs.md).
	nowhere := []string{"github.com/google/go-eventlog", "github.com/google/go-attestation"}
	for binary, forbidden := range map[string][]string{
		"cmd/tpm-attestor-agent": {
			module + "/server", module + "/sources", "go.etcd.io/bbolt", "github.com/fsnotify/fsnotify",
			"github.com/hashicorp/go-retryablehttp", "github.com/google/go-tpm-tools/simulator",
		},
		"cmd/tpm-attestor-server": {
			module + "/agent", module + "/sources/certs/mirror", "github.com/google/go-tpm-tools/simulator",
		},
		// What makes its manual pages is linked by cmd/tpm-attestor/gendocs alone.
		"cmd/tpm-attestor": {"github.com/spf13/cobra/doc", "github.com/cpuguy83/go-md2man"},
	} {
		forbidden = append(forbidden, nowhere...)
		for _, dep := range goList(t, "-deps", module+"/"+binary) {
			for _, f := range forbidden {
				if under(dep, f) {
					t.Errorf("%s links %s", binary, dep)
				}
			}
		}
	}
}
