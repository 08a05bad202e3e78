/* SPDX-License-Identifier: Apache-2.0 */
#include "load.h"
#include <cpuid.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "admit.h"
#include "elf.h"
#include "gmem.h"
#include "gmem_ahead.h"
#include "libnext.h"
#include "pvm.h"

#define PAGE ELF_PAGE
#define PAGE_UP(x) (((x) + PAGE - 1) & -PAGE)
#define HUGE_PAGE (2ull << 20)
#define SCRIPT_BUF 256 /* what Linux looks at: a line of 255 characters and the end of it */
#define ARG_LIMIT_MIN (128ull << 10)
#define ARG_LIMIT_MAX (6ull << 20)
#define STACK_MIN (128ull << 10)
#define STACK_MAX (1ull << 30)
#define STACK_UNLIMITED (64ull << 20)
/* Kept free above a program while it is mapped: as far as a jump from it reaches, unless there is too little below. */
#define TAIL_SIZE (2ull << 30)
#define TAIL_LOW (4ull << 20)
#define NAME_SHOWN 120
#define AUXV_MAX (sizeof pvm.auxv / 16)
_Static_assert(SCRIPT_BUF >= sizeof(Elf64_Ehdr), "an ELF header fits what is read first");

struct load_file {
	int fd; /* among the monitor's own, so that no guest thread can exchange the file behind it */
	uint64_t size;
	size_t head_len;
	uint8_t head[PAGE]; /* start of the file: usually all that the parser wants */
	struct elf_image img;
	struct image *image; /* under a policy; NULL = memory */
};

struct load_plan {
	struct load_file prog, interp; /* interp.fd < 0: none */
	const char *execfn;
	char exe[sizeof pvm.exe], comm[sizeof pvm.comm];
	struct admit_subject who;
	/* Arguments: first those that scripts put in front, then argv from `skip` on. */
	const char *pre[2 * LOAD_SCRIPT_DEPTH + 2];
	unsigned nr_pre;
	char **argv, **envp;
	uint64_t skip, argc, envc, string_bytes;
	char script[LOAD_SCRIPT_DEPTH][SCRIPT_BUF + 1];
};

/* A name for a message: one short line, whatever its bytes are. */
struct shown {
	char s[NAME_SHOWN + 4];
};

static struct shown show(const char *name)
{
	struct shown r;
	size_t len = strlen(name), n = 0;

	if (len > NAME_SHOWN) {
		memcpy(r.s, "...", 3);
		n = 3;
		name += len - NAME_SHOWN;
	}
	for (; *name; name++)
		r.s[n++] = *name >= ' ' && *name != 127 ? *name : '?';
	r.s[n] = 0;
	return r;
}
#define SHOW(name) (show(name).s)

static const char *remedy(int e)
{
	switch (e) {
	case ENOENT:
	case ENOTDIR:
		return "not found (give its path, or a name that is in PATH)";
	case EACCES:
		return "permission denied (make it readable and executable: chmod a+rx)";
	case ELOOP:
		return "too many symbolic links (check where it leads)";
	case ENAMETOOLONG:
		return "path too long (use a shorter one)";
	case EMFILE:
	case ENFILE:
		return "too many open files (close some, or raise ulimit -n)";
	default:
		return strerror(e);
	}
}

static int fail(struct kx_err *err, int e, const char *name)
{
	int status = e == ENOENT || e == ENOTDIR ? 127 : 126;

	return kx_err_exit(err, e, status, "%s: %s", SHOW(name), remedy(e));
}

static int no_memory(struct kx_err *err)
{
	return kx_err_exit(err, ENOMEM, 125, "memory: none left on the host (free some)");
}

/* ---- files ---------------------------------------------------------------------------------------------- */

