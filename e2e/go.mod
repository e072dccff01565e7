// End-to-end tests and the demo: the plugins inside a real SPIRE server and agent, with a software
// TPM. A module of its own, so that what it needs is nothing the plugins depend on.
module github.com/spire-tpm/spire-tpm-attestor/e2e

go 1.26.0

require (
	github.com/google/go-tpm v0.9.8
	github.com/spiffe/go-spiffe/v2 v2.8.1
	github.com/spiffe/spire-api-sdk v1.15.3
	github.com/spire-tpm/spire-tpm-attestor v0.0.0
	golang.org/x/sys v0.48.0
	google.golang.org/grpc v1.85.0
)

require (
	github.com/Microsoft/go-winio v0.6.2 // indirect
	github.com/go-jose/go-jose/v4 v4.1.4 // indirect
	github.com/go-json-experiment/json v1.27.2 // indirect
	github.com/hanwen/go-fuse/v2 v2.12.1 // indirect
	golang.org/x/crypto v0.57.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace github.com/spire-tpm/spire-tpm-attestor => ../
