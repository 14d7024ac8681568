# SPDX-License-Identifier: BSD-3-Clause
# A thin layer over Meson and Ninja. `make help` lists what there is.

BUILDDIR ?= build
NINJA    ?= ninja
DESTDIR  ?=

.DEFAULT_GOAL := all
.PHONY: all setup demo check bench fuzz faults coverage site install uninstall deb clean help

all: $(BUILDDIR)/build.ninja ## build everything that runs on the host and in the guests' user space
	@$(NINJA) -C $(BUILDDIR)

# The packages come first: Meson itself is one of them.
$(BUILDDIR)/build.ninja:
	@scripts/setup
	@meson setup $(BUILDDIR) .

setup: ## install the Debian packages that building and testing need (root or sudo)
	@scripts/setup

demo: ## boot two VMs joined by vhost-pcid, measure, print a table, write build/demo.json
	@scripts/setup
	@$(MAKE) --no-print-directory all
	@scripts/demo --builddir $(BUILDDIR)

check: ## build and run every test; the last line is "N passed, N failed, N skipped"
	@scripts/setup
	@scripts/check --builddir $(BUILDDIR)

bench: ## run the benchmarks, write JSON and plots under build/bench; AGAINST=REV: what is slower than revision REV
	@scripts/setup --bench
	@$(MAKE) --no-print-directory all
	@scripts/bench --builddir $(BUILDDIR) $(if $(AGAINST),--against $(AGAINST))

FUZZ_SECONDS ?= 60
fuzz: ## run every libFuzzer target for FUZZ_SECONDS each (default 60; needs clang)
	@scripts/setup
	@scripts/check --builddir $(BUILDDIR) --only fuzz --fuzz-seconds $(FUZZ_SECONDS)

FAULT_CYCLES ?= 2000
FAULT_VM_CYCLES ?= 40
FAULT_UPGRADES ?= 20
faults: ## the fault campaign: FAULT_CYCLES (2000) kills, freezes, restarts and cuts under traffic, FAULT_VM_CYCLES (40) with real VMs, FAULT_UPGRADES (20)
	@scripts/setup
	@$(MAKE) --no-print-directory all
	@scripts/faults --builddir $(BUILDDIR) --cycles $(FAULT_CYCLES) --json $(BUILDDIR)/faults.json
	@scripts/faults --builddir $(BUILDDIR) --upgrades $(FAULT_UPGRADES) --json $(BUILDDIR)/faults-upgrades.json
	@scripts/faults --builddir $(BUILDDIR) --vms --cycles $(FAULT_VM_CYCLES) --json $(BUILDDIR)/faults-vms.json

coverage: ## which lines of lib/ the unit and protocol tests run
	@scripts/setup
	@scripts/coverage --builddir $(BUILDDIR)/coverage --json $(BUILDDIR)/coverage.json

site: ## make a site of all documents, man pages and the API reference in BUILDDIR/site; dead links are errors
	@scripts/setup --site
	@scripts/site --output $(BUILDDIR)/site

install: $(BUILDDIR)/build.ninja ## build what is installed, and install it into the configured prefix (DESTDIR: below another root, nothing is set up there)
	@targets=$$(packaging/install-targets $(BUILDDIR)) && $(NINJA) -C $(BUILDDIR) $$targets
	@DESTDIR="$(DESTDIR)" meson install -C $(BUILDDIR) --no-rebuild
	@[ -n "$(DESTDIR)" ] || $(BUILDDIR)/packaging/apply-install

uninstall: ## remove what `make install` put there, with the same DESTDIR; configuration that was written stays
	@packaging/uninstall $(BUILDDIR) "$(DESTDIR)"

deb: ## make Debian packages for this distribution in BUILDDIR/deb
	@scripts/setup
	@scripts/deb $(BUILDDIR)/deb

clean: ## remove the build directories (the caches of kernels and trees stay)
	@rm -rf $(BUILDDIR)

help: ## show this list
	@sed -n 's/^\([a-z][a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'
