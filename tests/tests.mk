# SPDX-License-Identifier: Apache-2.0
# make check: all tests. make check-long: what takes three quarters of an hour more. make check-san: unit and guest tests with everything on the host built with ASan and UBSan.
# Included by the Makefile, after its first target. A unit test is listed here; a guest test is any tests/guest/*/*.c.
T = $(BUILD)/tests
HAVE_CLANG := $(shell command -v clang)
HAVE_MUSL := $(shell command -v musl-gcc)

# name: tests/unit/test_NAME.c and these sources; its libraries; its sanitizers when not both
UNIT = alone copy elf err family find fnap lend libcache lost maps needs patch policy random relink room seccomp spare_pages strace time
UNIT_SRC_alone = tests/unit/alone_libos.c libos/core/accept.c libos/core/ahead.c monitor/core/batch.c \
	$(addprefix monitor/core/batch_,accept.c ahead.c bell.c io.c left.c listen.c pool.c room.c socks.c) util/log.c util/quiet.c
UNIT_DEP_alone = libos/core/batch.c tests/guest/alone/alone.c $(wildcard tests/guest/*.h)
UNIT_SAN_alone = undefined
UNIT_SRC_copy = libos/arch/x86_64/entry.S
UNIT_SRC_find = monitor/arch/x86_64/host.S
UNIT_LIBS_copy = -no-pie
UNIT_SRC_elf = monitor/core/elf.c monitor/core/load.c util/err.c
UNIT_SRC_patch = $(wildcard monitor/arch/x86_64/patch*.c)
UNIT_LIBS_patch = -lZydis
UNIT_SRC_policy = monitor/core/policy.c monitor/core/policy_read.c monitor/core/keys.c monitor/core/sign.c \
	monitor/core/elf.c util/dirs.c util/err.c util/sha256.c
UNIT_DEP_policy = $(wildcard tests/unit/policy/*.h)
UNIT_LIBS_policy = -l:libsodium.a
UNIT_SRC_fnap = libos/core/futex.c monitor/core/sys_futex.c monitor/core/maps.c
UNIT_DEP_fnap = monitor/core/futex_nap.c tests/guest/handover/handover.c tests/guest/asleep.h
UNIT_SAN_fnap = undefined
UNIT_SRC_err = util/err.c
UNIT_SRC_lost = monitor/core/vcpu_lost.c
UNIT_SRC_needs = monitor/core/needs.c util/err.c
UNIT_SRC_random = libos/core/random.c
UNIT_SRC_relink = $(wildcard monitor/core/relink*.c) monitor/core/elf.c $(addprefix util/,err.c log.c quiet.c sha256.c)
UNIT_LIBS_relink = -ldl -l:libsodium.a $(patsubst %,-Wl$(,)--wrap=%,malloc calloc realloc mprotect)
UNIT_DEP_relink = $(patsubst %,$(T)/unit/relink_%.so,v1 v2 user other)
UNIT_SRC_seccomp = monitor/core/seccomp.c util/err.c
UNIT_SRC_strace = $(wildcard monitor/core/strace*.c) monitor/core/stats.c util/log.c util/quiet.c
UNIT_DEP_maps = monitor/core/maps.c
UNIT_DEP_libcache = monitor/core/libcache.c
UNIT_SRC_spare_pages = monitor/core/maps.c
UNIT_DEP_spare_pages = monitor/core/spare_pages.c
UNIT_SAN_spare_pages = undefined
UNIT_DEP_lend = monitor/core/batch_lend.c
UNIT_DEP_room = monitor/core/batch_room.c
UNIT_DEP_family = monitor/core/family.c
UNIT_DEP_time = monitor/core/timepage.c $(BUILD)/vdso.so
UNIT_SAN_time = undefined

# Also built as these. musl lacks some headers and functions that others use.
GUEST_STATIC = descriptors file root rseq time
GUEST_MUSL = clone rseq time

HEADERS = $(wildcard abi/*.h abi/*.def monitor/*/*.h monitor/arch/*/*.h libos/*/*.h util/*.h)
TEST_CFLAGS = $(WARN) -O1 -g -D_GNU_SOURCE= -pthread
GUEST_TEST_CFLAGS = -std=gnu11 -Wall -Wextra -O2 -g -pthread

# What test_relink.c replaces, and who uses it.
$(T)/unit/relink_v%.so: tests/unit/relink/lib.c tests/unit/relink/lib.map tests/tests.mk
	@mkdir -p $(@D)
	$(CC) -O1 -fPIC -shared -DV=$* -Wl,-soname,librelink.so.1 -Wl,-z,relro -Wl,-z,now \
		-Wl,--version-script=tests/unit/relink/lib.map -o $@ $<

$(T)/unit/relink_user.so $(T)/unit/relink_other.so: tests/unit/relink/user.c $(T)/unit/relink_v1.so
	$(CC) -O1 -fPIC -shared -Wl,-z,relro -Wl,-z,now -o $@ $^

# $1 name, $2 suffix, $3 compiler, $4 sanitizers
define unit_rule
$(T)/unit/test_$1.$2: tests/unit/test_$1.c $$(UNIT_SRC_$1) $$(UNIT_DEP_$1) $$(HEADERS) tests/tests.mk
	@mkdir -p $$(@D)
	$3 $$(TEST_CFLAGS) $(if $4,-fsanitize=$4 -fno-sanitize-recover=all) -o $$@ tests/unit/test_$1.c \
		$$(UNIT_SRC_$1) $$(UNIT_LIBS_$1)
unit-tests: $(T)/unit/test_$1.$2
endef
SAN_OF = $(or $(UNIT_SAN_$1),address$(,)undefined)
, = ,
$(foreach u,$(UNIT),$(eval $(call unit_rule,$u,gcc,gcc)))
$(foreach u,$(UNIT),$(eval $(call unit_rule,$u,san,gcc,$(call SAN_OF,$u))))
ifneq ($(HAVE_CLANG),)
$(foreach u,$(UNIT),$(eval $(call unit_rule,$u,clang,clang)))
endif

$(T)/unit/abi_dump $(T)/unit/gen_hcall_doc: $(T)/unit/%: tests/unit/%.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -o $@ $<

$(T)/unit/fuzz_elf: tests/fuzz/fuzz_elf.c monitor/core/elf.c util/err.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $(filter %.c,$^)

$(T)/unit/fuzz_strace: tests/fuzz/fuzz_strace.c $(UNIT_SRC_strace) $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $(filter-out monitor/core/stats.c,$(filter %.c,$^))

$(T)/unit/fuzz_unwind: tests/fuzz/fuzz_unwind.c monitor/core/unwind.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $(filter %.c,$^)

# These include what they try.
$(T)/unit/fuzz_cmsg: tests/fuzz/fuzz_cmsg.c monitor/core/sys_net.c abi/kx_dgram_take.h $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $<

$(T)/unit/fuzz_batch: tests/fuzz/fuzz_batch.c $(addprefix monitor/core/batch_,io.c left.c room.c socks.c) util/log.c util/quiet.c $(HEADERS)
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $(filter tests/% util/%.c,$^)

$(T)/unit/libos_count: tests/unit/libos_count.c abi/kx_abi.h
	@mkdir -p $(@D)
	$(CC) $(TEST_CFLAGS) -o $@ $<

# A monitor whose calls can be made to fail: fail.c stands before alloc.c's, and before libc's.
FAIL_WRAP = mmap mprotect mremap madvise pread memfd_create ftruncate ioctl fcntl open openat host_call
FAIL_OBJ = $(filter-out %/alloc.o,$(HOST_OBJ)) $(T)/fail/alloc.o $(T)/fail/fail.o
$(T)/fail/alloc.o: $(BUILD)/monitor/core/alloc.o
	@mkdir -p $(@D)
	objcopy $(foreach f,malloc calloc realloc,--redefine-sym __wrap_$f=own_$f) $< $@

$(T)/fail/fail.o: tests/fail/fail.c
	@mkdir -p $(@D)
	$(CC) $(WARN) -O1 -fPIE -c -o $@ $<

$(T)/kylinx-fail: $(FAIL_OBJ) $(ZYDIS_DEP)
	$(CC) $(HOST_CFLAGS) $(STATIC) $(patsubst %,-Wl$(,)--wrap=%,$(FAIL_WRAP)) -o $@ $(FAIL_OBJ) $(LDLIBS)
ifndef SAN # which has an allocator of its own
unit-tests guest-tests: $(T)/kylinx-fail
endif

unit-tests: $(T)/unit/abi_dump $(T)/unit/gen_hcall_doc $(T)/unit/fuzz_elf $(T)/unit/fuzz_strace $(T)/unit/fuzz_unwind $(T)/unit/fuzz_batch $(T)/unit/fuzz_cmsg $(T)/unit/libos_count $(BUILD)/libos.bin bench-programs

# $1 source, $2 suffix, $3 compiler and link options
define guest_rule
$(T)/guest/$(basename $(notdir $1)).$2: $1 $(wildcard tests/guest/*.h) $$(wildcard $$(dir $1)*.h) $(if $(filter %/shares.c,$1),tests/guest/alone/alone.c) $(if $(filter %/calls.c %/hostile.c %/relative.c,$1),$(HEADERS))
	@mkdir -p $$(@D)
	$3 $$(GUEST_TEST_CFLAGS) -o $$@ $1 $$(GUEST_LIBS_$(basename $(notdir $1)))
guest-tests: $(T)/guest/$(basename $(notdir $1)).$2
endef
GUEST_SRC = $(wildcard tests/guest/*/*.c)
guest_src = $(filter $(addprefix %/,$(addsuffix .c,$1)),$(GUEST_SRC))
$(foreach s,$(GUEST_SRC),$(eval $(call guest_rule,$s,dyn,gcc)))
$(foreach s,$(call guest_src,$(GUEST_STATIC)),$(eval $(call guest_rule,$s,static,gcc -static)))
ifneq ($(HAVE_MUSL),)
$(foreach s,$(call guest_src,$(GUEST_MUSL)),$(eval $(call guest_rule,$s,musl,musl-gcc)))
endif

