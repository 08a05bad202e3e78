/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The linker's part of an online update, with this process as the guest: libraries of its own are replaced, while what it
 * reads of them lies, and while each allocation, mapping and write fails in turn.
 */
#include "../../monitor/core/relink.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "../../monitor/core/relink_priv.h"
#include "check.h"

struct pvm pvm = { .mm_lock = PTHREAD_MUTEX_INITIALIZER, .high_end = 1ull << 47 };
__thread struct thread *self;
static char dir[512];

/* ---- what fails ------------------------------------------------------------------------------------------------------ */

static long calls, fail_at;    /* of those that can: the one with this number, from 1 on; 0 = none */
static int mappings;           /* made, less those that were undone */
static int opened;             /* pages made writable */
static uint64_t read_only[64]; /* those that the program may not write to: what was opened once */
static unsigned nr_read_only;
static bool stuck; /* no page can be opened */

static unsigned read_only_find(uint64_t page)
{
	unsigned i = 0;
	while (i < nr_read_only && read_only[i] != page)
		i++;
	return i;
}

static bool fails(void) { return ++calls == fail_at; }

void *__real_malloc(size_t n);
void *__real_calloc(size_t k, size_t n);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t k, size_t n);
void *__wrap_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n) { return fails() ? NULL : __real_malloc(n); }
void *__wrap_calloc(size_t k, size_t n) { return fails() ? NULL : __real_calloc(k, n); }
void *__wrap_realloc(void *p, size_t n) { return fails() ? NULL : __real_realloc(p, n); }

int __real_mprotect(void *p, size_t len, int prot);
int __wrap_mprotect(void *p, size_t len, int prot);
int __wrap_mprotect(void *p, size_t len, int prot)
{
	opened += !!(prot & PROT_WRITE);
	/* What opens a page may fail; what closes it fails only where a page is in the middle of others. */
	if (prot & PROT_WRITE && (stuck || fails())) {
		errno = ENOMEM;
		return -1;
	}
	if (prot & PROT_WRITE && read_only_find((uint64_t)p) == nr_read_only && nr_read_only < 64)
		read_only[nr_read_only++] = (uint64_t)p;
	return __real_mprotect(p, len, prot);
}

/* ---- the guest: this process ----------------------------------------------------------------------------------------- */

/* What it lies about: reads of [at, at + len) find these bytes. */
static struct lie {
	uint64_t at, len;
	const void *bytes;
} lies[4];
static unsigned nr_lies;

static void lie(uint64_t at, const void *bytes, size_t len) { lies[nr_lies++] = (struct lie){ at, len, bytes }; }

int guest_read(void *dst, uint64_t gva, size_t len)
{
	struct iovec to = { dst, len }, from = { (void *)gva, len };
	if (len && process_vm_readv(getpid(), &to, 1, &from, 1, 0) != (ssize_t)len)
		return -EFAULT;
	for (unsigned i = 0; i < nr_lies; i++) {
		const struct lie *l = &lies[i];
		uint64_t a = l->at > gva ? l->at : gva, e = l->at + l->len < gva + len ? l->at + l->len : gva + len;
		if (a < e)
			memcpy((uint8_t *)dst + (a - gva), (const uint8_t *)l->bytes + (a - l->at), e - a);
	}
	return 0;
}

int guest_write(uint64_t gva, const void *src, size_t len)
{
	struct iovec from = { (void *)src, len }, to = { (void *)gva, len };
	return !fails() && process_vm_writev(getpid(), &from, 1, &to, 1, 0) == (ssize_t)len ? 0 : -EFAULT;
}

int guest_put(uint64_t gva, const void *src, size_t len) { return guest_write(gva, src, len); }

ssize_t guest_read_str(char *dst, uint64_t gva, size_t max)
{
	for (size_t i = 0; i < max; i++)
		if (guest_read(dst + i, gva + i, 1))
			return -EFAULT;
		else if (!dst[i])
			return (ssize_t)i;
	return -ENAMETOOLONG;
}

