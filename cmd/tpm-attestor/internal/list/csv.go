package list

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
)

// columns has the index of each column that is read, or -1 if the CSV file does not have it. doubtful has
// the titles of all other columns, by index.
type columns struct {
	hash, name, labels int
	doubtful           map[int]string
}

// columnsOf reads a header row. It ignores case, blanks, "_" and "-" in the titles.
func columnsOf(header []string) (columns, error) {
	c := columns{hash: -1, name: -1, labels: -1, doubtful: map[int]string{}}
	for i, title := range header {
		var known *int
		switch strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(title)) {
		case "hash", "ekhash":
			known = &c.hash
		case "name":
			known = &c.name
		case "labels":
			known = &c.labels
		default:
			c.doubtful[i] = title
			continue
		}
		if *known >= 0 {
			return c, fmt.Errorf("the columns %d and %d are both the %q", *known+1, i+1, title)
		}
		*known = i
	}
	if c.hash < 0 {
		return c, errors.New(`no column "hash" or "ek_hash" in the header row, which must be the first row`)
	}
	return c, nil
}

// separators are the characters that may separate columns. Spreadsheets write semicolons in countries whose
// numbers have a decimal comma.
const separators = ",;\t"

// separatorOf returns the first separator in a header row, or a comma if it has none.
func separatorOf(header string) rune {
	if i := strings.IndexAny(header, separators); i >= 0 {
		return rune(header[i])
	}
	return ','
}

func splitHeader(header string) []string {
	titles := strings.Split(strings.TrimRight(header, "\r"), string(separatorOf(header)))
	for i, t := range titles {
		titles[i] = strings.Trim(strings.TrimSpace(t), `"`)
	}
	return titles
}

// csv reads an entry from each row of a CSV file.
func (g *gather) csv(name string, in *bufio.Reader) error {
	g.begin(name, true)
	begin, err := in.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.HasPrefix(string(begin[:min(len(begin), 3)]), "\ufeff") { // Excel writes a byte order mark
		_, _ = in.Discard(len("\ufeff")) // cannot fail: Peek has buffered it
		begin = begin[len("\ufeff"):]
	}
	first, _, _ := strings.Cut(string(begin), "\n")
	budget := &rowBudget{in: &bounded{in, maxRows}}
	rows := csv.NewReader(budget)
	rows.Comma, rows.ReuseRecord = separatorOf(first), true
	rows.TrimLeadingSpace = rows.Comma != '\t'
	budget.reset()
	header, err := rows.Read()
	if err != nil {
		return g.csvError(name, 1, err)
	}
	c, err := columnsOf(header)
	if err != nil {
		return g.wrong(finding.Mistake{File: name, Line: 1, Problem: err.Error()})
	}
	for line := 1; ; {
		budget.reset()
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			if stop := g.csvError(name, line+1, err); stop != nil || !errors.Is(err, csv.ErrFieldCount) {
				return stop
			}
			continue
		}
		line, _ = rows.FieldPos(0)
		if err := g.csvRow(name, line, c, row); err != nil {
			return err
		}
	}
}

// csvError notes an error as a mistake in a line. If the error says in which line the row begins, that line counts.
func (g *gather) csvError(name string, line int, err error) error {
	m := finding.Mistake{File: name, Line: line, Problem: err.Error()}
	if errors.Is(err, io.EOF) {
		m.Problem = "the file is empty: it needs a header row"
	}
	if syntax, ok := errors.AsType[*csv.ParseError](err); ok {
		m.Line, m.Problem = syntax.StartLine, syntax.Err.Error()
		if errors.Is(err, csv.ErrFieldCount) {
			m.Problem = "another number of columns than the header row has"
		}
	}
	return g.wrong(m)
}

// csvRow adds the entry in a row.
func (g *gather) csvRow(name string, line int, c columns, row []string) error {
	if strings.TrimSpace(strings.Join(row, "")) == "" { // spreadsheets leave empty rows at the end
		return nil
	}
	hash, err := ekhashes.ParseHash([]byte(strings.TrimSpace(row[c.hash])))
	if err != nil {
		return g.wrong(finding.Mistake{File: name, Line: line, Problem: err.Error()})
	}
	for i, title := range c.doubtful {
		if text := ekhashes.DoubtfulField(title, jsonValue(row[i])); text != "" {
			g.warnings.add(fmt.Sprintf("%s:%d", name, line), text)
		}
	}
	e := ekhashes.Entry{Hash: hash}
	if c.name >= 0 {
		e.Name = strings.TrimSpace(row[c.name])
	}
	if c.labels >= 0 {
		e.Labels = strings.Fields(row[c.labels])
	}
	return g.add(line, e)
}

// jsonValue returns a field as the JSON value that it most likely means.
func jsonValue(field string) []byte {
	switch field = strings.ToLower(strings.TrimSpace(field)); field {
	case "true", "false", "null", "0", "1":
		return []byte(field)
	}
	return strconv.AppendQuote(nil, field)
}

// A rowBudget is a reader that fails if a row is too long. Without it, a quote that is never closed would
// turn the rest of the file into one field.
type rowBudget struct {
	in   io.Reader
	left int
}

func (b *rowBudget) reset() { b.left = maxRow }

// Read implements io.Reader.
func (b *rowBudget) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, fmt.Errorf("a row of more than %d bytes: is a quote not closed?", maxRow)
	}
	n, err := b.in.Read(p)
	b.left -= n
	return n, err
}
