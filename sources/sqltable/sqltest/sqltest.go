// Package sqltest runs real database servers for tests: PostgreSQL and MariaDB, each in its own
// folder, on a unix socket and a port of 127.0.0.1, as an unprivileged user. A test may stop,
// kill and freeze them.
package sqltest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Server is a database server. Except for Log and Exec, its methods must not be called
// concurrently.
type Server struct {
	engine engine
	// Dir holds everything that the server writes.
	Dir string
	// Port is the port of 127.0.0.1 on which it listens.
	Port int
	// CAPath is the PEM file of the CA that has issued the server's certificate, which is for
	// 127.0.0.1 and localhost.
	CAPath string

	credential *syscall.Credential
	cmd        *exec.Cmd
	exited     chan struct{}

	mu  sync.Mutex
	log bytes.Buffer
}

// An engine is what distinguishes PostgreSQL and MariaDB.
type engine struct {
	name  string
	users []string // the server runs as the first of them that exists
	// prepare returns the command that creates the data directory, and serve the command that runs
	// the server.
	prepare, serve func(s *Server) (*exec.Cmd, error)
	// exec returns the command that runs the statements on its standard input.
	exec func(s *Server, database string) (*exec.Cmd, error)
	// ready is what the server logs when it accepts connections.
	ready string
	// stop shuts the server down in an orderly way. dead ends it at once; the kernel sends it if
	// the test has died.
	stop, dead syscall.Signal
}

// Postgres starts a PostgreSQL server. Connections to its socket are trusted, and connections over
// the network need a password. The superuser is "postgres".
func Postgres() (*Server, error) { return start(postgres) }

// MariaDB starts a MariaDB server. The superuser is "root", without a password.
func MariaDB() (*Server, error) { return start(mariadb) }

var postgres = engine{
	name: "postgres", users: []string{"postgres", "nobody"},
	ready: "database system is ready to accept connections", stop: syscall.SIGINT, dead: syscall.SIGQUIT,
	prepare: func(s *Server) (*exec.Cmd, error) {
		program, err := find("initdb", "/usr/lib/postgresql/*/bin/initdb")
		if err != nil {
			return nil, err
		}
		return exec.Command(program, "-D", s.data(), "-U", "postgres", "--auth-local=trust",
			"--auth-host=scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"), nil
	},
	serve: func(s *Server) (*exec.Cmd, error) {
		program, err := find("postgres", "/usr/lib/postgresql/*/bin/postgres")
		if err != nil {
			return nil, err
		}
		args := []string{"-D", s.data(), "-k", s.Dir, "-h", "127.0.0.1", "-p", strconv.Itoa(s.Port)}
		for _, setting := range []string{
			"fsync=off", "max_connections=24", "superuser_reserved_connections=5",
			"log_statement=all", "log_min_duration_statement=-1", "ssl=on",
			"ssl_cert_file=" + s.file("server.pem"), "ssl_key_file=" + s.file("server.key"),
		} {
			args = append(args, "-c", setting)
		}
		return exec.Command(program, args...), nil
	},
	exec: func(s *Server, database string) (*exec.Cmd, error) {
		program, err := find("psql", "/usr/lib/postgresql/*/bin/psql")
		if err != nil {
			return nil, err
		}
		return exec.Command(program, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", s.Dir,
			"-p", strconv.Itoa(s.Port), "-U", "postgres", "-d", database), nil
	},
}

