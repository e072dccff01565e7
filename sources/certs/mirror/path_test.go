package mirror_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/mirror"
)

// What vendors put into their certificates is where a web server that has the
// folder as its root looks for it.
func TestPath(t *testing.T) {
	for raw, want := range map[string]string{
		"http://pki.infineon.com/OptigaRsaMfrCA035/OptigaRsaMfrCA035.crt": "pki.infineon.com/OptigaRsaMfrCA035/OptigaRsaMfrCA035.crt",
		"http://ftpm.amd.com/pki/crl":                                     "ftpm.amd.com/pki/crl",
		"http://secure.globalsign.com:80/stmtpmekint05.crt":               "secure.globalsign.com/stmtpmekint05.crt",
		"https://secure.globalsign.com:443/a":                             "secure.globalsign.com/a",
		"https://10.0.0.7:8443/a":                                         "10.0.0.7:8443/a",
		"http://10.0.0.7:443/a":                                           "10.0.0.7:443/a",
		"http://[fd00::1]:8080/a":                                         "[fd00::1]:8080/a",
		"HTTP://PKI.Infineon.com/A":                                       "pki.infineon.com/A",
		"https://www.nuvoton.com/security/NTC-TPM-EK-Cert/Nuvoton%20TPM%20Root%20CA%202110.cer": "www.nuvoton.com/security/" +
			"NTC-TPM-EK-Cert/Nuvoton TPM Root CA 2110.cer",
		"https://ekop.intel.com/ekcertservice/WVEG2rRwkQ7m3RpXlUphgo6Y2HLxl18h6ZZkkOAdnBE%3D": "ekop.intel.com/ekcertservice/" +
			"WVEG2rRwkQ7m3RpXlUphgo6Y2HLxl18h6ZZkkOAdnBE=",
	} {
		got, err := mirror.Path(raw)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", raw, got, err, want)
		}
	}
}

// A certificate's URL is an attacker's: none makes a file outside its host's
// folder, one that a web server takes for its own configuration, or one that is
// served for another URL.
func TestPathAttacks(t *testing.T) {
	for _, raw := range []string{
		"", "x", "/etc/passwd", "file:///etc/passwd", "ldap://h/a", "http:a", "http:///a", "http://h", "http://h/",
		"http://h/a/", "http://h//a", "http://h/../a", "http://h/a/../../../b", "http://h/./a", "http://h/%2e%2e/a",
		"http://h/%2E%2E%2Fa", "http://h/a%2fb", "http://h/a%2Fb", "http://h/a%5cb", `http://h/a\b`, "http://h/a%00",
		"http://h/a%0ab", "http://h/a%7fb", "http://h/a%c2%85b", "http://h/%ff", "http://h/.htaccess", "http://h/.git/config",
		"http://../a", "http://.h/a", "http://h%2f../a", "http://u@h/a", "http://u:p@h/a", "http://h/a?b", "http://h/a?",
		"http://b\u00fccher.example/a", "http://h:x/a", "http://h:/a", "http://h/" + strings.Repeat("a", 201),
		"http://h/" + strings.Repeat("a/", 40) + "b", "http://h/" + strings.Repeat(strings.Repeat("a", 199)+"/", 8) + "b",
		"http://" + strings.Repeat("h", 300) + "/a", "http://h/%zz",
	} {
		if got, err := mirror.Path(raw); err == nil {
			t.Errorf("%q: %q", raw, got)
		}
	}
}

// FuzzMirrorPath: whatever a URL says, its file is below the folder and below its
// host's, has no hidden part, and is what a web server finds there for it and for
// no other path.
func FuzzMirrorPath(f *testing.F) {
	for _, seed := range []string{
		"http://pki.infineon.com/a/b.crt", "http://h/%2e%2e/a", "https://h:443/a%3D", "http://[::1]:80/a b", "http://h/a%2fb",
		"http://h/..%5c", "http://h/%252e%252e/a", "http://h/a//b", "http://h/a%20b?c#d", "http://h:80/%c3%bc",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		name, err := mirror.Path(raw)
		if err != nil {
			if name != "" {
				t.Fatalf("%q with the error %v", name, err)
			}
			return
		}
		if !filepath.IsLocal(name) || filepath.Clean(name) != name || len(name) > 1024 {
			t.Fatalf("%q: the name %q", raw, name)
		}
		for part := range strings.SplitSeq(name, "/") {
			if part == "" || part[0] == '.' || len(part) > 200 {
				t.Fatalf("%q: the part %q of %q", raw, part, name)
			}
		}
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		// Through the form in which it is asked for, and back: one URL, one file.
		again, err := mirror.Path(u.String())
		if err != nil || again != name {
			t.Fatalf("%q: %q, but %q: %q, %v", raw, name, u, again, err)
		}
		if _, rest, _ := strings.Cut(name, "/"); "/"+rest != u.Path {
			t.Fatalf("%q: %q is not its path %q", raw, rest, u.Path)
		}
	})
}

// The files are where a web server with the folder as its root looks for them:
// Go's, here; nginx's in the end-to-end tests.
func TestAWebServerFindsThem(t *testing.T) {
	dir := t.TempDir()
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	for _, rest := range []string{"/a/b.crt", "/a%20b", "/WVEG%3D", "/%25zz", "/a+b", "/b%C3%BCcher", "/a;b", "/a%3fb"} {
		name, err := mirror.Path("http://pki.example.org" + rest)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		rsp, err := http.Get(server.URL + "/pki.example.org" + rest)
		if err != nil {
			t.Fatal(err)
		}
		rsp.Body.Close()
		if rsp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", rest, rsp.Status)
		}
	}
}
