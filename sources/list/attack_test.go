package list_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/list"
)

// A hurriedOrigin records which calls have less time than the caller of Load gives.
type hurriedOrigin struct {
	origin
	hurried []bool
}

func (o *hurriedOrigin) Read(ctx context.Context, tag string) (list.Copy, error) {
	_, limited := ctx.Deadline()
	o.hurried = append(o.hurried, limited)
	return o.origin.Read(ctx, tag)
}

// An origin that needs longer than a second for a long list is hurried only at the start. It used
// to be hurried at every Load, so the list in the cache was served until it was stale, and so was
// everybody who had been removed from the list in the meantime.
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

// If twice the interval overflows a time.Duration, it used to count as a short time, and the list
// was stale from a day after each Load on.
func TestTheLongestInterval(t *testing.T) {
	_, err := list.New(parseWords, &origin{}, list.Config{Every: 1<<63 - 1})
	refused(t, err, "max_staleness", "must be at least twice poll_interval")
	for staleness, good := range map[time.Duration]bool{2*time.Hour - 1: false, 2 * time.Hour: true} {
		if _, err := list.New(parseWords, &origin{}, list.Config{Every: time.Hour, MaxStaleness: staleness}); (err == nil) != good {
			t.Errorf("%v: %v", staleness, err)
		}
	}
}

// Somebody who controls the origin and has kept every list, who restarts the server at will and
// sets its clock, can make it serve neither an older list after a newer one nor a list that its key
// did not sign.
func TestNoChoiceOfAnswersServesAnOlderList(t *testing.T) {
	key, public := newKey(t)
	forger, _ := newKey(t)
	rnd := rand.New(rand.NewPCG(3, 4)) // the same each time
	now := time.Now()
	cfg := list.Config{
		Cache:   list.NewCache(filepath.Join(t.TempDir(), "list.db"), 1<<20),
		Signing: &list.Signing{KeyPath: public, Name: "fleet"},
		Now:     func() time.Time { return now },
	}
	o := &origin{}
	l := newList(t, o, cfg)
	newest, served, word := uint64(0), 0, ""
	for range 1000 {
		serial := uint64(1 + rnd.IntN(2+int(newest)))
		said := "word of " + strconv.FormatUint(serial, 10)
		if rnd.IntN(8) == 0 {
			said = "another word"
		}
		data := wordsOf(serial, said)
		by := key
		if rnd.IntN(4) == 0 {
			by = forger
		}
		o.Copy = list.Copy{Data: data, Signature: sign(t, by, data), Tag: strconv.Itoa(rnd.IntN(3)), At: now}
		o.err = []error{nil, nil, nil, errDown}[rnd.IntN(4)]
		switch rnd.IntN(10) {
		case 0:
			l = newList(t, o, cfg)
		case 1:
			now = now.Round(0).Add(time.Duration(rnd.IntN(48)-24) * time.Minute)
		case 2:
			o.Data = data[:rnd.IntN(len(data))]
		}
		_ = l.Load(t.Context())
		w, err := l.Current()
		if err != nil {
			continue
		}
		served++
		if *w.Serial < newest || *w.Serial > newest && (*w.Serial != serial || &by[0] != &key[0]) {
			t.Fatalf("serial %d serves after %d; the origin has sent %d", *w.Serial, newest, serial)
		}
		if *w.Serial == newest && w.Words[0] != word {
			t.Fatalf("serial %d says %q, and said %q", newest, w.Words[0], word)
		}
		newest, word = *w.Serial, w.Words[0]
	}
	if newest < 5 || served < 300 {
		t.Errorf("up to serial %d, served %d times: the test shows nothing", newest, served)
	}
}
