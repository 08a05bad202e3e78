/* SPDX-License-Identifier: Apache-2.0 */
/* Lines of the trace, and the report of the statistics, for made-up calls over a made-up guest memory. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <unistd.h>
#include "../../monitor/core/stats.h"
#include "../../monitor/core/strace.h"
#include "rows.h"

/* ---- The monitor that strace.c and stats.c see ---------------------------------------------------------- */

#define MEM 0x10000u /* guest addresses MEM..MEM_END are mapped */
#define MEM_END 0x30000u

struct pvm pvm;
uint64_t admit_refused = 2, admit_warned = 1, admit_copied = 3, admit_hashed = 4, policy_signatures = 5;
uint64_t text_prepared = 6, text_found = 7, store_stored = 8;
__thread struct thread *self;

int guest_read(void *dst, uint64_t gva, size_t len)
{
	if (gva < MEM || gva > MEM_END || len > MEM_END - gva)
		return -EFAULT;
	memcpy(dst, pvm.base + gva, len);
	return 0;
}

uint64_t kvmstats_page_faults(void) { return 77; }

int fd_keep(int *where, int fd)
{
	*where = fd;
	return 0;
}

/* ---- The trace ------------------------------------------------------------------------------------------ */

static char trace_name[] = "/tmp/kx-strace-XXXXXX";
static FILE *trace;
static int failures, checks;
static uint64_t next_free = MEM;

/* Copies n bytes into guest memory; returns their address. */
static uint64_t g(const void *p, size_t n)
{
	uint64_t at = next_free;

	memcpy(pvm.base + at, p, n);
	next_free += (n + 15) & ~15ull;
	return at;
}

static uint64_t gs(const char *s) { return g(s, strlen(s) + 1); }

/* The next line of the trace must be `want`. */
static void expect(const char *want, int line)
{
	char got[9000];

	checks++;
	clearerr(trace);
	if (!fgets(got, sizeof(got), trace))
		strcpy(got, "(nothing)\n");
	got[strcspn(got, "\n")] = 0;
	if (strcmp(got, want)) {
		failures++;
		fprintf(stderr, "line %d:\n  want %s\n  got  %s\n", line, want, got);
	}
}

static struct thread thr = { .tid = 123 };

static void call(uint64_t nr, int64_t ret, int path, const uint64_t *arg, const char *want, int line)
{
	strace_call(&thr, hc_row_find(nr), nr, arg, ret, path, 26000);
	expect(want, line);
	next_free = MEM;
}

#define CALL(nr, ret, want, ...) \
	call(nr, ret, KX_PATH_MONITOR, (const uint64_t[6]){ __VA_ARGS__ }, want " <monitor>", __LINE__)
#define N(x) ((uint64_t)(int64_t)(x))

