package config_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everythingExists is a file system with a folder at every path.
func everythingExists(string) (fs.FileInfo, error) {
	return fs.Stat(fstest.MapFS{"x/y": {}}, "x")
}

// A path that is mistyped must be found before the server runs with it, and one
// on a file system that is in trouble must not keep the server from starting.
func TestLoadLooksAtFiles(t *testing.T) {
	dir := t.TempDir()
	filename := filepath.Join(dir, "file")
	if err := os.WriteFile(filename, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ text, want string }{
		{`source "hash_dir" "a" { path = "` + dir + `" }`, ""},
		{
			`source "hash_dir" "a" { path = "` + dir + `/none" }`,
			`source "hash_dir" "a": path: "` + dir + `/none" does not exist`,
		},
		{
			`source "hash_dir" "a" { path = "` + filename + `" }`,
			`source "hash_dir" "a": path: "` + filename + `" is not a folder`,
		},
		{
			`source "hash_dir" "a" { path = "` + filename + `/x" }`,
			`source "hash_dir" "a": path: "` + filename + `/x" does not exist`,
		},
		{`source "hash_dir" "a" { path = "/` + strings.Repeat("x", 300) + `" }`, `source "hash_dir" "a": path: `},
		{
			`source "hash_dir" "a" { path = "` + dir + `/none" bogus = 1 }`,
			`source "hash_dir" "a": bogus: unknown key; choose from attributes, marker, path; ` +
				`source "hash_dir" "a": path: "`,
		},
		{`source "ek_ca" "v" { ca_path = "` + filename + `" }`, ""},
		{
			`source "ek_ca" "v" { bundles = { a = "` + dir + `" b = "` + dir + `/none" } }`,
			`source "ek_ca" "v": bundles: b: "` + dir + `/none" does not exist`,
		},
		{`hash_path = "` + dir + `/none"`, `hash_path: "` + dir + `/none" does not exist`},
		{`ca_path = "` + dir + `/none"`, `ca_path: "` + dir + `/none" does not exist`},
	} {
		_, err := config.NewLoader().Load(t.Context(), tt.text, trustDomain)
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s\n got  %v\n want %s", tt.text, err, tt.want)
		}
	}
}

// A file system that fails is not the configuration's mistake.
func TestLoadWarnsOfFailingFiles(t *testing.T) {
	l := config.NewLoaderWith(func(path string) (fs.FileInfo, error) {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: syscall.EIO}
	})
	c, err := l.Load(t.Context(), factory, trustDomain)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || !strings.HasPrefix(c.Warnings[0], `source "hash_dir" "factory": path: cannot check whether this exists`) {
		t.Errorf("warnings: %q", c.Warnings)
	}
}

// A mount whose server has gone answers nothing, ever: Validate must end all the
// same, and a thousand of it must not leave a thousand goroutines.
func TestLoadOnAHungMount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		asked := make(chan struct{}, 10_000)
		l := config.NewLoaderWith(func(string) (fs.FileInfo, error) {
			asked <- struct{}{}
			<-hang
			return nil, errors.New("gone")
		})
		for range 1000 {
			c, err := l.Load(t.Context(), factory, trustDomain)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Warnings) != 1 {
				t.Fatalf("warnings: %q", c.Warnings)
			}
		}
		if n := len(asked); n != config.StatSlots {
			t.Errorf("%d questions are open, want %d", n, config.StatSlots)
		}
		close(hang)
	})
}
