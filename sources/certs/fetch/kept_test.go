package fetch_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/certs/fetch"
)

// timed returns a Fetcher that may ask a server, and its clock.
func timed(tb testing.TB, o *origin) (*fetch.Fetcher, *clock) {
	tb.Helper()
	c := newClock()
	return open(tb, fetch.Config{Hosts: []string{o.host()}, Now: c.Now}), c
}

// A server that is down is not asked at every attestation, but after one minute, then two, four,
// eight, and every ten. When it is back, the next of these requests succeeds.
func TestServiceDown(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	f.Hurry(time.Minute, 0)
	o.answer(http.StatusServiceUnavailable, "")
	url := o.at("/a.crt")
	for _, minutes := range []int{1, 2, 4, 8, 10, 10} {
		pause := time.Duration(minutes) * time.Minute
		before := o.requests.Load()
		wantFail(t, f, url, "503")
		asked := o.requests.Load()
		if asked == before {
			t.Fatalf("it was not asked again before the pause of %v", pause)
		}
		c.add(pause - time.Second)
		for range 100 {
			wantFail(t, f, url, "503")
		}
		if _, kept, err := f.Cached(fetch.Issuer, url, text); !kept || err == nil {
			t.Fatalf("the failure is not remembered: %v, %v", kept, err)
		}
		o.wantRequests(t, asked)
		c.add(time.Second)
		wantCached(t, f, url, "")
	}
	o.answer(http.StatusOK, "a certificate")
	wantGet(t, f, url, "a certificate")
	// The next failure is the first one again.
	if s := f.Stats(); s.Failures != 0 {
		t.Errorf("%d failures", s.Failures)
	}
}

// A deliberate answer is not requested again for ten minutes.
func TestAnsweredFailures(t *testing.T) {
	for status, body := range map[int]string{
		http.StatusNotFound: "", http.StatusForbidden: "", http.StatusOK: "<html>",
	} {
		o := local(t)
		f, c := timed(t, o)
		o.answer(status, body)
		wantFail(t, f, o.at("/a.crt"), "")
		c.add(10*time.Minute - time.Second)
		wantFail(t, f, o.at("/a.crt"), "")
		o.wantRequests(t, 1)
		c.add(time.Second)
		wantFail(t, f, o.at("/a.crt"), "")
		o.wantRequests(t, 2)
	}
}

// An object whose Until has passed is fetched again. If that fails, it stays in use as stale for 90
// days: what was signed has not lost its signature.
func TestStale(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	url := o.at("/a.crt")
	if got := wantGet(t, f, url, "a certificate"); !got.Until.Equal(start.Add(30*24*time.Hour)) || got.Stale != nil {
		t.Errorf("%+v", got)
	}
	c.add(30 * 24 * time.Hour)
	wantCached(t, f, url, "")
	o.answer(http.StatusNotFound, "")
	if got := wantGet(t, f, url, "a certificate"); got.Stale == nil {
		t.Error("it does not say that it is stale")
	}
	got, kept, err := f.Cached(fetch.Issuer, url, text)
	if err != nil || !kept || got.Stale == nil || got.Value != "a certificate" {
		t.Errorf("%+v, %v, %v", got, kept, err)
	}
	o.wantRequests(t, 2)
	c.add(11 * time.Minute)
	wantCached(t, f, url, "") // the next attempt
	o.answer(http.StatusOK, "a newer one")
	if got := wantGet(t, f, url, "a newer one"); got.Stale != nil {
		t.Errorf("stale: %v", got.Stale)
	}
	c.add((30 + 91) * 24 * time.Hour)
	o.answer(http.StatusNotFound, "")
	wantFail(t, f, url, "has none")
}

// An object is kept for as long as Parse says, at least a minute and at most 90
// days.
func TestUntil(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	for i, test := range []struct{ wanted, want time.Duration }{
		{time.Hour, time.Hour}, {-time.Hour, time.Minute}, {0, time.Minute}, {1000 * 24 * time.Hour, 90 * 24 * time.Hour},
	} {
		got, err := f.Get(t.Context(), fetch.CRL, numbered(o, i), until(c.Now().Add(test.wanted)))
		if err != nil || !got.Until.Equal(start.Add(test.want)) || !got.Fetched.Equal(start) {
			t.Errorf("%v: %+v, %v", test.wanted, got, err)
		}
	}
}

