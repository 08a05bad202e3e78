/* SPDX-License-Identifier: Apache-2.0 */
/* See strace_priv.h: the arguments of a call. */
#include "strace_priv.h"
#include <inttypes.h>
#include <string.h>
#include <sys/syscall.h>
#include "strace_names.h"

#define CPUSET_MAX 8192 /* bytes */

static void put_fcntl_arg(struct line *l, uint64_t v)
{
	switch ((int)l->arg[1]) {
	case F_SETFD:
		put_set(l, &ss_fdflag, v);
		break;
	case F_SETFL:
		put_set(l, &ss_open, v);
		break;
	case F_ADD_SEALS:
		put_set(l, &ss_seals, v);
		break;
	case F_SETSIG:
		put_sig(l, (unsigned)v);
		break;
	case F_GETLK:
	case F_OFD_GETLK:
		put_fixed(l, &fx_getlk, v);
		break;
	case F_SETLK:
	case F_SETLKW:
	case F_OFD_SETLK:
	case F_OFD_SETLKW:
		put_fixed(l, &fx_flock, v);
		break;
	case F_DUPFD:
	case F_DUPFD_CLOEXEC:
	case F_SETOWN:
	case F_SETPIPE_SZ:
	case F_SETLEASE:
	case F_NOTIFY:
		put(l, "%d", (int)v);
		break;
	default:
		put_hex(l, v);
	}
}

static void put_ioctl_arg(struct line *l, uint64_t v)
{
	bool ok = l->ret >= 0;

	switch ((unsigned)l->arg[1]) {
	case FIONBIO:
	case FIOASYNC:
	case TIOCSPGRP:
	case TIOCSPTLCK:
		put_fixed(l, &fx_i32, v);
		break;
	case FIONREAD:
	case TIOCOUTQ:
	case TIOCGPGRP:
	case TIOCGSID:
	case TIOCGPTN:
		if (ok)
			put_fixed(l, &fx_i32, v);
		else
			put_ptr(l, v);
		break;
	case TIOCGWINSZ:
	case TIOCSWINSZ:
		if (ok)
			put_fixed(l, &fx_winsize, v);
		else
			put_ptr(l, v);
		break;
	default:
		put_hex(l, v);
	}
}

static void put_optname(struct line *l, uint64_t v)
{
	static const struct {
		int level;
		const struct symset *set;
	} levels[] = { { 0, &ss_soip }, { SOL_SOCKET, &ss_so }, { 6, &ss_sotcp }, { 41, &ss_soip6 } };
	size_t i;

	for (i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
		if (levels[i].level == (int)l->arg[1]) {
			put_set(l, levels[i].set, v);
			return;
		}
	}
	put(l, "%d", (int)v);
}

static void put_opt(struct line *l, uint64_t gva, uint64_t len)
{
	if (len == 4)
		put_fixed(l, &fx_i32, gva);
	else
		put_data(l, gva, len);
}

/* The socklen_t at gva, 0 when it can't be read. */
static uint32_t socklen_at(uint64_t gva)
{
	uint32_t v = 0;

	return gva && !guest_read(&v, gva, 4) ? v : 0;
}

/* As much of the address as there was room for. */
static void put_sockaddr_out(struct line *l, int i)
{
	uint32_t len = i < 5 ? socklen_at(l->arg[i + 1]) : 0;
	const uint32_t *room = i < 5 ? was(l, i + 1, 4) : NULL;

	put_sockaddr(l, l->arg[i], room && *room < len ? *room : len);
}

static void put_futex_4(struct line *l, uint64_t v)
{
	switch (l->arg[1] & 0x7f) {
	case FUTEX_WAIT:
	case FUTEX_WAIT_BITSET:
	case FUTEX_LOCK_PI:
	case FUTEX_WAIT_REQUEUE_PI:
	case 13:
		put_fixed(l, &fx_timespec, v);
		break;
	case FUTEX_REQUEUE:
	case FUTEX_CMP_REQUEUE:
	case FUTEX_CMP_REQUEUE_PI:
	case FUTEX_WAKE_OP:
		put(l, "%d", (int)v);
		break;
	default:
		put_ptr(l, v);
	}
}

static void put_prctl_2(struct line *l, uint64_t v)
{
	switch ((int)l->arg[0]) {
	case PR_SET_NAME:
		put_str(l, v);
		break;
	case PR_GET_NAME:
		if (l->ret >= 0)
			put_str(l, v);
		else
			put_ptr(l, v);
		break;
	case PR_SET_PDEATHSIG:
		put_sig(l, (unsigned)v);
		break;
	case PR_GET_PDEATHSIG:
	case PR_GET_CHILD_SUBREAPER:
		put_fixed(l, &fx_i32, v);
		break;
	case PR_SET_DUMPABLE:
	case PR_SET_NO_NEW_PRIVS:
	case PR_SET_KEEPCAPS:
	case PR_CAPBSET_READ:
	case PR_SET_TIMERSLACK:
	case PR_SET_THP_DISABLE:
	case PR_SET_CHILD_SUBREAPER:
		put(l, "%" PRIu64, v);
		break;
	default:
		put_hex(l, v);
	}
}

