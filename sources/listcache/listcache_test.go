package listcache_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/eklist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/listcache"
)

// All that a list says comes back: a name or a serial that were lost would change
// selectors, or let an old list in, after a restart.
func TestSaveAndLoad(t *testing.T) {
	for name, list := range map[string]*eklist.Snapshot{
		"empty": plain(t, 0, 0),
		"one":   plain(t, 0, 1),
		"names and labels": listOf(t, eklist.Header{
			Serial: 1<<63 + 7, HasSerial: true, Name: "fleet ü",
			Expires: time.Date(2030, 1, 1, 0, 0, 0, 0, time.FixedZone("", 3600)),
		}, 0, 1000, func(n uint64) eklist.Record {
			if n%3 == 0 {
				return nil
			}
			return named(fmt.Sprint("node-", n), "rack:12", strings.Repeat("x", 249))
		}),
		"serial 0":            listOf(t, serial(0), 0, 10, nil),
		"many values":         plain(t, 0, 20_000),
		"more than one batch": plain(t, 0, 300_000),
	} {
		t.Run(name, func(t *testing.T) {
			c, path := newCache(t)
			mustSave(t, c, list, meta(1))
			wantLoad(t, path, list, meta(1))
			wantNoDraft(t, path)
			info, err := os.Stat(path)
			if err != nil || info.Mode() != 0o600 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// Where there is no file that is no fault, but a directory that is missing is.
func TestNothingCached(t *testing.T) {
	c, path := newCache(t)
	list, m, err := c.Load(t.Context())
	if list != nil || m != (listcache.Meta{}) || !errors.Is(err, listcache.ErrNone) {
		t.Errorf("%v, %v, %v", list, m, err)
	}
	missing := listcache.New(filepath.Join(filepath.Dir(path), "missing", "tpm.db"), maxBytes, url)
	if _, _, err := missing.Load(t.Context()); err == nil || errors.Is(err, listcache.ErrNone) {
		t.Errorf("without a directory: %v", err)
	}
	if err := missing.Save(t.Context(), plain(t, 0, 1), meta(1)); err == nil {
		t.Error("saved without a directory")
	}
	if err := c.Save(t.Context(), nil, meta(1)); err == nil {
		t.Error("saved no list")
	}
}

// Of two servers with one cache, the one that polls later does not take the list
// back that the other has accepted: it would be served after the next restart.
func TestSerialDoesNotGoBack(t *testing.T) {
	c, path := newCache(t)
	ahead := listOf(t, serial(43), 0, 10, nil)
	mustSave(t, c, ahead, meta(1))
	behind := listcache.New(path, maxBytes, url, listID)
	for _, header := range []eklist.Header{serial(42), {}} {
		list := listOf(t, header, 0, 9, nil)
		if err := behind.Save(t.Context(), list, meta(2)); err == nil || !strings.Contains(err.Error(), "serial 43") {
			t.Errorf("%+v: %v", header, err)
		}
		if err := behind.Save(t.Context(), list, meta(2)); err == nil {
			t.Errorf("%+v: touched", header)
		}
	}
	wantLoad(t, path, ahead, meta(1))
	next := listOf(t, serial(44), 0, 9, nil)
	mustSave(t, behind, next, meta(3))
	wantLoad(t, path, next, meta(3))
	wantNoDraft(t, path)
}

// Whoever has stolen a signing key may have published the highest serial there is.
// Once the key does not count any more, neither does that list: it does not come
// back after a restart, and the first good one takes its place.
func TestKeyThatDoesNotCountAnyMore(t *testing.T) {
	stolen, safe := listcache.Key{1}, listcache.Key{2}
	c, path := newCache(t)
	open := func(keys ...listcache.Key) *listcache.Cache {
		c := listcache.New(path, maxBytes, url, listID)
		c.Trust(keys...)
		return c
	}
	signed := func(by listcache.Key) listcache.Meta {
		m := meta(1)
		m.Key = by
		return m
	}
	theirs, ours := listOf(t, serial(1<<64-1), 0, 10, nil), listOf(t, serial(3), 0, 5, nil)
	c.Trust(stolen)
	mustSave(t, c, theirs, signed(stolen))
	if got, m, err := open(safe, stolen).Load(t.Context()); err != nil || !got.SameEntries(theirs) || m.Key != stolen {
		t.Errorf("while both count: %v, %v", got, err)
	}
	ahead := (*listcache.AheadError)(nil)
	if err := open(stolen, safe).Save(t.Context(), ours, signed(safe)); !errors.As(err, &ahead) || ahead.Serial != 1<<64-1 {
		t.Errorf("while both count: save: %v", err)
	}
	for _, keys := range [][]listcache.Key{{safe}, {}, {{}}} {
		if got, _, err := open(keys...).Load(t.Context()); got != nil || err == nil || !strings.Contains(err.Error(), "none of the public keys") {
			t.Errorf("%x: %v, %v", keys, got, err)
		}
	}
	mustSave(t, open(safe), ours, signed(safe))
	if got, _, err := open(safe).Load(t.Context()); err != nil || !got.SameEntries(ours) {
		t.Errorf("the list after: %v, %v", got, err)
	}
	// Where lists need no signature, one that has one is of another time.
	if got, _, err := listcache.New(path, maxBytes, url, listID).Load(t.Context()); got != nil || err == nil {
		t.Errorf("without keys: %v, %v", got, err)
	}
}

// After a change of the configuration the list of the URL before must not be
// served as that of the URL now.
func TestListOfAnotherConfiguration(t *testing.T) {
	c, path := newCache(t)
	mustSave(t, c, listOf(t, serial(7), 0, 10, nil), meta(1))
	for _, of := range [][]string{nil, {url}, {url, "lab"}, {url + listID}, {url, listID, ""}, {listID, url}} {
		_, _, err := listcache.New(path, maxBytes, of...).Load(t.Context())
		if err == nil || !strings.Contains(err.Error(), "another configuration") {
			t.Errorf("%q: %v", of, err)
		}
	}
	// The serials of another list say nothing about this one.
	other := listcache.New(path, maxBytes, url, "lab")
	list := listOf(t, serial(1), 0, 5, nil)
	mustSave(t, other, list, meta(2))
	if _, _, err := c.Load(t.Context()); err == nil {
		t.Error("loaded the list of another configuration")
	}
	got, _, err := other.Load(t.Context())
	if err != nil || !got.SameEntries(list) {
		t.Errorf("%v, %v", got, err)
	}
}

// A list that is cancelled is not stored, nor is half of it loaded.
func TestCancelled(t *testing.T) {
	c, path := newCache(t)
	list := plain(t, 0, 300_000)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Save(ctx, list, meta(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("save: %v", err)
	}
	wantNoDraft(t, path)
	if _, _, err := c.Load(t.Context()); !errors.Is(err, listcache.ErrNone) {
		t.Errorf("load: %v", err)
	}
	mustSave(t, c, list, meta(1))
	if got, _, err := c.Load(ctx); got != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("load: %v, %v", got, err)
	}
}