// After the clock jumps back, the age of an object or a failure is not known. Objects are fetched
// again, and failures tried again, so that neither is used for years.
func TestClockJumpsBack(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	o.answer(http.StatusNotFound, "")
	wantFail(t, f, o.at("/none.crt"), "has none")
	c.add(-3 * time.Second) // a correction
	wantCached(t, f, o.at("/a.crt"), "a certificate")
	c.add(-365 * 24 * time.Hour)
	wantCached(t, f, o.at("/a.crt"), "")
	wantCached(t, f, o.at("/none.crt"), "")
	o.answer(http.StatusOK, "a newer one")
	wantGet(t, f, o.at("/a.crt"), "a newer one")
	wantGet(t, f, o.at("/none.crt"), "a newer one")
}

// What a CRL lists counts by any clock: the CRL stays in use while its server does not answer,
// however far the clock has jumped in either direction, and across a restart. An issuer stays in
// use if the clock was set back.
func TestCRLAtAnyClock(t *testing.T) {
	for _, jump := range []time.Duration{-time.Minute, -365 * 24 * time.Hour, 1000 * 24 * time.Hour} {
		o := local(t)
		f, c := timed(t, o)
		url := o.at("/a.crl")
		get := func(kind fetch.Kind) (*fetch.Object, error) { return f.Get(t.Context(), kind, url, text) }
		for _, kind := range []fetch.Kind{fetch.CRL.Of("a").Of("b"), fetch.Issuer} {
			if _, err := get(kind); err != nil {
				t.Fatal(err)
			}
		}
		c.add(jump)
		if _, kept, _ := f.Cached(fetch.CRL.Of("a").Of("b"), url, text); kept {
			t.Errorf("%v: it is not asked for anew", jump)
		}
		o.answer(http.StatusBadGateway, "")
		got, err := get(fetch.CRL.Of("a").Of("b"))
		if err != nil || got.Stale == nil || got.Value != "a certificate" {
			t.Errorf("%v: %+v, %v", jump, got, err)
		}
		if got, err := get(fetch.Issuer); (err == nil) != (jump < 0) {
			t.Errorf("%v: an issuer: %+v, %v", jump, got, err)
		}
		all := f.Kept(fetch.CRL.Of("a"), text)
		if len(all) != 1 || all[0].URL != url || all[0].Value != "a certificate" {
			t.Errorf("%v: kept are %+v", jump, all)
		}
		if all := f.Kept(fetch.CRL.Of("aa"), text); len(all) != 0 {
			t.Errorf("of another CA: %+v", all)
		}
	}
}

// An object that somebody has put in an issuer's place on its way does not stay for a month: if it
// is doubted, it is fetched again after ten minutes, but no sooner, however often it is doubted.
func TestDoubt(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	url := o.at("/a.crt")
	f.Doubt(fetch.Issuer, url) // nothing is there
	wantGet(t, f, url, "a certificate")
	for range 100 {
		f.Doubt(fetch.Issuer, url)
		wantGet(t, f, url, "a certificate")
	}
	c.add(10*time.Minute - time.Second)
	wantCached(t, f, url, "a certificate")
	o.wantRequests(t, 1)
	c.add(time.Second)
	wantCached(t, f, url, "")
	o.answer(http.StatusOK, "another")
	wantGet(t, f, url, "another")
	// An old object that is doubted is fetched again at once, and stays in use if that fails.
	c.add(24 * time.Hour)
	wantCached(t, f, url, "another")
	f.Doubt(fetch.Issuer, url)
	wantCached(t, f, url, "")
	o.answer(http.StatusNotFound, "")
	wantGet(t, f, url, "another")
}

