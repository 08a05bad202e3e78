/* SPDX-License-Identifier: Apache-2.0 */
#include "libnext.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_libstart.h"
#include "admit.h"
#include "batch.h"
#include "gmem.h"
#include "gmem_ahead.h"
#include "gmem_warm.h"
#include "hcall.h"
#include "keeper.h"
#include "libcache.h"
#include "libfile.h"
#include "needed.h"
#include "pipe.h"

#define LOCALES "/usr/lib/locale/"
#define NAMES_MAX 128
#define NAME_MAX_ 64
#define NAME_REGS 6
#define NAME_WORDS 32
#define TRIES_MAX 3 /* times that it was opened for nothing, in a row */

/* A library by its name: of those that something needs, in the linker's order, and of those that were opened. */
static struct name {
	char name[NAME_MAX_];
	char path[KX_LIBFILE_PATH]; /* where it was opened; "": never */
	uint64_t base;              /* where it is mapped; 0: it is not, or nobody knows where */
	enum { NEEDED, AHEAD, THERE, GONE } state;
	unsigned tries, failed; /* failed: by the `found` of then there was none */
} names[NAMES_MAX];
static unsigned nr_names;

static struct slot {
	int fd; /* the monitor's own; -1: none */
	int name;
	uint64_t base;
	char path[KX_LIBFILE_PATH];
} slot[KX_LIBNEXT_FILES] = { [0 ... KX_LIBNEXT_FILES - 1] = { .fd = -1 } };
/* slot.name: */
#define CACHE (-1)  /* the linker's cache */
#define LOCALE (-2) /* a part of a locale */

static char dir[KX_LIBFILE_PATH];   /* where the last one was found; at first where it may be */
static unsigned found = 1;          /* changes of that */
static int next_fd = -1;            /* kx_libnext.fd */
static uint64_t cache_base;         /* where the cache is mapped */
static bool cache_ahead, cache_new; /* it was opened ahead; it is the last that was opened */
static int after_cache = -1;        /* what was opened behind it the last time */
static bool locks;
bool libnext_any;

static struct kx_libnext *shared(void) { return gva_ptr(KX_LIBNEXT_BASE); }
static struct kx_libfile *file_shared(void) { return gva_ptr(KX_LIBFILE_BASE); }

/* ---- names ----------------------------------------------------------------------------------------------------------- */

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static int name_find(const char *s)
{
	for (unsigned i = 0; i < nr_names; i++)
		if (!strcmp(names[i].name, s))
			return (int)i;
	return -1;
}

static int name_add(const char *s)
{
	size_t n = strlen(s);
	if (!n || n >= NAME_MAX_ || strchr(s, '/') || nr_names == NAMES_MAX)
		return -1;
	names[nr_names] = (struct name){ .state = GONE };
	memcpy(names[nr_names].name, s, n + 1);
	return (int)nr_names++;
}

static void is_needed(const char *s)
{
	int i = name_find(s);
	if (i < 0)
		i = name_add(s);
	if (i >= 0 && names[i].state == GONE)
		names[i].state = NEEDED;
}

static void name_there(int i, const char *path, uint64_t base)
{
	names[i].state = THERE;
	names[i].base = base;
	names[i].tries = 0;
	if (path)
		snprintf(names[i].path, sizeof names[i].path, "%s", path);
}

void libnext_carved(uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < nr_names; i++)
		if (names[i].state == THERE && names[i].base >= start && names[i].base < end) {
			names[i].state = GONE;
			names[i].base = 0;
		}
	if (cache_base >= start && cache_base < end)
		cache_base = 0;
}

/* ---- opening ----------------------------------------------------------------------------------------------------------- */

static bool works(void)
{
	/* Memory that others write to could tell of a file's change without a call. */
	return !locks && !pvm.cfg->memory && !batch_is_mapped() && pvm.nr_threads == 1 && !is_vfork_child() &&
	       !gmem_is_seen() && !gmem_ahead_is_musl();
}

/* strstr(3) takes ten times as long for such short ones, where libc has it for every processor. */
static bool has(const char *path, const char *what, size_t len)
{
	while ((path = strchr(path, *what)) && strncmp(path, what, len) != 0)
		path++;
	return path;
}

/* What vfs.c may look at more closely than by name is left to it. */
static bool path_is_plain(const char *path)
{
	return path[0] == '/' && !has(path, "proc", 4) && !has(path, "dev/", 4) && strncmp(path, "/sys/", 5) != 0;
}

/* A number for it, out of the guest's reach. */
static int fd_own(int fd)
{
	fd_limit_lift();
	long n = HC6(SYS_fcntl, fd, F_DUPFD_CLOEXEC, (int)pvm.fd_limit, 0, 0, 0);
	fd_limit_drop();
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	return (int)n;
}

