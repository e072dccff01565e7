package list

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// A gather reads entries from any kind of input into one list. It reads CSV and NDJSON row by row, and never
// holds the whole file in memory.
type gather struct {
	ctx        context.Context //nolint:containedctx // a gather serves one command
	cmd        *cobra.Command
	from       inputKind
	allowEmpty bool
	progress   *cli.Progress

	builder  *ekhashes.Builder
	inputs   []numbered
	next     uint32 // the lowest number that the next entry may get
	mistakes []finding.Mistake
	warnings warnings
}

// numbered says which numbers the entries of an input have. They begin at first; if lines is true, the number of
// an entry is first plus its line.
type numbered struct {
	name  string
	first uint32
	lines bool
}

// newGather returns a gather, which counts entries once if they describe a machine in the same way. The caller
// must call progress.End.
func newGather(cmd *cobra.Command, from inputKind, allowEmpty bool) *gather {
	g := &gather{ctx: cmd.Context(), cmd: cmd, from: from, allowEmpty: allowEmpty}
	g.builder = ekhashes.NewBuilder(g.place, true)
	g.progress = cli.StartProgress(cmd.ErrOrStderr(), "reading", "entries")
	return g
}

// place returns the input and, if there is one, the line of the entry with the number at.
func (g *gather) place(at uint32, hash sources.EKHash) string {
	i, found := slices.BinarySearchFunc(g.inputs, at, func(n numbered, at uint32) int {
		if n.first < at {
			return -1
		}
		return int(min(n.first-at, 1))
	})
	if !found {
		i--
	}
	if n := g.inputs[i]; n.lines {
		return fmt.Sprintf("%s:%d", n.name, at-n.first)
	}
	return fmt.Sprintf("%s (hash %.8s…)", g.inputs[i].name, hash)
}

// begin notes that the next entries come from the input name. lines says whether they have lines.
func (g *gather) begin(name string, lines bool) {
	g.progress.Now("reading " + name)
	g.inputs = append(g.inputs, numbered{name, g.next, lines})
	g.next++
}

// errEnough stops the reading: there are already as many mistakes as are reported.
var errEnough = errors.New("enough mistakes")

// add adds an entry of the current input. line is 0 if the entry has none.
func (g *gather) add(line int, e ekhashes.Entry) error {
	const often = 1 << 12
	if g.builder.Added()%often == 0 && g.ctx.Err() != nil {
		return g.ctx.Err()
	}
	g.progress.Add(1)
	in := g.inputs[len(g.inputs)-1]
	at := in.first + uint32(line) // fits, since a file has at most maxRows bytes
	g.next = at + 1
	err := g.builder.Add(at, e)
	if problem, ok := errors.AsType[*list.FormatError](err); ok {
		return g.wrong(finding.Mistake{File: in.name, Line: line, Problem: problem.Problem})
	}
	return err
}

// wrong notes mistakes, and returns errEnough if no more are reported after them.
func (g *gather) wrong(more ...finding.Mistake) error {
	g.mistakes = append(g.mistakes, more...)
	if len(g.mistakes) >= list.MaxMistakes {
		g.mistakes = g.mistakes[:list.MaxMistakes]
		return errEnough
	}
	return nil
}

// all reads all inputs and returns the list of their entries. The error is a finding.MistakesError if an
// input has mistakes.
func (g *gather) all(names []string, header list.Header) (*ekhashes.Document, error) {
	for _, name := range names {
		if err := g.read(name); errors.Is(err, errEnough) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	if len(g.mistakes) > 0 {
		return nil, finding.MistakesError(g.mistakes)
	}
	g.progress.Now("sorting")
	d, err := g.builder.Build(header)
	if several, ok := errors.AsType[list.FormatErrors](err); ok {
		for _, one := range several {
			_ = g.wrong(finding.Mistake{File: one.Place, Problem: one.Problem}) // errEnough has nothing left to stop
		}
		return nil, finding.MistakesError(g.mistakes)
	}
	if one, ok := errors.AsType[*list.FormatError](err); ok {
		return nil, finding.MistakesError{{File: one.Place, Problem: one.Problem}}
	}
	return d, err
}

// warnings has each warning once, with the first place that it is about.
type warnings struct {
	order []*warning
	known map[string]*warning
	more  bool
}

type warning struct {
	place, text string
	count       int
}

func (w *warnings) add(place, text string) {
	if known, ok := w.known[text]; ok {
		known.count++
		return
	}
	if len(w.order) == list.MaxMistakes {
		w.more = true
		return
	}
	if w.known == nil {
		w.known = map[string]*warning{}
	}
	one := &warning{place, text, 1}
	w.known[text] = one
	w.order = append(w.order, one)
}

func (w *warnings) texts() []string {
	all := []string{}
	for _, one := range w.order {
		text := one.place + ": " + one.text
		if one.count > 1 {
			text += fmt.Sprintf(" (and in %d more places)", one.count-1)
		}
		all = append(all, text)
	}
	if w.more {
		all = append(all, "there are more warnings than these")
	}
	return all
}
