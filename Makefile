# kata-rs: everything starts here. `make` alone says what there is.
#
# All that is built lies in target/ or in the user's cache (~/.cache/kata-rs), so a checkout stays clean. Each step is
# skipped when its inputs did not change; the slow ones (kernels, file server, images) are also kept in the cache by
# content, so that a second clone builds none of them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

TRIPLE := x86_64-unknown-linux-gnu
OUT := target
RELEASE := $(OUT)/$(TRIPLE)/release
STAGE := $(OUT)/stage
IMAGES := $(OUT)/images
MACHINE := $(OUT)/machine
STEP := scripts/step.sh

# Where `make install` puts the prefix, and below what root (for packaging).
PREFIX ?= /opt/kata-rs
DESTDIR ?=

# The programs behind the targets, to be replaced for a special run, e.g.
#   make test TEST='cargo test -p vmm'      make run DEMO='my-own-demo'
DEMO ?= cargo run --quiet --release -p tests --bin demo --
TEST ?= scripts/run-tests.sh
BENCH ?= cargo run --quiet --release -p tests --bin bench --

# What the tests, the demo and the benchmark are told; they look nowhere else.
export KATA_RS_PREFIX := $(abspath $(STAGE))
export KATA_RS_TEST_VIRTIOFSD := $(abspath $(STAGE)/libexec/kata-rs/virtiofsd)
export KATA_RS_IMAGES := $(abspath $(IMAGES))
export KATA_RS_MACHINE := $(abspath $(MACHINE))
export KATA_RS_ROOTFS_BUILDER := $(abspath $(RELEASE)/rootfs-builder)

KERNEL_SOURCES := $(shell find guest-kernel -type f) $(wildcard /usr/src/linux-source-*.tar.xz)
STAGED_PROGRAMS := \
	$(STAGE)/bin/containerd-shim-kata-rs-v2 \
	$(STAGE)/bin/kata-rs \
	$(STAGE)/libexec/kata-rs/kata-rs-vmm