static void slot_free(unsigned i)
{
	HC6(SYS_close, slot[i].fd, 0, 0, 0, 0, 0);
	slot[i].fd = -1;
	shared()->file[i].ready = shared()->file[i].taken = 0;
}

/* False: there is no such file, or none of that kind. */
static bool slot_open(unsigned i, int name, const char *path)
{
	struct kx_libnext_file *f = &shared()->file[i];
	struct stat st;
	uint8_t head[KX_LIBFILE_HEAD];
	size_t len = strlen(path) + 1;
	bool whole = name < 0;
	if (len > sizeof f->path || !path_is_plain(path))
		return false;
	long fd = HC6(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0, 0, 0);
	if (fd < 0)
		return false;
	if (next_fd < 0)
		next_fd = (int)fd;
	long n = HC6(SYS_fstat, fd, &st, 0, 0, 0, 0) || !S_ISREG(st.st_mode)
			 ? -1
			 : HC6(SYS_pread64, fd, head, sizeof head, 0, 0, 0);
	int own = fd_is_guest((int)fd + 256) ? fd_own((int)fd) : (HC6(SYS_close, fd, 0, 0, 0, 0, 0), -1);
	if (own < 0)
		return false;
	struct slot *s = &slot[i];
	s->fd = own;
	s->name = name;
	gmem_warm_of_library = true;
	admit_way(POLICY_WAY_LOADER);
	s->base = n >= (long)(whole ? 1 : sizeof(Elf64_Ehdr)) && (whole || !memcmp(head, ELFMAG, SELFMAG))
			  ? gmem_ahead_next(i, head, (size_t)n, own, whole ? (uint64_t)st.st_size : 0, name == CACHE, f)
			  : 0;
	admit_way(POLICY_WAY_OTHER);
	gmem_warm_of_library = false;
	if (!s->base) {
		slot_free(i);
		return false;
	}
	memcpy(s->path, path, len);
	memcpy(f->path, path, len);
	memcpy(f->head, head, (size_t)n);
	memcpy(f->stat, &st, sizeof st);
	f->path_len = (uint32_t)len;
	f->len = (uint32_t)n;
	f->taken = 0;
	f->ready = 1;
	if (!whole)
		needed_of(own, (uint64_t)st.st_size, is_needed, NULL, 0);
	return true;
}

static int slot_unused(void)
{
	for (unsigned i = 0; i < KX_LIBNEXT_FILES; i++)
		if (slot[i].fd < 0)
			return (int)i;
	return -1;
}

static bool name_open(unsigned i, struct name *n)
{
	char path[KX_LIBFILE_PATH + NAME_MAX_ + 1];
	bool any = *n->path && slot_open(i, (int)(n - names), n->path);
	if (!any && *dir) {
		snprintf(path, sizeof path, "%s/%s", dir, n->name);
		any = slot_open(i, (int)(n - names), path);
	}
	if (!any && libcache_find(n->name, path, sizeof path)) {
		any = slot_open(i, (int)(n - names), path);
		if (any && !cache_base && !cache_ahead) {
			int c = slot_unused();
			cache_ahead = c >= 0 && slot_open((unsigned)c, CACHE, LIBCACHE_PATH);
		}
	}
	return any;
}

static void tell(void)
{
	libnext_any = false;
	for (unsigned k = 0; k < KX_LIBNEXT_FILES; k++)
		libnext_any |= slot[k].fd >= 0;
	if (!libnext_any)
		return;
	shared()->fd = next_fd;
	__atomic_or_fetch(&file_shared()->on, KX_LIBFILE_NEXT, __ATOMIC_RELEASE);
}

static bool another(unsigned from)
{
	while (from < nr_names && names[from].state != NEEDED)
		from++;
	return from < nr_names;
}

/* As many as there is room for. */
static void guess(void)
{
	int i = -1;
	if (!works())
		return;
	admit_root_hold(true);
	for (unsigned k = 0; k < nr_names && (i = slot_unused()) >= 0; k++) {
		struct name *n = &names[k];
		if (n->state != NEEDED || n->tries >= TRIES_MAX || n->failed == found)
			continue;
		gmem_ahead_more = i + 1 < KX_LIBNEXT_FILES && another(k + 1);
		if (name_open((unsigned)i, n))
			n->state = AHEAD;
		else
			n->failed = found;
	}
	admit_root_hold(false);
	tell();
}

