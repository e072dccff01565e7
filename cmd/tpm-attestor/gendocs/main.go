// Gendocs writes the documentation of tpm-attestor that goes into packages. gendocs DIR makes DIR/man with manual
// pages, DIR/markdown with the same pages in Markdown, and DIR/completions with a file for each shell. The manual pages
// have the date in the environment variable SOURCE_DATE_EPOCH, in seconds since 1970, or else today's. With the same
// date, the files are the same each time.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/root"
)

func main() {
	if err := run(os.Args[1:], os.Getenv("SOURCE_DATE_EPOCH")); err != nil {
		fmt.Fprintln(os.Stderr, "gendocs:", err)
		os.Exit(1)
	}
}

func run(args []string, epoch string) error {
	if len(args) != 1 {
		return errors.New("name the folder to write")
	}
	date := time.Now()
	if epoch != "" {
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
		date = time.Unix(seconds, 0)
	}
	dir := args[0]
	return errors.Join(
		writeManual(filepath.Join(dir, "man"), date.UTC()),
		writeMarkdown(filepath.Join(dir, "markdown")),
		writeCompletions(filepath.Join(dir, "completions")),
	)
}

// newRoot returns the command tpm-attestor. Each writer needs a new one, since it changes the texts.
func newRoot() *cobra.Command {
	cmd := root.New("")
	cmd.DisableAutoGenTag = true
	cmd.CompletionOptions.DisableDefaultCmd = true // no pages about completion
	return cmd
}

// all returns a command and all commands below it.
func all(cmd *cobra.Command) []*cobra.Command {
	commands := []*cobra.Command{cmd}
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			commands = append(commands, all(c)...)
		}
	}
	return commands
}

// writeManual writes a manual page for each command.
func writeManual(dir string, date time.Time) error {
	for _, cmd := range all(newRoot()) {
		asMarkdown(cmd)
		for _, flags := range []*pflag.FlagSet{cmd.NonInheritedFlags(), cmd.InheritedFlags()} {
			flags.VisitAll(func(f *pflag.Flag) { f.Usage = escape(f.Usage) })
		}
		header := &doc.GenManHeader{
			Section: "1", Date: &date, Source: "tpm-attestor", Manual: "SPIRE node attestor tpm",
		}
		var page bytes.Buffer
		if err := doc.GenMan(cmd, header, &page); err != nil {
			return err
		}
		name := strings.ReplaceAll(cmd.CommandPath(), " ", "-") + ".1"
		if err := write(dir, name, page.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// writeMarkdown writes a page in Markdown for each command.
func writeMarkdown(dir string) error {
	for _, cmd := range all(newRoot()) {
		asMarkdown(cmd)
		var page bytes.Buffer
		if err := doc.GenMarkdown(cmd, &page); err != nil {
			return err
		}
		text := append(bytes.TrimRight(page.Bytes(), "\n"), '\n')
		if err := write(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "_")+".md", text); err != nil {
			return err
		}
	}
	return nil
}

// writeCompletions writes a file for each shell, under the name that the shell expects.
func writeCompletions(dir string) error {
	cmd := newRoot()
	var bash, zsh, fish, powershell bytes.Buffer
	if err := errors.Join(
		cmd.GenBashCompletionV2(&bash, true), cmd.GenZshCompletion(&zsh),
		cmd.GenFishCompletion(&fish, true), cmd.GenPowerShellCompletionWithDesc(&powershell),
	); err != nil {
		return err
	}
	return errors.Join(
		write(dir, "tpm-attestor", bash.Bytes()),
		write(dir, "_tpm-attestor", zsh.Bytes()),
		write(dir, "tpm-attestor.fish", fish.Bytes()),
		write(dir, "tpm-attestor.ps1", powershell.Bytes()),
	)
}

func write(dir, name string, content []byte) error {
	const folder, file = 0o755, 0o644
	if err := os.MkdirAll(dir, folder); err != nil { //nolint:gosec // G703: the caller names the folder
		return err
	}
	return os.WriteFile(filepath.Join(dir, name), content, file) //nolint:gosec // G703: as above
}

// asMarkdown turns the texts of a command into Markdown: indented lines become code, and all other text is escaped.
func asMarkdown(cmd *cobra.Command) {
	cmd.Short = escape(cmd.Short)
	lines := strings.Split(cmd.Long, "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, "  ") {
			lines[i] = "  " + line // four blanks begin code
		} else {
			lines[i] = escape(line)
		}
	}
	cmd.Long = strings.Join(lines, "\n")
}

var escaper = strings.NewReplacer(
	`\`, `\\`, "<", `\<`, ">", `\>`, "*", `\*`, "_", `\_`, "`", "\\`", "[", `\[`, "]", `\]`, "#", `\#`, "|", `\|`,
)

// escape returns a text in which Markdown finds no markup.
func escape(text string) string { return escaper.Replace(text) }
