package sqltable

import (
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
)

// maxColumn is the maximum length of the text in a column, in bytes: enough for the maximum number
// of labels with each character escaped.
const maxColumn = sources.MaxLabels * (6*sources.MaxLabel + 4)

// errTwoRows is the error for a query that does not distinguish TPMs.
var errTwoRows = errors.New("the query returns more than one row for one EK hash: " +
	"make the hash the table's primary key")

// A shapeError means that an answer cannot be used: the database works, but a person must correct
// the query or the data.
type shapeError struct{ err error }

func (e shapeError) Error() string { return e.err.Error() }
func (e shapeError) Unwrap() error { return e.err }

// readRows reads the result of a look-up. If there is more than one row, it calls abort, which
// closes the connection: closing rows would read all of them.
func readRows(rows *sql.Rows, abort func()) (sources.Verdict, error) {
	columns, err := rows.Columns()
	if err != nil {
		return sources.Verdict{}, err
	}
	r, err := newRow(columns)
	if err != nil {
		return sources.Verdict{}, shapeError{err}
	}
	found := rows.Next()
	if found {
		if err := rows.Scan(r.targets...); err != nil {
			return sources.Verdict{}, shapeError{fmt.Errorf("read the row: %w", err)}
		}
		if rows.Next() {
			abort()
			return sources.Verdict{}, shapeError{errTwoRows}
		}
	}
	// Rows also end when the connection is lost.
	if err := rows.Err(); err != nil {
		return sources.Verdict{}, err
	}
	if !found {
		return sources.Verdict{}, nil
	}
	attrs, err := r.attributes()
	if err != nil {
		return sources.Verdict{}, shapeError{fmt.Errorf("the row of this EK hash: %w", err)}
	}
	return sources.Verdict{Listed: true, Reason: "has a row with the hash", Attributes: attrs}, nil
}

// A row is the columns of one row that are used.
type row struct {
	name, labels any
	targets      []any
}

// newRow finds the columns name and labels.
func newRow(columns []string) (*row, error) {
	r := &row{}
	var ignored any
	known := map[string]*any{"name": &r.name, "labels": &r.labels}
	for _, column := range columns {
		column = strings.ToLower(column)
		target, ok := known[column]
		if !ok {
			target = &ignored
		} else if slices.Contains(r.targets, any(target)) {
			return nil, fmt.Errorf("the query returns two columns called %s: rename one of them", column)
		}
		r.targets = append(r.targets, target)
	}
	return r, nil
}

// attributes returns what the row says about the TPM, or an error if that exceeds a limit of
// sources.Attributes.
func (r *row) attributes() (sources.Attributes, error) {
	name, err := text("name", r.name)
	if err != nil {
		return sources.Attributes{}, err
	}
	list, err := text("labels", r.labels)
	if err != nil {
		return sources.Attributes{}, err
	}
	labels, err := parseLabels(list)
	if err != nil {
		return sources.Attributes{}, err
	}
	return sources.Attributes{Name: name, Labels: labels}.Tidy()
}

// text returns the text in a column; null counts as an empty text.
func text(column string, value any) (string, error) {
	var s string
	switch v := value.(type) {
	case nil:
	case string:
		s = v
	case []byte:
		s = string(v)
	default:
		return "", fmt.Errorf("the column %s is a %T, not text", column, value)
	}
	if len(s) > maxColumn {
		return "", fmt.Errorf("the column %s has %d bytes, more than %d", column, len(s), maxColumn)
	}
	return s, nil
}

// errLabels does not quote the text, since it is logged.
var errLabels = errors.New(`the column labels is not a JSON array of strings, such as ["rack:12", "env:prod"]`)

// parseLabels reads a JSON array of strings. An empty text and null mean no labels.
func parseLabels(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	var all []*string
	if err := json.Unmarshal([]byte(list), &all); err != nil {
		return nil, errLabels
	}
	labels := make([]string, len(all))
	for i, l := range all {
		if l == nil {
			return nil, errLabels
		}
		labels[i] = *l
	}
	return labels, nil
}
