package server_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// The server does what a preview tells an operator that it would do. The cases are random: configurations
// with every kind of source, good and broken lists, rules and trials, and machines of which everything or
// only the EK hash is known. PREVIEWS sets their number.
func TestPreviewsAgree(t *testing.T) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	if text := os.Getenv("PREVIEWS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	w := newPreviewWorld(t)
	counted := map[string]int{}
	for i := range n {
		w.try(t, rand.New(rand.NewPCG(11, uint64(i))), counted) // the same cases each time
		if t.Failed() {
			t.Fatalf("case %d", i)
		}
	}
	t.Logf("%v", counted)
	for _, kind := range []string{
		"settled admitted", "settled refused", "settled unavailable", "settled no_id", "open", "a source cannot tell", "evicted",
		"hash_dir", "hash_file", "http", "ek_ca", "sql", "boot_policy", "devid",
	} {
		if counted[kind] < n/300 {
			t.Errorf("%d cases of %d are %q: this test tests too little", counted[kind], n, kind)
		}
	}
}

// A previewWorld is what random cases are made of.
type previewWorld struct {
	dir   string
	tpms  []*attestortest.TPM
	cas   []*attestortest.CA
	web   *webtest.Server
	mu    sync.Mutex
	lists map[string]string // by path on the web server
	files int
}

func newPreviewWorld(t *testing.T) *previewWorld {
	t.Helper()
	w := &previewWorld{dir: t.TempDir(), web: webtest.NewServer(t, nil), lists: map[string]string{}}
	for i := range 3 {
		w.cas = append(w.cas, attestortest.NewCA(t, fmt.Sprintf("CA %d", i)))
	}
	for i := range 9 {
		o := attestortest.Options{EK: attestor.P256, Number: i}
		if i < 6 {
			o.CA = w.cas[i%3]
		}
		if i > 6 {
			o.DevID = &attestortest.DevID{CA: w.cas[0]}
		}
		if i == 7 {
			o.PCRs = map[string]map[int][]byte{"sha256": {}}
		}
		w.tpms = append(w.tpms, attestortest.New(t, o))
	}
	w.web.Serve(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		list, ok := w.lists[r.URL.Path]
		if !ok {
			rw.WriteHeader(http.StatusNotFound)
			return
		}
		_, _ = rw.Write([]byte(list))
	})
	return w
}

// file writes a file that looks old, so that nobody waits for its writer.
func (w *previewWorld) file(t *testing.T, content string) string {
	t.Helper()
	w.files++
	path := filepath.Join(w.dir, strconv.Itoa(w.files))
	old := time.Now().Add(-time.Hour)
	if err := errors.Join(os.WriteFile(path, []byte(content), 0o600), os.Chtimes(path, old, old)); err != nil {
		t.Fatal(err)
	}
	return path
}

// A previewCase is one random case.
type previewCase struct {
	*rand.Rand
	*previewWorld
	text  strings.Builder
	kinds map[string]string // by name
	sql   map[string]sourcetest.Answer
	quote bool
}

func (c *previewCase) once(in int) bool { return c.IntN(in) == 0 }

// hashes returns some of the machines' hashes.
func (c *previewCase) hashes() (some []string) {
	for _, tpm := range c.tpms {
		if c.once(2) {
			some = append(some, tpm.EKHash())
		}
	}
	return some
}

// jsonList returns a list that may be broken.
func (c *previewCase) jsonList() string {
	var entries []string
	for i, hash := range c.hashes() {
		entries = append(entries, fmt.Sprintf(`{"hash": %q, "name": "m%d", "labels": ["l%d"]}`, hash, i+c.IntN(2)*10, c.IntN(3)))
	}
	expires := "2999-01-01T00:00:00Z"
	if c.once(8) {
		expires = "2001-01-01T00:00:00Z"
	}
	list := fmt.Sprintf(`{"version": 1, "serial": 7, "expires": %q, "keys": [%s]}`, expires, strings.Join(entries, ", "))
	if c.once(8) {
		list = list[:len(list)/2]
	}
	return list
}

