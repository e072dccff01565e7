package server_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	nodeattestorv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"

	"github.com/spire-tpm/spire-tpm-attestor/attestor"
	"github.com/spire-tpm/spire-tpm-attestor/attestor/attestortest"
	"github.com/spire-tpm/spire-tpm-attestor/server"
	"github.com/spire-tpm/spire-tpm-attestor/sources"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
	"github.com/spire-tpm/spire-tpm-attestor/sources/sourcetest"
)

// The limit of gRPC is that of a configuration. A message of an agent that is longer than
// its own limit is refused by the size in front of it, before a byte of it is kept: a
// thousand agents would otherwise send a gigabyte. If gRPC's transport ever hides the size,
// the message is too long for the verifier, which says so in other words.
func TestMessagesAreRefusedByTheirSize(t *testing.T) {
	tpm := attestortest.New(t, attestortest.Options{EK: attestor.P256})
	p := serve(t)
	p.configure(t, oneHashDir(hashDir(t, tpm)))
	_, err := p.attest(t, make([]byte, attestor.MaxPayloadSize+100), nil)
	wantStatus(t, err, codes.InvalidArgument, "the message is too long: ")
	_, err = p.attest(t, tpm.Payload(t), func([]byte) []byte { return make([]byte, attestor.MaxResponseSize+100) })
	wantStatus(t, err, codes.InvalidArgument, "the message is too long: ")
	// As long as is allowed, which the verifier judges.
	_, err = p.attest(t, make([]byte, attestor.MaxPayloadSize), nil)
	wantStatus(t, err, codes.InvalidArgument, "payload: ")
	if _, err = p.attest(t, tpm.Payload(t), func(c []byte) []byte { return tpm.Answer(t, c) }); err != nil {
		t.Error(err)
	}
	if n := p.Arriving(); n != 0 {
		t.Errorf("%d bytes are counted as arriving", n)
	}
}

// A stream that is opened and sends nothing ends by itself, and takes no place of the
// machines that attest.
func TestStreamThatSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := server.New()
		p.Use(t, `hash_path = "/x"`, policy.AnyOf("x"), member("x", sourcetest.Lists(sources.Attributes{})))
		ctx, cancel := context.WithCancel(t.Context())
		s := &memoryStream{ctx: ctx, recv: func(int) (*nodeattestorv1.AttestRequest, error) {
			if n := p.UnderWay(); n != 0 {
				t.Errorf("%d attestations are under way", n)
			}
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		begun := time.Now()
		wantStatus(t, p.Attest(s), codes.DeadlineExceeded, "the payload did not come within 1m0s")
		if took := time.Since(begun); took != time.Minute {
			t.Errorf("took %v, want a minute", took)
		}
		cancel()
		synctest.Wait()
	})
}
