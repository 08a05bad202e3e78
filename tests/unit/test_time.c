/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The time page, its reader and the vDSO, in one host process: the page and the vDSO image lie at the addresses that
 * they have in a guest, and %gs points to a thread area whose entry makes the host's system call.
 *
 * Usage: test_time [vdso.so]   without the image its tests are skipped. Not under ASan: its shadow is in the way.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
#include "../../libos/core/ktime.h"

/* A host whose clocks can be set and slewed: the module under test is compiled against it. */
static _Atomic int64_t fake_real, fake_boot, fake_ppm, fake_start, fake_gap;

static int fake_clock_gettime(clockid_t clk, struct timespec *ts)
{
	int64_t ns;

	if (clock_gettime(clk, ts))
		return -1;
	ns = ts->tv_sec * 1000000000LL + ts->tv_nsec;
	if (fake_ppm && clk != CLOCK_MONOTONIC_RAW) {
		struct timespec m;

		clock_gettime(CLOCK_MONOTONIC, &m);
		ns += (m.tv_sec * 1000000000LL + m.tv_nsec - fake_start) * fake_ppm / 1000000;
	}
	ns += fake_gap;
	if (clk == CLOCK_REALTIME || clk == CLOCK_TAI)
		ns += fake_real;
	if (clk == CLOCK_BOOTTIME)
		ns += fake_boot;
	ts->tv_sec = ns / 1000000000;
	ts->tv_nsec = ns % 1000000000;
	return 0;
}
#define clock_gettime fake_clock_gettime
#include "../../monitor/core/timepage.c"
#undef clock_gettime

#define RUN_NS 2000000000LL
#define SLACK_NS 5000 /* how far the page may be from the host's clock */

static const int clocks[] = { CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_TAI, CLOCK_MONOTONIC_RAW };
#define NR_CLOCKS 5

static struct kx_vvar *page;
static int failures;
static _Atomic bool stop;
static int64_t newest[NR_CLOCKS];
static _Atomic int64_t worst[NR_CLOCKS];
static _Atomic unsigned long reads, asked, back, far;
static bool host_tsc;

static void check(bool ok, const char *name)
{
	printf("%s %s\n", ok ? "ok" : "FAIL", name);
	failures += !ok;
}

