# Fuzzing. `make fuzz` runs every target of tests/fuzz for FUZZ_SECONDS (FUZZ_TARGETS chooses some) and adds
# what it finds to $(B)-fuzz/corpus; `make fuzz-merge` brings that, minimised, into tests/fuzz/corpus, which
# `make fuzz-replay` (and so `make check`) runs without libFuzzer. Both builds have ASan and UBSan.
FUZZ_TARGETS ?= $(sort $(patsubst tests/fuzz/fuzz_%.c,%,$(wildcard tests/fuzz/fuzz_*.c)))
FUZZ_SECONDS ?= 10
FUZZ_PROGS = $(FUZZ_TARGETS:%=$(B)/tests/fuzz/fuzz_%)
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=undefined
SAN_CFLAGS := -O1 -g -fno-omit-frame-pointer
FUZZ_MAKE = $(MAKE) --no-print-directory B=$(B)-fuzz CC=clang CFLAGS='$(SAN_CFLAGS)' \
	SAN='$(FUZZ_SAN) -fsanitize=fuzzer-no-link' FUZZ_LINK=-fsanitize=fuzzer

# Without FUZZ_LINK: the main function that replays files.
$(B)/tests/fuzz/fuzz_%: $(B)/tests/fuzz/fuzz_%.o $(if $(FUZZ_LINK),,$(B)/tests/fuzz/replay.o) $(B)/libcr.a
	@echo '  LD      $@'
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(FUZZ_LINK) -o $@ $(filter-out %.a,$^) $(filter %.a,$^) $(LDLIBS)
# It includes the files whose static functions it calls; all else of the page-server but its main is linked.
$(B)/tests/fuzz/fuzz_page_server: $(patsubst %.c,$(B)/%.o,$(filter-out \
	$(addprefix pageserver/,main.c accept.c control.c),$(wildcard pageserver/*.c))) $(B)/migrate/units.o
$(B)/tests/fuzz/fuzz_page_server: LDLIBS += -lseccomp
$(B)/tests/fuzz/seeds: $(B)/tests/fuzz/seeds.o $(B)/libcr.a
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LDLIBS)

.PHONY: fuzz fuzz-programs fuzz-merge fuzz-replay fuzz-replay-programs
fuzz-programs: $(FUZZ_PROGS) $(B)/tests/fuzz/seeds
fuzz fuzz-merge:
	$(Q)tools/packages --install $(FUZZ_PKGS)
	+$(Q)$(FUZZ_MAKE) fuzz-programs
	$(Q)tests/fuzz/run $@ $(B)-fuzz $(FUZZ_SECONDS) $(FUZZ_TARGETS)

fuzz-replay-programs:
	+$(Q)$(MAKE) --no-print-directory B=$(B)-asan CFLAGS='$(SAN_CFLAGS)' SAN='$(FUZZ_SAN)' fuzz-programs
fuzz-replay: fuzz-replay-programs
	$(Q)CR_FUZZ=$(B)-asan/tests/fuzz tools/run-tests tests/fuzz/replay.t
