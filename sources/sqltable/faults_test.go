package sqltable_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable"
)

// sessions returns the source's sessions by number, and what each waits for.
func (d *database) sessions() map[string]string {
	d.tb.Helper()
	query := "SELECT pid, coalesce(wait_event_type, '') FROM pg_stat_activity WHERE usename = '" + d.name + "'"
	if d.dialect == sqltable.MySQL {
		query = "SELECT id, coalesce(state, '') FROM information_schema.processlist WHERE user = '" + d.name + "'"
	}
	rows, err := d.admin.QueryContext(context.Background(), query)
	must(d.tb, err)
	defer rows.Close()
	all := map[string]string{}
	for rows.Next() {
		var id, state string
		must(d.tb, rows.Scan(&id, &state))
		all[id] = state
	}
	must(d.tb, rows.Err())
	return all
}

// until calls is until it returns true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begun := time.Now(); !is(); runtime.Gosched() {
		if time.Since(begun) > time.Minute {
			t.Fatalf("never: %s", what)
		}
	}
}

// waiting reports whether a look-up is waiting for a lock.
func (d *database) waiting() bool {
	for _, state := range d.sessions() {
		if state == "Lock" || strings.Contains(state, "lock") {
			return true
		}
	}
	return false
}

// lock makes look-ups wait until unlock is called.
func (d *database) lock() (unlock func()) {
	d.tb.Helper()
	conn, err := d.admin.Conn(context.Background())
	must(d.tb, err)
	lock, free := "BEGIN; LOCK TABLE "+d.table()+" IN ACCESS EXCLUSIVE MODE", "COMMIT"
	if d.dialect == sqltable.MySQL {
		lock, free = "LOCK TABLES "+d.table()+" WRITE", "UNLOCK TABLES"
	}
	_, err = conn.ExecContext(context.Background(), lock)
	must(d.tb, err)
	var once sync.Once
	unlock = func() {
		once.Do(func() {
			_, _ = conn.ExecContext(context.Background(), free) // the server may be dead
			_ = conn.Close()
		})
	}
	d.tb.Cleanup(unlock)
	return unlock
}

// checking begins a check in the background.
func checking(ctx context.Context, s sources.Source, ev *sources.Evidence) <-chan error {
	result := make(chan error, 1)
	go func() {
		v, err := s.Check(ctx, ev)
		if err == nil {
			err = fmt.Errorf("listed: %v", v.Listed)
		} else if v.Listed {
			err = fmt.Errorf("listed beside the error %w", err)
		}
		result <- err
	}()
	return result
}

// A database that is down when the server starts admits nobody, and is used as soon as it is
// up. The log reports it before the first machine comes.
func TestDownAtStart(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		must(t, d.server.Stop())
		s := d.open(nil)
		s.SetRetryPause(0)
		wantCannotTell(t, s, ev, "connect")
		set, err := admission.NewSet([]admission.Member{{Name: "db", Kind: "sql", Source: s}},
			policy.AnyOf("db"), admission.Options{})
		must(t, err)
		set.Start(t.Context(), nil)
		if st := set.Status()[0]; st.Up() || st.Err == nil || !strings.Contains(st.Err.Error(), "connect") {
			t.Errorf("up %v, error %v", st.Up(), st.Err)
		}
		set.Close()
		must(t, d.server.Start())
		run(t, s)
		wantListed(t, s, ev, true)
	})
}

// Connections that died while they were idle, because the server was restarted or an
// administrator ended its sessions, cost no attestation its answer.
func TestConnectionsThatDied(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		s := d.open(nil)
		run(t, s)
		fill := func() {
			var all sync.WaitGroup
			for range 40 {
				all.Go(func() {
					if v, err := s.Check(t.Context(), ev); err != nil || !v.Listed {
						t.Errorf("%+v, %v", v, err)
					}
				})
			}
			all.Wait()
		}
		fill()
		must(t, d.server.Stop())
		must(t, d.server.Start())
		fill()
		d.server.Kill()
		must(t, d.server.Start())
		wantListed(t, s, ev, true)
		fill()
		for id := range d.sessions() {
			if d.dialect == sqltable.MySQL {
				d.exec("KILL " + id)
			} else {
				d.exec("SELECT pg_terminate_backend(" + id + ")")
			}
		}
		wantListed(t, s, ev, true)
	})
}

