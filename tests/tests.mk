# Targets that run as root and need more than the build: set up what is missing, then run.
include tests/fuzz/fuzz.mk
# The longest first, so that none is alone in the end.
E2E := $(wildcard tests/fault/*.t) $(wildcard tests/e2e/*.t)
APPS := $(wildcard tests/apps/*.t)
TEST_PROGS := $(UNIT) $(WORKLOADS) $(B)/testbed-init

$(B)/testbed-init: tools/testbed-init.c
	@echo '  CC      $@'
	@mkdir -p $(@D)
	$(Q)$(CC) -D_GNU_SOURCE -std=gnu17 $(WARN) $(CFLAGS) -o $@ $<

# The test runs the program beside it.
$(B)/tests/unit/test_page_server $(B)/tests/unit/test_serve_child: | $(B)/page-server
$(B)/tests/unit/test_sandbox: $(B)/pageserver/sandbox.o
$(B)/tests/unit/test_sandbox: LDLIBS += -lseccomp
$(B)/tests/unit/test_cr_image: | $(B)/cr-image

# Make has looked for sources and packages before deps installs the latter: build in a make of its own.
check: deps
	$(Q)tools/packages --install $(LINT_PKGS)
	$(Q)$(MAKE) --no-print-directory -j$$(nproc) all $(TEST_PROGS) fuzz-replay-programs
	$(Q)tools/run-tests $(E2E) $(APPS) tests/lint.t tests/docs.t $(UNIT) tests/fuzz/replay.t $(wildcard tests/demo.t)

e2e: all $(TEST_PROGS)
	$(Q)tools/run-tests $(E2E)

# Real programs under load; what they need of Debian is in TEST_PKGS.
e2e-apps: all $(TEST_PROGS)
	$(Q)tools/run-tests $(APPS)

demo: deps
	$(Q)$(MAKE) --no-print-directory -j$$(nproc) all $(TEST_PROGS)
	$(Q)tools/demo

# The sampler of peak memory is the benchmark's own program.
$(B)/tests/bench/%: tests/bench/%.c
	@echo '  CC      $@'
	@mkdir -p $(@D)
	$(Q)$(CC) -D_GNU_SOURCE -std=gnu17 $(WARN) $(CFLAGS) -o $@ $<

bench: deps
	$(Q)$(MAKE) -s --no-print-directory -j$$(nproc) all $(WORKLOADS) $(B)/testbed-init $(B)/tests/bench/peak $(B)/tests/bench/warm $(B)/tests/bench/copy
	$(Q)tests/bench/all

lint:
	$(Q)tools/lint
lint-deep:
	$(Q)tools/packages --install clang-tidy
	$(Q)tools/lint tidy analyzer

# Its own alternate stack would be in the way of tests that look at theirs.
asan:
	+$(Q)ASAN_OPTIONS=use_sigaltstack=0 UBSAN_OPTIONS=print_stacktrace=1 $(MAKE) --no-print-directory B=$(B)-asan \
		CFLAGS='$(SAN_CFLAGS)' SAN='$(FUZZ_SAN)' unit

DOCS := $(wildcard README.md LICENSE src/ARCHITECTURE.md proto/PROTOCOL.md proto/PAGES.md proto/IMAGES.md)
install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/doc/cr-migrate
	install -m 755 $(PROGS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(DOCS) $(DESTDIR)$(PREFIX)/share/doc/cr-migrate

# Tests of cr-migrate: the program as a user runs it, and its parts.
$(addprefix $(B)/tests/unit/,test_cli test_cli_breaks test_cli_usage): | $(B)/cr-migrate
$(B)/tests/unit/test_cli_breaks: $(B)/migrate/settle.o $(B)/migrate/agent.o
$(B)/tests/unit/test_hosts: $(B)/migrate/hosts.o $(B)/migrate/units.o
