package httplist_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/httplist"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web"
	"github.com/spire-tpm/spire-tpm-attestor/sources/list/web/webtest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// admits makes a Set of one source, which admits.
func admits(t *testing.T, cfg httplist.Config) *admission.Set {
	t.Helper()
	member := admission.Member{Name: "inventory", Kind: "http", Config: cfg, Source: newSource(t, cfg)}
	set, err := admission.NewSet([]admission.Member{member}, policy.AnyOf("inventory"), admission.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(set.Close)
	set.Start(t.Context(), nil)
	return set
}

func outcome(t *testing.T, set *admission.Set, name string) policy.Outcome {
	t.Helper()
	return set.BeforeChallenge(t.Context(), webtest.Machine(name)).Outcome
}

// A machine that was listed a moment ago is not turned away for the time of a
// poll, and strangers cause a few polls and no more.
func TestEarlyRefreshInASet(t *testing.T) {
	o := webtest.NewServer(t, nil)
	cfg := configFor(o)
	cfg.PollInterval = time.Hour
	o.Answer(http.StatusOK, webtest.List("", "one"))
	set := admits(t, cfg)
	o.Answer(http.StatusOK, webtest.List("", "one", "two"))
	if got := outcome(t, set, "two"); got != policy.Challenge {
		t.Errorf("a machine that was just listed: %v", got)
	}
	for range 100 {
		if got := outcome(t, set, "stranger"); got != policy.Refused {
			t.Fatalf("a stranger: %v", got)
		}
	}
	if n := o.Requests(); n > 1+3 {
		t.Errorf("%d requests, want 4 at most", n)
	}
}

// A server that is down from the start leaves machines with "try again", which
// agents do, and never with "refused", after which they give up.
func TestNoListInASet(t *testing.T) {
	o := webtest.NewServer(t, nil)
	o.Answer(http.StatusNotFound, "")
	set := admits(t, configFor(o))
	if got := outcome(t, set, "one"); got != policy.Unavailable {
		t.Errorf("without a list: %v", got)
	}
}

// A restart while the server is down admits the fleet, and still no stranger.
func TestRestartInASet(t *testing.T) {
	cfg, o, _ := cached(t, "")
	o.Close()
	begun := time.Now()
	set := admits(t, cfg)
	if got := outcome(t, set, "one"); got != policy.Challenge {
		t.Errorf("a listed machine: %v", got)
	}
	if got := outcome(t, set, "stranger"); got != policy.Refused {
		t.Errorf("a stranger: %v", got)
	}
	if d := time.Since(begun); d >= web.DefaultTimeout {
		t.Errorf("it took %v", d)
	}
}
