package examples_test

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sqltable/sqltest"
)

const (
	machineOne = "1b5bbe2e96054f7bc34ebe7ba9a4a9eac5611c6879285ceff6094fa556af485c"
	machineTwo = "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752"
)

// The example as it stands, with a real nginx: a machine that is put into the
// folder is listed, one that is taken out is not, an outage changes nothing, and
// who has no client certificate gets no list.
func TestNginxJSON(t *testing.T) {
	e := newNginxExample(t)
	e.enrol(machineOne, `{"name": "us-east-17", "labels": ["rack:12"]}`+"\n")
	e.build()
	stop := e.startNginx()
	source := e.source(e.etc)
	e.refresh(source)
	v := e.check(source, machineOne, true)
	if v.Attributes.Name != "us-east-17" || len(v.Attributes.Labels) != 1 || v.Attributes.Labels[0] != "rack:12" {
		t.Errorf("the attributes are %+v", v.Attributes)
	}
	e.check(source, machineTwo, false)

	e.enrol(machineTwo, "")
	e.build()
	e.refresh(source)
	e.check(source, machineOne, true)
	e.check(source, machineTwo, true)

	if err := os.Remove(filepath.Join(e.dir, "hashes", machineOne)); err != nil {
		t.Fatal(err)
	}
	e.build()
	e.refresh(source)
	e.check(source, machineOne, false)

	stranger := e.source(e.strangers)
	if err := stranger.Load(t.Context()); err == nil {
		t.Error("a client certificate of another CA gets the list")
	}
	stop()
	if err := source.Load(t.Context()); err == nil {
		t.Error("nginx has stopped, and Load succeeds")
	}
	e.check(source, machineTwo, true)
	restarted := e.source(e.etc)
	if err := restarted.Load(t.Context()); err == nil { // it serves from the cache
		t.Error("nginx has stopped, and Load succeeds")
	}
	e.check(restarted, machineTwo, true)
}

// A folder that is not mounted, or that holds half a file, empties no list; and
// what has not changed keeps its serial.
func TestBuildListKeepsTheList(t *testing.T) {
	e := newNginxExample(t)
	list := filepath.Join(e.dir, "tpm.json")
	e.enrol(machineOne, "")
	e.enrol("README", "no machine")
	e.build()
	first, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	e.build()
	e.enrol(machineTwo, `{"name": "x"`)
	if out, err := e.run("hashes"); err == nil || !strings.Contains(out, "neither empty nor a JSON object") {
		t.Errorf("half an object: %v: %s", err, out)
	}
	if out, err := e.run("nothing"); err == nil || !strings.Contains(out, "is it mounted?") {
		t.Errorf("no folder: %v: %s", err, out)
	}
	if now, err := os.ReadFile(list); err != nil || !bytes.Equal(now, first) {
		t.Errorf("the list is now %s, error %v", now, err)
	}
}

// The file of one machine, which its owner may be able to write, lists that machine
// and no other: neither by a field "hash", of which the last one would count, nor by
// an object that ends early.
func TestBuildListOfOneMachineAlone(t *testing.T) {
	for _, content := range []string{
		`{"hash": "` + machineTwo + `"}`,
		`{"name": "x", "Hash" : "` + machineTwo + `"}`,
		`{"name": "x", "\u0068ash": "` + machineTwo + `"}`,
		`{"name": "x"}, {"hash": "` + machineTwo + `"}`,
		`{"name": "x"}, "` + machineTwo + `", {"name": "y"}`,
		`{"name": "x", "more": {"hash": "` + machineTwo + `"}}`,
		`{"name": "x", "labels": ["a"}, {"hash": "` + machineTwo + `", "labels": ["b"]}`,
		`{"name": "x\"}, {"hash": "` + machineTwo + `"}`,
		`{"name": "x",}`,
		`{,}`,
	} {
		e := newNginxExample(t)
		e.enrol(machineOne, "")
		e.build()
		e.enrol(machineOne, content)
		out, err := e.run("hashes")
		if err == nil || !strings.Contains(out, "the list is left unchanged") {
			t.Errorf("%s: %v: %s", content, err, out)
		}
		if text, serial := e.published("tpm.json"); serial != 1 || strings.Contains(text, machineTwo) {
			t.Errorf("%s: the list is %s", content, text)
		}
	}
}