// source writes a source block of a random kind.
func (c *previewCase) source(t *testing.T, name string) {
	t.Helper()
	kinds := []string{"hash_dir", "hash_file", "http", "ek_ca", "sql", "boot_policy", "devid"}
	kind := kinds[c.IntN(len(kinds))]
	c.kinds[name] = kind
	fmt.Fprintf(&c.text, "source %q %q {\n%s", kind, name, c.body(t, kind, name))
	if c.once(5) {
		c.text.WriteString("attributes = false\n")
	}
	c.text.WriteString("}\n")
}

func (c *previewCase) body(t *testing.T, kind, name string) string {
	t.Helper()
	switch kind {
	case "hash_dir":
		c.files++
		dir := filepath.Join(c.dir, strconv.Itoa(c.files))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for i, hash := range c.hashes() {
			list(t, dir, hash, fmt.Sprintf(`{"name": "m%d"}`, i))
		}
		if !c.once(6) { // else it passes for one that is not mounted
			list(t, dir, ".mounted", "")
		}
		return fmt.Sprintf("path = %q\nmarker = \".mounted\"\n", dir)
	case "hash_file":
		content := c.jsonList()
		if c.once(2) {
			content = strings.Join(c.hashes(), "\n")
		}
		return fmt.Sprintf("path = %q\n", c.file(t, content))
	case "http":
		c.files++
		path := fmt.Sprintf("/%d.json", c.files)
		if !c.once(6) {
			c.mu.Lock()
			c.lists[path] = c.jsonList()
			c.mu.Unlock()
		}
		return fmt.Sprintf("url = %q\nca_path = %q\ncache_path = %q\n",
			c.web.URL+path, c.web.CAPath, filepath.Join(c.dir, fmt.Sprintf("cache%d", c.files)))
	case "ek_ca", "devid":
		pems := map[string]string{}
		for i, ca := range c.cas {
			if c.once(2) {
				pems[fmt.Sprintf("b%d", i)] = c.file(t, string(ca.PEM()))
			}
		}
		if len(pems) == 0 || c.once(8) {
			return fmt.Sprintf("ca_path = %q\n", c.file(t, "no certificate"))
		}
		var bundles strings.Builder
		for _, bundle := range slices.Sorted(maps.Keys(pems)) {
			fmt.Fprintf(&bundles, "%s = %q\n", bundle, pems[bundle])
		}
		return "bundles = {\n" + bundles.String() + "}\n"
	case "sql":
		answers := []sourcetest.Answer{
			sourcetest.Lists(sources.Attributes{Name: "sql", Labels: []string{"s"}}), sourcetest.ListsNot(),
			sourcetest.Fails(errors.New("the database is down")),
		}
		c.sql[name] = answers[c.IntN(len(answers))]
		return "dialect = \"postgres\"\ndsn_path = \"/dsn\"\n"
	}
	c.quote = true
	zero := strings.Repeat("00", 32)
	return fmt.Sprintf("path = %q\n", c.file(t, `{"version": 1, "profiles": [{"name": "p", "pcrs": {"sha256": {"0": ["`+
		zero+`"]}}}]}`))
}

// rule writes a rule over some sources.
func (c *previewCase) rule(effect string, i int) {
	var all, some []string
	for _, name := range slices.Sorted(maps.Keys(c.kinds)) {
		switch pick := c.IntN(4); {
		case effect == "deny" && (c.kinds[name] == "boot_policy" || c.kinds[name] == "devid"):
		case pick == 0:
			all = append(all, strconv.Quote(name))
		case pick == 1:
			some = append(some, strconv.Quote(name))
		}
	}
	fmt.Fprintf(&c.text, "%s \"r%d\" {\n", effect, i)
	if len(all) > 0 {
		fmt.Fprintf(&c.text, "all = [%s]\n", strings.Join(all, ", "))
	}
	if len(some) > 0 {
		fmt.Fprintf(&c.text, "any = [%s]\n", strings.Join(some, ", "))
	}
	if c.once(5) {
		c.text.WriteString("enforce = false\n")
	}
	c.text.WriteString("}\n")
}

