package web_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

// CheckFiles finds everything over which an attempt would fail before the server makes one, and
// shows no secret.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad")
	if err := os.WriteFile(bad, []byte("hunter 2"), 0o600); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	note := func(field string, err error) { found[field] = err.Error() }
	web.ListConfig{}.CheckFiles(note)
	if len(found) > 0 {
		t.Errorf("without files: %q", found)
	}
	all := web.ListConfig{
		CAPath: bad, ClientCertPath: bad, ClientKeyPath: bad, BearerTokenPath: bad, PublicKeyPath: bad,
	}
	all.CheckFiles(note)
	want := []string{"bearer_token_path", "ca_path", "client_cert_path", "public_key_path"}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, want) {
		t.Errorf("%q", found)
	}
	for field, text := range found {
		if strings.Contains(text, "hunter") {
			t.Errorf("%s shows what is in the file: %s", field, text)
		}
	}
	clear(found)
	web.ListConfig{PublicKeyPath: filepath.Join(dir, "none")}.CheckFiles(note)
	if !strings.Contains(found["public_key_path"], "no such file") {
		t.Errorf("%q", found)
	}
}
