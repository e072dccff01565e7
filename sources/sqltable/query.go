package sqltable

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Dialect is a kind of database.
type Dialect string

// The dialects.
const (
	Postgres Dialect = "postgres"
	MySQL    Dialect = "mysql"
)

// maxQuery is the longest query in bytes.
const maxQuery = 16 << 10

// rewrite checks a query and returns it in the form that the database accepts: with $1 as the
// placeholder in Postgres, and without a semicolon at its end.
//
// The query must be a single SELECT, which may begin with WITH, with exactly one "?" outside of
// literals, quoted identifiers and comments. Backslashes, dollar signs and executable comments are
// refused everywhere, since their meaning depends on the database's settings.
func rewrite(dialect Dialect, query string) (string, error) {
	switch {
	case len(query) > maxQuery:
		return "", fmt.Errorf("is %d bytes long, more than %d", len(query), maxQuery)
	case !utf8.ValidString(query) || strings.ContainsFunc(query, isControl):
		return "", errors.New("is not UTF-8, or has a control character in it")
	case strings.ContainsAny(query, `\$`):
		return "", errors.New("has a backslash or a dollar sign in it, which databases interpret differently: " +
			"remove it, and write ? for the EK hash")
	}
	s := scanner{dialect: dialect, text: query, placeholder: -1, end: -1}
	if err := s.scan(); err != nil {
		return "", err
	}
	switch word := strings.ToUpper(s.first); {
	case word != "SELECT" && word != "WITH":
		return "", errors.New("does not begin with SELECT: write SELECT … WHERE … = ?")
	case s.placeholder < 0:
		return "", errors.New(`has no "?" for the EK hash: write SELECT … WHERE … = ?`)
	}
	if s.end >= 0 {
		query = query[:s.end]
	}
	if dialect == Postgres {
		// The blanks keep $1 from becoming part of a word or a number.
		query = query[:s.placeholder] + " $1 " + query[s.placeholder+1:]
	}
	return query, nil
}

// isControl reports whether r is a control character other than a tab or a line end.
func isControl(r rune) bool {
	return unicode.IsControl(r) && r != '\t' && r != '\n' && r != '\r'
}

// A scanner finds the parts of a query that are quoted or comments.
type scanner struct {
	dialect     Dialect
	text        string
	at          int
	first       string // the first word
	placeholder int    // its offset, or -1
	end         int    // the offset of the semicolon that ends the query, or -1
}

func (s *scanner) scan() error {
	for s.at < len(s.text) {
		begin := s.at
		if skipped, err := s.skip(); skipped || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		c := s.text[begin]
		s.at++
		blank := c == ' ' || c == '\t' || c == '\n' || c == '\r'
		switch {
		case !blank && s.end >= 0:
			return errors.New("has something after the semicolon: write one statement")
		case c == ';':
			s.end = begin
		case c == '?' && s.placeholder >= 0:
			return errors.New(`has more than one "?": write it once, for the EK hash; ` +
				"write operators that contain one as functions")
		case c == '?':
			s.placeholder = begin
		case s.first == "" && !blank:
			s.first = word(s.text[begin:])
		}
	}
	return nil
}

// word returns the letters that s begins with, or its first byte.
func word(s string) string {
	for i, c := range []byte(s) {
		if c |= 0x20; c < 'a' || c > 'z' {
			return s[:max(i, 1)]
		}
	}
	return s
}

// skip skips a quoted part or a comment, and reports whether there was one.
func (s *scanner) skip() (bool, error) {
	rest := s.text[s.at:]
	mysql := s.dialect == MySQL
	switch {
	case rest[0] == '\'' || rest[0] == '"' || rest[0] == '`' && mysql:
		if s.end >= 0 {
			return false, nil
		}
		return true, s.quoted(rest[0])
	case strings.HasPrefix(rest, "--"):
		if mysql && len(rest) > 2 && rest[2] > ' ' {
			return false, nil // two minus signs: in MySQL, a comment has a blank there
		}
		s.line()
		return true, nil
	case rest[0] == '#' && mysql:
		s.line()
		return true, nil
	case strings.HasPrefix(rest, "/*"):
		return true, s.comment(rest)
	}
	return false, nil
}

// quoted skips a literal or an identifier. It treats a doubled quote, which stands for itself, like
// the end of one literal and the beginning of the next.
func (s *scanner) quoted(quote byte) error {
	n := strings.IndexByte(s.text[s.at+1:], quote)
	if n < 0 {
		return fmt.Errorf("a quote (%c) is not closed", quote)
	}
	s.at += n + 2
	return nil
}

func (s *scanner) line() {
	if n := strings.IndexAny(s.text[s.at:], "\r\n"); n >= 0 {
		s.at += n
		return
	}
	s.at = len(s.text)
}

// comment skips a comment. Comments nest in Postgres.
func (s *scanner) comment(rest string) error {
	if s.dialect == MySQL && (strings.HasPrefix(rest, "/*!") || strings.HasPrefix(rest, "/*M!") ||
		strings.HasPrefix(rest, "/*m!") || strings.HasPrefix(rest, "/*+")) {
		return errors.New("has a comment that databases execute: remove it")
	}
	depth := 0
	for i := 0; i+1 < len(rest); i++ {
		switch rest[i : i+2] {
		case "/*":
			if depth > 0 && s.dialect == MySQL {
				return errors.New("has a comment within a comment: remove it")
			}
			depth++
			i++
		case "*/":
			depth--
			i++
			if depth == 0 {
				s.at += i + 1
				return nil
			}
		}
	}
	return errors.New("a comment is not closed")
}