// If a database dies in the middle of a look-up, that does not mean "no row": under a deny
// rule, everybody would pass.
func TestGoesAwayInMidQuery(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev, stranger := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		s := d.open(func(c *sqltable.Config) { c.Timeout = 20 * time.Second })
		s.SetRetryPause(0)
		run(t, s)
		wantListed(t, s, ev, true)
		wantListed(t, s, stranger, false)
		unlock := d.lock()
		result := checking(t.Context(), s, stranger)
		until(t, "the look-up waits for the lock", d.waiting)
		d.server.Kill()
		if err := <-result; strings.HasPrefix(err.Error(), "listed") {
			t.Errorf("it has an answer: %v", err)
		}
		unlock()
		wantCannotTell(t, s, stranger, "connect")
		must(t, d.server.Start())
		wantListed(t, s, stranger, false)
		wantListed(t, s, ev, true)
	})
}

// A database that hangs, with connections open or without, costs one look-up its timeout and
// later look-ups nothing, and serves again when it answers again.
func TestHangs(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		for _, kept := range []bool{true, false} {
			t.Run(fmt.Sprintf("connections kept %v", kept), func(t *testing.T) {
				s := d.open(func(c *sqltable.Config) { c.Timeout = 300 * time.Millisecond })
				lists := func() bool {
					v, err := s.Check(t.Context(), ev)
					return err == nil && v.Listed
				}
				if kept {
					run(t, s)
					s.SetRetryPause(0)
					until(t, "the database answers within 300ms", lists)
				}
				s.SetRetryPause(time.Hour)
				must(t, d.server.Freeze())
				thaw := sync.OnceFunc(func() { must(t, d.server.Thaw()) })
				defer thaw()
				begun := time.Now()
				wantCannotTell(t, s, ev, "did not answer within 300ms")
				for range 1000 {
					wantCannotTell(t, s, ev, "is tried again")
				}
				if took := time.Since(begun); took > time.Minute { // 300ms each are 5 minutes
					t.Errorf("took %v", took)
				}
				thaw()
				s.SetRetryPause(0)
				until(t, "the database answers again", lists)
			})
		}
	})
}

// storm counts what a source answers to a thousand attestations at once, each of which has a
// time limit. A machine that is busy may be late, but not as late as if they came one by one.
func storm(t *testing.T, s sources.Source, ev *sources.Evidence, limit time.Duration) (listed, failed int64) {
	t.Helper()
	var l, f atomic.Int64
	var all sync.WaitGroup
	begun := time.Now()
	for range 1000 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			v, err := s.Check(ctx, ev)
			switch {
			case err == nil && v.Listed:
				l.Add(1)
			case err != nil:
				f.Add(1)
			}
		})
	}
	all.Wait()
	if took := time.Since(begun); took > limit+time.Minute {
		t.Errorf("the last answer came after %v", took)
	}
	return l.Load(), f.Load()
}

// A thousand attestations behind four connections all get an answer in time: the right answer
// if the database works, and an error if it hangs. They leave no goroutine and no further
// connection behind.
func TestThousandBehindFour(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		t.Run("it works", func(t *testing.T) {
			s := d.open(func(c *sqltable.Config) { c.Timeout = time.Minute })
			run(t, s)
			wantListed(t, s, ev, true)
			if listed, failed := storm(t, s, ev, time.Minute); listed != 1000 {
				t.Errorf("%d listed, %d failed", listed, failed)
			}
			if n := len(d.sessions()); n > 4 {
				t.Errorf("%d sessions", n)
			}
		})
		s := d.open(func(c *sqltable.Config) { c.Timeout = time.Second })
		run(t, s)
		answers := func() bool { _, err := s.Check(t.Context(), ev); return err == nil }
		until(t, "the database answers within a second", answers)
		before := runtime.NumGoroutine()
		must(t, d.server.Freeze())
		listed, failed := storm(t, s, ev, 5*time.Second)
		must(t, d.server.Thaw())
		if failed != 1000 {
			t.Errorf("%d listed, %d failed", listed, failed)
		}
		s.SetRetryPause(0)
		until(t, "the database answers again", answers)
		until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before+8 })
		until(t, "no session is left", func() bool { return len(d.sessions()) <= 4 })
	})
}