// What an object may hold is listed as it is, with every character that means
// something to a shell, a pattern or JSON.
func TestBuildListKeepsFields(t *testing.T) {
	e := newNginxExample(t)
	e.enrol(machineOne, "{\"name\": \"a {b}, [c] \\\"d\\\" \\\\\", \"n\" : -1.5e3,\n\t\"labels\": [ \"x\" , \"y:}\" ], \"ok\":true}\r\n")
	e.enrol(machineTwo, "{ }")
	e.build()
	text, _ := e.published("tpm.json")
	var list struct{ Keys []any }
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list.Keys) != 2 {
		t.Fatalf("%v: %s", err, text)
	}
	got, err := json.Marshal(list.Keys)
	want := `[{"hash":"` + machineOne + `","labels":["x","y:}"],"n":-1500,"name":"a {b}, [c] \"d\" \\","ok":true},"` +
		machineTwo + `"]`
	if err != nil || string(got) != want {
		t.Errorf("the list is %s, want %s", got, want)
	}
}

// A machine whose file is named in upper case is listed, as by a hash_dir, and what
// looks like a hash and is left out is said, or nobody would know why it is refused.
func TestBuildListSaysWhatIsLeftOut(t *testing.T) {
	e := newNginxExample(t)
	e.enrol(strings.ToUpper(machineOne), "")
	e.enrol(machineTwo+".txt", "")
	mixed := strings.ToUpper(machineTwo[:10]) + machineTwo[10:]
	e.enrol(mixed, "")
	e.enrol("README", "")
	out, err := e.run("hashes")
	if err != nil || !strings.Contains(out, machineTwo+".txt: left out") ||
		!strings.Contains(out, mixed+": left out") || strings.Contains(out, "README") {
		t.Errorf("%v: %s", err, out)
	}
	if text, _ := e.published("tpm.json"); !strings.Contains(text, machineOne) ||
		strings.Contains(strings.ToLower(text), machineTwo) {
		t.Errorf("the list is %s", text)
	}
	e.enrol(machineOne, "")
	if out, err := e.run("hashes"); err == nil || !strings.Contains(out, "in upper and in lower case") {
		t.Errorf("both: %v: %s", err, out)
	}
}

