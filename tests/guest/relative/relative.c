/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pipes, socket pairs, semaphores, queues and signals of a process whose relative writes nonsense into the memory that both
 * map. Data may be lost, and calls fail; but each ends, if nothing else does it by the next signal, the process can fork,
 * exec and end, and whoever has nothing to do with those objects notices nothing.
 *
 * relative pvm [SEED [ROUNDS]]. Without arguments nothing is done: natively there is no such memory.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include "../clock.h"
#include "ops.h"

#define ROUND_MS 1500
#define LIMIT_MS 10000 /* for one call */
#define ALARM_US 20000

static struct state {
	volatile uint32_t op, count; /* which, and how many before */
	volatile uint64_t since;     /* ms */
	volatile uint32_t failed;
	volatile int error;
} * seen;

static void on_alarm(int s) { (void)s; }

static void alarms(void)
{
	struct itimerval t = { { 0, ALARM_US }, { 0, ALARM_US } };
	struct sigaction a = { .sa_handler = on_alarm };
	sigaction(SIGALRM, &a, NULL);
	setitimer(ITIMER_REAL, &t, NULL);
}

/* ---- objects -------------------------------------------------------------------------------------------------------- */

/* So often used that they are in memory. */
static void objects_use(void)
{
	for (int i = 0; i < 12; i++) {
		NEED(write(fd[W], "x", 1) == 1 && read(fd[R], data, 1) == 1);
		for (int k = STREAM; k < FDS; k += 2)
			NEED(send(fd[k], "x", 1, 0) == 1 && recv(fd[k + 1], data, 1, 0) == 1);
		struct sembuf up = { 0, 1, IPC_NOWAIT }, down = { 0, -1, IPC_NOWAIT };
		NEED(!semop(sem, &up, 1) && !semop(sem, &down, 1));
		NEED(!msgsnd(queue, &message, 8, 0) && msgrcv(queue, &message, 8, 0, 0) == 8);
		NEED(!mq_send(mq, data, 8, 1) && mq_receive(mq, data, 2000, NULL) == 8);
	}
}

static void objects_make(void)
{
	static const int types[] = { SOCK_STREAM, SOCK_SEQPACKET, SOCK_DGRAM };
	struct mq_attr a = { .mq_maxmsg = 4, .mq_msgsize = 64 };
	struct stat st;
	NEED(!pipe(fd));
	for (int i = 0; i < 3; i++)
		NEED(!socketpair(AF_UNIX, types[i], 0, fd + STREAM + 2 * i));
	NEED((epoll = epoll_create1(0)) >= 0);
	NEED((sem = semget(IPC_PRIVATE, 2, 0600)) >= 0 && (queue = msgget(IPC_PRIVATE, 0600)) >= 0);
	NEED((mq = mq_open("/kx-relative", O_RDWR | O_CREAT, 0600, &a)) >= 0 && !mq_unlink("/kx-relative"));
	NEED(!fstat(mq, &st));
	mq_id = (unsigned)st.st_ino;
	objects_use();
}

/* ---- a relative that lies ----------------------------------------------------------------------------------------- */

