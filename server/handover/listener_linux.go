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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"
)

const (
	// requestTimeout is how long a connection may last.
	requestTimeout = 5 * time.Second
	// maxConns is how many connections are served at once. Further connections wait in the kernel. A
	// connection from outside the family is refused at once.
	maxConns = 64
	// acceptPause is how long the listener waits if it cannot accept a connection, such as for
	// lack of file descriptors.
	acceptPause = 100 * time.Millisecond
	// lockTimeout is how long a listener waits for another process to give up the socket. The plugin of
	// a server that was killed ends within this time.
	lockTimeout = 3 * time.Second
	lockPause   = 50 * time.Millisecond
)

// A Listener puts the keys that are handed over at a socket into a Table. No request can stop it, and its
// memory is bounded.
type Listener struct {
	path   string
	family Family
	table  *Table
	log    hclog.Logger

	bound  atomic.Pointer[bound] // replaced by keep alone
	conns  chan struct{}         // has an element for each connection that is served
	ctx    context.Context       //nolint:containedctx // ends with Close
	cancel context.CancelFunc
	done   sync.WaitGroup
	kept   sync.WaitGroup // waits for keep to end
}

// Listen makes the socket and listens, until Close. If the folder of the socket does not exist, Listen makes it,
// for its own user alone. It is an error if the folder belongs to another user, if others may write to it, or if
// another process still has the socket after 3 seconds. Listen replaces a socket that a killed server has left.
// If somebody deletes the socket, or its folder, the listener makes both again within a second.
func Listen(ctx context.Context, path string, family Family, table *Table, log hclog.Logger) (*Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, fmt.Errorf("the socket %q %w", path, err)
	}
	b, err := bind(ctx, path, nil)
	if err != nil {
		return nil, err
	}
	l := &Listener{
		path: path, family: family, table: table, log: log, conns: make(chan struct{}, maxConns),
	}
	l.bound.Store(b)
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.done.Go(l.run)
	l.kept.Go(l.keep)
	return l, nil
}

// explain adds to an error of the operating system what to do about it, if that is known. The socket is at path.
func explain(err error, path string) error {
	if !errors.Is(err, fs.ErrPermission) && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return fmt.Errorf("%w: let user %d write there: under systemd, by RuntimeDirectory= in the unit of spire-server, "+
		"otherwise by making %q for that user, with the mode 0700, where there is room",
		err, os.Geteuid(), filepath.Dir(path))
}

// Path returns the path of the socket.
func (l *Listener) Path() string { return l.path }

// Close stops listening, removes the socket and ends all connections. What has been handed over
// stays in the table. Close must be called once.
func (l *Listener) Close() {
	l.cancel()
	l.kept.Wait()
	b := l.bound.Load()
	if !b.gone(l.path) { // else it is another server's
		_ = os.Remove(l.path)
	}
	_ = b.socket.Close()
	l.done.Wait()
	b.lock.Close() // last of all: whoever gets the lock may make a socket
}

// makeFolder makes a folder for this user alone, or checks the one that is there.
func makeFolder(path string) error {
	if err := makeParents(filepath.Dir(path)); err != nil {
		return err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	const remedy = "name a socket in a folder that does not exist, and the plugin makes it"
	switch {
	case !info.IsDir():
		return fmt.Errorf("%q is no folder: %s", path, remedy)
	case !ok || int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("%q does not belong to user %d, as whom the plugin runs: %s", path, os.Geteuid(), remedy)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("other users may write to %q: chmod go= it, or %s", path, remedy)
	}
	return nil
}

// makeParents makes the folder at path and those above it that do not exist. Other users may search
// them, whatever umask SPIRE has set: an agent on the same machine may have its socket there.
func makeParents(path string) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := makeParents(filepath.Dir(path)); err != nil {
		return err
	}
	const mode = 0o755
	if err := os.Mkdir(path, mode); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	return os.Chmod(path, mode)
}

// lockSuffix is at the end of the name of the socket's lock file.
const lockSuffix = ".lock"

// lock makes a file, if there is none, and locks it. The lock ends with the process at the latest,
// so no process can leave it behind.
func lock(ctx context.Context, path string) (*os.File, fs.FileInfo, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600) //nolint:gosec // G304: configured
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	ticker := time.NewTicker(lockPause)
	defer ticker.Stop()
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return file, info, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			file.Close()
			return nil, nil, err
		}
		select {
		case <-ctx.Done():
			file.Close()
			return nil, nil, errors.New("another process has this socket: " +
				"each SPIRE server on a machine needs a socket of its own")
		case <-ticker.C:
		}
	}
}

// listen makes the socket, for this user alone, in place of one that an earlier process has left.
func listen(path string) (*net.UnixListener, fs.FileInfo, error) {
	switch info, err := os.Lstat(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, nil, errors.New("there is a file of this name that is no socket: choose another name")
	default:
		if err := os.Remove(path); err != nil {
			return nil, nil, err
		}
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	socket.SetUnlinkOnClose(false) // by then, the name may be another server's
	err = os.Chmod(path, 0o600)
	info, look := os.Lstat(path)
	if err = errors.Join(err, look); err != nil {
		_ = socket.Close()
		return nil, nil, err
	}
	return socket, info, nil
}

// run accepts connections until Close.
func (l *Listener) run() {
	for {
		select {
		case l.conns <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		if !l.accept() {
			return
		}
	}
}

// accept accepts one connection and has it served. It reports false after Close.
func (l *Listener) accept() bool {
	conn, err := l.bound.Load().socket.AcceptUnix()
	if err != nil {
		<-l.conns
		select {
		case <-l.ctx.Done():
			return false
		case <-time.After(acceptPause):
			return true
		}
	}
	l.done.Go(func() {
		defer func() { <-l.conns }()
		l.serve(conn)
	})
	return true
}

// serve serves one connection. A panic ends this connection alone: without the composer, SPIRE
// issues nothing to anybody.
func (l *Listener) serve(conn *net.UnixConn) {
	defer func() { _ = conn.Close() }()
	defer func() {
		if r := recover(); r != nil {
			l.log.Error("Panic", "during", "hand-over", "panic", r, "stack", string(debug.Stack()))
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return
	}
	defer context.AfterFunc(l.ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	if err := l.family.check(conn); err != nil {
		l.log.Warn("Hand-over refused", "reason", err.Error())
		return
	}
	err := l.take(conn)
	if err != nil {
		l.log.Warn("Hand-over refused", "reason", err.Error())
	}
	_ = writeReply(conn, err) // an attestor that gets no reply refuses the agent
}

// take reads a request and puts its key into the table.
func (l *Listener) take(conn *net.UnixConn) error {
	text, k, err := readRequest(conn)
	if err != nil {
		return err
	}
	id, err := spiffeid.FromString(text)
	switch {
	case err != nil:
		return fmt.Errorf("the ID %.80q: %w", text, err)
	case !Guards(id):
		return fmt.Errorf("the composer does not decide about %q", text)
	case !l.table.Put(text, k):
		return errors.New("too many keys have been handed over and not used")
	}
	return nil
}
