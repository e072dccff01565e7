package list

import (
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

func newDiff(output *cli.Format) *cobra.Command {
	var allowEmpty bool
	cmd := &cobra.Command{
		Use:   "diff OLD NEW",
		Short: "Show which machines two lists differ in",
		Long: `diff shows which entries were added (+), removed (-) or changed (their name or labels) from the list
OLD to the list NEW. Each is a list as text or JSON, or a folder whose files are named by EK hashes; one may
be "-", the standard input. Serials, expiries and the order of entries do not count.

Exit code 0 says that both have the same entries, 3 that they differ, 4 that a list could not be read.`,
		Example: cli.Examples(
			"tpm-attestor list diff machines.txt machines.new.txt",
			"tpm-attestor list diff /srv/tpm/hashes machines.json --output json",
		),
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 { //nolint:mnd // OLD and NEW
				return cli.UsageError("name two lists, the old one first")
			}
			if args[0] == "-" && args[1] == "-" {
				return cli.UsageError("only one of the lists can be the standard input")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runDiff(cmd, *output, allowEmpty, args) },
	}
	cmd.ValidArgsFunction = cli.Files
	cmd.Flags().BoolVar(&allowEmpty, "allow-empty", false, "a text list or a folder without an entry is "+
		"meant to be empty")
	return cmd
}

// diffed is the JSON output of list diff.
type diffed struct {
	Version int         `json:"version"`
	Equal   bool        `json:"equal"`
	Added   []entryJSON `json:"added"`
	Removed []entryJSON `json:"removed"`
	Changed []change    `json:"changed"`
}

// change is an entry whose name or labels have changed.
type change struct {
	Hash string    `json:"hash"`
	Old  described `json:"old"`
	New  described `json:"new"`
}

type described struct {
	Name   string   `json:"name,omitempty"`
	Labels []string `json:"labels,omitempty"`
}

func runDiff(cmd *cobra.Command, output cli.Format, allowEmpty bool, names []string) error {
	var lists [2]*ekhashes.Document
	for i, name := range names {
		d, err := readForDiff(cmd, allowEmpty, name)
		if err != nil {
			return cli.Exit(cli.ExitCannotTell, err)
		}
		lists[i] = d
	}
	d := compare(lists[0].All(), lists[1].All())
	d.Equal = len(d.Added)+len(d.Removed)+len(d.Changed) == 0
	if err := printDiff(cmd, output, d); err != nil {
		return err
	}
	if !d.Equal {
		return cli.Exit(cli.ExitRefused, nil)
	}
	return nil
}

func readForDiff(cmd *cobra.Command, allowEmpty bool, name string) (*ekhashes.Document, error) {
	g := newGather(cmd, fromAuto, allowEmpty)
	defer g.progress.End()
	d, err := g.readDocument(name)
	g.progress.End()
	if err := printMessages(cmd, "warning: ", g.warnings.texts()); err != nil {
		return nil, err
	}
	if mistakes, ok := errors.AsType[finding.MistakesError](err); ok {
		return nil, fmt.Errorf("the list %s has mistakes, and no server would take it:\n%w", name, mistakes)
	}
	if err != nil {
		return nil, fmt.Errorf("read the list: %w", err)
	}
	return d, nil
}

// compare compares two lists that are sorted by hash.
func compare(older, newer iter.Seq[ekhashes.Entry]) *diffed {
	d := &diffed{Version: 1, Added: []entryJSON{}, Removed: []entryJSON{}, Changed: []change{}}
	next, stop := iter.Pull(newer)
	defer stop()
	n, more := next()
	for o := range older {
		for more && slices.Compare(n.Hash[:], o.Hash[:]) < 0 {
			d.Added = append(d.Added, toJSON(n))
			n, more = next()
		}
		if !more || n.Hash != o.Hash {
			d.Removed = append(d.Removed, toJSON(o))
			continue
		}
		if n.Name != o.Name || !slices.Equal(n.Labels, o.Labels) {
			d.Changed = append(d.Changed, change{
				n.Hash.String(), described{o.Name, o.Labels}, described{n.Name, n.Labels},
			})
		}
		n, more = next()
	}
	for ; more; n, more = next() {
		d.Added = append(d.Added, toJSON(n))
	}
	return d
}

// printDiff prints the differences. The names are safe for a terminal: the parser of lists refuses control
// characters.
func printDiff(cmd *cobra.Command, output cli.Format, d *diffed) error {
	if output == cli.JSON {
		return cli.PrintJSON(cmd, d)
	}
	var text strings.Builder
	line := func(sign, hash, name string, labels []string) {
		words := strings.Join(append([]string{sign, hash, name}, labels...), " ")
		text.WriteString(strings.TrimRight(words, " ") + "\n")
	}
	for _, e := range d.Removed {
		line("-", e.Hash, e.Name, e.Labels)
	}
	for _, c := range d.Changed {
		line("-", c.Hash, c.Old.Name, c.Old.Labels)
		line("+", c.Hash, c.New.Name, c.New.Labels)
	}
	for _, e := range d.Added {
		line("+", e.Hash, e.Name, e.Labels)
	}
	fmt.Fprintf(&text, "%d added, %d removed, %d changed\n", len(d.Added), len(d.Removed), len(d.Changed))
	return cli.PrintText(cmd, text.String())
}
