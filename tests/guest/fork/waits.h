/* SPDX-License-Identifier: Apache-2.0 */
/* Who waits for whom; signals of a family. Part of fork.c. */
#ifndef KX_GUEST_FORK_WAITS_H
#define KX_GUEST_FORK_WAITS_H
#include "fork.h"

/* ---- wait ---------------------------------------------------------------------------------------------------------- */

static inline void stop_continue(void)
{
	int st;
	pid_t p = FORK({
		on(SIGUSR1, 0);
		raise(SIGSTOP);
		while (!hits[SIGUSR1])
			ms(1);
		_exit(17);
	});
	check(waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st) && WSTOPSIG(st) == SIGSTOP, "wait: WUNTRACED");
	check(waitpid(p, &st, WNOHANG | WUNTRACED) == 0, "wait: a stop is told once");
	check(kill(p, SIGCONT) == 0, "wait: SIGCONT");
	siginfo_t info = { 0 };
	check(waitid(P_PID, p, &info, WCONTINUED | WNOWAIT) == 0 && info.si_code == CLD_CONTINUED && info.si_pid == p,
	      "waitid: CLD_CONTINUED");
	check(waitpid(p, &st, WCONTINUED) == p && WIFCONTINUED(st), "wait: WCONTINUED");
	check(kill(p, SIGUSR1) == 0 && exited(status_of(p), 17), "wait: and then the end");
	on(SIGTSTP, 0);
	p = FORK({
		setpgid(0, 0); /* not an orphaned group: there SIGTSTP stops nothing */
		on(SIGCONT, 0);
		raise(SIGTSTP);
		NEED(hits[SIGTSTP] == 1);
		off(SIGTSTP);
		raise(SIGTSTP);
		NEED(hits[SIGCONT] == 1);
	});
	check(waitpid(p, &st, WUNTRACED) == p && WIFSTOPPED(st) && WSTOPSIG(st) == SIGTSTP, "stop: SIGTSTP");
	memset(&info, 0, sizeof info);
	check(kill(p, SIGCONT) == 0 && fine(p), "stop: SIGCONT's handler runs");
	off(SIGTSTP);
}

static inline void waits(void)
{
	int st;
	struct rusage ru;
	siginfo_t info;
	check(waitpid(-1, &st, WNOHANG) == -1 && errno == ECHILD, "wait: ECHILD");
	pid_t p = FORK(pause());
	check(waitpid(p, &st, WNOHANG) == 0, "wait: WNOHANG");
	check(waitpid(1, &st, 0) == -1 && errno == ECHILD, "wait: not my child");
	memset(&info, 1, sizeof info);
	check(waitid(P_PID, p, &info, WEXITED | WNOHANG) == 0 && info.si_pid == 0 && info.si_signo == 0,
	      "waitid: WNOHANG");
	check(kill(p, SIGKILL) == 0, "wait: kill");
	memset(&info, 0, sizeof info);
	check(waitid(P_PID, p, &info, WEXITED | WNOWAIT) == 0 && info.si_pid == p && info.si_status == SIGKILL &&
		      info.si_code == CLD_KILLED && info.si_signo == SIGCHLD,
	      "waitid: WNOWAIT");
	check(wait4(-1, &st, __WALL, &ru) == p && killed(st, SIGKILL), "wait4: __WALL after WNOWAIT");
	p = FORK({
		volatile unsigned x = 0;
		for (clock_t end = clock() + CLOCKS_PER_SEC / 25; clock() < end;)
			for (int i = 0; i < 100000; i++)
				x++;
		_exit(200);
	});
	check(wait4(p, &st, 0, &ru) == p && exited(st, 200) &&
		      ru.ru_utime.tv_sec * 1000000 + ru.ru_utime.tv_usec + ru.ru_stime.tv_sec * 1000000 +
				      ru.ru_stime.tv_usec >
			      10000,
	      "wait4: rusage");
	bool good = true;
	for (int i = 0; i < 256; i += 51)
		good = good && exited(status_of(FORK(_exit(i))), i);
	check(good, "wait: exit statuses");
	check(killed(status_of(FORK({
			     setrlimit(RLIMIT_CORE, &(struct rlimit){ 0, 0 });
			     abort();
		     })),
		     SIGABRT),
	      "wait: abort");
	check(killed(status_of(FORK(*nowhere = 1)), SIGSEGV), "wait: SIGSEGV");
	check(killed(status_of(FORK(raise(SIGTERM))), SIGTERM), "wait: SIGTERM");
	check(killed(status_of(FORK(__builtin_trap())), SIGILL), "wait: SIGILL");
	check(killed(status_of(FORK(__asm__ volatile("xor %%ecx, %%ecx\n div %%ecx"
						     :
						     :
						     : "eax", "ecx", "edx"))),
		     SIGFPE),
	      "wait: SIGFPE");
	check(killed(status_of(FORK(raise(SIGRTMIN))), SIGRTMIN), "wait: real-time signal");
	check(killed(status_of(FORK({
			     alarm(1);
			     ualarm(20000, 0);
			     pause();
		     })),
		     SIGALRM),
	      "wait: SIGALRM");
	pid_t g = FORK({
		setpgid(0, 0);
		_exit(1);
	});
	setpgid(g, g);
	pid_t o = FORK(_exit(2));
	check(waitpid(-g, &st, 0) == g && exited(st, 1), "wait: by group");
	check(waitid(P_PGID, getpgrp(), &info, WEXITED) == 0 && info.si_pid == o, "waitid: P_PGID");
	check(waitpid(0, &st, 0) == -1 && errno == ECHILD, "wait: group without children");
	check(waitid(P_ALL, 0, &info, 0) == -1 && errno == EINVAL, "waitid: EINVAL");
	p = FORK(_exit(5));
	ms(20);
	check(waitid(P_ALL, 0, NULL, WEXITED) == 0, "waitid: no siginfo");
	/* EINTR, and restart */
	struct itimerval it = { { 0, 30000 }, { 0, 30000 } };
	int *go = shared(4096);
	p = FORK({
		NEED(await(go, 1));
		ms(120);
	});
	on(SIGALRM, 0);
	setitimer(ITIMER_REAL, &it, NULL);
	check(waitpid(p, &st, 0) == -1 && errno == EINTR && hits[SIGALRM] >= 1, "wait: EINTR");
	on(SIGALRM, SA_RESTART);
	*go = 1;
	check(waitpid(p, &st, 0) == p && hits[SIGALRM] >= 1, "wait: SA_RESTART");
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	off(SIGALRM);
	munmap(go, 4096);
	stop_continue();
}

