package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// A Format is the value of --output.
type Format string

// The formats. JSON output has a "version". Within a version, members may be added, but no member changes its
// meaning.
const (
	Table Format = "table"
	JSON  Format = "json"
)

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Table, JSON:
		*f = Format(s)
		return nil
	}
	return errors.New("choose table or json")
}

// Type implements pflag.Value.
func (*Format) Type() string { return "format" }

// PrintJSON prints a value on standard output. A failed write is an error: a script must not believe that the
// command succeeded.
func PrintJSON(cmd *cobra.Command, value any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(value)
}

// PrintText prints a text on standard output. As with PrintJSON, a failed write is an error.
func PrintText(cmd *cobra.Command, text string) error {
	_, err := io.WriteString(cmd.OutOrStdout(), text)
	return err
}

// Examples returns the lines in the form in which cobra expects a command's examples.
func Examples(lines ...string) string { return "  " + strings.Join(lines, "\n  ") }

// Note prints, on standard error, what the user should know besides the data.
func Note(cmd *cobra.Command, format string, args ...any) {
	cmd.PrintErrf("note: "+format+"\n", args...)
}

// Entries says how many entries a list has.
func Entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}
