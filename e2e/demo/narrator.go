package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

// A narrator prints the story, in colour if the output is a terminal.
type narrator struct {
	out     io.Writer
	colour  bool
	began   time.Time
	chapter int
}

func newNarrator(out *os.File) *narrator {
	info, err := out.Stat()
	terminal := err == nil && info.Mode()&os.ModeCharDevice != 0
	return &narrator{
		out:    out,
		colour: terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		began:  time.Now(),
	}
}

// The colours of ANSI terminals (ECMA-48, 8.3.117).
const (
	bold  = "1"
	dim   = "2"
	green = "32"
	red   = "31"
	cyan  = "36"
)

func (n *narrator) paint(colour, text string) string {
	if !n.colour {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

func (n *narrator) line(text string) { fmt.Fprintln(n.out, text) }

// title prints the title of the next chapter.
func (n *narrator) title(text string) {
	n.chapter++
	n.line("")
	n.line(n.paint(bold, fmt.Sprintf("%d. %s", n.chapter, text)))
}

// say prints what happens.
func (n *narrator) say(format string, args ...any) {
	n.line("   " + fmt.Sprintf(format, args...))
}

// command prints a command that does the same.
func (n *narrator) command(words ...string) {
	n.line("   " + n.paint(cyan, "$ "+strings.Join(words, " ")))
}

// quote prints what a program has printed or logged.
func (n *narrator) quote(text string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, " \t\n"); line != "" {
			n.line(n.paint(dim, "   | "+line))
		}
	}
}

// log prints a line of a log, without the time and the name of the plugin.
func (n *narrator) log(program, line string) {
	line = regexp.MustCompile(`^time="[^"]*" |`+
		` (external|plugin_name|plugin_type|subsystem_name)=\S+| timestamp="[^"]*"`).
		ReplaceAllString(line, "")
	n.quote(program + ": " + line)
}

// outcome prints what a chapter has shown.
func (n *narrator) outcome(format string, args ...any) {
	n.line("   " + n.paint(green, "=> "+fmt.Sprintf(format, args...)))
}

func (n *narrator) failure(err error) {
	n.line("")
	n.line(n.paint(red, "The demo failed: ") + err.Error())
}

func (n *narrator) elapsed() time.Duration { return time.Since(n.began).Round(time.Second) }
