# The two commands that matter: `make demo` and `make test`.
# Every target installs what it needs (as root on Debian or Ubuntu), or says
# in one line what to install.

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.7.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@latest

.PHONY: build demo demo-clean test chaos faults lint bench package package-try fmt docs clean

build: ## the two executables, into bin/
	@scripts/need go
	@echo "building bin/kiln and bin/kilnd (a cold compile takes about 3 minutes on two cores)"
	@mkdir -p bin
	$(GOBUILD) -o bin/ ./cmd/kiln ./cmd/kilnd

demo: build ## the main job in front of your eyes, ending with a URL that answers
	@scripts/need runtime
	@mkdir -p bin && $(GOBUILD) -o bin/kload ./test/kload
	@scripts/demo

demo-clean: ## ends the demo and removes all that it made
	@scripts/demo clean

test: ## all tests; as root also those that need a real runtime and network
	@scripts/need go runtime test
	@scripts/test

TIME ?= $(or $(KILN_CHAOS_TIME),10m)
SEED ?= 0

chaos: ## random kills, freezes, tampering and full disks under load: make chaos TIME=60s SEED=7
	@scripts/need go runtime
	@mkdir -p bin
	@go build -o bin/chaos ./test/chaos
	@bin/chaos -time $(TIME) -seed $(SEED) -json bin/chaos.json

faults: ## every label of the journal with every fault, on the real machine
	@scripts/need go runtime test
	KILN_TEST_ROOT=1 KILN_FAULTS=all go test -count=1 -timeout 60m -v ./test/fault

bench: build ## the bars, as ratios within one run
	@scripts/need runtime bench
	@go run ./test/bench $(BENCH)

package: ## a Debian package, into bin/package/
	@scripts/need go
	@scripts/package

package-try: package ## installs, upgrades, removes and purges it in a throw-away Debian
	@scripts/need package
	@scripts/try-package

lint: ## formatting, vet, the linters of .golangci.yml, known vulnerabilities
	@scripts/need go
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go run $(GOLANGCI) run ./...
	go run $(GOVULNCHECK) ./...

fmt:
	gofmt -w $$(git ls-files '*.go')

clean:
	rm -rf bin
