package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// How often progress is shown: never in the first second, then continuously on a terminal and now and then
// elsewhere.
const (
	quietFor        = time.Second
	everyOnTerminal = 200 * time.Millisecond
	everyInFile     = 10 * time.Second
)

// A Progress shows, to a user who waits for more than a second, what a command is doing and how much of it is done.
// It writes to standard error. On a terminal it is one line, which is cleared at the end.
type Progress struct {
	out      io.Writer
	terminal bool
	begun    time.Time
	what     atomic.Pointer[string]
	unit     string
	done     atomic.Int64
	shown    bool
	quit     chan struct{}
	once     sync.Once
	wait     sync.WaitGroup
}

// StartProgress starts to show what is being done. unit is what is counted, in the plural, or empty. The caller
// must call End.
func StartProgress(out io.Writer, what, unit string) *Progress {
	return startProgressOn(out, isTerminal(out), what, unit)
}

func startProgressOn(out io.Writer, terminal bool, what, unit string) *Progress {
	p := &Progress{out: out, terminal: terminal, begun: time.Now(), unit: unit, quit: make(chan struct{})}
	p.Now(what)
	p.wait.Go(p.run)
	return p
}

// Now changes what is shown as being done.
func (p *Progress) Now(what string) { p.what.Store(&what) }

// Add adds n to what is counted.
func (p *Progress) Add(n int) { p.done.Add(int64(n)) }

// End stops the progress. Nothing is written afterwards. It may be called more than once.
func (p *Progress) End() {
	p.once.Do(func() { close(p.quit) })
	p.wait.Wait()
}

func (p *Progress) run() {
	every := everyInFile
	if p.terminal {
		every = everyOnTerminal
	}
	timer := time.NewTimer(quietFor)
	defer timer.Stop()
	for {
		select {
		case <-p.quit:
			if p.shown && p.terminal {
				p.print("\r\x1b[K") // clears the line
			}
			return
		case <-timer.C:
			p.show()
			timer.Reset(every)
		}
	}
}

func (p *Progress) show() {
	text := *p.what.Load()
	if n := p.done.Load(); n > 0 {
		text += fmt.Sprintf(": %d %s", n, p.unit)
	}
	text += fmt.Sprintf(" (%v)", time.Since(p.begun).Truncate(time.Second))
	p.shown = true
	if p.terminal {
		p.print("\r\x1b[K" + text)
		return
	}
	p.print(text + "\n")
}

// print ignores errors: progress matters only to a user who is watching.
func (p *Progress) print(text string) { _, _ = io.WriteString(p.out, text) }

// isTerminal reports whether out is a terminal, so that a user may be watching.
func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
