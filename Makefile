# SPDX-License-Identifier: Apache-2.0
# make, make check, make demo, make install. Variables: CC, PREFIX, DESTDIR, BUILD, SAN=1 (ASan and UBSan).
CC ?= gcc
Q = @
ifdef V
Q =
endif
PREFIX ?= /usr/local
BUILD ?= build
WARN = -std=gnu11 -Wall -Wextra -Werror
CFLAGS ?= -O2 -g
HOST_CFLAGS = $(WARN) $(CFLAGS) -D_GNU_SOURCE -pthread -MMD -MP
# kylinx is one static file: it executes itself in views whose dynamic linker and libraries are anybody's. Only the
# sanitizers need a dynamic one (KX_DYNAMIC), which has no exec where the view isn't the host's.
ifdef SAN
HOST_CFLAGS += -fsanitize=address,undefined -fno-omit-frame-pointer -DKX_DYNAMIC
ZYDIS = -lZydis
else
HOST_CFLAGS += -fPIE -fdata-sections
# Variables by alignment: counters and flags, which each process writes, are not between the tables, a page for each.
STATIC = -static-pie -Wl,-z,pack-relative-relocs -Wl,--sort-section=alignment $(patsubst %,-Wl$(,)--wrap=%,malloc calloc realloc free fstat)
ZYDIS_A := $(shell $(CC) -print-file-name=libZydis.a)
ifeq ($(ZYDIS_A),libZydis.a) # Debian has it as a shared library alone
ZYDIS = $(BUILD)/zydis.o -Wl,-T,$(BUILD)/zydis.lds
ZYDIS_DEP = $(BUILD)/zydis.o
else
ZYDIS = -lZydis
endif
endif
, = ,
LDLIBS = $(ZYDIS) -l:libsodium.a -pthread
# Guest code: no libc, no vector registers (they are the program's), no data of its own.
GUEST_CFLAGS = $(WARN) -O2 -g -ffreestanding -nostdlib -fno-stack-protector -fcf-protection=none -mgeneral-regs-only \
	-fno-asynchronous-unwind-tables -fno-builtin-memcpy -fvisibility=hidden -MMD -MP