/* Its own calls on the same objects, none of which waits for long. */
static void liar_calls(void)
{
	int one = pair_end();
	switch (draw(5)) {
	case 0:
		send(one, data, 1 + draw(5000), MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case 1:
		recv(one, data, 1 + draw(5000), MSG_DONTWAIT);
		break;
	case 2:
		op_sem();
		break;
	case 3:
		op_mq();
		break;
	default:
		kill(honest, SIGUSR1);
	}
}

static void lie_on(uint64_t seed)
{
	rng = seed;
	liar = getpid();
	alarms();
	for (;;) {
		for (unsigned i = draw(200); i; i--)
			draw(3) ? lie_pipe(fd[draw(FDS)]) : draw(8) ? lie_ipc() : lie_sigwait();
		if (draw(8) == 0)
			sched_yield();
		if (draw(200) == 0)
			liar_calls();
	}
}

/* ---- and who has to live with it ---------------------------------------------------------------------------------- */

static uint64_t run(unsigned op)
{
	seen->since = (uint64_t)now_ms();
	seen->op = op;
	bool good = ops[op].fn();
	seen->count++;
	if (!good && !seen->failed) {
		seen->error = errno;
		seen->failed = op + 1;
	}
	uint64_t t = (uint64_t)now_ms() - seen->since;
	if (t > LIMIT_MS)
		printf("# %s took %llu ms\n", ops[op].name, (unsigned long long)t);
	return t;
}

/* One that has nothing to do with all that. */
static volatile int over;
static void *bystander(void *longest)
{
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	while (!over) {
		int64_t from = now_ms();
		int p[2];
		if (!pipe(p)) {
			close(p[0]);
			close(p[1]);
		}
		uint64_t t = (uint64_t)(now_ms() - from);
		if (t > *(uint64_t *)longest)
			*(uint64_t *)longest = t;
		ms(5);
	}
	return NULL;
}

static void live(uint64_t seed)
{
	pthread_t th;
	uint64_t longest = 0, most = 0;
	unsigned total = 0;
	honest = getpid();
	signal(SIGPIPE, SIG_IGN);
	signal(SIGUSR1, on_alarm);
	sigset_t m;
	sigemptyset(&m);
	sigaddset(&m, SIGUSR1);
	sigprocmask(SIG_BLOCK, &m, NULL);
	objects_make();
	pid_t p = fork();
	if (p == 0)
		lie_on(seed * 31 + 7);
	NEED(p > 0);
	liar = p;
	rng = seed;
	for (unsigned i = 0; i < OPS; i++)
		total += ops[i].share;
	alarms();
	NEED(!pthread_create(&th, NULL, bystander, &longest));
	for (int64_t end = now_ms() + ROUND_MS; now_ms() < end;) {
		unsigned k = draw(total), i = 0;
		for (; k >= ops[i].share; i++)
			k -= ops[i].share;
		uint64_t t = run(i);
		most = t > most ? t : most;
	}
	over = 1;
	pthread_join(th, NULL);
	/* The relative goes on while this one ends. */
	seen->op = OPS;
	seen->since = (uint64_t)now_ms();
	printf("# %u calls, the longest of %llu ms, another thread's of %llu ms\n", seen->count,
	       (unsigned long long)most, (unsigned long long)longest);
	fflush(stdout);
	exit(most > LIMIT_MS || longest > LIMIT_MS ? 3 : 0);
}

/* A round in a group of its own. False: it did not end. */
static bool ends(void (*fn)(uint64_t), uint64_t arg, unsigned limit_ms, int *status)
{
	int64_t end = now_ms() + limit_ms;
	fflush(stdout);
	pid_t p = fork(), got;
	if (p == 0) {
		setpgid(0, 0);
		fn(arg);
		_exit(0);
	}
	setpgid(p, p);
	while (!(got = waitpid(p, status, WNOHANG)) && now_ms() < end)
		ms(10);
	kill(-p, SIGKILL);
	if (!got)
		waitpid(p, status, 0);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	return got == p;
}

static void rounds(uint64_t seed, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		char name[80];
		int status = 0;
		memset(seen, 0, sizeof *seen);
		bool ended = ends(live, seed + i, ROUND_MS + 3 * LIMIT_MS, &status);
		snprintf(name, sizeof name, "round of seed %llu ends", (unsigned long long)(seed + i));
		if (!ended)
			printf("# in %s, after %u calls\n", seen->op < OPS ? ops[seen->op].name : "exit", seen->count);
		check(ended, name);
		errno = seen->error;
		if (seen->failed)
			printf("# %s: %s\n", ops[seen->failed - 1].name, strerror(errno));
		check(!seen->failed, "each call has a result that may be");
		if (ended)
			check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "and nothing took long");
	}
}

/* ---- locks that a relative keeps ---------------------------------------------------------------------------------- */

