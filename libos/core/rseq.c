/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Restartable sequences: registration, and the abort of a section. As kernel/rseq.c of Linux; what is not as it must be
 * ends the program by SIGSEGV, as there. The monitor tells by KX_WORK_RSEQ when this thread has lost its CPU number.
 */
#include "libos.h"

#define UNREGISTER 1
#define RSEQ_SIZE 32
#define FEATURES 28 /* up to and with mm_cid */

struct rseq {
	uint32_t cpu_id_start, cpu_id;
	uint64_t cs;
	uint32_t flags, node_id, mm_cid;
};

struct rseq_cs {
	uint32_t version, flags;
	uint64_t start_ip, post_commit_offset, abort_ip;
};

static int fields_write(uint64_t at, uint32_t start, uint32_t cpu, uint32_t cid)
{
	uint32_t ids[2] = { start, cpu }, more[2] = { 0, cid };
	return user_write(at, ids, sizeof ids) ||
			       user_write(at + __builtin_offsetof(struct rseq, node_id), more, sizeof more)
		       ? -KX_EFAULT
		       : 0;
}

static int cs_clear(uint64_t at)
{
	const uint64_t none = 0;
	return user_write(at + __builtin_offsetof(struct rseq, cs), &none, sizeof none);
}

static int64_t unregister(struct kx_thread *t, const struct kx_frame *f)
{
	if (f->rdx & ~(uint64_t)UNREGISTER & 0xffffffff)
		return -KX_EINVAL;
	if (!t->rseq || t->rseq != f->rdi || t->rseq_len != (uint32_t)f->rsi)
		return -KX_EINVAL;
	if (t->rseq_sig != (uint32_t)f->r10)
		return -KX_EPERM;
	if (fields_write(t->rseq, 0, -1u, 0))
		return -KX_EFAULT;
	t->rseq = 0;
	hypercall(t, 334, f->rdi, f->rsi, f->rdx, f->r10, 0, 0);
	return 0;
}

int64_t sys_rseq(struct kx_thread *t, struct kx_frame *f)
{
	uint64_t at = f->rdi;
	uint32_t len = (uint32_t)f->rsi, sig = (uint32_t)f->r10;
	/* libc registers every thread. A program without the signature in its text has no sections. */
	if ((!SHARED->rseq_on && sig == KX_RSEQ_SIG) || t->vfork)
		return -KX_ENOSYS;
	if ((uint32_t)f->rdx & UNREGISTER)
		return unregister(t, f);
	if ((uint32_t)f->rdx)
		return -KX_EINVAL;
	if (t->rseq) {
		if (t->rseq != at || t->rseq_len != len)
			return -KX_EINVAL;
		return t->rseq_sig != sig ? -KX_EPERM : -KX_EBUSY;
	}
	if (len < RSEQ_SIZE || (at & (RSEQ_SIZE - 1)) || (len != RSEQ_SIZE && len < FEATURES))
		return -KX_EINVAL;
	if (!user_ok(at, len) || cs_clear(at))
		return -KX_EFAULT;
	t->rseq_len = len;
	t->rseq_sig = sig;
	t->rseq = at;
	/* Before this thread runs on, the monitor gives it a CPU number and we write it down: rseq_work(). */
	int64_t r = hypercall(t, 334, at, len, 0, sig, 0, 0);
	if (r)
		t->rseq = 0;
	return r;
}

/* 1: *cs is what the program's struct rseq names. 0: it names none. */
static int cs_read(const struct kx_thread *t, struct rseq_cs *cs)
{
	uint64_t at, end;
	uint32_t sig;
	if (user_read(&at, t->rseq + __builtin_offsetof(struct rseq, cs), sizeof at))
		return -KX_EFAULT;
	if (!at)
		return 0;
	if (user_read(cs, at, sizeof *cs))
		return -KX_EFAULT;
	end = cs->start_ip + cs->post_commit_offset;
	if (cs->start_ip >= KX_USER_END || end >= KX_USER_END || end < cs->start_ip || cs->abort_ip >= KX_USER_END ||
	    cs->version || cs->abort_ip - cs->start_ip < cs->post_commit_offset)
		return -KX_EINVAL;
	if (user_read(&sig, cs->abort_ip - sizeof sig, sizeof sig))
		return -KX_EFAULT;
	return sig == t->rseq_sig ? 1 : -KX_EINVAL;
}

static int fixup(struct kx_thread *t, struct kx_frame *f)
{
	struct rseq_cs cs;
	uint32_t flags;
	int r = cs_read(t, &cs);
	if (r <= 0)
		return r;
	if (f->rip - cs.start_ip >= cs.post_commit_offset)
		return cs_clear(t->rseq);
	if (cs.flags || user_read(&flags, t->rseq + __builtin_offsetof(struct rseq, flags), sizeof flags) || flags ||
	    cs_clear(t->rseq))
		return -KX_EINVAL;
	f->rip = cs.abort_ip;
	t->resume = site_resume(f->rip);
	return 0;
}

static void broken(struct kx_thread *t) { hypercall(t, HC_sig_stack_fault, 0, 0, 0, 0, 0, 0); }

void rseq_fixup(struct kx_thread *t, struct kx_frame *f)
{
	if (t->rseq && fixup(t, f))
		broken(t);
}

void rseq_work(struct kx_thread *t, struct kx_frame *f)
{
	rseq_fixup(t, f);
	if (t->rseq && fields_write(t->rseq, t->cpu, t->cpu, t->mm_cid))
		broken(t);
}
