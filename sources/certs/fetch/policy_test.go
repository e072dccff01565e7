package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

var fleet = []string{
	"pki.infineon.com", "PKI.example.ORG:8080", "xn--bcher-kva.example", "192.0.2.7", "10.0.0.7:8081",
	"2001:db8::7", "[fd00::7]:8082",
}

// The forms of a URL that may be asked, and what they all mean.
func TestAllowed(t *testing.T) {
	f := open(t, fetch.Config{Hosts: fleet})
	for raw, want := range map[string]string{
		"http://pki.infineon.com/a.crt":             "http://pki.infineon.com/a.crt",
		"https://pki.infineon.com/a.crt":            "https://pki.infineon.com/a.crt",
		"HTTPS://PKI.Infineon.COM/A.crt":            "https://pki.infineon.com/A.crt",
		"http://pki.infineon.com":                   "http://pki.infineon.com/",
		"http://pki.infineon.com:80/a":              "http://pki.infineon.com/a",
		"https://pki.infineon.com:443/a":            "https://pki.infineon.com/a",
		"http://pki.infineon.com:443/a":             "http://pki.infineon.com:443/a",
		"http://pki.infineon.com/a?b=c":             "http://pki.infineon.com/a?b=c",
		"http://pki.infineon.com/a#b":               "http://pki.infineon.com/a",
		"http://pki.infineon.com/a?b c#d":           "http://pki.infineon.com/a?b%20c",
		" https://pki.infineon.com/NTC TPM EK.cer ": "https://pki.infineon.com/NTC%20TPM%20EK.cer",
		"http://pki.infineon.com/a%20b":             "http://pki.infineon.com/a%20b",
		"http://pki.infineon.com/a%3D":              "http://pki.infineon.com/a%3D",
		"http://pki.infineon.com//a":                "http://pki.infineon.com//a",
		"http://pki.example.org:8080/":              "http://pki.example.org:8080/",
		"http://xn--bcher-kva.example/":             "http://xn--bcher-kva.example/",
		"http://192.0.2.7/a":                        "http://192.0.2.7/a",
		"https://10.0.0.7:8081/a":                   "https://10.0.0.7:8081/a",
		"http://[2001:DB8:0::7]/a":                  "http://[2001:db8::7]/a",
		"http://[fd00::7]:8082/a":                   "http://[fd00::7]:8082/a",
	} {
		got, ok := f.Allows(raw)
		if !ok || got != want {
			t.Errorf("%q: %q, %v; want %q", raw, got, ok, want)
		}
		if again, ok := f.Allows(got); !ok || again != got {
			t.Errorf("%q: %q, %v the second time", raw, again, ok)
		}
	}
}