static pid_t keeper;

/* A member that lives, and says that all locks are its. */
static void locks_keep(void)
{
	NEED((keeper = fork()) >= 0);
	if (!keeper) {
		for (;;)
			pause();
	}
	uint64_t who = (uint64_t)keeper << 32 | (uint32_t)keeper;
	for (int i = 0; i < FDS; i++) {
		struct kx_pipe *o = object_of(fd[i]);
		for (int k = 0; o && k < 1 + !!o->pair; k++)
			PUT(o[k].rlock, who), PUT(o[k].wlock, who);
	}
	for (unsigned k = 0; k < 3 && IPC_TABLE->on; k++)
		PUT(ipc_objects(k)->lock, who);
}

static void kept_begin(void)
{
	signal(SIGPIPE, SIG_IGN);
	objects_make();
	/* A token before no data, which a close takes away. */
	NEED(send(fd[STREAM], "x", 1, 0) == 1 && recv(fd[STREAM2], data, 1, 0) == 1);
	locks_keep();
}

static void *makes_pipe(void *arg)
{
	int p[2];
	sigset_t all;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	ms(100);
	NEED(!pipe(p) && !close(p[0]) && !close(p[1]));
	return arg;
}

static void kept_close(uint64_t unused)
{
	pthread_t th;
	(void)unused;
	kept_begin();
	NEED(!pthread_create(&th, NULL, makes_pipe, NULL));
	for (int i = 0; i < FDS; i++)
		NEED(!close(fd[i]));
	NEED(!pthread_join(th, NULL));
}
static void kept_dup(uint64_t unused)
{
	(void)unused;
	kept_begin();
	for (int i = 1; i < FDS; i++)
		NEED(dup2(fd[0], fd[i]) == fd[i]);
	int high = fcntl(fd[0], F_DUPFD, KX_PIPE_FDS);
	NEED(high >= 0 || errno == EINVAL || errno == EMFILE);
}
static void kept_range(uint64_t unused)
{
	(void)unused;
	kept_begin();
	NEED(!syscall(SYS_close_range, fd[0], fd[FDS - 1], 0));
}
static void kept_exit(uint64_t unused)
{
	(void)unused;
	kept_begin();
	exit(0);
}
/* No place is left for a child, so all becomes plain. */
static void kept_fork(uint64_t unused)
{
	(void)unused;
	kept_begin();
	for (int i = 0; i < FDS; i++)
		for (unsigned k = 0; object_of(fd[i]) && k < KX_PIPE_HOLDERS; k++)
			if (!GET(object_of(fd[i])->holder[k]))
				PUT(object_of(fd[i])->holder[k], (uint32_t)keeper);
	pid_t p = fork();
	if (p == 0)
		_exit(0);
	NEED(fine(p));
}
static void kept_exec(uint64_t unused)
{
	char *argv[] = { "relative", "child", NULL }, *envp[] = { NULL };
	int high[2];
	(void)unused;
	NEED(!pipe(fd) && write(fd[W], "x", 1) == 1);
	struct kx_pipe *o = object_of(fd[R]);
	uint64_t live = GET(o->state);
	NEED((high[0] = fcntl(fd[R], F_DUPFD, KX_PIPE_FDS)) >= 0);
	NEED((high[1] = fcntl(fd[W], F_DUPFD, KX_PIPE_FDS)) >= 0);
	for (int i = 2; i < FDS; i++)
		fd[i] = -1;
	NEED((keeper = fork()) >= 0);
	if (!keeper) {
		for (;;)
			pause();
	}
	PUT(o->rlock, (uint64_t)keeper << 32 | (uint32_t)keeper);
	PUT(o->state, live);
	execve("/proc/self/exe", argv, envp);
	_exit(4);
}