// However many runs there are at once, no serial stands for two lists: a SPIRE server
// that has the one would refuse the other for a replay, for good. And the last run
// has what all have changed.
func TestBuildListAtOnce(t *testing.T) {
	const runs = 12
	e := newNginxExample(t)
	e.enrol(machineOne, "")
	e.build()
	ended := make(chan struct{})
	var watch, work sync.WaitGroup
	watch.Go(func() {
		lists := map[uint64]string{}
		for more := true; more; {
			select {
			case <-ended:
				more = false
			default:
			}
			for _, name := range []string{"tpm.json", "tpm.json.gz"} {
				text, serial := e.published(name)
				if before, ok := lists[serial]; ok && before != text {
					t.Errorf("serial %d is two lists", serial)
				}
				lists[serial] = text
			}
		}
	})
	for i := range runs {
		work.Go(func() {
			if err := os.WriteFile(filepath.Join(e.dir, "hashes", fmt.Sprintf("%064x", i)), nil, 0o600); err != nil {
				t.Error(err)
			}
			if out, err := e.run("hashes"); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	work.Wait()
	close(ended)
	watch.Wait()
	text, serial := e.published("tpm.json")
	if zipped, _ := e.published("tpm.json.gz"); zipped != text {
		t.Error("tpm.json.gz is another list")
	}
	if n := strings.Count(text, "\n") - 2; n != runs+1 || serial > runs+1 {
		t.Errorf("serial %d lists %d machines, want %d", serial, n, runs+1)
	}
}

// A run that is killed between the two files leaves two lists. The next one makes
// them one, by a serial that neither has had, also where the folder is again as it
// was before.
func TestBuildListKilled(t *testing.T) {
	e := newNginxExample(t)
	e.enrol(machineOne, "")
	e.build()
	bin := t.TempDir()
	mv, err := exec.LookPath("mv")
	if err != nil {
		t.Fatal(err)
	}
	e.write(filepath.Join(bin, "mv"), []byte("#!/bin/sh\ncase $2 in *.gz) exec "+mv+" \"$@\" ;; esac\nkill -9 $PPID\n"))
	if err := os.Chmod(filepath.Join(bin, "mv"), 0o700); err != nil {
		t.Fatal(err)
	}
	e.enrol(machineTwo, "")
	path := os.Getenv("PATH")
	t.Setenv("PATH", bin+":"+path)
	if out, err := e.run("hashes"); err == nil {
		t.Fatalf("it was not killed: %s", out)
	}
	t.Setenv("PATH", path)
	if _, serial := e.published("tpm.json"); serial != 1 {
		t.Fatalf("tpm.json has the serial %d: this test tests nothing", serial)
	}
	if _, serial := e.published("tpm.json.gz"); serial != 2 {
		t.Fatalf("tpm.json.gz has the serial %d: this test tests nothing", serial)
	}
	if err := os.Remove(filepath.Join(e.dir, "hashes", machineTwo)); err != nil {
		t.Fatal(err)
	}
	e.build()
	text, serial := e.published("tpm.json")
	zipped, zippedSerial := e.published("tpm.json.gz")
	if serial != 3 || zippedSerial != 3 || text != zipped || strings.Contains(text, machineTwo) {
		t.Errorf("the serials are %d and %d, the list is %s", serial, zippedSerial, text)
	}
	e.build()
	if _, serial := e.published("tpm.json"); serial != 3 {
		t.Errorf("nothing has changed, and the serial is %d", serial)
	}
}

// published returns a file that the script has written, decompressed, and its serial.
func (e *nginxExample) published(name string) (text string, serial uint64) {
	e.t.Helper()
	b, err := os.ReadFile(filepath.Join(e.dir, name))
	if err == nil && strings.HasSuffix(name, ".gz") {
		var r *gzip.Reader
		if r, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			b, err = io.ReadAll(r)
		}
	}
	var list struct{ Serial uint64 }
	if err := errors.Join(err, json.Unmarshal(b, &list)); err != nil {
		e.t.Errorf("%s: %v", name, err)
	}
	return string(b), list.Serial
}

// nginxExample is the example in a folder of its own.
type nginxExample struct {
	t    *testing.T
	dir  string // of the host with the list
	addr string // of nginx
	// etc and strangers are what SPIRE servers have: certificates and caches.
	etc, strangers string
}

func newNginxExample(t *testing.T) *nginxExample {
	t.Helper()
	e := &nginxExample{t: t, dir: t.TempDir(), etc: t.TempDir(), strangers: t.TempDir()}
	port, err := sqltest.FreePort()
	must(t, err)
	e.addr = fmt.Sprintf("127.0.0.1:%d", port)
	if err := os.Mkdir(filepath.Join(e.dir, "hashes"), 0o755); err != nil {
		t.Fatal(err)
	}
	servers, clients, others := newTestCA(t), newTestCA(t), newTestCA(t)
	servers.issue(t, e.dir, "server.pem", "server.key")
	clients.issue(t, e.etc, "client.pem", "client-key.pem")
	others.issue(t, e.strangers, "client.pem", "client-key.pem")
	e.write(filepath.Join(e.dir, "clients-ca.pem"), clients.pem)
	e.write(filepath.Join(e.etc, "ca.pem"), servers.pem)
	e.write(filepath.Join(e.strangers, "ca.pem"), servers.pem)
	return e
}

func (e *nginxExample) write(path string, data []byte) {
	e.t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		e.t.Fatal(err)
	}
}

func (e *nginxExample) enrol(hash, content string) {
	e.t.Helper()
	e.write(filepath.Join(e.dir, "hashes", hash), []byte(content))
}

// run runs the script on a folder.
func (e *nginxExample) run(folder string) (string, error) {
	e.t.Helper()
	script := filepath.Join("nginx-json", "build-list.sh")
	cmd := exec.CommandContext(e.t.Context(), script, filepath.Join(e.dir, folder), filepath.Join(e.dir, "tpm.json"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (e *nginxExample) build() {
	e.t.Helper()
	if out, err := e.run("hashes"); err != nil {
		e.t.Fatalf("build-list.sh: %v: %s", err, out)
	}
}

// startNginx starts nginx with the example's configuration.
func (e *nginxExample) startNginx() (stop func()) {
	e.t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		program = "/usr/sbin/nginx" // not in everybody's PATH
	}
	if _, err := os.Stat(program); err != nil {
		e.t.Fatalf("there is no nginx: run e2e/install.sh test: %v", err)
	}
	site := strings.NewReplacer(
		"/etc/tpm-allowlist", e.dir, "/srv/tpm-allowlist", e.dir, "listen 443", "listen "+e.addr,
	).Replace(read(e.t, "examples/nginx-json/allowlist.nginx"))
	var temp strings.Builder
	for _, kind := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "%s_temp_path %s;\n", kind, filepath.Join(e.dir, kind))
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n" // the workers read the test's own folder
	}
	main := fmt.Sprintf("%spid %s/nginx.pid;\ndaemon off;\nevents {}\nhttp {\naccess_log off;\n%s%s}\n",
		user, e.dir, temp.String(), site)
	conf := filepath.Join(e.dir, "nginx.conf")
	e.write(conf, []byte(main))
	cmd := exec.Command(program, "-e", "stderr", "-c", conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			e.t.Errorf("nginx: %v: %s", err, log.String())
		}
	}
	e.t.Cleanup(stop)
	return stop
}

