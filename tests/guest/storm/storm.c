/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A storm of processes. From a seed comes a plan: a tree of processes, how each is made (fork, vfork, posix_spawn, exec,
 * as an orphan), what it does (records to a pipe and to shared memory, a robust lock, stops, a busy thread) and how it
 * ends. The plan says all that may be observed, whatever the order: who waits checks each event of waitid() against it
 * and reports it. The root prints all reports, sorted: the same natively and in a pVM.
 *
 * storm [SEED [PROCESSES]]; the exit status is 1 when something was not as planned (lines "BAD").
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PIPE_FD 100
#define SHM_FD 101
#define NODES_MAX 4096

enum via { ROOT, FORK, FORK_EXEC, VFORK_EXEC, SPAWN, ORPHAN, VFORK_ONLY, NR_VIA };
enum end { EXIT, SELF_KILL, FAULT, PARENT_KILL, HOLDING, NR_END };

struct node {
	int parent, depth;
	enum via via;
	enum end end;
	int arg; /* exit status, signal */
	int stops, records, locks;
	bool busy;
};

static struct node plan[NODES_MAX];
static int nodes = 60;
static uint64_t seed = 1, rng;

struct shm {
	pthread_mutex_t lock; /* robust */
	long under_lock;
	long sum;
	long died_holding, found_dead;
	int ready[NODES_MAX];
	int continued
		[NODES_MAX]; /* how often its parent has seen it continue: that event is lost when another follows */
	uint64_t random[NODES_MAX];
};
static struct shm *shm;
static volatile int *volatile nowhere = (int *)16;

static unsigned draw(unsigned n)
{
	rng = rng * 6364136223846793005ull + 1442695040888963407ull;
	return (rng >> 33) % n;
}

static void plan_make(void)
{
	static const int fatal[] = { SIGKILL, SIGTERM, SIGUSR1, SIGABRT, SIGHUP, SIGUSR2 };
	rng = seed * 0x9e3779b97f4a7c15ull + 1;
	for (int i = 1; i < nodes; i++) {
		struct node *n = &plan[i];
		do
			n->parent = draw(4) ? (int)draw(i) : i - 1;
		while (plan[n->parent].via == VFORK_ONLY || plan[n->parent].depth >= 8);
		n->depth = plan[n->parent].depth + 1;
		n->via = FORK + draw(NR_VIA - FORK);
		n->end = draw(NR_END);
		n->arg = n->end == EXIT ? (int)draw(256) : fatal[draw(sizeof fatal / sizeof fatal[0])];
		if (n->end == FAULT)
			n->arg = SIGSEGV;
		if (n->end == HOLDING)
			n->arg = SIGKILL;
		n->stops = draw(3) ? 0 : draw(3);
		n->records = draw(6);
		n->locks = draw(4);
		n->busy = draw(4) == 0;
		if (n->via == ORPHAN || n->via == VFORK_ONLY) {
			n->stops = 0;
			if (n->end == PARENT_KILL || n->end == HOLDING) {
				n->end = EXIT;
				n->arg = draw(256);
			}
		}
		if (n->via == VFORK_ONLY) {
			n->records = n->locks = 0;
			n->busy = false;
		}
	}
}

static void report(const char *fmt, ...)
{
	char line[256];
	va_list ap;
	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof line - 1, fmt, ap);
	va_end(ap);
	line[n++] = '\n';
	if (write(PIPE_FD, line, n) != n)
		_exit(254);
}

/* ---- what a process does ------------------------------------------------------------------------------------------- */

static volatile int busy_stop;
static int busy_word;

/* Inside malloc, a futex, the kernel: where a thread may be when another one forks. */
static void *busy_thread(void *arg)
{
	for (unsigned i = 0; !busy_stop; i++) {
		void *p[16];
		for (int k = 0; k < 16; k++)
			p[k] = malloc(50 + (i * 77 + k * 1234) % 20000);
		for (int k = 0; k < 16; k++)
			free(p[k]);
		struct timespec ts = { 0, 20000 };
		syscall(SYS_futex, &busy_word, FUTEX_WAIT_PRIVATE, 0, &ts, NULL, 0);
		sched_yield();
	}
	return arg;
}

static void lock_shared(int id)
{
	int r = pthread_mutex_lock(&shm->lock);
	if (r == EOWNERDEAD) {
		shm->found_dead++;
		pthread_mutex_consistent(&shm->lock);
	} else if (r) {
		report("BAD %d: lock: %d", id, r);
	}
}

static void work(int id)
{
	struct node *n = &plan[id];
	for (int k = 0; k < n->records; k++) {
		report("%d record %d %u", id, k, (unsigned)(seed * 31 + id * 7 + k));
		__atomic_add_fetch(&shm->sum, id * 100 + k, __ATOMIC_SEQ_CST);
	}
	for (int k = 0; k < n->locks; k++) {
		lock_shared(id);
		shm->under_lock++;
		pthread_mutex_unlock(&shm->lock);
	}
	if (n->via != VFORK_ONLY && getrandom(&shm->random[id], 8, 0) != 8)
		report("BAD %d: getrandom", id);
}