bool gmem_query_locked(uint64_t gva, struct gmem_region *out)
{
	char line[512], p[5];
	FILE *f = fopen("/proc/self/maps", "r");
	bool found = false;
	while (f && !found && fgets(line, sizeof line, f)) {
		*out = (struct gmem_region){ 0 };
		found = sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s", &out->start, &out->end, p) == 3 && out->end > gva;
		out->prot = (p[0] == 'r' ? PROT_READ : 0) | (p[1] == 'w' ? PROT_WRITE : 0) |
			    (p[2] == 'x' ? PROT_EXEC : 0);
		out->flags = p[3] == 'p' ? MAP_PRIVATE : MAP_SHARED;
	}
	if (found && read_only_find(DOWN(gva)) < nr_read_only) /* whatever the monitor may do with it */
		out->prot &= ~PROT_WRITE;
	if (f)
		fclose(f);
	return found;
}

static uint64_t last_base;            /* of what was mapped anywhere */
static void (*mapped)(uint64_t base); /* is told of it */

int64_t gmem_mmap(uint64_t addr, uint64_t len, int prot, int flags, int fd, uint64_t off)
{
	void *p = fails() ? MAP_FAILED : mmap((void *)addr, len, prot, flags, fd, (off_t)off);
	if (p == MAP_FAILED)
		return -ENOMEM;
	if (!addr) {
		mappings++;
		last_base = (uint64_t)p;
		if (mapped)
			mapped(last_base);
	}
	return (int64_t)p;
}

int gmem_munmap(uint64_t addr, uint64_t len)
{
	if (fails())
		return -ENOMEM;
	mappings--;
	return munmap((void *)addr, len);
}

int gmem_mprotect(uint64_t addr, uint64_t len, int prot)
{
	return fails() ? -ENOMEM : __real_mprotect((void *)addr, len, prot);
}

int64_t gmem_code(const void *code, size_t len)
{
	(void)code;
	(void)len;
	return -ENOMEM; /* no constructors here */
}

long host_call(long nr, long a, long b, long c, long d, long e, long f) { return syscall(nr, a, b, c, d, e, f); }

/* Pointers in memory: there are none to find, since what this test keeps must not be changed. */
struct sweep {
	int none;
};
int sweep_new(const struct sweep_of *of, struct sweep **out)
{
	(void)of;
	*out = malloc(sizeof(struct sweep));
	return *out ? 0 : -ENOMEM;
}
int sweep_track(struct sweep *s) { return s ? 0 : -1; }
void sweep_ahead(struct sweep *s) { (void)s; }
size_t sweep_again(struct sweep *s) { return s ? 0 : 1; }
int sweep_apply(struct sweep *s) { return !s || fails() ? -ENOMEM : 0; }
bool sweep_knew(const struct sweep *s) { return !s; }
void sweep_undo(struct sweep *s) { (void)s; }
void sweep_free(struct sweep *s) { free(s); }

/* ---- an update ------------------------------------------------------------------------------------------------------- */

static int (*user_version)(void), (*user_next)(void), (*user_is_sound)(void), (*(*user_next_now)(void))(void);
static char said[4096];
static unsigned lines;

static void say(void *arg, const char *fmt, va_list ap)
{
	(void)arg;
	vsnprintf(said, sizeof said, fmt, ap);
	lines++;
}

static const char *file_of(int version)
{
	static char path[600];
	snprintf(path, sizeof path, "%s/relink_%s.so", dir,
		 version == 1   ? "v1"
		 : version == 2 ? "v2"
		 : version == 3 ? "user"
				: "other");
	return path;
}

/* Up to the switch. The same results as relink_prepare(). */
static int prepare(int version, struct relink **r)
{
	int fd = open(file_of(version), O_RDONLY | O_CLOEXEC);
	unsigned nr;
	lines = 0;
	*r = NULL;
	int e = fd < 0 ? -errno : relink_prepare(fd, 0, say, NULL, r);
	close(fd);
	while (!e && relink_calls(*r, &nr) && nr)
		;
	if (!e)
		e = relink_bind(*r);
	if (e && *r)
		relink_done(*r, false);
	return e;
}

