package config

import (
	"fmt"
	"slices"
	"strings"
)

// A Problem is one mistake in a configuration.
type Problem struct {
	// Path is the path of keys that leads to it, as an operator would write it:
	// `source "ek_ca" "vendors": poll_interval`. It is empty if the mistake is about the
	// configuration as a whole.
	Path string
	// File is the file of a plugin_data_file, if the mistake is in it, and Line is where: 0 if it is not known.
	// A mistake in plugin_data has neither: SPIRE prints plugin_data anew before a plugin sees it.
	File string
	Line int
	// Message says what is wrong and what to write instead.
	Message string
}

// String returns the problem on one line.
func (p Problem) String() string {
	text := p.Message
	switch {
	case p.Line > 0:
		text = fmt.Sprintf("%s:%d: %s", p.File, p.Line, text)
	case p.File != "":
		text = p.File + ": " + text
	}
	if p.Path == "" {
		return text
	}
	return p.Path + ": " + text
}

// A Warning is what an operator should know about a configuration that has no mistakes.
type Warning struct {
	Problem
	// Unsure is true if a file system did not say whether a file exists, so that the
	// configuration may have a mistake.
	Unsure bool
}

// Warned returns the Warnings with their paths of keys.
func (c *Config) Warned() []Warning { return c.warned }

// warn adds a warning.
func (c *Config) warn(path, message string) { c.warnOf(path, message, false) }

func (c *Config) warnOf(path, message string, unsure bool) {
	c.warned = append(c.warned, Warning{Problem{Path: path, File: c.file, Message: message}, unsure})
}

// Problems are all mistakes in a configuration, at least one, sorted. Parse and Loader.Load
// return them as their error.
type Problems []Problem //nolint:errname // it is a list, of what each is called

// Error returns all problems on one line.
func (ps Problems) Error() string {
	all := make([]string, len(ps))
	for i, p := range ps {
		all[i] = p.String()
	}
	return strings.Join(all, "; ")
}

const (
	// maxProblems is how many mistakes are reported at once.
	maxProblems = 50
	// maxCollected is how many mistakes are collected; the first maxProblems of these, sorted, are reported. A text
	// of 1 MiB has room for a hundred thousand mistakes.
	maxCollected = 1000
)

// problems collects mistakes.
type problems struct {
	list Problems
	// file is the file of plugin_data_file in which the mistakes are that are added; empty if there is none.
	file string
	// more counts the mistakes beyond maxCollected.
	more int
}

func (ps *problems) add(path, format string, args ...any) { ps.addIn(ps.file, path, format, args...) }

// addIn does what add does, for a mistake in another file.
func (ps *problems) addIn(file, path, format string, args ...any) {
	if ps.full() {
		ps.more++
		return
	}
	ps.list = append(ps.list, Problem{Path: path, File: file, Message: fmt.Sprintf(format, args...)})
}

// full reports whether further mistakes are only counted.
func (ps *problems) full() bool { return len(ps.list) >= maxCollected }

// err returns the collected mistakes as an error.
func (ps *problems) err() error {
	if all := ps.sorted(); len(all) > 0 {
		return all
	}
	return nil
}

// sorted returns the collected mistakes sorted and without repetitions, so that the order of blocks does not
// matter.
func (ps *problems) sorted() Problems {
	slices.SortFunc(ps.list, func(a, b Problem) int {
		return strings.Compare(a.Path+"\x00"+a.Message, b.Path+"\x00"+b.Message)
	})
	all := slices.Compact(ps.list)
	if n := len(all) + ps.more - maxProblems; n > 0 {
		most := min(len(all), maxProblems)
		all = append(all[:most:most], Problem{Message: fmt.Sprintf("and %d more mistakes", n)})
	}
	return all
}

// under appends a key to a path of keys.
func under(path, key string) string {
	key = printable(key)
	if path == "" {
		return key
	}
	return path + ": " + key
}

// printable returns a key or a value as it may be shown: short, and quoted if it is not
// plain ASCII.
func printable(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	plain := func(r rune) bool { return r > ' ' && r < 0x7f && r != '"' || r == '…' }
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// suggest returns "; did you mean x?" for the closest of the known words, or
// "; choose from x, y" if none is close. Comparing the word with each of them takes time,
// so it returns nothing if further mistakes are only counted.
func (ps *problems) suggest(word string, known []string) string {
	if ps.full() {
		return ""
	}
	best, distance := "", 3
	for _, k := range known {
		if d := editDistance(word, k); d < distance && d*2 <= len(k) {
			best, distance = k, d
		}
	}
	switch {
	case best == "" && len(known) == 0:
		return ""
	case best == "":
		return "; choose from " + strings.Join(known, ", ")
	}
	return fmt.Sprintf("; did you mean %s?", best)
}

// editDistance returns how many bytes must be inserted, deleted or replaced to get from a to b (Levenshtein). If a
// or b has more than 100 bytes, it returns 100.
func editDistance(a, b string) int {
	const many = 100
	if len(a) > many || len(b) > many {
		return many
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diagonal
			if a[i] != b[j] {
				d = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal = row[j+1]
			row[j+1] = d
		}
	}
	return row[len(b)]
}
