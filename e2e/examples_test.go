package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/e2e/spiretest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir/hashdirtest"
)

// A site is a place to run an example: a folder instead of the root of the file system, and a
// few machines.
type site struct {
	*world
	example, root string
	nginx         *webServer
	served        string // the folder on the file server
	// replacements are pairs for strings.NewReplacer. They replace names in an example
	// that a test cannot use.
	replacements []string

	vendor *attestortest.CA
	// The first three have a certificate from the vendor.
	one, two, three, uncertified, stranger *attestortest.TPM

	kernels []machine // that have booted the kernels 1, 2 and 3, of the example measured-boot
	devIDs  *devIDs   // of the example devid

	metricsPort string // of the example monitoring
}

// examples are the server configurations in the folders of examples/. Each function checks what
// the README promises.
var examples = map[string]func(*site, *spiretest.Server){
	"quickstart/server.conf":               (*site).quickstart,
	"migration/server-1-unchanged.conf":    (*site).migration,
	"migration/server-2-rules.conf":        (*site).migration,
	"migration/server-3-strict.conf":       (*site).migrationStrict,
	"nginx-json/server.conf":               (*site).nginxJSON,
	"git/server.conf":                      (*site).twoLists,
	"nfs/server.conf":                      (*site).nfs,
	"combined/server.conf":                 (*site).combined,
	"kubernetes/values.yaml":               (*site).kubernetes,
	"vendor-certificates/server.conf":      (*site).vendorCertificates,
	"air-gapped/server.conf":               (*site).vendorCertificates,
	"measured-boot/server-1-trial.conf":    (*site).measuredTrial,
	"measured-boot/server-2-enforced.conf": (*site).measured,
	"devid/server.conf":                    (*site).devID,
	"evict/server.conf":                    (*site).evictInOneStep,
	"tpm-svid-key/server.conf":             (*site).svidKeys,
	"postgres/server.conf":                 (*site).postgres,
	"postgres/server-mysql.conf":           (*site).mariadb,
	"monitoring/server.conf":               (*site).monitoring,
}

// layouts put the files of an example where its configuration expects them.
var layouts = map[string]func(*site){
	"quickstart": func(s *site) { s.put("/srv/tpm/hashes/"+s.one.EKHash(), "") },
	"migration": func(s *site) {
		for _, m := range []*attestortest.TPM{s.one, s.three, s.uncertified} {
			s.put("/opt/spire/.data/hashes/"+m.EKHash(), "")
		}
		s.put("/opt/spire/.data/refused/.here", "")
		s.put("/opt/spire/.data/refused/"+s.three.EKHash(), "")
		s.put("/opt/spire/.data/certs/vendor.pem", string(s.vendor.PEM()))
		s.vendors()
	},
	"nginx-json":          (*site).layNginxJSON,
	"git":                 (*site).layGit,
	"nfs":                 (*site).layNFS,
	"combined":            (*site).layCombined,
	"vendor-certificates": (*site).layVendorCertificates,
	"air-gapped":          (*site).layAirGapped,
	"measured-boot":       (*site).layMeasuredBoot,
	"devid":               (*site).layDevID,
	"evict":               (*site).layEvict,
	"tpm-svid-key":        func(s *site) { s.mkdir("/srv/tpm/hashes"); s.mkdir("/run/spire") },
	"postgres":            (*site).layTable,
	"monitoring":          (*site).layMonitoring,
	"kubernetes": func(s *site) {
		s.mkdir("/etc/tpm/lists")
		s.publishConfigMap(s.root+"/etc/tpm/lists", 1, map[string]string{
			"machines.txt": s.read("lists/machines.txt") + s.one.EKHash() + " node-1\n" + s.two.EKHash() + "\n" +
				s.uncertified.EKHash() + "\n",
			"stolen.json": s.jsonList(2, entry{Hash: s.two.EKHash()}),
		})
		s.mkdir("/etc/tpm/cas")
		s.publishConfigMap(s.root+"/etc/tpm/cas", 1, map[string]string{"vendor.pem": string(s.vendor.PEM())})
	},
}

// Every example does what its README says: a real server starts with it, admits the right
// machines and refuses all others. Only the plugin_data of a Helm chart's values is run.
func TestExamples(t *testing.T) {
	for file, check := range examples {
		t.Run(file, func(t *testing.T) {
			s := newSite(t, filepath.Dir(file))
			layouts[s.example](s)
			c := spiretest.ServerConfig{Whole: s.moved(s.read(filepath.Base(file)))}
			if strings.HasSuffix(file, ".yaml") {
				c = spiretest.ServerConfig{PluginData: s.moved(valuesData(t, s.read("values.yaml"))), JSON: true}
			}
			server := s.server(c)
			check(s, server)
			s.wantCode(server, s.stranger, codes.PermissionDenied)
		})
	}
}

