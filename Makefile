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

# The page is embedded, so it is built before the program.
.NOTPARALLEL:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: demo
demo: web build ## run everything in one process on this machine, and open a shell in the browser
	@exec bin/termgw demo $(DEMO_ARGS)

.PHONY: build
build: ## build bin/termgw, with the page in it when `make web` has built one
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -o bin/termgw \
		-ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)' ./cmd/termgw

.PHONY: image
image: ## build the images termgw:VERSION, and termgw:VERSION-slim without the AWS CLI
	docker build $(image_args) -t termgw:$(VERSION)-slim --target slim .
	docker build $(image_args) -t termgw:$(VERSION) .

image_args = --build-arg VERSION=$(VERSION) --build-arg COMMIT=$(COMMIT) --build-arg DATE=$(DATE)

.PHONY: web
ifneq ($(NODE),)
web: web/node_modules/.package-lock.json ## build the page into web/dist (needs Node)
	@cd web && npm run --silent build
else
web:
	@echo 'web: skipped, needs Node 20 or newer with npm: https://nodejs.org/' >&2; [[ $${TERMGW_TEST_REQUIRE-} != 1 ]]
endif

# npm writes this file last.
web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

.PHONY: test
test: setup web ## run the tests; what this machine lacks is installed as root, or skipped by name
	@scripts/go-test ./...
	@cd bench && ../scripts/go-test ./...
	@$(MAKE) --no-print-directory test-web

.PHONY: test-web
test-web: web build ## run the tests of the page, in Node and in Chromium
ifneq ($(NODE),)
	@cd web && npm test
else
	@echo 'web tests: skipped, they need Node 20 or newer with npm' >&2
endif

.PHONY: image-test
image-test: ## build the images and run them, on base images made here, and check compose.yaml and the systemd unit
	@$(GO) vet -tags image ./internal/imagetest
	@$(GO) test -tags image -count=1 -timeout 15m -v ./internal/imagetest | grep -v '^=== '

.PHONY: deploy-test
deploy-test: build ## check deploy/: manifests, policies, proxies before a gateway, rules and the dashboard
	@cd deploy/test && ../../scripts/go-test -count=1 ./...

.PHONY: check
check: export TERMGW_TEST_REQUIRE := 1
check: ## what CI runs: nothing is skipped, plus the linters, the race detector and the fuzzers
	@scripts/phase 'setup' scripts/setup
	@scripts/phase 'workspace image' scripts/workspace-image
	@scripts/phase 'AWS CLI' scripts/aws-cli
	@scripts/phase 'page' $(MAKE) --no-print-directory web
	@scripts/phase 'modules are tidy' $(MAKE) --no-print-directory tidy-check
	@scripts/phase 'build' $(MAKE) --no-print-directory build
	@scripts/phase 'lint' $(MAKE) --no-print-directory lint
	@scripts/phase 'fuzz' scripts/fuzz $(FUZZTIME)
	@cd bench && ../scripts/phase 'load generator' ../scripts/go-test -count=1 ./...
	@scripts/phase 'page tests' $(MAKE) --no-print-directory test-web
	@scripts/phase 'image' $(MAKE) --no-print-directory image-test
	@scripts/phase 'deploy' $(MAKE) --no-print-directory deploy-test
	@printf '\n==> Go tests, race detector\n' # last, and bare, so that the count of tests is the last line
	@scripts/go-test -race -count=1 -timeout 40m ./...

.PHONY: bench
bench: build ## measure termgw, and ttyd if it is on PATH, on this machine; quick: BENCH_ARGS=-short
	@cd bench && $(GO) build -o ../bin/termgw-bench . && exec ../bin/termgw-bench $(BENCH_ARGS)

.PHONY: soak
soak: ## open 1,000 terminals in a minute on one gateway and hold them for SOAK (10m)
	@cd cmd/termgw && $(GO) test -run '^TestSoak$$' -count=1 -timeout 3h -v -soak $(or $(SOAK),10m)

.PHONY: lint
lint: ## run go vet, golangci-lint, gofumpt, and the page's type checker and linter
	@$(GO) vet ./...
	@$(GO) tool -modfile=tools/go.mod golangci-lint run
	@cd bench && $(GO) vet ./... && $(GO) tool -modfile=../tools/go.mod golangci-lint run
	@cd deploy/test && $(GO) vet ./... && $(GO) tool -modfile=../../tools/go.mod golangci-lint run
	@unformatted=$$($(call go_files) | xargs -r $(GO) tool -modfile=tools/go.mod gofumpt -l); \
		if [[ -n $$unformatted ]]; then printf 'not formatted, run make fmt:\n%s\n' "$$unformatted" >&2; exit 1; fi
ifneq ($(NODE),)
	@$(MAKE) --no-print-directory web/node_modules/.package-lock.json
	@cd web && npm run --silent check
endif

.PHONY: fmt
fmt: ## format the Go code
	@$(call go_files) | xargs -r $(GO) tool -modfile=tools/go.mod gofumpt -w

# Not `gofumpt .`: node_modules has Go files of its own.
go_files = find cmd pkg internal web bench deploy -name node_modules -prune -o -name '*.go' -print

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (100000x, that many inputs; or a time)
	@scripts/fuzz $(FUZZTIME)

.PHONY: tidy-check
tidy-check:
	@$(GO) mod tidy -diff
	@cd tools && $(GO) mod tidy -diff
	@cd bench && $(GO) mod tidy -diff
	@cd deploy/test && $(GO) mod tidy -diff

.PHONY: setup
setup: ## install what the tests need, as root; otherwise say what to install
	@scripts/setup

.PHONY: clean
clean: ## remove what was built; the cached workspace image stays in .cache
	rm -rf bin web/node_modules web/build
	find web/dist -mindepth 1 ! -name .gitkeep -delete
