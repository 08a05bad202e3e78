/* SPDX-License-Identifier: Apache-2.0 */
/*
 * See strace.h and, for what prints, strace_priv.h. Arguments are printed by their kind in hypercalls.def; where that
 * says less than strace(1) does, a row of strace_table.c names the symbol set or the decoder. Whatever can't be read is
 * printed as an address.
 */
#include "strace.h"
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/syscall.h>
#include "strace_names.h"
#include "strace_priv.h"

/* Arguments as they were before the call. */
static __thread struct {
	uint64_t nr; /* ~0: none */
	uint16_t len[6];
	_Alignas(16) uint8_t v[6][BEFORE_MAX];
} before = { .nr = ~0ull };

bool strace_show_time;

const void *was(const struct line *l, int i, unsigned len)
{
	return before.nr == l->nr && before.len[i] >= len ? before.v[i] : NULL;
}

/* ---- Results -------------------------------------------------------------------------------------------- */

static void put_select_note(struct line *l)
{
	static const char *const names[] = { "in", "out", "except" };
	const int n = (int)l->arg[0];
	const char *sep = " (";
	uint8_t set[BEFORE_MAX];

	if (!l->ret) {
		puts_(l, " (Timeout)");
		return;
	}
	for (int i = 0; i < 3; i++) {
		bool any = false;

		if (!l->arg[i + 1] || n <= 0 || n > 8 * BEFORE_MAX ||
		    guest_read(set, l->arg[i + 1], ((unsigned)n + 63) / 64 * 8))
			continue;
		for (int k = 0; k < n; k++)
			any = any || set[k / 8] >> (k % 8) & 1;
		if (!any)
			continue;
		put(l, "%s%s ", sep, names[i]);
		put_bits(l, set, n);
		sep = ", ";
	}
	if (l->arg[4]) {
		put(l, "%sleft ", sep);
		put_fixed(l, l->nr == SYS_select ? &fx_timeval : &fx_timespec, l->arg[4]);
		sep = ", ";
	}
	puts_(l, *sep == ',' ? ")" : "");
}

/* What came back through the arguments, and what the number means. */
static void put_result_note(struct line *l)
{
	int32_t tid;
	uint64_t v;

	switch (l->nr) {
	case SYS_poll:
	case SYS_ppoll:
		if (!l->ret) {
			puts_(l, " (Timeout)");
		} else {
			puts_(l, " (");
			put_pollfds(l, l->arg[0], (uint32_t)l->arg[1], true);
			if (l->nr == SYS_ppoll && l->arg[2]) {
				puts_(l, ", left ");
				put_fixed(l, &fx_timespec, l->arg[2]);
			}
			puts_(l, ")");
		}
		break;
	case SYS_select:
	case SYS_pselect6:
		put_select_note(l);
		break;
	case SYS_fcntl:
		if (l->arg[1] == F_GETFL || (l->arg[1] == F_GETFD && l->ret)) {
			puts_(l, " (flags ");
			put_set(l, l->arg[1] == F_GETFL ? &ss_open : &ss_fdflag, (uint64_t)l->ret);
			puts_(l, ")");
		}
		break;
	case SYS_rt_sigtimedwait:
		puts_(l, " (");
		put_sig(l, (unsigned)l->ret);
		puts_(l, ")");
		break;
	case SYS_clone3:
		/* struct clone_args: flags at 0, parent_tid at 24 */
		if (!guest_read(&v, l->arg[0], 8) && (v & CLONE_PARENT_SETTID) && !guest_read(&v, l->arg[0] + 24, 8) &&
		    !guest_read(&tid, v, 4))
			put(l, " => {parent_tid=[%d]}", tid);
		break;
	}
}

static void put_ret(struct line *l)
{
	const char *name;

	if (l->ret == -KX_ERESTART) {
		puts_(l, "? ERESTARTSYS (To be restarted if SA_RESTART is set)");
	} else if (l->ret == -KX_ERESTART_ALWAYS) {
		puts_(l, "? ERESTARTNOINTR (To be restarted)");
	} else if (l->ret == -KX_ERESTART_NOHAND) {
		puts_(l, "? ERESTARTNOHAND (To be restarted if no handler)");
	} else if (l->ret < 0 && l->ret >= -4095) {
		name = strerrorname_np((int)-l->ret);
		if (name)
			put(l, "-1 %s (%s)", name, strerrordesc_np((int)-l->ret));
		else
			put(l, "-1 (errno %d)", (int)-l->ret);
	} else {
		switch (l->nr) {
		case SYS_mmap:
		case SYS_brk:
		case SYS_mremap:
		case SYS_shmat:
			put(l, "%#" PRIx64, (uint64_t)l->ret);
			break;
		case SYS_umask:
			put(l, "%#03o", (unsigned)l->ret);
			break;
		case SYS_fcntl:
			put(l, l->arg[1] == F_GETFL || l->arg[1] == F_GETFD ? "%#" PRIx64 : "%" PRId64, l->ret);
			break;
		default:
			put(l, "%" PRId64, l->ret);
		}
		put_result_note(l);
	}
}

/* ---- Interface ------------------------------------------------------------------------------------------ */

const char *strace_call_name(uint64_t nr)
{
	const struct hc_row *row = hc_row_find(nr);
	const struct sym *s;

	if (row)
		return row->name;
	for (s = st_rowless; *s->name; s++)
		if (s->v == nr)
			return s->name;
	return NULL;
}

