/* SPDX-License-Identifier: Apache-2.0 */
#include "gmem_warm.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include "../../util/now.h"
#include "gmem_priv.h"
#include "hcall.h"
#include "keeper.h"

#define PIECES_MAX 192
/* Of the program; and of a library: of larger ones little is used. A page is copied in less than 1 us. */
#define PIECE_MAX (4 * MiB)
#define PIECE_LIBRARY (1600ull << 10)
#define TOTAL_MAX (16 * MiB)
#define LASTS_NS 2000000000ull
#define STRUCT_MAX 4096 /* more than any structure that the calls below fill in */

/* Under pvm.mm_lock, as all here. */
static struct piece {
	uint64_t start, end;
	bool text;
} piece[PIECES_MAX];
static unsigned nr_pieces;
static uint64_t total, since;
static bool forbidden;
bool gmem_warm_any, gmem_warm_of_library;

/* ---- making and ending ------------------------------------------------------------------------------------------------ */

/* The family's copy of a text at [start, end), in the way that prot and flags say. */
static bool text_again(uint64_t start, uint64_t end, int prot, int flags)
{
	const struct text_map *m = text_map_find(start);
	int fd = m ? text_open(m->text) : -1;
	if (fd < 0)
		return false;
	bool ok = mmap(gva_ptr(start), end - start, prot, flags | MAP_FIXED, fd,
		       (off_t)(m->text->at + (start - m->start))) != MAP_FAILED;
	text_close(m->text, fd);
	return ok;
}

static void piece_end(struct piece p)
{
	uint64_t len = p.end - p.start;
	if (p.text && text_again(p.start, p.end, PROT_READ, MAP_SHARED))
		return;
	if (mprotect(gva_ptr(p.start), len, PROT_READ))
		pvm_panic("no memory to protect a text"); /* a call could write to it */
	madvise(gva_ptr(p.start), len, MADV_DONTNEED);
}

static void end_all(void)
{
	for (unsigned i = 0; i < nr_pieces; i++) {
		struct piece p = piece[i];
		while (!p.text && i + 1 < nr_pieces && !piece[i + 1].text && piece[i + 1].start == p.end)
			p.end = piece[++i].end;
		piece_end(p);
	}
	nr_pieces = 0;
	total = 0;
	gmem_warm_any = false;
}

bool gmem_warm_begin(uint64_t start, uint64_t end, bool text)
{
	uint64_t len = end - start;
	unsigned at = nr_pieces;
	for (unsigned i = 0; i < nr_pieces; i++)
		if (piece[i].start <= start && end <= piece[i].end)
			return true;
	if (!pvm.shadow_paging || len > (gmem_warm_of_library || (self && self->hcall) ? PIECE_LIBRARY : PIECE_MAX))
		return false;
	if (forbidden || pvm.nr_threads > 1 || my_tid() != pvm.pid || nr_pieces == PIECES_MAX ||
	    len > TOTAL_MAX - total)
		return false;
	if (text ? !text_again(start, end, PROT_READ | PROT_WRITE, MAP_PRIVATE)
		 : mprotect(gva_ptr(start), len, PROT_READ | PROT_WRITE) != 0)
		return false;
	const struct piece p = { start, end, text };
	if (madvise(gva_ptr(start), len, MADV_POPULATE_WRITE)) { /* the file is shorter; or before Linux 5.14 */
		piece_end(p);
		return false;
	}
	for (; at && piece[at - 1].start > start; at--)
		piece[at] = piece[at - 1];
	piece[at] = p;
	nr_pieces++;
	total += len;
	if (nr_pieces == 1)
		since = now_ns();
	gmem_warm_any = true;
	return true;
}

/* What is elsewhere of the pieces has another mapping already. */
void gmem_warm_carved(uint64_t start, uint64_t end)
{
	for (unsigned i = 0; i < nr_pieces;) {
		struct piece *p = &piece[i];
		uint64_t a = p->start > start ? p->start : start, e = p->end < end ? p->end : end;
		if (a >= e) {
			i++;
			continue;
		}
		total -= p->end - p->start;
		struct piece low = { p->start, a, p->text }, high = { e, p->end, p->text };
		for (unsigned j = i + 1; j < nr_pieces; j++)
			piece[j - 1] = piece[j];
		nr_pieces--;
		if (low.start < low.end)
			piece_end(low);
		if (high.start < high.end)
			piece_end(high);
	}
	gmem_warm_any = nr_pieces;
}

void gmem_warm_end(bool for_good)
{
	if (is_vfork_child()) /* there have been none since before it */
		return;
	pthread_mutex_lock(&pvm.mm_lock);
	end_all();
	forbidden |= for_good;
	pthread_mutex_unlock(&pvm.mm_lock);
}

/* ---- calls ----------------------------------------------------------------------------------------------------------- */

static bool apart(uint64_t at, uint64_t len)
{
	uint64_t end = at + len < at ? UINT64_MAX : at + len;
	for (unsigned i = 0; i < nr_pieces; i++)
		if (at < piece[i].end && end > piece[i].start)
			return false;
	return true;
}

/* A descriptor on which reading, or writing, will not wait. */
static bool ready(uint64_t fd, short events)
{
	struct pollfd p = { .fd = (int)fd, .events = events };
	struct timespec none = { 0, 0 };
	return fd_is_guest(p.fd) && HC6(SYS_ppoll, &p, 1, &none, 0, 8, 0) == 1;
}