// URLs by which an attacker would have somebody else asked, or the same URL kept
// by two names.
func TestNotAllowed(t *testing.T) {
	f := open(t, fetch.Config{Hosts: fleet, Dial: func(_ context.Context, _, address string) (net.Conn, error) {
		t.Errorf("a connection to %s", address)
		return nil, errors.New("refused")
	}})
	const host = "http://pki.infineon.com"
	for what, raw := range map[string]string{
		"a different host":                "http://evil.example/a",
		"a host below":                    "http://a.pki.infineon.com/a",
		"a host above":                    "http://infineon.com/a",
		"a host that begins alike":        "http://pki.infineon.com.evil.example/a",
		"a host that ends alike":          "http://evilpki.infineon.com/a",
		"a user":                          "http://pki.infineon.com@evil.example/a",
		"a user and the right host":       "http://evil@pki.infineon.com/a",
		"a user with a colon":             "http://pki.infineon.com:80@evil.example/a",
		"an empty user":                   "http://@pki.infineon.com/a",
		"a backslash before the user":     `http://evil.example\@pki.infineon.com/a`,
		"a backslash behind the host":     `http://pki.infineon.com\.evil.example/a`,
		"a trailing dot":                  "http://pki.infineon.com./a",
		"another port":                    host + ":8080/a",
		"an empty port":                   host + ":/a",
		"port zero":                       host + ":0/a",
		"a port with zeros":               host + ":0080/a",
		"a port beyond":                   host + ":65616/a",
		"a port with a sign":              host + ":+80/a",
		"another entry's host":            "http://pki.example.org/a",
		"another IP":                      "http://192.0.2.8/a",
		"the port of another IP":          "http://10.0.0.7/a",
		"letters beyond ASCII":            "http://b\u00fccher.example/a",
		"a letter that folds to ASCII":    "http://p\u212ai.infineon.com/a", // KELVIN SIGN
		"a wide dot":                      "http://pki\uff0einfineon\uff0ecom/a",
		"an escaped host":                 "http://pki%2einfineon.com/a",
		"an escaped dot and host":         "http://pki.infineon.com%2f@evil.example/a",
		"no host":                         "http:///a",
		"no host, a port":                 "http://:80/a",
		"a relative URL":                  "//pki.infineon.com/a",
		"no slashes":                      "http:pki.infineon.com/a",
		"one slash":                       "http:/pki.infineon.com/a",
		"a path alone":                    "/a",
		"nothing":                         "",
		"a file":                          "file:///etc/passwd",
		"a file on the host":              "file://pki.infineon.com/etc/passwd",
		"ldap":                            "ldap://pki.infineon.com/cn=CA?cACertificate",
		"ftp":                             "ftp://pki.infineon.com/a",
		"gopher":                          "gopher://pki.infineon.com/a",
		"data":                            "data:,a",
		"a scheme with a dot":             "http.://pki.infineon.com/a",
		"the metadata address":            "http://169.254.169.254/latest/meta-data/",
		"the metadata address in IPv6":    "http://[fd00:ec2::254]/latest/",
		"the metadata name":               "http://metadata.google.internal/",
		"loopback":                        "http://127.0.0.1/a",
		"loopback by name":                "http://localhost/a",
		"an entry in decimal":             "http://3221225991/a", // 192.0.2.7
		"an entry in hexadecimal":         "http://0xc0000207/a",
		"an entry in octal":               "http://0300.0.02.07/a",
		"an entry in three parts":         "http://192.0.519/a",
		"an entry mapped into IPv6":       "http://[::ffff:192.0.2.7]/a",
		"an entry with a zone":            "http://[fd00::7%25eth0]:8082/a",
		"an entry with a plain zone":      "http://[fd00::7%eth0]:8082/a",
		"IPv6 without brackets":           "http://2001:db8::7/a",
		"brackets around a name":          "http://[pki.infineon.com]/a",
		"a bracket too few":               "http://[2001:db8::7/a",
		"text behind the brackets":        "http://[2001:db8::7].evil.example/a",
		"an escaped slash":                host + "/a%2fb",
		"an escaped backslash":            host + "/a%5Cb",
		"an escaped control character":    host + "/a%0d%0aHost:%20evil",
		"an escaped zero":                 host + "/a%00",
		"a dot segment":                   host + "/a/../b",
		"a dot segment at the end":        host + "/..",
		"an escaped dot segment":          host + "/%2e%2e/b",
		"half of one":                     host + "/.%2E/b",
		"a dot segment with a parameter":  host + "/..;a/b",
		"a segment of one dot":            host + "/./b",
		"an escape that is none":          host + "/%zz",
		"an escape cut off":               host + "/%2",
		"a backslash in the path":         host + `/a\b`,
		"a line end":                      host + "/a\r\nHost: evil",
		"a tab":                           host + "/\ta",
		"a zero":                          host + "/a\x00",
		"a DEL":                           host + "/a\x7f",
		"a letter beyond ASCII in a path": host + "/\u00e4",
		"angle brackets":                  host + "/<a>",
		"a space in the host":             "http://pki.infineon.com /a",
		"a space before the port":         "http://pki.infineon.com :80/a",
		"a space in the scheme":           "http ://pki.infineon.com/a",
		"two URLs":                        host + "/ http://evil.example/{",
		"too long":                        host + "/" + strings.Repeat("a", 2048),
		"too long once escaped":           host + "/" + strings.Repeat(" ", 900) + "a",
	} {
		if got, ok := f.Allows(raw); ok || got != "" {
			t.Errorf("%s: %q is %q", what, raw, got)
		}
		if o, err := f.Get(t.Context(), fetch.Issuer, raw, text); err == nil || o != nil {
			t.Errorf("%s: %q was asked for", what, raw)
		}
	}
}

