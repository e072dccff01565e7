package admission_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// TestMain fails if a test has left a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A journal is a slog.Handler that keeps lines for a test to look at.
type journal struct {
	mu    *sync.Mutex
	lines *[]string
	attrs string
}

func newJournal() journal { return journal{mu: &sync.Mutex{}, lines: &[]string{}} }

func (j journal) Enabled(context.Context, slog.Level) bool { return true }
func (j journal) WithGroup(string) slog.Handler            { return j }

func (j journal) WithAttrs(as []slog.Attr) slog.Handler {
	for _, a := range as {
		j.attrs += " " + a.String()
	}
	return j
}

func (j journal) Handle(_ context.Context, r slog.Record) error {
	line := r.Level.String() + " " + r.Message + j.attrs
	r.Attrs(func(a slog.Attr) bool {
		line += " " + a.String()
		return true
	})
	j.mu.Lock()
	defer j.mu.Unlock()
	*j.lines = append(*j.lines, line)
	return nil
}

// take returns the lines since the last take.
func (j journal) take() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	lines := *j.lines
	*j.lines = nil
	return lines
}

// wantLines fails the test unless the lines since the last take contain the texts of want, in
// order.
func (j journal) wantLines(t *testing.T, want ...string) {
	t.Helper()
	lines := j.take()
	ok := len(lines) == len(want)
	for i := 0; ok && i < len(want); i++ {
		ok = strings.Contains(lines[i], want[i])
	}
	if !ok {
		t.Errorf("the log has %d lines:\n%s\nwant:\n%s",
			len(lines), strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

// member returns a Member with this name that can be taken over.
func member(name string, s sources.Source) admission.Member {
	return admission.Member{Name: name, Kind: "fake", Config: name, Source: s}
}

// newSet returns a Set that is closed when the test ends.
func newSet(tb testing.TB, p policy.Policy, o admission.Options, members ...admission.Member) *admission.Set {
	tb.Helper()
	s, err := admission.NewSet(members, p, o)
	if err != nil {
		tb.Fatalf("NewSet: %v", err)
	}
	tb.Cleanup(s.Close)
	return s
}

// slogOf returns the logger that writes to j.
func slogOf(j journal) *slog.Logger { return slog.New(j) }

// allow and deny are the policy with one enforced rule of each.
func allow(rule policy.Rule) policy.Policy {
	rule.Name = "a"
	return policy.Policy{Allow: []policy.Rule{rule}}
}

func allowDeny(a, d policy.Rule) policy.Policy {
	p := allow(a)
	d.Name = "d"
	p.Deny = []policy.Rule{d}
	return p
}

// attest runs both steps for ev and returns the last decision.
func attest(tb testing.TB, s *admission.Set, ev *sources.Evidence) policy.Decision {
	tb.Helper()
	if d := s.BeforeChallenge(tb.Context(), ev); d.Outcome != policy.Challenge {
		return d
	}
	return s.AfterChallenge(tb.Context(), sourcetest.Proven(ev))
}

// results returns each answer as source=result.
func results(d policy.Decision) string {
	var all []string
	for _, a := range d.Answers {
		all = append(all, fmt.Sprintf("%s=%s", a.Source, a.Result()))
	}
	return strings.Join(all, " ")
}

// named returns attributes with this name.
func named(n string) sources.Attributes { return sources.Attributes{Name: n} }

func wantStrings(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}
