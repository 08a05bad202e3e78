/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Fuzzer of what messages carry beside their data: control data that the guest writes, and what it is given.
 *	fuzz_cmsg COUNT SEED
 * sends and receives COUNT messages by the handlers of the calls and by the host's kernel, the same ones for the same SEED.
 * What the handlers let through carries no descriptor but the guest's and no other's name, whatever the guest does to it
 * meanwhile; what comes in has no number of the monitor's, and none stays open that the guest was not told of; a message
 * that is nobody's business is the one that the kernel would have sent or given. Build with ASan and UBSan.
 */
#include "../../monitor/core/sys_net.c"
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include "random.h"
#define KX_DG_READ guest_read
#define KX_DG_WRITE guest_write
#include "../../abi/kx_dgram_take.h"

#define ARENA 0x10000000ull /* of the guest's memory: this much, the rest is not there */
#define ARENA_SIZE 0x10000ull
#define HEADER ARENA
#define NAME (ARENA + 0x100)
#define VECTOR (ARENA + 0x200)
#define DATA (ARENA + 0x1000)
#define CONTROL (ARENA + 0x2000)
#define CONTROL_MAX 2048u
#define LIMIT 64 /* the guest's descriptors are below */
#define FILES 20 /* its files: from here on, FEW of them */
#define FEW 8
#define PROC_DIR 30 /* a directory that no guest may get */
#define SECRET 100  /* the monitor's: from here on */
#define SOCKS 40    /* pairs: the handlers', the kernel's */
#define FILL 0xa5

struct pvm pvm;
__thread struct thread *self;
static uint8_t *arena;
static ino_t secret, proc_dir;
static bool meddles; /* another thread of the guest's changes what has been read */
static unsigned long sent, refused, given, cut, same;

static _Noreturn void wrong(const char *what)
{
	fprintf(stderr, "fuzz_cmsg: %s\n", what);
	abort();
}

/* ---- the rest of the monitor --------------------------------------------------------------------------------------- */

static void meddle(void)
{
	int fd = SECRET + (int)below(4);
	for (int i = 0; meddles && i < 8; i++)
		memcpy(arena + (CONTROL - ARENA) + 4 * below(64), &fd, sizeof fd);
}

static bool there(uint64_t gva, size_t len) { return gva - ARENA < ARENA_SIZE && len <= ARENA_SIZE - (gva - ARENA); }

int guest_read(void *dst, uint64_t gva, size_t len)
{
	if (!len)
		return 0;
	if (!there(gva, len))
		return -EFAULT;
	memcpy(dst, gva_ptr(gva), len);
	meddle();
	return 0;
}

int guest_write(uint64_t gva, const void *src, size_t len)
{
	if (len && !there(gva, len))
		return -EFAULT;
	if (len)
		memcpy(gva_ptr(gva), src, len);
	return 0;
}

long host_call(long nr, long a, long b, long c, long d, long e, long f)
{
	if (nr == SYS_sendmsg || nr == SYS_recvmsg)
		c |= MSG_DONTWAIT;
	long r = syscall(nr, a, b, c, d, e, f);
	meddle();
	return r < 0 ? -errno : r;
}
long host_call_blocking(long nr, long a, long b, long c, long d, long e, long f)
{
	return host_call(nr, a, b, c, d, e, f);
}

static bool is_inode(int fd, ino_t ino)
{
	struct stat st;
	return !fstat(fd, &st) && st.st_ino == ino;
}