/* pselect6's last argument: { const sigset_t *, size_t }. */
static void put_sigset_arg(struct line *l, uint64_t gva)
{
	uint64_t v[2];

	if (!gva || guest_read(v, gva, sizeof(v))) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "{sigmask=");
	put_fixed(l, &fx_sigset, v[0]);
	put(l, ", sigsetsize=%" PRIu64 "}", v[1]);
}

void put_special(struct line *l, const struct special *s, int i)
{
	uint64_t v = l->arg[i], n;
	bool ok = l->ret >= 0;

	switch ((enum how)s->how) {
	case H_SET:
		put_set(l, s->p, v);
		break;
	case H_OUT:
		/* wait4 that found no child to report writes no status */
		if (!ok || (l->nr == SYS_wait4 && !l->ret)) {
			put_ptr(l, v);
			break;
		}
		/* fall through */
	case H_IN:
		put_fixed(l, s->p, v);
		break;
	case H_OUT_RET:
		if (ok)
			put_fixed_array(l, s->p, v, (uint64_t)l->ret);
		else
			put_ptr(l, v);
		break;
	case H_HEX:
		put_hex(l, v);
		break;
	case H_FDSET:
		put_fdset_was(l, i);
		break;
	case H_WAS:
	case H_WAS_NOW: {
		const struct fixed *f = s->p;
		const void *p = was(l, i, f->size);

		if (!v || !p)
			put_fixed(l, f, v);
		else
			f->fn(l, p);
		if (v && p && ok && s->how == H_WAS_NOW) {
			puts_(l, " => ");
			put_fixed(l, f, v);
		}
		break;
	}
	case H_MMSG_IN:
	case H_MMSG_OUT:
		put_mmsgs(l, v, (uint32_t)l->arg[2], s->how == H_MMSG_OUT);
		break;
	case H_RANDOM:
		if (ok)
			put_bytes(l, v, (uint64_t)l->ret);
		else
			put_ptr(l, v);
		break;
	case H_ARGV:
		put_strings(l, v);
		break;
	case H_ENVIRON:
		put_environ(l, v);
		break;
	case H_POLLFDS:
		put_pollfds(l, v, (uint32_t)l->arg[1], false);
		break;
	case H_SOCKADDR:
		put_sockaddr(l, v, i < 5 ? (uint32_t)l->arg[i + 1] : 0);
		break;
	case H_SOCKADDR_OUT:
		if (ok)
			put_sockaddr_out(l, i);
		else
			put_ptr(l, v);
		break;
	case H_SOCKLEN: {
		const uint32_t *old = was(l, i, 4);

		if (v && ok && old && *old != socklen_at(v))
			put(l, "[%d => %d]", (int)*old, (int)socklen_at(v));
		else
			put_fixed(l, &fx_i32, v);
		break;
	}
	case H_MSG_IN:
	case H_MSG_OUT:
		put_msghdr(l, v, s->how == H_MSG_OUT);
		break;
	case H_DIRENTS:
		put_dirents(l, v);
		break;
	case H_CSTR:
		if (ok)
			put_str(l, v);
		else
			put_ptr(l, v);
		break;
	case H_SIGSET_ARG:
		put_sigset_arg(l, v);
		break;
	case H_FCNTL:
		put_fcntl_arg(l, v);
		break;
	case H_IOCTL:
		put_ioctl_arg(l, v);
		break;
	case H_FUTEX_4:
		put_futex_4(l, v);
		break;
	case H_PRCTL:
		put_prctl_2(l, v);
		break;
	case H_OPTNAME:
		put_optname(l, v);
		break;
	case H_OPT_IN:
		put_opt(l, v, (uint32_t)l->arg[4]);
		break;
	case H_OPT_OUT:
		if (ok)
			put_opt(l, v, socklen_at(l->arg[4]));
		else
			put_ptr(l, v);
		break;
	case H_MKNOD:
		put_mode(l, (unsigned)v);
		break;
	case H_PROTO:
		if (l->arg[0] == AF_INET || l->arg[0] == AF_INET6)
			put_set(l, &ss_ipproto, v);
		else
			put(l, "%d", (int)v);
		break;
	case H_CPUSET:
		n = l->nr == SYS_sched_getaffinity ? (uint64_t)l->ret : l->arg[1];
		if (!ok || n > CPUSET_MAX)
			put_ptr(l, v);
		else
			put_fdset(l, v, 8 * (int)n);
		break;
	case H_ARCH:
		if (ok && (l->arg[0] == ARCH_GET_FS || l->arg[0] == ARCH_GET_GS))
			put_fixed(l, &fx_addr, v);
		else
			put_ptr(l, v);
		break;
	}
}

