package fetch_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// The environment by which this test binary is another process.
const (
	roleVariable = "CERTFETCH_TEST_ROLE"
	pathVariable = "CERTFETCH_TEST_PATH"
	hostVariable = "CERTFETCH_TEST_HOST"
)

// inProcess runs a role of TestRole in a process of its own.
func inProcess(ctx context.Context, role, path, host string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestRole$", "-test.count=1")
	cmd.Env = append(os.Environ(), roleVariable+"="+role, pathVariable+"="+path, hostVariable+"="+host)
	cmd.Stderr = os.Stderr
	return cmd
}

// TestRole is what the other tests run in processes of their own.
func TestRole(t *testing.T) {
	path, host := os.Getenv(pathVariable), os.Getenv(hostVariable)
	switch os.Getenv(roleVariable) {
	case "write":
		writeForEver(t, path, host)
	case "full disk":
		writeToFullDisk(t, path, host)
	}
}

// writeForEver fetches, writes and says what is on the disk, until it is killed.
func writeForEver(t *testing.T, path, host string) {
	for {
		f := open(t, fetch.Config{Hosts: []string{host}, CachePath: path})
		must(t, f.Load(t.Context()))
		url := fmt.Sprintf("http://%s/%d.crt", host, f.Stats().Objects)
		wantGet(t, f, url, string(bodyOf(strings.TrimPrefix(url, "http://"+host))))
		must(t, f.Close())
		fmt.Println("written", f.Stats().Objects)
	}
}

// A process that is killed at any moment leaves what it has said to be written,
// and nothing that is torn.
func TestKilled(t *testing.T) {
	o := local(t)
	o.serve(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(bodyOf(r.URL.Path)) })
	path := filepath.Join(t.TempDir(), "cache.db")
	written := 0
	for round := range 12 {
		ctx, kill := context.WithCancel(t.Context())
		cmd := inProcess(ctx, "write", path, o.host())
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; n < 3 && lines.Scan(); n++ {
			if _, err := fmt.Sscanf(lines.Text(), "written %d", &written); err != nil {
				t.Fatalf("%q", lines.Text())
			}
		}
		// Somewhere in the next one: it takes some milliseconds.
		timer := time.NewTimer(time.Duration(round) * 700 * time.Microsecond)
		<-timer.C
		kill()
		for lines.Scan() { // what it has said until then counts
			_, _ = fmt.Sscanf(lines.Text(), "written %d", &written)
		}
		_ = cmd.Wait() // killed
		f, err := fetch.New(fetch.Config{Hosts: []string{o.host()}, CachePath: path})
		must(t, err)
		must(t, f.Load(t.Context()))
		if n := f.Stats().Objects; n < written || n > written+1 {
			t.Fatalf("round %d: %d objects, %d were written", round, n, written)
		}
		for i := range written {
			url := numbered(o, i)
			wantCached(t, f, url, string(bodyOf(fmt.Sprintf("/%d.crt", i))))
		}
	}
	if written < 36 {
		t.Errorf("only %d were written", written)
	}
}

// A full disk is reported, the objects in memory are used, the file stays as it was, and everything
// is written when there is room again.
func TestFullDisk(t *testing.T) {
	o := local(t)
	path := filled(t, o, 5)
	out, err := inProcess(t.Context(), "full disk", path, o.host()).Output()
	if err != nil || !strings.Contains(string(out), "it went well") {
		t.Fatalf("%v: %s", err, out)
	}
}

func writeToFullDisk(t *testing.T, path, host string) {
	signal.Ignore(unix.SIGXFSZ)
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_FSIZE, &limit))
	setLimit := func(size uint64) {
		must(t, unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: limit.Max}))
	}
	get := func(f *fetch.Fetcher, i int) {
		wantGet(t, f, fmt.Sprintf("http://%s/%d.crt", host, i), string(bodyOf(fmt.Sprintf("/%d.crt", i))))
	}
	failed := 0
	for i := range 20 {
		f := open(t, fetch.Config{Hosts: []string{host}, CachePath: path, Now: newClock().Now})
		must(t, f.Load(t.Context()))
		before := f.Stats().Objects
		setLimit(uint64(i) * 1500)
		for n := range 20 {
			get(f, 1000*i+n)
		}
		err := f.Close()
		setLimit(limit.Cur)
		again := open(t, fetch.Config{Hosts: []string{host}, CachePath: path, Now: newClock().Now})
		must(t, again.Load(t.Context()))
		switch n := again.Stats().Objects; {
		case err != nil && (n != before || !errors.Is(f.CacheError(), err)):
			t.Fatalf("%d objects after %v, %d before", n, err, before)
		case err == nil && n != before+20:
			t.Fatalf("%d objects, %d before", n, before)
		case err != nil:
			failed++
			get(f, 1000*i) // memory serves
			must(t, f.Close())
		}
	}
	if failed < 5 {
		t.Fatalf("only %d writes have failed", failed)
	}
	fmt.Println("it went well")
}
