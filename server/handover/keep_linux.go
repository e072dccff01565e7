package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"
)

// keepInterval is how often a listener looks whether its socket is still there.
const keepInterval = time.Second

// A bound is a socket that has been made at a path, and what its lock file and its name in the folder were then.
type bound struct {
	socket     *net.UnixListener
	lock       *os.File
	name, file fs.FileInfo // of the socket and of the lock
}

// bind makes the socket at path and locks it, or keeps the lock if there is one for the file that is there.
func bind(ctx context.Context, path string, held *bound) (*bound, error) {
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("make the folder of the socket %q: %w", path, explain(err, path))
	}
	b := new(bound)
	var err error
	if held != nil && same(path+lockSuffix, held.file) {
		b.lock, b.file = held.lock, held.file
	} else if b.lock, b.file, err = lock(ctx, path+lockSuffix); err != nil {
		return nil, fmt.Errorf("lock the socket %q: %w", path, explain(err, path))
	}
	if b.socket, b.name, err = listen(path); err != nil {
		if held == nil || b.lock != held.lock {
			b.lock.Close()
		}
		return nil, fmt.Errorf("make the socket %q: %w", path, explain(err, path))
	}
	return b, nil
}

// same reports whether the file at path is the one that it was. As long as a socket or a lock is open, no other file
// gets its number.
func same(path string, was fs.FileInfo) bool {
	is, err := os.Lstat(path)
	return err == nil && os.SameFile(is, was)
}

// gone reports whether the socket has been deleted, or another file has its name.
func (b *bound) gone(path string) bool {
	is, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(is, b.name)
}

// keep makes the socket again when it has been deleted, until Close. systemd deletes the folder of a
// RuntimeDirectory= with the unit that names it, and SPIRE's server does not restart a plugin: without a socket, no
// agent would get an SVID until somebody restarts the server.
func (l *Listener) keep() {
	ticker := time.NewTicker(keepInterval)
	defer ticker.Stop()
	for said := ""; ; {
		select {
		case <-l.ctx.Done():
			return
		case <-ticker.C:
			said = l.mend(said)
		}
	}
}

// mend makes the socket again if it is gone. It logs why it cannot, unless that has been said already, and returns what
// has been said.
func (l *Listener) mend(said string) (says string) {
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("Panic", "during", "keeping the socket", "panic", r, "stack", string(debug.Stack()))
			says = said
		}
	}()
	held := l.bound.Load()
	if !held.gone(l.path) {
		return ""
	}
	next, err := bind(l.ctx, l.path, held)
	if err != nil {
		if says = err.Error(); says != said && l.ctx.Err() == nil {
			l.log.Error("Socket gone", "reason", says)
		}
		return says
	}
	l.bound.Store(next)
	_ = held.socket.Close() // ends accept, which goes on with the next one
	if held.lock != next.lock {
		held.lock.Close()
	}
	l.log.Warn("Socket made again", "path", l.path)
	return ""
}
