# cr-migrate: build, test and install. `make help` lists the targets.
CC ?= gcc
PREFIX ?= /usr/local
B := build
V ?= 0
Q := $(if $(filter 0,$(V)),@)

# Debian packages: what the build links against, and what the tests and the demo run besides.
BUILD_PKGS := gcc make pkg-config libprotobuf-c-dev protobuf-c-compiler libuv1-dev liblz4-dev \
	libcap-dev libxxhash-dev libjansson-dev libmnl-dev libelf-dev libseccomp-dev libbpf-dev
TEST_PKGS := libcmocka-dev libhiredis-dev redis-server redis-tools iperf3 iproute2 util-linux \
	procps perl jq python3 postgresql-15 nginx-light memcached nodejs openjdk-17-jdk-headless golang-go sqlite3 tmux \
	openssh-server openssh-client nftables
LINT_PKGS := clang-format cppcheck shellcheck
FUZZ_PKGS := clang
LIBS := libprotobuf-c libuv liblz4 libcap libxxhash jansson libmnl libelf libbpf

CFLAGS ?= -O2 -g
WARN := -Wall -Wextra -Wshadow -Wvla -Wstrict-prototypes -Wmissing-prototypes \
	-Wno-missing-field-initializers $(if $(CI),-Werror)
CPPFLAGS += -D_GNU_SOURCE -Isrc -I$(B) -I.
ALL_CFLAGS = -std=gnu17 $(WARN) $(CFLAGS) $(SAN) $(shell pkg-config --cflags $(LIBS) 2>/dev/null)
LDLIBS = $(shell pkg-config --libs $(LIBS) 2>/dev/null) -lpthread
PIE_CFLAGS := -std=gnu17 -Os -ffreestanding -fno-stack-protector -fpie -fno-plt -mno-red-zone \
	-mgeneral-regs-only -fno-asynchronous-unwind-tables -fcf-protection=none -fno-builtin -Isrc -I.

