package list

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/spire-tpm/spire-tpm-attestor/cmd/internal/input"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/cli"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/ekfile"
	"github.com/spire-tpm/spire-tpm-attestor/cmd/tpm-attestor/internal/finding"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/ekhashes"
	"github.com/spire-tpm/spire-tpm-attestor/sources/smallfile"
)

// An inputKind is the value of --from.
type inputKind string

// The kinds of inputs.
const (
	fromAuto   inputKind = "auto"
	fromList   inputKind = "list"
	fromHashes inputKind = "hashes"
	fromKeys   inputKind = "keys"
	fromCSV    inputKind = "csv"
	fromNDJSON inputKind = "ndjson"
)

func (k *inputKind) String() string { return string(*k) }

// Set implements pflag.Value.
func (k *inputKind) Set(s string) error {
	switch kind := inputKind(s); kind {
	case fromAuto, fromList, fromHashes, fromKeys, fromCSV, fromNDJSON:
		*k = kind
		return nil
	}
	return errors.New("choose auto, list, hashes, keys, csv or ndjson")
}

// Type implements pflag.Value.
func (*inputKind) Type() string { return "kind" }

const (
	// maxRows is the size of the largest CSV or NDJSON file that is read, in bytes. Only one row of
	// it is in memory at a time.
	maxRows = 2 << 30
	// maxRow is the size of the largest row, in bytes: it is enough for an entry with all the
	// labels that are allowed and each character escaped.
	maxRow = 256 << 10
	// maxKeyFiles limits a folder of keys, which must have fewer files and folders in it.
	maxKeyFiles = 1 << 20
)

// read reads one input.
func (g *gather) read(name string) error {
	if name != "-" {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		if info.IsDir() {
			return g.folder(name)
		}
	}
	file, err := input.Open(name, g.cmd.InOrStdin())
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was only read
	in := bufio.NewReaderSize(file, sniffed)
	begin, err := in.Peek(sniffed)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	kind := g.from
	if isUTF16 := bytes.HasPrefix(begin, []byte("\xff\xfe")) || bytes.HasPrefix(begin, []byte("\xfe\xff")); isUTF16 {
		kind = fromList // the parser of lists tells the user what to do
	} else if kind == fromAuto {
		kind = kindOf(name, begin)
	}
	switch kind {
	case fromHashes:
		return cli.UsageError("%s: --from hashes is for a folder whose files are named by hashes", name)
	case fromCSV:
		return g.csv(name, in)
	case fromNDJSON:
		return g.ndjson(name, in)
	case fromKeys:
		return g.keys(name, in)
	}
	return g.list(name, rewound(file, in))
}

// rewound returns the file, rewound to its beginning. If it cannot be rewound, rewound returns in, from which
// nothing has been taken yet.
func rewound(file io.Reader, in *bufio.Reader) io.Reader {
	if seeker, ok := file.(io.Seeker); ok {
		if _, err := seeker.Seek(0, io.SeekStart); err == nil {
			return file
		}
	}
	return in
}

// sniffed is how many bytes of a file are looked at to recognize its kind.
const sniffed = 64 << 10

// kindOf recognizes the kind of a file by its name, or else by its beginning.
func kindOf(name string, begin []byte) inputKind {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".csv":
		return fromCSV
	case ".ndjson", ".jsonl":
		return fromNDJSON
	}
	head := begin[:min(len(begin), 64)] // may end within a character, which does not make it binary
	if bytes.IndexByte(head, 0) >= 0 || !utf8.Valid(head[:max(0, len(head)-utf8.UTFMax)]) {
		return fromKeys
	}
	begin = bytes.TrimLeft(smallfile.TrimMark(begin), " \t\r\n")
	// A file that begins with a hash is a list, even if somebody has pasted PEM into it: no hash may be skipped.
	word := begin[:min(len(begin), 2*len(sources.EKHash{}))]
	if _, err := ekhashes.ParseHash(word); err != nil && bytes.Contains(begin, []byte("-----BEGIN")) {
		return fromKeys
	}
	if bytes.HasPrefix(begin, []byte("{")) {
		var first struct {
			Hash json.RawMessage `json:"hash"`
			Keys json.RawMessage `json:"keys"`
		}
		if json.NewDecoder(bytes.NewReader(begin)).Decode(&first) == nil && first.Hash != nil && first.Keys == nil {
			return fromNDJSON
		}
		return fromList
	}
	header, _, _ := bytes.Cut(begin, []byte("\n"))
	if _, err := columnsOf(splitHeader(string(header))); err == nil {
		return fromCSV
	}
	return fromList
}

