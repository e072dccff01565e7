package sqltable_test

import (
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// The placeholder is the question mark that the database reads as one: question marks in
// literals, quoted identifiers and comments stay as they are.
func TestRewrite(t *testing.T) {
	for _, test := range []struct{ query, postgres, mysql string }{
		{"SELECT 1 FROM t WHERE h = ?", "SELECT 1 FROM t WHERE h =  $1 ", ""},
		{"SELECT 1 FROM t WHERE h = ?;", "SELECT 1 FROM t WHERE h =  $1 ", "SELECT 1 FROM t WHERE h = ?"},
		{"SELECT 1 FROM t WHERE h = ? ; -- all", "SELECT 1 FROM t WHERE h =  $1  ", "SELECT 1 FROM t WHERE h = ? "},
		{"SELECT 1 FROM t WHERE h = ?5", "SELECT 1 FROM t WHERE h =  $1 5", ""},
		{"select 1 from t where h=decode(?,'hex')", "select 1 from t where h=decode( $1 ,'hex')", ""},
		{"\n\tWITH x AS (SELECT 1) SELECT * FROM x WHERE h = ?", "\n\tWITH x AS (SELECT 1) SELECT * FROM x WHERE h =  $1 ", ""},
		{"SELECT '?', '?''?' FROM t WHERE h = ?", "SELECT '?', '?''?' FROM t WHERE h =  $1 ", ""},
		{`SELECT "a?" FROM "t""?" WHERE h = ?`, `SELECT "a?" FROM "t""?" WHERE h =  $1 `, ""},
		{"SELECT 1 /* ? */ FROM t WHERE h = ? -- ?", "SELECT 1 /* ? */ FROM t WHERE h =  $1  -- ?", ""},
		{"SELECT 1 -- ?\nFROM t WHERE h = ?", "SELECT 1 -- ?\nFROM t WHERE h =  $1 ", ""},
		{"(SELECT 1 FROM t WHERE h = ?)", "-", "-"},
		{"SELECT 1 FROM t", "-", "-"},
		{"SELECT 1 FROM t WHERE h = '?'", "-", "-"},
		{"SELECT 1 FROM t -- WHERE h = ?", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ? OR g = ?", "-", "-"},
		{"SELECT 1 FROM t WHERE labels ? ?", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ?; DELETE FROM t", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ?;;", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ?; 'x'", "-", "-"},
		{"DELETE FROM t WHERE h = ?", "-", "-"},
		{"SELECTED ?", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ? AND a = 'x", "-", "-"},
		{`SELECT 1 FROM t WHERE h = ? AND "x`, "-", "-"},
		{"SELECT 1 FROM t WHERE h = ? /* x", "-", "-"},
		{`SELECT 1 FROM t WHERE h = ? AND a = 'x\'`, "-", "-"},
		{"SELECT 1 FROM t WHERE h = $1", "-", "-"},
		{"SELECT $$?$$ FROM t WHERE h = ?", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ? \x00", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ? \xff", "-", "-"},
		{"SELECT 1 --\x7f? \n WHERE h = ?", "-", "-"},
		{"", "-", "-"},
		{"?", "-", "-"},
		{"SELECT 1 FROM t WHERE h = ?" + strings.Repeat(" ", 16<<10), "-", "-"},
		// What the two dialects read differently.
		{"SELECT `?` FROM t WHERE h = ?", "-", ""},
		{"SELECT 1 # ?\nFROM t WHERE h = ?", "-", ""},
		{"SELECT 1--1 FROM t WHERE h = ?", "-", ""},
		{"SELECT /* a /* ? */ ? */ 1 FROM t WHERE h = ?", "SELECT /* a /* ? */ ? */ 1 FROM t WHERE h =  $1 ", "-"},
		{"SELECT 1 FROM t WHERE /*! h = */ ?", "SELECT 1 FROM t WHERE /*! h = */  $1 ", "-"},
		{"SELECT 1 FROM t WHERE /*M! h = */ ?", "SELECT 1 FROM t WHERE /*M! h = */  $1 ", "-"},
		{"SELECT /*+ x */ 1 FROM t WHERE h = ?", "SELECT /*+ x */ 1 FROM t WHERE h =  $1 ", "-"},
	} {
		for dialect, want := range map[sqltable.Dialect]string{sqltable.Postgres: test.postgres, sqltable.MySQL: test.mysql} {
			if want == "" {
				want = test.query
			}
			got, err := sqltable.Rewrite(dialect, test.query)
			switch {
			case want == "-" && err == nil:
				t.Errorf("%s: %q is accepted, as %q", dialect, test.query, got)
			case want != "-" && (err != nil || got != want):
				t.Errorf("%s: %q: %q, %v; want %q", dialect, test.query, got, err, want)
			case err != nil && got != "":
				t.Errorf("%s: %q: %q beside an error", dialect, test.query, got)
			}
		}
	}
}

// unquoted returns a query with blanks in place of quoted parts and comments. It finds these in
// another way than the package.
func unquoted(dialect sqltable.Dialect, query string) string {
	out, depth := []byte(query), 0
	for i, state := 0, byte(0); i < len(query); i++ {
		c, two := query[i], query[i:min(i+2, len(query))]
		switch {
		case state == '*' && two == "/*":
			depth++
			out[i], out[i+1] = ' ', ' '
			i++
		case state == '*' && two == "*/":
			depth--
			out[i], out[i+1] = ' ', ' '
			i++
			if depth == 0 {
				state = 0
			}
		case state == '-' && (c == '\n' || c == '\r'), state != 0 && state == c && c != '*' && c != '-':
			state, out[i] = 0, ' '
		case state != 0:
			out[i] = ' '
		case two == "/*":
			state, depth = '*', 1
			out[i], out[i+1] = ' ', ' '
			i++
		case two == "--" && (dialect == sqltable.Postgres || i+2 == len(query) || query[i+2] <= ' '),
			c == '#' && dialect == sqltable.MySQL:
			state, out[i] = '-', ' '
		case c == '\'', c == '"', c == '`' && dialect == sqltable.MySQL:
			state, out[i] = c, ' '
		}
	}
	return string(out)
}

// Every query that is accepted has one parameter, in the place of the placeholder, and is
// otherwise unchanged.
func FuzzQuery(f *testing.F) {
	for _, seed := range []string{
		sqltable.DefaultQuery, "SELECT '?' FROM t WHERE h = ? -- ?", "SELECT /* /* ? */ */ ?;", "SELECT `?`, \"?\" # ?\n, ?",
		"WITH x AS (SELECT ?) SELECT 1--1", "SELECT ?'?'''", "SELECT ?;;", "SELECT 'a'?\"b\"",
	} {
		f.Add(seed, true)
		f.Add(seed, false)
	}
	f.Fuzz(func(t *testing.T, query string, isMySQL bool) {
		dialect := sqltable.Postgres
		if isMySQL {
			dialect = sqltable.MySQL
		}
		got, err := sqltable.Rewrite(dialect, query)
		if err != nil {
			if got != "" {
				t.Errorf("%q beside an error", got)
			}
			return
		}
		bare := unquoted(dialect, query)
		if strings.Count(bare, "?") != 1 {
			t.Fatalf("%s: %q is accepted, with placeholders in %q", dialect, query, bare)
		}
		want := query
		if dialect == sqltable.Postgres {
			at := strings.IndexByte(bare, '?')
			want = query[:at] + " $1 " + query[at+1:]
			if strings.Count(got, "$") != 1 {
				t.Errorf("%q has more than one parameter", got)
			}
		}
		if end := strings.IndexByte(unquoted(dialect, got), ';'); end >= 0 {
			t.Errorf("%q has a semicolon", got)
		}
		if !strings.HasPrefix(want, got) || strings.Trim(unquoted(dialect, want[len(got):]), "; \t\r\n") != "" {
			t.Errorf("%s: %q became %q, want %q", dialect, query, got, want)
		}
	})
}

// Whatever the column contains, the result is an error, or labels within their limits, each
// once and without blanks around it.
func FuzzLabels(f *testing.F) {
	for _, seed := range []string{
		``, `null`, `[]`, `["a","b","a"]`, `["a"," a","a "]`, `[" "]`, `["a",null]`, `["\u0000"]`, `["\ud800"]`, `{"a":1}`, `"a"`, `[["a"]]`, `["a"] x`,
		`[1]`, "[\"\xff\"]", strings.Repeat("[", 20_000), `["` + strings.Repeat("a", 300) + `"]`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		labels, err := sqltable.ParseLabels(list)
		if err != nil {
			if labels != nil {
				t.Errorf("%q beside an error", labels)
			}
			if text := err.Error(); len(list) > 8 && strings.Contains(text, list) && !strings.Contains(text, "such as "+list) {
				t.Errorf("the error quotes the text: %s", text)
			}
			return
		}
		seen := map[string]bool{}
		for _, l := range labels {
			if seen[l] {
				t.Errorf("%q is a duplicate", l)
			}
			if l == "" || l != sources.TrimBlanks(l) {
				t.Errorf("%q is empty or has blanks around it", l)
			}
			seen[l] = true
		}
		if len(labels) > 64 {
			t.Errorf("%d labels", len(labels))
		}
	})
}