// In a Set, too, a thousand machines are all told in time to try again while the database
// hangs, and all are admitted if it answers.
func TestThousandInASet(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		start := func(t *testing.T, s sources.Source, opts admission.Options) *admission.Set {
			t.Helper()
			set, err := admission.NewSet([]admission.Member{{Name: "it", Kind: "sql", Source: s}}, policy.AnyOf("it"), opts)
			must(t, err)
			set.Start(t.Context(), nil)
			t.Cleanup(set.Close)
			return set
		}
		storm := func(set *admission.Set) map[policy.Outcome]int {
			outcomes := make(chan policy.Outcome, 1000)
			var all sync.WaitGroup
			for range cap(outcomes) {
				all.Go(func() { outcomes <- set.BeforeChallenge(t.Context(), ev).Outcome })
			}
			all.Wait()
			close(outcomes)
			count := map[policy.Outcome]int{}
			for o := range outcomes {
				count[o]++
			}
			return count
		}
		t.Run("it answers", func(t *testing.T) {
			patient := d.open(func(c *sqltable.Config) { c.Timeout = time.Minute })
			set := start(t, patient, admission.Options{CheckTimeout: time.Minute})
			if got := storm(set); got[policy.Challenge] != 1000 {
				t.Errorf("%v", got)
			}
		})
		t.Run("it hangs", func(t *testing.T) {
			set := start(t, d.open(nil), admission.Options{}) // with the defaults
			must(t, d.server.Freeze())
			thaw := sync.OnceFunc(func() { must(t, d.server.Thaw()) })
			defer thaw()
			begun := time.Now()
			if got := storm(set); got[policy.Unavailable] != 1000 {
				t.Errorf("%v", got)
			}
			if took := time.Since(begun); took > time.Minute { // check_timeout is 5 seconds
				t.Errorf("took %v", took)
			}
			until(t, "no check is stuck", func() bool { return set.Status()[0].Stuck == 0 })
			thaw()
		})
	})
}

// Look-ups that wait for a lock leave no sessions behind at the server. If it had too many, it
// would refuse everybody, its other users included.
func TestLockedTable(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		s := d.open(func(c *sqltable.Config) { c.Timeout = 100 * time.Millisecond })
		s.SetRetryPause(0)
		run(t, s)
		until(t, "it is connected", func() bool { _, err := s.Check(t.Context(), ev); return err == nil })
		unlock := d.lock()
		for range 30 { // the server accepts 24
			wantCannotTell(t, s, ev, "")
		}
		until(t, "few sessions are left", func() bool { return len(d.sessions()) <= 8 })
		unlock()
		until(t, "the lock is gone", func() bool { _, err := s.Check(t.Context(), ev); return err == nil })
	})
}

// While the database is down, 10,000 attestations cause 10,000 errors and one attempt to
// connect: its address is not flooded, nobody waits, and a wrong password does not get the
// account locked.
func TestOneAttempt(t *testing.T) {
	for _, dialect := range []sqltable.Dialect{sqltable.Postgres, sqltable.MySQL} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		var attempts atomic.Int64
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				attempts.Add(1)
				conn.Close()
			}
		})
		d := &database{tb: t, path: filepath.Join(t.TempDir(), "dsn")}
		d.writeDSN("user:password@tcp(" + l.Addr().String() + ")/db")
		if dialect == sqltable.Postgres {
			d.writeDSN("postgres://user:password@" + l.Addr().String() + "/db?sslmode=disable")
		}
		s, err := sqltable.New(sqltable.Config{Dialect: dialect, DSNPath: d.path})
		must(t, err)
		s.SetRetryPause(time.Hour)
		ev := sourcetest.NewEvidence(t)
		for range 10_000 {
			if v, err := s.Check(t.Context(), ev); err == nil {
				t.Fatalf("%+v", v)
			}
		}
		if n := attempts.Load(); n < 1 || n > 2 { // package sql may try an idle connection again
			t.Errorf("%s: %d attempts", dialect, n)
		}
		l.Close()
		serving.Wait()
	}
}

