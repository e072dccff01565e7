package validate

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
)

// A script tells by the exit code what it knows: valid, not valid, or neither, since something could
// not be looked at.
func TestValidateExitCodes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	list := write("list.txt", strings.Repeat("0a", 32)+"\n")
	torn := write("torn.txt", "0a0a")
	hashFile := func(path string) string { return fmt.Sprintf("source \"hash_file\" \"a\" {\n path = %q\n}\n", path) }
	web := "source \"http\" \"a\" {\n url = \"https://127.0.0.1:1/list\"\n cache_path = \"/tmp/x\"\n}\n"
	for name, tt := range map[string]struct {
		args []string
		want int
	}{
		"valid":             {[]string{write("good", hashFile(list))}, 0},
		"not valid":         {[]string{write("torn", hashFile(torn))}, cli.ExitRefused},
		"not there":         {[]string{write("none", hashFile(dir+"/none"))}, cli.ExitRefused},
		"not asked":         {[]string{write("web", web)}, 0},
		"no answer":         {[]string{write("web", web), "--network"}, cli.ExitCannotTell},
		"no configuration":  {[]string{dir + "/none.conf"}, cli.ExitFailed},
		"no such user":      {[]string{write("good", hashFile(list)), "--user", "x:y"}, cli.ExitUsage},
		"both wrong, known": {[]string{write("both", hashFile(torn)+web+"allow \"x\" { any = [\"a\"] }"), "--network"}, cli.ExitRefused},
	} {
		var stdout, stderr strings.Builder
		code := clitest.Run(t.Context(), New, append([]string{"validate"}, tt.args...), cli.Streams{In: strings.NewReader(""), Out: &stdout, Err: &stderr})
		if code != tt.want || (stdout.String() == "valid\n") != (tt.want == 0) {
			t.Errorf("%s: exit code %d, want %d: %s%s", name, code, tt.want, &stdout, &stderr)
		}
	}
}