unit-tests guest-tests:

check: all unit-tests guest-tests
	@BUILD=$(BUILD) python3 tests/run.py $(CHECK_ARGS)

# Servers beside native ones, IPC, connections by the thousand, and a soak of KX_SOAK seconds (300). One alone:
# make check-long CHECK_ARGS="--only soak".
check-long: all guest-tests
	@BUILD=$(BUILD) python3 tests/run.py --long $(CHECK_ARGS)

check-san:
	@$(MAKE) --no-print-directory SAN=1 BUILD=$(BUILD)/san check CHECK_ARGS="--only '^(unit|guest)/' $(CHECK_ARGS)"

# On a machine that QEMU emulates, with an SVM.
check-svm: all unit-tests guest-tests
	@BUILD=$(BUILD) python3 tests/emulated.py --seconds 36000 -- python3 -u tests/run.py --only '^(?!unit|style|build|golden|fuzz|svm|vmx)' $(CHECK_ARGS)

# On one that Bochs emulates, with a VMX. One alone: make check-vmx CHECK_ARGS="--only guest/sig.dyn".
check-vmx: all guest-tests
	@BUILD=$(BUILD) python3 tests/emulated_vmx.py --seconds 86400 -- python3 -u tests/run.py --only '^guest/' $(CHECK_ARGS)

# The table of programs, from a run of all of them.
compatibility: all
	KYLINX=$(BUILD)/kylinx python3 tests/integration/test_programs.py --write-doc

# All that tests/integration/test_python.py knows of Python's own tests; some forty minutes.
python-tests: all
	python3 tests/integration/test_python.py $(BUILD)/kylinx --all

.PHONY: check check-long check-san check-svm check-vmx unit-tests guest-tests compatibility python-tests
