package server_test

import (
	"context"
	"errors"
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

// silent is a crowd that sends one payload and never answers its challenge.
type silent struct {
	all   sync.WaitGroup
	leave context.CancelFunc
	busy  atomic.Int64 // how many were told to try again
}

func crowd(t *testing.T, p *server.Plugin, n int, payload []byte) *silent {
	t.Helper()
	s := &silent{}
	ctx, leave := context.WithCancel(t.Context())
	s.leave = leave
	// A wave is smaller than the number of machines that may send the largest payload at once, or that the
	// server may ask the sources about at once: otherwise it depends on this computer how many must try again.
	const wave = 25
	for i := range n {
		if i%wave == 0 {
			synctest.Wait()
		}
		stream := &memoryStream{ctx: ctx, recv: func(n int) (*nodeattestorv1.AttestRequest, error) {
			if n == 0 {
				return payloadMessage(payload), nil
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		s.all.Go(func() {
			if err := p.Attest(stream); status.Code(err) == codes.Unavailable {
				s.busy.Add(1)
			}
		})
	}
	synctest.Wait()
	return s
}

// end makes the crowd leave.
func (s *silent) end() {
	s.leave()
	s.all.Wait()
}

// fatWorld is a plugin with a list of machines and a source that needs certificates, and a
// stranger and a listed machine that send as many certificates as a server takes.
type fatWorld struct {
	*server.Plugin
	stranger, listed *attestortest.TPM
	ca               *attestortest.CA
	payloads         map[*attestortest.TPM][]byte
	incomplete       atomic.Int64 // how often the second source missed certificates
}

func newFatWorld(t *testing.T, policy policy.Policy) *fatWorld {
	t.Helper()
	w := &fatWorld{
		Plugin:   server.New(),
		ca:       attestortest.NewCA(t, "vendor"),
		payloads: map[*attestortest.TPM][]byte{},
	}
	w.stranger = attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: w.ca})
	w.listed = attestortest.New(t, attestortest.Options{EK: attestor.P256, CA: w.ca, Number: 1})
	for _, tpm := range []*attestortest.TPM{w.stranger, w.listed} {
		w.payloads[tpm] = tpm.FatPayload(t, w.ca)
	}
	inventory := func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		return sources.Verdict{Listed: ev.EKHash.String() == w.listed.EKHash()}, nil
	}
	vendors := sourcetest.NewFetchingFake(func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
		if ev.Incomplete || len(ev.Certificate) == 0 || len(ev.Chain) == 0 {
			w.incomplete.Add(1)
			return sources.Verdict{}, errors.New("the certificates were not kept")
		}
		return sources.Verdict{}, nil
	})
	w.Use(t, `hash_path = "/x"`, policy, member("inventory", inventory),
		admission.Member{Name: "vendors", Kind: "fake", Config: 1, Source: vendors})
	return w
}

// attest attests by an honest agent, with a payload as large as a server takes.
func (w *fatWorld) attest(t *testing.T, tpm *attestortest.TPM) error {
	t.Helper()
	s := honest(t.Context(), t, tpm)
	answer := s.recv
	s.recv = func(n int) (*nodeattestorv1.AttestRequest, error) {
		if n == 0 {
			return payloadMessage(w.payloads[tpm]), nil
		}
		return answer(n)
	}
	return w.Attest(s)
}

// Strangers that send 40 KiB of certificates each and never answer would hold 40 MB of memory
// for a minute. They may hold 4 MiB. The server tells further strangers to try again, but no machine
// that a source lists, whatever it sends.
func TestStrangersWithFatChains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFatWorld(t, policy.AnyOf("inventory", "vendors"))
		const agents = 500
		strangers := crowd(t, w.Plugin, agents, w.payloads[w.stranger])
		if held := w.Held(); held > 4<<20 || held < 3<<20 {
			t.Errorf("%d bytes are held for strangers", held)
		}
		if n := agents - strangers.busy.Load(); n < 75 || n > 150 {
			t.Errorf("%d strangers are waited for", n)
		}
		wantStatus(t, w.attest(t, w.stranger), codes.Unavailable, "the server is busy")
		if err := w.attest(t, w.listed); err != nil {
			t.Errorf("a listed machine beside them: %v", err)
		}
		strangers.end()
		wantStatus(t, w.attest(t, w.stranger), codes.PermissionDenied, "not admitted")
		if held := w.Held(); held != 0 {
			t.Errorf("%d bytes are held for nobody", held)
		}
	})
}

