/* SPDX-License-Identifier: Apache-2.0 */
/* A member's part in an update of several at once (update.h). */
#include "update_priv.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "../../util/now.h"

#define ROUND_LOOK_NS 20000000
#define FORKS_NS 3000000000ll /* how long forks wait for the others of a round to be prepared */

uint32_t round_now(const struct job *j) { return __atomic_load_n(j->round, __ATOMIC_SEQ_CST); }

int round_map(struct job *j, int fd)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || (seals & ROUND_SEALS) != ROUND_SEALS || fstat(fd, &st) || st.st_size != ROUND_BYTES)
		return -EINVAL;
	void *p = mmap(NULL, ROUND_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	j->round = p;
	j->round_nr = round_now(j) >> 2; /* that one is not ours */
	return 0;
}

void round_say(struct job *j, unsigned kind, const char *fmt, ...)
{
	va_list ap;
	va_start(ap, fmt);
	job_reply(j, kind, 0, 0, fmt, ap);
	va_end(ap);
}

/* Until the next one begins. Forks wait meanwhile, for a while: else a family that grows all the time would never have been
 * asked as a whole. False: none will begin. */
bool round_begins(struct job *j, uint64_t limit)
{
	round_say(j, UPDATE_PREPARED, "%s", j->where);
	uint64_t held_until = now_ns() + FORKS_NS;
	for (uint32_t w; (w = round_now(j)) != ROUND_OVER && now_ns() < limit && !job_asker_is_gone(j->reply);) {
		bool new = w >> 2 != j->round_nr;
		j->round_nr = w >> 2;
		if (new && (w & 3) == ROUND_GO)
			return true;
		if (new && (w & 3) == ROUND_BACK) /* it was over before this one woke */
			round_say(j, UPDATE_PREPARED, "%s", j->where);
		update_close_closed();
		bool open = now_ns() > held_until;
		if (open)
			pthread_mutex_unlock(&update_lock);
		futex_wait((volatile int *)j->round, (int)w, ROUND_LOOK_NS);
		if (open)
			pthread_mutex_lock(&update_lock);
	}
	return false;
}

/* All stand and the change is made: is it in all others? */
bool round_verdict(struct job *j)
{
	uint32_t go = ROUND_WORD(j->round_nr, ROUND_GO), w;
	uint64_t end = now_ns() + j->hold_ns, now;
	round_say(j, UPDATE_READY, "ready");
	while ((w = round_now(j)) == go) {
		if ((now = now_ns()) < end)
			futex_wait((volatile int *)j->round, (int)go, (long)(end - now));
		else if (__atomic_compare_exchange_n(j->round, &go, ROUND_WORD(j->round_nr, ROUND_BACK), false,
						     __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			futex_wake((volatile int *)j->round);
	}
	return w == ROUND_WORD(j->round_nr, ROUND_COMMIT);
}
