# Two commands do everything: `make demo` shows farrier at work, `make test` runs every test.

CARGO  ?= cargo
STATE  ?= state
ROUNDS ?= 3
# Everything is built for the host, statically; .cargo/config.toml names the target.
TRIPLE  := $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := target/$(TRIPLE)/release

.PHONY: help demo test build bench-boot check deny clean

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:            ## four machines, one per firmware, netboot and enroll; ONCE=1 ends there
	@.ci/packages demo
	@$(CARGO) build --release --quiet --bins
	@$(RELEASE)/farrier demo --state $(STATE)/demo $(if $(ONCE),--once)

test:            ## every test: parsers to real firmware
	@.ci/packages test
	$(CARGO) build --release --bins
	FARRIER_BINARIES=$(CURDIR)/$(RELEASE) $(CARGO) test

build:           ## the release binaries
	$(CARGO) build --release --bins

bench-boot:      ## power-on to enrolled, side by side with dnsmasq + nginx; ROUNDS=n
	@.ci/packages bench
	@$(CARGO) build --release --quiet --bins
	@FARRIER_BINARIES=$(CURDIR)/$(RELEASE) ROUNDS=$(ROUNDS) $(CARGO) bench --quiet --bench boot

check:           ## formatting and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

deny:            ## licences and advisories of the dependencies (needs cargo-deny)
	$(CARGO) deny check

clean:           ## forget everything built, the demo's state included
	$(CARGO) clean
	rm -rf $(STATE)