static int64_t file_pread(void *ctx, void *buf, size_t len, uint64_t off)
{
	struct load_file *f = ctx;
	size_t done = 0;

	if (off <= f->head_len && len <= f->head_len - off) {
		memcpy(buf, f->head + off, len);
		return (int64_t)len;
	}
	while (done < len) {
		ssize_t n = pread(f->fd, (char *)buf + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		done += (size_t)n;
	}
	return (int64_t)done;
}

static void file_close(struct load_file *f)
{
	if (f->fd >= 0)
		close(f->fd);
	f->fd = -1;
	admit_image_free(f->image);
	f->image = NULL;
}

/* Its size, and what is at its beginning. */
static int file_begin(struct load_file *f, const struct stat *st)
{
	f->size = (uint64_t)st->st_size;
	f->head_len = 0; /* nothing there yet to answer from */
	int64_t n = file_pread(f, f->head, sizeof f->head, 0);
	f->head_len = n < 0 ? 0 : (size_t)n;
	return n < 0 ? (int)n : 0;
}

/* O_NONBLOCK: a FIFO that took the place of a file must not hold us up. */
static int open_path(const char *path)
{
	const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
	struct rlimit old, all;
	int fd = open(path, flags);

	/* A guest that has used up its descriptors can still exec: the monitor's are above its limit. */
	if (fd < 0 && errno == EMFILE && !getrlimit(RLIMIT_NOFILE, &old) && old.rlim_cur < old.rlim_max) {
		all = (struct rlimit){ old.rlim_max, old.rlim_max };
		if (setrlimit(RLIMIT_NOFILE, &all))
			return -EMFILE;
		fd = open(path, flags);
		int e = errno;
		setrlimit(RLIMIT_NOFILE, &old);
		errno = e;
	}
	return fd < 0 ? -errno : fd;
}

/* The descriptor may be O_PATH or write-only: open its file anew where a procfs is at hand. */
static int open_again(int exe_fd)
{
	char name[32];
	int fd = -1;

	if (pvm.proc_fd >= 0) {
		snprintf(name, sizeof name, "self/fd/%d", exe_fd);
		fd = openat(pvm.proc_fd, name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	} else {
		fd = fcntl(exe_fd, F_DUPFD_CLOEXEC, 0);
	}
	return fd < 0 ? -errno : fd;
}

static int check_executable(int fd, const char *path)
{
	long r = syscall(SYS_faccessat2, fd, "", X_OK, AT_EACCESS | AT_EMPTY_PATH);

	if (r && (errno == ENOSYS || errno == EINVAL))
		r = faccessat(AT_FDCWD, path, X_OK, AT_EACCESS);
	return r ? -errno : 0;
}

/*
 * Open path (or exe_fd), check that it is a regular file that may be executed, read its start. Messages name the
 * file. On failure nothing stays open.
 */
static int file_open(struct load_file *f, const char *path, int exe_fd, struct kx_err *err)
{
	struct stat st;
	int fd, r;

	/* Before the open, which has side effects on devices; after it for certainty. */
	r = exe_fd >= 0 ? fstat(exe_fd, &st) : stat(path, &st);
	if (r)
		return fail(err, errno, path);
	fd = -EACCES;
	if (S_ISREG(st.st_mode))
		fd = exe_fd >= 0 ? open_again(exe_fd) : open_path(path);
	else if (S_ISDIR(st.st_mode))
		return kx_err_exit(err, EACCES, 126, "%s: is a directory (give the path of a program in it)",
				   SHOW(path));
	else
		return kx_err_exit(err, EACCES, 126, "%s: no regular file (give the path of a program)", SHOW(path));
	if (fd >= 0)
		fd = fd_hide(fd);
	if (fd < 0)
		return fail(err, -fd, path);
	f->fd = fd;
	r = fstat(fd, &st) ? -errno : 0;
	if (!r && !S_ISREG(st.st_mode))
		r = -EACCES;
	if (!r)
		r = check_executable(fd, path);
	if (!r)
		r = file_begin(f, &st);
	if (r) {
		file_close(f);
		return fail(err, -r, path);
	}
	return 0;
}

/* ---- scripts -------------------------------------------------------------------------------------------- */

static bool is_script(const struct load_file *f) { return f->head_len >= 2 && f->head[0] == '#' && f->head[1] == '!'; }

static bool is_blank(char c) { return c == ' ' || c == '\t'; }

/*
 * Split the #! line of f, copied to line, into the interpreter and its one argument (NULL = none); the rest of the
 * line is one argument, blanks inside included. As Linux: a line that is too long is cut, unless in the name.
 */
static int script_split(const struct load_file *f, char line[SCRIPT_BUF + 1], const char **name, const char **arg)
{
	size_t len = f->head_len < SCRIPT_BUF ? f->head_len : SCRIPT_BUF;
	char *p, *end;
	bool whole;

	memset(line, 0, SCRIPT_BUF + 1);
	memcpy(line, f->head, len);
	end = memchr(line, '\n', len);
	whole = end || len < SCRIPT_BUF;
	if (!end)
		end = line + (len < SCRIPT_BUF ? len : SCRIPT_BUF - 1);
	*end = 0;
	for (p = line + 2; is_blank(*p); p++)
		;
	if (!*p)
		return -ENOEXEC;
	*name = p;
	while (*p && !is_blank(*p))
		p++;
	if (p == end && !whole)
		return -ENAMETOOLONG;
	*arg = NULL;
	if (!*p)
		return 0;
	*p++ = 0;
	while (is_blank(*p))
		p++;
	end = p + strlen(p);
	while (end > p && is_blank(end[-1]))
		*--end = 0;
	if (*p)
		*arg = p;
	return 0;
}

/* Replace the first argument by: interpreter, its argument, path of the script. */
static void script_push(struct load_plan *p, const char *name, const char *arg, const char *path)
{
	const char *front[3] = { name, arg ? arg : path, path };
	unsigned n = arg ? 3 : 2, drop = p->nr_pre ? 1 : 0;

	if (!drop && p->argv[0])
		p->skip = 1;
	memmove(p->pre + n, p->pre + drop, (p->nr_pre - drop) * sizeof p->pre[0]);
	memcpy(p->pre, front, n * sizeof front[0]);
	p->nr_pre += n - drop;
}

/* Open path and, as long as that is a script, its interpreter, until a file that is none. */
static int open_program(struct load_plan *p, const char *path, int exe_fd, const char **final, struct kx_err *err)
{
	const char *name, *arg;
	int r = file_open(&p->prog, path, exe_fd, err);

	for (unsigned depth = 0; !r && is_script(&p->prog); depth++) {
		if (depth == LOAD_SCRIPT_DEPTH)
			return kx_err_exit(err, ELOOP, 126,
					   "%s: more than %d scripts that interpret each other "
					   "(name a program in the #! line)",
					   SHOW(path), LOAD_SCRIPT_DEPTH);
		r = script_split(&p->prog, p->script[depth], &name, &arg);
		if (r == -ENAMETOOLONG)
			return kx_err_exit(err, ENOEXEC, 126,
					   "%s: #! line is longer than 255 characters "
					   "(use a shorter path)",
					   SHOW(path));
		if (r)
			return kx_err_exit(err, ENOEXEC, 126,
					   "%s: #! line names no interpreter "
					   "(write one, as in #!/bin/sh)",
					   SHOW(path));
		script_push(p, name, arg, path);
		file_close(&p->prog);
		struct kx_err sub = { 0 };
		r = file_open(&p->prog, name, -1, &sub);
		if (r == -ENOENT || r == -ENOTDIR) {
			size_t len = strlen(name);
			bool cr = len && name[len - 1] == '\r';

			return kx_err_exit(err, -r, 127, "%s: its interpreter %s is not found (%s)", SHOW(path),
					   SHOW(name),
					   cr ? "the #! line ends in a carriage return: convert the file to UNIX lines"
					      : "install it, or correct the #! line");
		}
		if (r)
			return kx_err_exit(err, -r, sub.exit_code, "%s: its interpreter %s", SHOW(path), sub.msg);
		path = name;
	}
	*final = path;
	return r;
}

/* ---- preparation ---------------------------------------------------------------------------------------- */

#define POLICY_REMEDY "(sign it, or allow it in the policy: see kylinx-policy(5))"

/* Under a policy: from here on, f is what the policy is asked for. */
static int file_take(const struct load_plan *p, struct load_file *f, struct kx_err *err)
{
	char why[POLICY_WHY] = "";
	struct stat st;

	if (!p->who.active)
		return 0;
	int r = admit_take(&p->who, &f->fd, &f->image, why);
	if (!r)
		r = fstat(f->fd, &st) ? -errno : file_begin(f, &st);
	return r ? kx_err_exit(err, -r, 126, "%s", *why ? why : strerror(-r)) : 0;
}

/* The program that runs asks, and gives the place to another monitor. */
static bool in_exec(void) { return self && self->hcall; }

/* May the program be what it is? */
static int judge(struct load_plan *p, struct kx_err *err)
{
	const char *interp = p->interp.fd >= 0 ? p->prog.img.interp : NULL;
	const bool exec = in_exec(); /* then nobody prints err */
	char why[POLICY_WHY];

	if (!p->who.active)
		return 0;
	if (admit_judge(&p->who, p->prog.image, POLICY_WAY_PROGRAM, interp, exec, why) ||
	    (interp && admit_judge(&p->who, p->interp.image, POLICY_WAY_INTERP, interp, exec, why)))
		return kx_err_exit(err, EACCES, 126, "policy: %s " POLICY_REMEDY, why);
	return 0;
}

static int open_interp(struct load_plan *p, const char *path, struct kx_err *err)
{
	const char *name = p->prog.img.interp;
	struct kx_err sub = { 0 };
	int r;

	if (!name[0])
		return 0;
	r = file_open(&p->interp, name, -1, &sub);
	if (r == -ENOENT || r == -ENOTDIR)
		return kx_err_exit(err, -r, 127,
				   "%s: its loader %s is not found (install the C library that it was "
				   "linked to)",
				   SHOW(path), SHOW(name));
	if (r)
		return kx_err_exit(err, -r, sub.exit_code, "%s: its loader %s", SHOW(path), sub.msg);
	if ((r = file_take(p, &p->interp, err)))
		return r;
	r = elf_parse(p->interp.head, p->interp.head_len, p->interp.size, &p->interp.img, &sub);
	if (!r)
		r = elf_parse_phdrs(&p->interp.img, file_pread, &p->interp, &sub);
	if (!r && p->interp.img.interp[0])
		r = kx_err_exit(&sub, ENOEXEC, 126, "wants a loader itself (install the C library again)");
	if (r)
		return kx_err_exit(err, r == -ENOEXEC ? ELIBBAD : -r, 126, "%s: its loader %s: %s", SHOW(path),
				   SHOW(name), sub.msg);
	return 0;
}

static uint64_t stack_limit(void)
{
	struct rlimit rl;

	return getrlimit(RLIMIT_STACK, &rl) ? 0 : rl.rlim_cur;
}

/* Add the size of a string; 0 as result when it or the sum is too much. */
static bool count_string(struct load_plan *p, const char *s, uint64_t limit)
{
	size_t n = strnlen(s, LOAD_STRING_MAX);

	p->string_bytes += n + 1;
	return n < LOAD_STRING_MAX && p->string_bytes <= limit;
}

static int count_args(struct load_plan *p, struct kx_err *err)
{
	uint64_t limit = stack_limit() / 4;
	bool ok;

	if (limit > ARG_LIMIT_MAX)
		limit = ARG_LIMIT_MAX;
	if (limit < ARG_LIMIT_MIN)
		limit = ARG_LIMIT_MIN;
	ok = count_string(p, p->execfn, limit);
	for (unsigned i = 0; ok && i < p->nr_pre; i++)
		ok = count_string(p, p->pre[i], limit);
	p->argc = p->nr_pre;
	for (char **s = p->argv + p->skip; ok && *s; s++) {
		ok = count_string(p, *s, limit);
		p->argc++;
	}
	for (char **s = p->envp; ok && *s; s++) {
		ok = count_string(p, *s, limit);
		p->envc++;
	}
	if (!ok || p->string_bytes + (p->argc + p->envc) * 8 > limit)
		return kx_err_exit(err, E2BIG, 126,
				   "%s: argument list too long: arguments and environment are limited "
				   "to %llu KiB here, one string to 128 KiB (pass less, or raise ulimit -s)",
				   SHOW(p->execfn), (unsigned long long)limit >> 10);
	return 0;
}

/* The name that /proc/self/exe has; only a label. */
static void find_exe(struct load_plan *p, const char *path)
{
	char link[32], real[PATH_MAX];
	ssize_t n = -1;

	if (pvm.proc_fd >= 0) {
		snprintf(link, sizeof link, "self/fd/%d", p->prog.fd);
		n = readlinkat(pvm.proc_fd, link, p->exe, sizeof p->exe - 1);
	}
	if (n > 0)
		p->exe[n] = 0;
	else
		snprintf(p->exe, sizeof p->exe, "%s", realpath(path, real) ? real : path);
}

/* But for the buffers: that would touch pages which most programs need nothing of. */
static void plan_clear(struct load_plan *p)
{
	p->prog.fd = p->interp.fd = -1;
	p->prog.image = p->interp.image = NULL;
	p->exe[0] = p->comm[0] = 0;
	p->who.active = p->who.bytes = p->who.passing = false;
	p->nr_pre = 0;
	p->skip = p->argc = p->envc = p->string_bytes = 0;
}

int load_prepare(const char *path, int exe_fd, char **argv, char **envp, struct load_plan **plan, struct kx_err *err)
{
	static char *none[] = { NULL };
	const char *final = path, *base;
	struct load_plan *p;
	int r;

	*plan = NULL;
	if (!path[0] && exe_fd < 0)
		return kx_err_exit(err, ENOENT, 127, "empty path (name a program)");
	p = malloc(sizeof *p);
	if (!p)
		return no_memory(err);
	plan_clear(p);
	p->execfn = path;
	p->argv = argv ? argv : none;
	p->envp = envp ? envp : none;
	if (!p->argv[0])
		p->pre[p->nr_pre++] = ""; /* as Linux: no program sees argc 0 */
	base = strrchr(path, '/');
	snprintf(p->comm, sizeof p->comm, "%.15s", base ? base + 1 : path);

	r = open_program(p, path, exe_fd, &final, err);
	if (!r)
		r = count_args(p, err);
	if (!r) {
		find_exe(p, final);
		admit_ask_for(&p->who, p->exe);
		p->who.passing = in_exec();
		r = file_take(p, &p->prog, err);
	}
	if (!r) {
		struct kx_err sub = { 0 };

		r = elf_parse(p->prog.head, p->prog.head_len, p->prog.size, &p->prog.img, &sub);
		if (!r)
			r = elf_parse_phdrs(&p->prog.img, file_pread, &p->prog, &sub);
		if (r)
			r = kx_err_exit(err, sub.code, sub.exit_code, "%s: %s", SHOW(final), sub.msg);
	}
	if (!r)
		r = open_interp(p, final, err);
	if (!r)
		r = judge(p, err);
	if (r) {
		load_free(p);
		return r;
	}
	*plan = p;
	return 0;
}

bool load_is_script(const struct load_plan *plan) { return plan->nr_pre > 0; }

void load_free(struct load_plan *p)
{
	if (!p)
		return;
	file_close(&p->prog);
	file_close(&p->interp);
	free(p);
}

/* ---- mapping -------------------------------------------------------------------------------------------- */

static int seg_prot(const struct elf_segment *s)
{
	return (s->flags & PF_R ? PROT_READ : 0) | (s->flags & PF_W ? PROT_WRITE : 0) |
	       (s->flags & PF_X ? PROT_EXEC : 0);
}

static int map_failed(struct kx_err *err, int64_t r, uint64_t addr)
{
	if (r == -EEXIST)
		return kx_err_exit(err, EEXIST, 126, "its address 0x%llx is taken (link it with -pie)",
				   (unsigned long long)addr);
	if (r == -ENOMEM)
		return kx_err_exit(err, ENOMEM, 126, "no memory for it (raise the limit of memory)");
	if (r == -EACCES)
		return kx_err_exit(err, EACCES, 126, "the policy refuses a part of it " POLICY_REMEDY);
	return kx_err_exit(err, (int)-r, 126, "can't be mapped at 0x%llx: %s (link it elsewhere)",
			   (unsigned long long)addr, strerror((int)-r));
}

static int zero(uint64_t addr, uint64_t end)
{
	static const char zeros[PAGE];

	return addr < end ? guest_write(addr, zeros, end - addr) : 0;
}

/*
 * Map one segment at bias. Like Linux: a page shared with the segment before gets the content of this one, the rest
 * of the last page from the file is zeroed when writable, and what is beyond it is writable in any case.
 */
static int map_segment(const struct load_file *f, const struct elf_segment *s, const struct elf_segment *prev,
		       uint64_t bias, struct kx_err *err)
{
	const int fixed = MAP_PRIVATE | MAP_FIXED | MAP_DENYWRITE;
	uint64_t start = (s->vaddr + bias) & -PAGE, file_end = s->vaddr + bias + s->filesz;
	uint64_t mem_end = PAGE_UP(s->vaddr + bias + s->memsz), done = start;
	uint64_t shared_end = prev ? PAGE_UP(prev->vaddr + bias + prev->memsz) : 0;
	int prot = seg_prot(s);
	int64_t r;

	if (s->filesz) {
		uint64_t len = PAGE_UP(file_end) - start;

		r = gmem_mmap(start, len, prot, fixed, f->fd, s->off - (s->vaddr & (PAGE - 1)));
		if (r < 0)
			return map_failed(err, r, start);
		done = start + len;
	} else if (shared_end > start) {
		prot = seg_prot(prev);
		done = shared_end;
	}
	/*
	 * To the end of the page, also when memsz ends before it: ld.so allocates from there.
	 * -EFAULT: the file became shorter, the page is beyond its end.
	 */
	if (s->memsz > s->filesz && prot & PROT_WRITE && zero(file_end, done))
		return kx_err_exit(err, ETXTBSY, 126, "changed while it was loaded (try again)");
	if (done < mem_end) {
		prot = PROT_READ | PROT_WRITE | (seg_prot(s) & PROT_EXEC);
		r = gmem_mmap(done, mem_end - done, prot, fixed | MAP_ANONYMOUS, -1, 0);
		if (r < 0)
			return map_failed(err, r, done);
	}
	return 0;
}

/*
 * Map the whole image. Its span is reserved first: what gmem_mmap() puts near a text that it patches must not land
 * where a later segment or the heap goes. *tail: address and length of the reservation for the heap, which the
 * caller gives back; NULL = none wanted.
 */
static int map_image(const struct load_file *f, uint64_t *bias, uint64_t tail[2], struct kx_err *err)
{
	const int reserve = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	const struct elf_image *im = &f->img;
	uint64_t span = im->high - im->low, base = im->low, done;
	struct stat st;
	int64_t r;

	if (im->dyn) {
		/* gmem_place_exec() aligns to 2 MiB, which suffices most times. */
		uint64_t slack = im->align > HUGE_PAGE || im->low & (im->align - 1) ? im->align : 0;

		base = gmem_place_exec(span + slack);
		if (!base)
			return kx_err_exit(err, ENOMEM, 126, "no room for %llu MiB of addresses (link it smaller)",
					   (unsigned long long)span >> 20);
		/* The relocation keeps alignments only when it is a multiple of the greatest. */
		if (slack)
			base += (im->low - base) & (slack - 1);
	}
	*bias = base - im->low;
	r = gmem_mmap(base, span, PROT_NONE, reserve, -1, 0);
	if (r < 0)
		return map_failed(err, r, base);
	if (tail) {
		tail[0] = base + span;
		tail[1] = base < TAIL_LOW ? TAIL_SIZE / 2 : TAIL_SIZE;
		if (tail[1] > KX_USER_END - tail[0])
			tail[1] = KX_USER_END - tail[0];
		if (tail[1] && gmem_mmap(tail[0], tail[1], PROT_NONE, reserve, -1, 0) < 0)
			tail[1] = 0;
	}
	if (tail) /* the image, the gap, and the beginning of the heap */
		gmem_expect(base, base + span + LOAD_BRK_GAP + HUGE_PAGE);
	done = base;
	for (unsigned i = 0; i < im->nr_seg; i++) {
		const struct elf_segment *s = &im->seg[i];
		uint64_t start = (s->vaddr + *bias) & -PAGE;

		if (done < start)
			gmem_munmap(done, start - done);
		done = PAGE_UP(s->vaddr + *bias + s->memsz);
		r = map_segment(f, s, i ? s - 1 : NULL, *bias, err);
		if (r)
			return (int)r;
	}
	/* Pages beyond the end would kill the program later, without a reason that anybody could see. */
	if (fstat(f->fd, &st) || (uint64_t)st.st_size < f->size)
		return kx_err_exit(err, ETXTBSY, 126, "changed while it was loaded (try again)");
	return 0;
}

/* ---- stack ---------------------------------------------------------------------------------------------- */

struct entropy {
	uint64_t at_random[2], brk, stack, sp;
};

static int get_entropy(struct entropy *e)
{
	size_t done = 0;

	while (done < sizeof *e) {
		ssize_t n = getrandom((char *)e + done, sizeof *e - done, 0);

		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0)
			done += (size_t)n;
	}
	return 0;
}

/* Feature bits as the guest's CPUID has them. */
static uint32_t cpuid_reg(uint32_t leaf, bool ebx)
{
	unsigned a = 0, b = 0, c = 0, d = 0;

	for (uint32_t i = 0; pvm.cpuid && i < pvm.cpuid->nent; i++) {
		const struct kvm_cpuid_entry2 *e = &pvm.cpuid->entries[i];

		if (e->function == leaf && e->index == 0)
			return ebx ? e->ebx : e->edx;
	}
	if (!pvm.cpuid)
		__get_cpuid_count(leaf, 0, &a, &b, &c, &d);
	return ebx ? b : d;
}

/* What a signal frame can need at most: the XSAVE area, ucontext, siginfo, red zone, alignment. */
static uint64_t min_sigstack(void)
{
	uint64_t host = getauxval(AT_MINSIGSTKSZ), ours = (pvm.xsave_size + 1024 + 15) & -16ull;

	return host > ours ? host : ours;
}

static void aux(uint64_t type, uint64_t value)
{
	if (pvm.auxv_len + 16 <= sizeof pvm.auxv) {
		memcpy(pvm.auxv + pvm.auxv_len, (uint64_t[2]){ type, value }, 16);
		pvm.auxv_len += 16;
	}
}

static void make_auxv(const struct load_plan *p, const struct load_result *res, uint64_t random_at,
		      uint64_t platform_at, uint64_t execfn_at)
{
	const struct elf_image *im = &p->prog.img;

	memset(pvm.auxv, 0, sizeof pvm.auxv);
	pvm.auxv_len = 0;
	aux(AT_SYSINFO_EHDR, KX_VDSO_BASE);
	aux(AT_MINSIGSTKSZ, min_sigstack());
	aux(AT_HWCAP, cpuid_reg(1, false));
	aux(AT_PAGESZ, PAGE);
	aux(AT_CLKTCK, 100);
	aux(AT_PHDR, im->has_phdr ? im->phdr + res->prog_base : 0);
	aux(AT_PHENT, sizeof(Elf64_Phdr));
	aux(AT_PHNUM, im->phnum);
	aux(AT_BASE, res->interp_base);
	aux(AT_FLAGS, 0);
	aux(AT_ENTRY, res->prog_entry);
	aux(AT_UID, getuid());
	aux(AT_EUID, geteuid());
	aux(AT_GID, getgid());
	aux(AT_EGID, getegid());
	aux(AT_SECURE, 0);
	aux(AT_RANDOM, random_at);
	aux(27 /* AT_RSEQ_FEATURE_SIZE */, 28);
	aux(28 /* AT_RSEQ_ALIGN */, 32);
	aux(AT_HWCAP2, cpuid_reg(7, true) & 1 ? 2 : 0); /* FSGSBASE usable in ring 3 */
	aux(AT_EXECFN, execfn_at);
	aux(AT_PLATFORM, platform_at);
	aux(AT_NULL, 0);
}

/* Map the stack and its guard. Returns its end, 0 with err set. */
static uint64_t map_stack(const struct load_plan *p, uint64_t random, uint64_t args, struct kx_err *err)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	int prot = PROT_READ | PROT_WRITE | (p->prog.img.exec_stack ? PROT_EXEC : 0);
	uint64_t size = stack_limit(), top = 0;
	int64_t r = -ENOMEM;

	if (size > STACK_MAX)
		size = STACK_UNLIMITED;
	if (size < STACK_MIN + args)
		size = STACK_MIN + args;
	size = PAGE_UP(size);
	/* Only a program linked to high addresses can be in the way: look below it. */
	for (int i = 0; i < 64; i++) {
		top = i ? 0 : gmem_place_stack(size + LOAD_STACK_GUARD, random);
		if (!top)
			top = KX_USER_END - PAGE - (random % (LOAD_STACK_RANDOM - PAGE) & -PAGE) -
			      i * (STACK_MAX + LOAD_STACK_GUARD);
		r = gmem_mmap(top - size, size, prot, flags | MAP_STACK | MAP_GROWSDOWN, -1, 0);
		if (r == -EEXIST)
			continue;
		if (r >= 0)
			r = gmem_mmap(top - size - LOAD_STACK_GUARD, LOAD_STACK_GUARD, PROT_NONE, flags, -1, 0);
		if (r != -EEXIST)
			break;
		gmem_munmap(top - size, size);
	}
	if (r >= 0)
		return top;
	if (r == -EACCES) {
		kx_err_exit(err, EACCES, 126,
			    "the policy refuses its executable stack (link it with -z noexecstack, or allow jit: see "
			    "kylinx-policy(5))");
		return 0;
	}
	kx_err_exit(err, (int)-r, 126,
		    "no memory for a stack of %llu KiB (lower ulimit -s, or raise the limit of "
		    "memory)",
		    (unsigned long long)size >> 10);
	return 0;
}

