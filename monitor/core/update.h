/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Online update of a shared library: a request from the host (`kylinx update`), a thread of the monitor's that serves
 * it, and the point at which no thread is in the guest.
 *
 * How a request comes in. A family has a pair of sockets, made before the jail and inherited by all members, far out
 * of the guest's reach. The command takes one end from the process that it wants (pidfd_getfd(2), which only its user
 * may do), sends a request with two descriptors, the new library and a socket for the answer, and pokes that process
 * with a signal. The first poke starts the service thread, with a table of descriptors of its own. A member that was
 * taken over can eat requests, answer with any text, and no more: what it gets is open for reading, and what it says is
 * printed, never believed.
 *
 * How it stops the guest. Before a vCPU runs, its thread passes update_gate(): while a stop is asked for, it waits
 * there. Whoever is in the guest is sent out by a signal; who is in a call stays in it, since its way back leads
 * through the gate. Nobody is interrupted in a call.
 *
 * Lock: update's own comes before pvm.mm_lock; fork takes it (fork.c), so that no child is made halfway.
 */
#ifndef KX_UPDATE_H
#define KX_UPDATE_H
#include <stddef.h>
#include "../../util/build.h"
#include "hcall.h"

#define UPDATE_MAGIC 0x3250554158594c4bull /* of a request, and what the signal carries */
#define UPDATE_LINE 1000
/*
 * The protocol's version, and the oldest that this build speaks, on either side. Two builds understand each other when
 * neither is older than what the other one speaks. What comes first in a request and in a reply never changes; what a
 * version adds to a request comes behind that, and older ones don't read it; a flag that a pVM doesn't know it refuses.
 * Version 2 had no numbers: 0 stands for it.
 */
#define UPDATE_PROTOCOL 3u
#define UPDATE_OLDEST 2u
#define UPDATE_UNNUMBERED 2u
#define UPDATE_DRY_RUN 1u
#define UPDATE_RESET 2u
#define UPDATE_ROUND 4u /* of several at once: the third descriptor is the round's */
#define UPDATE_FLAGS 7u /* all that there are */

struct update_request {
	uint64_t magic;
	uint32_t pid, flags;
	uint32_t timeout_ms;
	uint16_t protocol, oldest;
	/* From version 3 on: */
	char build[BUILD_NAME];
};
#define UPDATE_REQUEST_MIN offsetof(struct update_request, build)
/* Answers: any number of lines, then one that is last. Those of a round (below): between them. */
enum { UPDATE_SAYS, UPDATE_LAST, UPDATE_TAKEN, UPDATE_PREPARED, UPDATE_READY };
struct update_reply {
	uint32_t kind, error; /* error: of the last, an errno; 0 = done */
	uint32_t round;       /* the last one that it has seen */
	uint16_t protocol, oldest;
	uint64_t pause_ns;
	uint64_t forks;         /* that this process has made or tried, ever */
	char text[UPDATE_LINE]; /* NUL-terminated, of any bytes */
};

/*
 * Several at once. The command makes a page that all of them map, with one word: the number of a round, and where that
 * is. Each one says that it has taken the request and when it is prepared. In a round each stops, looks, makes the
 * change, and stands: UPDATE_READY. The command ends the round with COMMIT when all are, and any of them with BACK when
 * it has stood too long, by compare and exchange: so there is one verdict, which all follow, whoever dies meanwhile. After
 * BACK they change back and go on, and say that they are prepared for the next round. A page that could become shorter
 * is not taken. A member that was taken over can end rounds, either way; it can do no more than in an update of its own.
 */
#define ROUND_OVER 0xffffffffu
enum { ROUND_WAITS, ROUND_GO, ROUND_COMMIT, ROUND_BACK };
#define ROUND_WORD(n, state) ((n) << 2 | (state))
#define ROUND_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/*
 * A member that is poked and can't serve (no thread for it, no memory, no descriptor for the answer) drops what requests there are,
 * and says why in a word of the family's table: its pid, an errno, and a count, so that it is another one each time.
 */
#define UNSERVED_PID(w) ((pid_t)((w)&0x3fffff))
#define UNSERVED_ERROR(w) ((int)((w) >> 22 & 0x3ff))
#define UNSERVED_NEXT(w, pid, error) ((((w) >> 32) + 1) << 32 | (uint64_t)(error) << 22 | (uint64_t)(pid))
/* What an update was refused for, and what helps. */
const char *update_why(int error);

/* Do a build of that version, which speaks `oldest` and later ones, and this one understand each other? */
static inline bool update_understood(unsigned protocol, unsigned oldest)
{
	return (protocol ? protocol : UPDATE_UNNUMBERED) >= UPDATE_OLDEST && oldest <= UPDATE_PROTOCOL;
}

/* Make the sockets; or take over those of exec or of a member (-1: none, this pVM can't be updated). */
void update_init(void);
void update_adopt(int host_end, int own_end);
/* The end for the host and the monitor's own, -1 = none. */
int update_fd(int which);

/* ---- the gate ------------------------------------------------------------------------------------------------------ */
extern volatile int update_stop;
extern struct thread *volatile update_runner; /* may pass all the same */
void update_park(struct thread *t);
/*
 * For the end of the process: no thread but me, which has left the guest, enters it from here on. False: not all others
 * stand after two seconds.
 */
bool update_stop_for_good(struct thread *me);
/* Its registers, or its frame, are the program's: it waits at the gate or is in a call. */
bool update_stands(struct thread *t);
/* On the way into the guest. True: it has waited, and has to look again at what there is to do. */
static inline bool update_gate(struct thread *t)
{
	__atomic_store_n(&t->gate, GATE_GUEST, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&update_stop, __ATOMIC_SEQ_CST) || __atomic_load_n(&update_runner, __ATOMIC_SEQ_CST) == t)
		return false;
	update_park(t);
	return true;
}
/* Out of the guest, the registers are read. */
static inline void update_left(struct thread *t) { __atomic_store_n(&t->gate, GATE_MONITOR, __ATOMIC_SEQ_CST); }

/* ---- calls of functions in the guest ---------------------------------------------------------------------------------- */
/* On the way into the guest, or in a call that was interrupted: if t is to run functions for an update, it does, and
 * stands where it stood before. True: it did. */
bool update_call_run(struct thread *t);
extern struct thread *volatile update_caller;
static inline bool update_call(struct thread *t)
{
	return __atomic_load_n(&update_caller, __ATOMIC_SEQ_CST) == t && update_call_run(t);
}
/* KX_PORT_RETURN. False: nothing was called. */
bool update_returned(struct thread *t);

/* In the signal handler: is it the host's poke? Then it is noted. */
bool update_is_poke(const siginfo_t *info);
/* In a vCPU's thread, outside of the handler: start the service thread if a poke asks for it. True: it did. */
bool update_poked(void);

/* The process has closed one of the monitor's descriptors: the service thread has it in a table of its own. */
void update_fd_closed(int fd);

bool pipe_poked(void); /* pipe.h */

/* A call that sleeps was interrupted, and no lock is held. Was it by nothing that the program may see? Then what an update
 * wants of t has been done, and the call goes on. */
static inline bool update_goes_on(struct thread *t)
{
	if (t->sig_stop)
		return false;
	t->kicked = 0;
	update_call(t);
	update_poked();
	pipe_poked();
	return !t->sig_stop;
}

/* Around a fork, and in the child. */
void update_fork_prepare(void);
void update_fork_done(void);
void update_fork_child(void);
#endif