// list reads a list, as text or JSON, and adds its entries.
func (g *gather) list(name string, in io.Reader) error {
	d, err := g.document(name, in)
	if err != nil || d == nil {
		return err
	}
	g.begin(name, false)
	for e := range d.All() {
		if err := g.add(0, e); err != nil {
			return err
		}
	}
	return nil
}

// document reads a whole list. If the list has mistakes, document notes them and returns no list.
func (g *gather) document(name string, in io.Reader) (*ekhashes.Document, error) {
	content, err := limited(name, in, maxList)
	if err != nil {
		return nil, err
	}
	d, err := ekhashes.Parse(content, ekhashes.Options{AllowEmpty: g.allowEmpty})
	if err != nil {
		return nil, g.wrong(finding.MistakesIn(name, err)...)
	}
	for _, w := range d.Warnings() {
		g.warnings.add(name, w)
	}
	return d, nil
}

// limited reads a whole stream. It returns an error if the stream is longer than most bytes.
func limited(name string, in io.Reader, most int64) ([]byte, error) {
	content, err := input.ReadAll(in, most)
	if errors.Is(err, input.ErrTooLong) {
		err = fmt.Errorf("%s is longer than %d bytes, more than such a file may have", name, most)
	}
	return content, err
}

// keys reads a file of public keys or EK certificates.
func (g *gather) keys(name string, in io.Reader) error {
	content, err := limited(name, in, ekfile.MaxSize)
	if err != nil {
		return err
	}
	file, err := ekfile.Parse(name, content)
	if err != nil {
		return g.wrong(finding.Mistake{File: name, Problem: err.Error()})
	}
	g.begin(name, false)
	for i := range file.Evidence {
		if err := g.add(0, ekhashes.Entry{Hash: file.Evidence[i].EKHash}); err != nil {
			return err
		}
	}
	return nil
}

// folder reads a folder whose files are named by hashes. Without --from, it reads the files as keys if none is
// named by a hash.
func (g *gather) folder(name string) error {
	if g.from != fromAuto && g.from != fromHashes && g.from != fromKeys {
		return cli.UsageError("%s is a folder: --from %s is for files", name, g.from)
	}
	if g.from == fromKeys {
		return g.keyFolder(name)
	}
	g.begin(name, false)
	var stop error
	listed := 0
	found, others, err := hashdir.Entries(g.ctx, name, func(
		path string, hash sources.EKHash, attrs sources.Attributes, err error,
	) {
		listed++
		switch {
		case stop != nil:
		case err != nil:
			stop = g.wrong(finding.Mistake{File: filepath.Join(name, path), Problem: err.Error()})
		default:
			stop = g.add(0, ekhashes.Entry{Hash: hash, Name: attrs.Name, Labels: attrs.Labels})
		}
	})
	switch {
	case err != nil:
		return fmt.Errorf("folder %q: %w", name, err)
	case stop != nil:
		return stop
	case listed == 0 && g.from == fromAuto && len(found) == 0:
		return g.keyFolder(name)
	}
	for _, w := range found {
		g.warnings.add(name, w)
	}
	if others > 0 {
		g.warnings.add(name, fmt.Sprintf("%d files are not named by a hash and were left out", others))
	}
	return nil
}

