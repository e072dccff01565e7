package root

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands returns a command and those below it, without those that cobra makes.
func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		all = append(all, commands(c)...)
	}
	return all
}

// Help, manual pages and completions come from the same texts: a command or flag without them is in none.
func TestEveryCommandIsDescribed(t *testing.T) {
	t.Parallel()
	all := commands(New("test"))
	if len(all) < 20 {
		t.Fatalf("found %d commands only", len(all))
	}
	for _, cmd := range all {
		path := cmd.CommandPath()
		switch short := cmd.Short; {
		case short == "" || strings.HasSuffix(short, ".") || strings.ToUpper(short[:1]) != short[:1]:
			t.Errorf("%s: Short is %q: begin with a capital letter, end without a full stop", path, short)
		case len(short) > 100:
			t.Errorf("%s: Short is longer than a line of the list of commands: %q", path, short)
		}
		if !strings.HasSuffix(strings.TrimRight(cmd.Long, "\n"), ".") && !strings.Contains(cmd.Long, "\n  ") {
			t.Errorf("%s: Long is no sentences: %q", path, cmd.Long)
		}
		if !strings.Contains(cmd.Example, path) || !strings.HasPrefix(cmd.Example, "  ") {
			t.Errorf("%s: Example has no use of it: %q", path, cmd.Example)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" || strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s: --%s is described by %q: write a phrase, without a full stop", path, f.Name, f.Usage)
			}
		})
	}
}

// A shell offers what fits: the values that a flag has, files where one is meant, and nothing where a file would be
// wrong. What nobody has thought about would get files.
func TestEverythingIsCompleted(t *testing.T) {
	t.Parallel()
	for _, cmd := range commands(New("test")) {
		path := cmd.CommandPath()
		if cmd.ValidArgsFunction == nil {
			t.Errorf("%s: set ValidArgsFunction, such as to cli.Files", path)
		}
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if _, ok := cmd.GetFlagCompletionFunc(f.Name); !ok && f.NoOptDefVal == "" {
				t.Errorf("%s: say by cli.Complete what a shell offers for --%s", path, f.Name)
			}
		})
	}
}

// What a shell offers for a flag is taken by the flag.
func TestWhatIsOfferedIsTaken(t *testing.T) {
	t.Parallel()
	for _, cmd := range commands(New("test")) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			offer, ok := cmd.GetFlagCompletionFunc(f.Name)
			if !ok {
				return
			}
			values, directive := offer(cmd, nil, "")
			if directive&cobra.ShellCompDirectiveNoSpace != 0 {
				return // a beginning
			}
			for _, value := range values {
				if err := f.Value.Set(value); err != nil {
					t.Errorf("%s --%s %s: %v", cmd.CommandPath(), f.Name, value, err)
				}
				if !strings.Contains(f.Usage, value) {
					t.Errorf("%s: the description of --%s lacks %s: %s", cmd.CommandPath(), f.Name, value, f.Usage)
				}
			}
		})
	}
}

// Each example is a command line that the command has: a flag that was renamed is not left in one.
func TestExamplesAreCommandLines(t *testing.T) {
	t.Parallel()
	for _, cmd := range commands(New("test")) {
		for line := range strings.Lines(cmd.Example) {
			_, line, ok := strings.Cut(strings.TrimSpace(line), "tpm-attestor ")
			if !ok {
				t.Errorf("%s: the example %q does not call it", cmd.CommandPath(), line)
				continue
			}
			args := strings.Fields(line)
			for i, arg := range args {
				if strings.ContainsAny(arg, "|><") {
					args = args[:i]
					break
				}
			}
			found, rest, err := New("test").Find(args)
			if err == nil {
				err = found.ParseFlags(rest)
			}
			if err != nil || !strings.HasPrefix(found.CommandPath(), cmd.CommandPath()) {
				t.Errorf("%s: the example %q: %v", cmd.CommandPath(), line, err)
			}
		}
	}
}

// A flag means the same in every command that has it. Otherwise a person who knows one command misuses another: --key
// was once the type of the endorsement key in one command, of the DevID's key in another, and a file in a third.
func TestAFlagMeansOneThing(t *testing.T) {
	t.Parallel()
	type meaning struct{ path, offers string }
	first := map[string]meaning{}
	for _, cmd := range commands(New("test")) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			now := meaning{cmd.CommandPath(), "nothing"}
			if offer, ok := cmd.GetFlagCompletionFunc(f.Name); ok {
				values, directive := offer(cmd, nil, "")
				now.offers = fmt.Sprint(values, directive)
			}
			if before, there := first[f.Name]; there && before.offers != now.offers {
				t.Errorf("--%s: %s takes %s, and %s takes %s", f.Name, before.path, before.offers, now.path, now.offers)
				return
			}
			first[f.Name] = now
		})
	}
	if _, there := first["to"]; !there || first["write"].path != "" {
		t.Error("a file that is written is named by --to in all commands")
	}
}