bool vfs_is_proc_dir(int fd) { return is_inode(fd, proc_dir); }
bool fd_admit(int fd) { return fd_is_guest(fd); }
int64_t fd_result(int64_t fd) { return fd; }
int get_timespec(uint64_t gva, struct timespec *ts, struct timespec **out)
{
	(void)gva, (void)ts;
	return *out = NULL, 0;
}
static void is_checked(int fd)
{
	if (!fd_is_guest(fd))
		wrong("a descriptor that nobody has checked");
}
int pipe_passed(int fd, int over)
{
	is_checked(fd);
	(void)over;
	return 0;
}
void batch_share(int fd) { is_checked(fd); }
void dgram_share(int fd) { is_checked(fd); }
void mq_plain(int fd) { is_checked(fd); }
void futexes_passed(int fd) { is_checked(fd); }
void mq_opened(int fd, const char *path) { (void)path, is_checked(fd); }
void pipe_received(int fd) { is_checked(fd); }
bool pipe_sendmsg(struct hcall *c, int fd, const struct msghdr *h, int flags, int64_t *r)
{
	return (void)c, (void)fd, (void)h, (void)flags, (void)r, false;
}
bool pipe_recvmsg(struct hcall *c, int fd, struct msghdr *h, int flags, int64_t *r)
{
	return (void)c, (void)fd, (void)h, (void)flags, (void)r, false;
}
int64_t pipe_close(int fd) { return close(fd); }
int64_t pipe_pair_make(int domain, int type, int protocol, int fd[2]) { return socketpair(domain, type, protocol, fd); }
void sig_sync_block(struct thread *t) { (void)t; }
struct thread *volatile update_caller;
bool update_call_run(struct thread *t) { return (void)t, false; }
bool update_poked(void) { return false; }
bool pipe_poked(void) { return false; }

/* ---- messages ------------------------------------------------------------------------------------------------------ */

static struct thread thread;

static int64_t by_handler(hc_handler fn, int fd, int flags)
{
	struct hcall c = { .t = &thread, .arg = { (uint64_t)fd, HEADER, (uint64_t)flags } };
	return fn(&c);
}

/* Some header at HEADER: mostly good. */
static struct guest_msghdr header(uint32_t controllen)
{
	struct guest_msghdr h = { .iov = VECTOR, .iovlen = 1, .control = CONTROL, .controllen = controllen };
	uint64_t v[2] = { DATA, 16 };
	if (below(30) == 0)
		h.control = below(2) ? ARENA + ARENA_SIZE - below(300) : rnd();
	if (below(30) == 0)
		h.controllen = below(2) ? rnd() : below(200000);
	if (below(40) == 0)
		h.iovlen = below(2) ? rnd() : below(2000);
	if (below(40) == 0)
		v[below(2)] = rnd();
	if (below(40) == 0) {
		h.name = below(2) ? NAME : rnd();
		h.namelen = (int)rnd();
	}
	memcpy(gva_ptr(VECTOR), v, sizeof v);
	memcpy(gva_ptr(HEADER), &h, sizeof h);
	return h;
}

static int some_fd(bool *foreign)
{
	if (below(4)) {
		return FILES + (int)below(FEW);
	}
	*foreign = true;
	switch (below(5)) {
	case 0:
		return SECRET + (int)below(4);
	case 1:
		return LIMIT + (int)below(200);
	case 2:
		return -1 - (int)below(3);
	}
	return SECRET;
}

/* Control data at p: its length. *foreign: a descriptor or a name in it is not the guest's, or may be so. */
static uint32_t control(uint8_t *p, bool *foreign)
{
	uint32_t at = 0;
	for (int n = 1 + (int)below(3); n && at + 128 < CONTROL_MAX; n--) {
		struct cmsghdr h = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
		uint32_t body = 0;
		if (below(4) == 0) {
			struct ucred cred = { below(3) ? getpid() : (pid_t)below(3), getuid(), getgid() };
			*foreign |= cred.pid != getpid();
			h.cmsg_type = SCM_CREDENTIALS;
			memcpy(p + at + sizeof h, &cred, body = sizeof cred);
		} else {
			for (uint32_t k = 1 + (uint32_t)below(6); k; k--, body += 4)
				memcpy(p + at + sizeof h + body, &(int){ some_fd(foreign) }, 4);
		}
		if (below(12) == 0)
			h.cmsg_level = (int)below(3), h.cmsg_type = (int)below(6), *foreign = true;
		h.cmsg_len = sizeof h + body;
		if (below(12) == 0)
			h.cmsg_len = below(2) ? rnd() : below(2) ? below(64) : h.cmsg_len + below(24);
		*foreign |= h.cmsg_len != sizeof h + body;
		memcpy(p + at, &h, sizeof h);
		at += (uint32_t)CMSG_ALIGN(sizeof h + body);
	}
	return below(8) ? at : at + 8 - (uint32_t)below(24);
}

