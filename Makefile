# Berth: `make` or `make help` lists the targets.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --warn-undefined-variables --no-builtin-rules
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# Go needs a home folder for its caches; some service managers do not set one.
ifeq ($(origin HOME),undefined)
export HOME := $(shell getent passwd "$$(id -u)" | cut -d: -f6)
endif

# Pinned: later Temporal CLIs cannot be installed with `go install` (a replace directive and a nested module).
TEMPORAL_VERSION      := v1.5.1
STATICCHECK_VERSION   := v0.8.2
WORKFLOWCHECK_VERSION := v0.6.0

# The same folder as os.UserCacheDir in Go, where internal/devserver looks.
CACHE := $(if $(filter Darwin,$(shell uname)),$$HOME/Library/Caches,$${XDG_CACHE_HOME:-$$HOME/.cache})

ONCE      ?=
DEMOFLAGS ?=
BENCHARGS ?=
TESTFLAGS ?=

.PHONY: help
help: ## List the targets
	@echo 'Berth loads computers for reservations. Targets:'
	@grep -hE '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1\t\2/' | expand -t 12 | sed 's/^/  /'

.PHONY: demo
demo: temporal build ## Watch reservations being loaded, with a real Temporal server, vSphere API and SSH (ONCE=1 ends after the table)
	@bin/demo --with-parent $(if $(filter-out 0,$(ONCE)),--once) $(DEMOFLAGS)

.PHONY: demo-libvirt
demo-libvirt: temporal build ## Watch real virtual machines being loaded, their consoles beside the stages; as root, on Linux (ONCE=1 ends after the table)
	go build -o bin/demo-libvirt ./demo/libvirt
	@bin/demo-libvirt $(if $(filter-out 0,$(ONCE)),--once) $(DEMOFLAGS)

.PHONY: build
build: ## Build the programs into bin/
	go build -o bin/ ./worker ./starter ./simsite ./demo

.PHONY: temporal
temporal: ## Build the Temporal CLI once, into the user's cache folder (a `temporal` on the PATH is used if there is one)
	@if [[ -n $${BERTH_TEMPORAL_CLI:-} ]] || command -v temporal >/dev/null; then exit 0; fi
	dir="$(CACHE)/berth/bin"
	mkdir -p "$$dir"
	built() { [[ -x $$dir/temporal ]] && go version -m "$$dir/temporal" | grep -E $$'\tmod\tgithub.com/temporalio/cli\t$(TEMPORAL_VERSION)\t' >/dev/null; }
	built && exit 0
	if command -v flock >/dev/null; then exec 9>"$$dir/lock"; flock 9; fi   # another make may be building it now
	built && exit 0
	echo 'Building the Temporal CLI $(TEMPORAL_VERSION) into '"$$dir"' (once; about 4 minutes on 2 cores)'
	tmp=$$(mktemp -d "$$dir/build.XXXXXX")
	trap 'rm -rf "$$tmp"' EXIT
	GOBIN="$$tmp" go install github.com/temporalio/cli/cmd/temporal@$(TEMPORAL_VERSION) 9>&-
	mv -f "$$tmp/temporal" "$$dir/temporal"

.PHONY: test
test: temporal ## Run all tests, with the race detector where a C compiler is there (TESTFLAGS=... for go test)
	@race=-race
	if ! CGO_ENABLED=1 go build -race runtime/cgo 2>/dev/null; then
	  race=
	  echo '***' >&2
	  echo '*** WITHOUT the race detector: it needs a C compiler and its headers (apt-get install gcc libc6-dev)' >&2
	  echo '***' >&2
	fi
	[[ -z $$race ]] || export CGO_ENABLED=1
	set -x
	go build $$race ./...
	code=0 # vet is off: `make lint` runs all of it
	go test $$race -vet=off -p 2 -timeout 20m $(TESTFLAGS) $$(go list ./... | grep -v '/integration$$') || code=$$?
	go test $$race -vet=off -timeout 20m $(TESTFLAGS) ./integration || code=$$? # alone: it starts servers and workers by the dozen
	exit $$code

.PHONY: lint
lint: ## Check format, go vet, staticcheck, workflowcheck, and who may import whom
	@bad=$$(gofmt -l .)
	if [[ -n $$bad ]]; then printf 'Not formatted; run gofmt -w on:\n%s\n' "$$bad" >&2; exit 1; fi
	set -x
	go vet -tags e2e ./...
	go run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK_VERSION) -tags e2e ./...
	go run go.temporal.io/sdk/contrib/tools/workflowcheck@$(WORKFLOWCHECK_VERSION) -config .workflowcheck.yaml ./workflows/...
	go test ./internal/rooms

.PHONY: e2e
e2e: temporal build ## Run the end-to-end tests; as root, installs what they need (chromium, docker.io, libvirt, QEMU, prometheus, ...)
	@e2e/run

.PHONY: stack
stack: temporal build ## Run those of the end-to-end tests that are of docker-compose.yml; as root (docs/operations.md, docs/reliability.md)
	@E2E_ONLY='^TestTheStack' e2e/run

.PHONY: pictures
pictures: temporal build ## Take the pictures of the Web UI in docs/pictures/ anew
	go test -tags e2e -count=1 -v -run TestTheDemonstrationInABrowser ./e2e -args -update-pictures

.PHONY: bench
bench: temporal build ## Measure; BENCH_JSON=FILE writes the figures as one JSON object
	go run ./bench $(BENCHARGS)

.PHONY: golden
golden: ## Record the golden histories of the workflows anew (read the difference before you commit it)
	go test ./workflows -run OnARealServer -count=1 -update

.PHONY: clean
clean: ## Remove what was built here and the demonstration's files (not the Temporal CLI)
	rm -rf bin var

.ONESHELL:
