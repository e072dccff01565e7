package server

import (
	"testing"

	configv1 "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/spire-tpm/spire-tpm-attestor/server/config"
	"github.com/spire-tpm/spire-tpm-attestor/sources/policy"
)

// A mistake that only package admission finds must be a status as well.
func TestStartRefuses(t *testing.T) {
	c, err := config.Parse(`hash_path = "/x"`, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	c.Policy = policy.Policy{}
	_, err = New().start(t.Context(), c, nil)
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v, want InvalidArgument", err)
	}
}

// A panic in a configuration's code must not end a plugin that serves.
func TestPanicInConfigure(t *testing.T) {
	p := New()
	p.loader = nil
	if _, err := p.Configure(t.Context(), &configv1.ConfigureRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("Configure: %v, want Internal", err)
	}
	if _, err := p.Validate(t.Context(), &configv1.ValidateRequest{}); status.Code(err) != codes.Internal {
		t.Errorf("Validate: %v, want Internal", err)
	}
}
