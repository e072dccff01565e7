// Package explain is the command that explains a decision: about this machine, or in a log.
package explain

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/preview"
)

// New returns the command explain.
func New(output *cli.Format) *cobra.Command {
	var f preview.Flags
	var log string
	cmd := &cobra.Command{
		Use:   "explain [CONFIG]",
		Short: "Explain what a server would decide about this machine, or a line of a log",
		Long: `explain says what a server with the configuration CONFIG would decide about this machine, and why, as
"tpm-attestor check CONFIG" does. Nothing is attested.

--log FILE explains lines that spire-server has logged about attestations, and what spire-agent has logged of
their failure, in plain words: what happened, the first cause, and what to do. FILE may hold anything else
besides; "-" is the standard input. The lines may be text or JSON, as SPIRE or the plugin writes them.

Exit codes of --log: 0 the last of the lines is of an admission, 3 of a refusal, 4 of anything that the server
could not tell; 2 if there is no line about an attestation.`,
		Example: cli.Examples(
			"tpm-attestor explain --log refusal.txt",
			"journalctl -u spire-server | grep 192.0.2.7 | tpm-attestor explain --log -",
			"sudo tpm-attestor explain server.conf",
		),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case log != "" && len(args) > 0:
				return cli.UsageError("name a configuration or --log, not both")
			case log != "":
				return explainLog(cmd, *output, log)
			case len(args) == 0:
				return cli.UsageError("name the configuration, or a log with --log")
			case len(args) > 1:
				return cli.UsageError("unexpected argument %q: tpm-attestor check asks about other machines", args[1])
			}
			return f.Run(cmd, *output, args[0], "")
		},
	}
	cmd.ValidArgsFunction = cli.Files
	f.Add(cmd)
	cmd.Flags().StringVar(&log, "log", "", "explain the lines of a log")
	cli.Complete(cmd, cli.Files, "log")
	return cmd
}

// explained is the JSON output of explain --log.
type explained struct {
	Version int           `json:"version"`
	Lines   []explanation `json:"lines"`
}

// maxLogLine is the longest line of a log that is looked at, in bytes. The server keeps its fields
// below 4 KiB each; a longer line is another program's.
const maxLogLine = 256 << 10

// eachLine calls f with the number and text of each line of at most maxLogLine bytes, and skips longer lines. It
// never holds more than maxLogLine bytes in memory.
func eachLine(from io.Reader, f func(n int, line string)) error {
	lines := bufio.NewReaderSize(from, maxLogLine)
	for n, rest := 1, false; ; {
		line, more, err := lines.ReadLine()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if !more && !rest {
			f(n, string(line))
		}
		if rest = more; !more {
			n++
		}
	}
}

// explainLog explains the lines of a log.
func explainLog(cmd *cobra.Command, output cli.Format, name string) error {
	from, err := input.Open(name, cmd.InOrStdin())
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	defer func() { _ = from.Close() }() // it was only read
	all := explained{Version: 1, Lines: []explanation{}}
	if err := eachLine(from, func(n int, text string) {
		if line, ok := explainLine(text); ok {
			line.Line = n
			all.Lines = append(all.Lines, line)
		}
	}); err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	all.Lines = withoutRepeats(all.Lines)
	if len(all.Lines) == 0 {
		return cli.Exit(cli.ExitUsage, errors.New("no line of it is about an attestation by tpm: "+
			"they have \"Attestation failed\" or \"Machine admitted\" in them; if an agent does not get that far, "+
			"tpm-attestor doctor says why, on its machine"))
	}
	if output == cli.JSON {
		err = cli.PrintJSON(cmd, all)
	} else {
		var b strings.Builder
		for i := range all.Lines {
			all.Lines[i].write(&b, i > 0)
		}
		err = cli.PrintText(cmd, b.String())
	}
	if err != nil {
		return err
	}
	return all.Lines[len(all.Lines)-1].exit()
}

// exit returns the exit code as an error.
func (l *explanation) exit() error {
	switch l.Decision {
	case preview.Admitted:
		return nil
	case preview.Refused:
		return cli.Exit(cli.ExitRefused, nil)
	}
	return cli.Exit(cli.ExitCannotTell, nil)
}

func (l *explanation) write(b *strings.Builder, another bool) {
	if another {
		b.WriteString("\n")
	}
	fmt.Fprintf(b, "%s\n", l.What)
	for _, part := range []struct{ label, text string }{
		{"time", l.Time},
		{"cause", l.Cause},
		{"to do", l.Remedy},
		{"EK hash", l.EKHash},
		{"name", l.Name},
		{"peer", l.Peer},
		{"SPIFFE ID", l.SPIFFEID},
		{"rules", l.Rules},
		{"boot", l.Boot},
		{"on trial", l.Trials},
	} {
		if part.text != "" {
			fmt.Fprintf(b, "  %-10s %s\n", part.label+":", part.text)
		}
	}
	if len(l.Sources) > 0 {
		b.WriteString("  sources:\n")
	}
	for _, s := range l.Sources {
		fmt.Fprintf(b, "    %-14s %s", s.Source, preview.AnswerInWords(s.Result))
		if s.Reason != "" {
			fmt.Fprintf(b, ": %s", s.Reason)
		}
		b.WriteString("\n")
	}
}
