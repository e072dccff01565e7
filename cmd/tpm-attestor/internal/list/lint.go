package list

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

func newLint(output *cli.Format) *cobra.Command {
	var opts ekhashes.Options
	cmd := &cobra.Command{
		Use:   "lint LIST...",
		Short: "Find the mistakes in lists",
		Long: `lint reads each LIST as a server does, and tells up to twenty mistakes in it, with their lines and
what they look like. It finds no mistake exactly if a server takes the list. LIST is a list as text or JSON,
or a folder whose files are named by EK hashes, or a JSON list of boot profiles; "-" is the standard input.
Fields that a server ignores although they look as if they were meant, and files that look like entries and
are none, are warnings.

Exit code 3 says that there are mistakes, 4 that a LIST could not be read.`,
		Example: cli.Examples(
			"tpm-attestor list lint /etc/tpm/machines.txt",
			"tpm-attestor list lint --http tpm.json",
			"tpm-attestor list lint --output json lists/*",
		),
		Args: cli.AtLeastOne("the lists"),
		RunE: func(cmd *cobra.Command, args []string) error { return runLint(cmd, opts, *output, args) },
	}
	cmd.ValidArgsFunction = cli.Files
	cmd.Flags().BoolVar(&opts.AllowEmpty, "allow-empty", false, "a text list without an entry is meant to be empty, "+
		"as the key allow_empty of hash_file says")
	cmd.Flags().BoolVar(&opts.JSON, "http", false, "the lists are for a source http, which reads JSON alone")
	return cmd
}

// linted is the JSON output of list lint.
type linted struct {
	Version int          `json:"version"`
	Valid   bool         `json:"valid"`
	Lists   []lintedList `json:"lists"`
}

type lintedList struct {
	File  string `json:"file"`
	Valid bool   `json:"valid"`
	headerJSON
	Entries  int               `json:"entries"`
	Mistakes []finding.Mistake `json:"mistakes"`
	Warnings []string          `json:"warnings"`

	words string // the header in words
}

func runLint(cmd *cobra.Command, opts ekhashes.Options, output cli.Format, names []string) error {
	result := linted{Version: 1, Valid: true}
	var unread []error // the other lists are checked all the same
	for _, name := range names {
		l, err := lint(cmd, opts, name)
		if err != nil {
			unread = append(unread, fmt.Errorf("read the list: %w", err))
			continue
		}
		result.Lists = append(result.Lists, l)
		result.Valid = result.Valid && l.Valid
	}
	code := cli.ExitCannotTell
	if !result.Valid {
		code = cli.ExitRefused
	}
	if result.Valid = result.Valid && len(unread) == 0; len(result.Lists) > 0 {
		if err := printLinted(cmd, output, &result); err != nil {
			return err
		}
	}
	if !result.Valid {
		return cli.Exit(code, errors.Join(unread...))
	}
	return nil
}

// lint reads one list. The error says why it cannot be read.
func lint(cmd *cobra.Command, opts ekhashes.Options, name string) (lintedList, error) {
	result := lintedList{File: name, Mistakes: []finding.Mistake{}, Warnings: []string{}}
	d, warnings, err := lintDocument(cmd, opts, name)
	if mistakes, ok := errors.AsType[finding.MistakesError](err); ok {
		result.Mistakes = mistakes
	} else if err != nil {
		return result, err
	}
	result.Warnings = append(result.Warnings, warnings...)
	if d != nil {
		result.Valid, result.Entries = true, d.Len()
		result.headerJSON, result.words = headerToJSON(d.Header()), words(d.Header())
	}
	return result, nil
}

func lintDocument(cmd *cobra.Command, opts ekhashes.Options, name string) (document, []string, error) {
	if info, err := os.Stat(name); name != "-" && err == nil && info.IsDir() {
		g := newGather(cmd, fromHashes, true)
		defer g.progress.End()
		d, err := g.readFolder(name)
		if err != nil {
			return nil, g.warnings.texts(), err
		}
		if twice := g.builder.Added() - d.Len(); twice > 0 {
			g.warnings.add(name, fmt.Sprintf("%s there twice, in two places or in both cases: "+
				"who removes such a machine must remove both files", cli.Entries(twice)))
		}
		return d, g.warnings.texts(), nil
	}
	p := cli.StartProgress(cmd.ErrOrStderr(), "reading "+name, "")
	defer p.End()
	in, err := input.Open(name, cmd.InOrStdin())
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = in.Close() }() // it was only read
	data, err := input.ReadAll(in, maxList)
	if errors.Is(err, input.ErrTooLong) {
		return nil, nil, finding.MistakesError{{File: name, Problem: fmt.Sprintf(
			"longer than %d bytes: raise max_bytes in the servers' configuration, or split the list", maxList)}}
	}
	if err != nil {
		return nil, nil, err
	}
	d, err := loadAsServer(cmd.Context(), name, data, opts)
	if err != nil {
		return nil, nil, err
	}
	return d, placed(name, d.Warnings()), nil
}

// placed puts the name of the file before each warning.
func placed(name string, warnings []string) []string {
	for i, w := range warnings {
		warnings[i] = name + ": " + w
	}
	return warnings
}

func printLinted(cmd *cobra.Command, output cli.Format, r *linted) error {
	if output == cli.JSON {
		return cli.PrintJSON(cmd, r)
	}
	for i := range r.Lists {
		l := &r.Lists[i]
		if err := printMessages(cmd, "warning: ", l.Warnings); err != nil {
			return err
		}
		if !l.Valid {
			if err := printMessages(cmd, "", []finding.MistakesError{l.Mistakes}); err != nil {
				return err
			}
			continue
		}
		text := l.File + ": " + cli.Entries(l.Entries)
		if l.words != "" {
			text += ", " + l.words
		}
		if err := cli.PrintText(cmd, text+"\n"); err != nil {
			return err
		}
	}
	return nil
}
