/* SPDX-License-Identifier: Apache-2.0 */
#include "spare.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/futex.h>
#include <sched.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "../../util/now.h"
#include "../../util/together.h"
#include "apart.h"
#include "birth.h"
#include "family.h"
#include "fork.h"
#include "gmem.h"
#include "hot.h"
#include "huge.h"
#include "keeper.h"
#include "room.h"
#include "serve.h"
#include "sig.h"
#include "spare_pages.h"
#include "vcpu.h"
#include "vmend.h"

#define PAGE 4096ull
#define STACK_BYTES (64ul << 10)   /* of a spare */
#define TOUCH_MAX 96               /* pages that a spare has its VM map ahead */
#define TOUCH_STACK 1024           /* bytes of the program's stack that are searched for addresses of its text */
#define IDLE_NS 2500000000ull      /* the last part of its wait: then it is not waiting for a fork any more */
#define LOOK_NS 20000000ull        /* the first one; each is twice as long */
#define PATIENCE_NS 20000000       /* for the last child, which is done with what it shares with its parent */
#define READY_NS 2000000l          /* that a fork waits for one that is being made */
#define SOON_NS 1000000000ull      /* forks that follow each other in less are a habit */
#define BACKOFF_MAX 1024           /* forks without one, after one that came to nothing */
#define MUCH (4 * SPARE_PAGES_MAX) /* faults between two forks by which 2 MiB pages pay */

/* States of a spare. The spare itself goes from IDLE to SPENT, the parent from IDLE to TAKEN and on. */
enum { MAKING, IDLE, TAKEN, GO, SPENT };

/* What parent and spare share, and nobody else. */
struct common {
	uint32_t state;
	uint32_t opened; /* 1: the descriptors are made, 2: they can't be */
	uint32_t done;   /* the child has taken what it needs from here */
	pid_t parent;
	int vm_fd, vcpu_fd;
	struct kvm_run *run;
	struct kx_sigaction actions[65];
	uint64_t touch[TOUCH_MAX + 1];
	unsigned nr_pages;
	uint64_t page[SPARE_PAGES_MAX];
	uint64_t entry[SPARE_PAGES_ENTRIES];
	uint8_t data[SPARE_PAGES_MAX][PAGE] __attribute__((aligned(4096)));
};

static KX_TOGETHER struct {
	struct common *sh;
	uint8_t *stack;
	pid_t pid; /* 0: none */
	pid_t parent;
	int slot;           /* in the family's table */
	bool valid;         /* may still be used */
	bool born;          /* this process was one */
	bool used;          /* the last fork of this process used one */
	int vm_fd, vcpu_fd; /* its, in the shared table */
	bool shm;           /* there is or was SysV memory */
	uint64_t last_fork_ns, prev_fork_ns;
	long faults, faults_between; /* of this process, at its last fork and since the one before */
	unsigned backoff, skip;
	unsigned nr_hot;
	jmp_buf fork;
} sp;
static KX_TOGETHER uint64_t gen; /* of mappings, rights, limits, ... */
static struct outside {
	struct rlimit limit[16];
	uint64_t sched[16], cpus[128];
	long ioprio, sid;
} outside;                          /* as the spare was made */
static uint64_t hot[TOUCH_MAX / 2]; /* pages of the guest that were handed over last */

