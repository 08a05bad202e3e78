/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The parts of --strace, for strace*.c alone:
 *
 *	strace_line.c   the line that is made, and the numbers, symbols and strings in it; where lines go
 *	strace_fixed.c  structures of fixed size
 *	strace_array.c  arrays, and structures of variable size
 *	strace_table.c  which arguments are more than their kind in hypercalls.def says
 *	strace_args.c   one argument, by that table or by its kind
 *	strace.c        results, and the interface
 *
 * put_*() append to the line and cut it when it is full. What is at a guest's address they read in bounded copies, and
 * show the address when it can't be read.
 */
#ifndef KX_STRACE_PRIV_H
#define KX_STRACE_PRIV_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "strace.h"

#define DATA_SHOWN 32  /* bytes of a buffer */
#define ELEMS_SHOWN 32 /* elements of an array */
#define PATH_SHOWN 4096
#define BEFORE_MAX 128 /* bytes of an argument that are kept from before the call */

struct sym;
struct symset;

struct line {
	const struct hc_row *row;
	uint64_t nr;
	const uint64_t *arg;
	int64_t ret;
	size_t len, limit;
	bool cut;
	char buf[8192];
};

/* strace_line.c */
void line_start(struct line *l, struct thread *t);
void line_tail(struct line *l);
void line_end(struct line *l);
void emit(struct line *l, const char *s, size_t n);
void puts_(struct line *l, const char *s);
__attribute__((format(printf, 2, 3))) void put(struct line *l, const char *fmt, ...);
void put_ptr(struct line *l, uint64_t v);
void put_hex(struct line *l, uint64_t v);
void put_set(struct line *l, const struct symset *set, uint64_t v);
void put_sig(struct line *l, unsigned sig);
void put_sigabbrev(struct line *l, unsigned sig);
void put_mode(struct line *l, unsigned mode);
void put_fd(struct line *l, int fd);
void put_clone_flags(struct line *l, uint64_t v);
void put_escaped(struct line *l, const uint8_t *b, size_t n, bool next);
void put_data(struct line *l, uint64_t gva, uint64_t n);
void put_bytes(struct line *l, uint64_t gva, uint64_t n);
void put_str(struct line *l, uint64_t gva);
void put_str_short(struct line *l, uint64_t gva);
void put_chars(struct line *l, const char *s, size_t max);

/* strace_fixed.c */
struct fixed {
	unsigned size;
	void (*fn)(struct line *l, const void *p); /* p: a copy of these bytes */
};

extern const struct fixed fx_i32, fx_u64, fx_addr, fx_two_fds, fx_timespec, fx_timespec2, fx_timeval, fx_timeval2,
	fx_itimerspec, fx_itimerval, fx_stat, fx_statx, fx_sigset, fx_sigaction, fx_altstack, fx_rlimit, fx_rusage,
	fx_wstatus, fx_epoll_event, fx_utsname, fx_sysinfo, fx_clone_args, fx_open_how, fx_flock, fx_getlk, fx_winsize,
	fx_siginfo;
void put_fixed(struct line *l, const struct fixed *f, uint64_t gva);
void put_siginfo(struct line *l, int signo, const siginfo_t *si);

/* strace_array.c */
void put_fixed_array(struct line *l, const struct fixed *f, uint64_t gva, uint64_t n);
void put_pollfds(struct line *l, uint64_t gva, uint64_t n, bool result);
int put_bits(struct line *l, const uint8_t *set, int n);
void put_fdset(struct line *l, uint64_t gva, int nfds);
void put_fdset_was(struct line *l, int i);
void put_iovec(struct line *l, uint64_t gva, uint64_t n, uint64_t have);
void put_strings(struct line *l, uint64_t gva);
void put_count(struct line *l, uint64_t gva, uint64_t n);
void put_environ(struct line *l, uint64_t gva);
void put_sockaddr(struct line *l, uint64_t gva, uint64_t len);
void put_msghdr(struct line *l, uint64_t gva, bool written);
void put_mmsgs(struct line *l, uint64_t gva, uint64_t n, bool written);
void put_dirents(struct line *l, uint64_t gva);

/* strace_table.c */
enum how {
	H_SET,     /* a symbol set */
	H_IN,      /* a fixed structure that the call reads */
	H_OUT,     /* the same that it writes: shown after success */
	H_OUT_RET, /* array of them; the result counts */
	H_HEX,
	H_FDSET,
	H_POLLFDS,
	H_SOCKADDR,
	H_SOCKADDR_OUT,
	H_SOCKLEN,
	H_MSG_IN,
	H_MSG_OUT,
	H_DIRENTS,
	H_CSTR,
	H_SIGSET_ARG,
	H_FCNTL,
	H_IOCTL,
	H_FUTEX_4,
	H_PRCTL,
	H_OPTNAME,
	H_OPT_OUT,
	H_OPT_IN,
	H_MKNOD,
	H_ARCH,
	H_PROTO,
	H_CPUSET,
	H_WAS,     /* a fixed structure that the call changes, as it was */
	H_WAS_NOW, /* and as it became */
	H_MMSG_IN,
	H_MMSG_OUT,
	H_ARGV,
	H_ENVIRON,
	H_RANDOM,
};

struct special {
	uint16_t nr;
	uint8_t arg, how;
	const void *p; /* struct symset or struct fixed */
};

const struct special *special_find(uint64_t nr, int arg);
const struct symset *set_find(const char *name);

/* strace_args.c */
int args_used(const struct line *l);
void put_special(struct line *l, const struct special *s, int i);
void put_by_kind(struct line *l, const struct kx_arg_desc *d, int i);

/* strace.c: len bytes of argument i as they were before the call; NULL: not kept. */
const void *was(const struct line *l, int i, unsigned len);
#endif
