package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
)

// A webServer is an nginx that serves the files of a folder over TLS, to clients with a
// certificate of its CA.
type webServer struct {
	w    *world
	dir  string
	port int
	run  *spiretest.Process
}

const nginxConfig = `
daemon off;
master_process off;
pid nginx.pid;
events {}
http {
  access_log access.log;
  client_body_temp_path tmp;
  proxy_temp_path tmp;
  fastcgi_temp_path tmp;
  uwsgi_temp_path tmp;
  scgi_temp_path tmp;
  default_type application/json;
  %s
}
`

const nginxSite = `server {
    listen 127.0.0.1:%d ssl;
    ssl_certificate server.pem;
    ssl_certificate_key server.key;
    ssl_client_certificate ca.pem;
    ssl_verify_client on;
    root www;
    gzip_static on;
    %s
  }`

// webServer makes an nginx with its own CA and certificates, and does not start it.
func (w *world) webServer() *webServer {
	w.t.Helper()
	n := &webServer{w: w, dir: w.folder("nginx"), port: freePort(w.t)}
	for _, dir := range []string{"tmp", "www"} {
		if err := os.Mkdir(n.path(dir), 0o700); err != nil {
			w.t.Fatal(err)
		}
	}
	n.configure(fmt.Sprintf(nginxSite, n.port, ""))
	n.certificates()
	return n
}

// configure writes the configuration, with the given server block.
func (n *webServer) configure(site string) {
	n.w.t.Helper()
	n.w.write(n.path("nginx.conf"), fmt.Sprintf(nginxConfig, site))
}

// start starts nginx and returns when it answers. nginx runs until stop or the end of the test.
func (n *webServer) start() {
	n.w.t.Helper()
	program, err := exec.LookPath("nginx")
	if err != nil {
		// Only root's PATH has it.
		program = "/usr/sbin/nginx"
	}
	cmd := exec.Command(program, "-p", n.dir+"/", "-c", n.path("nginx.conf"), "-e", "stderr")
	n.run, err = spiretest.Start("nginx", cmd, n.path("nginx.log"), false)
	if err != nil {
		n.w.t.Fatalf("%v; install it with: apt-get install nginx-light", err)
	}
	n.w.t.Cleanup(n.run.Stop)
	n.w.keepLog(n.run)
	err = spiretest.Poll(n.w.ctx, func() error {
		c, err := net.Dial("tcp", n.address())
		if err != nil {
			return err
		}
		return c.Close()
	})
	if err != nil {
		n.w.t.Fatalf("%v\n%s", err, n.run.Tail())
	}
}

func (n *webServer) stop() { n.run.Stop() }

func (n *webServer) path(name string) string { return filepath.Join(n.dir, name) }

func (n *webServer) address() string { return fmt.Sprintf("127.0.0.1:%d", n.port) }

// publish replaces the list atomically.
func (n *webServer) publish(list string) {
	n.w.t.Helper()
	n.w.replace(n.path("www/tpm.json"), list)
}

// source returns a source of the kind http for the list, with further keys.
func (n *webServer) source(name string, keys ...string) string {
	return fmt.Sprintf(`source "http" %q {
		url = "https://%s/tpm.json"
		ca_path = %q
		client_cert_path = %q
		client_key_path = %q
		%s
	}
	`, name, n.address(), n.path("ca.pem"), n.path("client.pem"), n.path("client.key"),
		strings.Join(keys, "\n\t\t"))
}

// requests returns how many requests for the list nginx has answered.
func (n *webServer) requests() int {
	b, err := os.ReadFile(n.path("access.log"))
	if err != nil {
		n.w.t.Fatal(err)
	}
	return strings.Count(string(b), "GET /tpm.json ")
}

// statusWithout returns the HTTP status for a client without a certificate.
func (n *webServer) statusWithout() int {
	n.w.t.Helper()
	pool := x509.NewCertPool()
	b, err := os.ReadFile(n.path("ca.pem"))
	if err != nil {
		n.w.t.Fatal(err)
	}
	pool.AppendCertsFromPEM(b)
	c := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(n.w.ctx, http.MethodGet, "https://"+n.address()+"/tpm.json", nil)
	if err != nil {
		n.w.t.Fatal(err)
	}
	rsp, err := c.Do(req)
	if err != nil {
		n.w.t.Fatal(err)
	}
	defer rsp.Body.Close()
	return rsp.StatusCode
}

// certificates makes a CA and its certificates for nginx and for a client.
func (n *webServer) certificates() {
	n.w.t.Helper()
	key := newKey(n.w.t)
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	n.writePEM("ca.pem", "CERTIFICATE", sign(n.w.t, ca, ca, key, key))
	for i, name := range []string{"server", "client"} {
		own := newKey(n.w.t)
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(int64(2 + i)), Subject: pkix.Name{CommonName: name},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		}
		n.writePEM(name+".pem", "CERTIFICATE", sign(n.w.t, cert, ca, own, key))
		der, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			n.w.t.Fatal(err)
		}
		n.writePEM(name+".key", "PRIVATE KEY", der)
	}
}

func (n *webServer) writePEM(name, kind string, der []byte) {
	n.w.t.Helper()
	n.w.write(n.path(name), string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})))
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, cert, issuer *x509.Certificate, own, by *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, cert, issuer, &own.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := spiretest.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// An entry is a machine on a list.
type entry struct {
	Hash   string   `json:"hash"`
	Name   string   `json:"name,omitempty"`
	Labels []string `json:"labels,omitempty"`
}

// jsonList returns a list of entries.
func (w *world) jsonList(serial int, entries ...entry) string {
	w.t.Helper()
	if entries == nil {
		entries = []entry{}
	}
	b, err := json.Marshal(map[string]any{"version": 1, "serial": serial, "keys": entries})
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// replace replaces the file at path atomically.
func (w *world) replace(path, content string) {
	w.t.Helper()
	w.write(path+".new", content)
	if err := os.Rename(path+".new", path); err != nil {
		w.t.Fatal(err)
	}
}