// Machines that disconnect neither cause new connections nor make the source believe that the
// database is down.
func TestCallersWhoLeave(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		s := d.open(func(c *sqltable.Config) { c.MaxOpenConns, c.Timeout = 1, 20*time.Second })
		s.SetRetryPause(time.Hour)
		run(t, s)
		wantListed(t, s, ev, false)
		before := d.sessions()
		for range 5 {
			unlock := d.lock()
			ctx, cancel := context.WithCancel(t.Context())
			asked := checking(ctx, s, ev)
			until(t, "the look-up waits for the lock", d.waiting)
			waiting := checking(ctx, s, ev) // waits for the connection
			cancel()
			for _, result := range []<-chan error{asked, waiting} {
				if err := <-result; !strings.Contains(err.Error(), context.Canceled.Error()) {
					t.Errorf("%v", err)
				}
			}
			unlock()
			wantListed(t, s, ev, false)
		}
		after := d.sessions()
		for id := range before {
			if _, ok := after[id]; !ok || len(after) != 1 {
				t.Errorf("the session was %v and is %v", before, after)
			}
		}
	})
}

// If a table is altered after the statement was prepared, look-ups read it as it is then.
func TestTableIsAltered(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{Name: "a"})
		s := d.open(func(c *sqltable.Config) { c.Query = "SELECT * FROM tpm_machines WHERE ek_hash = ?" })
		run(t, s)
		wantListed(t, s, ev, true)
		change := "ALTER COLUMN name TYPE text"
		if d.dialect == sqltable.MySQL {
			change = "MODIFY name varchar(100)"
		}
		for _, c := range []string{change, "ADD COLUMN first int", "DROP COLUMN labels", "ADD COLUMN labels text"} {
			d.exec("ALTER TABLE " + d.table() + " " + c)
			if v := wantListed(t, s, ev, true); v.Attributes.Name != "a" {
				t.Errorf("%+v", v.Attributes)
			}
		}
		d.exec("ALTER TABLE " + d.table() + " RENAME COLUMN ek_hash TO h")
		wantCannotTell(t, s, ev, "ek_hash")
	})
}

// To rotate a password or move a database, an operator replaces the file. If the file is
// missing or half-written for a moment, nothing changes.
func TestRotation(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{Name: "old"})
		d.writeDSN(d.overTCP("127.0.0.1", ""))
		s := d.open(nil)
		s.SetRetryPause(0)
		run(t, s)
		wantListed(t, s, ev, true)

		alter := "ALTER ROLE " + d.name + " PASSWORD 'next'"
		if d.dialect == sqltable.MySQL {
			alter = "ALTER USER " + d.user() + " IDENTIFIED BY 'next'"
		}
		d.exec(alter)
		wantListed(t, s, ev, true) // by the existing connection
		must(t, d.server.Stop())
		must(t, d.server.Start())
		wantCannotTell(t, s, ev, "connect")
		rotated := strings.Replace(d.overTCP("127.0.0.1", ""), strings.TrimPrefix(d.account(), d.name+":"), "next", 1)
		d.writeDSN(rotated)
		wantListed(t, s, ev, true)

		for _, torn := range []string{"", "nonsense://"} {
			d.writeDSN(torn)
			wantListed(t, s, ev, true)
		}
		d.exec("REVOKE SELECT ON " + d.table() + " FROM " + map[bool]string{true: d.user(), false: d.name}[d.dialect == sqltable.MySQL])
		wantCannotTell(t, s, ev, "and the DSN could not be read again")

		other := d.database(t)
		other.insert(ev.EKHash, sources.Attributes{Name: "new"})
		d.writeDSN(other.dsn)
		if v := wantListed(t, s, ev, true); v.Attributes.Name != "new" {
			t.Errorf("%+v", v.Attributes)
		}
		until(t, "the connections before are closed", func() bool { return len(d.sessions()) == 0 })
	})
}