static void drop_all(void)
{
	__atomic_and_fetch(&file_shared()->on, ~KX_LIBFILE_NEXT, __ATOMIC_RELEASE);
	for (unsigned i = 0; i < KX_LIBNEXT_FILES; i++) {
		if (slot[i].fd < 0)
			continue;
		if (slot[i].name == CACHE) {
			cache_ahead = false;
		} else if (slot[i].name != LOCALE) {
			names[slot[i].name].state = NEEDED;
			names[slot[i].name].tries++;
		}
		gmem_ahead_next_end(i, false);
		slot_free(i);
	}
	shared()->cur = 0;
	next_fd = -1;
	libnext_any = false;
}

/* ---- what happens -------------------------------------------------------------------------------------------------------- */

void libnext_trim(void)
{
	if (!libnext_any) /* the guest does not look there */
		madvise(shared(), KX_LIBSTART_BASE / 4096 * 4096 - KX_LIBNEXT_BASE, MADV_DONTNEED);
}

void libnext_locks(void) { locks = true; }

static void dir_set(const char *path, size_t len)
{
	if (!path || len >= sizeof dir || path[0] != '/' || (!strncmp(dir, path, len) && !dir[len]))
		return;
	snprintf(dir, sizeof dir, "%.*s", (int)len, path);
	found++;
}

void libnext_program(int fd, uint64_t size, const char *path)
{
	static const char origin[] = "$ORIGIN";
	char list[KX_LIBFILE_PATH], own[2 * KX_LIBFILE_PATH];
	const char *slash = strrchr(path, '/'), *linker = admit_loader_path();
	needed_of(fd, size, is_needed, list, sizeof list);
	int i = name_find(base_name(linker));
	if (i < 0)
		i = name_add(base_name(linker));
	if (i >= 0)
		name_there(i, NULL, 0);
	list[strcspn(list, ":")] = 0;
	if (!strncmp(list, origin, sizeof origin - 1) && slash) {
		int n = snprintf(own, sizeof own, "%.*s%s", (int)(slash - path), path, list + sizeof origin - 1);
		dir_set(own, (size_t)n);
	} else {
		dir_set(list, strlen(list));
	}
}

void libnext_start(char *const *envp)
{
	static const char by_env[] = "LD_LIBRARY_PATH=";
	for (; envp && *envp; envp++)
		if (!strncmp(*envp, by_env, sizeof by_env - 1) && !*dir)
			dir_set(*envp + sizeof by_env - 1, strcspn(*envp + sizeof by_env - 1, ":;"));
	guess();
}

static void there(int i, const char *path, uint64_t base)
{
	if (i < 0)
		return;
	name_there(i, path, base);
	if (cache_new)
		after_cache = i;
	cache_new = false;
}

/*
 * The linker has opened its cache, to look for one name, which it has at hand: in a register that it keeps over calls, or on
 * its stack.
 */
static void name_at_hand(void)
{
	const struct kx_frame *f = frame_of(self);
	uint64_t at[NAME_REGS + NAME_WORDS] = { f->rbx, f->rbp, f->r12, f->r13, f->r14, f->r15 };
	char s[NAME_MAX_];
	unsigned n = NAME_REGS;
	if (!guest_read(at + NAME_REGS, self->area->user_rsp, NAME_WORDS * sizeof *at))
		n += NAME_WORDS;
	for (unsigned i = 0; i < n; i++) {
		ssize_t len = at[i] < KX_USER_MIN ? -1 : guest_read_str(s, at[i], sizeof s);
		if (len > 3 && !strchr(s, '/') && strstr(s, ".so") && s[strcspn(s, " %\n:")] == 0) {
			is_needed(s);
			return;
		}
	}
}

void libnext_opened(const char *path, int fd, uint64_t size, uint64_t base, bool cache)
{
	if (libnext_any && next_fd != fd)
		drop_all();
	if (!works() || !path_is_plain(path) || strlen(path) >= KX_LIBFILE_PATH)
		return;
	next_fd = fd;
	if (cache) {
		cache_base = base;
		cache_new = true;
		name_at_hand();
		if (after_cache >= 0 && names[after_cache].state == GONE)
			names[after_cache].state = NEEDED;
	} else {
		int i = name_find(base_name(path));
		if (i >= 0 && names[i].state == AHEAD)
			drop_all(); /* it looks elsewhere */
		there(i < 0 ? name_add(base_name(path)) : i, path, base);
		dir_set(path, (size_t)(base_name(path) - 1 - path));
		needed_of(fd, size, is_needed, NULL, 0);
	}
	next_fd = fd;
	guess();
}

/* In the order of setlocale(LC_ALL, ""). Behind the first one libc opens something else; before the seventh a directory. */
static const char *const locale_parts[] = { "LC_IDENTIFICATION", "LC_MEASUREMENT", "LC_TELEPHONE",    "LC_ADDRESS",
					    "LC_NAME",           "LC_PAPER",       "SYS_LC_MESSAGES", "LC_MONETARY",
					    "LC_COLLATE",        "LC_TIME",        "LC_NUMERIC",      "LC_CTYPE" };
