/* SPDX-License-Identifier: Apache-2.0 */
/*
 * UNIX IPC between processes, call by call and error by error: SysV segments, semaphores and queues, POSIX memory,
 * semaphores and queues, locks and conditions in shared memory, futexes, descriptors that are shared over fork, file
 * locks, UNIX sockets. Each line of the output is an expression and what it gave; nothing in it depends on when or
 * where it runs. tests/run.py runs it natively and in a pVM and compares: Linux is the reference. Exit status 1: a
 * process was lost or a wait took too long.
 */
#define _GNU_SOURCE
#include "ipc.h"
#include "busy.h"
#include "futexes.h"
#include "locks.h"
#include "mqueue.h"
#include "msg.h"
#include "outside.h"
#include "posix.h"
#include "sem.h"
#include "shared.h"
#include "shm.h"
#include "sockets.h"

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} parts[] = { { "shm", shm },
		      { "sem", sem },
		      { "msg", msg },
		      { "sem_busy", sem_busy },
		      { "sem_turns", sem_turns },
		      { "sem_last_one", sem_last_one },
		      { "msg_busy", msg_busy },
		      { "msg_turns", msg_turns },
		      { "mq", mq },
		      { "mq_busy", mq_busy },
		      { "mq_turns", mq_turns },
		      { "deaths", deaths_some },
		      { "posix_shm", posix_shm },
		      { "posix_sem", posix_sem },
		      { "sync", sync_objects },
		      { "futex", futexes },
		      { "waitv", waitv_private },
		      { "requeue", requeue },
		      { "fd", descriptors },
		      { "locks", locks },
		      { "sockets", sockets } };
	alarm(500);
	turn = shared(4096);
	if (argc > 1 && !strcmp(argv[1], "make"))
		return make();
	if (argc > 1 && !strcmp(argv[1], "find"))
		return find();
	if (argc > 2 && (!strcmp(argv[1], "wait") || !strcmp(argv[1], "wake")))
		return word(argv[2], argv[1][1] == 'a' && argv[1][2] == 'i');
	if (argc > 2 && (!strcmp(argv[1], "give") || !strcmp(argv[1], "take")))
		return passed(argv[2], argv[1][0] == 'g');
	if (argc > 2 && !strcmp(argv[1], "trips"))
		return trips(argv[2]);
	if (argc > 3 && !strcmp(argv[1], "deaths"))
		return alarm(0), deaths((unsigned)atoi(argv[2]), atoi(argv[3])) != atoi(argv[3]);
	if (argc > 2 && !strcmp(argv[1], "mqsend"))
		return mq_send(atoi(argv[2]), "after exec", 11, 0) != 0;
	signal(SIGPIPE, SIG_IGN);
	for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++)
		if (argc < 2 || !strcmp(argv[1], parts[i].name))
			parts[i].fn();
	return 0;
}