/* Host copy of the top of the stack, to be written at once. */
struct block {
	char *buf;
	uint64_t gva, len; /* of buf[0] */
	uint64_t pos;      /* next string goes here */
	uint64_t *word;
};

static uint64_t put_string(struct block *b, const char *s)
{
	uint64_t at = b->gva + b->pos;
	size_t n = strlen(s) + 1;

	memcpy(b->buf + b->pos, s, n);
	b->pos += n;
	return at;
}

/*
 * From sp upwards: argc, argv, NULL, envp, NULL, auxv | random bytes, platform | arguments, environment, execfn |
 * 8 zero bytes at the top. Linux's order.
 */
static int make_stack(const struct load_plan *p, const struct entropy *e, struct load_result *res, struct kx_err *err)
{
	static const char platform[16] = "x86_64";
	uint64_t words = 1 + p->argc + 1 + p->envc + 1 + AUXV_MAX * 2;
	uint64_t args = p->string_bytes + words * 8 + 8192 + 256;
	uint64_t top = map_stack(p, e->stack, args, err), strings, rand_at, platform_at, execfn_at;
	struct block b = { 0 };
	int r;

	if (!top)
		return -err->code;
	strings = top - 8 - p->string_bytes;
	platform_at = (strings & -16ull) - (e->sp % 8192 & -16ull) - sizeof platform;
	rand_at = platform_at - 16;
	res->sp = (rand_at - words * 8) & -16ull;

	b.gva = res->sp;
	b.len = top - res->sp;
	b.buf = calloc(1, b.len);
	if (!b.buf)
		return no_memory(err);
	b.word = (uint64_t *)b.buf;
	memcpy(b.buf + (rand_at - b.gva), e->at_random, 16);
	memcpy(b.buf + (platform_at - b.gva), platform, sizeof platform);

	b.pos = strings - b.gva;
	*b.word++ = p->argc;
	pvm.arg_start = strings;
	for (unsigned i = 0; i < p->nr_pre; i++)
		*b.word++ = put_string(&b, p->pre[i]);
	for (char **s = p->argv + p->skip; *s; s++)
		*b.word++ = put_string(&b, *s);
	b.word++;
	pvm.arg_end = pvm.env_start = b.gva + b.pos;
	for (char **s = p->envp; *s; s++)
		*b.word++ = put_string(&b, *s);
	b.word++;
	pvm.env_end = b.gva + b.pos;
	execfn_at = put_string(&b, p->execfn);
	make_auxv(p, res, rand_at, platform_at, execfn_at);
	memcpy(b.word, pvm.auxv, pvm.auxv_len);

	r = guest_write(b.gva, b.buf, b.len);
	free(b.buf);
	if (r)
		return kx_err_exit(err, -r, 126, "no memory for its arguments (raise the limit of memory)");
	pvm.stack_top = top;
	return 0;
}

