/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connections accepted ahead: LibOS and monitor on both sides, without a VM, under the server of tests/guest/alone. An exit is a
 * call here, and can be counted.
 */
#include "../../monitor/core/batch_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include "../../abi/kx_openahead.h"
#include "../../abi/kx_sigs.h"
#include "../../monitor/core/dgram.h"
#include "../../monitor/core/flusher.h"
#include "../../monitor/core/thread.h"

#define LIMIT 400           /* descriptors from here on are the monitor's */
#define ROOM 0x7e00000000ul /* a page for each thread, where the LibOS takes addresses of the program's to be */

struct pvm pvm;
__thread struct thread *self;
static __thread struct thread thread;
static __thread struct kx_thread area;
static bool native;       /* this process is no pVM */
static long exits, local; /* accepts by an exit, and without, while there is one thread */

bool batch_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret);

/* ---- the program's calls -------------------------------------------------------------------------------------------------- */

static const struct hc_row *row_of(long nr)
{
	static const struct hc_row none,
		first = { .arg = { { .kind = KX_A_FD } } },
		both = { .arg = { { .kind = KX_A_FD }, { .kind = KX_A_INT }, { .kind = KX_A_FD } } };
	return nr == SYS_epoll_ctl ? &both : nr == SYS_socket || nr == SYS_open || nr == SYS_setrlimit ? &none : &first;
}

/* As sys_poll.c does. */
static bool poll_one(const struct hcall *c, int64_t *r)
{
	struct pollfd p;
	if (c->nr != SYS_poll || c->arg[1] != 1)
		return false;
	p = *(const struct pollfd *)c->arg[0];
	p.fd = batch_ready_fd(p.fd);
	*r = HC6(SYS_poll, &p, 1, c->arg[2], 0, 0, 0);
	((struct pollfd *)c->arg[0])->revents = p.revents;
	return true;
}