static inline void sigchld(void)
{
	blocking(SIG_BLOCK, SIGCHLD);
	on(SIGCHLD, 0);
	sigset_t old;
	sigprocmask(0, NULL, &old);
	sigdelset(&old, SIGCHLD);
	pid_t p = FORK(_exit(33));
	sigsuspend(&old);
	siginfo_t i = last[SIGCHLD];
	check(hits[SIGCHLD] == 1 && i.si_pid == p && i.si_status == 33 && i.si_code == CLD_EXITED &&
		      i.si_uid == getuid(),
	      "SIGCHLD: exit");
	status_of(p);
	p = FORK(pause());
	kill(p, SIGSTOP);
	sigsuspend(&old);
	i = last[SIGCHLD];
	check(i.si_pid == p && i.si_status == SIGSTOP && i.si_code == CLD_STOPPED, "SIGCHLD: stopped");
	kill(p, SIGCONT);
	sigsuspend(&old);
	i = last[SIGCHLD];
	check(i.si_pid == p && i.si_status == SIGCONT && i.si_code == CLD_CONTINUED, "SIGCHLD: continued");
	kill(p, SIGTERM);
	sigsuspend(&old);
	i = last[SIGCHLD];
	check(i.si_pid == p && i.si_status == SIGTERM && i.si_code == CLD_KILLED, "SIGCHLD: killed");
	status_of(p);
	on(SIGCHLD, SA_NOCLDSTOP);
	p = FORK(pause());
	kill(p, SIGSTOP);
	ms(30);
	check(!is_pending(SIGCHLD), "SIGCHLD: SA_NOCLDSTOP");
	kill(p, SIGKILL);
	status_of(p);
	blocking(SIG_UNBLOCK, SIGCHLD);
	on(SIGCHLD, SA_NOCLDWAIT);
	p = FORK(_exit(1));
	int r = waitpid(p, NULL, 0);
	check(r == -1 && errno == ECHILD && await((int *)&hits[SIGCHLD], 1), "SIGCHLD: SA_NOCLDWAIT");
	check(is_gone(p), "SIGCHLD: and the child is gone");
	signal(SIGCHLD, SIG_IGN);
	p = FORK(_exit(1));
	check(waitpid(p, NULL, 0) == -1 && errno == ECHILD, "SIGCHLD: ignored");
	off(SIGCHLD);
	blocking(SIG_BLOCK, SIGCHLD);
	p = FORK(_exit(3));
	sigset_t set;
	siginfo_t info;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	ms(20);
	check(sigtimedwait(&set, &info, &(struct timespec){ 60, 0 }) == SIGCHLD && info.si_pid == p &&
		      info.si_status == 3 && exited(status_of(p), 3),
	      "SIGCHLD: default action, blocked, taken by sigtimedwait");
	blocking(SIG_UNBLOCK, SIGCHLD);
	/* A storm of ends, all told of by the count of waits. */
	on(SIGCHLD, SA_RESTART);
	for (int k = 0; k < 10; k++)
		FORK(_exit(0));
	int n = 0;
	while (wait(NULL) > 0 || errno == EINTR)
		n++;
	check(n == 10 && hits[SIGCHLD] > 0, "SIGCHLD: ten children");
	off(SIGCHLD);
}