static uint32_t load(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static void store(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static bool swap(uint32_t *p, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(p, &from, to, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static void futex_wait(uint32_t *p, uint32_t v, long ns)
{
	const struct timespec t = { ns / 1000000000, ns % 1000000000 };
	host_call(SYS_futex, (long)p, FUTEX_WAIT, v, (long)&t, 0, 0);
}
static void futex_wake(uint32_t *p) { host_call(SYS_futex, (long)p, FUTEX_WAKE, 1, 0, 0, 0); }

bool spare_is(pid_t pid) { return sp.pid && pid == sp.pid && my_pid() == pvm.pid; }
bool spare_born(void) { return sp.born; }
bool spare_was_used(void) { return sp.used; }
bool spare_waits(void) { return sp.pid && sp.valid; }

void spare_changed(void)
{
	__atomic_add_fetch(&gen, 1, __ATOMIC_RELAXED);
	sp.valid = false;
}

void spare_forbid(void)
{
	spare_changed();
	sp.skip = ~0u;
}

void spare_unmapped(void)
{
	if (sp.pid)
		spare_remove();
}

/* Each process that is attached is counted. */
void spare_shm(void)
{
	sp.shm = true;
	spare_forbid();
}

void spare_call(const struct hcall *c)
{
	if (hcall_sets_rights(c->nr) || hcall_sets_schedule(c->nr)) {
		spare_changed();
		return;
	}
	switch (c->nr) {
	case SYS_prctl:
	case SYS_setsid:
	case SYS_setrlimit:
	case SYS_personality:
	case SYS_membarrier:
	case SYS_mlock:
	case SYS_mlock2:
	case SYS_mlockall:
	case SYS_munlock:
	case SYS_munlockall:
	case SYS_mbind:
	case SYS_set_mempolicy:
	case SYS_migrate_pages:
	case SYS_move_pages:
	case SYS_chroot:
	case SYS_chdir:
	case SYS_fchdir:
	case SYS_umask:
	case SYS_unshare:
		spare_changed();
		break;
	case SYS_madvise:
		/* What children are not to have is the parent's alone, as what was written since: it would be handed over. */
		if ((int)c->arg[2] == MADV_WIPEONFORK || (int)c->arg[2] == MADV_DONTFORK)
			spare_forbid();
		spare_changed();
		break;
	case SYS_prlimit64:
		if (c->arg[2])
			spare_changed();
		break;
	case SYS_fcntl:
		/* Record locks, and watches, belong to a table of descriptors: it must stay this process's. */
		if ((int)c->arg[1] == F_SETLK || (int)c->arg[1] == F_SETLKW || (int)c->arg[1] == F_NOTIFY)
			spare_forbid();
		/* Who else has it open, or mapped? */
		if ((int)c->arg[1] == F_SETLEASE || (int)c->arg[1] == F_ADD_SEALS)
			spare_remove();
		break;
	}
}

/* The program's stack pointer. */
static uint64_t sp_of(struct thread *t)
{
	const struct kx_frame *f = frame_of(t);
	return __atomic_load_n(&f->rsp, __ATOMIC_RELAXED);
}

/* ---- the spare -------------------------------------------------------------------------------------------------- */

static _Noreturn void leave(void)
{
	for (;;)
		host_call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
}

/* Not used for long: nothing is left but a process that its parent will wait for when it has time. */
static _Noreturn void rest(struct common *sh)
{
	int vm_fd = sh->vm_fd, vcpu_fd = sh->vcpu_fd;
	__atomic_store_n(&sh->vm_fd, -1, __ATOMIC_SEQ_CST);
	__atomic_store_n(&sh->vcpu_fd, -1, __ATOMIC_SEQ_CST);
	if (vcpu_fd >= 0)
		close(vcpu_fd);
	if (vm_fd >= 0)
		close(vm_fd);
	vmend_let_go();
	if (sh->run)
		munmap(sh->run, pvm.kvm_run_size);
	munmap(gva_ptr(KX_USER_MIN), KX_SPACE_SIZE - KX_USER_MIN);
	if (pvm.high_end)
		munmap(gva_ptr(KX_SPACE_SIZE), pvm.high_end - KX_SPACE_SIZE);
	for (;;) {
		const uint64_t all = ~0ull;
		host_call(SYS_rt_sigtimedwait, (long)&all, 0, 0, 8, 0, 0);
		if (getppid() != sh->parent)
			leave();
	}
}

static void idle(struct common *sh)
{
	const struct timespec moment = { 0, 100000000 };
	const uint64_t all = ~0ull, kick = SIGBIT(KICK_SIG), since = now_ns();
	bool woken = false;
	/* A child that is there already may be short of what this one has. */
	for (uint64_t part = LOOK_NS; load(&sh->state) == IDLE || load(&sh->state) == TAKEN; part *= 2) {
		const struct timespec wait = { part / 1000000000, part % 1000000000 };
		long r = host_call(SYS_rt_sigtimedwait, (long)&all, 0, (long)&wait, 8, 0, 0);
		woken = r == KICK_SIG;
		if (load(&sh->state) == GO)
			break;
		if (getppid() != sh->parent)
			leave();
		if (r == -EAGAIN && part < IDLE_NS && !birth_short_since(since))
			continue;
		/* A signal that was for nobody, or nobody's need. */
		if (swap(&sh->state, IDLE, SPENT))
			rest(sh);
	}
	if (load(&sh->state) != GO)
		rest(sh);
	while (!woken)
		woken = host_call(SYS_rt_sigtimedwait, (long)&kick, 0, (long)&moment, 8, 0, 0) == KICK_SIG ||
			getppid() != sh->parent;
}

/* From here on the memory is the parent's at its fork, its stack included. */
static _Noreturn void become(struct common *sh, int *tid)
{
	for (unsigned i = 0; i < sh->nr_pages; i++)
		memcpy((void *)sh->page[i], sh->data[i], PAGE);
	if (tid)
		*tid = my_tid();
	longjmp(sp.fork, 1);
}

/*
 * A fault of the child's VM takes as long for each page as copying a dozen: let it map ahead what the child will
 * touch, while nobody waits. The registers that this leaves do not matter.
 */
static void touch(struct thread *t, struct common *sh)
{
	const uint64_t list = t->area_gva + PAGE;
	memcpy(gva_ptr(list), sh->touch, sizeof sh->touch);
	vcpu_start_state(t, 0);
	t->run->s.regs.regs.rip = pvm.libos.touch;
	t->run->s.regs.regs.rdi = list;
	t->run->immediate_exit = 0;
	/* A page that can't be had ends it: then the rest is not mapped ahead. */
	for (int i = 0; i < 4 && ioctl(t->vcpu_fd, KVM_RUN, 0) < 0 && errno == EINTR; i++)
		;
	t->run->immediate_exit = 1; /* what an exit has left to be done */
	ioctl(t->vcpu_fd, KVM_RUN, 0);
	t->run->immediate_exit = 0;
	memset(gva_ptr(list), 0, sizeof sh->touch);
}

static int *tid_word; /* where libc keeps the thread's number */

/* On a stack of its own. What it changes of the memory it puts back: that has to stay what it was at the fork. */
static int spare_main(void *arg)
{
	struct thread *t = arg;
	struct common *sh = sp.sh;
	struct thread was = { .vcpu_fd = t->vcpu_fd, .vcpu_pid = t->vcpu_pid, .run = t->run };
	int vm_fd = pvm.vm_fd, *tid = tid_word;
	struct kx_err err = { 0 };
	family_spare(sp.slot, getpid()); /* its parent may be stopped */
	int r = hot_restore();
	fork_locks_release();
	t->run = NULL;
	host_call(SYS_setpgid, 0, 0, 0, 0, 0, 0);
	prctl(PR_SET_PDEATHSIG, KICK_SIG);
	if (getppid() != sh->parent)
		leave();
	if (!r)
		r = vm_create(&err);
	sh->vm_fd = r ? -1 : pvm.vm_fd;
	if (!r)
		r = vcpu_open(t, t->index);
	sh->vcpu_fd = r ? -1 : t->vcpu_fd;
	sh->run = t->run;
	/* At the limit of processes what it lacks, children that are there already may lack, too: then it has to go. */
	if (!r)
		r = vcpu_prove(t);
	store(&sh->opened, r ? 2 : 1);
	futex_wake(&sh->opened);
	gmem_fork_populate(sp_of(t));
	if (!r)
		r = gmem_fork_areas(t->area_gva);
	if (!r)
		r = gmem_fork_child(false);
	if (!r)
		r = vcpu_set_up(t);
	if (!r)
		touch(t, sh);
	spare_pages_ahead(sh->page, sh->nr_pages);
	if (!r)
		vmend_hold();
	t->vcpu_fd = was.vcpu_fd;
	t->vcpu_pid = was.vcpu_pid;
	t->run = was.run;
	pvm.vm_fd = vm_fd;
	if (r) { /* not its end, of which its parent would hear */
		store(&sh->state, SPENT);
		rest(sh);
	}
	store(&sh->state, IDLE);
	futex_wake(&sh->state); /* its parent may be forking already */
	idle(sh);
	become(sh, tid);
}

/* ---- the parent -------------------------------------------------------------------------------------------------- */

static void forget(void)
{
	if (sp.pid && sp.parent == my_pid())
		family_cancel(sp.slot);
	sp.pid = 0;
	sp.valid = false;
}

/* The numbers as it says, which takes one back before it closes it. */
static void close_its(void)
{
	sp.vcpu_fd = __atomic_load_n(&sp.sh->vcpu_fd, __ATOMIC_SEQ_CST);
	sp.vm_fd = __atomic_load_n(&sp.sh->vm_fd, __ATOMIC_SEQ_CST);
	if (sp.vcpu_fd >= 0)
		close(sp.vcpu_fd);
	if (sp.vm_fd >= 0)
		close(sp.vm_fd);
	sp.vcpu_fd = sp.vm_fd = -1;
}

/* It is gone when this returns, and has left no signal. */
void spare_remove(void)
{
	if (!sp.pid || my_pid() != pvm.pid)
		return;
	uint64_t old = sig_block_everything();
	host_call(SYS_kill, sp.pid, SIGKILL, 0, 0, 0, 0);
	birth_forget(sp.pid, SIGCHLD);
	close_its();
	room_soon();
	store(&sp.sh->done, 1);
	sig_restore(old, self);
	forget();
}

bool spare_make_room(int error)
{
	if ((error != EAGAIN && error != ENOMEM) || my_pid() != pvm.pid)
		return false;
	if (!sp.pid || pvm.nr_threads > 1)
		return error == EAGAIN && room_await();
	spare_remove();
	return true;
}

/* Whoever adopts it could wait for it: the host's init, who waits for anybody, unless one of the family has asked. */
void spare_exit(void)
{
	if (!sp.pid || my_pid() != pvm.pid)
		return;
	family_cancel(sp.slot);
	if (*family_reapers())
		spare_remove();
	else
		host_call(SYS_kill, sp.pid, SIGKILL, 0, 0, 0, 0);
}

void spare_ended(pid_t pid)
{
	if (!spare_is(pid))
		return;
	close_its();
	store(&sp.sh->done, 1);
	forget();
}

bool spare_is_last(void)
{
	char name[48], text[256];
	if (!sp.pid || my_pid() != pvm.pid)
		return false;
	snprintf(name, sizeof name, "self/task/%d/children", pvm.pid);
	int fd = proc_file(name);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
	if (fd >= 0)
		close(fd);
	if (n < 0)
		return false;
	text[n] = 0;
	bool listed = false, last = true;
	for (char *at = text, *end; last; at = end) {
		pid_t pid = (pid_t)strtol(at, &end, 10);
		if (end == at)
			break;
		listed = listed || pid == sp.pid;
		last = pid == sp.pid || apart_is(pid);
	}
	return listed && last;
}

void spare_fork_seen(void)
{
	struct rusage u;
	sp.prev_fork_ns = sp.last_fork_ns;
	sp.last_fork_ns = now_ns();
	if (!getrusage(RUSAGE_SELF, &u)) {
		sp.faults_between = u.ru_minflt - sp.faults;
		sp.faults = u.ru_minflt;
	}
	if (sp.skip && sp.skip != ~0u)
		sp.skip--;
}

static void in_vain(void)
{
	sp.backoff = sp.backoff ? sp.backoff * 2 < BACKOFF_MAX ? sp.backoff * 2 : BACKOFF_MAX : 2;
	sp.skip = sp.skip == ~0u ? sp.skip : sp.backoff;
}

/* Forks that follow each other, and in between more is written than a spare could be given. */
static bool writes_much(struct thread *t)
{
	return !is_vfork_child() && t->tid == t->pid && pvm.nr_threads == 1 && sp.prev_fork_ns &&
	       sp.last_fork_ns - sp.prev_fork_ns < 10 * SOON_NS && sp.faults_between > MUCH;
}

bool spare_wanted(struct thread *t)
{
	if (writes_much(t))
		huge_for_forks();
	/* One that is no use any more would have the parent copy each page that it writes to. */
	if (sp.pid && !sp.valid && my_pid() == pvm.pid)
		spare_remove();
#ifdef __SANITIZE_ADDRESS__
	(void)t;
	return false;
#endif
	if (is_vfork_child() || sp.skip || birth_is_short() || !sp.prev_fork_ns || t->tid != t->pid ||
	    pvm.nr_threads > 1 || pvm.proc_fd < 0 || (sp.pid && sp.valid) || gmem_has_huge())
		return false;
	uint64_t now = now_ns();
	/* What it writes between two forks must be little: each page is a fault, and would be handed over. */
	if (now - sp.last_fork_ns > SOON_NS || sp.last_fork_ns - sp.prev_fork_ns > SOON_NS ||
	    sp.faults_between > SPARE_PAGES_MAX)
		return false;
	/* The group of a leader outside of the PID namespace has no number here: who is in another can't be put into it. */
	if (!getpgrp())
		return false;
	/* Then a wait lasts until the last child has ended, which it would be. */
	const struct kx_sigaction *chld = &actions_of(t)[SIGCHLD];
	return chld->handler != (uint64_t)SIG_IGN && !(chld->flags & SA_NOCLDWAIT);
}

bool spare_look(struct thread *t)
{
	(void)t;
	return my_pid() == pvm.pid && (sp.pid || sp.prev_fork_ns);
}

static bool prepare(void)
{
	if (!sp.sh) {
		void *sh = mmap(NULL, sizeof *sp.sh, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
				-1, 0);
		if (sh == MAP_FAILED)
			return false;
		/* Guards around it keep it a mapping of its own in the list. */
		uint8_t *st = mmap(NULL, STACK_BYTES + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (st == MAP_FAILED || mprotect(st + PAGE, STACK_BYTES, PROT_READ | PROT_WRITE)) {
			munmap(sh, sizeof *sp.sh);
			return false;
		}
		sp.sh = sh;
		sp.sh->done = 1;
		sp.stack = st + PAGE;
	}
	if (!load(&sp.sh->done)) /* its last child still reads there */
		futex_wait(&sp.sh->done, 0, PATIENCE_NS);
	if (!load(&sp.sh->done))
		return false;
	return spare_pages_look(__atomic_load_n(&gen, __ATOMIC_RELAXED), (uint64_t)sp.stack);
}

static void touch_add(struct common *sh, unsigned *n, uint64_t page, bool write)
{
	for (unsigned i = 0; i < *n; i++)
		if ((sh->touch[i] & -PAGE) == page)
			return;
	if (*n < TOUCH_MAX)
		sh->touch[(*n)++] = page | write;
}

/* What a child is likely to touch first: the LibOS, what was written between the last forks, and the text that it
 * returns to, as far as addresses on its stack tell. */
static void touch_list(struct thread *t, struct common *sh)
{
	const struct kx_frame *f = frame_of(t);
	uint64_t word[TOUCH_STACK / 8], rsp = f->rsp;
	struct gmem_region g;
	unsigned n = 0;
	touch_add(sh, &n, KX_LIBOS_BASE, false);
	touch_add(sh, &n, pvm.libos.entry & -PAGE, false);
	touch_add(sh, &n, t->area_gva, true);
	touch_add(sh, &n, (t->area_gva + KX_AREA_SIZE - 1) & -PAGE, true);
	touch_add(sh, &n, KX_BOOT_BASE, true);
	touch_add(sh, &n, KX_VVAR_BASE, false);
	for (unsigned i = 0; i < sp.nr_hot; i++)
		touch_add(sh, &n, hot[i], true);
	touch_add(sh, &n, f->rip & -PAGE, false);
	uint64_t room = PAGE - rsp % PAGE;
	size_t len = room < sizeof word ? room & -8ul : sizeof word;
	if (guest_read(word, rsp, len))
		len = 0;
	for (size_t i = 0; i < len / 8; i++)
		if (word[i] >= KX_USER_MIN && gva_ok(word[i], 1) && gmem_query(word[i], &g) && g.start <= word[i] &&
		    g.prot & PROT_EXEC)
			touch_add(sh, &n, word[i] & -PAGE, false);
	sh->touch[n] = 0;
}

/* What the guest can write of what was handed over. */
static void hot_note(struct common *sh)
{
	struct gmem_region g;
	sp.nr_hot = 0;
	for (unsigned i = 0; i < sh->nr_pages && sp.nr_hot < TOUCH_MAX / 2; i++) {
		uint64_t a = sh->page[i] - (uint64_t)pvm.base;
		if (gva_ok(a, 1) && gmem_query(a, &g) && g.start <= a && g.prot & PROT_WRITE)
			hot[sp.nr_hot++] = a;
	}
}

/* What others can change of this process: its limits, how it is scheduled. What they change of the spare they have
 * changed of the child. */
static bool outside_read(struct outside *o)
{
	memset(o, 0, sizeof *o);
	for (int i = 0; i < 16; i++)
		if (HC6(SYS_prlimit64, 0, i, 0, &o->limit[i], 0, 0))
			return false;
	o->ioprio = HC6(SYS_ioprio_get, 1, 0, 0, 0, 0, 0);
	o->sid = HC6(SYS_getsid, 0, 0, 0, 0, 0, 0);
	return !HC6(SYS_sched_getattr, 0, o->sched, 56, 0, 0, 0) &&
	       HC6(SYS_sched_getaffinity, 0, sizeof o->cpus, o->cpus, 0, 0, 0) > 0;
}

static bool same_outside(void)
{
	struct outside now;
	return outside_read(&now) && !memcmp(&now, &outside, sizeof now);
}

void spare_make(struct thread *t)
{
	spare_remove();
	serve_stop(); /* it has the table of descriptors, too */
	if (!prepare()) {
		in_vain();
		return;
	}
	struct common *sh = sp.sh;
	sp.parent = pvm.pid;
	sp.slot = family_reserve();
	if (sp.slot < 0) {
		in_vain();
		return;
	}
	sh->state = MAKING;
	sh->opened = sh->done = 0;
	sh->parent = pvm.pid;
	hot_note(sh);
	touch_list(t, sh);
	memcpy(sh->actions, pvm.shared->sigaction, sizeof sh->actions);
	tid_word = fork_tid_word();
	uint64_t old = sig_block_everything(), faults = SIGBIT(SIGSEGV) | SIGBIT(SIGBUS);
	host_call(SYS_rt_sigprocmask, SIG_BLOCK, (long)&faults, 0, 8, 0, 0);
	fork_locks_take();
	hot_save();
	family_spare(sp.slot, 0);
	pid_t pid = -1;
	if (outside_read(&outside)) /* with the locks: the monitor changes limits for moments */
		pid = clone(spare_main, sp.stack + STACK_BYTES,
			    CLONE_FILES | SIGCHLD | (tid_word ? CLONE_CHILD_SETTID : 0), t, NULL, NULL, tid_word);
	fork_populate();
	fork_locks_release();
	if (pid > 0) {
		family_spare(sp.slot, pid);
		sp.pid = pid;
		/* It makes descriptors in the table of both: until then none may be made here. */
		while (!load(&sh->opened)) {
			siginfo_t info = { 0 };
			futex_wait(&sh->opened, 0, 10000000);
			if (!load(&sh->opened) &&
			    (HC6(SYS_waitid, P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT, 0, 0) || info.si_pid))
				store(&sh->opened, 2);
		}
		sp.valid = load(&sh->opened) == 1;
		if (!sp.valid)
			spare_remove();
	} else {
		family_cancel(sp.slot);
		sh->done = 1;
	}
	host_call(SYS_rt_sigprocmask, SIG_UNBLOCK, (long)&faults, 0, 8, 0, 0);
	sig_restore(old, t);
	if (!sp.valid)
		in_vain();
	gmem_fork_populate(sp_of(t));
}

static bool usable(void)
{
	return sp.pid && sp.valid && my_pid() == pvm.pid && pvm.nr_threads == 1 &&
	       spare_pages_same(__atomic_load_n(&gen, __ATOMIC_RELAXED)) && same_outside();
}

/* Copies of all pages that the spare may have otherwise. False: too many, or unknown. */
static bool pages_copy(void)
{
	struct common *sh = sp.sh;
	int n = spare_pages_find(sh->page, sh->entry);
	if (n < 0)
		return false;
	sh->nr_pages = (unsigned)n;
	for (int i = 0; i < n; i++)
		memcpy(sh->data[i], (const void *)sh->page[i], PAGE);
	return true;
}

/* All but the last step. */
static bool hand_over(void)
{
	if (!pages_copy())
		return false;
	/* A table of its own, with all that is in the other. */
	if (HC6(SYS_close_range, ~0u, ~0u, CLOSE_RANGE_UNSHARE, 0, 0, 0))
		return false;
	close_its();
	if (!HC6(SYS_setpgid, sp.pid, getpgrp(), 0, 0, 0, 0))
		return true;
	spare_remove(); /* it has a table of descriptors of its own by now, and would hold them open */
	return false;
}

pid_t spare_fork(struct thread *t)
{
	(void)t;
	if (!usable())
		return -1;
	if (load(&sp.sh->state) == MAKING)
		futex_wait(&sp.sh->state, MAKING, READY_NS);
	if (!swap(&sp.sh->state, IDLE, TAKEN)) { /* not ready: to wait on takes longer than it would save */
		in_vain();
		return -1;
	}
	if (setjmp(sp.fork)) {
		sp.born = true;
		return 0;
	}
	pid_t pid = sp.pid;
	if (!hand_over()) {
		store(&sp.sh->state, SPENT); /* when it looks next */
		in_vain();
		sp.valid = false;
		return -1;
	}
	sp.backoff = 0;
	pvm.nr_forks_ahead++;
	sp.used = true;
	forget();
	store(&sp.sh->state, GO);
	host_call(SYS_tgkill, pid, pid, KICK_SIG, 0, 0, 0);
	return pid;
}

/* A spare that was left over when the parent forks by the host: what is alone in the parent tells nothing from here on. */
void spare_fork_before(void)
{
	sp.valid = sp.used = false;
	if (sp.pid) {
		sp.vcpu_fd = __atomic_load_n(&sp.sh->vcpu_fd, __ATOMIC_SEQ_CST);
		sp.vm_fd = __atomic_load_n(&sp.sh->vm_fd, __ATOMIC_SEQ_CST);
	}
}

static void child_forget(void)
{
	sp.used = false;
	spare_pages_forget();
	if (sp.sh) {
		munmap(sp.stack - PAGE, STACK_BYTES + 2 * PAGE);
		munmap(sp.sh, sizeof *sp.sh);
	}
	sp.sh = NULL;
	forget();
	sp.vm_fd = sp.vcpu_fd = -1;
	sp.backoff = 0;
	sp.faults = 0;
	sp.skip = sp.shm ? ~0u : 0;
	sp.last_fork_ns = sp.prev_fork_ns = 0;
}

void spare_fork_child(void)
{
	sp.born = false;
	if (sp.pid) { /* as they were before the fork */
		if (sp.vcpu_fd >= 0)
			close(sp.vcpu_fd);
		if (sp.vm_fd >= 0)
			close(sp.vm_fd);
	}
	sp.pid = 0;
	child_forget();
}

int spare_machine(struct thread *t, const struct kvm_xsave *xsave)
{
	struct common *sh = sp.sh;
	/* The parent may have ended meanwhile: a child is not told. */
	const uint64_t kick = SIGBIT(KICK_SIG);
	const struct timespec zero = { 0, 0 };
	prctl(PR_SET_PDEATHSIG, 0);
	while (host_call(SYS_rt_sigtimedwait, (long)&kick, 0, (long)&zero, 8, 0, 0) == KICK_SIG)
		;
	pvm.vm_fd = sh->vm_fd;
	t->vcpu_fd = sh->vcpu_fd;
	t->vcpu_pid = pvm.pid;
	t->run = sh->run;
	if (ioctl(t->vcpu_fd, KVM_SET_XSAVE, xsave) < 0)
		return -errno;
	for (int s = 1; s <= 64; s++)
		if (s != SIGKILL && s != SIGSTOP &&
		    memcmp(&sh->actions[s], &pvm.shared->sigaction[s], sizeof sh->actions[s]))
			sig_set_disposition(s, &pvm.shared->sigaction[s]);
	store(&sh->done, 1);
	futex_wake(&sh->done);
	child_forget();
	return 0;
}