static void test_files(void)
{
	struct stat st = { .st_mode = S_IFREG | 0644, .st_size = 12 };
	struct stat dev = { .st_mode = S_IFCHR | 0666, .st_rdev = 0x103 };
	uint64_t iov[4], fl[4] = { 0, 0, 10, 0 }, at;
	char big[80], want[6000], deep[4200];
	int fds[2] = { 3, 4 };

	CALL(SYS_openat, 3, "openat(AT_FDCWD, \"/etc/passwd\", O_RDONLY|O_CLOEXEC) = 3", N(AT_FDCWD), gs("/etc/passwd"),
	     O_RDONLY | O_CLOEXEC, 0);
	CALL(SYS_openat, -ENOENT,
	     "openat(5, \"no\", O_WRONLY|O_CREAT|O_TRUNC, 0644) = -1 ENOENT (No such file or "
	     "directory)",
	     5, gs("no"), O_WRONLY | O_CREAT | O_TRUNC, 0644);
	CALL(SYS_open, -EFAULT, "open(NULL, O_RDWR|0x40000000) = -1 EFAULT (Bad address)", 0, O_RDWR | 0x40000000);
	CALL(SYS_open, -EFAULT, "open(0xdead, O_RDONLY) = -1 EFAULT (Bad address)", 0xdead);
	CALL(SYS_openat, 3, "openat(AT_FDCWD, \"/tmp\", O_RDWR|O_TMPFILE, 0600) = 3", N(AT_FDCWD), gs("/tmp"),
	     O_RDWR | O_TMPFILE, 0600);
	CALL(SYS_read, 8, "read(0, \"a\\n\\\"\\0\\0011\\33\\377\", 64) = 8", 0, g("a\n\"\0\0011\033\377", 8), 64);
	memset(big, 'x', sizeof(big));
	CALL(SYS_write, 80, "write(1, \"xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\"..., 80) = 80", 1, g(big, 80), 80);
	CALL(SYS_write, -EBADF, "write(-1, \"\", 0) = -1 EBADF (Bad file descriptor)", N(-1), MEM, 0);
	CALL(SYS_read, -EINTR, "read(3, 0x10000, 10) = -1 EINTR (Interrupted system call)", 3, MEM, 10);
	CALL(SYS_read, -KX_ERESTART, "read(3, 0x10000, 10) = ? ERESTARTSYS (To be restarted if SA_RESTART is set)", 3,
	     MEM, 10);
	CALL(SYS_pread64, 2, "pread64(3, \"hi\", 2, -1) = 2", 3, gs("hi"), 2, N(-1));
	CALL(SYS_close, 0, "close(3) = 0", 3);
	CALL(SYS_fstat, 0, "fstat(3, {st_mode=S_IFREG|0644, st_size=12, ...}) = 0", 3, g(&st, sizeof(st)));
	CALL(SYS_newfstatat, 0,
	     "newfstatat(AT_FDCWD, \"d\", {st_mode=S_IFCHR|0666, st_rdev=makedev(0x1, 0x3), ...}, "
	     "AT_SYMLINK_NOFOLLOW) = 0",
	     N(AT_FDCWD), gs("d"), g(&dev, sizeof(dev)), AT_SYMLINK_NOFOLLOW);
	CALL(SYS_stat, -ENOENT, "stat(\"x\", 0x20000) = -1 ENOENT (No such file or directory)", gs("x"), 0x20000);
	CALL(SYS_lseek, 7, "lseek(3, 7, SEEK_SET) = 7", 3, 7, SEEK_SET);
	CALL(SYS_access, 0, "access(\"x\", R_OK|X_OK) = 0", gs("x"), R_OK | X_OK);
	CALL(SYS_access, 0, "access(\"x\", F_OK) = 0", gs("x"), F_OK);
	CALL(SYS_pipe2, 0, "pipe2([3, 4], O_CLOEXEC) = 0", g(fds, 8), O_CLOEXEC);
	CALL(SYS_pipe2, -EMFILE, "pipe2(0x10000, 0) = -1 EMFILE (Too many open files)", MEM, 0);
	CALL(SYS_fcntl, 0x8002, "fcntl(3, F_GETFL) = 0x8002 (flags O_RDWR|O_LARGEFILE)", 3, F_GETFL);
	CALL(SYS_fcntl, 0, "fcntl(3, F_SETFD, FD_CLOEXEC) = 0", 3, F_SETFD, FD_CLOEXEC);
	CALL(SYS_fcntl, 9, "fcntl(3, F_DUPFD_CLOEXEC, 5) = 9", 3, F_DUPFD_CLOEXEC, 5);
	CALL(SYS_fcntl, 0, "fcntl(3, F_SETLK, {l_type=F_RDLCK, l_whence=SEEK_SET, l_start=0, l_len=10}) = 0", 3,
	     F_SETLK, g(fl, 32));
	CALL(SYS_ioctl, -ENOTTY, "ioctl(1, TCGETS, 0x10000) = -1 ENOTTY (Inappropriate ioctl for device)", 1, TCGETS,
	     MEM);
	CALL(SYS_ioctl, 0, "ioctl(1, FIONBIO, [1]) = 0", 1, FIONBIO, g(&(int){ 1 }, 4));
	CALL(SYS_umask, 022, "umask(077) = 022", 077);
	CALL(SYS_mkdir, 0, "mkdir(\"d\", 000) = 0", gs("d"), 0);
	CALL(SYS_mknod, 0, "mknod(\"f\", S_IFIFO|0644, 0) = 0", gs("f"), S_IFIFO | 0644, 0);
	CALL(SYS_getcwd, 2, "getcwd(\"/\", 100) = 2", gs("/"), 100);
	CALL(SYS_readlink, 3, "readlink(\"l\", \"abc\", 100) = 3", gs("l"), g("abcdef", 6), 100);
	iov[0] = gs("hello");
	iov[1] = 5;
	iov[2] = gs("world");
	iov[3] = 5;
	at = g(iov, sizeof(iov));
	CALL(SYS_writev, 10,
	     "writev(1, [{iov_base=\"hello\", iov_len=5}, {iov_base=\"world\", iov_len=5}], 2) = "
	     "10",
	     1, at, 2);
	iov[0] = gs("hello");
	iov[2] = gs("world");
	at = g(iov, sizeof(iov));
	CALL(SYS_readv, 7, "readv(1, [{iov_base=\"hello\", iov_len=5}, {iov_base=\"wo\", iov_len=5}], 2) = 7", 1, at,
	     2);
	/* A path at the end of mapped memory without a NUL, and one that is longer than the line may be. */
	memset(pvm.base + MEM_END - 64, 'z', 64);
	memset(big, 'z', 64);
	snprintf(want, sizeof(want), "unlink(\"%.64s\"...) = -1 EFAULT (Bad address) <monitor>", big);
	call(SYS_unlink, -EFAULT, KX_PATH_MONITOR, (const uint64_t[6]){ MEM_END - 64 }, want, __LINE__);
	memset(deep, 'y', sizeof(deep));
	deep[4095] = 0;
	at = g(deep, 4096);
	snprintf(want, sizeof(want), "unlink(\"%s\") = 0 <slow>", deep);
	call(SYS_unlink, 0, KX_PATH_SLOW, (const uint64_t[6]){ at }, want, __LINE__);
}

