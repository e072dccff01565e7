package list_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A hurriedOrigin notes for which calls it has less time than the caller of Load gives.
type hurriedOrigin struct {
	origin
	hurried []bool
}

func (o *hurriedOrigin) Read(ctx context.Context, tag string) (list.Copy, error) {
	_, limited := ctx.Deadline()
	o.hurried = append(o.hurried, limited)
	return o.origin.Read(ctx, tag)
}

// An origin that needs longer than a second for a long list is hurried at the start alone. It
// used to be hurried at every Load, so that the list in the cache served until it was stale, and
// with it everybody who had been removed from the list meanwhile.
func TestSlowOriginIsHurriedOnce(t *testing.T) {
	cfg := list.Config{Cache: list.NewCache(filepath.Join(t.TempDir(), "list.db"), list.DefaultMaxBytes)}
	must(t, newList(t, &origin{Copy: list.Copy{Data: wordsOf(1, "one", "removed")}}, cfg).Load(t.Context()))
	o := &hurriedOrigin{origin: origin{err: errDown}}
	l := newList(t, o, cfg)
	refused(t, l.Load(t.Context()), "down")
	want(t, l, "one", "removed")
	o.err, o.Copy = nil, list.Copy{Data: wordsOf(2, "one")}
	must(t, l.Load(t.Context()))
	want(t, l, "one")
	if !o.hurried[0] || o.hurried[1] {
		t.Errorf("hurried at %v", o.hurried)
	}
}

// An interval whose double is too long for a time.Duration used to pass for a short one, and the
// list was stale from a day after each Load on.
func TestTheLongestInterval(t *testing.T) {
	_, err := list.New(parseWords, &origin{}, list.Config{Every: 1<<63 - 1})
	refused(t, err, "max_staleness", "must be at least twice poll_interval")
	for staleness, good := range map[time.Duration]bool{2*time.Hour - 1: false, 2 * time.Hour: true} {
		if _, err := list.New(parseWords, &origin{}, list.Config{Every: time.Hour, MaxStaleness: staleness}); (err == nil) != good {
			t.Errorf("%v: %v", staleness, err)
		}
	}
}