static int update(int version)
{
	struct relink *r;
	int e = prepare(version, &r);
	if (e)
		return e;
	e = relink_apply(r);
	relink_done(r, !e);
	return e;
}

/* What other versions are there for is tested elsewhere: forget them, and leave them where they are. */
static void forget_retired(void)
{
	while (relink_retired) {
		struct retired *t = relink_retired;
		relink_retired = t->next;
		free(t);
	}
}

static int counted = 5;

static void is_version(int v, const char *when)
{
	CHECK(user_version() == v, "version %d, not %d (%s)", user_version(), v, when);
	CHECK(user_is_sound(), "its variables (%s)", when);
	int n = user_next();
	CHECK(n == ++counted, "it counts to %d, not %d (%s)", n, counted, when);
}

static void there_and_back(void)
{
	for (int v = 2; v; v--) {
		int e = update(v);
		CHECK(!e, "to %d: %d %s", v, e, said);
		is_version(v, "there and back");
	}
	CHECK(relink_retired && relink_retired->next && !relink_retired->next->next, "two versions are kept");
}

/* A version that something still uses has variables of its own, and keeps them unless it comes again. */
static void own_variables(void)
{
	struct relink *r;
	int e = 0;
	for (int v = 2; v && !e; v--) /* the first one as mapped by an update */
		e = update(v);
	CHECK(!e, "%d %s", e, said);
	int (*kept)(void) = user_next_now(), own = counted;
	e = update(2);
	CHECK(!e, "%d %s", e, said);
	is_version(2, "another one");
	is_version(2, "another one");
	CHECK(kept() == ++own, "the first one's variable");
	e = prepare(1, &r);
	CHECK(!e, "%d %s", e, said);
	CHECK(r->reuse, "the mapping of before");
	CHECK(kept() == ++own, "its variable, prepared");
	for (int i = 0; i < 2; i++) {
		e = relink_apply(r);
		CHECK(!e, "%d", e);
		is_version(1, "back");
		CHECK(kept() == ++counted, "its variable is everybody's");
		relink_undo(r);
		counted -= 2; /* what is changed before the verdict is nobody's */
		is_version(2, "and undone");
		CHECK(kept() == ++own, "its variable, after the undoing");
	}
	relink_done(r, false);
	CHECK(kept() == ++own, "its variable, after the end");
	is_version(2, "after the end");
	e = update(1);
	CHECK(!e, "%d %s", e, said);
	CHECK(kept == user_next_now(), "the mapping of before");
	is_version(1, "after all");
	CHECK(kept() == ++counted, "its variable is everybody's");
}

/* Pages that were opened are closed before the change (by a fork that lays them out anew): opened then, the others left as they are. */
static void closed_meanwhile(void)
{
	struct relink *r;
	int e = prepare(2, &r);
	CHECK(!e && r->nr_page, "%d %s", e, said);
	size_t nr = r->nr_page;
	for (int closed = 0; closed < 3; closed++) {
		for (size_t i = 0; closed && i < nr; i++)
			__real_mprotect((void *)r->page[i], PAGE, PROT_READ);
		opened = 0;
		stuck = closed == 1;
		e = relink_apply(r);
		stuck = false;
		CHECK(e == (closed == 1 ? -ENOMEM : 0), "%d, %d closed", e, closed);
		CHECK(opened == (closed == 2 ? (int)nr : closed), "%d pages were opened, %d closed", opened, closed);
		is_version(closed == 1 ? 1 : 2, "closed meanwhile");
		if (!e)
			relink_undo(r);
		counted -= !e;
		CHECK(r->nr_page == nr, "%zu pages are to be closed, not %zu", r->nr_page, nr);
	}
	relink_done(r, false);
	is_version(1, "closed meanwhile, in the end");
}

#ifdef __SANITIZE_ADDRESS__
#define STEP 7 /* takes its time */
#else
#define STEP 1
#endif