/* Four bytes for each of 4095: more than the line holds. It is cut, but ends as it must. */
static void test_cut(void)
{
	char deep[4096], got[9000];
	const uint64_t arg[6] = { MEM };

	memset(deep, 0377, sizeof(deep) - 1);
	deep[4095] = 0;
	g(deep, sizeof(deep));
	strace_call(NULL, hc_row_find(SYS_unlink), SYS_unlink, arg, -ENAMETOOLONG, KX_PATH_LIBOS, 0);
	checks++;
	clearerr(trace);
	if (!fgets(got, sizeof(got), trace) || strlen(got) > 8192 ||
	    !strstr(got, "...) = -1 ENAMETOOLONG (File name too long) <libos>\n")) {
		failures++;
		fprintf(stderr, "cut line is wrong\n");
	}
	next_free = MEM;
}

static void test_memory(void)
{
	const char *cpu = "\5\0\0\0\0\0\0\0";

	CALL(SYS_brk, 0x555000, "brk(NULL) = 0x555000", 0);
	CALL(SYS_mmap, 0x7000001000,
	     "mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = "
	     "0x7000001000",
	     0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, N(-1), 0);
	CALL(SYS_mmap, -ENOMEM,
	     "mmap(0x1000, 1, PROT_NONE, MAP_SHARED|MAP_FIXED, 3, 0x2000) = -1 ENOMEM (Cannot "
	     "allocate memory)",
	     0x1000, 1, 0, MAP_SHARED | MAP_FIXED, 3, 0x2000);
	CALL(SYS_mremap, 0x5000, "mremap(0x1000, 1, 2, MREMAP_MAYMOVE) = 0x5000", 0x1000, 1, 2, MREMAP_MAYMOVE, 0);
	CALL(SYS_madvise, 0, "madvise(0x1000, 4096, MADV_DONTNEED) = 0", 0x1000, 4096, MADV_DONTNEED);
	CALL(SYS_msync, 0, "msync(0x1000, 4096, MS_SYNC) = 0", 0x1000, 4096, MS_SYNC);
	CALL(SYS_futex, 1, "futex(0x1000, FUTEX_WAKE_PRIVATE, 1) = 1", 0x1000, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1);
	CALL(SYS_futex, -EAGAIN,
	     "futex(0x1000, FUTEX_WAIT, 2, {tv_sec=1, tv_nsec=5}) = -1 EAGAIN (Resource "
	     "temporarily unavailable)",
	     0x1000, FUTEX_WAIT, 2, g(&(struct timespec){ 1, 5 }, 16));
	CALL(SYS_sched_getaffinity, 8, "sched_getaffinity(0, 128, [0 2]) = 8", 0, 128, g(cpu, 8));
	CALL(SYS_sched_setaffinity, -EINVAL, "sched_setaffinity(0, 128, 0x10000) = -1 EINVAL (Invalid argument)", 0,
	     128, MEM);
	CALL(SYS_prlimit64, 0,
	     "prlimit64(0, RLIMIT_STACK, NULL, {rlim_cur=8192*1024, rlim_max=RLIM64_INFINITY}) = "
	     "0",
	     0, RLIMIT_STACK, 0, g((uint64_t[]){ 8 << 20, ~0ull }, 16));
}

