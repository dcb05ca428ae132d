# What people and CI run. `make` lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c

GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The commit's, in UTC: the time of the build would make every build another program.
DATE := $(shell TZ=UTC0 git show -s --format=%cd --date=format-local:%Y-%m-%dT%H:%M:%SZ HEAD 2>/dev/null || echo unknown)
# The page and its tests need Node 20; everything else works without.
NODE := $(and $(shell command -v npm),$(shell node -p 'parseInt(process.version.slice(1)) >= 20 || ""' 2>/dev/null))
FUZZTIME ?= 100000x

export GO

# The page and the keeper are embedded, so they are built before the program.
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: web build ## run everything in one process on this machine, and open a shell in the browser
	@exec bin/termgw demo $(DEMO_ARGS)

.PHONY: keeper
keeper: # the program that holds terminals on instances
	@scripts/keeper

.PHONY: build
build: keeper ## build bin/termgw, with the page in it when `make web` has built one
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o bin/termgw \
		-ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)' ./cmd/termgw

.PHONY: image
image: ## build the images termgw:VERSION, and termgw:VERSION-slim without the AWS CLI
	docker build $(image_args) -t termgw:$(VERSION)-slim --target slim .
	docker build $(image_args) -t termgw:$(VERSION) .

image_args = --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg DATE=$(DATE)

.PHONY: dist
dist: web ## build the files of a release into dist/: the program for two architectures, the npm package, checksums
	@VERSION=$(VERSION) COMMIT=$(COMMIT) DATE=$(DATE) scripts/dist

.PHONY: web
ifneq ($(NODE),)
web: web/dist/index.html ## build the page into web/dist (needs Node)
	@:
else
web:
	@echo 'web: skipped, needs Node 20 or newer with npm: https://nodejs.org/' >&2; [[ $${TERMGW_TEST_REQUIRE-} != 1 ]]
endif

