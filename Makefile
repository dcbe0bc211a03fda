# Two commands do everything: `make demo` shows farrier at work, `make test` runs every test.

CARGO  ?= cargo
STATE  ?= state
ROUNDS ?= 5
SECONDS ?= 60
# Everything is built for the host, statically; .cargo/config.toml names the target.
TRIPLE  := $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := target/$(TRIPLE)/release
ATFTPD_ROOT := target/$(TRIPLE)/tmp/atftpd
ATFTPD  := $(ATFTPD_ROOT)/usr/sbin/atftpd
VERSUS   = .ci/packages bench && $(CARGO) build --release --quiet --bins && \
	FARRIER_BINARIES=$(CURDIR)/$(RELEASE) ROUNDS=$(ROUNDS) $(CARGO) bench --quiet --bench versus --

PREFIX     ?= /usr/local
SYSCONFDIR ?= /etc
DEB_OUT    ?= target/deb

.PHONY: help demo test test-install test-api sim differential fuzz faults soak build install uninstall deb bench bench-dhcp bench-tftp bench-http bench-micro bench-boot bench-operator bench-storm bench-install check deny clean

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo:            ## four machines, one per firmware, netboot and enroll; ONCE=1 ends there, INSTALL=1 installs them
	@.ci/packages demo
	@$(CARGO) build --release --bins
	@$(RELEASE)/farrier demo --state $(STATE)/demo $(if $(ONCE),--once) $(if $(INSTALL),--install)

test:            ## every test: parsers to real firmware
	@.ci/packages test
	$(CARGO) build --release --bins
	FARRIER_BINARIES=$(CURDIR)/$(RELEASE) $(CARGO) test --no-fail-fast

test-install:    ## what `make test` leaves out for its length: Debian 12 built and booted, and by its own installer; plugs pulled and appliances killed, 10 times each
	@.ci/packages test
	@.ci/packages test-install
	$(CARGO) build --release --bins
	FARRIER_BINARIES=$(CURDIR)/$(RELEASE) $(CARGO) test --test lab -- --ignored --nocapture
	FARRIER_BINARIES=$(CURDIR)/$(RELEASE) INSTALL_CUTS=$(or $(CUTS),10) \
		$(CARGO) test --test lab -- --nocapture an_install_goes_on

faults:          ## kills, power cuts, failing disks, restarts: the full counts (hours); last figures in tests/RELIABILITY.md
	@.ci/packages test
	FAULTS_KILLS=$(or $(KILLS),1000) FAULTS_POWER_CUTS=$(or $(CUTS),1000) FAULTS_INJECTIONS=$(or $(INJECTIONS),12) \
		FAULTS_TRANSFERS=100 $(CARGO) test --release --test faults -- --nocapture --test-threads=1

soak:            ## mixed load with malformed packets for MINUTES=n: target/soak.svg, target/soak.txt
	@.ci/packages test
	SOAK_MINUTES=$(or $(MINUTES),60) $(CARGO) test --release --test faults -- --nocapture soak

test-api:        ## the API against its OpenAPI document: schemathesis makes requests up
	@.ci/packages test
	$(CARGO) test --test it schema::

sim:             ## the appliance's cores in a world that goes wrong; SIM_SEEDS=n, SIM_FROM=n, SIM_SEED=n
	$(CARGO) test --test sim -- --nocapture

differential:    ## client sequences on farrier, Kea and dnsmasq; SEQUENCES=10000, SEED=n tells one
	@.ci/packages test
	$(if $(SEED),DIFFERENTIAL_SEED=$(SEED),DIFFERENTIAL_SEQUENCES=$(or $(SEQUENCES),10000)) \
		$(CARGO) test --test differential d_38 -- --nocapture

fuzz:            ## every target, guided by coverage, for SECONDS=60 each; wants nightly and cargo-fuzz
	@fuzz/run $(SECONDS)

build:           ## the release binaries
	$(CARGO) build --release --bins

install:         ## binaries, manual, completions, systemd unit, default configuration; PREFIX=, DESTDIR=
	@[ -x $(RELEASE)/farrier ] || $(CARGO) build --release --quiet --bins
	@DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) SYSCONFDIR=$(SYSCONFDIR) packaging/install put $(RELEASE)

uninstall:       ## takes those away; a changed configuration stays
	@DESTDIR=$(DESTDIR) PREFIX=$(PREFIX) SYSCONFDIR=$(SYSCONFDIR) packaging/install remove $(RELEASE)

deb:             ## a Debian package, in target/deb
	@$(CARGO) build --release --quiet --bins
	@packaging/deb/build $(RELEASE) $(DEB_OUT)

bench: bench-dhcp bench-tftp bench-http bench-boot bench-storm  ## side by side with the peers, into benches/RESULTS.md; ROUNDS=n

bench-dhcp:      ## exchanges a second, overload, latency, against Kea and dnsmasq
	@$(VERSUS) dhcp

bench-tftp: $(ATFTPD)  ## one client, crowds, loss, against tftpd-hpa, dnsmasq and atftpd
	@$(VERSUS) tftp

bench-http:      ## images and scripts against nginx, everything at once, memory and start
	@$(VERSUS) http mixed footprint

bench-micro:     ## what one message, one lease, one script costs
	@$(CARGO) bench --quiet --bench micro

# Debian lets one of tftpd-hpa and atftpd be installed: the other is unpacked.
$(ATFTPD):
	@mkdir -p $(ATFTPD_ROOT)
	@cd $(ATFTPD_ROOT) && apt-get download -qq atftpd && dpkg-deb -x atftpd_*.deb .

bench-boot:      ## power-on to enrolled, side by side with dnsmasq + nginx; ROUNDS=n
	@.ci/packages bench
	@$(CARGO) build --release --quiet --bins
	@FARRIER_BINARIES=$(CURDIR)/$(RELEASE) ROUNDS=$(ROUNDS) $(CARGO) bench --quiet --bench boot

bench-operator:  ## 10 000 nodes, 1 000 watchers, and what a busy operator plane does to DHCP
	@.ci/packages bench
	@$(CARGO) build --release --quiet --bins
	@FARRIER_BINARIES=$(CURDIR)/$(RELEASE) $(CARGO) bench --quiet --bench operator

bench-storm:     ## 1 000 machines at once, here and on dnsmasq + nginx; 10 000; a flood of strangers; ROUNDS=n
	@.ci/packages bench
	@$(CARGO) build --release --quiet --bins
	@FARRIER_BINARIES=$(CURDIR)/$(RELEASE) ROUNDS=$(ROUNDS) $(CARGO) bench --quiet --bench storm

bench-install:   ## an image onto a disk beside curl | zstd -d | dd, ten machines on one link; INSTALL_MIB=n, RACK_MIB=n, INSTALL_DISK=/dev/x
	@.ci/packages bench
	@$(CARGO) build --release --quiet --bins
	@FARRIER_BINARIES=$(CURDIR)/$(RELEASE) ROUNDS=$(ROUNDS) $(CARGO) bench --quiet --bench install

check:           ## formatting and lints
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

deny:            ## licences and advisories of the dependencies (needs cargo-deny)
	$(CARGO) deny check

clean:           ## forget everything built, the demo's state included
	$(CARGO) clean
	rm -rf $(STATE)