// A CRL that one issuer has not signed does not make the CRL of another issuer at the same URL a
// failure.
func TestKindOf(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	o.answer(http.StatusOK, "<by another issuer>")
	if _, err := f.Get(t.Context(), fetch.CRL.Of("attacker"), o.at("/a.crl"), text); err == nil {
		t.Error("accepted")
	}
	got, err := f.Get(t.Context(), fetch.CRL.Of("issuer"), o.at("/a.crl"), until(time.Now().Add(time.Hour)))
	if err != nil || got == nil {
		t.Errorf("%v", err)
	}
}

// After a long failure of the disk, everything is written in the end.
func TestDiskFailsForLong(t *testing.T) {
	o := local(t)
	dir := filepath.Join(t.TempDir(), "not mounted")
	path := filepath.Join(dir, "cache.db")
	f := open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: newClock().Now})
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	f.FillFailures(80_000)
	if err := f.Close(); err == nil {
		t.Error("written")
	}
	must(t, os.Mkdir(dir, 0o700))
	must(t, f.Close())
	again, err := restarted(t, o, path)
	must(t, err)
	wantCached(t, again, o.at("/a.crt"), "a certificate")
	if s := again.Stats(); s.Failures != 4096 {
		t.Errorf("%+v", s)
	}
}

// Thousands of URLs that lead nowhere evict nothing useful, and the number of remembered failures
// is limited.
func TestFailuresPushOutNothing(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	f.FillFailures(10_000)
	if s := f.Stats(); s.Failures != 4096 || s.Objects != 1 {
		t.Errorf("%+v", s)
	}
	wantCached(t, f, o.at("/a.crt"), "a certificate")
}

// Accepted objects are limited in number and in bytes, on disk as well.
func TestObjectsAreBounded(t *testing.T) {
	o := local(t)
	for name, test := range map[string]struct {
		kind                fetch.Kind
		proven              bool
		objects, size, most int
		bytes               int64
	}{
		"many issuers":     {fetch.Issuer, true, 3000, 10, 2048, 32 << 20},
		"large issuers":    {fetch.Issuer, true, 100, 256 << 10, 12, 32 << 20},
		"many unproven":    {fetch.Issuer, false, 1000, 10, 256, 4 << 20},
		"large unproven":   {fetch.Issuer, false, 10, 200 << 10, 2, 4 << 20},
		"many EKs":         {fetch.EKCertificate, false, 20_000, 10, 16_000, 96 << 20},
		"large EKs":        {fetch.EKCertificate, false, 1000, 64 << 10, 744, 96 << 20},
		"many CRLs":        {fetch.CRL, false, 3000, 10, 2048, 128 << 20},
		"large CRLs":       {fetch.CRL, false, 100, 4 << 20, 15, 128 << 20},
		"one's large CRLs": {fetch.CRL.Of("a"), false, 100, 4 << 20, 15, 128 << 20},
	} {
		t.Run(name, func(t *testing.T) {
			path := ""
			if name == "large CRLs" || name == "many unproven" { // others are slow to write
				path = filepath.Join(t.TempDir(), "cache.db")
			}
			f := open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path})
			for range 10 {
				f.FillObjects(test.kind, test.proven, test.objects/10, test.size)
			}
			s := f.Stats()
			if s.Objects > test.most || s.Objects < test.most-2 || s.Bytes > test.bytes {
				t.Errorf("%+v", s)
			}
			must(t, f.Close())
			if path == "" {
				return
			}
			again, err := restarted(t, o, path)
			must(t, err)
			if got := again.Stats(); got.Objects != s.Objects {
				t.Errorf("%d objects on the disk, %d in memory", got.Objects, s.Objects)
			}
		})
	}
}

// The most recently used objects stay.
func TestUsedLastStays(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	wantGet(t, f, o.at("/a.crt"), "a certificate")
	for range 10 {
		f.FillObjects(fetch.Issuer, false, 250, 10)
		wantCached(t, f, o.at("/a.crt"), "a certificate")
	}
	f.FillObjects(fetch.Issuer, false, 256, 10)
	wantCached(t, f, o.at("/a.crt"), "")
}