static long by_exit(long nr, const long *a)
{
	struct hcall c = { .t = self, .row = row_of(nr), .nr = (uint64_t)nr };
	int64_t r = 0;
	for (int i = 0; i < 6; i++)
		c.arg[i] = (uint64_t)a[i];
	exits += nr == SYS_accept4 && pvm.nr_threads == 1;
	if (batch_enter(&c, &r))
		return r;
	if (!batch_answer(&c, &r) && !poll_one(&c, &r))
		r = HC6(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
	if (nr == SYS_epoll_wait)
		r = batch_told(c.arg[1], r);
	batch_leave(&c, r);
	return r;
}

static long call(long nr, long a, long b, long c, long d, long e)
{
	struct kx_frame f = { .orig_rax = (uint64_t)nr,
			      .rdi = (uint64_t)a,
			      .rsi = (uint64_t)b,
			      .rdx = (uint64_t)c,
			      .r10 = (uint64_t)d,
			      .r8 = (uint64_t)e };
	int64_t r;
	if (native)
		return syscall(nr, a, b, c, d, e, 0);
	if (pvm.shared->batch && batch_call(&area, &f, &r))
		local += nr == SYS_accept4 && pvm.nr_threads == 1;
	else
		r = by_exit(nr, (const long[]){ a, b, c, d, e, 0 });
	if (r < 0) {
		errno = (int)-r;
		return -1;
	}
	return r;
}

static void thread_begin(int index)
{
	thread.index = area.index = index;
	thread.area = &area;
	self = &thread;
}

struct start {
	void *(*fn)(void *);
	void *arg;
};

static void *thread_main(void *p)
{
	struct start s = *(struct start *)p;
	free(p);
	thread_begin(1);
	void *r = s.fn(s.arg);
	by_exit(SYS_exit, (const long[6]){ 0 }); /* which is no call of the host's: below */
	return r;
}

static int make_thread(pthread_t *t, const void *attr, void *(*fn)(void *), void *arg)
{
	struct start *s = malloc(sizeof *s);
	(void)attr;
	*s = (struct start){ fn, arg };
	by_exit(SYS_gettid, (const long[6]){ 0 });
	pvm.nr_threads++;
	return pthread_create(t, NULL, thread_main, s);
}

static int join_thread(pthread_t t, void **r)
{
	by_exit(SYS_gettid, (const long[6]){ 0 });
	int e = pthread_join(t, r);
	pvm.nr_threads--;
	return e;
}

static pid_t make_child(void)
{
	static bool begun;
	if (!begun) { /* the clients */
		begun = true;
		pid_t p = (pid_t)syscall(SYS_fork);
		native = p == 0;
		return p;
	}
	by_exit(SYS_gettid, (const long[6]){ 0 });
	batch_lease_begin(false);
	batch_fork_lock();
	batch_fork_share();
	pid_t p = (pid_t)syscall(SYS_fork);
	native = p == 0;
	batch_fork_unlock();
	if (p)
		batch_lease_end();
	return p;
}

static int wait_epoll(int fd, void *ev, int max, int timeout)
{
	void *room = (void *)(ROOM + (unsigned long)area.index * 0x1000);
	long n = call(SYS_epoll_wait, fd, (long)room, max, timeout, 0);
	memcpy(ev, room, n > 0 ? (size_t)n * sizeof(struct epoll_event) : 0);
	return (int)n;
}

/* As libc has them. */
static ssize_t kx_read(int fd, void *p, size_t n) { return call(SYS_read, fd, (long)p, (long)n, 0, 0); }
static ssize_t kx_write(int fd, const void *p, size_t n) { return call(SYS_write, fd, (long)p, (long)n, 0, 0); }
static int kx_close(int fd) { return (int)call(SYS_close, fd, 0, 0, 0, 0); }
static int kx_dup(int fd) { return (int)call(SYS_dup, fd, 0, 0, 0, 0); }
static int kx_open(const char *path, int flags) { return (int)call(SYS_open, (long)path, flags, 0, 0, 0); }
static int kx_fcntl(int fd, int op, ...) { return (int)call(SYS_fcntl, fd, op, 0, 0, 0); } /* no other is used */
static int kx_socket(int a, int b, int c) { return (int)call(SYS_socket, a, b, c, 0, 0); }
static int kx_bind(int fd, const void *a, socklen_t n) { return (int)call(SYS_bind, fd, (long)a, n, 0, 0); }
static int kx_listen(int fd, int n) { return (int)call(SYS_listen, fd, n, 0, 0, 0); }
static int kx_accept4(int fd, void *a, socklen_t *n, int f)
{
	return (int)call(SYS_accept4, fd, (long)a, (long)n, f, 0);
}
static int kx_shutdown(int fd, int how) { return (int)call(SYS_shutdown, fd, how, 0, 0, 0); }
static int kx_getsockname(int fd, void *a, socklen_t *n)
{
	return (int)call(SYS_getsockname, fd, (long)a, (long)n, 0, 0);
}
static int kx_getpeername(int fd, void *a, socklen_t *n)
{
	return (int)call(SYS_getpeername, fd, (long)a, (long)n, 0, 0);
}
static int kx_setsockopt(int fd, int level, int o, const void *p, socklen_t n)
{
	return (int)call(SYS_setsockopt, fd, level, o, (long)p, n);
}
static int kx_getsockopt(int fd, int level, int o, void *p, socklen_t *n)
{
	return (int)call(SYS_getsockopt, fd, level, o, (long)p, (long)n);
}
static int kx_epoll_create1(int f) { return (int)call(SYS_epoll_create1, f, 0, 0, 0, 0); }
static int kx_epoll_ctl(int e, int op, int fd, void *ev) { return (int)call(SYS_epoll_ctl, e, op, fd, (long)ev, 0); }
static int kx_setrlimit(int r, const struct rlimit *l) { return (int)call(SYS_setrlimit, r, (long)l, 0, 0, 0); }
static int kx_select(int n, fd_set *in, fd_set *out, fd_set *odd, struct timeval *t)
{
	struct pollfd p = { n - 1, POLLIN, 0 }; /* of that one, to read */
	if (!FD_ISSET(n - 1, in) || out || odd || t->tv_sec || t->tv_usec)
		abort();
	return (int)call(SYS_poll, (long)&p, 1, 0, 0, 0);
}
static int kx_poll(void *p, long n, int t) { return (int)call(SYS_poll, (long)p, n, t, 0, 0); }

#define read kx_read
#define write kx_write
#define close kx_close
#define dup kx_dup
#define open kx_open
#define fcntl kx_fcntl
#define socket kx_socket
#define bind kx_bind
#define listen kx_listen
#define accept4 kx_accept4
#define shutdown kx_shutdown
#define getsockname kx_getsockname
#define getpeername kx_getpeername
#define setsockopt kx_setsockopt
#define getsockopt kx_getsockopt
#define epoll_create1 kx_epoll_create1
#define epoll_ctl kx_epoll_ctl
#define setrlimit kx_setrlimit
#define poll kx_poll
#define epoll_wait wait_epoll
#define select kx_select
#define pthread_create make_thread
#define pthread_join join_thread
#define fork make_child
#define close_range(a, b, c) (syscall(SYS_close_range, a, b, c), prepare())
static void prepare(void);
#define main alone
#include "../guest/alone/alone.c"
#undef main
#undef read
#undef write
#undef close
#undef dup
#undef open
#undef fcntl
#undef fork
#undef poll
#undef pthread_create
#undef close_range
#undef setrlimit

/* ---- what both sides need -------------------------------------------------------------------------------------------------- */

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	long r = nr == SYS_exit ? 0 : syscall(nr, a, b, c, d, e, f);
	return r < 0 ? -errno : r;
}
void pvm_panic(const char *fmt, ...)
{
	printf("FAIL panic: %s\n", fmt);
	fflush(stdout);
	abort();
}
int guest_read(void *dst, uint64_t gva, size_t len) { return memcpy(dst, (void *)gva, len) ? 0 : -EFAULT; }
int guest_write(uint64_t gva, const void *src, size_t len) { return memcpy((void *)gva, src, len) ? 0 : -EFAULT; }
int user_read(void *dst, uint64_t src, size_t len) { return guest_read(dst, src, len); }
int user_write(uint64_t dst, const void *src, size_t len) { return guest_write(dst, src, len); }
int gmem_sys_open(uint64_t gva) { return (void)gva, 0; }
bool gmem_is_seen(void) { return false; }
bool hcall_closes_range(const struct hcall *c) { return (void)c, false; }
int64_t fd_result(int64_t fd) { return fd; }
int64_t hypercall(struct kx_thread *t, uint64_t nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
		  uint64_t f)
{
	(void)t, (void)nr, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f;
	return 0;
}
static struct rlimit lifted;
void fd_limit_lift(void)
{
	struct rlimit l;
	getrlimit(RLIMIT_NOFILE, &lifted);
	l = (struct rlimit){ lifted.rlim_max, lifted.rlim_max };
	setrlimit(RLIMIT_NOFILE, &l);
}
void fd_limit_drop(void) { setrlimit(RLIMIT_NOFILE, &lifted); }
int fd_hide(int fd)
{
	if (fd < 0 || fd >= LIMIT)
		return fd;
	fd_limit_lift();
	int n = fcntl(fd, F_DUPFD_CLOEXEC, LIMIT);
	fd_limit_drop();
	close(fd);
	return n;
}
int proc_file(const char *name)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/%s", name);
	return fd_hide(open(path, O_RDONLY | O_CLOEXEC));
}