#define LOCALE_PARTS (sizeof locale_parts / sizeof *locale_parts)

void libnext_locale(const char *path, int fd)
{
	static bool all; /* from the first one on */
	char other[KX_LIBFILE_PATH + 32];
	const char *base = base_name(path);
	size_t len = (size_t)(base - path), at = 0;
	libnext_other();
	while (at < LOCALE_PARTS && strcmp(base, locale_parts[at]) != 0)
		at++;
	if (at == 0)
		all = true;
	if ((at != 1 && at != 6) || !all || !works() || len >= KX_LIBFILE_PATH)
		return;
	all = at == 1;
	if (at == 6) /* of its directory's parent */
		for (len--; len && path[len - 1] != '/';)
			len--;
	next_fd = fd;
	for (size_t k = at + 1; k < (at == 1 ? 6 : LOCALE_PARTS); k++) {
		int i = slot_unused();
		snprintf(other, sizeof other, "%.*s%s", (int)len, path, locale_parts[k]);
		if (i < 0 || !slot_open((unsigned)i, LOCALE, other))
			break;
	}
	tell();
}

void libnext_other(void)
{
	if (libnext_any)
		drop_all();
}

/* libc's search for a locale. */
static bool is_locale(uint64_t path)
{
	char s[sizeof LOCALES - 1];
	return !guest_read(s, path, sizeof s) && !memcmp(s, LOCALES, sizeof s);
}

/* The linker's own calls, while it looks for libraries, and libc's that give it memory. */
static bool leaves(uint64_t nr, const uint64_t arg[6])
{
	if (nr == HC_TRACE)
		return true;
	if (!works())
		return false;
	if (nr == SYS_brk || (nr == SYS_mmap && !arg[0] && (int)arg[3] == (MAP_PRIVATE | MAP_ANONYMOUS)))
		return true;
	if (!admit_call_is_loaders() && !(nr == SYS_openat && is_locale(arg[1])))
		return false;
	bool none_open = libfile_fd < 0 || __atomic_load_n(&file_shared()->closed, __ATOMIC_RELAXED);
	switch (nr) {
	case SYS_openat:
		return none_open && (uint32_t)arg[2] == (O_RDONLY | O_CLOEXEC);
	case SYS_access:
		return none_open;
	case SYS_newfstatat:
		return true;
	case SYS_munmap:
	case SYS_mprotect:
		return gmem_ahead_next_apart(arg[0], arg[1]);
	}
	return false;
}

/* The guest has opened slot i last: now it is the file of kx_libfile.h, with a descriptor. */
static void take(unsigned i)
{
	if (libfile_fd >= 0)
		libfile_was_closed();
	if (!fd_is_guest(next_fd) || HC6(SYS_fcntl, next_fd, F_GETFD, 0, 0, 0, 0) != -EBADF ||
	    HC6(SYS_dup3, slot[i].fd, next_fd, O_CLOEXEC, 0, 0, 0) != next_fd)
		pvm_panic("LibOS: a library opened ahead has no descriptor");
	HC6(SYS_fcntl, next_fd, F_SETFL, 0, 0, 0, 0);
	gmem_ahead_next_open(i, next_fd);
	libfile_now(next_fd);
}

static void slot_taken(unsigned i, bool last)
{
	if (last)
		take(i);
	else
		gmem_ahead_next_end(i, true);
	if (slot[i].name == CACHE) {
		cache_base = slot[i].base;
		cache_ahead = false;
		cache_new = true;
	} else if (slot[i].name != LOCALE) {
		there(slot[i].name, slot[i].path, slot[i].base);
		dir_set(slot[i].path, (size_t)(base_name(slot[i].path) - 1 - slot[i].path));
	}
	slot_free(i);
}

void libnext_settle(uint64_t nr, const uint64_t arg[6])
{
	uint32_t cur = __atomic_load_n(&shared()->cur, __ATOMIC_RELAXED);
	if (cur && cur <= KX_LIBNEXT_FILES && slot[cur - 1].fd >= 0) {
		for (unsigned i = 0; i < KX_LIBNEXT_FILES; i++)
			if (slot[i].fd >= 0 && i + 1 != cur &&
			    __atomic_load_n(&shared()->file[i].taken, __ATOMIC_RELAXED))
				slot_taken(i, false);
		slot_taken(cur - 1, true);
	}
	shared()->cur = 0;
	if (!leaves(nr, arg))
		drop_all();
	else if (nr != SYS_openat && nr != HC_TRACE)
		guess();
}