static void test_signals(void)
{
	struct kx_sigaction sa = { 0x401000, 0x14000000, 0x402000, ~(3ull << 31) }, dfl = { 0, 0, 0, 0 };
	uint64_t set = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1ull << 34, none = 0;
	siginfo_t si = { .si_signo = SIGSEGV, .si_code = SEGV_MAPERR };
	siginfo_t chld = { .si_signo = SIGCHLD, .si_code = CLD_KILLED };
	siginfo_t user = { .si_signo = SIGTERM, .si_code = SI_USER, .si_pid = 1 };
	int ws;

	chld.si_pid = 7;
	chld.si_status = SIGKILL;
	CALL(SYS_rt_sigaction, 0,
	     "rt_sigaction(SIGINT, {sa_handler=0x401000, sa_mask=~[RTMIN RT_1], "
	     "sa_flags=SA_RESTORER|SA_RESTART, sa_restorer=0x402000}, {sa_handler=SIG_DFL, sa_mask=[], sa_flags=0}, "
	     "8) = 0",
	     SIGINT, g(&sa, 32), g(&dfl, 32), 8);
	CALL(SYS_rt_sigprocmask, 0, "rt_sigprocmask(SIG_BLOCK, [INT TERM RT_3], [], 8) = 0", SIG_BLOCK, g(&set, 8),
	     g(&none, 8), 8);
	CALL(SYS_tgkill, 0, "tgkill(1, 2, SIGRT_3) = 0", 1, 2, 35);
	CALL(SYS_kill, -EINVAL, "kill(1, 99) = -1 EINVAL (Invalid argument)", 1, 99);
	CALL(SYS_kill, 0, "kill(1, 0) = 0", 1, 0);
	ws = 3 << 8;
	CALL(SYS_wait4, 9, "wait4(-1, [{WIFEXITED(s) && WEXITSTATUS(s) == 3}], WNOHANG, NULL) = 9", N(-1), g(&ws, 4), 1,
	     0);
	ws = SIGKILL;
	CALL(SYS_wait4, 9, "wait4(-1, [{WIFSIGNALED(s) && WTERMSIG(s) == SIGKILL}], 0, NULL) = 9", N(-1), g(&ws, 4), 0,
	     0);
	CALL(SYS_wait4, 0, "wait4(-1, 0x10000, WNOHANG, NULL) = 0", N(-1), MEM, 1, 0);
	strace_signal(&thr, SIGSEGV, &si);
	expect("--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=0x0} ---", __LINE__);
	strace_signal(&thr, SIGCHLD, &chld);
	expect("--- SIGCHLD {si_signo=SIGCHLD, si_code=CLD_KILLED, si_pid=7, si_uid=0, si_status=SIGKILL, si_utime=0, "
	       "si_stime=0} ---",
	       __LINE__);
	strace_signal(&thr, SIGTERM, &user);
	expect("--- SIGTERM {si_signo=SIGTERM, si_code=SI_USER, si_pid=1, si_uid=0} ---", __LINE__);
	strace_signal(&thr, SIGTERM, NULL);
	expect("--- SIGTERM ---", __LINE__);
}

