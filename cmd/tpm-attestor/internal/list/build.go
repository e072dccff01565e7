package list

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// buildFlags are the flags of list build and list convert.
type buildFlags struct {
	target
	from       inputKind
	allowEmpty bool
	serial     uint64
	expires    string
	name       string
}

func (f *buildFlags) register(cmd *cobra.Command) {
	f.target.register(cmd)
	cmd.Flags().BoolVar(&f.allowEmpty, "allow-empty", false, "a list without an entry is meant to be empty")
	cmd.Flags().Uint64Var(&f.serial, "serial", 0, "the list's serial, higher than the serial before (JSON)")
	cmd.Flags().StringVar(&f.expires, "expires", "", "until when the list is good: a time such as "+
		"2030-01-31T12:00:00Z, or a duration from now on such as 720h (JSON)")
	cmd.Flags().StringVar(&f.name, "list", "", "the list's own name, as list_id in the servers' configuration (JSON)")
	cli.Complete(cmd, cli.Nothing, "serial", "expires", "list")
}

func newBuild(output *cli.Format) *cobra.Command {
	f := buildFlags{from: fromAuto}
	cmd := &cobra.Command{
		Use:   "build INPUT...",
		Short: "Make a list from folders of hashes, keys, certificates, CSV or NDJSON",
		Long: `build makes one list of all machines in each INPUT, and writes it to standard output, to a file
(--to) or to a new folder (--to-dir). An INPUT is

  a folder whose files are named by EK hashes, as spire-tpm-plugin and the source hash_dir read it;
  a folder of files of public keys or EK certificates, or such a file: PEM, DER or TPMT_PUBLIC;
  a CSV file: the header row names the columns hash or ek_hash, name, and labels, separated by blanks;
  an NDJSON file: on each line a hash in quotes, or {"hash": "...", "name": "...", "labels": ["..."]};
  a list, as text or JSON;
  "-", the standard input.

What an INPUT is, build recognizes by its name and its beginning, unless --from says it. Machines that two
inputs describe in the same way are there once. A hash or a name with different descriptions is a mistake,
and with any mistake nothing is written.

A file is replaced as a whole. Of a folder, no file system can replace all files at one moment: write a new
folder, and swap a link to it.

Exit code 3 says that there are mistakes in an INPUT.`,
		Example: cli.Examples(
			"tpm-attestor list build /opt/spire/.data/hashes --to machines.txt",
			"tpm-attestor list build delivery.csv --to machines.json --serial 42 --expires 720h --list fleet",
			"tpm-attestor list build certificates/ more.pem --to-dir /srv/tpm/hashes.2 --sharded",
		),
		Args: cli.AtLeastOne("the folders and files with the machines"),
		RunE: func(cmd *cobra.Command, args []string) error { return runBuild(cmd, &f, *output, args) },
	}
	cmd.ValidArgsFunction = cli.Files
	f.register(cmd)
	cmd.Flags().Var(&f.from, "from", "what the inputs are: list, hashes, keys, csv or ndjson, or auto to recognize it")
	cli.Complete(cmd, cli.OneOf("auto", "list", "hashes", "keys", "csv", "ndjson"), "from")
	return cmd
}

// built is the JSON output of list build and list convert.
type built struct {
	Version int `json:"version"`
	headerJSON
	Entries  int               `json:"entries"`
	Merged   int               `json:"merged"`
	To       string            `json:"to,omitempty"`
	Form     form              `json:"form"`
	Mistakes []finding.Mistake `json:"mistakes"`
	Warnings []string          `json:"warnings"`
}

func runBuild(cmd *cobra.Command, f *buildFlags, output cli.Format, names []string) error {
	header, err := f.header(cmd, list.Header{})
	if err == nil {
		err = f.check(header, output)
	}
	if err != nil {
		return err
	}
	// Memory matters more than time here: an operator may build a list of a million machines on a
	// small server.
	const garbage = 25 // in percent of the memory in use
	defer debug.SetGCPercent(debug.SetGCPercent(garbage))
	g := newGather(cmd, f.from, f.allowEmpty)
	defer g.progress.End()
	d, err := g.all(names, header)
	return f.finish(cmd, g, output, d, err)
}

// header returns h with the values of the flags that are set.
func (f *buildFlags) header(cmd *cobra.Command, h list.Header) (list.Header, error) {
	if cmd.Flags().Changed("serial") {
		h.Serial, h.HasSerial = f.serial, true
	}
	if cmd.Flags().Changed("list") {
		h.Name = f.name
	}
	if f.expires == "" {
		return h, nil
	}
	if in, err := time.ParseDuration(f.expires); err == nil {
		h.Expires = time.Now().Add(in).Truncate(time.Second)
	} else if h.Expires, err = time.Parse(time.RFC3339, f.expires); err != nil {
		return h, cli.UsageError("--expires %q: write a time such as 2030-01-31T12:00:00Z, or a duration such as 720h",
			f.expires)
	}
	if h.Expired(time.Now()) {
		return h, cli.UsageError("--expires %q is not in the future: servers refuse a list that has expired", f.expires)
	}
	return h, nil
}