void put_by_kind(struct line *l, const struct kx_arg_desc *d, int i)
{
	uint64_t v = l->arg[i], n;
	const struct symset *set;

	switch ((enum kx_arg_kind)d->kind) {
	case KX_A_NONE:
		break;
	case KX_A_FD:
	case KX_A_ATFD:
	case KX_A_FDN:
	case KX_A_FDNEW:
		if (d->kind == KX_A_ATFD)
			put_fd(l, (int)v);
		else
			put(l, "%d", (int)v);
		break;
	case KX_A_PATH:
	case KX_A_PATHE:
	case KX_A_PATHO:
	case KX_A_STR:
		put_str(l, v);
		break;
	case KX_A_IN:
		put_data(l, v, l->arg[d->aux]);
		break;
	case KX_A_OUT:
		n = l->arg[d->aux];
		if (l->ret >= 0)
			put_data(l, v, (uint64_t)l->ret < n ? (uint64_t)l->ret : n);
		else
			put_ptr(l, v);
		break;
	case KX_A_IOVI:
	case KX_A_IOVO:
		n = d->kind == KX_A_IOVI ? ~0ull : l->ret < 0 ? 0 : (uint64_t)l->ret;
		put_iovec(l, v, l->arg[d->aux], n);
		break;
	case KX_A_INS:
	case KX_A_OUTS:
	case KX_A_INOUTS:
	case KX_A_INSO:
	case KX_A_OUTSO:
	case KX_A_INOUTSO:
	case KX_A_PTR:
	case KX_A_ADDR:
		put_ptr(l, v);
		break;
	case KX_A_INT:
		put(l, "%d", (int)v);
		break;
	case KX_A_UINT:
		put(l, "%u", (unsigned)v);
		break;
	case KX_A_SIZE:
		put(l, "%" PRIu64, v);
		break;
	case KX_A_OFF:
		put(l, "%" PRId64, (int64_t)v);
		break;
	case KX_A_MODE:
		put(l, "%#03o", (unsigned)v);
		break;
	case KX_A_SIG:
		put_sig(l, (unsigned)v);
		break;
	case KX_A_FLAGS:
		set = set_find(d->set);
		if (l->nr == SYS_clone)
			put_clone_flags(l, v);
		else if (set)
			put_set(l, set, v);
		else
			put_hex(l, v);
		break;
	}
}

/* How many arguments this call uses: some depend on others. */
int args_used(const struct line *l)
{
	const uint64_t *a = l->arg;
	int n = 0;

	while (n < 6 && l->row->arg[n].kind != KX_A_NONE)
		n++;
	switch (l->nr) {
	case SYS_open:
	case SYS_mq_open:
		if (!(a[1] & (O_CREAT | 020000000)))
			return 2;
		break;
	case SYS_openat:
		return a[2] & (O_CREAT | 020000000) ? 4 : 3;
	case SYS_preadv:
	case SYS_pwritev:
		return 4; /* the upper half of the offset means nothing */
	case SYS_mremap:
		return a[3] & MREMAP_FIXED ? 5 : 4;
	case SYS_fcntl:
		switch ((int)a[1]) {
		case F_GETFD:
		case F_GETFL:
		case F_GETOWN:
		case F_GETSIG:
		case F_GETLEASE:
		case F_GETPIPE_SZ:
		case F_GET_SEALS:
			return 2;
		}
		break;
	case SYS_prctl:
		switch ((int)a[0]) {
		case PR_GET_DUMPABLE:
		case PR_GET_KEEPCAPS:
		case PR_GET_SECCOMP:
		case PR_GET_SECUREBITS:
		case PR_GET_TIMERSLACK:
			return 1;
		case PR_SET_NAME:
		case PR_GET_NAME:
		case PR_SET_PDEATHSIG:
		case PR_GET_PDEATHSIG:
		case PR_SET_DUMPABLE:
		case PR_SET_KEEPCAPS:
		case PR_CAPBSET_READ:
		case PR_CAPBSET_DROP:
		case PR_SET_SECUREBITS:
		case PR_SET_TIMERSLACK:
		case PR_SET_CHILD_SUBREAPER:
		case PR_GET_CHILD_SUBREAPER:
		case PR_GET_TID_ADDRESS:
			return 2;
		}
		break;
	case SYS_futex:
		switch (a[1] & 0x7f) {
		case FUTEX_WAKE:
			return 3;
		case FUTEX_WAIT:
		case FUTEX_LOCK_PI:
		case 13:
			return 4;
		case FUTEX_UNLOCK_PI:
		case FUTEX_TRYLOCK_PI:
			return 2;
		case FUTEX_REQUEUE:
		case FUTEX_WAIT_REQUEUE_PI:
			return 5;
		}
		break;
	}
	return n;
}