LIB_SRC := $(wildcard src/base/*.c src/kernel/*.c src/remote/*.c src/model/*.c src/resource/*.c \
	src/memory/*.c src/wire/*.c src/image/*.c src/source/*.c src/dest/*.c)
PROTO_SRC := $(patsubst proto/%.proto,$(B)/proto/%.pb-c.c,$(wildcard proto/*.proto))
LIB_OBJ := $(LIB_SRC:%.c=$(B)/%.o) $(PROTO_SRC:.c=.o) $(B)/src/remote/blob_image.o
PROGS := $(B)/cr-agent $(B)/page-server $(B)/cr-migrate $(B)/cr-image
UNIT := $(patsubst tests/unit/%.c,$(B)/tests/unit/%,$(wildcard tests/unit/test_*.c))
WORKLOADS := $(patsubst tests/workload/%.c,$(B)/tests/workload/%,$(wildcard tests/workload/*.c))

.PHONY: all lib help deps deps-check check unit e2e e2e-apps lint lint-deep asan bench demo install clean workloads unit-programs
.SECONDARY:
all: deps-check $(PROGS)
# Everything that is there compiles, programs included where their sources are.
lib: $(B)/libcr.a $(foreach p,agent:src/agent page-server:pageserver cr-migrate:migrate,\
	$(if $(wildcard $(lastword $(subst :, ,$(p)))/*.c),$(B)/$(patsubst agent,cr-agent,$(firstword $(subst :, ,$(p))))))

help:
	@echo 'all        build (the default); says which Debian packages are missing'
	@echo 'demo       as root: set up, build, migrate a Redis under load'
	@echo 'check      as root: set up, build, all tests; what CI runs'
	@echo 'unit       unit tests; no root'
	@echo 'e2e        as root: end-to-end tests alone'
	@echo 'e2e-apps   as root: real programs (Redis, nginx, Java, …) move under load'
	@echo 'bench      as root: measure; writes $(B)/bench.json'
	@echo 'lint       format, layers, cppcheck, shellcheck; lint-deep: clang-tidy, gcc -fanalyzer'
	@echo 'asan       unit tests with AddressSanitizer and UBSan'
	@echo 'fuzz       each fuzz target for FUZZ_SECONDS (10), or those that FUZZ_TARGETS names'
	@echo 'install    to $$DESTDIR$$PREFIX'
	@echo 'clean'

# `make` alone never installs: it says what is missing.
deps-check:
	@missing=$$(tools/packages $(BUILD_PKGS)); [ -z "$$missing" ] || { \
	  echo "missing Debian packages: $$missing" >&2; \
	  echo "install them with: sudo apt-get install $$missing (or run: sudo make demo)" >&2; exit 1; }
deps:
	$(Q)tools/packages --install $(BUILD_PKGS) $(TEST_PKGS)

# The agent's verbs speak like cr-migrate and place pages like the page-server.
$(B)/cr-agent: $(patsubst %.c,$(B)/%.o,$(wildcard src/agent/*.c)) $(addprefix $(B)/,migrate/report.o \
	migrate/report_json.o migrate/units.o migrate/hooks.o pageserver/place.o \
	pageserver/page_rx.o pageserver/lazy_image.o) $(B)/libcr.a
$(B)/page-server: $(patsubst %.c,$(B)/%.o,$(wildcard pageserver/*.c)) $(B)/migrate/units.o $(B)/libcr.a
$(B)/page-server: LDLIBS += -lseccomp
$(B)/cr-migrate: $(patsubst %.c,$(B)/%.o,$(wildcard migrate/*.c)) $(B)/libcr.a
$(B)/cr-image: $(patsubst %.c,$(B)/%.o,$(wildcard tools/cr-image/*.c)) $(B)/migrate/units.o $(B)/libcr.a
$(PROGS):
	@echo '  LD      $@'
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LDLIBS)

$(B)/libcr.a: $(LIB_OBJ)
	@echo '  AR      $@'
	$(Q)rm -f $@ && ar rcs $@ $^

$(B)/%.o: %.c | $(PROTO_SRC)
	@echo '  CC      $<'
	@mkdir -p $(@D)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/%.o: $(B)/%.c
	@echo '  CC      $<'
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -w -c -o $@ $<

$(B)/proto/%.pb-c.c: proto/%.proto
	@echo '  PROTOC  $<'
	@mkdir -p $(@D)
	$(Q)protoc-c --proto_path=proto --c_out=$(B)/proto $<

# The blob: freestanding, position independent, one flat section, embedded as bytes.
$(B)/pie/blob.elf: pie/blob.c pie/arch/x86_64.S pie/blob.lds $(wildcard pie/*.h pie/arch/*.h)
	@echo '  PIE     $@'
	@mkdir -p $(@D)
	$(Q)$(CC) $(PIE_CFLAGS) -nostdlib -static -Wl,-T,pie/blob.lds -Wl,--build-id=none -Wl,-z,noexecstack -o $@ pie/blob.c pie/arch/x86_64.S
$(B)/pie/blob.bin: $(B)/pie/blob.elf
	$(Q)objcopy -O binary $< $@
$(B)/src/remote/blob_image.o: src/remote/blob_image.S $(B)/pie/blob.bin
	@mkdir -p $(@D)
	$(Q)$(CC) -I$(B) -c -o $@ $<

$(B)/tests/unit/%: $(B)/tests/unit/%.o $(B)/libcr.a
	$(Q)$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $(filter-out %.a,$^) $(filter %.a,$^) -lcmocka $(LDLIBS)
$(B)/tests/workload/%: tests/workload/%.c $(wildcard tests/workload/*.h)
	@mkdir -p $(@D)
	$(Q)$(CC) -D_GNU_SOURCE -std=gnu17 -Wall -Wextra -O1 -g -Itests/workload -o $@ $< -lpthread $(WL_LIBS_$*)
WL_LIBS_redis_writer := -lhiredis
workloads: $(WORKLOADS)

# To be built without being run.
unit-programs: $(UNIT)
unit: deps-check unit-programs
	$(Q)tools/run-tests $(UNIT)

clean:
	rm -rf $(B) $(B)-asan $(B)-fuzz

-include $(shell find $(B) -name '*.d' 2>/dev/null)
include tests/tests.mk
