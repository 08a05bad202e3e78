/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a server was told is sent reaches a client that takes it when the server is no more, or has another program: nothing
 * is missing, nothing comes twice or out of order, and nobody waits for such a client. The server is a process of its own,
 * with an event loop; the client one that lets itself be sent small packets, and reads when all is over. Passes on any
 * Linux. Exit code: 0, or 1 + the number of the first check that failed.
 */
#define _GNU_SOURCE
#include "../slow_client.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include "../clock.h"
#include "../counted.h"

#define STATUS 7
#define SOON_MS 900 /* what does not wait for the client is over by then */
#define TAIL 5000

enum how { EXIT, EXIT_OF_THREAD, EXEC, EXEC_KEEPS, KILLED, STOPPED, FORKED, RESET, SHUT_DOWN, COPIED, PASSED };
static const char *const names[] = {
	"exit",
	"exit_group by another thread",
	"exec that closes it",
	"exec that goes on with it",
	"SIGKILL",
	"SIGSTOP, then SIGKILL",
	"exit behind a fork whose child goes on with it",
	"SO_LINGER of no time, close",
	"shutdown, exit",
	"dup, which goes on with it",
	"SCM_RIGHTS to another, who goes on with it",
};

struct told {
	struct answer sent;
	int64_t ms; /* that what was done with it took */
};
static int to_test[2], go[2], pass[2];

/* ---- the server ------------------------------------------------------------------------------------------------------ */

/* From here on the client reads. More behind what was sent: whoever has it. */
static void write_tail(int fd)
{
	char c, data[TAIL];
	memset(data, 't', sizeof data);
	if (read(go[0], &c, 1) != 1)
		_exit(100);
	for (long r, n = 0; n<TAIL; n += r> 0 ? r : 0) {
		struct pollfd p = { fd, POLLOUT, 0 };
		poll(&p, 1, 30000);
		r = write(fd, data, (size_t)(TAIL - n));
		if (r < 0 && errno != EAGAIN)
			_exit(101);
	}
	close(fd);
}

static void *ends(void *arg)
{
	_exit(*(int *)arg);
	return arg;
}

static void give(int fd)
{
	char c = 'f', ctl[CMSG_SPACE(sizeof fd)] = "";
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	struct cmsghdr *cm = CMSG_FIRSTHDR(&m);
	*cm = (struct cmsghdr){ CMSG_LEN(sizeof fd), SOL_SOCKET, SCM_RIGHTS };
	memcpy(CMSG_DATA(cm), &fd, sizeof fd);
	if (sendmsg(pass[0], &m, 0) != 1)
		_exit(102);
}

static int take(void)
{
	int fd = -1;
	char c, ctl[CMSG_SPACE(sizeof fd)];
	struct iovec v = { &c, 1 };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = ctl, .msg_controllen = sizeof ctl };
	if (recvmsg(pass[1], &m, 0) == 1 && CMSG_FIRSTHDR(&m))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof fd);
	return fd;
}

static void execute(int fd, bool keeps)
{
	char fd_text[12], go_text[12];
	snprintf(fd_text, sizeof fd_text, "%d", keeps ? fd : -1);
	snprintf(go_text, sizeof go_text, "%d", go[0]);
	if (keeps)
		fcntl(fd, F_SETFD, 0);
	execl("/proc/self/exe", "linger", fd_text, go_text, NULL);
	_exit(103);
}

/* What is done with it. False: this process is none that goes on. */
static bool act(enum how how, int *fd)
{
	struct linger none = { 1, 0 };
	switch (how) {
	case FORKED:
		return fork() == 0;
	case RESET:
		if (setsockopt(*fd, SOL_SOCKET, SO_LINGER, &none, sizeof none) || close(*fd))
			_exit(104);
		return false;
	case SHUT_DOWN:
		if (shutdown(*fd, SHUT_WR))
			_exit(105);
		return false;
	case COPIED: {
		int copy = dup(*fd);
		close(*fd);
		*fd = copy;
		return true;
	}
	case PASSED:
		give(*fd);
		return false;
	default:
		return false;
	}
}

static void server(enum how how, bool un, struct small small)
{
	static const int status = STATUS;
	struct told told = { 0 };
	pthread_t t;
	epfd = epoll_create1(EPOLL_CLOEXEC);
	int fd = connection(un, 0, small);
	watch(fd);
	asked(fd);
	told.sent = fill(fd, told.sent, 3);
	asked(fd); /* with some of it on the way */
	told.sent = fill(fd, told.sent, 0);
	int64_t before = now_ms();
	bool goes_on = act(how, &fd);
	told.ms = now_ms() - before;
	if ((how != FORKED || !goes_on) && write(to_test[1], &told, sizeof told) != sizeof told)
		_exit(106);
	if (goes_on)
		write_tail(fd);
	else if (how == EXEC || how == EXEC_KEEPS)
		execute(fd, how == EXEC_KEEPS);
	else if (how == KILLED || how == STOPPED)
		pause();
	else if (how == EXIT_OF_THREAD && !pthread_create(&t, NULL, ends, (void *)&status))
		pause();
	_exit(STATUS);
}