static int retired(void)
{
	int n = 0;
	for (const struct retired *t = relink_retired; t; t = t->next)
		n++;
	return n;
}

/* Each thing that can fail does, once. */
static void all_fail(bool again)
{
	long n;
	for (n = 1;; n += STEP) {
		char when[64];
		if (!again)
			forget_retired();
		snprintf(when, sizeof when, "failure %ld%s", n, again ? ", mapped before" : "");
		int before = mappings, known = retired();
		calls = 0;
		fail_at = n;
		int e = update(2);
		bool none = fail_at > calls;
		fail_at = 0;
		is_version(e ? 1 : 2, when);
		if (e) {
			CHECK(lines <= 1, "%u lines, the last: %s (%s)", lines, said, when);
			CHECK(mappings - before == retired() - known, "%d mappings are left that are not known (%s)",
			      mappings - before - (retired() - known), when);
			e = update(2);
			CHECK(!e, "the next one: %d %s (%s)", e, said, when);
			is_version(2, when);
		} else {
			CHECK(relink_retired && relink_retired->seg[0].end, "the old version is not known (%s)", when);
		}
		e = update(1);
		CHECK(!e, "back: %d %s (%s)", e, said, when);
		is_version(1, when);
		if (none || failures > 20)
			break;
	}
	CHECK(n > 50, "only %ld things can fail", n);
}

/* ---- lies ------------------------------------------------------------------------------------------------------------ */

static struct link_map *map_of(const char *name)
{
	for (struct link_map *m = _r_debug.r_map; m; m = m->l_next)
		if (strstr(m->l_name, name))
			return m;
	return NULL;
}

static const Elf64_Dyn *dyn_of(const struct link_map *m, int64_t tag)
{
	for (const Elf64_Dyn *d = m->l_ld; d->d_tag; d++)
		if (d->d_tag == tag)
			return d;
	return NULL;
}

static void refused(const char *what)
{
	alarm(60);
	int e = update(2);
	alarm(0);
	CHECK(e && e != -EAGAIN, "%s: %d", what, e);
	is_version(1, what);
	nr_lies = 0;
}

/* The pointers to the dynamic section's entries, where there is no room for all of them. */
static void lie_of_info(void)
{
	struct link_map *m = map_of("relink_v1.so");
	static uint64_t words[1536 / 8];
	const uint64_t str = (uint64_t)dyn_of(m, DT_STRTAB), sym = (uint64_t)dyn_of(m, DT_SYMTAB);
	const size_t last = sizeof words / 8 - 1;
	for (int end = 0; end < 2; end++) {
		guest_read(words, (uint64_t)m, sizeof words);
		for (size_t i = 3; i <= last; i++)
			if (words[i] == str)
				words[i] = 0;
		words[end ? last - 1 : 3] = str;
		words[end ? last : 4] = sym;
		lie((uint64_t)m, words, sizeof words);
		refused(end ? "its records end behind what is looked at" : "its records begin before the map");
	}
}

/* ld.so's own data has no end, or is all pointers to tables. */
static void lie_of_loader(void)
{
	struct link_map *m = map_of("ld-linux");
	static Elf64_Phdr ph[64];
	const Elf64_Ehdr *eh = (const Elf64_Ehdr *)m->l_addr;
	guest_read(ph, m->l_addr + eh->e_phoff, eh->e_phnum * sizeof *ph);
	for (unsigned i = 0; i < eh->e_phnum; i++)
		if (ph[i].p_type == PT_LOAD && ph[i].p_flags & PF_W)
			ph[i].p_memsz = 1ull << 60;
	lie(m->l_addr + eh->e_phoff, ph, eh->e_phnum * sizeof *ph);
	refused("ld.so's data has no end");
}

/* The new version's headers are changed in memory as soon as they are there. */
static Elf64_Ehdr changed;