// Get asks for the form that Allowed returns and for no other, for a known kind,
// and what a certificate names never reaches the operator's own hosts.
func TestGetRefuses(t *testing.T) {
	o := local(t)
	f := open(t, fetch.Config{Hosts: []string{"192.0.2.7"}, Bases: []string{o.at("/ek")}})
	for what, try := range map[string]struct {
		kind fetch.Kind
		url  string
	}{
		"another form":                     {fetch.Issuer, "HTTP://192.0.2.7/a"},
		"no kind":                          {"", "http://192.0.2.7/a"},
		"another kind":                     {"key", "http://192.0.2.7/a"},
		"too long a kind":                  {fetch.CRL.Of(strings.Repeat("a", 300)), "http://192.0.2.7/a"},
		"a base for an issuer":             {fetch.Issuer, o.at("/ek/a")},
		"a base for a CRL":                 {fetch.CRL.Of("a"), o.at("/ek/a")},
		"a host for an EK certificate":     {fetch.EKCertificate, "http://192.0.2.7/a"},
		"beside the base":                  {fetch.EKCertificate, o.at("/ekb/a")},
		"the base itself":                  {fetch.EKCertificate, o.at("/ek/")},
		"above the base":                   {fetch.EKCertificate, o.at("/ek/../a")},
		"two below the base":               {fetch.EKCertificate, o.at("/ek/a/b")},
		"a query below the base":           {fetch.EKCertificate, o.at("/ek/a?b")},
		"a fragment below the base":        {fetch.EKCertificate, o.at("/ek/a#b")},
		"a user at the base":               {fetch.EKCertificate, strings.Replace(o.at("/ek/a"), "//", "//a@", 1)},
		"another scheme below the base":    {fetch.EKCertificate, strings.Replace(o.at("/ek/a"), "http", "https", 1)},
		"an escaped slash below the base":  {fetch.EKCertificate, o.at("/ek/a%2fb")},
		"nothing that was ever configured": {fetch.EKCertificate, ""},
	} {
		if got, err := f.Get(t.Context(), try.kind, try.url, text); err == nil || got != nil {
			t.Errorf("%s: %+v", what, got)
		}
	}
	o.wantRequests(t, 0)
	got, err := f.Get(t.Context(), fetch.EKCertificate, o.at("/ek/a%3D"), text)
	if err != nil || got.Value != "a certificate" {
		t.Errorf("below the base: %+v, %v", got, err)
	}
	if _, asked := o.paths.Load("/ek/a%3D"); !asked {
		t.Error("the escape was not sent as it was written")
	}
}

// What a mirror is asked for: the host as a folder, never anything outside of it.
func TestMirror(t *testing.T) {
	o := local(t)
	f := open(t, fetch.Config{Hosts: fleet, Mirror: o.at("/mirror")})
	for url, want := range map[string]string{
		"https://pki.infineon.com/a/b c.crt": "/mirror/pki.infineon.com/a/b%20c.crt",
		"http://pki.infineon.com:443/a":      "/mirror/pki.infineon.com:443/a",
		"http://pki.example.org:8080/a":      "/mirror/pki.example.org:8080/a",
		"http://[fd00::7]:8082/a":            "/mirror/[fd00::7]:8082/a",
	} {
		canonical, ok := f.Allows(url)
		if !ok {
			t.Fatalf("%q is not allowed", url)
		}
		wantGet(t, f, canonical, "a certificate")
		if _, asked := o.paths.Load(want); !asked {
			t.Errorf("%q: %q was not asked for", url, want)
		}
		wantCached(t, f, canonical, "a certificate")
	}
	for _, url := range []string{
		"http://pki.infineon.com/../secret", "http://pki.infineon.com/%2e%2e/%2e%2e/secret",
		"http://pki.infineon.com/a?b", "http://evil.example/a",
	} {
		if got, ok := f.Allows(url); ok {
			t.Errorf("%q: %q", url, got)
		}
	}
}