# Nothing is written when nothing has changed: what is embedded may be read at the same time. The build writes this file last.
web/dist/index.html: web/node_modules/.package-lock.json web/build.mjs $(wildcard web/page/*.* web/client/*.*)
	@cd web && npm run --silent build
	@touch $@

# npm writes this file last.
web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

.PHONY: test
test: export phases = $(test_phases)
test: ## run the tests; what this machine lacks is installed as root, or skipped by name
	@exec scripts/phases test test-go <<<"$$phases"

# A target, and those that it needs. The upper ones start first.
define test_phases
setup:
web:
keeper:
test-go: setup web keeper
build: web keeper
test-web: setup web build
test-bench: setup web
endef

# Most tests wait: two packages at a time keep two processors busy. The longest come first: none is left alone at the end.
# With the race detector, and the page's tests beside it, one at a time does.
packages = ./cmd/termgw ./pkg/runner/instance ./pkg/runner/docker ./pkg/store ./...

.PHONY: test-go
test-go:
	@scripts/go-test -p 2 -timeout 40m $(packages)

.PHONY: quick
quick: export phases = $(quick_phases)
quick: ## the linters and the tests that need no daemon, in less than a minute
	@exec scripts/phases quick test-short <<<"$$phases"

define quick_phases
web:
test-short: web
lint-go: web
lint-page: web
test-units: web
endef

.PHONY: test-short
test-short:
	@scripts/go-test -short ./...

.PHONY: test-race
test-race:
	@$(GO) build -race ./... # by all processors
	@scripts/go-test -race -count=1 -p 1 -timeout 60m $(packages)

# The race detector compiles another body of its system calls.
.PHONY: test-plain
test-plain:
	@scripts/go-test -count=1 ./internal/pollfd

.PHONY: test-bench
test-bench:
	@scripts/sandbox true
	@cd bench && ../scripts/go-test -count=1 -exec "$(CURDIR)/.cache/sandbox" ./...

no_node = echo 'web tests: skipped, they need Node 20 or newer with npm' >&2; [[ $${TERMGW_TEST_REQUIRE-} != 1 ]]

.PHONY: test-web
test-web: web build ## run the tests of the page, in Node and in Chromium
	@$(if $(NODE),cd web && npm test,$(no_node))

.PHONY: test-units
test-units: web
	@$(if $(NODE),cd web && npm run --silent test:unit,$(no_node))

.PHONY: image-test
image-test: ## build the images and run them, on base images made here, and check compose.yaml and the systemd unit
	@$(GO) vet -tags image ./internal/imagetest
	@scripts/go-test -tags image -count=1 -timeout 15m -v ./internal/imagetest

.PHONY: deploy-test
deploy-test: build ## check deploy/: manifests, policies, proxies before a gateway, rules and the dashboard
	@scripts/sandbox true
	@cd deploy/test && ../../scripts/go-test -count=1 -exec "$(CURDIR)/.cache/sandbox" ./...

.PHONY: check
check: export TERMGW_TEST_REQUIRE := 1
check: export phases = $(check_phases)
check: ## what CI runs: nothing is skipped, plus the linters, the race detector and the fuzzers, side by side
	@exec scripts/phases check test-race <<<"$$phases"

# The longest first, as soon as they can. deploy-test is late: lint-go compiles most of what it needs.
define check_phases
setup:
web:
keeper:
workspace-image: setup
test-race: setup web keeper workspace-image
lint-go: web
build: web keeper
aws-cli: setup
test-web: setup web build workspace-image
image-test: setup web keeper workspace-image
test-bench: setup web
test-plain:
lint-page: web
deploy-test: setup build
tidy-check: web
vet-arm64: web
fuzz-short: web
endef

.PHONY: workspace-image aws-cli
workspace-image aws-cli:
	@scripts/$@

.PHONY: bench
bench: build ## measure termgw, and ttyd if it is on PATH, on this machine; quick: BENCH_ARGS=-short
	@cd bench && CGO_ENABLED=0 $(GO) build -o ../bin/termgw-bench . && exec ../bin/termgw-bench $(BENCH_ARGS)

.PHONY: soak
soak: ## open 1,000 terminals in a minute on one gateway and hold them for SOAK (10m)
	@cd cmd/termgw && $(GO) test -run '^TestSoak$$' -count=1 -timeout 3h -v -soak $(or $(SOAK),10m)

.PHONY: faults
faults: setup ## break each part for FAULTS (7m), and write the table of faults in docs/operations.md and the series for promtool
	@cd cmd/termgw && TERMGW_TEST_REQUIRE=1 $(GO) test -run '^TestFaults$$' -count=1 -timeout 3h -v . -faults $(or $(FAULTS),7m)

.PHONY: hidden
hidden: web build ## follow a program in a hidden browser tab for HIDDEN (330) seconds
	@cd web && TERMGW_TEST_HIDDEN=$(or $(HIDDEN),330) ../scripts/sandbox \
		node --test --test-timeout=3600000 --test-name-pattern='a build' test/browser/hidden.test.mjs

.PHONY: lint
lint: lint-go lint-page ## run go vet, golangci-lint, gofumpt, and the page's type checker and linter

# The linters compute all the time: tests that run beside them, and have deadlines, come first.
golangci_lint = nice $(GO) tool -modfile=$(1)tools/go.mod golangci-lint run --allow-parallel-runners

.PHONY: lint-go
lint-go:
	@nice $(GO) vet ./...
	@nice $(GO) vet -race ./internal/pollfd
	@$(call golangci_lint)
	@$(call golangci_lint) --build-tags image,race ./internal/pollfd
	@cd bench && nice $(GO) vet ./... && $(call golangci_lint,../)
	@cd deploy/test && nice $(GO) vet ./... && $(call golangci_lint,../../)
	@$(GO) tool -modfile=tools/actionlint/go.mod actionlint .github/workflows/*.yml
	@unformatted=$$($(call go_files) | xargs -r $(GO) tool -modfile=tools/go.mod gofumpt -l); \
		if [[ -n $$unformatted ]]; then printf 'not formatted, run make fmt:\n%s\n' "$$unformatted" >&2; exit 1; fi

# What the files of the project decide, of a machine of another kind.
.PHONY: vet-arm64
vet-arm64:
	@GOARCH=arm64 nice $(GO) vet ./...

.PHONY: lint-page
ifneq ($(NODE),)
lint-page: web/node_modules/.package-lock.json
	@cd web && nice npm run --silent check
else
lint-page:
	@:
endif

.PHONY: fmt
fmt: ## format the Go code
	@$(call go_files) | xargs -r $(GO) tool -modfile=tools/go.mod gofumpt -w

# Not `gofumpt .`: node_modules has Go files of its own.
go_files = find cmd pkg internal web bench deploy -name node_modules -prune -o -name '*.go' -print

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (100000x, that many inputs; or a time)
	@scripts/fuzz $(FUZZTIME)

# A second of every fuzz test finds a parser that a change has broken; `make fuzz` looks for rare inputs.
.PHONY: fuzz-short
fuzz-short:
	@nice scripts/fuzz 10000x

.PHONY: tidy-check
tidy-check:
	@$(GO) mod tidy -diff
	@cd tools && $(GO) mod tidy -diff
	@cd tools/actionlint && $(GO) mod tidy -diff
	@cd bench && $(GO) mod tidy -diff
	@cd deploy/test && $(GO) mod tidy -diff

.PHONY: setup
setup: ## install what the tests need, as root; otherwise say what to install
	@scripts/setup

.PHONY: clean
clean: ## remove what was built; the cached workspace image stays in .cache
	rm -rf bin dist web/node_modules web/build
	find web/dist -mindepth 1 ! -name .gitkeep -delete
