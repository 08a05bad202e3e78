/* SPDX-License-Identifier: Apache-2.0 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "net.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "apart.h"
#include "vcpu.h"

#define SLIRP "slirp4netns"
#define SLIRP_SECONDS 20
#define BIND_TRIES 40 /* of 25 ms: a family that has just ended lets go of its ports soon */
#define PORTS_MAX 128 /* twice those of cfg: IPv4 and IPv6 */

struct answer {
	int code; /* errno; 0 = the network is there */
	char why[256];
};

static int to_helper = -1;

/* ---- the host's ports --------------------------------------------------------------------------------------------- */

static int port_open(const struct kx_publish *p, int family)
{
	struct sockaddr_in in4 = { .sin_family = AF_INET, .sin_port = htons(p->port) };
	struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_port = htons(p->port) };
	bool v6 = family == AF_INET6;
	int one = 1, r = -1;
	memcpy(&in4.sin_addr, p->addr, sizeof in4.sin_addr);
	memcpy(&in6.sin6_addr, p->addr, sizeof in6.sin6_addr);
	int fd = socket(family, (p->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (!p->udp)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	else if (v6) /* answers leave from the address that was asked */
		setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &one, sizeof one);
	else
		setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &one, sizeof one);
	if (v6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
	for (int i = 0; i < BIND_TRIES; i++) {
		r = bind(fd, v6 ? (void *)&in6 : (void *)&in4, v6 ? sizeof in6 : sizeof in4);
		if (!r && !p->udp)
			r = listen(fd, SOMAXCONN);
		if (!r || errno != EADDRINUSE)
			break;
		nanosleep(&(struct timespec){ .tv_nsec = 25000000 }, NULL);
	}
	if (!r)
		return fd;
	r = -errno;
	close(fd);
	return r;
}

static int ports_open(const struct kx_config *cfg, struct net_port *ports, int *nr, struct kx_err *err)
{
	static const int families[] = { AF_INET, AF_INET6 };
	for (int i = 0; i < cfg->nr_publish; i++) {
		const struct kx_publish *p = &cfg->publish[i];
		int before = *nr, fd = 0;
		for (int k = 0; k < 2; k++) {
			if (p->family && p->family != families[k])
				continue;
			fd = port_open(p, families[k]);
			/* A host without IPv6, or without IPv4, has only the other. */
			if (!p->family && (fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL) && (k == 0 || *nr > before))
				continue;
			if (fd < 0)
				break;
			ports[(*nr)++] = (struct net_port){ fd, families[k], p->inner, p->udp };
		}
		if (*nr > before && (fd >= 0 || fd == -EAFNOSUPPORT || fd == -EADDRNOTAVAIL))
			continue;
		const char *remedy = fd == -EADDRINUSE      ? "choose another port, or end the program that has it"
				     : fd == -EADDRNOTAVAIL ? "give an address of this host"
				     : fd == -EACCES ? "only root has ports below net.ipv4.ip_unprivileged_port_start"
						     : "check address and port";
		return kx_err_set(err, -fd, "--publish %s: %s (%s)", p->text, strerror(-fd), remedy);
	}
	return 0;
}

/* ---- the helper ----------------------------------------------------------------------------------------------------- */

static _Noreturn void helper_fail(int sock, int code, const char *what, const char *why)
{
	struct answer a = { .code = code ? code : EIO };
	snprintf(a.why, sizeof a.why, "%s: %s", what, why);
	send(sock, &a, sizeof a, MSG_NOSIGNAL);
	_exit(1);
}

/* The last line that slirp4netns has written. */
static void last_line(int fd, char *out, size_t size)
{
	char text[4096];
	ssize_t n = pread(fd, text, sizeof text - 1, 0);
	text[n > 0 ? n : 0] = 0;
	while (n > 0 && text[n - 1] == '\n')
		text[--n] = 0;
	char *line = strrchr(text, '\n');
	snprintf(out, size, "%.160s", line ? line + 1 : *text ? text : "it ended");
}