/* What has come: closed, and looked at. The number of descriptors. */
static int receive_all(int fd, bool check)
{
	_Alignas(8) uint8_t ctl[4096];
	uint8_t data[64];
	int n = 0;
	for (;;) {
		struct iovec v = { data, sizeof data };
		struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
		if (recvmsg(fd, &m, MSG_DONTWAIT) < 0)
			return n;
		for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
			struct ucred cred;
			if (check && is_scm(c, SCM_CREDENTIALS)) {
				memcpy(&cred, CMSG_DATA(c), sizeof cred);
				if (cred.pid != getpid())
					wrong("a message in another's name");
			}
			if (!is_scm(c, SCM_RIGHTS))
				continue;
			for (unsigned i = 0; i < cmsg_fds(c); i++, n++) {
				if (check && is_inode(cmsg_fd(c, i), secret))
					wrong("a descriptor of the monitor's was sent");
				close(cmsg_fd(c, i));
			}
		}
	}
}

static void send_round(void)
{
	uint8_t copy[CONTROL_MAX];
	bool foreign = false;
	uint32_t len = control(gva_ptr(CONTROL), &foreign);
	struct guest_msghdr h = header(len);
	memcpy(copy, gva_ptr(CONTROL), len);
	foreign |= (meddles = below(2));
	int64_t r = by_handler(hc_sendmsg, SOCKS, 0);
	meddles = false;
	int n = receive_all(SOCKS + 1, true);
	sent += n > 0;
	refused += r < 0;
	if (foreign || h.controllen != len || h.control != CONTROL || h.iovlen != 1 || h.name)
		return;
	struct iovec v;
	memcpy(&v, gva_ptr(VECTOR), sizeof v);
	if ((uint64_t)v.iov_base != DATA || v.iov_len != 16)
		return;
	v.iov_base = gva_ptr(DATA);
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = copy, .msg_controllen = len };
	int64_t k = sendmsg(SOCKS + 2, &m, MSG_DONTWAIT);
	if ((k < 0 ? -errno : k) != r || receive_all(SOCKS + 3, false) != n)
		wrong("another result than the kernel's of a message that is in order");
	same++;
}

/* To the handlers' end, or the kernel's, the same descriptors. */
static void feed(int fd, const int *fds, int n)
{
	_Alignas(8) uint8_t ctl[CMSG_SPACE(16 * sizeof(int))] = { 0 };
	struct iovec v = { "data", 4 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl };
	struct cmsghdr *c = (void *)ctl;
	*c = (struct cmsghdr){ CMSG_LEN((unsigned)n * sizeof(int)), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(c), fds, (unsigned)n * sizeof(int));
	m.msg_controllen = CMSG_SPACE((unsigned)n * sizeof(int));
	if (sendmsg(fd, &m, 0) != 4)
		wrong("no message could be sent");
}