static void test_net(void)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_port = htons(80), .sin_addr = { htonl(0x01020304) } };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(80), .sin6_addr.s6_addr[15] = 1 };
	struct sockaddr_un un = { .sun_family = AF_UNIX, .sun_path = "/run/x" }, abs = { .sun_family = AF_UNIX };
	struct pollfd p[2] = { { 3, POLLIN, 0 }, { 5, POLLIN | POLLOUT, POLLOUT } };
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET, .data.u64 = 5 };
	struct {
		size_t len;
		int level, type, fd[2];
	} cm = { sizeof(cm), SOL_SOCKET, SCM_RIGHTS, { 4, 5 } };
	uint64_t fdset[2] = { 1 << 3 | 1 << 7, 0 }, iov[2], at;
	struct msghdr mh;

	strcpy(abs.sun_path + 1, "hid");
	CALL(SYS_socket, 3, "socket(AF_INET, SOCK_STREAM|SOCK_CLOEXEC, IPPROTO_TCP) = 3", AF_INET,
	     SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
	CALL(SYS_connect, 0,
	     "connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"1.2.3.4\")}, "
	     "16) = 0",
	     3, g(&in, sizeof(in)), sizeof(in));
	CALL(SYS_bind, 0,
	     "bind(3, {sa_family=AF_INET6, sin6_port=htons(80), sin6_flowinfo=htonl(0), "
	     "inet_pton(AF_INET6, \"::1\", &sin6_addr), sin6_scope_id=0}, 28) = 0",
	     3, g(&in6, sizeof(in6)), sizeof(in6));
	CALL(SYS_bind, 0, "bind(3, {sa_family=AF_UNIX, sun_path=\"/run/x\"}, 110) = 0", 3, g(&un, sizeof(un)),
	     sizeof(un));
	CALL(SYS_bind, 0, "bind(3, {sa_family=AF_UNIX, sun_path=@\"hid\"}, 6) = 0", 3, g(&abs, sizeof(abs)), 6);
	CALL(SYS_bind, -EINVAL, "bind(3, 0x10000, 1) = -1 EINVAL (Invalid argument)", 3, MEM, 1);
	at = g(&in, sizeof(in));
	CALL(SYS_accept4, 4,
	     "accept4(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr(\"1.2.3.4\")}, "
	     "[16], SOCK_NONBLOCK) = 4",
	     3, at, g(&(int){ 16 }, 4), SOCK_NONBLOCK);
	CALL(SYS_setsockopt, 0, "setsockopt(3, SOL_TCP, TCP_NODELAY, [1], 4) = 0", 3, 6, TCP_NODELAY, g(&(int){ 1 }, 4),
	     4);
	CALL(SYS_poll, 1,
	     "poll([{fd=3, events=POLLIN}, {fd=5, events=POLLIN|POLLOUT}], 2, -1) = 1 ([{fd=5, "
	     "revents=POLLOUT}])",
	     g(p, sizeof(p)), 2, N(-1));
	CALL(SYS_poll, 0, "poll([{fd=3, events=POLLIN}], 1, 10) = 0 (Timeout)", g(p, sizeof(p)), 1, 10);
	CALL(SYS_epoll_ctl, 0, "epoll_ctl(4, EPOLL_CTL_ADD, 5, {events=EPOLLIN|EPOLLET, data={u32=5, u64=5}}) = 0", 4,
	     EPOLL_CTL_ADD, 5, g(&ev, sizeof(ev)));
	CALL(SYS_epoll_wait, 1, "epoll_wait(4, [{events=EPOLLIN|EPOLLET, data={u32=5, u64=5}}], 64, -1) = 1", 4,
	     g(&ev, sizeof(ev)), 64, N(-1));
	CALL(SYS_select, 2,
	     "select(8, [3 7], NULL, NULL, {tv_sec=1, tv_usec=0}) = 2 (in [3 7], left {tv_sec=1, tv_usec=0})", 8,
	     g(fdset, 16), 0, 0, g((long[]){ 1, 0 }, 16));
	iov[0] = gs("hi");
	iov[1] = 2;
	mh = (struct msghdr){ .msg_iov = (void *)g(iov, 16),
			      .msg_iovlen = 1,
			      .msg_control = (void *)g(&cm, sizeof(cm)),
			      .msg_controllen = sizeof(cm) };
	CALL(SYS_sendmsg, 2,
	     "sendmsg(7, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base=\"hi\", iov_len=2}], "
	     "msg_iovlen=1, msg_control=[{cmsg_len=24, cmsg_level=SOL_SOCKET, cmsg_type=SCM_RIGHTS, cmsg_data=[4, "
	     "5]}], msg_controllen=24, msg_flags=0}, MSG_NOSIGNAL) = 2",
	     7, g(&mh, sizeof(mh)), MSG_NOSIGNAL);
}

