# edgehost: `make demo` shows it, `make test` proves it with Go alone, `make
# check` is what a change must pass, `make conformance` meets real peers.

GO        ?= go
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
GOFLAGS   := -trimpath -buildvcs=false
CACHE     := .cache
DEMO_ARGS ?=

# Tools, pinned. They are built from source into $(CACHE).
GOLANGCI_VERSION := v2.15.0
GOLANGCI         := $(CACHE)/golangci-lint-$(GOLANGCI_VERSION)

# The suites against real peers; each has conformance/install-<name>.sh.
CONFORMANCE := $(patsubst conformance/install-%.sh,%,$(wildcard conformance/install-*.sh))

export CGO_ENABLED ?= 0

.PHONY: build demo test check lint vet generated spectest race conformance conformance-smoke bench bench-wasm bench-sources clean

build: ## one static binary
	$(GO) build $(GOFLAGS) -ldflags '$(LDFLAGS)' -o bin/edgehost .

demo: build ## a simulated plant, end to end, in a temporary folder
	bin/edgehost demo $(DEMO_ARGS)

test: ## everything that needs nothing but Go
	$(GO) test $(GOFLAGS) -timeout 15m ./...

check: lint vet generated spectest race ## what a change must pass

lint: $(GOLANGCI)
	$(GOLANGCI) run ./...

$(GOLANGCI):
	mkdir -p $(CACHE)
	GOBIN=$(abspath $(CACHE)) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_VERSION)
	mv $(CACHE)/golangci-lint $@

vet:
	$(GO) vet $(GOFLAGS) ./...
	$(GO) vet $(GOFLAGS) -tags conformance ./...

generated: ## go.mod is tidy and every generated file is what its source makes
	$(GO) mod tidy -diff
	$(GO) generate ./...
	git diff --exit-code

spectest: ## the WebAssembly specification's test suite, plain against metered
	$(GO) test $(GOFLAGS) -tags spectest -run Spec ./host/sandbox/meter

race:
	conformance/ensure.sh gcc
	CGO_ENABLED=1 $(GO) test $(GOFLAGS) -race -timeout 15m ./...

conformance: $(addprefix conformance-,$(CONFORMANCE)) ## every suite against real peers, whole

conformance-smoke: build ## the quick part of every suite, at most 15 minutes
	@for s in $(CONFORMANCE); do \
	  echo "-- $$s"; CONFORMANCE=smoke conformance/install-$$s.sh && \
	  $(GO) test $(GOFLAGS) -tags conformance -count=1 -timeout 15m -run 'TestSmoke' $$(cat conformance/$$s.packages) || exit 1; \
	done

conformance-%: build
	conformance/install-$*.sh
	$(GO) test $(GOFLAGS) -tags conformance -count=1 -timeout 60m -v $$(cat conformance/$*.packages)

bench: bench-wasm ## JSON lines; exits 1 when a gate fails

bench-wasm: ## the sandbox beside native Go, Extism and go-plugin
	conformance/install-wasm.sh
	cd bench/wasm && $(GO) run $(GOFLAGS) .

bench-sources: ## sources against bare libraries and C clients; needs the peers of conformance
	conformance/install-modbus.sh
	conformance/install-mqtt.sh
	conformance/install-opcua.sh
	$(GO) run $(GOFLAGS) ./bench/sources

clean:
	rm -rf bin $(CACHE)