// Somebody with a TPM in software can name any number of URLs that lead to a CA's certificates.
// They evict nothing that counts: no CRL, no useful issuer, no EK certificate; and objects of one
// kind evict none of another, neither in memory nor on disk.
func TestStrangersPushOutNothing(t *testing.T) {
	o := local(t)
	path := filepath.Join(t.TempDir(), "cache.db")
	cfg := fetch.Config{Hosts: []string{o.host()}, Bases: []string{o.URL}, CachePath: path}
	kinds := []fetch.Kind{fetch.Issuer, fetch.EKCertificate, fetch.CRL}
	for _, filled := range kinds {
		f := open(t, cfg)
		must(t, f.Load(t.Context()))
		for _, kind := range kinds {
			if _, err := f.Get(t.Context(), kind, o.at("/a"), text); err != nil {
				t.Fatal(err)
			}
		}
		f.Prove(o.at("/a"))
		f.Prove(o.at("/none"))
		f.FillObjects(filled, false, 500, 250<<10)
		f.FillObjects(filled, false, 20_000, 10)
		wantKept := func(f *fetch.Fetcher) {
			t.Helper()
			for _, kind := range kinds {
				if kind == filled && kind != fetch.Issuer {
					continue // that is its own
				}
				if o, kept, err := f.Cached(kind, o.at("/a"), text); !kept || err != nil {
					t.Errorf("%s, after many of the kind %s: %+v, %v", kind, filled, o, err)
				}
			}
		}
		wantKept(f)
		if filled != fetch.Issuer {
			continue
		}
		must(t, f.Close())
		again := open(t, cfg)
		must(t, again.Load(t.Context()))
		wantKept(again)
		again.FillObjects(filled, false, 300, 10) // what was proven is known to be
		wantKept(again)
		must(t, again.Close())
		must(t, os.Remove(path))
	}
}

// What is fetched again at a URL that was useful is kept like what it replaces.
func TestProvenStays(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	url := o.at("/a.crt")
	wantGet(t, f, url, "a certificate")
	f.Prove(url)
	c.add(24 * time.Hour)
	f.Doubt(fetch.Issuer, url)
	o.answer(http.StatusOK, "another")
	wantGet(t, f, url, "another")
	f.FillObjects(fetch.Issuer, false, 300, 10)
	wantCached(t, f, url, "another")
}

// An object from the disk whose Until has passed before its first use is fetched again when it is
// used, and stays in use if that fails.
func TestStaleFromDisk(t *testing.T) {
	o := local(t)
	path := filled(t, o, 1)
	c := newClock()
	c.add(40 * 24 * time.Hour)
	f := open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: c.Now})
	must(t, f.Load(t.Context()))
	f.Hurry(time.Minute, 0)
	o.answer(http.StatusServiceUnavailable, "")
	got := wantGet(t, f, numbered(o, 0), string(bodyOf("/0.crt")))
	if got.Stale == nil || !strings.Contains(fmt.Sprint(got.Stale), "503") {
		t.Errorf("stale: %v", got.Stale)
	}
	// An object that Parse refuses is dropped.
	c.add(time.Hour)
	f = open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: c.Now})
	must(t, f.Load(t.Context()))
	if got, err := f.Get(t.Context(), fetch.Issuer, numbered(o, 0), func([]byte) (any, time.Time, error) {
		return nil, time.Time{}, errors.New("not any more")
	}); err == nil || got != nil {
		t.Errorf("%+v", got)
	}
}

// An edition is a value that no lower edition may replace.
type edition int

func (e edition) Succeed(held any) error {
	if before, ok := held.(edition); ok && e < before {
		return fmt.Errorf("edition %d after %d", e, before)
	}
	return nil
}

func editionOf(body []byte) (any, time.Time, error) {
	n, err := strconv.Atoi(string(body))
	return edition(n), start.Add(time.Hour), err
}

// wantEdition fails unless Get returns this edition, stale or not.
func wantEdition(tb testing.TB, f *fetch.Fetcher, url string, want edition, stale bool) {
	tb.Helper()
	got, err := f.Get(tb.Context(), fetch.CRL, url, editionOf)
	if err != nil || got.Value != want || (got.Stale != nil) != stale {
		tb.Errorf("%+v, %v; want edition %d, stale %v", got, err, want, stale)
	}
}