/* ---- family ------------------------------------------------------------------------------------------------------ */

static inline void orphans(void)
{
	int *s = shared(4096);
	check(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0, "subreaper: set");
	pid_t me = getpid();
	pid_t p = FORK({
		pid_t q = FORK({
			pid_t parent = getppid();
			__atomic_store_n(&s[0], getpid(), __ATOMIC_SEQ_CST);
			while (getppid() == parent)
				ms(1);
			s[1] = getppid();
			_exit(66);
		});
		(void)q;
		await(&s[0], 1);
	});
	check(fine(p), "subreaper: the middle one ends");
	int st;
	pid_t r = wait(&st);
	check(r == s[0] && exited(st, 66) && s[1] == me, "subreaper: gets the orphan");
	prctl(PR_SET_CHILD_SUBREAPER, 0);
	s[0] = s[1] = s[2] = 0;
	p = FORK({
		FORK({
			on(SIGUSR1, 0);
			NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
			pid_t parent = getppid();
			for (int i = 0; i < 200; i++) /* calls during which nobody asks for the parent */
				getpgid(0);
			NEED(getppid() == parent && getppid() == parent);
			for (int i = 0; i < 200; i++)
				getpgid(0);
			__atomic_store_n(&s[0], 1, __ATOMIC_SEQ_CST);
			for (int i = 0; i < 5000 && !hits[SIGUSR1]; i++)
				ms(1);
			/* With a parent of several threads, as one with a VM is since Linux 6.14, the signal may come first. */
			for (int i = 0; i < 1000 && getppid() == parent; i++)
				ms(1);
			NEED(getppid() != parent);
			__atomic_store_n(&s[1], hits[SIGUSR1] ? 1 : 2, __ATOMIC_SEQ_CST);
		});
		await(&s[0], 1);
	});
	check(fine(p) && await(&s[1], 1) && s[1] == 1, "PR_SET_PDEATHSIG");
	check(fine(FORK({
		      int sig = -1;
		      NEED(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0);
		      NEED(fine(FORK(NEED(prctl(PR_GET_PDEATHSIG, &sig) == 0 && sig == 0))));
	      })),
	      "PR_SET_PDEATHSIG is not inherited");
	munmap(s, 4096);
}

static inline void pidfds(void)
{
	pid_t p = FORK(pause());
	int fd = syscall(SYS_pidfd_open, p, 0);
	struct pollfd pf = { fd, POLLIN, 0 };
	check(fd >= 0 && poll(&pf, 1, 0) == 0, "pidfd: open, not readable");
	check(syscall(SYS_pidfd_send_signal, fd, 0, NULL, 0) == 0, "pidfd: signal 0");
	check(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == 0, "pidfd: signal");
	check(poll(&pf, 1, 100000) == 1, "pidfd: readable at the end");
	check(killed(status_of(p), SIGTERM), "pidfd: status");
	check(syscall(SYS_pidfd_send_signal, fd, SIGTERM, NULL, 0) == -1 && errno == ESRCH, "pidfd: ESRCH when reaped");
	close(fd);
	check(syscall(SYS_pidfd_open, p, 0) == -1 && errno == ESRCH, "pidfd: no such process");
	fd = syscall(SYS_pidfd_open, getpid(), 0);
	on(SIGUSR1, 0);
	check(fd >= 0 && fine(FORK(NEED(syscall(SYS_pidfd_send_signal, fd, SIGUSR1, NULL, 0) == 0))) &&
		      hits[SIGUSR1] == 1,
	      "pidfd: of the parent, in the child");
	off(SIGUSR1);
	close(fd);
}

static inline bool family_only(void)
{
	return kill(1, 0) == -1 && errno == ESRCH && kill(getppid(), 0) == -1 && errno == ESRCH;
}

