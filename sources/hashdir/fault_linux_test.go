package hashdir_test

import (
	"errors"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir"
	"github.com/spire-tpm/spire-tpm-attestor/sources/hashdir/hashdirtest"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

func newSource(t testing.TB, dir string) *hashdir.Source {
	t.Helper()
	s, err := hashdir.New(hashdir.Config{Path: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestBrokenDisk stops errors of a file system from passing for "not listed".
func TestBrokenDisk(t *testing.T) {
	known, unknown := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
	mount := hashdirtest.MountFault(t, map[string]string{known.EKHash.String(): `{"name": "a"}`})
	s := newSource(t, mount.Dir)
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ESTALE, syscall.EACCES, syscall.ETIMEDOUT, syscall.EAGAIN} {
		mount.Fail(errno)
		for _, ev := range []*sources.Evidence{known, unknown} {
			if v, err := s.Check(t.Context(), ev); !errors.Is(err, errno) || v.Listed {
				t.Errorf("with %v: Check says %v, %v", errno, v, err)
			}
		}
	}
	mount.Heal()
	if v, err := s.Check(t.Context(), known); err != nil || !v.Listed || v.Attributes.Name != "a" {
		t.Errorf("healthy again: Check says %v, %v", v, err)
	}
	if v, err := s.Check(t.Context(), unknown); err != nil || v.Listed {
		t.Errorf("healthy again: Check of an unknown TPM says %v, %v", v, err)
	}
}

// TestHungMount stops a mount that hangs from delaying attestations beyond their deadline, and
// from leaving a goroutine for each: a thousand at once get "cannot tell", and the source
// answers again when the mount does.
func TestHungMount(t *testing.T) {
	const (
		evaluations = 1000
		slots       = 16
		timeout     = 500 * time.Millisecond
	)
	ev := sourcetest.NewEvidence(t)
	mount := hashdirtest.MountFault(t, map[string]string{ev.EKHash.String(): ""})
	rules := policy.Policy{Allow: []policy.Rule{{Name: "listed", All: []string{"factory"}}}}
	member := admission.Member{Name: "factory", Kind: "hash_dir", Source: newSource(t, mount.Dir)}
	set, err := admission.NewSet([]admission.Member{member}, rules, admission.Options{CheckTimeout: timeout, Slots: slots})
	if err != nil {
		t.Fatal(err)
	}
	set.Start(t.Context(), nil)
	defer set.Close()
	decide := func() policy.Outcome { return set.BeforeChallenge(t.Context(), ev).Outcome }
	if got := decide(); got != policy.Challenge {
		t.Fatalf("healthy: decides %v, want %v", got, policy.Challenge)
	}

	before := runtime.NumGoroutine()
	mount.Hang()
	start := time.Now()
	var wg sync.WaitGroup
	for range evaluations {
		wg.Go(func() {
			if got := decide(); got != policy.Unavailable {
				t.Errorf("hung: decides %v, want %v", got, policy.Unavailable)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 30*timeout { // in turns it would be 62
		t.Errorf("hung: %d evaluations with a deadline of %v took %v", evaluations, timeout, took)
	}
	if n := set.Status()[0].Stuck; n == 0 || n > slots {
		t.Errorf("hung: %d checks are stuck, want 1 to %d", n, slots)
	}
	// Each stuck check is one goroutine here and one in the file system.
	for begun := time.Now(); runtime.NumGoroutine()-before > 3*slots; runtime.Gosched() {
		if time.Since(begun) > time.Minute {
			t.Fatalf("hung: %d goroutines more than before", runtime.NumGoroutine()-before)
		}
	}

	mount.Heal()
	for decide() != policy.Challenge {
		if time.Since(start) > 3*time.Minute {
			t.Fatal("healthy again: still no answer")
		}
	}
}

// TestUnmounted stops a file system that is not mounted from passing for an empty list, and a
// source from keeping a file system mounted.
func TestUnmounted(t *testing.T) {
	known, unknown := sourcetest.NewEvidence(t), sourcetest.NewEvidence(t)
	mount := hashdirtest.MountFault(t, map[string]string{known.EKHash.String(): "", ".mounted": ""})
	s, err := hashdir.New(hashdir.Config{Path: mount.Dir, Marker: ".mounted"})
	must(t, err)
	if v, err := s.Check(t.Context(), known); err != nil || !v.Listed {
		t.Errorf("mounted: Check says %v, %v", v, err)
	}
	if v, err := s.Check(t.Context(), unknown); err != nil || v.Listed {
		t.Errorf("mounted: Check of an unknown TPM says %v, %v", v, err)
	}
	mount.Unmount()
	for _, ev := range []*sources.Evidence{known, unknown} {
		if v, err := s.Check(t.Context(), ev); err == nil {
			t.Errorf("not mounted: Check says %v", v)
		}
	}
}