// A configuration that cannot work, or would open what should stay closed, says
// what to write.
func TestNewRefuses(t *testing.T) {
	for _, test := range []struct {
		cfg  fetch.Config
		want string
	}{
		{fetch.Config{Hosts: []string{"https://pki.infineon.com"}}, "write just a host"},
		{fetch.Config{Hosts: []string{"pki.infineon.com/"}}, "write just a host"},
		{fetch.Config{Hosts: []string{"a@b"}}, "write just a host"},
		{fetch.Config{Hosts: []string{""}}, "empty"},
		{fetch.Config{Hosts: []string{"*.infineon.com"}}, "may only have letters"},
		{fetch.Config{Hosts: []string{"pki.infineon.com."}}, "dot: leave it out"},
		{fetch.Config{Hosts: []string{"b\u00fccher.example"}}, "xn--"},
		{fetch.Config{Hosts: []string{"a b"}}, "may only have letters"},
		{fetch.Config{Hosts: []string{"a:0"}}, "from 1 to 65535"},
		{fetch.Config{Hosts: []string{"a:http"}}, "from 1 to 65535"},
		{fetch.Config{Hosts: []string{"127.1"}}, "four decimal numbers"},
		{fetch.Config{Hosts: []string{"0x7f000001"}}, "four decimal numbers"},
		{fetch.Config{Hosts: []string{"10.0.0.0/8"}}, "write just a host"},
		{fetch.Config{Hosts: []string{"[::ffff:10.0.0.1]"}}, "not an IPv6 address"},
		{fetch.Config{Hosts: []string{"fe80::1%eth0"}}, "IPv6 address"},
		{fetch.Config{Hosts: []string{"169.254.169.254"}}, "metadata"},
		{fetch.Config{Hosts: []string{"fd00:ec2::254"}}, "metadata"},
		{fetch.Config{Hosts: []string{"0.0.0.0"}}, "not a host's"},
		{fetch.Config{Hosts: []string{"224.0.0.1"}}, "many hosts"},
		{fetch.Config{Hosts: []string{strings.Repeat("a", 64)}}, "may only have letters"},
		{fetch.Config{Hosts: []string{strings.Repeat("a.", 150) + "a"}}, "longer"},
		{fetch.Config{Hosts: make([]string, 1001)}, "at most 1000"},
		{fetch.Config{Bases: []string{"ekop.intel.com"}}, "write http://<host>/<path>"},
		{fetch.Config{Bases: []string{"https://a@ekop.intel.com/"}}, "write http://<host>/<path>"},
		{fetch.Config{Bases: []string{"https://ekop.intel.com/?a"}}, "query"},
		{fetch.Config{Mirror: "https://mirror.example/#a"}, "fragment"},
		{fetch.Config{Mirror: "file:///srv/mirror"}, "write http://<host>/<path>"},
		{fetch.Config{Mirror: "http://169.254.169.254/"}, "metadata"},
		{fetch.Config{Mirror: "http://mirror.example/a/../b"}, "dot segment"},
	} {
		if f, err := fetch.New(test.cfg); err == nil || f != nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%.200s: %v, want %q", fmt.Sprint(test.cfg), err, test.want)
		}
	}
	// All of it at once, not one a try.
	_, err := fetch.New(fetch.Config{Hosts: []string{"a/", "b."}, Bases: []string{"c"}, Mirror: "d"})
	for _, what := range []string{`"a/"`, `"b."`, `"c"`, `"d"`} {
		if err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v does not name %s", err, what)
		}
	}
}

// Addresses that are not everybody's, by whatever name a server is asked. The IPv4
// address that NAT64 embeds is what is meant: a network without IPv4 has all vendors
// behind such addresses, and its own machines too.
func TestPublic(t *testing.T) {
	for address, want := range map[string]bool{
		"8.8.8.8": true, "1.1.1.1": true, "172.15.0.1": true, "172.32.0.1": true, "192.0.1.1": true,
		"2606:4700::1111": true, "2a00:1450:4001::1": true, "64:ff9b::808:808": true, "64:ff9b::ac20:1": true,

		"0.0.0.0": false, "0.1.2.3": false, "10.1.2.3": false, "100.64.0.1": false, "100.100.100.200": false,
		"127.0.0.1": false, "127.9.9.9": false, "168.63.129.16": false, "169.254.169.254": false,
		"169.254.170.2": false, "172.16.0.1": false, "172.31.255.255": false, "192.0.0.192": false,
		"192.0.2.1": false, "192.88.99.1": false, "192.168.1.1": false, "198.18.0.1": false, "198.51.100.1": false,
		"203.0.113.1": false, "224.0.0.1": false, "239.255.255.255": false, "240.0.0.1": false,
		"255.255.255.255": false,
		"::":              false, "::1": false, "::127.0.0.1": false, "::ffff:8.8.8.8": false, "::ffff:127.0.0.1": false,
		"64:ff9b::7f00:1": false, "64:ff9b::a00:1": false, "64:ff9b::a9fe:a9fe": false, "64:ff9b::6440:1": false,
		"64:ff9b::c0a8:101": false, "64:ff9b::": false, "64:ff9b::ffff:ffff": false, "64:ff9b:1::1": false,
		"64:ff9b:1::808:808": false, "64:ff9b::1:808:808": false, "64:ff9b::808:808%eth0": false, "100::1": false,
		"2001::1": false, "2001:db8::1": false, "2002:7f00:1::1": false, "2002:a00:1::": false, "3fff::1": false,
		"fc00::1": false, "fd00:ec2::254": false, "fe80::1": false, "fe80::1%eth0": false, "fec0::1": false,
		"ff02::1": false, "2606:4700::5efe:7f00:1": false, "2606:4700::200:5efe:a00:1": false, "5f00::1": false,
	} {
		if got := fetch.Public(netip.MustParseAddr(address)); got != want {
			t.Errorf("%s: public is %v", address, got)
		}
	}
	if fetch.Public(netip.Addr{}) {
		t.Error("no address is public")
	}
}