// With a CA path, the database's certificate must name the host, and nothing is sent without
// TLS.
func TestTLS(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev := sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{})
		otherCA := postgres.running(t).CAPath
		query := "SELECT CASE WHEN variable_value = '' THEN 'plain' ELSE 'tls' END AS name FROM tpm_machines, " +
			"information_schema.session_status WHERE ek_hash = ? AND variable_name = 'Ssl_cipher'"
		if d.dialect == sqltable.Postgres {
			otherCA = mariadb.running(t).CAPath
			query = "SELECT CASE WHEN ssl THEN 'tls' ELSE 'plain' END AS name FROM tpm_machines, pg_stat_ssl " +
				"WHERE ek_hash = ? AND pid = pg_backend_pid()"
		}
		source := func(host, options, ca string) *sqltable.Source {
			d.writeDSN(d.overTCP(host, options))
			return d.open(func(c *sqltable.Config) { c.Query, c.CAPath = query, ca })
		}
		for _, options := range []string{"", map[bool]string{true: "tls=preferred", false: "sslmode=disable"}[d.dialect == sqltable.MySQL]} {
			for _, host := range []string{"127.0.0.1", "localhost"} {
				if v := wantListed(t, source(host, options, d.server.CAPath), ev, true); v.Attributes.Name != "tls" {
					t.Errorf("%s %s: %s", host, options, v.Attributes.Name)
				}
			}
			wantCannotTell(t, source("127.0.0.1", options, otherCA), ev, "certificate")
		}
		wantCannotTell(t, source("127.0.0.1", "", d.path), ev, "no CA certificate")
		wantCannotTell(t, source("127.0.0.1", "", d.path+".none"), ev, "no such file")
		if d.dialect == sqltable.Postgres {
			v := wantListed(t, source("localhost", "sslmode=verify-full&sslrootcert="+d.server.CAPath, ""), ev, true)
			if v.Attributes.Name != "tls" {
				t.Error("sslmode=verify-full is plain")
			}
			wantCannotTell(t, source("localhost", "sslmode=verify-full&sslrootcert="+otherCA, ""), ev, "certificate")
		} else {
			wantCannotTell(t, source("localhost", "tls=true", ""), ev, "certificate")
		}
	})
}

// A client certificate is read for each connection.
func TestClientCertificate(t *testing.T) {
	d, ev := postgres.database(t), sourcetest.NewEvidence(t)
	d.insert(ev.EKHash, sources.Attributes{})
	d.writeDSN(d.overTCP("127.0.0.1", ""))
	cert, key := filepath.Join(d.server.Dir, "server.pem"), filepath.Join(d.server.Dir, "server.key")
	with := func(cert, key string) *sqltable.Source {
		return d.open(func(c *sqltable.Config) { c.CAPath, c.ClientCertPath, c.ClientKeyPath = d.server.CAPath, cert, key })
	}
	wantListed(t, with(cert, key), ev, true)
	wantCannotTell(t, with(cert+".none", key), ev, "read the client certificate")
	wantCannotTell(t, with(cert, key+".none"), ev, "read the key of the client certificate")
	wantCannotTell(t, with(key, cert), ev, "the client certificate")
}

// In a Set, a database that is down makes attestations unavailable and has no other effect, and
// a database that is up admits. When the Set ends, all connections end.
func TestInASet(t *testing.T) {
	on(t, func(t *testing.T, d *database) {
		ev, stranger := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
		d.insert(ev.EKHash, sources.Attributes{Name: "m"})
		s := d.open(nil)
		s.SetRetryPause(0)
		set, err := admission.NewSet([]admission.Member{{Name: "it", Kind: "sql", Source: s}}, policy.AnyOf("it"), admission.Options{})
		must(t, err)
		set.Start(t.Context(), nil)
		outcome := func(ev *sources.Evidence) policy.Outcome { return set.BeforeChallenge(t.Context(), ev).Outcome }
		want := func(ev *sources.Evidence, want policy.Outcome) {
			t.Helper()
			if got := outcome(ev); got != want {
				t.Errorf("%v, want %v", got, want)
			}
		}
		want(ev, policy.Challenge)
		want(stranger, policy.Refused)
		must(t, d.server.Stop())
		want(ev, policy.Unavailable)
		want(stranger, policy.Unavailable)
		must(t, d.server.Start())
		want(ev, policy.Challenge)
		set.Close()
		until(t, "no session is left", func() bool { return len(d.sessions()) == 0 })
		want(ev, policy.Challenge) // for an evaluation that outlives the Set
		until(t, "no session is left", func() bool { return len(d.sessions()) == 0 })
	})
}
