package list

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/clitest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

const (
	hashA = "1b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c6879285ceff6094fa556af485c"
	hashB = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
)

func writeFile(tb testing.TB, path, content string) string {
	tb.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// A pipeline decides by the exit code: what is wrong with a list (3) is not what could not be
// read (4) or done (1).
func TestListExitCodes(t *testing.T) {
	dir := t.TempDir()
	if err := clitest.WriteKeys(dir); err != nil {
		t.Fatal(err)
	}
	in := func(name, content string) string { return writeFile(t, filepath.Join(dir, name), content) }
	good, bad, other := in("good.txt", hashA+"\n"), in("bad.txt", "x\n"), in("other.txt", hashB+"\n")
	list := in("list.json", `{"serial": 1, "expires": "2930-01-01T00:00:00Z", "list": "l", "keys": []}`)
	bare, none := in("bare.json", `{"keys": []}`), filepath.Join(dir, "none")
	key, public, wrong := filepath.Join(dir, "list.key"), filepath.Join(dir, "list.pub"), filepath.Join(dir, "other.pub")
	for _, test := range []struct {
		want int
		args []string
	}{
		{0, []string{"lint", good}},
		{cli.ExitRefused, []string{"lint", good, bad}},
		{cli.ExitRefused, []string{"lint", bad, "-o", "json"}},
		{cli.ExitCannotTell, []string{"lint", good, none}},
		{0, []string{"build", good, other, "--to", filepath.Join(dir, "built.txt")}},
		{cli.ExitRefused, []string{"build", bad}},
		{cli.ExitFailed, []string{"build", none}},
		{cli.ExitFailed, []string{"build", good, "--to", filepath.Join(none, "x")}},
		{cli.ExitUsage, []string{"build", good, "--from", "hashes"}},
		{0, []string{"convert", good, "--form", "json"}},
		{cli.ExitRefused, []string{"convert", bad, "--form", "json"}},
		{cli.ExitFailed, []string{"convert", none, "--form", "json"}},
		{0, []string{"diff", good, good}},
		{cli.ExitRefused, []string{"diff", good, other}},
		{cli.ExitCannotTell, []string{"diff", good, bad}},
		{cli.ExitCannotTell, []string{"diff", none, good}},
		{0, []string{"sign", list, "--key", key}},
		{cli.ExitRefused, []string{"sign", bare, "--key", key}},
		{cli.ExitFailed, []string{"sign", list, "--key", public}},
		{cli.ExitFailed, []string{"sign", none, "--key", key}},
		{0, []string{"verify", list, "--public-key", public, "--list-id", "l"}},
		{cli.ExitRefused, []string{"verify", list, "--public-key", wrong}},
		{cli.ExitRefused, []string{"verify", list, "--public-key", wrong, "-o", "json"}},
		{cli.ExitRefused, []string{"verify", list, "--public-key", public, "--list-id", "m"}},
		{cli.ExitRefused, []string{"verify", bare, "--public-key", public, "--signature", list + ".sig"}},
		{cli.ExitCannotTell, []string{"verify", bare, "--public-key", public}},
		{cli.ExitCannotTell, []string{"verify", list, "--public-key", none}},
		{cli.ExitCannotTell, []string{"verify", list, "--public-key", key}},
		{cli.ExitCannotTell, []string{"verify", none, "--public-key", public, "--signature", list + ".sig"}},
	} {
		var stderr strings.Builder
		args := append([]string{"list"}, test.args...)
		if code := clitest.Run(t.Context(), New, args, cli.Streams{In: strings.NewReader(""), Out: io.Discard, Err: &stderr}); code != test.want {
			t.Errorf("%q: exit code %d, want %d: %s", args, code, test.want, &stderr)
		}
		if (stderr.Len() == 0) != (test.want == 0 || strings.Contains(strings.Join(args, " "), "-o json") || test.want == cli.ExitRefused && args[1] == "diff") &&
			args[1] != "convert" {
			t.Errorf("%q says %q", args, &stderr)
		}
	}
}

// If the output cannot be written, the command fails: a pipe that broke has half a list in it.
func TestUnwritableListFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := writeFile(t, filepath.Join(dir, "good.txt"), hashA+"\n")
	for _, args := range [][]string{
		{"list", "build", good},
		{"list", "build", good, "--to", filepath.Join(dir, "to")},
		{"list", "convert", good, "--form", "json"},
		{"list", "lint", good},
		{"list", "diff", good, good},
	} {
		var stderr strings.Builder
		if code := clitest.Run(t.Context(), New, args, cli.Streams{In: strings.NewReader(""), Out: clitest.FullDisk{}, Err: &stderr}); code != cli.ExitFailed {
			t.Errorf("%q: exit code %d: %s", args, code, &stderr)
		}
	}
}

