# Each target finds the tools that it needs on this machine, or installs them in .toolchain/.

.PHONY: all build install uninstall demo test chaos fuzz bench check clean distclean help

all: build

build:
	@PATH="$$(scripts/toolchain path)" && export PATH && rebar3 compile

# Installs the command line for operators; nodes have their own copy in priv/. A separate program writes the
# man pages and completions.
install: PREFIX ?= /usr/local
install:
	@scripts/build-programs
	@mkdir -p "$(DESTDIR)$(PREFIX)/bin"
	@install -m 755 priv/uds_dist "$(DESTDIR)$(PREFIX)/bin/uds_dist"
	@PATH="$$(scripts/toolchain cargo)" && export PATH && cargo run --quiet --release --locked \
		--target-dir target --package uds_dist_command_line --features docs --bin write_docs "$(DESTDIR)$(PREFIX)/share"

# Removes the files that install has installed, and nothing else.
uninstall: PREFIX ?= /usr/local
uninstall:
	@cd "$(DESTDIR)$(PREFIX)" && rm -f bin/uds_dist share/man/man1/uds_dist.1 share/man/man1/uds_dist-*.1 \
		share/bash-completion/completions/uds_dist share/zsh/site-functions/_uds_dist \
		share/fish/vendor_completions.d/uds_dist.fish

demo: build
	@scripts/demo

test:
	@SUITE="$(SUITE)" GROUP="$(GROUP)" CASE="$(CASE)" scripts/test $(OTP)

# Runs the suite for longer than the tests do, and with other random choices.
chaos: SECONDS ?= 60
chaos: SEED ?= $(shell date +%s)
chaos:
	@UDS_DIST_CHAOS_SECONDS="$(SECONDS)" UDS_DIST_CHAOS_SEED="$(SEED)" SUITE=chaos scripts/test $(OTP)

# If a case fails, its smallest form is printed.
fuzz: CASES ?= 80000
fuzz:
	@PATH="$$(scripts/toolchain path)" && export PATH && PROPTEST_CASES="$(CASES)" \
		cargo test --release --locked --target-dir target \
		--test properties --test command_line_codecs --test switchboard_model

# scripts/bench describes the settings.
bench: build
	@ROUNDS="$(ROUNDS)" MS="$(MS)" CASES="$(CASES)" CARRIERS="$(CARRIERS)" \
		BENCH_CARRIERS="$(BENCH_CARRIERS)" scripts/bench

check:
	@scripts/check

clean:
	rm -rf _build target priv/uds_dist priv/uds_dist_sidecar

distclean: clean
	rm -rf .toolchain

help:
	@echo "make             build the Erlang modules (_build/default), sidecar and command line (priv/)"
	@echo "make install     install the command line with man pages and completions; only needs cargo"
	@echo "  PREFIX=dir     ... below dir instead of /usr/local (DESTDIR=dir for packagers)"
	@echo "make uninstall   remove what make install has installed; PREFIX and DESTDIR as above"
	@echo "make demo        start two nodes that talk over Unix domain sockets and show what happens"
	@echo "make test        run all tests on the installed Erlang/OTP"
	@echo "  OTP=\"25 27 29\" ... on each of these, and between them"
	@echo "  SUITE=name     ... only those in test/name_SUITE.erl or test/name.rs"
	@echo "  GROUP=name     ... only this group of cases, such as direct"
	@echo "  CASE=name      ... only this case"
	@echo "make chaos       kill, stop, flood and confuse busy nodes at random, for a minute"
	@echo "  SECONDS=n      ... for n seconds"
	@echo "  SEED=n         ... with the choices of an earlier run, which prints its seed"
	@echo "  OTP=\"25 27 29\" ... on each of these, with nodes of all of them"
	@echo "make fuzz        feed random input to codecs, reader and sidecar, for about five minutes"
	@echo "  CASES=n        ... with n cases of each property instead of 80000"
	@echo "make bench       compare the carriers side by side, for about forty minutes"
	@echo "  ROUNDS=n       ... in n rounds instead of 5"
	@echo "  MS=n           ... with measurements of n milliseconds instead of 500"
	@echo "  CASES=\"...\"    ... only these cases, such as rtt or bulk64k"
	@echo "  CARRIERS=\"...\" ... only these carriers, such as uds, uds_direct or inet_tcp"
	@echo "  (scripts/bench describes these and more settings)"
	@echo "make check       check formatting, lints, xref and dialyzer"
	@echo "make clean       remove all build results"
	@echo "make distclean   ... and the toolchain in .toolchain/"