// FuzzAIAURL looks for a URL that has a host asked which is not configured: by
// what package net/url reads, and by where package net/http connects to.
func FuzzAIAURL(f *testing.F) {
	for _, seed := range []string{
		"http://pki.infineon.com/a.crt", " https://PKI.infineon.com:443/a b.crt#c", "http://a@pki.infineon.com/",
		"http://pki.infineon.com:80@evil/", `http://evil\@pki.infineon.com/`, "http://[fd00::7]:8082/%2e?a",
		"http://10.0.0.7:8081/..;/", "http://pki.example.org:8080//a", "http://0xc0000207/", "http://[::ffff:10.0.0.7]/",
		"file://pki.infineon.com/a", "http://pki.infineon.com./", "http://pki.infineon.com/a?b=http://evil/",
	} {
		f.Add(seed)
	}
	ports := map[string]bool{}
	for _, address := range []string{
		"pki.infineon.com", "xn--bcher-kva.example", "192.0.2.7", "2001:db8::7",
	} {
		ports[net.JoinHostPort(address, "80")], ports[net.JoinHostPort(address, "443")] = true, true
	}
	ports["pki.example.org:8080"], ports["10.0.0.7:8081"], ports["[fd00::7]:8082"] = true, true, true
	errDialled := errors.New("connected")
	f.Fuzz(func(t *testing.T, raw string) {
		fetcher, err := fetch.New(fetch.Config{Hosts: fleet})
		must(t, err)
		canonical, ok := fetcher.Allows(raw)
		if !ok {
			if canonical != "" {
				t.Fatalf("%q is not allowed, and %q", raw, canonical)
			}
			return
		}
		if again, ok := fetcher.Allows(canonical); !ok || again != canonical {
			t.Fatalf("%q: %q, then %q", raw, canonical, again)
		}
		u, err := url.Parse(canonical)
		if err != nil || u.User != nil || u.Opaque != "" || u.Fragment != "" || u.Host == "" || len(canonical) > 2048 {
			t.Fatalf("%q: %q is %+v, %v", raw, canonical, u, err)
		}
		if u.String() != canonical {
			t.Fatalf("%q: %q is read as %q", raw, canonical, u)
		}
		if strings.Contains(u.Path, "/../") || strings.HasSuffix(u.Path, "/..") {
			t.Fatalf("%q: %q leads upwards", raw, canonical)
		}
		// Whoever reads the certificate's own form reads the same host.
		if own, err := url.Parse(strings.Trim(raw, " ")); err == nil && !strings.EqualFold(own.Hostname(), u.Hostname()) {
			if a, err := netip.ParseAddr(own.Hostname()); err != nil || a.String() != u.Hostname() {
				t.Fatalf("%q: host %q, not %q", raw, u.Hostname(), own.Hostname())
			}
		}
		var dialled string
		transport := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			dialled = address
			return nil, errDialled
		}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, canonical, nil)
		must(t, err)
		resp, err := transport.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
		}
		if !errors.Is(err, errDialled) || !ports[dialled] {
			t.Fatalf("%q: connects to %q, %v", canonical, dialled, err)
		}
	})
}