/* What sleeps in a call ends by a signal whose default that is. */
static bool (*asleep_op)(void);
static bool sleep_read(void) { return read(fd[R], data, 1) >= 0; }
static bool sleep_write(void) { return write(fd[W], data, 1) >= 0; }
static bool sleep_pair(void) { return read(fd[STREAM], data, 1) >= 0; }
static bool sleep_poll(void)
{
	struct pollfd p[2] = { { fd[R], POLLIN, 0 }, { fd[RECORDS], POLLIN, 0 } };
	return poll(p, 2, -1) >= 0;
}
static bool sleep_sem(void)
{
	struct sembuf op = { 0, -1, 0 };
	return semop(sem, &op, 1) >= 0;
}
static bool sleep_semctl(void) { return semctl(sem, 0, GETVAL) >= 0; }
static bool sleep_set(void) { return semctl(sem, 0, SETVAL, 1) >= 0; }
static bool sleep_queue(void) { return msgrcv(queue, &message, 8, 0, 0) >= 0; }
static bool sleep_stat(void)
{
	struct msqid_ds ds;
	return msgctl(queue, IPC_STAT, &ds) >= 0;
}
static bool sleep_mq(void) { return mq_receive(mq, data, 2000, NULL) >= 0; }

/* The lock is taken before the call, or (later) when it sleeps already: a signal ends it. */
static void kept_asleep(uint64_t later)
{
	if (later)
		objects_make();
	else
		kept_begin();
	pid_t p = fork();
	if (p == 0) {
		asleep_op();
		for (;;)
			pause();
	}
	NEED(p > 0);
	ms(500);
	if (later)
		locks_keep();
	kill(p, SIGTERM);
	int st = status_of(p);
	NEED(WIFSIGNALED(st) && WTERMSIG(st) == SIGTERM);
}

static void kept(void)
{
	static const struct {
		const char *name;
		void (*fn)(uint64_t);
		bool (*op)(void);
		bool later;
	} all[] = {
		{ "close", kept_close, NULL, false },
		{ "dup2", kept_dup, NULL, false },
		{ "close_range", kept_range, NULL, false },
		{ "exit", kept_exit, NULL, false },
		{ "fork", kept_fork, NULL, false },
		{ "exec", kept_exec, NULL, false },
		{ "a read", kept_asleep, sleep_read, false },
		{ "a write", kept_asleep, sleep_write, false },
		{ "a read of a pair", kept_asleep, sleep_pair, false },
		{ "poll", kept_asleep, sleep_poll, false },
		{ "semop", kept_asleep, sleep_sem, false },
		{ "semctl", kept_asleep, sleep_semctl, false },
		{ "SETVAL", kept_asleep, sleep_set, false },
		{ "msgrcv", kept_asleep, sleep_queue, false },
		{ "msgrcv, later", kept_asleep, sleep_queue, true },
		{ "msgctl", kept_asleep, sleep_stat, false },
		{ "mq_receive", kept_asleep, sleep_mq, false },
		{ "mq_receive, later", kept_asleep, sleep_mq, true },
	};
	for (unsigned i = 0; i < sizeof all / sizeof all[0]; i++) {
		char name[80];
		int status = 0;
		asleep_op = all[i].op;
		int64_t from = now_ms();
		bool ended = ends(all[i].fn, all[i].later, LIMIT_MS, &status);
		snprintf(name, sizeof name, "locks that are kept: %s (%llu ms, status %x)", all[i].name,
			 (unsigned long long)(now_ms() - from), (unsigned)status);
		check(ended && WIFEXITED(status) && WEXITSTATUS(status) == 0, name);
	}
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		puts("skipped natively");
		return 0;
	}
	if (!strcmp(argv[1], "child"))
		return 0;
	uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
	seen = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	kept();
	rounds(seed, argc > 3 ? (unsigned)atoi(argv[3]) : 4);
	/* What was spoiled is the relatives' alone. */
	int p[2];
	check(!pipe(p) && write(p[1], "hello", 5) == 5 && read(p[0], data, 9) == 5 && !memcmp(data, "hello", 5),
	      "a pipe made after all that");
	return verdict();
}
