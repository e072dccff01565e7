package server_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/admission"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// An agent that never answers must not hold its attestation for ever: SPIRE sets
// no limit itself.
func TestAgentThatNeverAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := server.New()
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
		s := honest(t.Context(), t, attestortest.New(t, attestortest.Options{EK: attestor.P256}))
		first := s.recv
		s.recv = func(n int) (*nodeattestorv1.AttestRequest, error) {
			if n == 0 {
				return first(n)
			}
			<-s.Context().Done()
			return nil, s.Context().Err()
		}
		begun := time.Now()
		wantStatus(t, p.Attest(s), codes.DeadlineExceeded, "the challenge was not answered within 1m0s")
		if took := time.Since(begun); took != time.Minute {
			t.Errorf("took %v, want a minute", took)
		}
		if n := p.UnderWay(); n != 0 {
			t.Errorf("%d attestations are under way", n)
		}
	})
}

// 64 agents that leave in the middle leave nothing behind, and the next machine
// is served.
func TestAgentsThatLeave(t *testing.T) {
	metrics := newFakeMetrics()
	p := serve(t, metrics.server())
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p.configure(t, oneHashDir(hashDir(t, tpm)))
	payload := tpm.Payload(t)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			stream, err := p.attestor.Attest(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			if err := stream.Send(payloadMessage(payload)); err != nil {
				t.Error(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Error(err)
			}
			if i%2 == 0 { // half of them close the stream, half just vanish
				_ = stream.CloseSend()
				_, _ = stream.Recv()
			}
		})
	}
	all.Wait()
	metrics.await(t, "tpm.attestation outcome=agent_left", 64)
	if n := p.UnderWay(); n != 0 {
		t.Errorf("%d attestations are under way", n)
	}
	if _, err := p.attestTPM(t, tpm); err != nil {
		t.Error(err)
	}
}

// The codes for streams that end early, wherever they do.
func TestLeft(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	for _, tt := range []struct {
		name string
		at   int
		err  error
		code codes.Code
	}{
		{"before the payload", 0, io.EOF, codes.Canceled},
		{"before the answer", 1, io.EOF, codes.Canceled},
		{"broken", 1, errors.New("broken"), codes.Canceled},
	} {
		p := server.New()
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
		s := honest(t.Context(), t, tpm)
		first := s.recv
		s.recv = func(n int) (*nodeattestorv1.AttestRequest, error) {
			if n == tt.at {
				return nil, tt.err
			}
			return first(n)
		}
		wantStatus(t, p.Attest(s), tt.code, "the stream has ended")
	}
	// The context ends while the server asks the sources: their answers are worth nothing then, and
	// must not be reported as a refusal.
	ctx, cancel := context.WithCancel(t.Context())
	p := server.New()
	canceling := func(context.Context, *sources.Evidence) (sources.Verdict, error) {
		cancel()
		return sources.Verdict{}, nil
	}
	p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", canceling))
	wantStatus(t, p.Attest(honest(ctx, t, tpm)), codes.Canceled, "the stream has ended")
}

// A panic in one attestation ends that attestation alone.
func TestPanics(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	for at := range 2 {
		p := server.New()
		log := &logBuffer{}
		p.SetLogger(log.logger())
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
		s := honest(t.Context(), t, tpm)
		first := s.recv
		s.recv = func(n int) (*nodeattestorv1.AttestRequest, error) {
			if n == at {
				panic("boom")
			}
			return first(n)
		}
		wantStatus(t, p.Attest(s), codes.Internal, "")
		line := log.find(t, "Panic")
		if line["panic"] != "boom" || !strings.Contains(line["stack"].(string), "attest") {
			t.Errorf("the log says %v", line)
		}
		if err := p.Attest(honest(t.Context(), t, tpm)); err != nil || p.UnderWay() != 0 {
			t.Errorf("after a panic: %v, %d under way", err, p.UnderWay())
		}
	}
}

// A limit on the attestations under way keeps memory bounded; a machine above the limit is told to try
// again.
func TestTooManyUnderWay(t *testing.T) {
	p := server.New()
	p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
	p.SetUnderWay(server.MaxUnderWay)
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	wantStatus(t, p.Attest(honest(t.Context(), t, tpm)), codes.Unavailable, "the server is busy")
	p.SetUnderWay(server.MaxUnderWay - 1)
	if err := p.Attest(honest(t.Context(), t, tpm)); err != nil {
		t.Error(err)
	}
}

// A stream that is opened and left silent has no time limit, and takes no place from
// a machine that attests.
func TestSilentStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := server.New()
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
		p.SetUnderWay(server.MaxUnderWay - 1)
		ctx, leave := context.WithCancel(t.Context())
		var silent sync.WaitGroup
		for range 10 {
			s := &memoryStream{ctx: ctx, recv: func(int) (*nodeattestorv1.AttestRequest, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}}
			silent.Go(func() { wantStatus(t, p.Attest(s), codes.Canceled, "the stream has ended") })
		}
		synctest.Wait()
		tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
		if err := p.Attest(honest(t.Context(), t, tpm)); err != nil {
			t.Error(err)
		}
		leave()
		silent.Wait()
	})
}

// Strangers with EKs of their own making, about which only the network could tell, and who
// never answer, take a part of what may be under way and no more: listed machines attest beside
// them.
func TestStrangersThatNeverAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		strange := attestortest.New(t, attestortest.Options{EK: attestor.P256})
		listed := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
		vendors := sourcetest.NewFetchingFake(sourcetest.ListsNot())
		inventory := func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			return sources.Verdict{Listed: ev.EKHash.String() == listed.EKHash()}, nil
		}
		p := server.New()
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("inventory", "vendors"), member("inventory", inventory),
			admission.Member{Name: "vendors", Kind: "fake", Config: 1, Source: vendors})
		p.SetUnderWay(server.MaxUnderWay - server.MaxUnknown - 1) // honest ones
		payload := strange.Payload(t)
		ctx, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var busy atomic.Int64
		for range server.MaxUnknown + 10 {
			s := &memoryStream{ctx: ctx, recv: func(n int) (*nodeattestorv1.AttestRequest, error) {
				if n == 0 {
					return payloadMessage(payload), nil
				}
				<-ctx.Done()
				return nil, ctx.Err()
			}}
			all.Go(func() {
				if err := p.Attest(s); status.Code(err) == codes.Unavailable {
					wantStatus(t, err, codes.Unavailable, "the server is busy")
					busy.Add(1)
				}
			})
		}
		synctest.Wait()
		if n := busy.Load(); n != 10 {
			t.Errorf("%d strangers were told to come again, want 10", n)
		}
		if err := p.Attest(honest(t.Context(), t, listed)); err != nil {
			t.Errorf("a listed machine beside them: %v", err)
		}
		wantStatus(t, p.Attest(honest(t.Context(), t, strange)), codes.Unavailable, "the server is busy")
		leave()
		all.Wait()
		wantStatus(t, p.Attest(honest(t.Context(), t, strange)), codes.PermissionDenied, "not admitted")
	})
}

// Thousands of strangers who wait for a slow source, such as a list on a web server that hangs,
// lock out no machine that a healthy list knows: strangers wait in their own places, and once
// those are taken, further strangers do not wait at all.
func TestSlowListLocksOutNobody(t *testing.T) {
	hang := func(release chan struct{}) sourcetest.Answer {
		return sourcetest.Hangs(release, sourcetest.ListsNot())
	}
	for name, slow := range map[string]func(release chan struct{}) sources.Source{
		"an http list that is polled early and hangs": hangingPoll,
		"a source that hangs": func(release chan struct{}) sources.Source {
			return sourcetest.NewFake(hang(release))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				release := make(chan struct{})
				listed := attestortest.New(t, attestortest.Options{EK: attestor.P256, Number: 1})
				healthy := func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
					return sources.Verdict{Listed: ev.EKHash.String() == listed.EKHash()}, nil
				}
				p := server.New()
				p.Use(t, `hash_path = "/x"`, policy.AnyOf("healthy", "slow"), member("healthy", healthy),
					admission.Member{Name: "slow", Kind: "fake", Config: 1, Source: slow(release)})
				payload := attestortest.New(t, attestortest.Options{EK: attestor.P256}).Payload(t)
				ctx, leave := context.WithCancel(t.Context())
				var all sync.WaitGroup
				for range server.MaxUnderWay {
					s := &memoryStream{ctx: ctx, recv: func(int) (*nodeattestorv1.AttestRequest, error) {
						return payloadMessage(payload), nil
					}}
					all.Go(func() { _ = p.Attest(s) })
				}
				time.Sleep(time.Second) // more than a source may take before it is slow
				if n := p.UnderWay(); n > server.MaxUnknown {
					t.Errorf("%d strangers are waited for", n)
				}
				var admitted atomic.Int64
				var machines sync.WaitGroup
				for range 20 {
					machines.Go(func() {
						if p.Attest(honest(t.Context(), t, listed)) == nil {
							admitted.Add(1)
						}
					})
				}
				machines.Wait()
				if n := admitted.Load(); n != 20 {
					t.Errorf("a listed machine was admitted %d times of 20", n)
				}
				leave()
				all.Wait()
				close(release)
			})
		})
	}
}

// hangingPoll is a list that has loaded once and lists nobody, and whose web server
// hangs from then on.
func hangingPoll(release chan struct{}) sources.Source {
	f := &sourcetest.LoadingFake{When: sources.Schedule{Early: true}}
	loaded := false
	f.OnLoad = func(ctx context.Context) error {
		if !loaded {
			loaded = true
			return nil
		}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return errors.New("the server does not answer")
	}
	return f
}