// Every example is run. Otherwise nobody would notice that it no longer works.
func TestEveryExampleIsRun(t *testing.T) {
	dir := filepath.Join("..", "examples")
	var files []string
	for _, pattern := range []string{"*/server*.conf", "*/values.yaml"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	folders := map[string]bool{}
	for _, file := range files {
		name, err := filepath.Rel(dir, file)
		if err != nil {
			t.Fatal(err)
		}
		folders[filepath.Dir(name)] = true
		if examples[name] == nil {
			t.Errorf("no test runs examples/%s", name)
		}
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if e.IsDir() && !folders[e.Name()] {
			t.Errorf("examples/%s has no configuration of a server", e.Name())
		}
	}
}

func newSite(t *testing.T, example string) *site {
	t.Helper()
	w := newWorldFor(t, bootLimit)
	vendor := attestortest.NewCA(t, "Example vendor")
	tpm := func(number int, ca *attestortest.CA) *attestortest.TPM {
		return attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: number, CA: ca})
	}
	s := &site{
		world: w, example: example, root: w.folder("root"), vendor: vendor,
		one: tpm(1, vendor), two: tpm(2, vendor), three: tpm(3, vendor),
		uncertified: tpm(4, nil), stranger: tpm(5, nil),
	}
	s.mkdir("/var/lib/spire/server") // the quickstart says so
	return s
}

// moved returns a configuration with all paths moved below the site's root.
func (s *site) moved(text string) string {
	pairs := []string{`"/usr/libexec/spire/plugins/tpm-attestor-server`, `"` + s.programs.ServerPlugin}
	for _, dir := range []string{"/etc/", "/opt/", "/srv/", "/var/", "/run/"} {
		pairs = append(pairs, `"`+dir, `"`+s.root+dir)
	}
	if s.nginx != nil {
		pairs = append(pairs, "allowlist.example.org", s.nginx.address())
	}
	return strings.NewReplacer(append(pairs, s.replacements...)...).Replace(text)
}