/* ---- what becomes of it ------------------------------------------------------------------------------------------------ */

static bool ended(enum how how, pid_t pid)
{
	int st;
	if (waitpid(pid, &st, 0) != pid)
		return false;
	return how == KILLED || how == STOPPED ? WIFSIGNALED(st) && WTERMSIG(st) == SIGKILL
					       : WIFEXITED(st) && WEXITSTATUS(st) == STATUS;
}

static void test(enum how how, bool un, struct small small, const char *client)
{
	char name[200];
	struct told told = { 0 };
	bool tail = how == EXEC_KEEPS || how == FORKED || how == COPIED || how == PASSED, over = true;
	bool waits = how != EXEC_KEEPS && how != STOPPED && how != COPIED;
	pid_t pid = fork();
	if (!pid)
		server(how, un, small);
	snprintf(name, sizeof name, "%s, a client with %s: it does not wait", names[how], client);
	if (read(to_test[0], &told, sizeof told) != sizeof told)
		exit(110);
	int fd = how == PASSED ? take() : -1;
	int64_t before = now_ms();
	if (how == KILLED || how == STOPPED)
		kill(pid, how == KILLED ? SIGKILL : SIGSTOP);
	if (how == STOPPED)
		waitpid(pid, NULL, WUNTRACED);
	if (waits)
		over = ended(how, pid);
	check(over && told.ms < SOON_MS && now_ms() - before < SOON_MS, name);

	say(&(struct order){ .what = DRAIN });
	if (how == STOPPED) {
		nap(500);
		kill(pid, SIGKILL);
	}
	if (tail && write(go[1], "g", 1) != 1)
		exit(110);
	if (how == PASSED)
		write_tail(fd);
	if (!waits)
		over = ended(how, pid);
	struct answer got = hear();
	char data[TAIL];
	memset(data, 't', sizeof data);
	if (tail) {
		told.sent.n += TAIL;
		told.sent.sum = sum_of(told.sent.sum, (uint8_t *)data, TAIL);
	}
	if (how == RESET)
		check(got.err == ECONNRESET, "... the client is told of a reset");
	else
		check(over && told.sent.n && !got.err && got.n == told.sent.n && got.sum == told.sent.sum,
		      "... all that was sent arrives, in order");
}

/* One that has answered computes, without a call, and is killed: what it has read is no reset for its client. */
static void computes(bool un, const char *name)
{
	char c = 0;
	pid_t pid = fork();
	if (!pid) {
		epfd = epoll_create1(EPOLL_CLOEXEC);
		int fd = connection(un, 0, (struct small){ 0 });
		watch(fd);
		asked(fd);
		asked(fd);
		if (write(to_test[1], "", 1) == 1 && turn(fd) && read(fd, &c, 1) == 1 && write(fd, "answer", 6) == 6)
			for (;;)
				__asm__ volatile("pause");
		_exit(107);
	}
	if (read(to_test[0], &c, 1) != 1)
		exit(110);
	client_sends("?");
	say(&(struct order){ .what = DRAIN });
	nap(500);
	kill(pid, SIGKILL);
	bool over = ended(KILLED, pid);
	struct answer got = hear();
	check(over && got.n == 6 && !got.err, name);
}

int main(int argc, char **argv)
{
	const struct small window = { .window = 300 }, packets = { .packet = 88, .window = 1000 };
	if (argc == 3) { /* the new program */
		go[0] = atoi(argv[2]);
		if (atoi(argv[1]) >= 0)
			write_tail(atoi(argv[1]));
		return STATUS;
	}
	alarm(300);
	signal(SIGPIPE, SIG_IGN);
	client_start();
	if (pipe(to_test) || pipe(go) || socketpair(AF_UNIX, SOCK_STREAM, 0, pass))
		return 119;
	for (enum how how = EXIT; how <= PASSED; how++) {
		test(how, false, packets, "small packets");
		if (how == EXIT || how == KILLED)
			test(how, false, window, "a small window");
	}
	test(EXIT, true, (struct small){ 0 }, "a UNIX socket");
	test(KILLED, true, (struct small){ 0 }, "a UNIX socket");
	computes(false, "SIGKILL of one that computes: the client gets the answer, and the end");
	computes(true, "... a UNIX socket");
	client_end();
	printf("%d checks\n", checks);
	return first_failure;
}
