package server_test

import (
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// A source that cannot tell admits nobody and clears nobody, and the agent is
// told to try again.
func TestSourcesThatCannotTell(t *testing.T) {
	eio := sourcetest.Fails(&errno{syscall.EIO})
	listed, not := sourcetest.Lists(sources.Attributes{}), sourcetest.ListsNot()
	allow := policy.Policy{Allow: []policy.Rule{{Name: "a", All: []string{"x"}}}}
	deny := policy.Policy{Allow: allow.Allow, Deny: []policy.Rule{{Name: "d", Any: []string{"y"}}}}
	either := policy.AnyOf("x", "y")
	all := policy.Policy{Allow: []policy.Rule{{Name: "a", All: []string{"x", "y"}}}}
	for _, tt := range []struct {
		name   string
		policy policy.Policy
		x, y   sourcetest.Answer
		code   codes.Code
	}{
		{"an allowlist fails", allow, eio, nil, codes.Unavailable},
		{"an allowlist panics", allow, sourcetest.Panics("boom"), nil, codes.Unavailable},
		{"an allowlist hangs", allow, sourcetest.Waits(), nil, codes.Unavailable},
		{"a denylist fails", deny, listed, eio, codes.Unavailable},
		{"a denylist fails for a stranger", deny, not, eio, codes.PermissionDenied},
		{"a denylist lists", deny, listed, listed, codes.PermissionDenied},
		{"a denylist does not", deny, listed, not, codes.OK},
		{"one of two fails", either, listed, eio, codes.OK},
		{"the one that matters fails", either, not, eio, codes.Unavailable},
		{"one of all fails", all, listed, eio, codes.Unavailable},
		{"one of all does not list", all, not, eio, codes.PermissionDenied},
		{"asked again after the challenge", allow, sourcetest.NeedsChallenge(listed), nil, codes.OK},
		{"refused after the challenge", allow, sourcetest.NeedsChallenge(not), nil, codes.PermissionDenied},
		{"unsure after the challenge", allow, sourcetest.NeedsChallenge(eio), nil, codes.Unavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := server.New()
				log := &logBuffer{}
				p.SetLogger(log.logger())
				members := []admission.Member{member("x", tt.x)}
				if tt.y != nil {
					members = append(members, member("y", tt.y))
				}
				p.Use(t, `hash_path = "/x"`, tt.policy, members...)
				s := honest(t.Context(), t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))
				begun := time.Now()
				err := p.Attest(s)
				wantStatus(t, err, tt.code, "")
				if (s.attributes != nil) != (tt.code == codes.OK) {
					t.Errorf("attributes: %v", s.attributes)
				}
				if took := time.Since(begun); took > 5*time.Second {
					t.Errorf("took %v, more than check_timeout", took)
				}
				if tt.code != codes.OK && strings.Contains(err.Error(), "boom") {
					t.Errorf("the agent learns what only the log should say: %v", err)
				}
			})
		})
	}
}

type errno struct{ error }

// If the server of a mount has gone, a thousand attestations get their answer within the
// deadline, and few goroutines are stuck.
func TestHungSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		fake := sourcetest.NewFake(sourcetest.Hangs(release, sourcetest.ListsNot()))
		p := server.New()
		hung := admission.Member{Name: "x", Kind: "fake", Config: 1, Source: fake}
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), hung)
		tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
		begun := time.Now()
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				wantStatus(t, p.Attest(honest(t.Context(), t, tpm)), codes.Unavailable, "cannot tell right now")
			})
		}
		all.Wait()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
		if _, stuck, _ := fake.Calls(); stuck > 64 {
			t.Errorf("%d goroutines are stuck", stuck)
		}
		close(release)
	})
}