// keyFolder reads the files of keys and certificates in a folder. It skips folders, and names that begin with
// a dot.
func (g *gather) keyFolder(name string) error {
	folder, err := os.Open(name) //nolint:gosec // G304: the operator names it
	if err != nil {
		return err
	}
	defer func() { _ = folder.Close() }() // it was only read
	files, err := folder.ReadDir(maxKeyFiles)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	read := 0
	for _, entry := range files {
		path := filepath.Join(name, entry.Name())
		info, err := os.Stat(path) // follows links
		if strings.HasPrefix(entry.Name(), ".") || err == nil && info.IsDir() {
			continue
		}
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%q is not a regular file", path)
		}
		if err != nil {
			return err
		}
		read++
		if err := g.keyFile(path); err != nil {
			return err
		}
	}
	if read == 0 || len(files) == maxKeyFiles {
		return g.wrong(finding.Mistake{File: name, Problem: fmt.Sprintf(
			"the folder has no file with an EK, or more than %d files: name the folder of the hashes, keys or "+
				"certificates itself", maxKeyFiles-1)})
	}
	return nil
}

func (g *gather) keyFile(path string) error {
	file, err := os.Open(path) //nolint:gosec // G304: in a folder that the operator names
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // it was only read
	return g.keys(path, file)
}

// A bounded reader fails if it reads more than left bytes. Ending there without an error would leave machines out
// of the list.
type bounded struct {
	in   io.Reader
	left int64
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.in.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fmt.Errorf("more than %d bytes: split the file, and name all its parts", int64(maxRows))
	}
	return n, err
}

// ndjson reads an entry from each line.
func (g *gather) ndjson(name string, in io.Reader) error {
	g.begin(name, true)
	rows := bufio.NewScanner(&bounded{in, maxRows})
	rows.Buffer(make([]byte, sniffed), maxRow)
	line := 0
	for rows.Scan() {
		line++
		row := rows.Bytes()
		if line == 1 {
			row = smallfile.TrimMark(row)
		}
		if len(bytes.TrimSpace(row)) == 0 {
			continue
		}
		if err := g.row(name, line, row); err != nil {
			return err
		}
	}
	if errors.Is(rows.Err(), bufio.ErrTooLong) {
		return g.wrong(finding.Mistake{
			File: name, Line: line + 1, Problem: fmt.Sprintf("a line of more than %d bytes", maxRow),
		})
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// row reads one line of NDJSON.
func (g *gather) row(name string, line int, row []byte) error {
	e, doubts, err := ekhashes.ParseEntry(row)
	if err != nil {
		all := finding.MistakesIn(name, err)
		all[0].Line = line
		return g.wrong(all...)
	}
	for _, d := range doubts {
		g.warnings.add(fmt.Sprintf("%s:%d", name, line), d)
	}
	return g.add(line, e)
}

// readFolder reads a folder whose files are named by hashes into a list.
func (g *gather) readFolder(name string) (*ekhashes.Document, error) {
	g.from = fromHashes
	d, err := g.all([]string{name}, list.Header{})
	if err == nil && d.Len() == 0 && !g.allowEmpty {
		return nil, finding.MistakesError{{File: name, Problem: "no file in the folder is named by an EK hash: " +
			"if it is meant to be empty, add --allow-empty"}}
	}
	return d, err
}

// readDocument reads one list with its header: text, JSON, or a folder whose files are named by hashes.
func (g *gather) readDocument(name string) (*ekhashes.Document, error) {
	info, err := os.Stat(name)
	if name != "-" && err != nil {
		return nil, err
	}
	if name != "-" && info.IsDir() {
		return g.readFolder(name)
	}
	file, err := input.Open(name, g.cmd.InOrStdin())
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // it was only read
	d, err := g.document(name, file)
	if len(g.mistakes) > 0 {
		return nil, finding.MistakesError(g.mistakes)
	}
	return d, err
}
