package examples_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	"github.com/spiffe/spire-plugin-sdk/plugintest"
	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/bootprofiles"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Lists and boot profiles, as the documentation and the examples show them, are such.
func TestListsAreRead(t *testing.T) {
	lists, profiles := map[string]string{}, 0
	for _, file := range repoFiles(t, ".txt", ".json") {
		if strings.HasPrefix(file, "examples/") && file != dashboardFile {
			lists[file] = read(t, file)
		}
	}
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			isJSON := b.lang() == "json" && (strings.Contains(b.text, `"keys": [`) || strings.Contains(b.text, `"profiles": [`))
			if isJSON || b.lang() == "text" && strings.HasPrefix(b.text, "# hash ") {
				lists[fmt.Sprintf("%s:%d", b.file, b.line)] = b.text
			}
		}
	}
	for place, text := range lists {
		if strings.Contains(text, `"profiles"`) {
			profiles++
			if _, err := bootprofiles.Parse([]byte(text), bootprofiles.Options{}); err != nil {
				t.Errorf("%s: %v", place, err)
			}
			continue
		}
		path := filepath.Join(t.TempDir(), "list")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		source, err := hashfile.New(hashfile.Config{Path: path})
		must(t, err)
		if err := source.Load(t.Context()); err != nil {
			t.Errorf("%s: %v", place, err)
		}
	}
	if len(lists)-profiles < 4 || profiles < 1 {
		t.Errorf("found only %d lists, and boot profiles %d times: is the test looking in the right place?",
			len(lists)-profiles, profiles)
	}
}

// valuesPlugins returns the plugins of both sides in values.yaml, each in a
// configuration of SPIRE in the form in which the chart writes it: JSON with
// sorted keys, the plugins of a type in a list. No chart is run, and nothing of
// values.yaml is read but plugin_cmd and plugin_data.
func valuesPlugins(t *testing.T) map[string]string {
	t.Helper()
	values := read(t, "examples/kubernetes/values.yaml")
	rendered := map[string]string{}
	for _, cmd := range []string{"/opt/tpm/tpm-attestor-server", "/opt/tpm/tpm-attestor-agent"} {
		_, rest, found := strings.Cut(values, "plugin_cmd: "+cmd)
		_, rest, hasData := strings.Cut(rest, "plugin_data:")
		if !found || !hasData {
			t.Fatalf("values.yaml does not configure %s", cmd)
		}
		var data any
		if err := json.NewDecoder(strings.NewReader(rest)).Decode(&data); err != nil {
			t.Fatalf("plugin_data of %s: %v", cmd, err)
		}
		tpm := map[string]any{"plugin_cmd": cmd, "plugin_checksum": "", "plugin_data": data}
		attestors := []any{map[string]any{"tpm": tpm}}
		text, err := json.MarshalIndent(map[string]any{"plugins": map[string]any{"NodeAttestor": attestors}}, "", "  ")
		must(t, err)
		rendered[strings.TrimPrefix(cmd, "/opt/tpm/tpm-attestor-")] = string(text)
	}
	return rendered
}

// attestWith configures the real plugin and returns how a TPM attests to it.
func attestWith(t *testing.T, config string) func(tpm *attestortest.TPM) codes.Code {
	t.Helper()
	var client nodeattestorv1.NodeAttestorPluginClient
	var configure configv1.ConfigServiceClient
	plugin := server.New()
	plugintest.ServeInBackground(t, plugintest.Config{
		PluginServer:   nodeattestorv1.NodeAttestorPluginServer(plugin),
		PluginClient:   &client,
		ServiceServers: []pluginsdk.ServiceServer{configv1.ConfigServiceServer(plugin)},
		ServiceClients: []pluginsdk.ServiceClient{&configure},
	})
	_, err := configure.Configure(t.Context(), &configv1.ConfigureRequest{
		CoreConfiguration: &configv1.CoreConfiguration{TrustDomain: "example.org"},
		HclConfiguration:  config,
	})
	must(t, err)
	return func(tpm *attestortest.TPM) codes.Code {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := client.Attest(ctx)
		must(t, err)
		must(t, stream.Send(&nodeattestorv1.AttestRequest{
			Request: &nodeattestorv1.AttestRequest_Payload{Payload: tpm.Payload(t)},
		}))
		for {
			resp, err := stream.Recv()
			if err != nil || resp.GetAgentAttributes() != nil {
				return status.Code(err)
			}
			must(t, stream.Send(&nodeattestorv1.AttestRequest{Request: &nodeattestorv1.AttestRequest_ChallengeResponse{
				ChallengeResponse: tpm.Answer(t, resp.GetChallenge()),
			}}))
		}
	}
}

