package config_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
)

// A configuration of 1 MiB is refused at once, whatever it is full of. Work that grows
// with the square of its length would take minutes to hours here, during which
// Configure holds up every later one.
func TestBoundsComeBeforeComparisons(t *testing.T) {
	t.Parallel()
	repeat := func(format string) string {
		var text strings.Builder
		for i := 0; text.Len() < 1<<20-200; i++ {
			fmt.Fprintf(&text, format, i)
		}
		return text.String()
	}
	const source = `source "hash_dir" "machines" { path = "/" }` + "\n"
	for name, test := range map[string]struct{ text, want string }{
		"sources":  {repeat(`source "hash_dir" "n%d" { path = "/" }` + "\n"), "at most 256 are allowed"},
		"kinds":    {repeat(`source "kind%d" "a" { path = "/" }` + "\n"), "more mistakes"},
		"rules":    {source + repeat(`allow "n%d" { any = ["machines"] }`+"\n"), "at most 256 are allowed"},
		"names":    {source + `allow "a" { any = [` + repeat(`"n%d",`) + `"x"] }`, "at most 256 are allowed"},
		"one name": {source + `allow "a" { any = [` + strings.Repeat(`"n",`, 200_000) + `"x"] }`, "at most 256 are allowed"},
		"keys":     {source + repeat("key%d = 1\n"), "more mistakes"},
		"bundles":  {`source "ek_ca" "a" { bundles = {` + repeat(`"b.%d" = "/x",`) + `} }`, "more mistakes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Parse(test.text, "example.org")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%.300v, want %q", err, test.want)
			}
		})
	}
}