MONITOR_SRC = $(sort $(wildcard monitor/core/*.c monitor/dev/*.c monitor/arch/x86_64/*.c))
MONITOR_ASM = monitor/arch/x86_64/host.S monitor/core/image.S
CLI_SRC = $(sort $(wildcard cli/*.c))
UTIL_SRC = $(sort $(wildcard util/*.c))
LIBOS_SRC = $(sort $(wildcard libos/core/*.c))
LIBOS_ASM = libos/arch/x86_64/entry.S

# What the images of the store depend on: they are shared only by monitors that would make the same.
STORE_FORMAT_SRC = $(sort $(wildcard monitor/arch/x86_64/patch*.[ch])) abi/kx_abi.h monitor/core/rseq.c monitor/core/text.h \
	monitor/core/store.c monitor/core/store_add.c monitor/core/store.h monitor/core/store_priv.h
STORE_FORMAT := $(shell cat $(STORE_FORMAT_SRC) | sha256sum | cut -c1-16)

HOST_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(MONITOR_SRC) $(CLI_SRC) $(UTIL_SRC)) $(patsubst %.S,$(BUILD)/%.o,$(MONITOR_ASM))
LIBOS_OBJ = $(patsubst %.c,$(BUILD)/%.o,$(LIBOS_SRC)) $(patsubst %.S,$(BUILD)/%.o,$(LIBOS_ASM))

all: $(BUILD)/kylinx $(BUILD)/libkylinx.so.0

# For programs that know of KylinX; kylinx itself does not use it.
$(BUILD)/libkylinx.so.0: lib/libkylinx.c include/kylinx.h abi/kx_abi.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(WARN) $(CFLAGS) -shared -fPIC -Wl,-soname,libkylinx.so.0 \
		-Wl,-z,relro -Wl,-z,now -o $@ $<

$(BUILD)/kylinx: $(HOST_OBJ) $(ZYDIS_DEP)
	$(Q)$(CC) $(HOST_CFLAGS) $(STATIC) $(LDFLAGS) -o $@ $(HOST_OBJ) $(LDLIBS)

$(BUILD)/solink: tools/solink.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(WARN) -O1 -D_GNU_SOURCE -o $@ $<

$(BUILD)/zydis.o: $(BUILD)/solink
	$(Q)$(BUILD)/solink $(shell $(CC) -print-file-name=libZydis.so) $(BUILD)/zydis
	$(Q)$(CC) -c -o $@ $(BUILD)/zydis.S

$(BUILD)/libos/%.o: libos/%.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(GUEST_CFLAGS) -fPIE -c -o $@ $<

$(BUILD)/libos/%.o: libos/%.S
	@mkdir -p $(@D)
	$(Q)$(CC) -c -MMD -MP -o $@ $<

$(BUILD)/libos.elf: $(LIBOS_OBJ) libos/libos.lds
	$(Q)$(CC) -nostdlib -static -no-pie -Wl,-T,libos/libos.lds -Wl,--build-id=none -Wl,--no-warn-rwx-segments -o $@ $(LIBOS_OBJ)

$(BUILD)/libos.bin: $(BUILD)/libos.elf
	$(Q)objcopy -O binary $< $@

$(BUILD)/vdso.so: libos/vdso/vdso.c libos/vdso/vdso.lds libos/core/ktime.h abi/kx_abi.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(WARN) -O2 -ffreestanding -nostdlib -shared -fPIC -fno-stack-protector -fcf-protection=none \
		-mgeneral-regs-only -fasynchronous-unwind-tables -Wl,-T,libos/vdso/vdso.lds -Wl,-soname,linux-vdso.so.1 \
		-Wl,--hash-style=both -Wl,--eh-frame-hdr -Wl,--build-id=sha1 -Wl,-z,max-page-size=4096 -Wl,-z,noexecstack \
		-Wl,--no-undefined -o $@ $<

$(BUILD)/monitor/core/image.o: monitor/core/image.S $(BUILD)/libos.bin $(BUILD)/vdso.so
	@mkdir -p $(@D)
	$(Q)$(CC) -c -DLIBOS_BIN='"$(BUILD)/libos.bin"' -DVDSO_SO='"$(BUILD)/vdso.so"' -o $@ $<

$(BUILD)/monitor/core/store.o: $(STORE_FORMAT_SRC)
$(BUILD)/monitor/core/store.o: HOST_CFLAGS += -DSTORE_FORMAT='"format-$(STORE_FORMAT)"'

$(BUILD)/%.o: %.c
	@mkdir -p $(@D)
	$(Q)$(CC) $(HOST_CFLAGS) -c -o $@ $<

$(BUILD)/%.o: %.S
	@mkdir -p $(@D)
	$(Q)$(CC) -c -MMD -MP -o $@ $<

install: all bench-programs
	install -D -m 755 $(BUILD)/kylinx $(DESTDIR)$(PREFIX)/bin/kylinx
	install -D -m 644 $(BUILD)/libkylinx.so.0 $(DESTDIR)$(PREFIX)/lib/libkylinx.so.0
	ln -sf libkylinx.so.0 $(DESTDIR)$(PREFIX)/lib/libkylinx.so
	install -D -m 644 include/kylinx.h $(DESTDIR)$(PREFIX)/include/kylinx.h
	install -D -m 644 docs/libkylinx.3 $(DESTDIR)$(PREFIX)/share/man/man3/libkylinx.3
	install -D -m 644 docs/kylinx.1 $(DESTDIR)$(PREFIX)/share/man/man1/kylinx.1
	install -D -m 644 docs/kylinx-policy.5 $(DESTDIR)$(PREFIX)/share/man/man5/kylinx-policy.5
	install -d $(DESTDIR)$(PREFIX)/libexec/kylinx/bench
	install -m 755 $(BENCH_BIN) $(DESTDIR)$(PREFIX)/libexec/kylinx/bench/
	install -m 644 $(BENCH_PY) $(DESTDIR)$(PREFIX)/libexec/kylinx/bench/

demo:
	tests/deps.sh demo
	$(MAKE) all
	demo/demo.sh

BENCH_BIN = $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))
BENCH_PY = bench/run.py bench/harness.py bench/groups.py bench/loops.py bench/report.py
BENCH = BUILD=$(BUILD) python3 bench/run.py --claims README.md --claims SPECIFICATION.md

# The programs are measured, so they are built alike whatever the rest is built with.
$(BUILD)/bench/%: bench/%.c bench/bench.h
	@mkdir -p $(@D)
	$(Q)$(CC) $(WARN) -Wno-unknown-warning-option -Wno-clobbered -O2 -pthread -o $@ $<

bench-programs: $(BENCH_BIN)

bench: all bench-programs
	tests/deps.sh bench
	$(BENCH)

bench-quick: all bench-programs
	$(BENCH) --quick

# Instructions, on an emulated machine that counts them.
bench-count: all bench-programs
	python3 tests/emulated.py --count --seconds 4500 -- python3 bench/count.py

# make bench-compare BASE=commit: that commit's kylinx in place of the process.
bench-compare: all bench-programs
	BUILD=$(BUILD) bench/compare.sh "$(BASE)"

clean:
	rm -rf $(BUILD)

-include $(HOST_OBJ:.o=.d) $(LIBOS_OBJ:.o=.d)

.PHONY: all install demo bench bench-quick bench-count bench-compare bench-programs clean

-include tests/tests.mk
