// A spire-tpm-plugin server that was built with go-attestation before v0.6.0, as far as its protocol
// goes. A module of its own, so that no requirement of the plugins moves that version.
// certificate-transparency-go is newer than go-attestation asks for: it requires little itself.
module github.com/spire-tpm/spire-tpm-attestor/e2e/incumbent

go 1.26.0

require github.com/google/go-attestation v0.5.1

require (
	github.com/google/certificate-transparency-go v1.3.3 // indirect
	github.com/google/go-tpm v0.9.0 // indirect
	github.com/google/go-tspi v0.3.0 // indirect
	golang.org/x/crypto v0.48.0 // indirect
	golang.org/x/sys v0.41.0 // indirect
)