/* strace(1)'s order and names. */
static void put_clone(struct line *l)
{
	const uint64_t *a = l->arg;
	int32_t tid;

	puts_(l, "child_stack=");
	put_ptr(l, a[1]);
	puts_(l, ", flags=");
	put_clone_flags(l, a[0]);
	if (a[0] & CLONE_PARENT_SETTID) {
		if (l->ret >= 0 && !guest_read(&tid, a[2], 4))
			put(l, ", parent_tid=[%d]", tid);
		else
			put(l, ", parent_tid=%#" PRIx64, a[2]);
	}
	if (a[0] & CLONE_SETTLS)
		put(l, ", tls=%#" PRIx64, a[4]);
	if (a[0] & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID))
		put(l, ", child_tidptr=%#" PRIx64, a[3]);
}

void strace_before(uint64_t nr, const uint64_t arg[6])
{
	static const struct {
		uint16_t nr;
		uint8_t arg, len; /* 0: a set of arg[0] descriptors */
		uint8_t at;
	} kept[] = {
		{ SYS_select, 1, 0, 0 },          { SYS_select, 2, 0, 0 },          { SYS_select, 3, 0, 0 },
		{ SYS_select, 4, 16, 0 },         { SYS_pselect6, 1, 0, 0 },        { SYS_pselect6, 2, 0, 0 },
		{ SYS_pselect6, 3, 0, 0 },        { SYS_pselect6, 4, 16, 0 },       { SYS_ppoll, 2, 16, 0 },
		{ SYS_sendfile, 2, 8, 0 },        { SYS_splice, 1, 8, 0 },          { SYS_splice, 3, 8, 0 },
		{ SYS_copy_file_range, 1, 8, 0 }, { SYS_copy_file_range, 3, 8, 0 }, { SYS_accept, 2, 4, 0 },
		{ SYS_accept4, 2, 4, 0 },         { SYS_getsockname, 2, 4, 0 },     { SYS_getpeername, 2, 4, 0 },
		{ SYS_recvfrom, 5, 4, 0 },        { SYS_getsockopt, 4, 4, 0 },      { SYS_recvmsg, 1, 4, 8 },
	};
	before.nr = nr;
	memset(before.len, 0, sizeof(before.len));
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++) {
		int a = kept[i].arg;
		uint64_t len = kept[i].len ? kept[i].len : ((uint32_t)arg[0] + 63ull) / 64 * 8;

		if (kept[i].nr == nr && arg[a] && len <= BEFORE_MAX &&
		    !guest_read(before.v[a], arg[a] + kept[i].at, len))
			before.len[a] = (uint16_t)len;
	}
}

void strace_call(struct thread *t, const struct hc_row *row, uint64_t nr, const uint64_t arg[6], int64_t ret, int path,
		 uint64_t ns)
{
	static const char *const marks[] = { "libos", "monitor", "slow", "poll" };
	const struct special *s;
	const char *name;
	int saved = errno, i, n;
	struct line l;

	if (strace_fd() < 0)
		return;
	line_start(&l, t);
	l.row = row;
	l.nr = nr;
	l.arg = arg;
	l.ret = ret;
	name = row ? row->name : strace_call_name(nr);
	if (name)
		put(&l, "%s(", name);
	else
		put(&l, "syscall_%#" PRIx64 "(", nr);
	n = row ? args_used(&l) : 6;
	if (row && nr == SYS_clone) {
		put_clone(&l);
		n = 0;
	}
	for (i = 0; i < n; i++) {
		if (i == 4 && (nr == SYS_preadv2 || nr == SYS_pwritev2))
			continue; /* the upper half of the offset means nothing */
		puts_(&l, i ? ", " : "");
		s = row ? special_find(nr, i) : NULL;
		if (!row)
			put_hex(&l, arg[i]);
		else if (s)
			put_special(&l, s, i);
		else
			put_by_kind(&l, &row->arg[i], i);
	}
	line_tail(&l);
	puts_(&l, ") = ");
	if (row && (nr == SYS_exit || nr == SYS_exit_group)) {
		puts_(&l, "?");
	} else {
		put_ret(&l);
		l.limit = sizeof(l.buf) - 1;
		if (strace_show_time)
			put(&l, " <%" PRIu64 ".%06" PRIu64 ">", ns / 1000000000, ns / 1000 % 1000000);
		put(&l, " <%s>", marks[path >= 0 && path < 4 ? path : KX_PATH_MONITOR]);
	}
	line_end(&l);
	before.nr = ~0ull;
	errno = saved;
}

void strace_start(struct thread *t, const char *path, char *const *argv, uint64_t env_gva, unsigned nr_env)
{
	int saved = errno, i;
	struct line l;

	if (strace_fd() < 0)
		return;
	line_start(&l, t);
	puts_(&l, "execve(");
	put_chars(&l, path, PATH_SHOWN);
	puts_(&l, ", [");
	for (i = 0; argv[i] && i < ELEMS_SHOWN; i++) {
		puts_(&l, i ? ", " : "");
		put_chars(&l, argv[i], DATA_SHOWN);
		puts_(&l, strlen(argv[i]) > DATA_SHOWN ? "..." : "");
	}
	puts_(&l, argv[i] ? ", ...], " : "], ");
	put_count(&l, env_gva, nr_env);
	line_tail(&l);
	puts_(&l, ") = 0 <monitor>");
	line_end(&l);
	errno = saved;
}

void strace_signal(struct thread *t, int signo, const siginfo_t *si)
{
	int saved = errno;
	struct line l;

	if (strace_fd() < 0)
		return;
	line_start(&l, t);
	puts_(&l, "--- ");
	put_sig(&l, (unsigned)signo);
	if (si) {
		puts_(&l, " ");
		put_siginfo(&l, signo, si);
	}
	puts_(&l, " ---");
	line_end(&l);
	errno = saved;
}

void strace_exit(const char *how)
{
	int saved = errno;
	struct line l;

	if (strace_fd() < 0)
		return;
	line_start(&l, self);
	put(&l, "+++ %s +++", how);
	line_end(&l);
	errno = saved;
}
