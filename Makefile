# What each target does: make help

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

MODULE  := github.com/spire-tpm/spire-tpm-attestor
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

# The TPM simulator needs cgo. Only tests use it, behind this tag.
TESTFLAGS ?= -tags simulator
FUZZTIME  ?= 10s
# Tests wait for servers and TPMs, so more packages are tested at once than there are processors.
ATONCE    ?= $(shell echo $$(($$(nproc) * 2)))
COUNT     ?= 6
BENCH     ?= .
PKG       ?= ./...
AGENTS    ?= 1000

##@ To use it

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: need-go ## static binaries in bin/: tpm-attestor-server, tpm-attestor-agent and tpm-attestor
	@CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ \
		./cmd/tpm-attestor ./cmd/tpm-attestor-server ./cmd/tpm-attestor-agent
	@echo "built tpm-attestor-server, tpm-attestor-agent and tpm-attestor in bin/, version $(VERSION)"

.PHONY: demo
demo: build ## a real SPIRE server and agent with a software TPM (KEEP=1: leave them running)
	@e2e/install.sh demo
	@set -e; spire=$$(e2e/spire.sh); mkdir -p .cache; \
	(cd e2e && go build -o ../.cache/demo ./demo); \
	SPIRE_DIR="$$spire" PLUGIN_DIR=bin exec .cache/demo $(if $(KEEP),-keep)

.PHONY: demo-stop
demo-stop: need-go ## end a demo that KEEP=1 has left running
	@mkdir -p .cache && (cd e2e && go build -o ../.cache/demo ./demo) && .cache/demo -stop

##@ To test it

.PHONY: test
test: test-packages ## unit, conformance, plugin and TPM tests
	go test -p $(ATONCE) $(TESTFLAGS) ./...

.PHONY: e2e
e2e: build test-packages ## tests with a real SPIRE server and agent
	@set -e; spire=$$(e2e/spire.sh); cd e2e; \
	SPIRE_DIR="$$spire" PLUGIN_DIR="$(CURDIR)/bin" go test -count=1 -timeout 10m ./...

.PHONY: race
race: test-packages ## all tests but e2e under the race detector, with fewer rounds of what is repeated
	GORACE="atexit_sleep_ms=10 $$GORACE" go test -race -short -p $(ATONCE) $(TESTFLAGS) ./...

.PHONY: fuzz
fuzz: test-packages ## every fuzz target for FUZZTIME (10s)
	@.ci/fuzz $(FUZZTIME) $(TESTFLAGS)

.PHONY: bench
bench: test-packages ## every benchmark COUNT (6) times, into .cache/bench (BENCH=regexp PKG=./...)
	@.ci/bench run '$(BENCH)' '$(PKG)' '$(COUNT)'

.PHONY: bench-compare
bench-compare: test-packages ## the benchmarks here against those of another commit (BASE=HEAD)
	@.ci/bench compare '$(BENCH)' '$(PKG)' '$(COUNT)' '$(or $(BASE),HEAD)'

.PHONY: storm
storm: build ## attestations a second and their cost in a real SPIRE under AGENTS (1000) machines, beside x509pop
	@set -e; spire=$$(e2e/spire.sh); cd e2e; \
	SPIRE_DIR="$$spire" PLUGIN_DIR="$(CURDIR)/bin" go test -count=1 -timeout 30m -v \
		-run '^TestStormOfAgents$$' . -storm.agents=$(AGENTS)

##@ To change it

.PHONY: fmt
fmt: need-go ## format the code
	@"$$(.ci/tools-dir)"/gofumpt -w $$(git ls-files -co --exclude-standard '*.go')

.PHONY: lint
lint: lint-packages ## formatting, go vet, golangci-lint, and shellcheck where there is one
	@.ci/lint

.PHONY: tidy-check
tidy-check: need-go ## are the go.mod and go.sum of all modules tidy?
	@.ci/tidy-check

.PHONY: check
check: ## all that CI runs, save what needs real EK certificates where there are none
	@.ci/run local

.PHONY: clean
clean: ## remove what was built here (the caches outside stay)
	rm -rf bin dist .cache coverage.out

##@ To release it

.PHONY: packages
packages: need-go ## deb, rpm, archives, images without a shell and SHA256SUMS, in dist/ (ARCHS="amd64 arm64")
	@rm -rf dist && packaging/build dist

.PHONY: release
release: need-go ## the same, and the image with a shell, whose busybox comes from Debian by apt
	@rm -rf dist && BUSYBOX="$$(packaging/busybox amd64 arm64)" packaging/build dist

.PHONY: try-packages
try-packages: need-go ## install, use, change over and back, in a new Debian (needs root, mmdebstrap, a mirror)
	@packaging/try/packages

.PHONY: try-charts
try-charts: need-go ## the configurations that Helm charts render, with the images (needs root; CHARTS=FOLDER)
	@packaging/try/charts "$(CHARTS)"

# Installs by apt what a target needs, before the target runs.
.PHONY: test-packages lint-packages
test-packages lint-packages: %-packages: need-go
	@e2e/install.sh $*

.PHONY: need-go
need-go:
	@.ci/need-go