static void test_process(void)
{
	struct utsname u = { .sysname = "Linux", .nodename = "vm" };
	uint64_t ca[11] = { CLONE_VM | CLONE_THREAD | CLONE_SETTLS, 0, 0, 0, 0, 0x50000, 0x8000, 0x77000 };
	const uint64_t six[6] = { 1, 0xff, 0, 4, 5, 6 };

	CALL(SYS_uname, 0, "uname({sysname=\"Linux\", nodename=\"vm\", ...}) = 0", g(&u, sizeof(u)));
	CALL(SYS_clone3, 12,
	     "clone3({flags=CLONE_VM|CLONE_THREAD|CLONE_SETTLS, exit_signal=0, stack=0x50000, "
	     "stack_size=0x8000, tls=0x77000}, 88) = 12",
	     g(ca, sizeof(ca)), 88);
	CALL(SYS_clone, 12, "clone(child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD) = 12",
	     CLONE_VM | CLONE_VFORK | SIGCHLD);
	CALL(SYS_prctl, 0, "prctl(PR_SET_NAME, \"worker\") = 0", PR_SET_NAME, gs("worker"));
	CALL(SYS_arch_prctl, 0, "arch_prctl(ARCH_SET_FS, 0x1234) = 0", ARCH_SET_FS, 0x1234);
	CALL(SYS_clock_gettime, 0, "clock_gettime(CLOCK_MONOTONIC, {tv_sec=1, tv_nsec=2}) = 0", CLOCK_MONOTONIC,
	     g(&(struct timespec){ 1, 2 }, 16));
	CALL(SYS_getrandom, 2, "getrandom(\"\\x01\\x02\", 2, GRND_NONBLOCK) = 2", g("\1\2", 2), 2, 1);
	strace_call(&thr, NULL, 0x1b3, six, -ENOSYS, KX_PATH_MONITOR, 0);
	expect("clone3(0x1, 0xff, 0, 0x4, 0x5, 0x6) = -1 ENOSYS (Function not implemented) <monitor>", __LINE__);
	strace_call(&thr, NULL, 0x3b3, six, -ENOSYS, KX_PATH_MONITOR, 0);
	expect("syscall_0x3b3(0x1, 0xff, 0, 0x4, 0x5, 0x6) = -1 ENOSYS (Function not implemented) <monitor>", __LINE__);
	strace_call(&thr, NULL, SYS_execve, six, -ENOSYS, KX_PATH_SLOW, 0);
	expect("execve(0x1, 0xff, 0, 0x4, 0x5, 0x6) = -1 ENOSYS (Function not implemented) <slow>", __LINE__);
	call(SYS_getpid, 77, KX_PATH_LIBOS, six, "getpid() = 77 <libos>", __LINE__);
	strace_show_time = true;
	call(SYS_getpid, 77, KX_PATH_LIBOS, six, "getpid() = 77 <0.000026> <libos>", __LINE__);
	strace_show_time = false;
	call(SYS_exit_group, 0, KX_PATH_MONITOR, (const uint64_t[6]){ 0 }, "exit_group(0) = ?", __LINE__);
	strace_exit("exited with 0");
	expect("+++ exited with 0 +++", __LINE__);
	pvm.nr_threads = 2;
	call(SYS_getpid, 77, KX_PATH_LIBOS, six, "[pid 123] getpid() = 77 <libos>", __LINE__);
	pvm.nr_threads = 1;
}

