package cli

import "github.com/spf13/cobra"

// Files is a cobra.CompletionFunc that offers files, and folders.
func Files(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// Folders is a cobra.CompletionFunc that offers folders.
func Folders(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// Nothing is a cobra.CompletionFunc that offers nothing: the user makes the value up.
func Nothing(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// OneOf offers these values.
func OneOf(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// BeginningWith offers these beginnings of a value, behind which the user writes on.
func BeginningWith(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
}

// Complete says what a shell offers for the values of flags that the command has. Each command says it for all its
// flags but those without a value, and for its arguments by ValidArgsFunction: a test of package root requires that.
func Complete(cmd *cobra.Command, offer cobra.CompletionFunc, flags ...string) {
	for _, name := range flags {
		// The only error is that there is no such flag. The test finds that, since the flag that is meant has no offer.
		_ = cmd.RegisterFlagCompletionFunc(name, offer)
	}
}
