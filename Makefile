# The commands of this project. "make help" lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
export CGO_ENABLED ?= 0

OUT     := .build
VERSION ?= 0.2.0
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
BUILT   := $(shell git log -1 --format=%cI 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.built=$(BUILT)
TARGETS := linux/amd64 linux/arm64 windows/amd64 windows/arm64

.PHONY: help build package demo test race wintest armtest vmtest bench check generate crashtest soak clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## agent and ctl for this machine, in .build
	go build -trimpath -ldflags '$(LDFLAGS)' -o $(OUT)/ ./cmd/quantix-kvm-agent ./cmd/quantix-kvm-ctl

package: ## packages (deb, rpm, apk) and tarballs of agent and ctl for amd64 and arm64, and for Windows where wixl and msibuild are, in .build
	@for arch in amd64 arm64; do cmd/quantix-kvm-agent/package/build.sh $(OUT) $$arch $(VERSION) '$(LDFLAGS)' || exit 1; done
	@if command -v wixl msibuild >/dev/null; then \
	  for arch in amd64 arm64; do cmd/quantix-kvm-agent/package/windows/build.sh $(OUT) $(VERSION) '$(LDFLAGS)' $$arch || exit 1; done; \
	else echo 'no MSI: it needs the Debian packages wixl and msitools'; fi

demo: build ## a provisioning script against a scratch root, then one that fails
	@bash cmd/quantix-kvm-agent/demo/demo.sh $(OUT)

test: ## every test that needs only Go
	go test -timeout 30m ./...

race: ## the same with the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race -timeout 30m ./...

wintest: ## the tests of the Windows build under Wine; gets Wine from Debian, as root
	go run ./cmd/internal/rig/wintest

# What computes and parses, where the processor matters. What needs the kernel or takes long there is tested in the guest.
ARMTESTS := ./builtins ./builtins/internal/diff ./cmd/internal/human ./cmd/internal/statustext ./runtime/config \
	./runtime/journal/internal/... ./runtime/sandbox/lua/internal/... ./wire/crc32c ./wire/fault ./wire/pb ./wire/text/...

armtest: ## the unit tests of linux/arm64 by emulation; needs qemu-user-static
	@command -v qemu-aarch64-static >/dev/null || { echo 'needs the Debian package qemu-user-static'; exit 1; }
	GOARCH=arm64 CGO_ENABLED=0 go test -vet=off -timeout 10m -exec qemu-aarch64-static $(ARMTESTS)
	GOARCH=arm64 CGO_ENABLED=0 go test -vet=off -timeout 10m -exec qemu-aarch64-static \
	  -run 'Frame|Golden|Split|Inspect|Large|Decoder|Fuzz|Memory|Protocol' ./wire

# Two guests at a time where the tests are parallel: those that mostly wait. VMTEST_UNTIL bounds the time (.ci/run).
vmtest: ## the tests in a real guest under QEMU; gets what it needs from Debian, as root
	go run ./cmd/internal/rig/vmtest/prepare
	go test -tags vm -count=1 -parallel 2 -timeout 45m ./cmd/internal/rig/vmtest/...

bench: ## speed and memory beside the raw channel, here and in the guest
	go test -run '^$$' -bench . -benchmem ./wire/... ./runtime/... ./builtins/... ./cmd/quantix-kvm-agent
	go run ./cmd/internal/rig/vmtest/prepare
	go test -tags vm -count=1 -timeout 30m -run '^$$' -bench . ./cmd/internal/rig/vmtest/...

check: ## format, vet, staticcheck, generated files, cross builds
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'not gofmt-clean: the files above'; exit 1; }
	cd wire/pb && go run ./internal/gen -check
	@for t in $(TARGETS); do \
	  echo "vet and build $$t"; \
	  GOOS=$${t%/*} GOARCH=$${t#*/} go vet ./... && GOOS=$${t%/*} GOARCH=$${t#*/} go build -o /dev/null ./cmd/quantix-kvm-agent && \
	  GOOS=$${t%/*} GOARCH=$${t#*/} go build -o /dev/null ./cmd/quantix-kvm-ctl || exit 1; \
	done
	@for arch in amd64 arm64; do \
	  echo "vet and build darwin/$$arch, the ctl"; \
	  GOOS=darwin GOARCH=$$arch go vet ./cmd/quantix-kvm-ctl ./wire/... && \
	  GOOS=darwin GOARCH=$$arch go build -o /dev/null ./cmd/quantix-kvm-ctl || exit 1; \
	done
	go vet -tags vm ./cmd/internal/rig/vmtest/... && go vet -tags blocktest ./runtime/journal/blocktest
	@tool=$$(mktemp -d) && trap 'rm -rf "$$tool"' EXIT && go build -o "$$tool/staticcheck" honnef.co/go/tools/cmd/staticcheck && \
	echo staticcheck && "$$tool/staticcheck" ./... && "$$tool/staticcheck" -tags vm ./cmd/internal/rig/vmtest/... && \
	"$$tool/staticcheck" -tags blocktest ./runtime/journal/blocktest && \
	GOOS=windows "$$tool/staticcheck" ./...

generate: ## everything that is generated from something else
	go generate ./...

crashtest: ## every crash point of the journal, killed and without power (PART=short: the loss of power alone, some minutes)
	$(if $(filter short,$(PART)),,go test -count=1 -timeout 60m ./runtime/journal -sweep=full)
	go test -tags blocktest -count=1 -timeout 120m ./runtime/journal/blocktest $(if $(filter short,$(PART)),,-full)

soak: crashtest ## what takes long: ten thousand sessions, fifty kills and fifty power cuts in the guest, beside the crash tests
	QUANTIX_PACKAGES=1 go test -count=1 -timeout 20m -run 'TestPackages|TestMSI' -v ./cmd/quantix-kvm-agent
	go test -count=1 -timeout 20m -run TestSessionsLeaveNoTrace -v ./cmd/quantix-kvm-agent -sessions=10000
	go run ./cmd/internal/rig/vmtest/prepare
	QUANTIX_PACKAGES=1 go test -tags vm -count=1 -timeout 20m -run 'InAContainer|UnderOpenRC' -v ./cmd/internal/rig/vmtest
	QUANTIX_HOSTILE=1000 go test -count=1 -timeout 30m -run Resident -v ./runtime/sandbox
	QUANTIX_ROUNDS=50 QUANTIX_UNREAD=2m go test -tags vm -count=1 -timeout 180m -run 'Killed|PowerLoss|Unread|LeftInTheMiddle|NetworkManager|WithoutNetplan' -v ./cmd/internal/rig/vmtest
	QUANTIX_ROUNDS=150 go test -tags vm -count=1 -timeout 60m -run 'HostsWithoutAGap|GivesUpEarly' -v ./cmd/internal/rig/vmtest
	QUANTIX_ROUNDS=500 go test -tags vm -count=1 -timeout 60m -run QuiesceKindsOfDisks -v ./cmd/internal/rig/vmtest
	QUANTIX_ROUNDS=30 QUANTIX_DATABASES=1 QUANTIX_LIBVIRT=1 go test -tags vm -count=1 -timeout 60m -run 'QuiesceDatabases|QuiesceByLibvirt' -v ./cmd/internal/rig/vmtest
	QUANTIX_ROUNDS=2 QUANTIX_FROZEN_SECONDS=60 go test -tags vm -count=1 -timeout 20m -run 'QuiesceGuest' -v ./cmd/internal/rig/vmtest

clean: ## what was built
	rm -rf $(OUT)