// An EK is no secret. Whoever knows the EK of one listed machine, and holds thousands of
// challenges in its name with as many certificates as a server takes, fills no memory and keeps
// no machine out that is listed by its hash alone. A source that needs certificates then says
// that it cannot tell, and never that a machine has none.
func TestOneListedEKWithFatChains(t *testing.T) {
	for name, tt := range map[string]struct {
		policy policy.Policy
		code   codes.Code
	}{
		"a list decides":         {policy.AnyOf("inventory", "vendors"), codes.OK},
		"certificates would":     {requiring("inventory", "vendors"), codes.Unavailable},
		"a deny rule needs them": {denying("inventory", "vendors"), codes.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newFatWorld(t, tt.policy)
				copies := crowd(t, w.Plugin, 500, w.payloads[w.listed])
				if held := w.Held(); held > 8<<20 || held < 7<<20 {
					t.Errorf("%d bytes are held for copies", held)
				}
				if n := copies.busy.Load(); n != 0 {
					t.Errorf("%d copies were told to come again", n)
				}
				if err := w.attest(t, w.listed); status.Code(err) != tt.code {
					t.Errorf("the listed machine beside them: %v", err)
				}
				if tt.code != codes.OK && w.incomplete.Load() == 0 {
					t.Error("nobody missed the certificates")
				}
				copies.end()
			})
		})
	}
}

// A list hangs, and strangers with as many certificates as a server takes wait for it: these
// count as the strangers'. A machine that no list knows, but another source knows by its
// certificate, keeps its certificates meanwhile, and so it is admitted.
func TestCertificatesBesideStrangersWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFatWorld(t, policy.AnyOf("inventory", "vendors"))
		vendors := func(_ context.Context, ev *sources.Evidence) (sources.Verdict, error) {
			if ev.Incomplete {
				return sources.Verdict{}, errors.New("the certificates were not kept")
			}
			return sources.Verdict{Listed: ev.EKHash.String() == w.listed.EKHash()}, nil
		}
		w.Use(t, `hash_path = "/x"`, policy.AnyOf("slow", "certified"), member("slow", hangs), member("certified", vendors))
		waiting := crowd(t, w.Plugin, 150, w.payloads[w.stranger])
		time.Sleep(time.Second) // the list is slow from then on
		synctest.Wait()
		if held := w.Asked(); held != 0 {
			t.Errorf("%d bytes are held as if nobody waited", held)
		}
		if held := w.Held(); held > 4<<20 || held < 3<<20 {
			t.Errorf("%d bytes are held for strangers", held)
		}
		if err := w.attest(t, w.listed); err != nil {
			t.Errorf("a machine that no list knows: %v", err)
		}
		waiting.end()
		if held := w.Held(); held != 0 {
			t.Errorf("%d bytes are held for nobody", held)
		}
	})
}

// hangs is a source that does not answer.
func hangs(ctx context.Context, _ *sources.Evidence) (sources.Verdict, error) {
	<-ctx.Done()
	return sources.Verdict{}, ctx.Err()
}

// Copies of a listed machine that wait for the hanging list of a deny rule count with machines
// that answer their challenge, and take nothing from machines that do not wait.
func TestCertificatesOfListedMachinesThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFatWorld(t, policy.AnyOf("inventory", "vendors"))
		w.Use(t, `hash_path = "/x"`, denying("owned", "slow"), member("slow", hangs),
			member("owned", sourcetest.Lists(sources.Attributes{})))
		copies := crowd(t, w.Plugin, 150, w.payloads[w.listed])
		time.Sleep(time.Second)
		synctest.Wait()
		if asked, held := w.Asked(), w.Held(); asked != 0 || held < 3<<20 {
			t.Errorf("%d bytes are held as if nobody waited, of %d", asked, held)
		}
		copies.end()
		if held := w.Held(); held != 0 {
			t.Errorf("%d bytes are held for nobody", held)
		}
	})
}

// requiring is a policy that admits a TPM which all of these sources list.
func requiring(all ...string) policy.Policy {
	return policy.Policy{Allow: []policy.Rule{{Name: "all", All: all}}}
}

// denying is a policy by which one source admits and another one denies.
func denying(allow, deny string) policy.Policy {
	p := policy.AnyOf(allow)
	p.Deny = []policy.Rule{{Name: "deny", Any: []string{deny}}}
	return p
}

// An honest machine's certificate and keys need no budget: a fleet whose machines send no
// chain is not kept out by those that do.
func TestHonestCertificatesNeedNoBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newFatWorld(t, policy.AnyOf("inventory", "vendors"))
		machines := crowd(t, w.Plugin, 100, w.stranger.Payload(t))
		if held := w.Held(); held != 0 {
			t.Errorf("%d bytes are held", held)
		}
		machines.end()
	})
}
