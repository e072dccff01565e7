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

// maxColumn is the longest text of a column that is looked at, in bytes: as many
// labels as there may be, each character escaped.
const maxColumn = sources.MaxLabels * (6*sources.MaxLabel + 4)

// errTwoRows is the answer of a query that does not tell TPMs apart.
var errTwoRows = errors.New("the query returns more than one row for one EK hash: " +
	"make the hash the table's primary key")

// A shapeError is an answer of the database that says nothing: it has answered,
// and a person must act.
type shapeError struct{ err error }

func (e shapeError) Error() string { return e.err.Error() }
func (e shapeError) Unwrap() error { return e.err }

// readRows reads what a look-up has found. abort ends the connection rather than
// have it read the rest.
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
	// A connection that is lost in the middle ends the rows as well.
	if err := rows.Err(); err != nil {
		return sources.Verdict{}, err
	}
	if !found {
		return sources.Verdict{}, rows.Close()
	}
	attrs, err := r.attributes()
	if err != nil {
		return sources.Verdict{}, shapeError{fmt.Errorf("the row of this EK hash: %w", err)}
	}
	return sources.Verdict{Listed: true, Reason: "has a row with the hash", Attributes: attrs}, rows.Close()
}

// A row is what one row says about its TPM.
type row struct {
	name, labels any
	targets      []any
}

// newRow finds the columns that mean something.
func newRow(columns []string) (*row, error) {
	r := &row{targets: make([]any, len(columns))}
	var ignored any
	for i, column := range columns {
		var known *any
		switch {
		case strings.EqualFold(column, "name"):
			known = &r.name
		case strings.EqualFold(column, "labels"):
			known = &r.labels
		default:
			r.targets[i] = &ignored
			continue
		}
		if slices.Contains(r.targets, any(known)) {
			return nil, fmt.Errorf("the query returns two columns called %s: rename one of them",
				strings.ToLower(column))
		}
		r.targets[i] = known
	}
	return r, nil
}

// attributes returns what the row says, within the limits of package sources.
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

// text returns the value of a column; null is empty.
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

// errLabels does not quote the text: the error ends in a log.
var errLabels = errors.New(`the column labels is not a JSON array of strings, such as ["rack:12", "env:prod"]`)

// parseLabels reads a JSON array of strings. An empty text and null are none.
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