/* The flusher, as long as there is something to flush. */
static void (*tick)(void);
bool flusher_start(void (*look)(void)) { return (tick = look) != NULL; }
void flusher_due(void) {}
int flusher_fds(int (*move)(int *fd)) { return (void)move, 0; }
void flusher_fork_child(void) {}
static volatile bool ticking;
static void *ticks(void *arg)
{
	while (ticking) {
		if (tick)
			tick();
		usleep(300);
	}
	return arg;
}

/* Other modules'. */
void openahead_settle(void) {}
void openahead_offer(const struct hcall *c) { (void)c; }
int openahead_fd(int file) { return (void)file, -1; }
void openahead_stale(void) {}
void openahead_fork_child(void) {}
bool openahead_call(struct kx_frame *f, int64_t *ret) { return (void)f, (void)ret, false; }
struct kx_openahead_file *openahead_file(uint64_t fd, int32_t *as) { return (void)fd, (void)as, NULL; }
void recycle_enter(struct hcall *c) { (void)c; }
void recycle_leave(const struct hcall *c, int64_t r) { (void)c, (void)r; }
bool recycle_call(struct kx_thread *t, struct kx_frame *f, int64_t *ret) { return (void)t, (void)f, (void)ret, false; }
void writelater_reset(int ctx) { (void)ctx; }
void writelater_seen(int ctx, int fd, int64_t n) { (void)ctx, (void)fd, (void)n; }
void writelater_look(int ctx, uint64_t calls) { (void)ctx, (void)calls; }
bool writelater_record(int ctx, int fd, const uint8_t *data, uint32_t len)
{
	return (void)ctx, (void)fd, (void)data, (void)len, false;
}
bool writelater_enter(const struct hcall *c, int64_t *r) { return (void)c, (void)r, false; }
void writelater_fork_child(void) {}
void writelater_end(void) {}
bool dgram_active(void) { return false; }
bool dgram_tick(void) { return false; }
void dgram_alone_again(void) {}
void dgram_flush(struct kx_thread *t) { (void)t; }
void seek_reset(int ctx) { (void)ctx; }
void seek_shared(int fd) { (void)fd; }
void seek_all_shared(void) {}
void seek_enter(const struct hcall *c) { (void)c; }
void seek_note(const struct hcall *c, int ctx, int64_t r) { (void)c, (void)ctx, (void)r; }
void seek_look(int ctx, uint64_t calls) { (void)ctx, (void)calls; }
bool seek_end(struct kx_bctx *c, struct kx_frame *f, int64_t *ret) { return (void)c, (void)f, (void)ret, false; }
void sigs_reset(int ctx) { (void)ctx; }
void sigs_enter(const struct hcall *c, int ctx) { (void)c, (void)ctx; }
void sigs_note(const struct hcall *c, int ctx, int64_t r) { (void)c, (void)ctx, (void)r; }
void sigs_look(int ctx, uint64_t calls) { (void)ctx, (void)calls; }
void sigs_offer(int ctx, uint64_t calls) { (void)ctx, (void)calls; }
bool sigs_offered(void) { return false; }
int sigs_record(const uint8_t *data) { return (void)data, -EINVAL; }
void sigs_fork_child(void) {}
bool sigs_may_kill(struct kx_bctx *c, const struct kx_bkill *k) { return (void)c, (void)k, false; }
bool sigs_read(struct kx_bctx *c, struct kx_frame *f, int64_t *ret) { return (void)c, (void)f, (void)ret, false; }
void heir_closed(struct sock *s) { s->heir = 0; }
void heir_lost(struct sock *s) { s->heir = 0; }
void heir_fork(void) {}
void heir_fork_child(void) {}
bool heir_looks(void) { return false; }
struct sock *heir_meet(int fd) { return (void)fd, NULL; }
bool heir_is_last(struct sock *s) { return (void)s, false; }
bool lend_begin(void) { return false; }
void lend_end(void) {}
bool lend_socket(int fd, struct sock *s) { return (void)fd, (void)s, false; }
void lend_fork_child(void) {}
bool lend_look(int fd, struct sock *s) { return (void)fd, (void)s, false; }
void lend_settle(int fd, struct sock *s, bool end) { (void)fd, (void)s, (void)end; }
bool lend_fetch_begin(int fd, struct sock *s) { return (void)fd, (void)s, false; }
bool lend_fetch_end(int fd, struct sock *s, uint32_t n, uint64_t w)
{
	return (void)fd, (void)s, (void)n, (void)w, false;
}
void lend_close(int fd, struct sock *s) { (void)fd, (void)s; }
void lend_all_back(void) {}
bool lend_looks(void) { return false; }
int lend_ask(int fd) { return (void)fd, 0; }
void lend_ask_all(void) {}
int lend_enter(const struct hcall *c) { return (void)c, 0; }
void libfile_flush_now(struct kx_thread *t) { (void)t; }

/* The program has closed what it does not want. */
static void prepare(void)
{
	pvm.fd_limit = LIMIT;
	thread_begin(0);
}

int main(void)
{
	pthread_t t;
	const int prot = PROT_READ | PROT_WRITE,
		  flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	if (mmap((void *)KX_BOOT_BASE, 0x10000, prot, flags, -1, 0) == MAP_FAILED ||
	    mmap((void *)KX_BATCH_BASE, KX_BATCH_CTX * (KX_BATCH_CTXS + 1ul), prot, flags, -1, 0) == MAP_FAILED ||
	    mmap((void *)ROOM, 0x2000, prot, flags, -1, 0) == MAP_FAILED)
		return 2;
	pvm.shared = (struct kx_shared *)KX_BOOT_BASE;
	pvm.nr_threads = 1;
	pvm.pid = getpid();
	ticking = true;
	if ((pthread_create)(&t, NULL, ticks, NULL))
		return 2;
	int r = alone();
	printf("%ld accepts by an exit, %ld without\n", exits, local);
	return r || local < 2 * exits;
}