// finish writes the list d and prints a summary. If err has the mistakes in the inputs, finish reports them and
// writes nothing.
func (f *buildFlags) finish(cmd *cobra.Command, g *gather, output cli.Format, d *ekhashes.Document, err error) error {
	if err == nil && d.Len() == 0 && !f.allowEmpty {
		err = finding.MistakesError{{
			File: "the list",
			Problem: "no entry: if it is meant to be empty, add --allow-empty, and servers need the JSON form or " +
				"allow_empty",
		}}
	}
	result := built{
		Version: 1, To: f.place(), Mistakes: []finding.Mistake{}, Warnings: g.warnings.texts(), Form: f.form,
	}
	if mistakes, ok := errors.AsType[finding.MistakesError](err); ok {
		result.Mistakes = mistakes
		return f.refuse(cmd, g, output, result, mistakes)
	}
	if err != nil {
		return fmt.Errorf("read the machines: %w", err)
	}
	if err := f.write(cmd, g.progress, d); err != nil {
		return err
	}
	result.headerJSON, result.Entries = headerToJSON(d.Header()), d.Len()
	result.Merged = max(g.builder.Added()-d.Len(), 0)
	g.progress.End()
	return f.print(cmd, output, result)
}

// refuse reports the mistakes, and returns the exit code as an error.
func (f *buildFlags) refuse(
	cmd *cobra.Command, g *gather, output cli.Format, r built, mistakes finding.MistakesError,
) error {
	g.progress.End()
	if output == cli.JSON {
		if err := cli.PrintJSON(cmd, r); err != nil {
			return err
		}
		return cli.Exit(cli.ExitRefused, nil)
	}
	if err := printMessages(cmd, "warning: ", r.Warnings); err != nil {
		return err
	}
	if err := printMessages(cmd, "", []finding.MistakesError{mistakes}); err != nil {
		return err
	}
	return cli.Exit(cli.ExitRefused, errors.New("nothing was written: mend the mistakes above"))
}

// print says what was written. If the list itself goes to standard output, print uses standard error.
func (f *buildFlags) print(cmd *cobra.Command, output cli.Format, r built) error {
	if output == cli.JSON {
		return cli.PrintJSON(cmd, r)
	}
	if err := printMessages(cmd, "warning: ", r.Warnings); err != nil {
		return err
	}
	text := cli.Entries(r.Entries)
	if r.Merged > 0 {
		text += fmt.Sprintf(", of which %d were there more than once", r.Merged)
	}
	if r.To == "" {
		_, err := fmt.Fprintln(cmd.ErrOrStderr(), text)
		return err
	}
	return cli.PrintText(cmd, fmt.Sprintf("%s in %s\n", text, r.To))
}

func newConvert(output *cli.Format) *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "convert LIST",
		Short: "Write a list in another form",
		Long: `convert reads a LIST in any form, text, JSON, or a folder whose files are named by EK hashes, and
writes it in another one: to standard output, to a file (--to) or to a new folder (--to-dir). "-" is the
standard input.

The JSON form keeps serial, expires and list of a JSON list, unless a flag gives another value. The other
forms have none of them, and a warning says what is left out.

Exit code 3 says that there are mistakes in LIST.`,
		Example: cli.Examples(
			"tpm-attestor list convert machines.txt --to machines.json --serial 1",
			"tpm-attestor list convert machines.json --form text",
			"tpm-attestor list convert machines.json --to-dir /srv/tpm/hashes.2 --sharded",
		),
		Args: cli.OneArgument("the list"),
		RunE: func(cmd *cobra.Command, args []string) error { return runConvert(cmd, &f, *output, args[0]) },
	}
	cmd.ValidArgsFunction = cli.Files
	f.register(cmd)
	return cmd
}

func runConvert(cmd *cobra.Command, f *buildFlags, output cli.Format, name string) error {
	asked, err := f.header(cmd, list.Header{})
	if err == nil && f.form == "" && f.to == "" && f.toDir == "" && asked == (list.Header{}) {
		err = cli.UsageError("say what to make of it: --form text, --form json, --to FILE or --to-dir FOLDER")
	}
	if err == nil {
		err = f.check(asked, output)
	}
	if err != nil {
		return err
	}
	g := newGather(cmd, fromAuto, f.allowEmpty)
	defer g.progress.End()
	d, err := g.readDocument(name)
	if err == nil {
		d, err = f.rewrite(cmd, g, name, d)
	}
	return f.finish(cmd, g, output, d, err)
}

// rewrite returns the list d with its header, changed as the flags say. Only JSON has a header: for any other form,
// rewrite leaves it out and adds a warning.
func (f *buildFlags) rewrite(
	cmd *cobra.Command, g *gather, name string, d *ekhashes.Document,
) (*ekhashes.Document, error) {
	h, err := f.header(cmd, d.Header())
	if err != nil {
		return nil, err
	}
	if f.form != formJSON {
		if left := words(h); left != "" {
			g.warnings.add(name, left+": left out, since only JSON has that")
		}
		h = list.Header{}
	}
	return d.WithHeader(h)
}

// check returns an error if flags contradict each other, and otherwise chooses the form.
func (f *buildFlags) check(h list.Header, output cli.Format) error {
	if err := f.target.check(h != (list.Header{}), output); err != nil {
		return err
	}
	if strings.TrimSpace(f.name) != f.name {
		return cli.UsageError("--list %q has blanks around it", f.name)
	}
	return nil
}