// configuration returns a random configuration that the server accepts.
func (w *previewWorld) configuration(t *testing.T, r *rand.Rand) *previewCase {
	t.Helper()
	for {
		c := &previewCase{Rand: r, previewWorld: w, kinds: map[string]string{}, sql: map[string]sourcetest.Answer{}}
		for i := range 1 + c.IntN(5) {
			c.source(t, fmt.Sprintf("s%d", i))
		}
		for i := range 1 + c.IntN(3) {
			c.rule("allow", i)
		}
		for i := range c.IntN(3) {
			c.rule("deny", i)
		}
		if c.quote {
			c.text.WriteString("quote { pcrs = [0] }\n")
		}
		if c.once(4) {
			c.text.WriteString("agent_path_template = \"/tpm/{{ .Name }}\"\n")
		}
		if _, err := config.Parse(c.text.String(), "example.org"); err == nil {
			return c
		}
	}
}

// parse returns the configuration, in which sql sources are fakes if they are asked.
func (c *previewCase) parse(t *testing.T, examined, network bool) *config.Config {
	t.Helper()
	parsed, err := config.Parse(c.text.String(), "example.org")
	if err != nil {
		t.Fatal(err)
	}
	if examined {
		parsed.Examine(network)
	}
	for i := range parsed.Members {
		if m := &parsed.Members[i]; m.Kind == "sql" && (!examined || network) {
			m.Source = sourcetest.NewFake(c.sql[m.Name])
		}
	}
	return parsed
}

// try compares a preview with an attestation.
func (w *previewWorld) try(t *testing.T, r *rand.Rand, counted map[string]int) {
	t.Helper()
	c := w.configuration(t, r)
	tpm, network := w.tpms[r.IntN(len(w.tpms))], r.IntN(2) == 0
	p, log := server.New(), &logBuffer{}
	p.SetLogger(log.logger())
	stop := p.UseConfig(t, c.parse(t, false, false))
	stream := honest(t.Context(), t, tpm)
	err := p.Attest(stream)
	stop()
	previewer, failed := server.NewPreviewer(t.Context(), c.parse(t, true, network))
	if failed != nil {
		t.Fatal(failed)
	}
	defer previewer.Close()
	view, failed := previewer.Preview(t.Context(), w.evidence(t, tpm, r), network)
	if failed != nil {
		t.Fatal(failed)
	}
	line := log.decision(t)
	note := func(format string, args ...any) {
		t.Errorf(format+"\nnetwork: %v\npreview: %+v\n%s\nserver: %v %v\n%s\n%s",
			append(args, network, view.Result, view.Decision.Explain(), err, stream.attributes, line, &c.text)...)
	}
	count(counted, c, view)
	w.compareEviction(t, c, tpm, outcomeOf(err), counted, note)
	if !view.Settled {
		if !slices.Contains(view.Possible, outcomeOf(err)) {
			note("%v is not possible: %v", outcomeOf(err), view.Possible)
		}
		return
	}
	got := status.Convert(err)
	if got.Code() != view.Result.Code || got.Message() != view.Result.Message {
		note("another status")
		return
	}
	open := slices.ContainsFunc(view.Answers, func(a policy.Answer) bool {
		return strings.HasPrefix(a.Result(), "needs_")
	})
	if !strings.Contains(line, `"outcome":"`+view.Result.Outcome+`"`) ||
		!open && view.Result.Reason != "" && !strings.Contains(line, strconv.Quote(view.Result.Reason)) {
		note("another outcome or reason")
	}
	attributes := stream.attributes
	if err == nil && attributes.GetSpiffeId() != view.Result.SPIFFEID {
		note("another ID")
	}
	missing := func(s string) bool { return !slices.Contains(attributes.GetSelectorValues(), s) }
	more := len(attributes.GetSelectorValues()) > len(view.Result.Selectors) && len(view.Incomplete) == 0
	if slices.ContainsFunc(view.Result.Selectors, missing) || more {
		note("other selectors")
	}
	if !open {
		w.compareTrials(view, line, note)
	}
}

