package handover_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/server/handover"
)

// helperEnv makes the test's program act as a plugin: see beHelper.
const helperEnv = "HANDOVER_TEST_HELPER"

func TestMain(m *testing.M) {
	if what := os.Getenv(helperEnv); what != "" {
		beHelper(what, os.Args[1:])
		return
	}
	goleak.VerifyTestMain(m)
}

// beHelper is a process that listens at a socket, or hands a key over there and prints how that
// went. With "orphan", it is a process whose parent is not the test's.
func beHelper(what string, args []string) {
	family := handover.Own()
	switch what {
	case "listen as another user":
		if err := syscall.Setuid(65534); err != nil {
			fmt.Println(err)
			return
		}
		fallthrough
	case "listen":
		var table handover.Table
		l, err := handover.Listen(context.Background(), args[0], family, &table, hclog.NewNullLogger())
		fmt.Println("listens:", err)
		if err == nil {
			_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
			l.Close()
		}
	case "user":
		if err := syscall.Setuid(65534); err != nil {
			fmt.Println(err)
			return
		}
		family = handover.Own()
		fallthrough
	case "hand over":
		c := handover.NewClient(args[0], family)
		fmt.Println("handed over:", c.HandOver(context.Background(), spiffeid.RequireFromString(machine), handover.Any()))
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends: a listener looks at living processes alone
	case "connect":
		_, _ = net.Dial("unix", args[0]) // and end
	case "orphan":
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), helperEnv+"=hand over")
		out, err := cmd.Output()
		fmt.Println(string(out), err)
	}
}

// helper starts a helper, a child of this process, and returns its first line.
func helper(t *testing.T, what, path string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", path)
	cmd.Env = append(os.Environ(), helperEnv+"="+what)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	return strings.TrimSpace(line)
}

func socketPath(tb testing.TB) string {
	tb.Helper()
	return filepath.Join(tb.TempDir(), "tpm", "svid.sock")
}

// logLines collects what is logged.
type logLines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// here is a listener in this process.
type here struct {
	path  string
	table handover.Table
	log   logLines
}

func listenHere(tb testing.TB, path string) *here {
	tb.Helper()
	h := &here{path: path}
	l, err := handover.Listen(context.Background(), path, handover.Own(), &h.table,
		hclog.New(&hclog.LoggerOptions{Output: &h.log}))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(l.Close)
	return h
}

func (h *here) client() *handover.Client { return handover.NewClient(h.path, handover.Own()) }

func (h *here) dial(tb testing.TB) net.Conn {
	tb.Helper()
	conn, err := net.Dial("unix", h.path)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		tb.Fatal(err)
	}
	return conn
}

var id = spiffeid.RequireFromString(machine)

// When HandOver returns, the key can be taken: the attestor answers SPIRE only then, and SPIRE asks
// at once.
func TestHandOver(t *testing.T) {
	h := listenHere(t, socketPath(t))
	c := h.client()
	for range 3 {
		if err := c.HandOver(t.Context(), id, handover.Only(hash("a"))); err != nil {
			t.Fatal(err)
		}
		wantTake(t, &h.table, machine, "b", handover.ErrOtherKey)
		wantTake(t, &h.table, machine, "a", nil)
	}
	if err := c.HandOver(t.Context(), id, handover.Any()); err != nil {
		t.Fatal(err)
	}
	wantTake(t, &h.table, machine, "b", nil)
	other := spiffeid.RequireFromString("spiffe://example.org/spire/agent/tpm2/0")
	if err := c.HandOver(t.Context(), other, handover.Any()); err == nil {
		t.Error("handed over an ID about which nobody is asked")
	}
	if err := c.HandOver(t.Context(), id, handover.Key{}); err == nil {
		t.Error("handed over no key")
	}
}

// The socket is for its own user alone, in a folder for its own user alone.
func TestModes(t *testing.T) {
	old := syscall.Umask(0o027) // SPIRE's
	defer syscall.Umask(old)
	path := filepath.Join(t.TempDir(), "a", "b", "svid.sock")
	listenHere(t, path)
	for name, want := range map[string]os.FileMode{
		path: 0o600, path + ".lock": 0o600, filepath.Dir(path): 0o700, filepath.Dir(filepath.Dir(path)): 0o755,
	} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %v", name, info.Mode().Perm(), err, want)
		}
	}
}

