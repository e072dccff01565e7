package httplist_test

import (
	"crypto/rand"
	"encoding/json"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// inventory is a server's list that changes, with validators.
type inventory struct {
	mu      sync.Mutex
	entries map[sources.EKHash]sources.Attributes
	version int
	broken  bool
}

func (i *inventory) change(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
	i.version++
}

func (i *inventory) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	etag := strconv.Quote(strconv.Itoa(i.version))
	w.Header().Set("ETag", etag)
	switch {
	case i.broken:
		w.WriteHeader(http.StatusNotFound)
		return
	case r.Header.Get("If-None-Match") == etag:
		w.WriteHeader(http.StatusNotModified)
		return
	}
	type entry struct {
		Hash   sources.EKHash `json:"hash"`
		Name   string         `json:"name,omitempty"`
		Labels []string       `json:"labels,omitempty"`
	}
	keys := []entry{}
	for hash, a := range i.entries {
		keys = append(keys, entry{hash, a.Name, a.Labels})
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"serial": i.version, "keys": keys})
}

var (
	_ sources.Loader   = (*httplist.Source)(nil)
	_ sources.Reporter = (*httplist.Source)(nil)
)

// The contract of every source, with a real server and a real cache.
func TestConformance(t *testing.T) {
	o := webtest.NewServer(t, nil)
	lists := http.NewServeMux()
	o.Serve(lists.ServeHTTP)
	sourcetest.Run(t, sourcetest.Harness{Attributes: true, New: func(tb testing.TB) sourcetest.Backend {
		tb.Helper()
		i := &inventory{entries: map[sources.EKHash]sources.Attributes{}}
		cfg := configFor(o)
		cfg.URL = o.URL + "/" + rand.Text()
		cfg.CachePath = filepath.Join(tb.TempDir(), "cache.db")
		cfg.PollInterval = 50 * time.Millisecond
		lists.HandleFunc(strings.TrimPrefix(cfg.URL, o.URL), i.serve)
		return sourcetest.Backend{
			Open: func() sources.Source { return newSource(tb, cfg) },
			List: func(ev *sources.Evidence, a sources.Attributes) {
				i.change(func() { i.entries[ev.EKHash] = a })
			},
			Unlist: func(ev *sources.Evidence) { i.change(func() { delete(i.entries, ev.EKHash) }) },
			Break:  func() { i.change(func() { i.broken = true }) },
			Mend:   func() { i.change(func() { i.broken = false }) },
		}
	}})
}
