package hashfile

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// Nothing that reads, watches or waits is left behind by any test.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

// hash returns the EK hash of machine number i.
func hash(i int) sources.EKHash { return sha256.Sum256([]byte(strconv.Itoa(i))) }

// text returns a text list of machines.
func text(machines ...int) string {
	var b strings.Builder
	for _, i := range machines {
		b.WriteString(hash(i).String() + "\n")
	}
	return b.String()
}

// jsonList returns a JSON list of machines. fields are what stands in front of
// its keys, such as `"serial": 1`.
func jsonList(fields string, machines ...int) string {
	keys := make([]string, len(machines))
	for i, m := range machines {
		keys[i] = strconv.Quote(hash(m).String())
	}
	if fields != "" {
		fields += ", "
	}
	return "{" + fields + `"keys": [` + strings.Join(keys, ", ") + "]}\n"
}

// write writes a file that looks as if it had been left alone for a while: what was
// just written is waited for.
func write(tb testing.TB, path, content string) {
	tb.Helper()
	must(tb, os.WriteFile(path, []byte(content), 0o600))
	before := time.Now().Add(-time.Minute)
	must(tb, os.Chtimes(path, before, before))
}

// replace renames another file over the one at path.
func replace(tb testing.TB, path, content string) {
	tb.Helper()
	write(tb, path+".new", content)
	must(tb, os.Rename(path+".new", path))
}

// listIn writes a list into a new folder and returns its path.
func listIn(tb testing.TB, content string) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "list")
	write(tb, path, content)
	return path
}

// open is New for a valid configuration.
func open(tb testing.TB, cfg Config) *Source {
	tb.Helper()
	s, err := New(cfg)
	must(tb, err)
	return s
}

// loaded is open and a first Load, which succeeds.
func loaded(tb testing.TB, cfg Config) *Source {
	tb.Helper()
	s := open(tb, cfg)
	must(tb, s.Load(tb.Context()))
	return s
}

// lists returns "listed", "not listed" or "cannot tell".
func lists(s *Source, machine int) string {
	v, err := s.Check(context.Background(), &sources.Evidence{EKHash: hash(machine)})
	switch {
	case err != nil:
		return "cannot tell"
	case v.Listed:
		return "listed"
	}
	return "not listed"
}

// want fails the test unless the source answers so about a machine.
func want(tb testing.TB, s *Source, machine int, answer string) {
	tb.Helper()
	if got := lists(s, machine); got != answer {
		tb.Errorf("machine %d: %s, want %s", machine, got, answer)
	}
}

// refused fails the test unless a Load fails, and says so.
func refused(tb testing.TB, s *Source, says string) {
	tb.Helper()
	err := s.Load(tb.Context())
	if err == nil || !strings.Contains(err.Error(), says) {
		tb.Errorf("Load: %v, want an error that says %q", err, says)
	}
}

// many returns a text list of n machines from a number on.
func many(from, n int, attributes string) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s %s\n", hash(from+i), attributes)
	}
	return b.String()
}