static _Noreturn void slirp_exec(pid_t target, pid_t parent, int out, int ready, int hold)
{
	char pid[16], r[16], e[16];
	snprintf(pid, sizeof pid, "%d", target);
	snprintf(r, sizeof r, "%d", ready);
	snprintf(e, sizeof e, "%d", hold);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	fcntl(ready, F_SETFD, 0);
	fcntl(hold, F_SETFD, 0);
	if (dup2(out, 1) < 0 || dup2(out, 2) < 0)
		_exit(1);
	/* Its mount sandbox wants to be user 0 of the family's namespace, which maps its own user alone for ordinary ones. */
	execlp(SLIRP, SLIRP, "--configure", "--mtu=65520", "--enable-ipv6", "--disable-host-loopback",
	       "--enable-seccomp", "-r", r, "-e", e, pid, "tap0", geteuid() ? (char *)NULL : "--enable-sandbox",
	       (char *)NULL);
	_exit(127);
}

/* Returns its pid, when the interface is up. */
static pid_t slirp_start(int sock, pid_t target)
{
	int ready[2], hold[2], out = memfd_create("slirp4netns", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char why[200], c;
	pid_t parent = getpid();
	if (out < 0 || pipe2(ready, O_CLOEXEC) || pipe2(hold, O_CLOEXEC))
		helper_fail(sock, errno, SLIRP, strerror(errno));
	pid_t p = fork();
	if (!p) {
		struct rlimit none = { 0, 0 };
		setrlimit(RLIMIT_CORE, &none);
		close(hold[1]);
		slirp_exec(target, parent, out, ready[1], hold[0]);
	}
	close(ready[1]);
	close(hold[0]);
	struct pollfd f = { ready[0], POLLIN, 0 };
	int n;
	while ((n = poll(&f, 1, SLIRP_SECONDS * 1000)) < 0 && errno == EINTR)
		;
	if (p < 0 || n <= 0 || read(ready[0], &c, 1) != 1) {
		last_line(out, why, sizeof why);
		helper_fail(sock, n ? EIO : ETIMEDOUT, SLIRP, n ? why : "not ready in time");
	}
	close(ready[0]);
	/* What it writes from now on, and a guest may make it write, goes nowhere. hold[1] stays open while this process lives. */
	fcntl(out, F_ADD_SEALS, F_SEAL_GROW);
	close(out);
	return p;
}

/* Into the namespaces of pid, without any rights there or here. */
static int helper_join(pid_t pid)
{
	struct __user_cap_header_struct hdr = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { 0 };
	struct stat a, b;
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
	int net = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
	int user = open(path, O_RDONLY | O_CLOEXEC);
	if (net < 0 || user < 0 || fstat(user, &a) || stat("/proc/self/ns/user", &b))
		return -errno;
	if ((a.st_ino != b.st_ino && setns(user, CLONE_NEWUSER)) || setns(net, CLONE_NEWNET))
		return -errno;
	close(net);
	close(user);
	if (syscall(SYS_capset, &hdr, none) || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return -errno;
	return 0;
}

static sem_t waits; /* the thread has made all calls that it begins with: forward_run()'s filter is for it, too */

static void *wait_family(void *arg)
{
	sem_post(&waits);
	while (flock((int)(intptr_t)arg, LOCK_EX) && errno == EINTR)
		;
	_exit(0); /* the last member has ended */
}

static _Noreturn void helper(int sock, int lock, struct net_port *ports, int nr, pid_t root)
{
	struct answer done = { 0 };
	pthread_t t;
	int *keep[PORTS_MAX + 3], n = 0, r;
	char c;
	keep[n++] = &sock;
	keep[n++] = &lock;
	if (pvm.log_fd >= 0)
		keep[n++] = &pvm.log_fd;
	for (int i = 0; i < nr; i++)
		keep[n++] = &ports[i].fd;
	if (!apart_begin(keep, n, PVM_THREADS "net"))
		_exit(1);
	signal(SIGPIPE, SIG_IGN);
	if (recv(sock, &c, 1, 0) != 1)
		_exit(0); /* the start failed */
	pid_t p = slirp_start(sock, root);
	if ((r = helper_join(root)))
		helper_fail(sock, -r, "cannot enter the namespaces of the family", strerror(-r));
	int slirp = (int)syscall(SYS_pidfd_open, p, 0);
	sem_init(&waits, 0, 0);
	if ((r = pthread_create(&t, NULL, wait_family, (void *)(intptr_t)lock)))
		helper_fail(sock, r, "cannot start a thread", strerror(r));
	while (sem_wait(&waits))
		;
	send(sock, &done, sizeof done, MSG_NOSIGNAL);
	close(sock);
	forward_run(ports, nr, slirp);
}

/* ---- the family's side ---------------------------------------------------------------------------------------------- */

static bool in_path(const char *name)
{
	char path[4096];
	const char *p = getenv("PATH"), *end;
	for (p = p ? p : "/bin:/usr/bin";; p = end + 1) {
		end = strchrnul(p, ':');
		int n = snprintf(path, sizeof path, "%.*s/%s", (int)(end - p), p, name);
		if (n < (int)sizeof path && !access(path, X_OK))
			return true;
		if (!*end)
			return false;
	}
}

/* A description of its own of the file that all members hold locked; where there is none, one is made. */
static int lock_open(void)
{
	char path[32];
	int fd;
	if (pvm.registry_fd < 0) {
		if ((fd = memfd_create("kylinx-net", MFD_CLOEXEC)) < 0)
			return -errno;
		if (flock(fd, LOCK_SH | LOCK_NB) || fd_keep(&pvm.registry_fd, fd))
			return -EMFILE;
	}
	snprintf(path, sizeof path, "/proc/self/fd/%d", pvm.registry_fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

int net_start(const struct kx_config *cfg, struct kx_err *err)
{
	struct net_port ports[PORTS_MAX];
	int nr = 0, sock[2], lock;
	if (!cfg->net_private)
		return 0;
	if (!in_path(SLIRP))
		return kx_err_set(err, ENOENT,
				  "net: " SLIRP " is not there, and a private network needs it (apt-get install " SLIRP
				  ")");
	if (ports_open(cfg, ports, &nr, err))
		return -err->code;
	if ((lock = lock_open()) < 0)
		return kx_err_host(err, -lock, "net: cannot tell the end of the family");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock))
		return kx_err_host(err, errno, "net: cannot make a socket");
	pid_t root = getpid(), p = vm_features(err) ? -1 : apart_fork(); /* from one thread: KVM's features are known */
	if (!p)
		helper(sock[1], lock, ports, nr, root);
	close(sock[1]);
	close(lock);
	for (int i = 0; i < nr; i++)
		close(ports[i].fd);
	if (p < 0 && err->code)
		return -err->code;
	if (p < 0)
		return kx_err_host(err, errno, "net: cannot start a process");
	to_helper = fd_hide(sock[0]);
	return to_helper < 0 ? kx_err_set(err, EMFILE, "net: no descriptor left (raise `ulimit -n`)") : 0;
}

/* struct in6_ifreq; <linux/ipv6.h> and <netinet/in.h> can't both be included. */
struct addr6 {
	struct in6_addr addr;
	uint32_t prefix;
	int index;
};

static int addresses(void)
{
	struct ifreq r4 = { .ifr_name = "lo:kx" };
	struct sockaddr_in *a4 = (struct sockaddr_in *)&r4.ifr_addr;
	struct addr6 a6 = { .prefix = 128, .index = (int)if_nametoindex("lo") };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), r = 0;
	if (fd < 0)
		return -errno;
	a4->sin_family = AF_INET;
	inet_pton(AF_INET, NET_ADDR4, &a4->sin_addr);
	if (ioctl(fd, SIOCSIFADDR, &r4))
		r = -errno;
	inet_pton(AF_INET, "255.255.255.255", &a4->sin_addr);
	if (!r && ioctl(fd, SIOCSIFNETMASK, &r4))
		r = -errno;
	close(fd);
	/* A host may have no IPv6: then the IPv4 address serves all. */
	fd = r ? -1 : socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	inet_pton(AF_INET6, NET_ADDR6, &a6.addr);
	if (fd >= 0 && ioctl(fd, SIOCSIFADDR, &a6) && errno != EOPNOTSUPP && errno != EACCES)
		r = -errno;
	if (fd >= 0)
		close(fd);
	return r;
}

int net_attach(const struct kx_config *cfg, struct kx_err *err)
{
	struct answer a;
	ssize_t n;
	if (!cfg->net_private)
		return 0;
	int r = addresses();
	if (r)
		return kx_err_host(err, -r, "net: cannot give the family an address");
	n = send(to_helper, "", 1, MSG_NOSIGNAL);
	while (n == 1 && (n = recv(to_helper, &a, sizeof a, 0)) < 0 && errno == EINTR)
		n = 1;
	close(to_helper);
	to_helper = -1;
	if (n != sizeof a)
		return kx_err_set(err, EPIPE, "net: the helper of the private network has ended (start again)");
	a.why[sizeof a.why - 1] = 0;
	return a.code ? kx_err_set(err, a.code, "net: %s (is /dev/net/tun there, for all users?)", a.why) : 0;
}