// An answer that is older than the kept object does not replace it, whether that is in memory or on
// disk, and however long ago it should have been renewed: somebody on the way has replayed it. It
// counts as a failure, and is requested again after ten minutes.
func TestReplay(t *testing.T) {
	o := local(t)
	path := filepath.Join(t.TempDir(), "cache.db")
	c := newClock()
	restart := func() *fetch.Fetcher {
		f := open(t, fetch.Config{Hosts: []string{o.host()}, CachePath: path, Now: c.Now})
		must(t, f.Load(t.Context()))
		return f
	}
	f, url := restart(), o.at("/a.crl")
	o.answer(http.StatusOK, "2")
	wantEdition(t, f, url, 2, false)
	must(t, f.Close())
	o.answer(http.StatusOK, "1")
	for range 3 {
		f = restart() // it knows the second edition from the disk alone
		c.add(2 * time.Hour)
		o.requests.Store(0)
		for range 3 {
			wantEdition(t, f, url, 2, true)
			o.wantRequests(t, 1)
		}
		c.add(11 * time.Minute)
		wantEdition(t, f, url, 2, true) // and from memory
		o.wantRequests(t, 2)
		must(t, f.Close())
	}
	c.add(100 * 24 * time.Hour)
	// Whoever has it after the end sees that nobody was asked.
	if got, err := f.Get(t.Context(), fetch.CRL, url, editionOf); err != nil || !errors.Is(got.Stale, fetch.ErrNotAsked) {
		t.Errorf("%+v, %v", got, err)
	}
	for n, body := range []string{"2", "3"} { // the same one is as good as a newer one
		c.add(time.Hour)
		o.answer(http.StatusOK, body)
		wantEdition(t, restart(), url, edition(n+2), false)
	}
}

// A value that panics when it is compared does not crash the process, and replaces nothing.
func TestPanicInSucceed(t *testing.T) {
	o := local(t)
	f, c := timed(t, o)
	get := func(value any) (*fetch.Object, error) {
		return f.Get(t.Context(), fetch.Issuer, o.at("/a.crt"), func([]byte) (any, time.Time, error) {
			return value, c.Now().Add(time.Hour), nil
		})
	}
	if _, err := get("first"); err != nil {
		t.Fatal(err)
	}
	c.add(2 * time.Hour)
	got, err := get(panics{})
	if err != nil || got.Value != "first" || got.Stale == nil || !strings.Contains(got.Stale.Error(), "out of range") {
		t.Errorf("%+v, %v", got, err)
	}
}

type panics struct{}

func (panics) Succeed(any) error { panic("out of range") }

// Two requests for one URL, of which the first was given up when its answer was on
// the way: the one that ends last does not bring the older answer back.
func TestReplayByARequestThatWasGivenUp(t *testing.T) {
	o := local(t)
	f := asking(t, o)
	url := o.at("/a.crl")
	read, reading := make(chan struct{}), make(chan struct{})
	o.answer(http.StatusOK, "1")
	ctx, giveUp := context.WithCancel(t.Context())
	go func() {
		<-reading
		giveUp()
	}()
	var once sync.Once
	_, err := f.Get(ctx, fetch.CRL, url, func(body []byte) (any, time.Time, error) {
		once.Do(func() { close(reading) })
		<-read
		return editionOf(body)
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	o.answer(http.StatusOK, "2")
	current := func(body []byte) (any, time.Time, error) {
		value, _, err := editionOf(body)
		return value, time.Now().Add(time.Hour), err
	}
	if got, err := f.Get(t.Context(), fetch.CRL, url, current); err != nil || got.Value != edition(2) {
		t.Fatalf("%+v, %v", got, err)
	}
	close(read)
	must(t, f.Close()) // waits for both
	if got, kept, err := f.Cached(fetch.CRL, url, current); !kept || err != nil || got.Value != edition(2) {
		t.Errorf("%+v, %v, %v", got, kept, err)
	}
}