static int64_t now_ns(int clk)
{
	struct timespec ts;

	clock_gettime(clk, &ts);
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* As a guest: by the page, else by the monitor. */
static int64_t read_clock(int clk)
{
	struct timespec ts;
	int64_t ns;

	if (!kt_read_ns(page, clk, &ns))
		return ns;
	asked++;
	if (!timepage_gettime(page, clk, &ts))
		return -1;
	return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}

/* How far the page is from the host's clock, by two reads between which nobody else ran. */
static int64_t distance_of(int clk)
{
	for (;;) {
		int64_t before = now_ns(clk), ns = read_clock(clk);

		if (now_ns(clk) - before < 50000)
			return ns - before;
	}
}

static void *updater(void *arg)
{
	(void)arg;
	while (!stop) {
		timepage_update(page);
		usleep(1000);
	}
	return NULL;
}

/* Each value is at or after the newest that any thread had published before the read. */
static void *reader(void *arg)
{
	int64_t distance = (int64_t)(intptr_t)arg;

	while (!stop) {
		for (int i = 0; i < NR_CLOCKS; i++) {
			int64_t seen = __atomic_load_n(&newest[i], __ATOMIC_SEQ_CST);
			int64_t before = now_ns(clocks[i]), ns = read_clock(clocks[i]);
			int64_t after = now_ns(clocks[i]);
			int64_t off = ns < before ? before - ns : ns > after ? ns - after : 0;

			reads++;
			back += ns < seen;
			far += distance && off > distance;
			if (off > worst[i])
				worst[i] = off;
			while (seen < ns && !__atomic_compare_exchange_n(&newest[i], &seen, ns, true, __ATOMIC_SEQ_CST,
									 __ATOMIC_SEQ_CST))
				;
		}
	}
	return NULL;
}

static void run_readers(int64_t duration_ns, bool with_updater, int64_t distance)
{
	pthread_t t[3];
	int64_t end = now_ns(CLOCK_MONOTONIC) + duration_ns;

	stop = false;
	reads = asked = back = far = 0;
	for (int i = 0; i < NR_CLOCKS; i++)
		worst[i] = newest[i] = 0;
	for (int i = 0; i < 2; i++)
		pthread_create(&t[i], NULL, reader, (void *)(intptr_t)distance);
	if (with_updater)
		pthread_create(&t[2], NULL, updater, NULL);
	while (now_ns(CLOCK_MONOTONIC) < end || (reads < 20000 && now_ns(CLOCK_MONOTONIC) < end + 60000000000))
		usleep(10000);
	stop = true;
	for (int i = 0; i < 2 + with_updater; i++)
		pthread_join(t[i], NULL);
	printf("# %lu reads, %lu asked, %lu back, %lu far; worst ns:", reads, asked, back, far);
	for (int i = 0; i < NR_CLOCKS; i++)
		printf(" %ld", (long)worst[i]);
	printf("\n");
}

static void test_threads(void)
{
	run_readers(RUN_NS, true, SLACK_NS);
	check(reads > 10000 && !back, "monotonic over threads");
	check(!far, "close to the host's clocks");
	check(asked < reads / 100, "answered by the page");
	run_readers(RUN_NS / 4, false, SLACK_NS);
	check(!back && !far && asked > 0, "expired pages are refreshed by asking");
}

static void test_steps(void)
{
	int64_t d;

	fake_real = -3600000000000LL;
	usleep(120000);
	timepage_update(page);
	d = distance_of(CLOCK_REALTIME) + 3600000000000LL;
	check(d > -100000 && d < 100000, "realtime set back");
	fake_real = 0;
	fake_boot = 60000000000LL;
	usleep(120000);
	timepage_update(page);
	d = distance_of(CLOCK_REALTIME);
	check(d > -100000 && d < 100000, "realtime set forward");
	d = distance_of(CLOCK_BOOTTIME) - 60000000000LL;
	check(d > -100000 && d < 100000, "boottime after a suspend");
	fake_boot = 0;

	/* The host slows down hard, then a jump back that no host makes: late or early, never backwards. */
	fake_start = now_ns(CLOCK_MONOTONIC);
	fake_ppm = -500;
	run_readers(RUN_NS / 4, true, 0);
	check(!back, "monotonic while the host's clock is slewed");
	fake_ppm = 0;
	run_readers(RUN_NS / 4, true, 0);
	check(!back, "monotonic when the slewing ends");
	fake_gap = -1000000;
	run_readers(RUN_NS / 4, true, 0);
	check(!back, "monotonic over a step back of 1 ms");
	d = distance_of(CLOCK_MONOTONIC) - fake_gap;
	check(d > -100000 && d < 100000, "converged after it");
	fake_gap = 0;
}

static void test_reader(void)
{
	static struct kx_vvar v;
	int64_t s, n, ns, a, b;

	check(kt_read(&v, KT_MONOTONIC, &s, &n) == 1, "a zero page asks");
	check(kt_read(page, 2, &s, &n) == 1 && kt_read(page, -1, &s, &n) == 1, "other clocks ask");
	timepage_update(page);
	v = *page;
	check(!kt_read_ns(&v, KT_MONOTONIC, &ns), "a copy answers");
	v.seq |= 1;
	check(kt_read_ns(&v, KT_MONOTONIC, &ns) == 1, "a stuck writer asks");
	v = *page;
	v.max_delta = 0;
	check(kt_read_ns(&v, KT_MONOTONIC, &ns) == 1, "an old page asks");
	v = *page;
	v.max_delta = 100000000000;
	v.tsc_base = kt_rdtsc() + 10000000000;
	check(!kt_read_ns(&v, KT_MONOTONIC, &ns) && ns == v.mono_ns, "a time stamp before the segment");
	v.tsc_base = kt_rdtsc() + 200000000000;
	check(kt_read_ns(&v, KT_MONOTONIC, &ns) == 1, "one of another counter asks");
	do {
		s = read_clock(CLOCK_REALTIME);
		a = read_clock(CLOCK_REALTIME_COARSE);
		b = read_clock(CLOCK_REALTIME);
	} while (b - s > 50000); /* somebody else ran meanwhile */
	check(a <= b && b - a < 4000000, "coarse and fine agree");
}

static void test_measured(void)
{
	static struct kx_vvar v;
	struct timespec ts;
	int64_t before, after, ns;

	timepage_init(&v, true, 0);
	ns = (int64_t)(kt_rdtsc() - v.tsc_base);
	check(ns >= 0 && ns < 100000000000, "the host's TSC");
	before = now_ns(CLOCK_MONOTONIC);
	timepage_gettime(&v, CLOCK_MONOTONIC, &ts);
	ns = ts.tv_sec * 1000000000LL + ts.tv_nsec;
	after = now_ns(CLOCK_MONOTONIC);
	check(ns > before - SLACK_NS && ns < after + SLACK_NS, "time with a measured rate");
	timepage_fork_lock();
	timepage_update(&v);
	timepage_fork_unlock();

	memset(&v, 0, sizeof(v));
	timepage_init(&v, false, 2000000);
	timepage_update(&v);
	check(!v.valid && !timepage_gettime(&v, CLOCK_MONOTONIC, &ts), "no TSC, no page");
}

/* Frequencies as KVM tells them: rounded, or wrong by 0.1 %; the page converges without ever stepping back. */
static void test_khz(void)
{
	uint32_t khz = (uint32_t)(((unsigned __int128)1000000 << 32) / tp.mono.rate);

	for (int i = 0; i < 3; i++) {
		timepage_init(page, true, khz + (uint32_t)((i - 1) * (int)(khz / 1000)));
		usleep(300);
		run_readers(RUN_NS / 40, true, 0);
		check(!back, "monotonic from the first moment");
		check(worst[1] < SLACK_NS, "close from the first moment");
	}
}

/* ---- vDSO ------------------------------------------------------------------------------------------------ */
_Atomic unsigned long entries;

/* What the LibOS entry does for a trampoline: rax = nr, rcx = address after it, r11 = where to go on. */
__asm__(".text\n"
	"fake_entry:\n\t"
	"cmp %rcx, %r11\n\t"
	"jne 1f\n\t"
	"lock incq entries(%rip)\n\t"
	"lea -128(%rsp), %rsp\n\t"
	"push %r11\n\t"
	"syscall\n\t"
	"pop %r11\n\t"
	"lea 128(%rsp), %rsp\n\t"
	"xor %ecx, %ecx\n\t"
	"jmp *%r11\n"
	"1:\tud2\n");
extern char fake_entry[];

static struct {
	const char *name;
	void *addr;
	bool versioned;
} symbols[] = { { "__vdso_clock_gettime", 0, 0 },
		{ "__vdso_gettimeofday", 0, 0 },
		{ "__vdso_time", 0, 0 },
		{ "__vdso_getcpu", 0, 0 },
		{ "__vdso_clock_getres", 0, 0 },
		{ "clock_gettime", 0, 0 },
		{ "gettimeofday", 0, 0 },
		{ "time", 0, 0 },
		{ "getcpu", 0, 0 },
		{ "clock_getres", 0, 0 } };
#define NR_SYMBOLS (sizeof(symbols) / sizeof(symbols[0]))

static bool vdso_map(const char *path)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	void *p;
	bool ok;

	if (fd < 0 || fstat(fd, &st)) {
		perror(path);
		return false;
	}
	check(st.st_size > 0 && st.st_size < 0x10000, "vdso: smaller than 64 KiB");
	p = mmap((void *)KX_VDSO_BASE, 0x10000, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	ok = p == (void *)KX_VDSO_BASE && read(fd, p, 0x10000) == st.st_size;
	ok = ok && !mprotect(p, 0x10000, PROT_READ | PROT_EXEC);
	close(fd);
	return ok;
}

/* As musl does: PT_LOAD and PT_DYNAMIC, DT_HASH for the number of symbols, name and version. */
static void vdso_symbols(const char *base)
{
	const Elf64_Ehdr *eh = (const void *)base;
	const Elf64_Phdr *ph = (const void *)(base + eh->e_phoff);
	const Elf64_Shdr *sh = (const void *)(base + eh->e_shoff);
	const Elf64_Dyn *dyn = NULL;
	const Elf64_Sym *sym = NULL;
	const Elf64_Verdef *vd = NULL;
	const uint16_t *versym = NULL;
	const uint32_t *hash = NULL;
	const char *str = NULL;
	uint64_t soname = 0, load_end = 0;
	int loads = 0, version = -1, found = 0;
	bool plain = true, gnu_hash = false;

	for (int i = 0; i < eh->e_phnum; i++) {
		if (ph[i].p_type == PT_LOAD) {
			loads++;
			load_end = ph[i].p_filesz;
			plain &= !ph[i].p_offset && !ph[i].p_vaddr && ph[i].p_filesz == ph[i].p_memsz;
			plain &= ph[i].p_flags == (PF_R | PF_X);
		} else if (ph[i].p_type == PT_DYNAMIC) {
			dyn = (const void *)(base + ph[i].p_vaddr);
			plain &= ph[i].p_offset == ph[i].p_vaddr;
		}
	}
	check(loads == 1 && plain && dyn, "vdso: one R+X segment and a dynamic section");
	for (int i = 0; i < eh->e_shnum; i++)
		if (sh[i].sh_flags & SHF_ALLOC) {
			plain &= sh[i].sh_offset + sh[i].sh_size <= load_end;
			plain &= !((sh[i].sh_type == SHT_RELA || sh[i].sh_type == SHT_REL) && sh[i].sh_size);
		}
	for (; dyn && dyn->d_tag; dyn++) {
		const void *p = base + dyn->d_un.d_ptr;

		switch (dyn->d_tag) {
		case DT_STRTAB:
			str = p;
			break;
		case DT_SYMTAB:
			sym = p;
			break;
		case DT_HASH:
			hash = p;
			break;
		case DT_GNU_HASH:
			gnu_hash = true;
			break;
		case DT_VERSYM:
			versym = p;
			break;
		case DT_VERDEF:
			vd = p;
			break;
		case DT_SONAME:
			soname = dyn->d_un.d_val;
			break;
		case DT_RELA:
		case DT_REL:
		case DT_JMPREL:
		case DT_TEXTREL:
		case DT_NEEDED:
			plain = false;
			break;
		}
	}
	check(plain, "vdso: no relocations, nothing outside of the segment");
	check(str && sym && hash && gnu_hash && versym && vd, "vdso: both hashes, versions");
	if (!str || !sym || !hash || !versym || !vd)
		return;
	check(!strcmp(str + soname, "linux-vdso.so.1"), "vdso: soname");
	for (;; vd = (const void *)((const char *)vd + vd->vd_next)) {
		const Elf64_Verdaux *aux = (const void *)((const char *)vd + vd->vd_aux);

		if (!(vd->vd_flags & VER_FLG_BASE) && !strcmp(str + aux->vda_name, "LINUX_2.6") &&
		    vd->vd_hash == 0x3ae75f6)
			version = vd->vd_ndx;
		if (!vd->vd_next)
			break;
	}
	for (uint32_t i = 1; i < hash[1]; i++)
		for (size_t k = 0; k < NR_SYMBOLS; k++)
			if (sym[i].st_shndx && !strcmp(str + sym[i].st_name, symbols[k].name) &&
			    ELF64_ST_TYPE(sym[i].st_info) == STT_FUNC && versym[i] == version &&
			    ELF64_ST_BIND(sym[i].st_info) == (k < 5 ? STB_GLOBAL : STB_WEAK)) {
				symbols[k].addr = (void *)(base + sym[i].st_value);
				found++;
			}
	check(found == (int)NR_SYMBOLS, "vdso: all symbols with version LINUX_2.6");
}

static void test_vdso(const char *path)
{
	static struct kx_thread area;
	int (*get)(int, struct timespec *), (*getres)(int, struct timespec *);
	int (*gtod)(struct timeval *, struct timezone *), (*cpu)(unsigned *, unsigned *, void *);
	time_t (*get_time)(time_t *), t;
	struct timespec ts;
	struct timeval tv;
	struct timezone tz;
	unsigned n = 0, node = 77;
	int64_t before, ns, after;
	bool ok = true;

	if (!vdso_map(path)) {
		check(false, "vdso: map the image");
		return;
	}
	vdso_symbols((const char *)KX_VDSO_BASE);
	get = (int (*)(int, struct timespec *))symbols[0].addr;
	gtod = (int (*)(struct timeval *, struct timezone *))symbols[1].addr;
	get_time = (time_t(*)(time_t *))symbols[2].addr;
	cpu = (int (*)(unsigned *, unsigned *, void *))symbols[3].addr;
	getres = (int (*)(int, struct timespec *))symbols[4].addr;
	if (!get || !gtod || !get_time || !cpu || !getres)
		return;
	area.self = (uint64_t)&area;
	area.entry = (uint64_t)fake_entry;
	area.cpu = 4711;
	syscall(SYS_arch_prctl, ARCH_SET_GS, &area);

	entries = 0;
	for (int i = 0; host_tsc && i < NR_CLOCKS; i++) {
		timepage_update(page);
		before = now_ns(clocks[i]);
		ok &= !get(clocks[i], &ts);
		after = now_ns(clocks[i]);
		ns = ts.tv_sec * 1000000000LL + ts.tv_nsec;
		ok &= ns > before - SLACK_NS && ns < after + SLACK_NS && ts.tv_nsec >= 0 && ts.tv_nsec < 1000000000;
		ok &= !getres(clocks[i], &ts) && ts.tv_sec == 0 && ts.tv_nsec == 1 && !getres(clocks[i], NULL);
	}
	check(ok && !entries, "vdso: clock_gettime, clock_getres");
	if (host_tsc) {
		timepage_update(page);
		before = now_ns(CLOCK_REALTIME) - SLACK_NS;
		ok = !gtod(&tv, NULL);
		after = now_ns(CLOCK_REALTIME) + SLACK_NS;
		ns = tv.tv_sec * 1000000LL + tv.tv_usec;
		check(ok && ns >= before / 1000 && ns <= after / 1000 && !entries, "vdso: gettimeofday");
		ok = get_time(&t) == t && t >= before / 1000000000 && t <= after / 1000000000 + 1;
		ok &= get_time(NULL) >= t;
		check(ok && !entries, "vdso: time");
	}
	check(!cpu(&n, NULL, NULL) && n == 4711 && !entries, "vdso: getcpu");

	check(!cpu(&n, &node, NULL) && n != 4711 && node != 77 && entries == 1, "vdso: getcpu with node");
	check(!gtod(&tv, &tz) && entries == 2, "vdso: gettimeofday with time zone");
	check(!get(CLOCK_PROCESS_CPUTIME_ID, &ts) && entries == 3, "vdso: other clock");
	check(get(12345, &ts) == -EINVAL && entries == 4, "vdso: no such clock");
	check(!getres(CLOCK_MONOTONIC_COARSE, &ts) && entries == 5, "vdso: coarse resolution");
	if (host_tsc)
		page->max_delta = 0;
	check(!get(CLOCK_MONOTONIC, &ts) && entries == 6 && get_time(NULL) > 1 && entries == 7, "vdso: old page");

	/* Many fallbacks: the registers that a C caller expects kept are kept. */
	for (int i = 0; i < 100000; i++)
		ok &= !get(i & 1 ? CLOCK_MONOTONIC : CLOCK_REALTIME, &ts);
	check(ok && entries == 100007, "vdso: repeated system calls");
}

int main(int argc, char **argv)
{
	page = mmap((void *)KX_VVAR_BASE, 4096, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (page != (void *)KX_VVAR_BASE) {
		perror("mmap of the time page");
		return 2;
	}
	host_tsc = timepage_host_tsc();
	if (host_tsc) {
		timepage_init(page, true, 0);
		check(page->valid && !(page->seq & 1), "init");
		test_threads();
		test_reader();
		test_steps();
		test_khz();
		test_measured();
		timepage_init(page, true, 0);
	} else {
		puts("skip time page: the host's clock source is not the TSC");
	}
	if (argc > 1)
		test_vdso(argv[1]);
	else
		puts("skip vdso: no image given");
	puts(failures ? "FAILED" : "SUCCESS");
	return failures != 0;
}