// read returns a file of the example.
func (s *site) read(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "examples", s.example, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

// put writes a file below the site's root.
func (s *site) put(path, content string) {
	s.t.Helper()
	s.mkdir(filepath.Dir(path))
	s.write(s.root+path, content)
}

func (s *site) mkdir(path string) {
	s.t.Helper()
	if err := os.MkdirAll(s.root+path, 0o700); err != nil {
		s.t.Fatal(err)
	}
}

// sh runs a command of the README.
func (s *site) sh(name string, args ...string) {
	s.t.Helper()
	cmd := exec.CommandContext(s.ctx, name, args...)
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.org",
		"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@example.org")
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

func (s *site) admits(server *spiretest.Server, machines ...*attestortest.TPM) {
	s.t.Helper()
	for _, m := range machines {
		s.wantCode(server, m, codes.OK)
	}
}

func (s *site) refuses(server *spiretest.Server, machines ...*attestortest.TPM) {
	s.t.Helper()
	for _, m := range machines {
		s.wantCode(server, m, codes.PermissionDenied)
	}
}

func (s *site) quickstart(server *spiretest.Server) { s.admits(server, s.one) }

func (s *site) migration(server *spiretest.Server) {
	s.admits(server, s.two, s.uncertified) // by its certificate, and by its hash
}

func (s *site) migrationStrict(server *spiretest.Server) {
	s.admits(server, s.one)
	s.refuses(server, s.two, s.three, s.uncertified)
}

// layNFS mounts a folder that others write to, too.
func (s *site) layNFS() {
	s.served = s.folder("served")
	s.write(filepath.Join(s.served, "machines.txt"), s.one.EKHash()+"\n"+s.two.EKHash()+"\n")
	s.mkdir("/srv/tpm")
	hashdirtest.MountShared(s.t, s.served, s.root+"/srv/tpm")
}

// A machine that is removed from the list on the file server is refused within the time that the
// README promises, although no watch on this host sees the removal. No other machine is.
func (s *site) nfs(server *spiretest.Server) {
	const promised = 10*time.Second + 2*time.Second
	if !strings.Contains(s.read("server.conf"), `poll_interval = "10s"`) {
		s.t.Error("the poll interval of the example is another one")
	}
	s.admits(server, s.one, s.two)
	s.replace(filepath.Join(s.served, "machines.txt"), s.two.EKHash()+"\n")
	begun := time.Now()
	s.wantCodeSoon(server, s.one, codes.PermissionDenied)
	took := time.Since(begun)
	s.t.Logf("refused after %v", took.Round(time.Millisecond))
	if took > promised+busy {
		s.t.Errorf("refused after %v, promised within %v", took, promised)
	}
	s.admits(server, s.two)
}

func (s *site) twoLists(server *spiretest.Server) {
	s.admits(server, s.one)
	s.refuses(server, s.two)
}

func (s *site) kubernetes(server *spiretest.Server) {
	s.admits(server, s.one)
	s.refuses(server, s.two, s.uncertified)
}

// vendors puts the vendor's certificate in the place of the examples' two vendors.
func (s *site) vendors() {
	other := attestortest.NewCA(s.t, "Another vendor")
	s.put("/etc/tpm/infineon.pem", string(other.PEM()))
	s.put("/etc/tpm/stm.pem", string(s.vendor.PEM()))
}

// layGit publishes a commit with the script of the example.
func (s *site) layGit() {
	repository := s.folder("repository")
	s.write(filepath.Join(repository, "machines.txt"), s.one.EKHash()+"\n"+s.two.EKHash()+"\n")
	s.write(filepath.Join(repository, "stolen.json"), s.jsonList(1, entry{Hash: s.two.EKHash()}))
	s.sh("git", "init", "-q", "-b", "main", repository)
	s.sh("git", "-C", repository, "add", "-A")
	s.sh("git", "-C", repository, "commit", "-q", "-m", "lists")
	s.sh(filepath.Join("..", "examples", "git", "pull.sh"), repository, "main", s.root+"/srv/tpm")
}

// allowlist makes an nginx, and gives the server the certificates to connect to it.
func (s *site) allowlist() {
	s.nginx = s.webServer()
	for to, from := range map[string]string{
		"ca.pem": "ca.pem", "client.pem": "client.pem", "client-key.pem": "client.key",
	} {
		b, err := os.ReadFile(s.nginx.path(from))
		if err != nil {
			s.t.Fatal(err)
		}
		s.put("/etc/spire/allowlist/"+to, string(b))
	}
}

// layNginxJSON runs nginx with the configuration of the example, and builds the list with its
// script.
func (s *site) layNginxJSON() {
	s.allowlist()
	s.put("/srv/tpm/hashes/"+s.one.EKHash(), `{"name": "us-east-17", "labels": ["rack:12"]}`)
	s.mkdir("/srv/tpm-allowlist")
	s.sh(filepath.Join("..", "examples", "nginx-json", "build-list.sh"), s.root+"/srv/tpm/hashes",
		s.root+"/srv/tpm-allowlist/tpm.json")
	s.nginx.configure(strings.NewReplacer(
		"listen 443", "listen "+s.nginx.address(),
		"/srv/tpm-allowlist", s.root+"/srv/tpm-allowlist",
		"/etc/tpm-allowlist/clients-ca.pem", s.nginx.path("ca.pem"),
		"/etc/tpm-allowlist", s.nginx.dir,
	).Replace(s.read("allowlist.nginx")))
	s.nginx.start()
}

func (s *site) nginxJSON(server *spiretest.Server) {
	s.admits(server, s.one)
	known := s.agents(server)["spiffe://example.org/spire/agent/tpm/"+s.one.EKHash()]
	s.wantSelectors(known, "pub_hash:"+s.one.EKHash(), "rule:default", "source:inventory", "name:us-east-17",
		"label:rack:12")
}

func (s *site) layCombined() {
	s.allowlist()
	s.nginx.publish(s.jsonList(1, entry{s.one.EKHash(), "us-east-17", nil}, entry{Hash: s.two.EKHash()},
		entry{Hash: s.uncertified.EKHash()}))
	s.nginx.start()
	s.vendors()
	s.put("/etc/tpm/lists/lab.txt", s.read("lists/lab.txt")+s.three.EKHash()+" us-east-17 env:prod\n")
	s.put("/etc/tpm/lists/stolen.json", s.read("lists/stolen.json"))
	s.put("/srv/tpm/bench/"+s.two.EKHash(), "")
}

// The laboratory's list gives no selectors. One entry on the list of stolen machines refuses a
// machine that two rules admit, within the list's poll interval.
func (s *site) combined(server *spiretest.Server) {
	s.admits(server, s.one, s.two, s.three)
	s.refuses(server, s.uncertified)
	known, id := s.agents(server), "spiffe://example.org/spire/agent/tpm/"
	certificate := []string{
		"source:inventory", "source:vendors", "ca:stm", "ek:issuer:cn:.+", "ek:serial:.+", "manufacturer:.+", "model:.+",
		"version:.+", "rule:production",
	}
	s.wantSelectors(known[id+s.one.EKHash()], append(slices.Clone(certificate), "pub_hash:"+s.one.EKHash(),
		"name:us-east-17")...)
	s.wantSelectors(known[id+s.two.EKHash()], append(slices.Clone(certificate), "pub_hash:"+s.two.EKHash(),
		"rule:lab", "source:bench")...)
	s.wantSelectors(known[id+s.three.EKHash()], "pub_hash:"+s.three.EKHash(), "rule:lab", "source:lab")

	mark := server.Mark()
	s.replace(s.root+"/etc/tpm/lists/stolen.json", s.jsonList(2, entry{Hash: s.two.EKHash()}))
	s.waitLog(server.Process, mark, "Source status", "source=stolen", "serial=2")
	s.refuses(server, s.two)
	s.admits(server, s.one)
}

// valuesData returns the server's plugin_data, which is JSON, from the values of a chart. It
// reads nothing else of the values.
func valuesData(t *testing.T, values string) string {
	t.Helper()
	_, rest, found := strings.Cut(values, "plugin_data:")
	if !found {
		t.Fatal("values.yaml has no plugin_data")
	}
	var data json.RawMessage
	if err := json.NewDecoder(strings.NewReader(rest)).Decode(&data); err != nil {
		t.Fatal(fmt.Errorf("values.yaml: plugin_data: %w", err))
	}
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		t.Fatal(err)
	}
	return b.String()
}