static int open_between(int first, int end)
{
	int n = 0;
	for (int fd = first; fd < end; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void receive_round(void)
{
	static uint8_t mine[CONTROL_MAX + 64];
	int fds[16], n = 1 + (int)below(12), room_left = (int)below(12), filled[LIMIT], nr_filled = 0;
	bool has_proc = false, foreign = false;
	for (int i = 0; i < n; i++) {
		fds[i] = below(12) ? FILES + (int)below(FEW) : PROC_DIR;
		has_proc |= fds[i] == PROC_DIR;
	}
	feed(SOCKS + 1, fds, n);
	feed(SOCKS + 3, fds, n);
	memset(gva_ptr(CONTROL), FILL, CONTROL_MAX + 64);
	uint32_t room = (uint32_t)(below(4) ? below(CMSG_SPACE(16 * 4)) : below(CONTROL_MAX));
	struct guest_msghdr h = header(room), after;
	foreign = h.controllen != room || h.control != CONTROL || h.iovlen != 1 || h.name;
	struct iovec v;
	memcpy(&v, gva_ptr(VECTOR), sizeof v);
	foreign |= (uint64_t)v.iov_base != DATA || v.iov_len != 16;
	/* Few numbers are left below the limit: some come in above. */
	while (below(3) == 0 || LIMIT - open_between(0, LIMIT) > room_left + 4) {
		int fd = dup(FILES);
		if (fd >= LIMIT || nr_filled == LIMIT) {
			close(fd);
			break;
		}
		filled[nr_filled++] = fd;
	}
	int before = open_between(0, LIMIT), above = open_between(LIMIT, 256);
	int64_t r = by_handler(hc_recvmsg, SOCKS, MSG_CMSG_CLOEXEC);
	memcpy(&after, gva_ptr(HEADER), sizeof after);
	if (open_between(LIMIT, 256) != above)
		wrong("a number of the monitor's is open");
	int told = 0;
	bool was_cut = false;
	if (r >= 0 && !foreign) {
		struct msghdr m = { .msg_control = gva_ptr(CONTROL), .msg_controllen = after.controllen };
		if (after.controllen > room)
			wrong("more control data than there was room for");
		for (size_t off = 0; off < after.controllen;) {
			struct cmsghdr *c = next_cmsg(&m, &off);
			if (!c)
				break;
			for (unsigned i = 0; i < cmsg_fds(c); i++, told++)
				if (!fd_is_guest(cmsg_fd(c, i)) || is_inode(cmsg_fd(c, i), secret) ||
				    is_inode(cmsg_fd(c, i), proc_dir) || close(cmsg_fd(c, i)))
					wrong("a descriptor that is not the guest's");
		}
		if (open_between(0, LIMIT) != before)
			wrong("a descriptor stays open that the guest was not told of");
		for (uint32_t i = room; i < CONTROL_MAX; i++)
			if (((uint8_t *)gva_ptr(CONTROL))[i] != FILL)
				wrong("control data behind its room");
		was_cut = told < n;
		given++;
		cut += was_cut;
	}
	memcpy(mine, gva_ptr(CONTROL), CONTROL_MAX);
	for (int i = 0; i < nr_filled; i++)
		close(filled[i]);
	for (int fd = 0; foreign && fd < LIMIT; fd++) /* what came with an error is the guest's to find */
		if (fd > 2 && (fd < FILES || fd >= FILES + FEW) && fd != PROC_DIR && (fd < SOCKS || fd >= SOCKS + 6))
			close(fd);
	/* The kernel's, with room for all: the same if nothing had to be kept back. */
	uint8_t theirs[CONTROL_MAX], data[16];
	memset(theirs, FILL, sizeof theirs);
	struct iovec kv = { data, 16 };
	struct msghdr m = { .msg_iov = &kv, .msg_iovlen = 1, .msg_control = theirs, .msg_controllen = room };
	int64_t k = recvmsg(SOCKS + 2, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	int theirs_nr = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c))
		for (unsigned i = 0; i < cmsg_fds(c); i++, theirs_nr++)
			close(cmsg_fd(c, i));
	if (r < 0 || foreign || has_proc || nr_filled)
		return;
	if (k != r || theirs_nr != told || after.controllen != m.msg_controllen || (int)after.flags != m.msg_flags)
		wrong("another message than the kernel's");
	same++;
}

/* ---- control data of datagrams received ahead ------------------------------------------------------------------------ */

static int udp = -1;

static void udp_open(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;
	int on = 1, s = socket(AF_INET, SOCK_DGRAM, 0);
	if (s < 0 || bind(s, (void *)&a, sizeof a) || getsockname(s, (void *)&a, &len))
		return;
	setsockopt(s, SOL_IP, IP_PKTINFO, &on, sizeof on);
	setsockopt(s, SOL_IP, IP_RECVTTL, &on, sizeof on);
	setsockopt(s, SOL_IP, IP_RECVTOS, &on, sizeof on);
	setsockopt(s, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
	if (sendto(s, "data", 4, 0, (void *)&a, sizeof a) == 4)
		udp = s;
}

static void peek(uint8_t *ctl, size_t room, struct msghdr *m)
{
	uint8_t data[8];
	struct iovec v = { data, sizeof data };
	*m = (struct msghdr){ .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = room };
	if (recvmsg(udp, m, MSG_PEEK | MSG_DONTWAIT) != 4)
		wrong("the datagram has gone");
}

static void datagram_round(void)
{
	_Alignas(8) uint8_t all[512] = { 0 }, theirs[512];
	uint32_t room = (uint32_t)below(256);
	struct msghdr m;
	peek(all, sizeof all, &m);
	struct kx_dto to = { .ctl = CONTROL, .ctlroom = room };
	struct kx_dgot got = { 0 };
	memset(gva_ptr(CONTROL), 0, sizeof theirs);
	memset(theirs, 0, sizeof theirs);
	if (kx_dgram_ctl(all, (uint32_t)m.msg_controllen, &to, &got))
		wrong("control data that could not be given");
	peek(theirs, room, &m);
	if (got.ctlused != m.msg_controllen || (got.flags & MSG_CTRUNC) != ((unsigned)m.msg_flags & MSG_CTRUNC) ||
	    memcmp(gva_ptr(CONTROL), theirs, sizeof theirs))
		wrong("other control data of a datagram than the kernel's");
	/* What the guest may have made of it meanwhile. */
	uint32_t len = (uint32_t)below(sizeof all);
	uint8_t *lie = malloc(len + 1);
	for (uint32_t i = 0; lie && i < len; i++)
		lie[i] = below(3) ? all[i] : (uint8_t)rnd();
	if (lie)
		kx_dgram_ctl(lie, len, &to, &got);
	free(lie);
}

/* ---- --------------------------------------------------------------------------------------------------------------- */

static void place(int fd, int at)
{
	if (fd < 0 || (fd != at && (dup2(fd, at) != at || close(fd))))
		wrong("no descriptor");
}

int main(int argc, char **argv)
{
	int p[2];
	struct stat st;
	if (argc < 3) {
		fprintf(stderr, "usage: fuzz_cmsg COUNT SEED\n");
		return 2;
	}
	state = strtoull(argv[2], NULL, 0) * 0x9e3779b97f4a7c15ull | 1;
	arena = mmap(NULL, ARENA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	pvm.base = (void *)((uintptr_t)arena - ARENA);
	pvm.fd_limit = pvm.fd_max = LIMIT;
	pvm.pid = getpid();
	udp_open();
	if (udp >= 0)
		place(udp, SOCKS + 4), udp = SOCKS + 4;
	for (int i = 0; i < FEW; i++)
		place(memfd_create("guest", 0), FILES + i);
	for (int i = 0; i < 4; i++)
		place(i ? dup(SECRET) : memfd_create("monitor", 0), SECRET + i);
	place(memfd_create("proc", 0), PROC_DIR);
	secret = fstat(SECRET, &st) ? 0 : st.st_ino;
	proc_dir = fstat(PROC_DIR, &st) ? 0 : st.st_ino;
	for (int i = 0; i < 2; i++) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, p))
			return 2;
		place(p[0], SOCKS + 2 * i);
		place(p[1], SOCKS + 2 * i + 1);
	}
	setsockopt(SOCKS + 1, SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int));
	unsigned long count = strtoul(argv[1], NULL, 0);
	for (unsigned long i = 0; i < count; i++) {
		if (below(2))
			send_round();
		else
			receive_round();
		receive_all(SOCKS, false);
		receive_all(SOCKS + 2, false);
		if (udp >= 0)
			datagram_round();
	}
	if (count >= 1000 &&
	    (sent < count / 50 || refused < count / 50 || given < count / 50 || !cut || same < count / 50)) {
		fprintf(stderr, "fuzz_cmsg: %lu sent, %lu refused, %lu given, %lu cut, %lu the same\n", sent, refused,
			given, cut, same);
		return 1;
	}
	printf("fuzz_cmsg: %s messages, %lu the same as the kernel's, no failure\n", argv[1], same);
	return 0;
}