static void linker_expect(const struct elf_image *m, uint64_t base)
{
	if (m->dyn && m->relro >= m->low && m->relro_end <= m->high)
		gmem_ahead_relro(m->relro + base, m->relro_end + base);
	if (m->nr_seg && m->seg[0].flags == PF_R && m->seg[0].memsz == m->seg[0].filesz)
		gmem_ahead_read((m->seg[0].vaddr & -PAGE) + base, PAGE_UP(m->seg[0].vaddr + m->seg[0].memsz) + base);
}

int load_commit(struct load_plan *p, struct load_result *res, struct kx_err *err)
{
	struct kx_err sub = { 0 };
	struct entropy e;
	uint64_t brk, tail[2] = { 0 };
	int r;

	memset(res, 0, sizeof *res);
	r = get_entropy(&e);
	if (r)
		return kx_err_host(err, -r, "no random numbers from the host");
	admit_enter(&p->who, &p->prog.image, &p->interp.image);
	admit_way(POLICY_WAY_PROGRAM);
	r = map_image(&p->prog, &res->prog_base, tail, &sub);
	if (tail[1])
		gmem_munmap(tail[0], tail[1]);
	if (!r) {
		res->entry = res->prog_entry = p->prog.img.entry + res->prog_base;
		brk = p->prog.img.high + res->prog_base + (e.brk % LOAD_BRK_GAP & -PAGE);
		brk = (brk + HUGE_PAGE - 1) & -HUGE_PAGE;
		if (brk > KX_USER_END)
			brk = p->prog.img.high + res->prog_base;
		gmem_set_brk(brk);
		pvm.brk_start = brk;
	}
	if (!r && p->interp.fd >= 0) {
		admit_way(POLICY_WAY_INTERP);
		r = map_image(&p->interp, &res->interp_base, NULL, &sub);
		admit_loader(p->prog.img.interp, p->interp.img.low + res->interp_base,
			     p->interp.img.high + res->interp_base);
		res->entry = p->interp.img.entry + res->interp_base;
		if (!p->interp.img.dyn)
			res->interp_base = 0;
		if (r)
			kx_err_wrap(&sub, SHOW(p->prog.img.interp));
	}
	if (!r) {
		if (p->interp.fd >= 0) {
			linker_expect(&p->prog.img, res->prog_base);
			linker_expect(&p->interp.img, res->interp_base);
			libnext_program(p->prog.fd, p->prog.img.file_size, p->exe);
		}
		r = make_stack(p, &e, res, &sub);
	}
	admit_way(POLICY_WAY_OTHER);
	if (r)
		return kx_err_exit(err, -r, sub.exit_code ? sub.exit_code : 126, "%s: %s", SHOW(p->execfn), sub.msg);
	memcpy(pvm.exe, p->exe, sizeof pvm.exe);
	memcpy(pvm.comm, p->comm, sizeof pvm.comm);
	return 0;
}

int load_program(const char *path, char **argv, char **envp, struct load_result *out, struct kx_err *err)
{
	struct load_plan *plan;
	int r = load_prepare(path, -1, argv, envp, &plan, err);

	if (!r) {
		r = load_commit(plan, out, err);
		load_free(plan);
	}
	return r;
}
