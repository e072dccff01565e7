package cli

import "github.com/spf13/cobra"

// Files is a cobra.CompletionFunc that offers files and folders.
func Files(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveDefault
}

// Folders is a cobra.CompletionFunc that offers folders.
func Folders(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveFilterDirs
}

// Nothing is a cobra.CompletionFunc that offers nothing, for a value that only the user knows.
func Nothing(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// OneOf returns a completion function that offers these values.
func OneOf(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}

// BeginningWith returns a completion function that offers these prefixes, which the user then completes.
func BeginningWith(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
}

// Complete sets what a shell offers for the values of these flags of the command. A test of package root requires
// that each command calls it for every flag with a value, and sets ValidArgsFunction for its arguments.
func Complete(cmd *cobra.Command, offer cobra.CompletionFunc, flags ...string) {
	for _, name := range flags {
		// The only error is that there is no such flag. The test finds that, since no completion is set for the
		// intended flag.
		_ = cmd.RegisterFlagCompletionFunc(name, offer)
	}
}