/* Every row with hostile arguments: nothing but a line may come of it. */
static void test_hostile(void)
{
	static const uint64_t bad[] = { 0,     1,          0xfff,      MEM,       MEM_END - 1, MEM_END - 20,
					~0ull, ~0ull - 15, 1ull << 63, 1ull << 46 };
	static const int64_t rets[] = { 0, 1, -22, INT64_MAX, INT64_MIN, -4095, -4096, -512 };
	const size_t nb = sizeof(bad) / sizeof(bad[0]);
	unsigned seed = 1, r, k, i;
	uint64_t arg[6];
	char got[9000];

	for (i = MEM; i < MEM_END; i++)
		pvm.base[i] = (uint8_t)(rand_r(&seed) >> 8);
	for (r = 0; r < hc_nr_rows; r++) {
		for (k = 0; k < 64; k++) {
			for (i = 0; i < 6; i++)
				arg[i] = k & 1 ? bad[rand_r(&seed) % nb] : (uint64_t)rand_r(&seed) % (2 * MEM) + 0x8000;
			strace_call(&thr, &hc_rows[r], hc_rows[r].nr, arg, rets[rand_r(&seed) % 8], (int)k % 3, 0);
		}
		clearerr(trace);
		for (k = 0; k < 64; k++) {
			checks++;
			if (!fgets(got, sizeof(got), trace) || !strchr(got, '\n') ||
			    strncmp(got, hc_rows[r].name, strlen(hc_rows[r].name))) {
				failures++;
				fprintf(stderr, "hostile %s: bad line\n", hc_rows[r].name);
			}
		}
	}
}

#define WRITERS 4
#define LINES 500

static void *writer(void *p)
{
	const uint64_t arg[6] = { 1, MEM, 32 };
	struct thread t = { .tid = 1000 + *(int *)p };
	int i;

	for (i = 0; i < LINES; i++)
		strace_call(&t, hc_row_find(SYS_write), SYS_write, arg, 32, KX_PATH_MONITOR, 0);
	return NULL;
}

/* Lines of several threads don't mix. */
static void test_threads(void)
{
	static const char want[] = "write(1, \"abcdefghijklmnopqrstuvwxyz012345\", 32) = 32 <monitor>\n";
	pthread_t th[WRITERS];
	int id[WRITERS], i;
	char got[200];

	memcpy(pvm.base + MEM, "abcdefghijklmnopqrstuvwxyz012345", 32);
	pvm.nr_threads = WRITERS;
	for (i = 0; i < WRITERS; i++) {
		id[i] = i;
		pthread_create(&th[i], NULL, writer, &id[i]);
	}
	for (i = 0; i < WRITERS; i++)
		pthread_join(th[i], NULL);
	clearerr(trace);
	for (i = 0; i < WRITERS * LINES; i++) {
		checks++;
		if (!fgets(got, sizeof(got), trace) || strncmp(got, "[pid 100", 8) || strcmp(got + 11, want)) {
			failures++;
			fprintf(stderr, "threads: bad line %d: %s\n", i, got);
			break;
		}
	}
	pvm.nr_threads = 1;
}

/* A trace whose reader is gone ends without a SIGPIPE. */
static void test_broken_pipe(void)
{
	const uint64_t arg[6] = { 0 };
	int p[2], old = dup(STDERR_FILENO), rc;

	checks++;
	if (pipe(p))
		abort();
	dup2(p[1], STDERR_FILENO);
	rc = strace_init(NULL);
	dup2(old, STDERR_FILENO);
	close(old);
	close(p[0]);
	close(p[1]);
	errno = 77;
	strace_call(&thr, hc_row_find(SYS_getpid), SYS_getpid, arg, 1, KX_PATH_LIBOS, 0);
	strace_call(&thr, hc_row_find(SYS_getpid), SYS_getpid, arg, 1, KX_PATH_LIBOS, 0);
	if (rc || errno != 77) {
		failures++;
		fprintf(stderr, "broken pipe: rc %d errno %d\n", rc, errno);
	}
}

/* ---- Statistics ----------------------------------------------------------------------------------------- */