// compareEviction looks at the machine as evict does, by its EK hash alone: a machine that the server
// admits, or would admit if a source answered, is never taken for refused; and if every source answers
// by the EK hash, a machine that the server refuses is.
func (w *previewWorld) compareEviction(t *testing.T, c *previewCase, tpm *attestortest.TPM, outcome policy.Outcome,
	counted map[string]int, note func(string, ...any),
) {
	t.Helper()
	follower, err := server.NewFollower(t.Context(), c.parse(t, false, false), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	hash, err := sources.ParseEKHash(tpm.EKHash())
	if err != nil {
		t.Fatal(err)
	}
	ev := &sources.Evidence{EKHash: hash, Incomplete: true}
	view, err := follower.Preview(t.Context(), ev, false)
	if err != nil {
		t.Fatal(err)
	}
	refused := slices.Equal(view.Possible, []policy.Outcome{policy.Refused})
	if screened := follower.Screen(t.Context(), ev).Outcome; refused != (screened == policy.Refused) {
		note("screened %v, but %v is possible", screened, view.Possible)
	}
	certain := !slices.ContainsFunc(view.Answers, func(a policy.Answer) bool {
		return a.Result() != "listed" && a.Result() != "not_listed"
	})
	switch {
	case refused && outcome != policy.Refused, !refused && certain && outcome == policy.Refused:
		note("the server decides %v, and for evict %v is possible: %v", outcome, view.Possible, view.Answers)
	case refused:
		counted["evicted"]++
	}
}

// compareTrials compares what the rules on trial come to.
func (w *previewWorld) compareTrials(view *server.Preview, line string, note func(string, ...any)) {
	would := map[string]string{"holds": "would hold", "holds_not": "would not hold", "might_hold": "might hold"}
	for _, h := range view.Rules {
		effect := "allow "
		if h.Deny {
			effect = "deny "
		}
		if text := would[h.Result]; h.Trial && text != "" && !strings.Contains(line, effect+h.Name+": "+text) {
			note("another trial of %s", h.Name)
		}
	}
}

// evidence returns what is known of a machine.
func (w *previewWorld) evidence(t *testing.T, tpm *attestortest.TPM, r *rand.Rand) *sources.Evidence {
	t.Helper()
	hash, err := sources.ParseEKHash(tpm.EKHash())
	if err != nil {
		t.Fatal(err)
	}
	if r.IntN(4) == 0 {
		return &sources.Evidence{EKHash: hash, Incomplete: true}
	}
	claim := tpm.Claim()
	return &sources.Evidence{EKHash: hash, EK: claim.EK, Certificate: claim.Certificate, Chain: claim.Chain}
}

// outcomeOf returns the outcome of a decision by what an agent gets.
func outcomeOf(err error) policy.Outcome {
	switch s := status.Convert(err); {
	case s.Code() == codes.OK, strings.Contains(s.Message(), "SPIFFE ID"):
		return policy.Admitted
	case s.Code() == codes.Unavailable:
		return policy.Unavailable
	}
	return policy.Refused
}

func count(counted map[string]int, c *previewCase, view *server.Preview) {
	for _, kind := range c.kinds {
		counted[kind]++
	}
	if view.Settled {
		counted["settled "+view.Result.Outcome]++
	} else {
		counted["open"]++
	}
	if slices.ContainsFunc(view.Answers, func(a policy.Answer) bool { return a.Result() == "cannot_tell" }) {
		counted["a source cannot tell"]++
	}
}
