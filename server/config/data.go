package config

import (
	"errors"
	"strconv"
	"strings"
)

// Data is the plugin_data of a plugin.
type Data struct {
	Text string
	// File is the path in plugin_data_file if Text is from that file; otherwise it is empty.
	File string
}

// Lines returns a function that finds the line of d.File at which a path of keys ends, such as
// `source "ek_ca" "vendors": poll_interval`. If a key of the path is missing, the function returns the line of the
// block that lacks it. If the text cannot be parsed, the line of the empty path is that of the syntax error. The
// function returns 0 if it does not know the line, and always if d.File is empty.
func (d Data) Lines() func(path string) int {
	if d.File == "" {
		return func(string) int { return 0 }
	}
	root, err := parseSyntax(d.Text)
	if err != nil {
		at := 0
		if syntax, ok := errors.AsType[*syntaxError](err); ok {
			at = syntax.line
		}
		return func(path string) int {
			if path != "" {
				return 0
			}
			return at
		}
	}
	return func(path string) int {
		_, line := root.find(keysOf(path))
		return line
	}
}

// keysOf returns the keys of a path, as under and decodeSources put them together.
func keysOf(path string) (keys []string) {
	for path = strings.TrimLeft(path, " "); path != ""; path = strings.TrimLeft(path, " ") {
		if quoted, err := strconv.QuotedPrefix(path); err == nil {
			key, _ := strconv.Unquote(quoted) // QuotedPrefix has checked it
			keys, path = append(keys, key), strings.TrimPrefix(path[len(quoted):], ":")
			continue
		}
		var key string
		key, path, _ = strings.Cut(path, " ")
		keys = append(keys, strings.TrimSuffix(key, ":"))
	}
	return keys
}

// find returns how many of the keys, from the first on, are there, and the line of the last of these. If several
// blocks have the same keys, the last block counts.
func (n *node) find(keys []string) (depth, line int) {
	if len(keys) == 0 {
		return 0, 0
	}
	for _, e := range n.elems {
		if d, l := e.find(keys); d > 0 && d >= depth {
			depth, line = d, l
		}
	}
	for _, it := range n.items {
		if it.key != keys[0] {
			continue
		}
		d, l := it.val.find(keys[1:])
		if d == 0 {
			l = it.line
		}
		if d++; d >= depth {
			depth, line = d, l
		}
	}
	return depth, line
}

// locate sets the lines of the problems that are in a plugin_data_file.
func (in *input) locate(all []*Problem) {
	lines := in.data.Lines()
	for _, p := range all {
		path, composers := strings.CutPrefix(p.Path, composerPath+": ")
		switch {
		case p.File == "":
		case composers:
			p.Line = in.composer.data.Lines()(path) // it has few keys
		default:
			p.Line = lines(p.Path)
		}
	}
}