var mariadb = engine{
	name: "mariadb", users: []string{"mysql", "nobody"},
	ready: "ready for connections", stop: syscall.SIGTERM, dead: syscall.SIGKILL,
	prepare: func(s *Server) (*exec.Cmd, error) {
		program, err := find("mariadb-install-db", "/usr/bin/mariadb-install-db")
		if err != nil {
			return nil, err
		}
		return exec.Command(program, "--no-defaults", "--datadir="+s.data(), "--skip-test-db",
			"--auth-root-authentication-method=normal", "--innodb-log-file-size=8M"), nil
	},
	serve: func(s *Server) (*exec.Cmd, error) {
		program, err := find("mariadbd", "/usr/sbin/mariadbd")
		if err != nil {
			return nil, err
		}
		return exec.Command(program, "--no-defaults", "--datadir="+s.data(), "--socket="+s.Socket(),
			"--bind-address=127.0.0.1", "--port="+strconv.Itoa(s.Port), "--pid-file="+s.file("pid"),
			"--general-log", "--general-log-file="+s.file("general.log"), "--skip-name-resolve",
			"--innodb-flush-log-at-trx-commit=2", "--max-connections=24",
			"--innodb-log-file-size=8M", "--character-set-server=utf8mb4",
			"--ssl-ca="+s.CAPath, "--ssl-cert="+s.file("server.pem"), "--ssl-key="+s.file("server.key")), nil
	},
	exec: func(s *Server, database string) (*exec.Cmd, error) {
		program, err := find("mariadb", "/usr/bin/mariadb")
		if err != nil {
			return nil, err
		}
		return exec.Command(program, "--no-defaults", "--batch", "--skip-column-names", "--socket="+s.Socket(),
			"--user=root", "--database="+database), nil
	},
}

// find returns the path of a program that is in the PATH, or where Debian installs it.
func find(name, pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err == nil && len(found) > 0 {
		slices.Sort(found)
		return found[len(found)-1], nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("there is no %s: run e2e/install.sh test: %w", name, err)
	}
	return path, nil
}

// patience is the longest time that a server may take to start or to stop.
const patience = time.Minute

func start(e engine) (*Server, error) {
	dir, err := os.MkdirTemp("", "sql") // short, since the path of a socket may have at most 107 bytes
	if err != nil {
		return nil, err
	}
	s := &Server{engine: e, Dir: dir}
	if err := s.prepare(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	if err := s.Start(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
}

// prepare creates the server's data directory.
func (s *Server) prepare() error {
	var err error
	if s.Port, err = FreePort(); err != nil {
		return err
	}
	if err := s.certificates(); err != nil {
		return err
	}
	if err := s.giveAway(); err != nil {
		return err
	}
	cmd, err := s.engine.prepare(s)
	if err != nil {
		return err
	}
	s.as(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd.Path, err, out)
	}
	return nil
}

// giveAway changes the owner of the folder to the user that the server runs as: neither server runs
// as root.
func (s *Server) giveAway() error {
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range s.engine.users {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(u.Uid)
		if err != nil {
			return err
		}
		gid, err := strconv.Atoi(u.Gid)
		if err != nil {
			return err
		}
		s.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		return filepath.WalkDir(s.Dir, func(path string, _ os.DirEntry, err error) error {
			return errors.Join(err, os.Chown(path, uid, gid))
		})
	}
	return fmt.Errorf("there is no user to run %s as: %q", s.engine.name, s.engine.users)
}

// as makes a command run as the server's user, in the server's folder.
func (s *Server) as(cmd *exec.Cmd) {
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), "HOME="+s.Dir, "LC_ALL=C", "TZ=UTC")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.credential}
}

func (s *Server) file(name string) string { return filepath.Join(s.Dir, name) }
func (s *Server) data() string            { return s.file("data") }

// Socket returns the path of the unix socket. PostgreSQL clients need its folder, Dir, instead.
func (s *Server) Socket() string {
	if s.engine.name == "postgres" {
		return fmt.Sprintf("%s/.s.PGSQL.%d", s.Dir, s.Port)
	}
	return s.file("sock")
}

// Address is the server's address on the network.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// Start starts the server, with the data of an earlier run if there is any, and returns when it
// accepts connections.
func (s *Server) Start() error {
	cmd, err := s.engine.serve(s)
	if err != nil {
		return err
	}
	s.as(cmd)
	cmd.SysProcAttr.Pdeathsig = s.engine.dead
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	ready, exited := make(chan struct{}), make(chan struct{})
	s.cmd, s.exited = cmd, exited
	go func() {
		defer close(exited)
		s.follow(stderr, ready)
		_ = cmd.Wait()
	}()
	select {
	case <-ready:
		return nil
	case <-exited:
		return fmt.Errorf("%s has ended:\n%s", s.engine.name, s.tail())
	case <-time.After(patience):
		s.Kill()
		return fmt.Errorf("%s is not ready:\n%s", s.engine.name, s.tail())
	}
}