static void test_stats(void)
{
	static struct kx_shared shared = { .local_calls = 1000, .batched = 30, .cpuids = 68, .cpuids_real = 2 };
	struct thread live = { .nr_hcalls = 3, .nr_exits = 4, .nr_slow = 1 };
	struct thread gone = { .nr_hcalls = 2, .nr_exits = 6, .nr_faults = 2 };
	static const char *const wants[] = {
		"{\"pid\":42,\"program\":\"/bin/\\\"x\\\\\\u0001\xc3\xa4\\ufffd\\ufffdz\",\"wall_ns\":",
		",\"vcpus\":2,",
		"\"hypercalls\":{\"total\":5,\"read\":3,\"clone3\":1,\"trace\":1},\"exits\":10,\"polled\":7,\"poll_"
		"failed\":2,\"slow_syscalls\":1,"
		"\"local_calls\":1000,\"batched\":30,\"faults\":2,\"page_faults\":77,\"forks\":0,\"forks_ahead\":0,"
		"\"made_whole\":0,\"execs\":0,",
		"\"enosys\":{\"total\":4,\"execve\":3,\"1000\":1},\"processes\":1,\"uncounted\":0,\"memory_slots\":5,"
		"\"flushes\":2,"
		"\"syscall_sites\":{\"found\":9,\"patched\":7},"
		"\"cpuid\":{\"found\":4,\"patched\":3,\"answered\":68,\"trapped\":2},"
		"\"libraries\":{\"copied\":3,\"hashed\":4,\"signatures\":5,\"prepared\":6,\"found\":7,\"stored\":8},"
		"\"policy\":{\"refused\":2,\"warned\":1},\"max_rss_kib\":",
	};
	char name[] = "/tmp/kx-stats-XXXXXX", got[20000] = "", *at = got;
	int fd = mkstemp(name);
	size_t i;

	pvm.pid = 42;
	strcpy(pvm.exe, "/bin/\"x\\\001\xc3\xa4\xff\xc0z");
	pvm.next_index = 2;
	pvm.shared = &shared;
	pvm.hcall_count[0] = 3;
	pvm.hcall_count[SYS_clone3] = 1;
	pvm.hcall_count[1027] = 1;
	pvm.enosys_count[SYS_execve] = 3;
	pvm.enosys_count[1000] = 1;
	pvm.nr_enosys = 4;
	pvm.nr_polled = 7;
	pvm.nr_poll_failed = 2;
	pvm.nr_slots = 5;
	pvm.nr_flushes = 2;
	pvm.nr_sites = 7;
	pvm.nr_sites_found = 9;
	pvm.nr_cpuid_sites = 3;
	pvm.nr_cpuid_found = 4;
	pvm.threads = &live;
	stats_thread_done(&gone);
	stats_thread_done(&gone);
	stats_begin();
	/* A stopped thread may hold the lock. */
	pthread_mutex_lock(&pvm.thr_lock);
	stats_flush(true);
	stats_end(true);
	stats_write(name);
	pthread_mutex_unlock(&pvm.thr_lock);
	if (read(fd, got, sizeof(got) - 1) <= 0)
		failures++;
	for (i = 0; i < sizeof(wants) / sizeof(wants[0]); i++) {
		checks++;
		at = strstr(at, wants[i]);
		if (!at) {
			failures++;
			fprintf(stderr, "stats: no %s in\n%s", wants[i], got);
			break;
		}
	}
	checks++;
	if (strcmp(got + strlen(got) - 2, "}\n") || strchr(got, '\n') != got + strlen(got) - 1) {
		failures++;
		fprintf(stderr, "stats: not one line: %s\n", got);
	}
	close(fd);
	unlink(name);
	pvm.threads = NULL;
}

int main(void)
{
	int fd = mkstemp(trace_name);

	pvm.base = mmap(NULL, 0x80000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pvm.pid = 42;
	pvm.nr_threads = 1;
	pthread_mutex_init(&pvm.thr_lock, NULL);
	trace = fdopen(fd, "r");
	if (pvm.base == MAP_FAILED || !trace || strace_init(trace_name))
		return 2;
	test_files();
	test_cut();
	test_memory();
	test_signals();
	test_net();
	test_process();
	test_hostile();
	test_threads();
	test_broken_pipe();
	test_stats();
	unlink(trace_name);
	printf("test_strace: %d checks, %d failures\n", checks, failures);
	return failures ? 1 : 0;
}