static void change_headers(uint64_t base)
{
	if (guest_read(&changed, base, sizeof changed) || memcmp(changed.e_ident, ELFMAG, SELFMAG))
		return;
	changed.e_phoff = 8;
	changed.e_phnum = 60;
	lie(base, &changed, sizeof changed);
	mapped = NULL;
}

static void lie_of_headers(void)
{
	forget_retired();
	mapped = change_headers;
	int e = update(2);
	CHECK(!mapped && !e, "headers that change: %d %s", e, said);
	is_version(2, "headers that change");
	nr_lies = 0;
	e = update(1);
	CHECK(!e, "back: %d %s", e, said);
	is_version(1, "back");
}

/* The list has no end, or one more, when all stand. */
static void file_is_written(uint64_t base)
{
	(void)base;
	char c;
	int fd = open(file_of(2), O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0 && pread(fd, &c, 1, 0) == 1 && pwrite(fd, &c, 1, 0) == 1, "cannot be written to");
	close(fd);
}

/* What was read is not what is mapped. */
static void lie_of_file(void)
{
	struct relink *r;
	int before = mappings;
	forget_retired();
	mapped = file_is_written;
	int e = prepare(2, &r);
	mapped = NULL;
	CHECK(e == -ESTALE && strstr(said, "was changed while it was read"), "%d %s", e, said);
	CHECK(mappings == before, "%d mappings are left", mappings - before);
}

static void lie_of_list(void)
{
	struct link_map *m = map_of("relink_v1.so");
	static struct link_map copy, other;
	struct relink *r;
	int e = prepare(2, &r);
	CHECK(!e, "%d %s", e, said);
	guest_read(&copy, (uint64_t)m, sizeof copy);
	other = *_r_debug.r_map;
	other.l_next = &other;
	copy.l_next = &other;
	lie((uint64_t)m, &copy, sizeof copy);
	alarm(60);
	e = relink_apply(r);
	alarm(0);
	CHECK(e == -EAGAIN, "a list without an end: %d", e);
	nr_lies = 0;
	void *user = dlopen(file_of(4), RTLD_NOW | RTLD_LOCAL);
	CHECK(user, "%s", dlerror());
	e = relink_apply(r);
	CHECK(e == -EAGAIN, "a library is loaded before the switch: %d", e);
	relink_done(r, false);
	is_version(1, "before the switch");
	e = update(2);
	CHECK(!e, "%d %s", e, said);
	int (*fn)(void) = (int (*)(void))dlsym(user, "user_version");
	CHECK(fn && fn() == 2, "that library uses the new version");
	is_version(2, "one more library");
	dlclose(user);
	e = update(1);
	CHECK(!e, "%d %s", e, said);
	is_version(1, "without it");
}

int main(int argc, char **argv)
{
	uint64_t auxv[] = { AT_PHDR, getauxval(AT_PHDR), AT_PHNUM, getauxval(AT_PHNUM),
			    AT_BASE, getauxval(AT_BASE), 0,        0 };
	(void)argc;
	snprintf(dir, sizeof dir, "%s", argv[0]);
	*strrchr(dir, '/') = 0;
	memcpy(pvm.auxv, auxv, sizeof auxv);
	pvm.auxv_len = sizeof auxv;
	void *lib = dlopen(file_of(1), RTLD_NOW | RTLD_GLOBAL), *user = lib ? dlopen(file_of(3), RTLD_NOW) : NULL;
	if (!lib || !user) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	user_version = (int (*)(void))dlsym(user, "user_version");
	user_next = (int (*)(void))dlsym(user, "user_next");
	user_next_now = (int (*(*)(void))(void))dlsym(user, "user_next_now");
	user_is_sound = (int (*)(void))dlsym(user, "user_is_sound");
	there_and_back();
	own_variables();
	closed_meanwhile();
	lie_of_info();
	lie_of_loader();
	lie_of_headers();
	lie_of_file();
	lie_of_list();
	all_fail(false);
	all_fail(true);
	forget_retired();
	printf("%s: %d checks, %d failures\n", failures ? "FAILED" : "SUCCESS", checks, failures);
	return failures != 0;
}