// follow keeps what the server logs, and closes ready when the server is ready.
func (s *Server) follow(stderr io.Reader, ready chan<- struct{}) {
	lines := bufio.NewReader(stderr)
	for said := false; ; {
		line, err := lines.ReadString('\n')
		s.mu.Lock()
		s.log.WriteString(line)
		s.mu.Unlock()
		if !said && strings.Contains(line, s.engine.ready) {
			said = true
			close(ready)
		}
		if err != nil {
			return
		}
	}
}

func (s *Server) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.log.Bytes()
	return string(b[max(0, len(b)-4000):])
}

// Log returns everything that the server has logged, including every statement.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	general, _ := os.ReadFile(s.file("general.log")) // of MariaDB
	return s.log.String() + string(general)
}

// Stop shuts the server down in an orderly way, which closes its clients' connections.
func (s *Server) Stop() error {
	select {
	case <-s.exited:
		return nil
	default:
	}
	if err := s.cmd.Process.Signal(s.engine.stop); err != nil {
		return err
	}
	select {
	case <-s.exited:
		return nil
	case <-time.After(patience):
		s.Kill()
		return fmt.Errorf("%s has not stopped:\n%s", s.engine.name, s.tail())
	}
}

// Kill kills the server and all its sessions at once, as in a power failure. Start may start it
// again.
func (s *Server) Kill() {
	_ = s.signal(syscall.SIGKILL)
	<-s.exited
}

// Freeze makes the server and all its sessions hang: the kernel still accepts connections, and
// nothing answers. Thaw undoes it.
func (s *Server) Freeze() error {
	for begun := time.Now(); time.Since(begun) < patience; runtime.Gosched() {
		if err := s.signal(syscall.SIGSTOP); err != nil {
			return err
		}
		if s.still() {
			return nil
		}
	}
	return errors.New("does not stand still")
}

// Thaw undoes Freeze.
func (s *Server) Thaw() error { return s.signal(syscall.SIGCONT) }

// still reports whether the server and all its children are stopped.
func (s *Server) still() bool {
	for _, state := range s.processes() {
		if state != "T" && state != "Z" {
			return false
		}
	}
	return true
}

// signal sends a signal to the server and its children, which have their own process groups.
func (s *Server) signal(sig syscall.Signal) error {
	err := syscall.Kill(s.cmd.Process.Pid, sig)
	for pid := range s.processes() {
		_ = syscall.Kill(pid, sig)
	}
	return err
}

// processes returns the server's process and its children, with their states.
func (s *Server) processes() map[int]string {
	all := map[int]string{}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is a good one
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			continue
		}
		// pid (name) state ppid …; the name may contain anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && (pid == s.cmd.Process.Pid || fields[1] == strconv.Itoa(s.cmd.Process.Pid)) {
			all[pid] = fields[0]
		}
	}
	return all
}

// Close stops the server and removes its folder.
func (s *Server) Close() error {
	err := s.Stop()
	return errors.Join(err, os.RemoveAll(s.Dir))
}

// Exec runs statements as the superuser and returns their output, one line for each row.
func (s *Server) Exec(ctx context.Context, database, statements string) (string, error) {
	cmd, err := s.engine.exec(s, database)
	if err != nil {
		return "", err
	}
	run := exec.CommandContext(ctx, cmd.Path, cmd.Args[1:]...)
	run.Env = append(os.Environ(), "LC_ALL=C")
	run.Stdin = strings.NewReader(statements)
	var stderr bytes.Buffer
	run.Stderr = &stderr
	out, err := run.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", s.engine.name, err, stderr.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// FreePort returns a port of 127.0.0.1 for a server that is started later, or again: a port below
// those that the kernel gives to whoever asks for any, so it stays free.
func FreePort() (int, error) {
	const least, most = 10_000, 32_000
	for range 100 {
		port := least + rand.IntN(most-least)
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return port, l.Close()
		}
	}
	return 0, errors.New("find a free port: a hundred are taken")
}
