package fetch_test

import (
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// A remedy that does not work costs an operator a day, or makes them open what should stay closed.
// Following the error of a request leads to the certificate.
func TestRemediesOfRequests(t *testing.T) {
	o := local(t)
	_, port, err := net.SplitHostPort(o.host())
	must(t, err)
	private := "127.0.0.1"
	var at atomic.Pointer[string]
	at.Store(&private)
	name, address := "pki.example.org:"+port, "127.0.0.1:"+port
	for _, test := range []struct {
		url    string
		config fetch.Config
		err    string
		mended fetch.Config
	}{
		{
			"http://" + name + "/a",
			fetch.Config{Hosts: []string{name}},
			"set mirror_url, and serve the file at <mirror_url>/<what follows :// in its URL>",
			fetch.Config{Hosts: []string{name}, Mirror: o.URL},
		},
		{
			"http://" + address + "/a",
			fetch.Config{Hosts: []string{name}},
			"it is not on an allowed host",
			fetch.Config{Hosts: []string{address}},
		},
		{
			"http://" + name + "/a?b",
			fetch.Config{Hosts: []string{name}, Mirror: o.URL},
			"not on an allowed host",
			fetch.Config{Hosts: []string{name}},
		},
	} {
		f := open(t, test.config)
		f.Connect(names(t, &at), nil)
		wantFail(t, f, test.url, test.err)
		if strings.Contains(test.url, "?") {
			continue // a mirror cannot serve it, and nothing is advised
		}
		mended := open(t, test.mended)
		mended.Connect(names(t, &at), nil)
		wantGet(t, mended, test.url, "a certificate")
	}
	for _, path := range []string{"/" + name + "/a", "/a"} {
		if _, asked := o.paths.Load(path); !asked {
			t.Errorf("%s was not asked for", path)
		}
	}
	// The earlier advice: an entry for the address does not make the name pass.
	f := open(t, fetch.Config{Hosts: []string{name, address}})
	f.Connect(names(t, &at), nil)
	wantFail(t, f, "http://"+name+"/a", "not a public address")
}

// After following the error about a configured host or URL, the configuration is accepted.
func TestRemediesOfConfigurations(t *testing.T) {
	hosts := func(h ...string) fetch.Config { return fetch.Config{Hosts: h} }
	bases := func(b ...string) fetch.Config { return fetch.Config{Bases: b} }
	mirror := func(m string) fetch.Config { return fetch.Config{Mirror: m} }
	for _, test := range []struct {
		broken fetch.Config
		remedy string
		mended fetch.Config
	}{
		{hosts("http://pki.example.org/"), "write just a host", hosts("pki.example.org")},
		{hosts("pki.example.org/crl"), "host:port, without scheme or path", hosts("pki.example.org:8080")},
		{hosts("pki.example.org."), "ends in a dot: leave it out", hosts("pki.example.org")},
		{hosts("b\u00fccher.example"), "in their ASCII form, xn--…", hosts("xn--bcher-kva.example")},
		{hosts("10.1"), "four decimal numbers", hosts("10.0.0.1")},
		{hosts(make([]string, 1001)...), "name at most 1000", hosts("pki.example.org")},
		{bases("ekop.intel.com"), "write http://<host>/<path>", bases("http://ekop.intel.com/ekcertservice")},
		{bases("ftp://ekop.intel.com/"), "or https://<host>/<path>", bases("https://ekop.intel.com/ekcertservice/")},
		{mirror("10.0.0.5"), "write http://<host>/<path>", mirror("http://10.0.0.5/mirror")},
		{mirror("http://u:p@10.0.0.5/"), "a user name or a password: leave them out", mirror("http://10.0.0.5/")},
		{mirror("http://10.0.0.5/?a"), "it has a query: write http://<host>/<path>", mirror("http://10.0.0.5/")},
		{mirror("http://10.0.0.5/#a"), "it has a fragment: write http://<host>/<path>", mirror("http://10.0.0.5/")},
	} {
		if _, err := fetch.New(test.broken); err == nil || !strings.Contains(err.Error(), test.remedy) {
			t.Errorf("%.200v: %v, want %q", test.broken, err, test.remedy)
		}
		if _, err := fetch.New(test.mended); err != nil {
			t.Errorf("%v, as advised: %v", test.mended, err)
		}
	}
}

// A password in a URL, where it has no effect, never appears in a log, however much of it needs to
// be escaped.
func TestPasswordsAreNotShown(t *testing.T) {
	for _, text := range []string{
		"http://user:hunter2@mirror.example/", "https://hunter2@mirror.example/a", "user:hunter2@mirror.example",
		"http://user:hunter2/x@mirror.example/", "http://user:hunter2@x@mirror.example/", "//u:hunter2@mirror.example",
		"http://user:hunter2?x@mirror.example/", "http://user:#hunter2@mirror.example/", "ftp://a:hunter2@mirror.example",
		"http://mirror.example/?token=hunter2", "http://mirror.example/#hunter2", "http://a:hunter2%zz@mirror.example/",
		"http://a:hunter2@mirror.example/\x00", "http://a:hunter2@" + strings.Repeat("x", 3000),
	} {
		for _, cfg := range []fetch.Config{{Hosts: []string{text}}, {Bases: []string{text}}, {Mirror: text}} {
			if _, err := fetch.New(cfg); err == nil || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
		}
	}
	for text, want := range map[string]string{
		"http://u:p@mirror.example/a?b": "http://…@mirror.example/a?…", "mirror.example:80": "mirror.example:80", "": "",
	} {
		if got := fetch.Shown(text); got != want {
			t.Errorf("%s is shown as %s", text, got)
		}
	}
}
