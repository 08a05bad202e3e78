/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx update: what updates of one pVM and of several at once share. */
#ifndef KX_CLI_UPDATE_H
#define KX_CLI_UPDATE_H
#include "../monitor/core/update.h"
#include "families.h"

struct update_options {
	bool all, at_once;
	unsigned flags, timeout_ms;
	int file, signature; /* -1: it is not signed */
};

long long update_now_ms(void);
/* A line of standard output. Where it can't be written, that is the command's error once all is done: nothing is undone for it. */
__attribute__((format(printf, 1, 2))) void update_tell(const char *fmt, ...);
/* Text of a pVM's: of any bytes. */
void update_clean(char *s, size_t size);
/* Does the family's build understand this one? Else an error, in err. */
int update_speaks(const struct family *f, pid_t pid, struct kx_err *err);
/* It can't be asked, for that errno: -e, and err says what helps. */
int update_unreached(struct kx_err *err, pid_t pid, int e);
struct update_request update_request(pid_t pid, unsigned flags, unsigned timeout_ms);
/* The next reply, which poll(2) has told of. -ECONNRESET: it is gone. */
int update_hear(int sock, struct update_reply *a);
/*
 * Send q until q->pid itself has it, poke that until it answers, and print what it says until its last word, or one of that
 * kind. 0 with *last, or -errno; *replies, -1 = none, is where more comes from, the caller's. round: the page of a round,
 * -1 = none; table: the family's, where it is told that nobody can serve (-1: then it is not seen).
 */
int update_ask(int sock, int pidfd, int proc, int table, const struct update_request *q, const struct update_options *o,
	       int round, unsigned kind, long long limit_ms, int *replies, struct update_reply *last);
/* All members of the family that have the library, at one moment or none. who: as families_find() takes it. */
int update_at_once(const char *who, const struct update_options *o, struct kx_err *err);
#endif
