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

// BeginningWith offers these beginnings of a value, which the user then completes.
func BeginningWith(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
}

// Complete sets what a shell offers for the values of these flags of the command. A test of package root requires
// that each command sets it for every flag with a value, and for its arguments by ValidArgsFunction.
func Complete(cmd *cobra.Command, offer cobra.CompletionFunc, flags ...string) {
	for _, name := range flags {
		// The only error is that there is no such flag. The test finds that, since the intended flag has no offer.
		_ = cmd.RegisterFlagCompletionFunc(name, offer)
	}
}
