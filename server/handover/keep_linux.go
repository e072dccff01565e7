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

// A bound is a socket that listens at a path, and its lock. name and file show later whether the path and the lock
// file are still those that the listener has made.
type bound struct {
	socket     *net.UnixListener
	lock       *os.File
	name, file fs.FileInfo // of the socket and of the lock
}

// bind makes the socket at path and locks it. If the lock file at path is still the one that held has locked, bind
// keeps that lock. held may be nil.
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

// same reports whether path still names the file that was is about. As long as a socket or a lock file is open, no
// other file gets its inode number.
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

// mend makes the socket again if it is gone. If it cannot, it logs the reason, unless that is the reason in said, which
// was logged before. It returns the last reason that was logged, or nothing if the socket is there.
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
	_ = held.socket.Close() // ends AcceptUnix; the next call of accept uses the new socket
	if held.lock != next.lock {
		held.lock.Close()
	}
	l.log.Warn("Socket made again", "path", l.path)
	return ""
}