// A command that is interrupted leaves the old list, and nothing half made beside it.
func TestInterruptedBuild(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	old := writeFile(t, filepath.Join(dir, "machines.txt"), hashA+"\n")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code := clitest.Run(ctx, New, []string{"list", "build", "-", "--to", old},
		cli.Streams{In: strings.NewReader(hashB + "\n"), Out: io.Discard, Err: io.Discard})
	content, err := os.ReadFile(old)
	if code != cli.ExitFailed || err != nil || string(content) != hashA+"\n" {
		t.Errorf("exit code %d, %q, %v", code, content, err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("%v, %v", files, err)
	}
}

// FuzzLint fails if lint finds no mistake in a list that a server refuses, or the other way
// round: an operator would publish a list that admits nobody.
func FuzzLint(f *testing.F) {
	for _, seed := range []string{
		"", hashA, hashA + " name label # comment\r\n" + hashB + "\n", hashA + "\n" + hashA + "\n", hashA + "\n" + hashB[:31],
		"\ufeff" + hashA, "\ufeff\ufeff" + hashA, "\xff\xfe1\x00", "# nobody\n", "-----BEGIN PUBLIC KEY-----\n", "x\n",
		`{"keys": []}`, `{"keys": ["` + hashA + `"]}`, `{"keys": ["` + hashA + `", {"hash": "` + hashA + `"}]}`,
		`{"keys": [], "expires": "2020-01-01T00:00:00Z"}`, `{"keys": [], "expires": "2930-01-01T00:00:00Z", "serial": 5}`,
		`{"keys": [], "Serial": 5, "version": 2}`, `{"keys": ["` + hashA, `{"keys": [{"hash": "` + hashA + `", "label": []}]} x`,
		`{"key": []}`, " \t\r\n{\"keys\": [\"x\", \"y\"]}", hashA + " n\n" + hashB + " n\n",
	} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	path := filepath.Join(f.TempDir(), "list")
	long := time.Now().Add(-time.Hour)
	f.Fuzz(func(t *testing.T, data []byte, allowEmpty bool) {
		writeFile(t, path, string(data))
		if err := os.Chtimes(path, long, long); err != nil { // else the server waits until it has been left alone
			t.Fatal(err)
		}
		server, err := hashfile.New(hashfile.Config{Path: path, AllowEmpty: allowEmpty})
		if err != nil {
			t.Fatal(err)
		}
		refused := server.Load(t.Context())
		d, mistakes := loadAsServer(t.Context(), path, data, ekhashes.Options{AllowEmpty: allowEmpty})
		if (refused == nil) != (mistakes == nil) || (d == nil) != (mistakes != nil) {
			t.Fatalf("the server says %v, lint says %v", refused, mistakes)
		}
		if d != nil && d.Len() != server.Status().Entries {
			t.Errorf("the server has %d entries, lint %d", server.Status().Entries, d.Len())
		}
	})
}

// What a spreadsheet saves as "Unicode text" is told for what it is, whatever it is taken for.
func TestUTF16Input(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"auto", "csv", "ndjson", "keys"} {
		var stderr strings.Builder
		code := clitest.Run(t.Context(), New, []string{"list", "build", "-", "--from", kind},
			cli.Streams{In: strings.NewReader("\xff\xfeh\x00a\x00s\x00h\x00\n\x00"), Out: io.Discard, Err: &stderr})
		if code != cli.ExitRefused || !strings.Contains(stderr.String(), "UTF-16, as PowerShell") {
			t.Errorf("%s: exit code %d, %s", kind, code, &stderr)
		}
	}
}

// Rows beyond the limit are an error: a list without them would lack machines, and nobody would
// know.
func TestBoundedRows(t *testing.T) {
	t.Parallel()
	for left, want := range map[int64]bool{5: true, 4: false, 0: false} {
		text, err := io.ReadAll(&bounded{strings.NewReader("12345"), left})
		if (err == nil) != want || want && string(text) != "12345" {
			t.Errorf("%d: %q, %v", left, text, err)
		}
	}
	budget := &rowBudget{in: strings.NewReader("hash\n\"" + strings.Repeat("x", 2*maxRow))}
	budget.reset()
	if _, err := io.ReadAll(budget); err == nil || !strings.Contains(err.Error(), "is a quote not closed?") {
		t.Error(err)
	}
}

// FuzzBuild fails if list build makes a list that lint would refuse, of whatever an operator was
// sent, or panics.
func FuzzBuild(f *testing.F) {
	for _, seed := range []string{
		"hash,name,labels\n" + hashA + ",n,a b\n", "\ufeffName;EK-Hash\r\n\"n\n\";" + hashA + "\r\n", "hash\n" + hashA + "\n\"", "hash\thash\n",
		`"` + hashA + `"` + "\n\n" + `{"hash": "` + hashB + `", "name": "n", "labels": ["l"], "revoked": true}`, `{"hash": "` + hashA + `"} {}`,
		hashA + " - l # c\n" + hashB, `{"keys": ["` + hashA + `"], "serial": 3}`, "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n",
		"\x30\x82\x00", "\xff\xfeh\x00", "", "hash,name\n" + hashA + ",-\n" + hashB + ",#\n",
	} {
		for _, kind := range []string{"auto", "csv", "ndjson", "keys", "list"} {
			f.Add([]byte(seed), kind)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte, kind string) {
		if kind != "auto" && kind != "csv" && kind != "ndjson" && kind != "keys" && kind != "list" {
			t.Skip("no kind of input") // the fuzzer made it up
		}
		for _, form := range []string{"text", "json"} {
			var out, messages strings.Builder
			args := []string{"list", "build", "-", "--from", kind, "--form", form, "--allow-empty"}
			code := clitest.Run(t.Context(), New, args, cli.Streams{In: bytes.NewReader(data), Out: &out, Err: &messages})
			if (code == 0) != (out.Len() > 0 || form == "text" && strings.HasPrefix(messages.String(), "0 entries")) && code == 0 ||
				code != 0 && (out.Len() > 0 || messages.Len() == 0) {
				t.Fatalf("%q: exit code %d, %q, %q", args, code, &out, &messages)
			}
			if code != 0 {
				continue
			}
			if _, err := loadAsServer(t.Context(), "built", []byte(out.String()), ekhashes.Options{AllowEmpty: true}); err != nil {
				t.Fatalf("%q makes a list that is none: %v\n%s", args, err, &out)
			}
		}
	})
}
