package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// writeIn writes a file in a folder and returns its path.
func writeIn(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A tool that did not follow plugin_data_file would check another configuration than SPIRE loads: without the trust
// domain, and without the CredentialComposer, whose socket has to be the same.
func TestDataFileIsFollowed(t *testing.T) {
	dir := t.TempDir()
	attestor := writeIn(t, dir, "attestor.hcl", "\ufeff"+factory+
		`svid_key = "required" svid_key_socket = "/run/spire/tpm/svid.sock"`)
	inJSON := writeIn(t, dir, "attestor.json", `{"source": {"hash_dir": {"factory": {"path": "/srv/tpm/hashes"}}},
		"svid_key": "required", "svid_key_socket": "/run/spire/tpm/svid.sock"}`)
	composer := writeIn(t, dir, "composer.hcl", `socket = "/run/spire/tpm/svid.sock"`)
	other := writeIn(t, dir, "other.hcl", "\n\n"+`socket = "/run/spire/tpm/other.sock"`)
	server := func(attestor, composer string) *config.File {
		return config.NewLoader().Open(t.Context(), fmt.Sprintf(`server { trust_domain = "example.org" } plugins {
			NodeAttestor "tpm" { plugin_data_file = %q }
			CredentialComposer "tpm" { plugin_data_file = %q }
		}`, attestor, composer))
	}
	t.Chdir(dir)
	for _, name := range []string{attestor, inJSON, "attestor.hcl"} { // a relative path begins at the working directory
		c, err := server(name, composer).Parse()
		if err != nil || c.TrustDomain.Name() != "example.org" || len(c.Members) != 1 || c.SVIDKey != config.SVIDKeyRequired {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	_, err := server(attestor, other).Parse()
	want := `CredentialComposer "tpm": socket: ` + other + `:3: is "/run/spire/tpm/other.sock", but svid_key_socket`
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	names := server(attestor, other).DataFiles()
	if len(names) != 2 || names[0].Path != attestor || names[1].Path != other {
		t.Errorf("%+v", names)
	}
}

// A mistake in a plugin_data_file is reported with that file: otherwise its author would look for it in the main file.
func TestDataFileLines(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct {
		text  string
		wants []string
	}{
		"keys.hcl": {
			"# who is in\nsource \"hash_dir\" \"a\" {\n  pth = \"/x\"\n}\nreattest = \"no\"\n" +
				"source \"ek_ca\" \"b\" {\n  ca_path = \"/x\"\n}\nallow \"one\" {\n  any = [\"a\", \"c\"]\n}\n",
			[]string{
				`allow "one": any: FILE:10: `, `reattest: FILE:5: is the string "no"`,
				`source "hash_dir" "a": path: FILE:2: is missing`, `source "hash_dir" "a": pth: FILE:3: unknown key`,
			},
		},
		"twice.hcl":  {factory + "reattest = true\n\nreattest = false\n", []string{`reattest: FILE:4: is set 2 times`}},
		"syntax.hcl": {"source \"hash_dir\" \"a\" {\n  path = \n", []string{`FILE:2: the configuration is not valid HCL: `}},
		"keys.json": {
			"{\n\"source\": {\n\"hash_dir\": {\n\"a\": {\n\"pth\": \"/x\"}}}}",
			[]string{`source "hash_dir" "a": path: FILE:4: is missing`, `source "hash_dir" "a": pth: FILE:5: unknown key`},
		},
		"lists.json": {
			"{\"source\": [{\"hash_dir\": [\n{\"a\": [{\"path\": \"/x\"}]},\n{\"b\": [{\n\"pth\": \"/x\"}]}]}]}",
			[]string{`source "hash_dir" "b": pth: FILE:4: unknown key`},
		},
		"syntax.json": {"{\n\"source\": x}", []string{`FILE:2: the configuration is not valid JSON: `}},
		"whole.hcl":   {"\nplugins {}\n", []string{`plugins: FILE:2: unknown key`, `source: FILE: no source is configured`}},
	} {
		file := writeIn(t, dir, name, tt.text)
		text := fmt.Sprintf(`plugins { NodeAttestor "tpm" { plugin_data_file = %q } }`, file)
		_, err := config.NewLoader().Open(t.Context(), text).Parse()
		for _, want := range tt.wants {
			if want = strings.ReplaceAll(want, "FILE", file); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", name, err, want)
			}
		}
	}
	file := writeIn(t, dir, "warned.hcl", "\n"+factory+"ca_path = \"\"\n")
	c, err := config.NewLoader().Open(t.Context(), fmt.Sprintf(`plugins { NodeAttestor "tpm" { plugin_data_file = %q } }`, file)).Parse()
	if err != nil || len(c.Warnings) != 1 || !strings.HasPrefix(c.Warnings[0], "ca_path: "+file+":3: is empty") {
		t.Errorf("%+v, %v", c, err)
	}
}

// Each refusal of a plugin_data_file says what to do. SPIRE would refuse to start, so the rest of the configuration
// must not be judged as if the plugin had no data.
func TestDataFileRefused(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	long := writeIn(t, dir, "long.hcl", factory+strings.Repeat("#\n", 1<<19))
	for block, want := range map[string]string{
		`plugin_data_file = "` + dir + `/none"`: `plugin_data_file: "` + dir + `/none" does not exist`,
		`plugin_data_file = "none"`: `"none" does not exist (no such file or directory): create it, or correct the path; SPIRE ` +
			`takes a relative path from its working directory: run this there, too`,
		`plugin_data_file = "` + dir + `"`:  `plugin_data_file: "` + dir + `" is a folder: name a file in it`,
		`plugin_data_file = "/dev/null"`:    `plugin_data_file: "/dev/null" is not a regular file: name one`,
		`plugin_data_file = "` + long + `"`: `bytes long; at most 1048576 are allowed: keep lists in files of their own`,
		`plugin_data_file = ""`:             `plugin_data_file is empty: name a file, or remove the key`,
		`plugin_data_file = "$DIR/tpm.hcl"`: `plugin_data_file: "$DIR/tpm.hcl" has a $, and what SPIRE with -expandEnv writes`,
		`plugin_data_file = "` + long + `" plugin_data {}`: `NodeAttestor "tpm": it has plugin_data and plugin_data_file, and ` +
			`SPIRE refuses both at once: keep one`,
		`enabled = false plugin_data_file = "none" plugin_data {}`: `SPIRE refuses both at once`,
		`enabled = false plugin_data_file = "none"`: `NodeAttestor "tpm" has enabled = false, so SPIRE does not load it, and no ` +
			`machine attests by it: remove enabled = false`,
	} {
		for _, side := range []string{"server", "agent"} {
			f := config.NewLoader().Open(t.Context(), side+` {} plugins { NodeAttestor "tpm" { `+block+` } }`)
			_, err := f.Load(t.Context())
			if side == "agent" {
				_, _, err = f.AgentData()
			}
			problems, ok := errors.AsType[config.Problems](err)
			if !ok || problems[0].Path != "plugins" || !strings.Contains(problems[0].Message, want) {
				t.Errorf("%s: %s\n%v, want %s", side, block, err, want)
			}
		}
	}
	for block, want := range map[string]string{
		`plugin_data_file = "none"`:                `CredentialComposer "tpm": plugin_data_file: "none" does not exist`,
		`plugin_data_file = "none" plugin_data {}`: `CredentialComposer "tpm": it has plugin_data and plugin_data_file`,
	} {
		text := `plugins { NodeAttestor "tpm" { plugin_data {` + factory + `} } CredentialComposer "tpm" { ` + block + ` } }`
		if _, err := config.NewLoader().Open(t.Context(), text).Parse(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", text, err, want)
		}
		text = `agent {} plugins { NodeAttestor "tpm" {} KeyManager "tpm" { ` + block + ` } }`
		want = strings.Replace(want, "CredentialComposer", "KeyManager", 1)
		_, ok, err := config.NewLoader().Open(t.Context(), text).KeyManagerData()
		if ok || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %s", text, err, want)
		}
	}
}

// A file that could not be looked at is no mistake: the configuration may be right, and nobody knows what it says.
func TestDataFileUnseen(t *testing.T) {
	const text = `plugins { NodeAttestor "tpm" { plugin_data_file = "/etc/spire/tpm.hcl" } }`
	denied := config.NewLoaderWith(func(path string) (fs.FileInfo, error) {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: fs.ErrPermission}
	})
	_, err := denied.LoadFile(t.Context(), text)
	if _, problems := errors.AsType[config.Problems](err); problems || !errors.Is(err, fs.ErrPermission) ||
		!strings.Contains(err.Error(), "run this as a user who may read it, such as SPIRE's") {
		t.Errorf("not permitted: %v", err)
	}
	composers := `plugins { NodeAttestor "tpm" { plugin_data { source "sql" "x" { dialect = "mysql" dsn_path = "/x" } } }
		CredentialComposer "tpm" { plugin_data_file = "/x" } }`
	c, err := denied.Open(t.Context(), strings.Replace(composers, "plugin_data {", `plugin_data { svid_key = "optional"
		svid_key_socket = "/run/spire/tpm/svid.sock"`, 1)).Parse()
	if err != nil || len(c.Warned()) != 1 || !c.Warned()[0].Unsure {
		t.Errorf("the composer's: %+v, %v", c, err)
	}
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		loader := config.NewLoaderWith(func(string) (fs.FileInfo, error) {
			<-hang
			return nil, fs.ErrNotExist
		})
		_, err := loader.LoadFile(t.Context(), text)
		if _, problems := errors.AsType[config.Problems](err); problems || err == nil ||
			!strings.Contains(err.Error(), "the file system does not answer") {
			t.Errorf("hangs: %v", err)
		}
		close(hang)
		synctest.Wait()
	})
}

// Evict must notice if a file that plugin_data_file names has changed, has appeared or has disappeared.
func TestDataFileSame(t *testing.T) {
	dir := t.TempDir()
	path := writeIn(t, dir, "tpm.hcl", factory)
	open := func() *config.File {
		return config.NewLoader().Open(t.Context(), fmt.Sprintf(`plugins { NodeAttestor "tpm" { plugin_data_file = %q } }`, path))
	}
	first := open()
	if !first.Same(open()) {
		t.Error("the same file is another one")
	}
	writeIn(t, dir, "tpm.hcl", factory+"\n")
	second := open()
	if first.Same(second) {
		t.Error("a change is not noticed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if second.Same(open()) || !open().Same(open()) {
		t.Error("a file that has gone is not noticed")
	}
	if first.Same(config.NewLoader().Open(t.Context(), factory)) {
		t.Error("plugin_data alone is the same")
	}
}