STAGED := $(STAGED_PROGRAMS) \
	$(STAGE)/libexec/kata-rs/virtiofsd \
	$(STAGE)/share/kata-rs/vmlinux-hw \
	$(STAGE)/share/kata-rs/vmlinux-pvm \
	$(STAGE)/share/kata-rs/guest.erofs \
	$(patsubst deploy/%,$(STAGE)/share/kata-rs/deploy/%,$(wildcard deploy/*))
ARCHIVES := $(IMAGES)/busybox.tar $(IMAGES)/python.tar $(IMAGES)/pause.tar

.PHONY: help
help: ## Print this list (the default)
	@echo "kata-rs: make TARGET"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16
	@echo "Replaceable: PREFIX=$(PREFIX) DESTDIR= DEMO= TEST= BENCH= (see the top of the Makefile)"

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@scripts/install-packages.sh
	@command -v cargo >/dev/null || { echo "make: Rust is missing; get it from https://rustup.rs" >&2; exit 1; }

.PHONY: build
build: deps ## Build everything and stage the prefix in target/stage
	@$(MAKE) --no-print-directory $(OUT)/.built

# A second make, so that the list of kernel sources is taken after the packages are there.
.PHONY: $(OUT)/.built
$(OUT)/.built: programs $(STAGED) $(ARCHIVES)

# cargo knows best what changed; it is asked each time and answers in a moment.
.PHONY: programs
programs:
	@scripts/compiled-crates.sh restore || echo "the kept crates could not be used; they are compiled" >&2
	@$(STEP) "programs" cargo build --release \
		-p shim -p cli -p vmm -p rootfs-builder
	@$(STEP) "agent" cargo build --profile guest --quiet -p agent --bin kata-rs-agent

$(RELEASE)/%: programs ;

define stage
	@mkdir -p $(@D)
	@cmp -s $< $@ || install -m 0755 $< $@
endef

$(STAGE)/bin/containerd-shim-kata-rs-v2: $(RELEASE)/containerd-shim-kata-rs-v2 ; $(stage)
$(STAGE)/bin/kata-rs: $(RELEASE)/kata-rs ; $(stage)
$(STAGE)/libexec/kata-rs/kata-rs-vmm: $(RELEASE)/kata-rs-vmm ; $(stage)

# The installer among them, which installs the prefix that it lies in.
$(STAGE)/share/kata-rs/deploy/%: deploy/%
	@mkdir -p $(@D)
	@cp $< $@

$(STAGE)/libexec/kata-rs/virtiofsd: scripts/virtiofsd.sh
	@$(STEP) "file server (virtiofsd)" scripts/virtiofsd.sh $@ && touch $@

$(OUT)/kernel/vmlinux-%: $(KERNEL_SOURCES)
	@mkdir -p $(@D)
	@$(STEP) "guest kernel, $* flavour" guest-kernel/build.sh $* $@ && touch $@

$(STAGE)/share/kata-rs/vmlinux-%: $(OUT)/kernel/vmlinux-%
	@mkdir -p $(@D)
	@install -m 0644 $< $@

# Both flavours are kept although nothing names them as a final goal.
.PRECIOUS: $(OUT)/kernel/vmlinux-%

# Written only when its bytes change, so it is asked each time.
$(STAGE)/share/kata-rs/guest.erofs: programs
	@strip -o $(OUT)/kata-rs-agent $(OUT)/$(TRIPLE)/guest/kata-rs-agent
	@$(RELEASE)/rootfs-builder guest --agent $(OUT)/kata-rs-agent --out $@

$(IMAGES)/%.tar: rootfs-builder/src/image.rs rootfs-builder/src/layer.rs rootfs-builder/src/ld_cache.rs rootfs-builder/src/oci.rs | programs
	@$(STEP) "image $*" $(RELEASE)/rootfs-builder oci --from $* --out $@ && touch $@

.PHONY: machine
machine: build ## Build the emulated SVM machine of the hw lane in target/machine
	@$(STEP) "emulated machine" $(RELEASE)/rootfs-builder emulated-machine build --out $(MACHINE) \
		--add $(STAGE)=/opt/kata-rs --add $(IMAGES)=/images

.PHONY: kvm-note
kvm-note:
	@if [ ! -e /dev/kvm ]; then \
		echo "This machine has no /dev/kvm. 'make test' runs what needs none, and the hw lane, which is emulated;"; \
		echo "'make run-emulated' shows the same container as 'make run' in there."; \
	elif [ ! -r /dev/kvm ] || [ ! -w /dev/kvm ]; then \
		echo "No right to /dev/kvm: run as root, or add yourself to its group ($$(stat -c %G /dev/kvm)) and log in again."; \
	fi

.PHONY: run
run: kvm-note build ## Run a real container through containerd in its own VM, and show what a sceptic asks
	@$(DEMO)

.PHONY: run-emulated
run-emulated: build machine ## The same inside the emulated machine, for a host without /dev/kvm (slow)
	@$(STEP) "demo" cargo build --release -p tests --bin demo
	@$(RELEASE)/rootfs-builder emulated-machine run --dir $(MACHINE) --share $(RELEASE) \
		--env KATA_RS_EMULATED=1 --env KATA_RS_PREFIX=/opt/kata-rs --env KATA_RS_IMAGES=/images -- /share/demo

.PHONY: test
test: kvm-note build machine ## Run every test: unit, end to end on this host's KVM, and the hw lane
	@status=0; $(TEST) || status=$$?; \
		$(if $(filter file,$(origin TEST)),scripts/compiled-crates.sh save || echo "the compiled crates were not kept" >&2;) exit $$status

.PHONY: conformance
conformance: export KATA_RS_CONFORMANCE_RUNTIME := $(RUNTIME)
conformance: export KATA_RS_CONFORMANCE_ONLY := $(ONLY)
conformance: export KATA_RS_CONFORMANCE_UPDATE := 1
conformance: export CI := true
conformance: kvm-note build ## Run the conformance suite on ours and runc, write docs/conformance.md (RUNTIME=one ONLY=text)
	@cargo test --quiet -p tests --test conformance -- --nocapture

.PHONY: bench
bench: kvm-note build ## Measure, print the table, write target/bench/bench.json
	@mkdir -p $(OUT)/bench
	@$(BENCH)

.PHONY: lint
lint: ## Check formatting, lints and scripts
	@cargo fmt --all --check
	@cargo clippy --quiet --workspace --all-targets -- -D warnings
	@for script in scripts/*.sh guest-kernel/*.sh .ci/run; do bash -n "$$script"; done
	@sh -n deploy/install.sh

.PHONY: install
install: build ## Install as a version of its own below PREFIX (default /opt/kata-rs); running pods keep theirs
	@$(STAGE)/share/kata-rs/deploy/install.sh install --prefix "$(PREFIX)" --root "$(DESTDIR)"
	@echo "Current in $(DESTDIR)$(PREFIX). containerd has to find the shim on its PATH and know the runtime:"
	@echo "  ln -s $(PREFIX)/bin/containerd-shim-kata-rs-v2 /usr/local/bin/"
	@echo "  see docs/clusters.md, and $(PREFIX)/current/share/kata-rs/deploy/ for what a cluster needs"

.PHONY: clean
clean: ## Remove target/ (the cache in ~/.cache/kata-rs stays)
	@cargo clean --quiet
	@rm -rf $(OUT)

.PHONY: clean-cache
clean-cache: ## Remove ~/.cache/kata-rs: kernels, file server, images, packages
	@rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/kata-rs"