// publish writes a mounted ConfigMap as the kubelet does.
func publish(t *testing.T, dir string, version int, files map[string]string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o755))
	data := filepath.Join(dir, "..data")
	before, _ := os.Readlink(data)
	name := fmt.Sprintf("..2026_11_23_10_00_00.%09d", version)
	must(t, os.Mkdir(filepath.Join(dir, name), 0o755))
	for file, content := range files {
		must(t, os.WriteFile(filepath.Join(dir, name, file), []byte(content), 0o600))
	}
	must(t, os.Symlink(name, data+"_tmp"))
	must(t, os.Rename(data+"_tmp", data))
	for file := range files {
		if err := os.Symlink(filepath.Join("..data", file), filepath.Join(dir, file)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	if before != "" {
		must(t, os.RemoveAll(filepath.Join(dir, before)))
	}
}

// The plugins of examples/kubernetes: the plugin_data of both sides is valid, and
// the real plugin follows ConfigMaps as the kubelet changes them, to admit a node,
// to refuse one that is stolen and to refuse one that was removed.
func TestKubernetes(t *testing.T) {
	ca := attestortest.NewCA(t, "Example EK CA")
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: ca})
	dir, version := t.TempDir(), 0
	lists := map[string]string{
		"machines.txt": read(t, "examples/kubernetes/lists/machines.txt"),
		"stolen.json":  read(t, "examples/kubernetes/lists/stolen.json"),
	}
	apply := func() {
		version++
		publish(t, filepath.Join(dir, "lists"), version, lists)
	}
	apply()
	publish(t, filepath.Join(dir, "cas"), 1, map[string]string{"vendor.pem": string(ca.PEM())})

	configs := map[string]string{}
	for role, text := range valuesPlugins(t) {
		data, err := snippet{text: text}.data()
		must(t, err)
		if data.role != role {
			t.Errorf("the configuration of the %s is taken for the %s's", role, data.role)
		}
		configs[role] = strings.ReplaceAll(data.text, "/etc/tpm/", dir+"/")
		if notes := validate(t, role, configs[role]); len(notes) > 0 {
			t.Errorf("the %s says %q", role, notes)
		}
	}

	attest := attestWith(t, configs["server"])
	until := func(want codes.Code, after string) {
		t.Helper()
		for begun := time.Now(); ; {
			got := attest(tpm)
			if got == want {
				return
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("after %s: %v, want %v", after, got, want)
			}
		}
	}
	until(codes.PermissionDenied, "the start")
	lists["machines.txt"] += tpm.EKHash() + " node-1\n"
	apply()
	until(codes.OK, "listing it")
	lists["stolen.json"] = `{"serial": 2, "keys": ["` + tpm.EKHash() + `"]}`
	apply()
	until(codes.PermissionDenied, "reporting it stolen")
	lists["stolen.json"] = `{"serial": 3, "keys": []}`
	apply()
	until(codes.OK, "finding it again")
	lists["machines.txt"] = read(t, "examples/kubernetes/lists/machines.txt")
	apply()
	until(codes.PermissionDenied, "removing it")
}

// The script of examples/git publishes each commit whole, and nothing where the
// repository is away.
func TestGit(t *testing.T) {
	repository, folder := t.TempDir(), filepath.Join(t.TempDir(), "tpm")
	run := func(name string, args ...string) error {
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
		}
		return nil
	}
	commit := func(list string) {
		must(t, os.WriteFile(filepath.Join(repository, "machines.txt"), []byte(list), 0o600))
		must(t, run("git", "-C", repository, "add", "-A"))
		must(t, run("git", "-C", repository, "commit", "-q", "-m", "list"))
	}
	// As systemd starts it.
	_, command, _ := strings.Cut(read(t, "examples/git/tpm-list.service"), "\nExecStart=")
	command, _, _ = strings.Cut(command, "\n")
	args := strings.Fields(strings.NewReplacer(
		"/opt/spire/pull.sh", filepath.Join(root, "examples", "git", "pull.sh"),
		"https://git.example.org/tpm.git", repository, "/srv/tpm", folder,
	).Replace(command))
	pull := func() error { return run(args[0], args[1:]...) }
	must(t, run("git", "init", "-q", "-b", "main", repository))
	one, two := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
	commit(one.EKHash.String() + "\n")
	must(t, pull())

	source, err := hashfile.New(hashfile.Config{Path: filepath.Join(folder, "current", "machines.txt")})
	must(t, err)
	want := func(listsOne, listsTwo bool) {
		t.Helper()
		must(t, source.Load(t.Context()))
		v, err := source.Check(t.Context(), one)
		must(t, err)
		w, err := source.Check(t.Context(), two)
		must(t, err)
		if v.Listed != listsOne || w.Listed != listsTwo {
			t.Errorf("the first is listed: %v, the second: %v", v.Listed, w.Listed)
		}
	}
	want(true, false)
	must(t, pull()) // of what is there already
	want(true, false)
	commit(two.EKHash.String() + "\n")
	must(t, pull())
	want(false, true)
	must(t, os.Rename(repository, repository+".away"))
	if err := pull(); err == nil {
		t.Error("a repository that is away was pulled")
	}
	want(false, true)
	left, err := filepath.Glob(filepath.Join(folder, "*"))
	must(t, err)
	if len(left) > 4 { // clone.git, current, the commit and its archive
		t.Errorf("what is left behind grows: %q", left)
	}
}