// source returns the source of the example's server.conf, with the files of one
// SPIRE server.
func (e *nginxExample) source(etc string) sources.Loader {
	e.t.Helper()
	text := read(e.t, "examples/nginx-json/server.conf")
	data, err := snippet{place: "server.conf", text: text, whole: true}.data()
	if err != nil {
		e.t.Fatal(err)
	}
	moved := strings.NewReplacer("allowlist.example.org", e.addr,
		"/etc/spire/allowlist", etc, "/var/lib/spire/server", etc).Replace(data.text)
	c, err := config.NewLoader().Load(e.t.Context(), moved, "example.org")
	if err != nil {
		e.t.Fatal(err)
	}
	source, ok := c.Members[0].Source.(sources.Loader)
	if !ok {
		e.t.Fatalf("%T is no Loader", c.Members[0].Source)
	}
	return source
}

// refresh refreshes a source; nginx may have just been started.
func (e *nginxExample) refresh(source sources.Loader) {
	e.t.Helper()
	var err error
	for begun := time.Now(); time.Since(begun) < time.Minute; {
		if err = source.Load(e.t.Context()); err == nil {
			return
		}
	}
	e.t.Fatalf("Load: %v", err)
}

func (e *nginxExample) check(source sources.Source, hash string, want bool) sources.Verdict {
	e.t.Helper()
	parsed, err := sources.ParseEKHash(hash)
	must(e.t, err)
	v, err := source.Check(e.t.Context(), &sources.Evidence{EKHash: parsed})
	if err != nil || v.Listed != want {
		e.t.Errorf("%s: listed is %v, error %v, want %v", hash, v.Listed, err, want)
	}
	return v
}

// A testCA issues certificates for 127.0.0.1.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newTestCA(t *testing.T) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Example CA " + rand.Text()},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue writes a certificate and its key.
func (ca *testCA) issue(t *testing.T, dir, certName, keyName string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: certName},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		certName: {Type: "CERTIFICATE", Bytes: der}, keyName: {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