static void count_up(int *word)
{
	__atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void wait_for(int *word, int more_than)
{
	for (int v; (v = __atomic_load_n(word, __ATOMIC_SEQ_CST)) <= more_than;)
		syscall(SYS_futex, word, FUTEX_WAIT, v, NULL, NULL, 0);
}

static void children(int id);

static void die(int sig)
{
	sigset_t none;
	sigemptyset(&none);
	signal(sig, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	kill(getpid(), sig);
	for (;;)
		pause();
}

static _Noreturn void node_main(int id)
{
	struct node *n = &plan[id];
	pthread_t t;
	busy_stop = 0;
	if (n->busy && pthread_create(&t, NULL, busy_thread, NULL))
		report("BAD %d: pthread_create", id);
	work(id);
	children(id);
	for (int k = 0; k < n->stops; k++) {
		raise(SIGSTOP);
		wait_for(&shm->continued[id], k);
	}
	if (n->busy && n->end != HOLDING && id % 2) {
		busy_stop = 1;
		pthread_join(t, NULL);
	}
	switch (n->end) {
	case EXIT:
		_exit(n->arg);
	case SELF_KILL:
		die(n->arg);
		break;
	case FAULT:
		*nowhere = 1;
		break;
	case PARENT_KILL:
		count_up(&shm->ready[id]);
		for (;;)
			pause();
	case HOLDING:
		lock_shared(id);
		shm->died_holding++;
		kill(getpid(), SIGKILL);
		break;
	default:
		break;
	}
	for (;;)
		pause();
}

/* ---- making ------------------------------------------------------------------------------------------------------- */

static char words[4][24];
static char *argv_of(char **argv, int id)
{
	snprintf(words[0], sizeof words[0], "storm");
	snprintf(words[1], sizeof words[1], "%llu", (unsigned long long)seed);
	snprintf(words[2], sizeof words[2], "%d", nodes);
	snprintf(words[3], sizeof words[3], "%d", id);
	for (int i = 0; i < 4; i++)
		argv[i] = words[i];
	argv[4] = NULL;
	return "/proc/self/exe";
}

extern char **environ;

static pid_t make(int id)
{
	struct node *n = &plan[id];
	char *argv[5], *path = argv_of(argv, id);
	pid_t p = -1;
	int r;
	switch (n->via) {
	case FORK:
		p = fork();
		if (p == 0)
			node_main(id);
		break;
	case FORK_EXEC:
		p = fork();
		if (p == 0) {
			execv(path, argv);
			_exit(253);
		}
		break;
	case VFORK_EXEC:
		p = vfork();
		if (p == 0) {
			execv(path, argv);
			_exit(253);
		}
		break;
	case SPAWN:
		r = posix_spawn(&p, path, NULL, NULL, argv, environ);
		if (r) {
			errno = r;
			p = -1;
		}
		break;
	case ORPHAN:
		p = fork();
		if (p == 0) {
			p = fork();
			if (p == 0)
				node_main(id);
			_exit(p < 0 ? 252 : 0);
		}
		break;
	default: /* VFORK_ONLY */
		p = vfork();
		if (p == 0) {
			if (n->end == EXIT)
				_exit(n->arg);
			if (n->end == FAULT)
				*nowhere = 1;
			kill(getpid(), n->arg);
			for (;;)
				;
		}
	}
	if (p < 0)
		report("BAD %d: not made: %s", id, strerror(errno));
	return p;
}

/* ---- waiting -------------------------------------------------------------------------------------------------------- */

static void event(int id, pid_t p, int want_code, int want_status)
{
	siginfo_t i;
	int r;
	memset(&i, 0, sizeof i);
	if (id % 3 == 0) { /* seen first, taken then */
		while ((r = waitid(P_PID, p, &i, WEXITED | WSTOPPED | WCONTINUED | WNOWAIT)) && errno == EINTR)
			;
		if (r || i.si_pid != p || i.si_code != want_code || i.si_status != want_status)
			report("BAD %d: WNOWAIT: %s code %d status %d", id, r ? strerror(errno) : "", i.si_code,
			       i.si_status);
	}
	while ((r = waitid(P_PID, p, &i, WEXITED | WSTOPPED | WCONTINUED)) && errno == EINTR)
		;
	bool good = !r && i.si_pid == p && i.si_code == want_code && i.si_status == want_status &&
		    i.si_signo == SIGCHLD && i.si_uid == getuid();
	report("%s%d event: code %d status %d", good ? "" : "BAD ", id, i.si_code, i.si_status);
	if (!good)
		report("BAD %d: expected code %d status %d; %s", id, want_code, want_status, r ? strerror(errno) : "");
}

static void attend(int id, pid_t p)
{
	struct node *n = &plan[id];
	if (p < 0)
		return;
	if (n->via == ORPHAN) {
		event(id, p, CLD_EXITED, 0);
		return;
	}
	for (int k = 0; k < n->stops; k++) {
		event(id, p, CLD_STOPPED, SIGSTOP);
		kill(p, SIGCONT);
		event(id, p, CLD_CONTINUED, SIGCONT);
		count_up(&shm->continued[id]);
	}
	if (n->end == PARENT_KILL) {
		wait_for(&shm->ready[id], 0);
		kill(p, n->arg);
	}
	if (n->end == EXIT)
		event(id, p, CLD_EXITED, n->arg);
	else
		event(id, p, CLD_KILLED, n->arg);
}

static void children(int id)
{
	pid_t pid[NODES_MAX];
	for (int i = id + 1; i < nodes; i++)
		pid[i] = plan[i].parent == id ? make(i) : 0;
	/* Half of them from the last to the first. */
	for (int k = id + 1; k < nodes; k++) {
		int i = id % 2 ? nodes + id - k : k;
		if (pid[i])
			attend(i, pid[i]);
	}
	if (waitid(P_ALL, 0, &(siginfo_t){ 0 }, WEXITED | WNOHANG) != -1 || errno != ECHILD)
		report("BAD %d: a child too many", id);
}

/* ---- the root -------------------------------------------------------------------------------------------------------- */

struct text {
	int fd;
	char *data;
	size_t len, cap;
};

static void *collect(void *arg)
{
	struct text *t = arg;
	for (;;) {
		if (t->cap - t->len < 65536)
			t->data = realloc(t->data, t->cap = t->cap * 2 + 131072);
		ssize_t n = read(t->fd, t->data + t->len, t->cap - t->len - 1);
		if (n <= 0 && !(n < 0 && errno == EINTR))
			break;
		t->len += n > 0 ? n : 0;
	}
	t->data[t->len] = 0;
	return NULL;
}

static int compare(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static int print_sorted(struct text *t)
{
	size_t n = 0, bad = 0;
	char **line = calloc(t->len + 1, sizeof *line), *save = NULL;
	for (char *l = strtok_r(t->data, "\n", &save); l; l = strtok_r(NULL, "\n", &save))
		line[n++] = l;
	qsort(line, n, sizeof *line, compare);
	for (size_t i = 0; i < n; i++) {
		puts(line[i]);
		bad += !strncmp(line[i], "BAD", 3);
	}
	printf("%zu lines\n", n);
	return bad ? 1 : 0;
}

/* What the shared memory must hold, now that all have ended. */
static void sums(void)
{
	long sum = 0, locked = 0, holding = 0;
	for (int i = 1; i < nodes; i++) {
		for (int k = 0; k < plan[i].records; k++)
			sum += i * 100 + k;
		locked += plan[i].locks;
		holding += plan[i].end == HOLDING;
	}
	lock_shared(0);
	if (shm->sum != sum || shm->under_lock != locked || shm->died_holding != holding || shm->found_dead != holding)
		report("BAD 0: shared memory: %ld of %ld, %ld of %ld, %ld and %ld of %ld", shm->sum, sum,
		       shm->under_lock, locked, shm->died_holding, shm->found_dead, holding);
	pthread_mutex_unlock(&shm->lock);
	for (int i = 1; i < nodes; i++)
		for (int k = 1; k < i; k++)
			if (shm->random[i] && shm->random[i] == shm->random[k])
				report("BAD %d: draws the random number of %d", i, k);
	report("0 sum %ld locked %ld holding %ld", sum, locked, holding);
}

static int root(void)
{
	int fd[2], mem = memfd_create("storm", 0);
	if (pipe2(fd, O_CLOEXEC) || mem < 0 || ftruncate(mem, sizeof *shm) || dup2(fd[1], PIPE_FD) < 0 ||
	    dup2(mem, SHM_FD) < 0)
		return 2;
	close(fd[1]);
	close(mem);
	shm = mmap(NULL, sizeof *shm, PROT_READ | PROT_WRITE, MAP_SHARED, SHM_FD, 0);
	if (shm == MAP_FAILED)
		return 2;
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&shm->lock, &a);
	struct text text = { .fd = fd[0] };
	pthread_t t;
	/* Until the orphans have ended, too: the last holder of this pipe is gone. */
	int life[2];
	char c;
	if (pipe(life) || pthread_create(&t, NULL, collect, &text))
		return 2;
	children(0);
	close(life[1]);
	if (read(life[0], &c, 1) != 0)
		report("BAD 0: life");
	sums();
	close(PIPE_FD);
	pthread_join(t, NULL);
	return print_sorted(&text);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		seed = strtoull(argv[1], NULL, 0);
	if (argc > 2)
		nodes = atoi(argv[2]);
	if (nodes < 2 || nodes > NODES_MAX)
		return 2;
	plan_make();
	if (argc <= 3)
		return root();
	shm = mmap(NULL, sizeof *shm, PROT_READ | PROT_WRITE, MAP_SHARED, SHM_FD, 0);
	if (shm == MAP_FAILED)
		return 251;
	node_main(atoi(argv[3]));
}