static inline void groups(void)
{
	check(fine(FORK({
		      NEED(setpgid(0, 0) == 0 && setpriority(PRIO_PGRP, getpgrp(), 5) == 0);
		      NEED(getpriority(PRIO_PROCESS, 0) == 5 && getpriority(PRIO_PGRP, getpgrp()) == 5);
		      NEED(syscall(SYS_ioprio_get, 2, getpgrp()) >= 0);
	      })),
	      "priority of one's group, by its number");
	int *s = shared(4096);
	pid_t leader = FORK({
		NEED(setpgid(0, 0) == 0 && getpgrp() == getpid());
		on(SIGUSR1, SA_RESTART);
		for (int k = 0; k < 3; k++)
			FORK({
				on(SIGUSR1, 0);
				__atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
				while (!hits[SIGUSR1])
					ms(1);
				__atomic_add_fetch(&s[1], 1, __ATOMIC_SEQ_CST);
			});
		NEED(await(&s[0], 3));
		NEED(kill(0, SIGUSR1) == 0);
		NEED(hits[SIGUSR1] == 1);
		for (int k = 0; k < 3; k++)
			NEED(wait(NULL) > 0);
		s[2] = 1;
		pause();
	});
	setpgid(leader, leader);
	check(getpgid(leader) == leader && await(&s[2], 1) && s[1] == 3, "groups: kill(0) reaches all of the group");
	check(kill(-leader, SIGTERM) == 0 && killed(status_of(leader), SIGTERM), "groups: kill(-pgid)");
	check(kill(-leader, 0) == -1 && errno == ESRCH, "groups: no such group");
	check(setpgid(leader, 0) == -1 && errno == ESRCH, "groups: setpgid of nobody");
	check(fine(FORK({
		      pid_t sid = setsid();
		      NEED(sid == getpid() && getpgrp() == sid && getsid(0) == sid);
		      NEED(setsid() == -1 && errno == EPERM);
		      NEED(fine(FORK(NEED(getsid(0) == sid && getpgrp() == sid))));
		      pid_t p = FORK(pause());
		      NEED(setpgid(p, p) == 0 && getpgid(p) == p && getsid(p) == sid);
		      NEED(kill(p, SIGKILL) == 0 && killed(status_of(p), SIGKILL));
	      })),
	      "sessions: setsid");
	munmap(s, 4096);
}

/* kill(-1): everybody that may be signalled but the sender. */
static inline void kill_all(void)
{
	if (!family_only())
		return;
	int *s = shared(4096);
	on(SIGUSR2, SA_RESTART);
	pid_t p[3];
	for (int k = 0; k < 3; k++)
		p[k] = FORK({
			hits[SIGUSR2] = 0;
			__atomic_add_fetch(&s[0], 1, __ATOMIC_SEQ_CST);
			while (!hits[SIGUSR2])
				ms(1);
		});
	check(await(&s[0], 3) && kill(-1, SIGUSR2) == 0 && hits[SIGUSR2] == 0, "kill(-1): not to the sender");
	check(fine(p[0]) && fine(p[1]) && fine(p[2]), "kill(-1): to the family");
	p[0] = FORK(NEED(kill(-1, SIGUSR2) == 0));
	check(fine(p[0]) && hits[SIGUSR2] == 1, "kill(-1): from a child to its parent");
	off(SIGUSR2);
	munmap(s, 4096);
}

static inline void queues(void)
{
	int *s = shared(4096);
	const int rt = SIGRTMIN + 2;
	pid_t p = FORK({
		blocking(SIG_BLOCK, rt);
		on(rt, 0);
		__atomic_store_n(&s[0], 1, __ATOMIC_SEQ_CST);
		await(&s[1], 1);
		blocking(SIG_UNBLOCK, rt);
		NEED(nr_queued == 40);
		for (int i = 0; i < 40; i++)
			NEED(queued[i] == i * 7);
		NEED(last[rt].si_pid == getppid());
	});
	await(&s[0], 1);
	bool good = true;
	for (int i = 0; i < 40; i++)
		good = good && sigqueue(p, rt, (union sigval){ .sival_int = i * 7 }) == 0;
	__atomic_store_n(&s[1], 1, __ATOMIC_SEQ_CST);
	check(good && fine(p), "sigqueue: 40 values in order to another process");
	on(rt, 0);
	nr_queued = 0;
	pid_t me = getpid();
	p = FORK({
		for (int i = 0; i < 20; i++)
			NEED(sigqueue(me, rt, (union sigval){ .sival_int = i }) == 0);
	});
	check(fine(p) && await(&nr_queued, 20) && last[rt].si_pid == p, "sigqueue: child to parent, all of them");
	good = true;
	for (int i = 0; i < 20; i++)
		good = good && queued[i] == i;
	check(good, "sigqueue: in order without blocking");
	off(rt);
	munmap(s, 4096);
}
#endif