/* No file, which might be one of those mapped. */
static bool is_stream(uint64_t fd)
{
	struct stat st;
	return fd_is_guest((int)fd) && !HC6(SYS_fstat, (int)fd, &st, 0, 0, 0, 0) &&
	       (S_ISFIFO(st.st_mode) || S_ISCHR(st.st_mode) || S_ISSOCK(st.st_mode));
}

static bool opens_only(uint64_t flags) { return !(flags & (O_TRUNC | O_CREAT)); }

static bool fcntl_is_plain(uint64_t cmd)
{
	return cmd == F_GETFD || cmd == F_SETFD || cmd == F_GETFL || cmd == F_DUPFD || cmd == F_DUPFD_CLOEXEC;
}

/* A call of the LibOS's: to its own memory at most, unless an argument is somebody's buffer. */
static bool own_call_reads(uint64_t nr)
{
	const struct hc_row *row = hc_row_find(nr);
	for (int i = 0; row && i < 6; i++)
		switch (row->arg[i].kind) {
		case KX_A_PTR:
			if (nr == HC_TRACE)
				continue;
			return false;
		case KX_A_OUT:
		case KX_A_IOVO:
		case KX_A_OUTS:
		case KX_A_OUTSO:
		case KX_A_INOUTS:
		case KX_A_INOUTSO:
			return false;
		default:
			continue;
		}
	return row;
}

/* Nothing that this call makes the host do writes to the pieces, nor to their files; and it does not sleep long. */
static bool leaves(uint64_t nr, const uint64_t arg[6])
{
	switch (nr) {
	case SYS_open:
		return opens_only(arg[1]);
	case SYS_openat:
		return opens_only(arg[2]);
	case SYS_close:
	case SYS_lseek:
	case SYS_access:
	case SYS_faccessat:
	case SYS_faccessat2:
	case SYS_brk:
	case SYS_dup:
	case SYS_dup2:
	case SYS_dup3:
	case SYS_umask:
	case SYS_getpgrp:
	case SYS_getppid:
	case SYS_set_tid_address:
	case SYS_set_robust_list:
	case SYS_exit:
	case SYS_exit_group:
	case SYS_execve:
	case SYS_socket:
	case SYS_connect:
	case SYS_bind:
	case SYS_listen:
	case SYS_setsockopt:
	case SYS_epoll_create:
	case SYS_epoll_create1:
	case SYS_epoll_ctl:
	case SYS_eventfd2:
	case SYS_timerfd_create:
		return true;
	case SYS_pipe:
	case SYS_pipe2:
		return apart(arg[0], STRUCT_MAX);
	case SYS_fcntl:
		return fcntl_is_plain(arg[1]);
	case SYS_mmap:
		return !((int)arg[3] & (MAP_POPULATE | MAP_LOCKED)) &&
		       !((int)arg[3] & MAP_SHARED && (int)arg[2] & PROT_WRITE);
	case SYS_munmap:
		return true;
	case SYS_mprotect:
	case SYS_madvise:
		return apart(arg[0], arg[1]);
	case SYS_read:
		return apart(arg[1], arg[2]) && ready(arg[0], POLLIN);
	case SYS_pread64:
	case SYS_getdents64:
		return apart(arg[1], arg[2]);
	case SYS_write:
		return is_stream(arg[0]) && ready(arg[0], POLLOUT);
	case SYS_getcwd:
		return apart(arg[0], arg[1]);
	case SYS_readlink:
		return apart(arg[1], arg[2]);
	case SYS_readlinkat:
		return apart(arg[2], arg[3]);
	case SYS_stat:
	case SYS_lstat:
	case SYS_fstat:
	case SYS_statfs:
	case SYS_fstatfs:
	case SYS_getrlimit:
		return apart(arg[1], STRUCT_MAX);
	case SYS_newfstatat:
		return apart(arg[2], STRUCT_MAX);
	case SYS_statx:
		return apart(arg[4], STRUCT_MAX);
	case SYS_uname:
	case SYS_sysinfo:
		return apart(arg[0], STRUCT_MAX);
	case SYS_ioctl:
		return ((uint32_t)arg[1] == TCGETS || (uint32_t)arg[1] == TIOCGWINSZ) && apart(arg[2], STRUCT_MAX);
	case SYS_prlimit64:
		return apart(arg[3], STRUCT_MAX);
	case SYS_sched_getaffinity:
		return apart(arg[2], (uint32_t)arg[1]);
	case SYS_rt_sigaction:
		return apart(arg[2], STRUCT_MAX);
	case SYS_getrandom:
		return apart(arg[0], arg[1]);
	}
	return nr >= 1024 && own_call_reads(nr);
}

static bool makes_others(uint64_t nr)
{
	return nr == SYS_clone || nr == SYS_clone3 || nr == SYS_fork || nr == SYS_vfork;
}

void gmem_warm_settle(uint64_t nr, const uint64_t arg[6])
{
	pthread_mutex_lock(&pvm.mm_lock);
	forbidden |= makes_others(nr);
	if (nr_pieces && (!leaves(nr, arg) || now_ns() - since > LASTS_NS))
		end_all();
	pthread_mutex_unlock(&pvm.mm_lock);
}
