package list_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/file"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/signature"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(reloadList); path != "" {
		if err := reload(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// words is a document as a later version may bring one: a list of words.
type words struct {
	Serial  *uint64   `json:"serial,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
	List    string    `json:"list,omitempty"`
	Words   []string  `json:"words"`
}

func parseWords(data []byte) (*words, error) {
	w := &words{}
	if err := json.Unmarshal(data, w); err != nil {
		return nil, fmt.Errorf("no list of words: %w", err)
	}
	return w, nil
}

func (w *words) Header() list.Header {
	h := list.Header{Expires: w.Expires, Name: w.List, HasSerial: w.Serial != nil}
	if h.HasSerial {
		h.Serial = *w.Serial
	}
	return h
}

func (w *words) Len() int                { return len(w.Words) }
func (w *words) Equal(other *words) bool { return slices.Equal(w.Words, other.Words) }
func (w *words) Warnings() []string      { return nil }

func (w *words) Without(older *words) (gone int) {
	for _, word := range older.Words {
		if !slices.Contains(w.Words, word) {
			gone++
		}
	}
	return gone
}

// wordsOf returns the bytes of a list of words; without a serial if that is zero.
func wordsOf(serial uint64, said ...string) []byte {
	w := words{List: "fleet", Expires: time.Now().Add(time.Hour).UTC(), Words: said}
	if serial != 0 {
		w.Serial = &serial
	}
	data, err := json.Marshal(w)
	if err != nil {
		panic(err)
	}
	return data
}

func must(tb testing.TB, err error) {
	tb.Helper()
	if err != nil {
		tb.Fatal(err)
	}
}

func newList(tb testing.TB, o list.Origin, cfg list.Config) *list.List[*words] {
	tb.Helper()
	l, err := list.New(parseWords, o, cfg)
	must(tb, err)
	return l
}

// want fails the test unless exactly these words are served.
func want(tb testing.TB, l *list.List[*words], said ...string) {
	tb.Helper()
	w, err := l.Current()
	if err != nil {
		tb.Errorf("%q do not serve: %v", said, err)
	} else if !slices.Equal(w.Words, said) {
		tb.Errorf("%q serve, want %q", w.Words, said)
	}
}

// refused fails the test unless an error says all these.
func refused(tb testing.TB, err error, says ...string) {
	tb.Helper()
	for _, s := range says {
		if err == nil || !strings.Contains(err.Error(), s) {
			tb.Errorf("the error is %v, want %q in it", err, s)
		}
	}
}

// A document that this project does not have yet works with every origin at once, with everything
// that lists have. A new document needs nothing else.
func TestNewDocumentFromAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "words.json")
	must(t, os.WriteFile(path, wordsOf(1, "one"), 0o600))
	o, err := file.New(file.Config{Path: path})
	must(t, err)
	l := newList(t, o, list.Config{What: "the words"})
	must(t, l.Load(t.Context()))
	want(t, l, "one")

	ctx, cancel := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 1), make(chan error)
	go func() {
		ended <- o.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	<-changed // the watch is in place
	must(t, os.WriteFile(path, wordsOf(2, "one", "two"), 0o600))
	<-changed
	must(t, l.Load(t.Context()))
	want(t, l, "one", "two")
	must(t, os.WriteFile(path, wordsOf(1, "one", "three"), 0o600))
	refused(t, l.Load(t.Context()), "serial 1 after serial 2")
	must(t, os.WriteFile(path, []byte("{"), 0o600))
	refused(t, l.Load(t.Context()), "the words: no list of words")
	want(t, l, "one", "two")
	if s := l.Status(); s.Entries != 2 || s.Serial != 2 || s.Expires.IsZero() || s.Confirmed.IsZero() {
		t.Errorf("%+v", s)
	}
	cancel()
	must(t, <-ended)
}

// The same from a web server: signed, with a cache, confirmed by a 304.
func TestNewDocumentFromAWebServer(t *testing.T) {
	key, public := newKey(t)
	data := wordsOf(1, "one")
	var asked []string
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path+" "+r.Header.Get("If-None-Match"))
		switch {
		case strings.HasSuffix(r.URL.Path, ".sig"):
			_, _ = w.Write(sign(t, key, data))
		case r.Header.Get("If-None-Match") != "":
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("ETag", `"1"`)
			_, _ = w.Write(data)
		}
	}))
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	must(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	o, err := web.New(web.Config{URL: server.URL + "/words", SignatureURL: server.URL + "/words.sig", CAPath: ca})
	must(t, err)
	cfg := list.Config{
		Signing: &list.Signing{KeyPath: public, Name: "fleet"},
		Cache:   list.NewCache(filepath.Join(t.TempDir(), "words.db"), list.DefaultMaxBytes, server.URL),
	}
	l := newList(t, o, cfg)
	must(t, l.Load(t.Context()))
	must(t, l.Load(t.Context()))
	want(t, l, "one")
	if !slices.Equal(asked, []string{"/words ", "/words.sig ", `/words "1"`}) {
		t.Errorf("asked %q", asked)
	}
	server.Close()
	l = newList(t, o, cfg)
	refused(t, l.Load(t.Context()), "connection refused")
	want(t, l, "one")
}

// An origin that the test controls.
type origin struct {
	list.Copy
	err  error
	tags []string
	slow bool // it answers when its time is over
}

func (o *origin) Read(ctx context.Context, tag string) (list.Copy, error) {
	o.tags = append(o.tags, tag)
	if o.slow {
		<-ctx.Done()
	}
	c := o.Copy
	c.At = cmp.Or(c.At, time.Now())
	if tag != "" && tag == c.Tag {
		c.Data = nil
	}
	return c, o.err
}

func (o *origin) Warnings() []string { return []string{"the origin's warning"} }

func newKey(tb testing.TB) (key ed25519.PrivateKey, path string) {
	tb.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	must(tb, err)
	der, err := x509.MarshalPKIXPublicKey(public)
	must(tb, err)
	path = filepath.Join(tb.TempDir(), "list.pub")
	must(tb, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
	return key, path
}

func sign(tb testing.TB, key ed25519.PrivateKey, data []byte) []byte {
	tb.Helper()
	sig, err := signature.Sign(key, data)
	must(tb, err)
	return sig
}

var errDown = errors.New("the origin is down")

// Somebody who can write to the cache file as the server's user, with a correct checksum, can admit
// nobody if lists are signed: what is in the file is verified like what the origin sends. Nor does
// a serial written there keep out the lists of the key's owner.
func TestForgedCache(t *testing.T) {
	key, public := newKey(t)
	forger, _ := newKey(t)
	path := filepath.Join(t.TempDir(), "list.db")
	cache := func() *list.Cache { return list.NewCache(path, list.DefaultMaxBytes, "url") }
	cfg := list.Config{Cache: cache(), Signing: &list.Signing{KeyPath: public, Name: "fleet"}}
	forged := wordsOf(1<<64-1, "stranger")
	for name, sig := range map[string][]byte{"unsigned": nil, "by another key": sign(t, forger, forged)} {
		t.Run(name, func(t *testing.T) {
			// A list that needs no signature writes whatever it gets into the file.
			must(t, newList(t, &origin{Copy: list.Copy{Data: forged, Signature: sig}}, list.Config{Cache: cache()}).Load(t.Context()))

			o := &origin{err: errDown}
			l := newList(t, o, cfg)
			refused(t, l.Load(t.Context()), "down")
			if w, err := l.Current(); err == nil {
				t.Fatalf("%q serve", w.Words)
			}
			if w := strings.Join(l.Status().Warnings, "; "); !strings.Contains(w, "the cache was not used") ||
				!strings.Contains(w, "signature") || !strings.Contains(w, "the origin's warning") {
				t.Errorf("warnings %q", w)
			}
			good := wordsOf(3, "one")
			o.Copy, o.err = list.Copy{Data: good, Signature: sign(t, key, good)}, nil
			must(t, l.Load(t.Context()))
			want(t, l, "one")
			l = newList(t, &origin{err: errDown}, cfg)
			refused(t, l.Load(t.Context()), "down")
			want(t, l, "one")
		})
	}
}

// A list that the origin sends again unchanged, because it has no tags, is neither parsed nor
// written again: a server without ETags causes no more work than one with them.
func TestSentAgain(t *testing.T) {
	parsed := 0
	path := filepath.Join(t.TempDir(), "list.db")
	o := &origin{Copy: list.Copy{Data: wordsOf(1, "one")}}
	l, err := list.New(func(data []byte) (*words, error) {
		parsed++
		return parseWords(data)
	}, o, list.Config{Cache: list.NewCache(path, list.DefaultMaxBytes)})
	must(t, err)
	must(t, l.Load(t.Context()))
	before, err := os.Stat(path)
	must(t, err)
	first := l.Status()
	for range 3 {
		must(t, l.Load(t.Context()))
	}
	after, err := os.Stat(path)
	must(t, err)
	if parsed != 1 || !os.SameFile(before, after) {
		t.Errorf("parsed %d times, the same file: %v", parsed, os.SameFile(before, after))
	}
	if s := l.Status(); !s.Loaded.Equal(first.Loaded) || !s.Confirmed.After(first.Confirmed) {
		t.Errorf("%+v, before %+v", s, first)
	}
	o.Data = wordsOf(2, "two")
	must(t, l.Load(t.Context()))
	want(t, l, "two")
}

// While the cache cannot be written, the origin is still asked whether there is something
// new, and no more: a disk that is full does not make each server fetch the whole list at
// each look. The list is in the cache as soon as it can be.
func TestUnsavedListIsNotSentAgain(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "cache")
	cfg := list.Config{Cache: list.NewCache(filepath.Join(folder, "list.db"), list.DefaultMaxBytes)}
	o := &origin{Copy: list.Copy{Data: wordsOf(1, "one"), Tag: "1"}}
	l := newList(t, o, cfg)
	for range 3 {
		must(t, l.Load(t.Context()))
		if w := strings.Join(l.Status().Warnings, "; "); !strings.Contains(w, "the cache was not written") {
			t.Errorf("warnings %q", w)
		}
	}
	o.Data, o.Tag = wordsOf(2, "two"), "2"
	must(t, l.Load(t.Context()))
	o.Tag = "" // the same bytes without a tag are the same list
	must(t, l.Load(t.Context()))
	must(t, os.Mkdir(folder, 0o700))
	must(t, l.Load(t.Context()))
	if w := strings.Join(l.Status().Warnings, "; "); strings.Contains(w, "cache") {
		t.Errorf("warnings %q", w)
	}
	if !slices.Equal(o.tags, []string{"", "1", "1", "1", "2", ""}) {
		t.Errorf("tags %q", o.tags)
	}
	l = newList(t, &origin{err: errDown}, cfg)
	refused(t, l.Load(t.Context()), "down")
	want(t, l, "two")
}

// While the cache is served, the first request has only a short time. That limit does not include
// writing the cache: a list that arrives at the last moment is still stored.
func TestSlowOriginAtAStart(t *testing.T) {
	cfg := list.Config{Cache: list.NewCache(filepath.Join(t.TempDir(), "list.db"), list.DefaultMaxBytes)}
	must(t, newList(t, &origin{Copy: list.Copy{Data: wordsOf(1, "one")}}, cfg).Load(t.Context()))
	l := newList(t, &origin{Copy: list.Copy{Data: wordsOf(2, "two")}, slow: true}, cfg)
	must(t, l.Load(t.Context()))
	want(t, l, "two")
	if w := strings.Join(l.Status().Warnings, "; "); strings.Contains(w, "cache") {
		t.Errorf("warnings %q", w)
	}
	l = newList(t, &origin{err: errDown}, cfg)
	refused(t, l.Load(t.Context()), "down")
	want(t, l, "two")
}

// The time of confirmation is written now and then: an outage that spans a restart is counted in
// full, but the file is not written at each look.
func TestConfirmationIsWritten(t *testing.T) {
	now := time.Now()
	path := filepath.Join(t.TempDir(), "list.db")
	o := &origin{Copy: list.Copy{Data: wordsOf(1, "one"), Tag: "1", At: now}}
	cfg := list.Config{
		Cache:        list.NewCache(path, list.DefaultMaxBytes),
		MaxStaleness: 50 * time.Minute, Now: func() time.Time { return now },
	}
	l := newList(t, o, cfg)
	must(t, l.Load(t.Context()))
	confirmed := func(after time.Duration) time.Time {
		o.At = now.Add(after)
		must(t, l.Load(t.Context()))
		again := newList(t, &origin{err: errDown}, cfg)
		refused(t, again.Load(t.Context()), "down")
		return again.Status().Confirmed
	}
	if at := confirmed(30 * time.Second); !at.Equal(now) {
		t.Errorf("written after %v", at.Sub(now))
	}
	if at := confirmed(2 * time.Minute); !at.Equal(now.Add(2 * time.Minute)) {
		t.Errorf("%v after the first time", at.Sub(now))
	}
	if !slices.Equal(o.tags, []string{"", "1", "1"}) {
		t.Errorf("tags %q", o.tags)
	}
	// The file is gone, or holds another list: this one is written anew.
	must(t, os.Remove(path))
	o.At = now.Add(10 * time.Minute)
	must(t, l.Load(t.Context()))
	if w := strings.Join(l.Status().Warnings, "; "); !strings.Contains(w, "another list") {
		t.Errorf("warnings %q", w)
	}
	must(t, l.Load(t.Context()))
	now = o.At
	again := newList(t, &origin{err: errDown}, cfg)
	refused(t, again.Load(t.Context()), "down")
	want(t, again, "one")
}

// A list that is longer than a block of the cache comes out as it went in.
func TestLongListInTheCache(t *testing.T) {
	long := strings.Repeat("é", 5<<20)
	cfg := list.Config{Cache: list.NewCache(filepath.Join(t.TempDir(), "list.db"), 16<<20)}
	must(t, newList(t, &origin{Copy: list.Copy{Data: wordsOf(1, long, "end")}}, cfg).Load(t.Context()))
	l := newList(t, &origin{err: errDown}, cfg)
	refused(t, l.Load(t.Context()), "down")
	want(t, l, long, "end")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	refused(t, newList(t, &origin{}, cfg).Load(ctx), "before the serial in the cache is known")
}

// An origin that says that nothing has changed, and has sent nothing, has no list.
func TestNothingToConfirm(t *testing.T) {
	l := newList(t, &origin{}, list.Config{})
	refused(t, l.Load(t.Context()), "none is there")
	if _, err := l.Current(); err == nil {
		t.Error("something serves")
	}
}

// A wall clock that says that a list is old is believed, as after a suspension, during which the
// monotonic clock stands still. A clock that is set back by a correction is no reason to drop a
// list.
func TestClocks(t *testing.T) {
	now := time.Now()
	l := newList(t, &origin{Copy: list.Copy{Data: []byte(`{"words": ["one"]}`), At: now}},
		list.Config{MaxStaleness: time.Hour, Now: func() time.Time { return now }})
	must(t, l.Load(t.Context()))
	for _, test := range []struct {
		now   time.Time
		stale string
	}{
		{now.Add(time.Hour), ""},
		{now.Round(0).Add(time.Hour), ""},
		{now.Add(time.Hour + 1), "stale"},
		{now.Round(0).Add(time.Hour + 1), "stale"},
		{now.Round(0).Add(-time.Second), ""},
		{now.Round(0).Add(-time.Minute), "in the future: check the clock"},
	} {
		now = test.now
		if _, err := l.Current(); (err == nil) != (test.stale == "") || err != nil && !strings.Contains(err.Error(), test.stale) {
			t.Errorf("at %v: %v, want %q", now, err, test.stale)
		}
	}
}

// A list that has lost most of its entries refuses a fleet. That is reported with both counts, but
// the ordinary daily losses are not.
func TestCollapse(t *testing.T) {
	said := func(from, to int) []byte {
		var all []string
		for i := from; i < to; i++ {
			all = append(all, strconv.Itoa(i))
		}
		return wordsOf(0, all...)
	}
	for name, test := range map[string]struct {
		before, after []byte
		want          string
	}{
		"all gone":       {said(0, 100), said(0, 0), "it has 0 entries now and had 100 before, of which 100 are gone"},
		"others instead": {said(0, 100), said(100, 200), "it has 100 entries now and had 100 before, of which 100 are gone"},
		"a quarter":      {said(0, 100), said(25, 200), "had 100 before, of which 25 are gone"},
		"a fifth":        {said(0, 100), said(20, 100), ""},
		"ten of eleven":  {said(0, 11), said(10, 11), ""},
		"eleven":         {said(0, 11), said(0, 0), "of which 11 are gone"},
		"a few":          {said(0, 5), said(0, 0), ""},
		"grown":          {said(0, 100), said(0, 1000), ""},
	} {
		o := &origin{Copy: list.Copy{Data: test.before}}
		l := newList(t, o, list.Config{})
		must(t, l.Load(t.Context()))
		o.Data = test.after
		for range 2 { // said until another list is there
			must(t, l.Load(t.Context()))
			got := strings.Join(l.Status().Warnings, "; ")
			if strings.Contains(got, "collapsed") != (test.want != "") || !strings.Contains(got, test.want) {
				t.Errorf("%s: %q, want %q", name, got, test.want)
			}
		}
		o.Data = wordsOf(0, "0")
		must(t, l.Load(t.Context()))
		must(t, l.Load(t.Context()))
	}
}
