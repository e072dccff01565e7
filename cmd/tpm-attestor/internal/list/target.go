package list

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/internal/atomicfile"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// A form is the form in which a list is written: the value of --form, or formFolder with --to-dir.
type form string

// The forms.
const (
	formText   form = "text"
	formJSON   form = "json"
	formFolder form = "folder"
)

func (f *form) String() string { return string(*f) }

// Set implements pflag.Value.
func (f *form) Set(s string) error {
	switch form := form(s); form {
	case formText, formJSON:
		*f = form
		return nil
	}
	return errors.New("choose text or json")
}

// Type implements pflag.Value.
func (*form) Type() string { return "form" }

// A target is where a list is written, and in which form.
type target struct {
	to, toDir string
	form      form
	sharded   bool
}

func (t *target) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.to, "to", "", "the file to write, which is replaced as a whole (default standard output)")
	cmd.Flags().StringVar(&t.toDir, "to-dir", "", "the new folder to write, with a file for each machine, "+
		"for the source hash_dir")
	cmd.Flags().Var(&t.form, "form", "the form of the list: text or json (default json if FILE in --to ends in "+
		".json or something only JSON has is asked for, otherwise text)")
	cmd.Flags().BoolVar(&t.sharded, "sharded", false, "with --to-dir: in folders by the first two digits, "+
		"for more than ten thousand machines")
	cli.Complete(cmd, cli.Files, "to")
	cli.Complete(cmd, cli.Folders, "to-dir")
	cli.Complete(cmd, cli.OneOf("text", "json"), "form")
}

// check returns an error if flags contradict each other, and otherwise chooses the form. header says whether
// the list gets a header.
func (t *target) check(header bool, output cli.Format) error {
	if t.to == "-" {
		t.to = ""
	}
	switch {
	case t.to != "" && t.toDir != "":
		return cli.UsageError("choose one of --to and --to-dir")
	case t.toDir != "" && t.form != "":
		return cli.UsageError("--form is for a list in a file: leave it out with --to-dir")
	case t.sharded && t.toDir == "":
		return cli.UsageError("--sharded is for a folder: add --to-dir")
	case (t.toDir != "" || t.form == formText) && header:
		return cli.UsageError("--serial, --expires and --list are for a list in JSON")
	case output == cli.JSON && t.place() == "":
		return cli.UsageError("the list itself is on standard output: add --to or --to-dir, or leave --output json out")
	}
	switch {
	case t.toDir != "":
		t.form = formFolder
	case t.form == "" && (header || strings.EqualFold(filepath.Ext(t.to), ".json")):
		t.form = formJSON
	case t.form == "":
		t.form = formText
	}
	return nil
}

// place returns the path to write to, or an empty string for standard output.
func (t *target) place() string {
	if t.toDir != "" {
		return t.toDir
	}
	return t.to
}

// write writes a list. A file or a folder is written as a whole or not at all.
func (t *target) write(cmd *cobra.Command, p *cli.Progress, d *ekhashes.Document) error {
	writeTo := d.WriteText
	if t.form == formJSON {
		writeTo = d.WriteJSON
	}
	var err error
	switch {
	case t.toDir != "":
		p.Now("writing " + t.toDir)
		err = atomicfile.WriteFolder(t.toDir, func(folder *os.Root) error { return t.writeFiles(cmd, folder, d) })
	case t.to != "":
		p.Now("writing " + t.to)
		err = atomicfile.Write(t.to, writeTo)
	default:
		p.End() // standard output may be the same terminal
		err = writeTo(cmd.OutOrStdout())
	}
	if err != nil {
		return fmt.Errorf("write the list: %w", err)
	}
	return nil
}

// writeFiles writes a file for each entry.
func (t *target) writeFiles(cmd *cobra.Command, folder *os.Root, d *ekhashes.Document) error {
	const searchable, often = 0o777, 1 << 10 // less the umask
	shard, n := "", 0
	for e := range d.All() {
		if n++; n%often == 0 && cmd.Context().Err() != nil {
			return cmd.Context().Err()
		}
		path := e.Hash.String()
		if t.sharded {
			if path[:2] != shard { // entries are sorted by hash
				shard = path[:2]
				if err := folder.Mkdir(shard, searchable); err != nil {
					return err
				}
			}
			path = shard + "/" + path
		}
		if err := writeEntry(folder, path, e); err != nil {
			return err
		}
	}
	return nil
}

// writeEntry writes the file of one entry, as the source hash_dir reads it.
func writeEntry(folder *os.Root, path string, e ekhashes.Entry) error {
	const readable = 0o666 // less the umask
	file, err := folder.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, readable)
	if err != nil {
		return err
	}
	if e.Name != "" || len(e.Labels) > 0 {
		err = writeContent(file, e)
	}
	return errors.Join(err, file.Close())
}

func writeContent(w io.Writer, e ekhashes.Entry) error {
	j := json.NewEncoder(w)
	j.SetEscapeHTML(false)
	return j.Encode(struct {
		Name   string   `json:"name,omitempty"`
		Labels []string `json:"labels,omitempty"`
	}{e.Name, e.Labels})
}