// Whoever may write to the folder could replace this socket with his own.
func TestFolderOfOthers(t *testing.T) {
	dir := t.TempDir()
	for name, prepare := range map[string]func(path string) error{
		"group": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o720)) },
		"other": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chmod(p, 0o702)) },
		"link":  func(p string) error { return os.Symlink(dir, p) },
		"file":  func(p string) error { return os.WriteFile(p, nil, 0o600) },
		"owner": func(p string) error { return errors.Join(os.Mkdir(p, 0o700), os.Chown(p, 65534, -1)) },
	} {
		folder := filepath.Join(dir, name)
		if err := prepare(folder); errors.Is(err, syscall.EPERM) {
			continue // this test does not run as root
		} else if err != nil {
			t.Fatal(err)
		}
		var table handover.Table
		l, err := handover.Listen(t.Context(), filepath.Join(folder, "svid.sock"), handover.Own(), &table, hclog.NewNullLogger())
		if err == nil {
			l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "the plugin makes it") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// SPIRE's user may not make folders in /run. The error tells whoever starts SPIRE for the first time how
// to get the folder.
func TestFolderThatCannotBeMade(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("another user can only be tried by root")
	}
	folder := t.TempDir()
	for name := folder; name != os.TempDir() && name != "/"; name = filepath.Dir(name) {
		if err := os.Chmod(name, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(folder, "spire", "tpm", "svid.sock")
	if got := helper(t, "listen as another user", path); !strings.Contains(got, "permission denied: let user 65534 write there") ||
		!strings.Contains(got, `by making "`+filepath.Dir(path)+`" for that user`) {
		t.Error(got)
	}
}

// A server that was killed leaves a socket. The next server replaces it, but never another program's file.
func TestStaleSocket(t *testing.T) {
	path := socketPath(t)
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	socket.SetUnlinkOnClose(false)
	socket.Close()
	h := listenHere(t, path)
	if err := h.client().HandOver(t.Context(), id, handover.Any()); err != nil {
		t.Error(err)
	}

	file := filepath.Join(filepath.Dir(path), "file")
	if err := os.WriteFile(file, []byte("somebody's"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = handover.Listen(t.Context(), file, handover.Own(), &h.table, hclog.NewNullLogger())
	if err == nil || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("in the place of a file: %v", err)
	}
	if text, err := os.ReadFile(file); string(text) != "somebody's" {
		t.Errorf("the file: %q, %v", text, err)
	}
}

// A second server on the same socket would take over the first one's hand-overs, and each of its
// agents would be refused: it does not start, and the first one serves on.
func TestSecondServer(t *testing.T) {
	t.Parallel()
	h := listenHere(t, socketPath(t))
	if got := helper(t, "listen", h.path); !strings.Contains(got, "a socket of its own") {
		t.Errorf("the second: %s", got)
	}
	if err := h.client().HandOver(t.Context(), id, handover.Any()); err != nil {
		t.Error(err)
	}
}

// Another server may begin at the moment when the one before it ends.
func TestSocketIsFreeAfterClose(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	var table handover.Table
	l, err := handover.Listen(t.Context(), path, handover.Own(), &table, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan string)
	go func() { next <- helper(t, "listen", path) }()
	l.Close()
	if got := <-next; got != "listens: <nil>" {
		t.Error(got)
	}
}

// Somebody deletes the socket, or systemd deletes the whole folder, as it does when it stops an agent's unit that
// names the same RuntimeDirectory=. Agents get SVIDs again within seconds, without a restart of the server. The new
// socket is for its own user alone again, and no second server can have it.
func TestSocketIsDeleted(t *testing.T) {
	t.Parallel()
	h := listenHere(t, filepath.Join(t.TempDir(), "spire", "tpm", "svid.sock"))
	dir := filepath.Dir(h.path)
	for name, remove := range map[string]func() error{
		"the socket":            func() error { return os.Remove(h.path) },
		"the socket's lock too": func() error { return errors.Join(os.Remove(h.path+".lock"), os.Remove(h.path)) },
		"the folder":            func() error { return os.RemoveAll(dir) },
		"the folder above":      func() error { return os.RemoveAll(filepath.Dir(dir)) },
	} {
		if err := remove(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		h.untilHandedOver(t)
		wantTake(t, &h.table, machine, "a", nil)
		for path, want := range map[string]os.FileMode{h.path: 0o600, h.path + ".lock": 0o600, dir: 0o700} {
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %s: %v, %v", name, path, info, err)
			}
		}
	}
	if n := strings.Count(h.log.String(), "Socket made again"); n != 4 {
		t.Errorf("the log: %s", h.log.String())
	}
	if got := helper(t, "listen", h.path); !strings.Contains(got, "a socket of its own") {
		t.Errorf("a second server: %s", got)
	}
}

// untilHandedOver hands a key over as soon as the listener takes it.
func (h *here) untilHandedOver(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for h.client().HandOver(ctx, id, handover.Any()) != nil {
		if ctx.Err() != nil {
			t.Fatalf("the socket does not come back: %s", h.log.String())
		}
		runtime.Gosched()
	}
}

// If the socket cannot be made again, the log says once why, and the listener goes on trying. A file that
// somebody has put there is left alone.
func TestSocketCannotComeBack(t *testing.T) {
	t.Parallel()
	logged, log := io.Pipe()
	h := &here{path: socketPath(t)}
	l, err := handover.Listen(t.Context(), h.path, handover.Own(), &h.table, hclog.New(&hclog.LoggerOptions{Output: log}))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := errors.Join(os.WriteFile(file, []byte("somebody's"), 0o600), os.Rename(file, h.path)); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(logged)
	line, err := lines.ReadString('\n')
	if err != nil || !strings.Contains(line, "[ERROR] Socket gone") || !strings.Contains(line, "choose another name") {
		t.Errorf("%q, %v", line, err)
	}
	if text, err := os.ReadFile(h.path); string(text) != "somebody's" {
		t.Errorf("the file: %q, %v", text, err)
	}
	if err := os.Remove(h.path); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); err != nil || !strings.Contains(line, "Socket made again") {
		t.Errorf("%q, %v", line, err)
	}
	h.untilHandedOver(t)
	logged.Close()
	l.Close()
}

// A server that ends removes its own socket, and not that of the next server, which has made its own in a folder that
// was deleted meanwhile.
func TestCloseLeavesTheNextSocket(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	var table handover.Table
	l, err := handover.Listen(t.Context(), path, handover.Own(), &table, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	away := filepath.Dir(path) + ".away"
	if err := os.Rename(filepath.Dir(path), away); err != nil {
		t.Fatal(err)
	}
	next := helper(t, "listen", path)
	l.Close()
	if strings.Contains(next, "a socket of its own") {
		return // a busy machine: the listener has made its socket again before the next server began
	}
	if got := helper(t, "hand over", path); next != "listens: <nil>" || got != "handed over: <nil>" {
		t.Errorf("the next server: %s; after Close: %s", next, got)
	}
}

// Only plugins of one server talk to each other: a child of the same process may hand over, and
// another program of the same user may not, nor may another user. A client does not hand anything
// to a listener that is not of its family, either.
func TestWhoMayHandOver(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	if got := helper(t, "listen", path); got != "listens: <nil>" {
		t.Fatal(got)
	}
	if got := helper(t, "hand over", path); got != "handed over: <nil>" {
		t.Errorf("a sibling: %s", got)
	}
	if got := helper(t, "orphan", path); !strings.Contains(got, "not a plugin of the same spire-server") {
		t.Errorf("a grandchild: %s", got)
	}
	if err := handover.NewClient(path, handover.Own()).HandOver(t.Context(), id, handover.Any()); err == nil ||
		!strings.Contains(err.Error(), "its parent is process "+strconv.Itoa(os.Getpid())) {
		t.Errorf("this process: %v", err)
	}
	if os.Getuid() != 0 {
		t.Skip("another user can only be tried by root")
	}
	open := []string{path, filepath.Dir(path), filepath.Dir(filepath.Dir(path)), filepath.Dir(filepath.Dir(filepath.Dir(path)))}
	if got := helper(t, "user", path); !strings.Contains(got, "permission denied") {
		t.Errorf("another user: %s", got)
	}
	for _, name := range open {
		if err := os.Chmod(name, 0o777); err != nil { // what an operator must not do
			t.Fatal(err)
		}
	}
	if got := helper(t, "user", path); !strings.Contains(got, "runs as user 0, and this one as user 65534") {
		t.Errorf("another user at an open socket: %s", got)
	}
}

// The listener itself refuses strangers, whatever they check, and says in the log who they are.
func TestListenerRefusesStrangers(t *testing.T) {
	logged, log := io.Pipe()
	var table handover.Table
	path := socketPath(t)
	l, err := handover.Listen(t.Context(), path, handover.Own(), &table, hclog.New(&hclog.LoggerOptions{Output: log}))
	if err != nil {
		t.Fatal(err)
	}
	if got := helper(t, "hand over", path); !strings.Contains(got, "not a plugin of the same spire-server") {
		t.Errorf("a child of the listener: %s", got)
	}
	line, err := bufio.NewReader(logged).ReadString('\n') // the helper lives until the test ends
	if want := "its parent is process " + strconv.Itoa(os.Getpid()); err != nil || !strings.Contains(line, want) {
		t.Errorf("the log has no %q: %s (%v)", want, line, err)
	}
	logged.Close()
	l.Close()
	wantTake(t, &table, machine, "a", handover.ErrNothing)
}

// If no composer answers, the attestor's log says what to do.
func TestNoComposer(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	c := handover.NewClient(path, handover.Own())
	want := func(text string) {
		t.Helper()
		if err := c.HandOver(t.Context(), id, handover.Any()); err == nil || !strings.Contains(err.Error(), text) ||
			!strings.Contains(err.Error(), `add CredentialComposer "tpm"`) {
			t.Errorf("%v, want %q", err, text)
		}
	}
	want("connect: no such file or directory")
	var table handover.Table
	l, err := handover.Listen(t.Context(), path, handover.Own(), &table, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	want("connect: no such file or directory")
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	socket.SetUnlinkOnClose(false)
	socket.Close()
	want("connect: connection refused")
}

// A composer that hangs delays an attestation by no more than the context lets it.
func TestComposerHangs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "svid.sock")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := socket.Accept()
		if err == nil {
			defer conn.Close()
			_, _ = io.ReadFull(conn, make([]byte, 40))
		}
		cancel()
	}()
	if err := handover.NewClient(path, handover.Own()).HandOver(ctx, id, handover.Any()); err == nil {
		t.Error("a composer that says nothing has taken the key")
	}
}

// The attestor waits 5 seconds for a composer that hangs, and needs no more than a few file descriptors however
// many attestations wait for it. The log says what to do.
func TestManyWaitForAComposerThatHangs(t *testing.T) {
	t.Parallel()
	socket, err := net.Listen("unix", filepath.Join(t.TempDir(), "svid.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	c := handover.NewClient(socket.Addr().String(), handover.Own())
	handOver := func(ctx context.Context, want string) {
		t.Helper()
		err := c.HandOver(ctx, id, handover.Any())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "restart spire-server") {
			t.Errorf("%v, want %q", err, want)
		}
	}
	begun := time.Now()
	var all sync.WaitGroup
	for range handover.MaxCalls {
		all.Go(func() { handOver(t.Context(), "has said nothing") })
	}
	for range handover.MaxCalls {
		conn, err := socket.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	for range 20 {
		handOver(left, strconv.Itoa(handover.MaxCalls)+" others wait")
	}
	all.Wait()
	if took := time.Since(begun); took > time.Minute { // it is 5 seconds, on a machine that has nothing else to do
		t.Errorf("they were given up after %v", took)
	}
}

// panics is a log that has a bug.
type panics struct{ hclog.Logger }

func (panics) Warn(string, ...any) { panic("a bug") }

// A panic ends the connection in which it happens, and no other: if the composer ended, SPIRE's server
// would sign nothing for anybody.
func TestListenerSurvivesPanics(t *testing.T) {
	var log logLines
	var table handover.Table
	path := socketPath(t)
	l, err := handover.Listen(t.Context(), path, handover.Own(), &table,
		panics{hclog.New(&hclog.LoggerOptions{Output: &log})})
	if err != nil {
		t.Fatal(err)
	}
	h := &here{path: path}
	for range 2 * handover.MaxConns { // none keeps its place
		conn := h.dial(t)
		_, _ = conn.Write([]byte(strings.Repeat("x", 36)))
		_, _ = io.ReadAll(conn)
		conn.Close()
	}
	if err := h.client().HandOver(t.Context(), id, handover.Any()); err != nil {
		t.Error(err)
	}
	l.Close()
	if !strings.Contains(log.String(), "a bug") {
		t.Errorf("the log does not tell: %s", &log)
	}
}

// Malformed requests and clients that say nothing get nothing, stop nobody, and leave nothing in
// memory, nor do a hundred thousand hand-overs.
func TestHostileClients(t *testing.T) {
	h := listenHere(t, socketPath(t))
	c := h.client()
	before := heap()
	hostile := []string{
		"", "\x01", "\x01o", strings.Repeat("\x00", 36), strings.Repeat("\xff", 36),
		"\x01a" + strings.Repeat("\x00", 32) + "\xff\xff", "\x01a" + strings.Repeat("\x00", 32) + "\x00\x00",
		"\x01a" + strings.Repeat("\x00", 32) + "\x00\x05spiff",
		"\x01a" + strings.Repeat("\x00", 32) + "\x00\x18spiffe://example.org/a/b",
		"\x01a" + strings.Repeat("\x01", 32) + "\x00\x26" + machine, "\x02a" + strings.Repeat("\x00", 32) + "\x00\x26" + machine,
		strings.Repeat("x", 100_000), "GET / HTTP/1.1\r\n\r\n",
	}
	for i := range 2000 {
		conn, err := net.Dial("unix", h.path)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(hostile[i%len(hostile)])) // the listener may have refused it already
		_ = conn.(*net.UnixConn).CloseWrite()
		if reply, err := io.ReadAll(conn); err == nil && len(reply) > 0 && reply[0] != 'r' {
			t.Errorf("%q: %q", hostile[i%len(hostile)], reply)
		}
		conn.Close()
	}
	wantTake(t, &h.table, machine, "a", handover.ErrNothing)
	handOvers := 100_000
	if testing.Short() {
		handOvers = 10_000
	}
	for i := range handOvers {
		if err := c.HandOver(t.Context(), id, handover.Only(hash(strconv.Itoa(i)))); err != nil {
			t.Fatal(err)
		}
	}
	wantTake(t, &h.table, machine, strconv.Itoa(handOvers-1), nil)
	if grown := heap() - before; grown > 4<<20 {
		t.Errorf("%d bytes more after it", grown)
	}
}

// If as many clients as the listener serves at once say nothing, a hand-over waits no longer than their
// time limit. They do not delay Close.
func TestSilentClients(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	var table handover.Table
	l, err := handover.Listen(t.Context(), path, handover.Own(), &table, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	h := &here{path: path}
	var conns []net.Conn
	for range handover.MaxConns {
		conns = append(conns, h.dial(t))
	}
	var all sync.WaitGroup
	for _, conn := range conns { // each is closed in the end
		all.Go(func() {
			if reply, err := io.ReadAll(conn); err != nil || len(reply) > 0 {
				t.Errorf("%q, %v", reply, err)
			}
		})
	}
	all.Wait()
	if err := h.client().HandOver(t.Context(), id, handover.Any()); err != nil {
		t.Error(err)
	}
	l.Close()
	var took time.Duration
	for range 3 { // a machine that is busy is slow at times, and not each time
		if took = closeBesideSilence(t); took <= 3*time.Second { // a client may be silent for 5
			return
		}
	}
	t.Errorf("Close took %v", took)
}

// closeBesideSilence returns how long Close takes while a client says nothing.
func closeBesideSilence(t *testing.T) time.Duration {
	t.Helper()
	path := socketPath(t)
	l, err := handover.Listen(t.Context(), path, handover.Own(), new(handover.Table), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	(&here{path: path}).dial(t)
	begun := time.Now()
	l.Close()
	return time.Since(begun)
}

// BenchmarkHandOver is what it costs an attestation to hand a key over.
func BenchmarkHandOver(b *testing.B) {
	h := listenHere(b, socketPath(b))
	c := h.client()
	for b.Loop() {
		if err := c.HandOver(b.Context(), id, handover.Only(hash("a"))); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTake is what it costs SPIRE's signature of an agent's SVID, without the call.
func BenchmarkTake(b *testing.B) {
	var table handover.Table
	for i := range 1 << 15 {
		table.Put(machine+strconv.Itoa(i), handover.Any())
	}
	for b.Loop() {
		table.Put(machine, handover.Only(hash("a")))
		if err := table.Take(machine, hash("a")); err != nil {
			b.Fatal(err)
		}
	}
}

// Whatever arrives at the socket is a request or an error, and a request is read as it was written.
func FuzzRequest(f *testing.F) {
	var b strings.Builder
	if err := handover.WriteRequest(&b, machine, handover.Only(hash("a"))); err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(b.String()))
	f.Add([]byte("\x01a" + strings.Repeat("\x00", 32) + "\x00\x18spiffe://example.org/a/b"))
	f.Fuzz(func(t *testing.T, in []byte) {
		text, k, err := handover.ReadRequest(strings.NewReader(string(in)))
		if err != nil {
			if text != "" || k != (handover.Key{}) {
				t.Errorf("%q and a key with %v", text, err)
			}
			return
		}
		var again strings.Builder
		if err := handover.WriteRequest(&again, text, k); err != nil || !strings.HasPrefix(string(in), again.String()) {
			t.Errorf("%q becomes %q, %v", in, again.String(), err)
		}
		_ = handover.ReadReply(strings.NewReader(string(in)))
	})
}
