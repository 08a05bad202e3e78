/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The filter is made from a table of actions by call number: equal neighbours become ranges, and a binary search
 * over the ranges becomes BPF, whose leaves share what they return: the kernel checks, translates and compiles each instruction
 * at each start. Made by hand because a start must not wait for a library that costs milliseconds.
 *
 * Calls with constant actions are answered by the kernel's bitmap without running the filter.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "seccomp.h"
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_hcall.h"
#include "pvm.h"

#define NR_CALLS 512  /* numbers at and above it are ENOSYS */
#define MAX_INSNS 250 /* a conditional jump leads over so many */

enum action { A_ENOSYS, A_ALLOW, A_KILL, A_SOCKET, A_CLONE, A_PROT, A_MMAP, A_EXEC, A_IOCTL, A_SHMAT, A_PERSONALITY };

/* By name, so that headers older than a call do. */
static const short from_table[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) nr,
#include "../../abi/hypercalls.def"
};

/* Calls of the monitor's own that no row of the table names. */
static const short own[] = {
	SYS_rseq,
	SYS_rt_sigreturn,
};

/* Nothing of the monitor's makes these. */
static const short intruder[] = {
	SYS_execve,
	SYS_ptrace,
	SYS_process_vm_readv,
	SYS_process_vm_writev,
	SYS_mount,
	SYS_umount2,
	SYS_pivot_root,
	SYS_unshare,
	SYS_setns,
	SYS_bpf,
	SYS_perf_event_open,
	SYS_kexec_load,
	SYS_kexec_file_load,
	SYS_init_module,
	SYS_finit_module,
	SYS_delete_module,
	SYS_open_by_handle_at,
	SYS_keyctl,
	SYS_add_key,
	SYS_request_key,
	SYS_swapon,
	SYS_swapoff,
	SYS_reboot,
	SYS_iopl,
	SYS_ioperm,
	SYS_quotactl,
	SYS_acct,
	SYS_userfaultfd,
	SYS_open_tree,
	SYS_move_mount,
	SYS_fsopen,
	SYS_fsconfig,
	SYS_fsmount,
	SYS_fspick,
	442 /* mount_setattr */,
	438 /* pidfd_getfd */,
	SYS_io_uring_setup,
	SYS_io_uring_enter,
	SYS_io_uring_register,
	SYS_modify_ldt,
	SYS_vhangup,
};

/* Rows that the monitor answers without any host call of that number. */
static const short never[] = {
	SYS_settimeofday,  SYS_sethostname, SYS_clock_settime, SYS_clone3, /* its flags can't be looked at */
	SYS_pkey_mprotect, /* as mprotect(2) with -1, for PROT_EXEC, too */
	SYS_pkey_alloc,    SYS_pkey_free,
};

static const struct {
	short nr;
	unsigned char action;
} by_argument[] = {
	{ SYS_socket, A_SOCKET }, { SYS_socketpair, A_SOCKET }, { SYS_clone, A_CLONE },
	{ SYS_mmap, A_MMAP },     { SYS_execveat, A_EXEC },     { SYS_mprotect, A_PROT },
	{ SYS_ioctl, A_IOCTL },   { SYS_shmat, A_SHMAT },       { SYS_personality, A_PERSONALITY },
};

/* Filled from its end on, since jumps lead forward: what they lead to is there. All of it is near enough to be jumped to. */
struct program {
	struct sock_filter insn[MAX_INSNS + 1];
	unsigned at; /* the first; 0: there was no room */
	struct {
		uint32_t what;
		unsigned at; /* 0: none */
	} ret[8];            /* as many as there are different ones, and an empty one */
};

struct range {
	unsigned first;
	enum action action;
};

/* Before all that is there. Its place. */
static unsigned emit(struct program *p, unsigned code, unsigned jt, unsigned jf, uint32_t k)
{
	if (p->at)
		p->insn[--p->at] = (struct sock_filter){ (uint16_t)code, (uint8_t)jt, (uint8_t)jf, k };
	return p->at;
}

/* The place of the instruction that returns it. */
static unsigned emit_ret(struct program *p, uint32_t what)
{
	unsigned i = 0;
	while (p->ret[i].at && p->ret[i].what != what)
		i++;
	if (!p->ret[i].at) {
		p->ret[i].what = what;
		p->ret[i].at = emit(p, BPF_RET | BPF_K, 0, 0, what);
	}
	return p->ret[i].at;
}

/* What is in the accumulator compared with k leads to one of two places. */
static unsigned emit_if(struct program *p, unsigned how, uint32_t k, unsigned yes, unsigned no)
{
	return emit(p, BPF_JMP | how | BPF_K, yes - p->at, no - p->at, k);
}

#define REFUSE(e) (SECCOMP_RET_ERRNO | (e))

/* Its value then decides, by what was emitted last. */
static unsigned emit_arg(struct program *p, int i)
{
	/* The low half: all of these are ints for the kernel, or have their flags there. */
	return emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)(offsetof(struct seccomp_data, args) + 8 * (size_t)i));
}

/* Argument i is one of values[n]: yes, else no. */
static unsigned emit_one_of(struct program *p, int i, const uint32_t *values, unsigned n, uint32_t yes, uint32_t no)
{
	const unsigned found = emit_ret(p, yes);
	unsigned next = emit_ret(p, no);
	while (n)
		next = emit_if(p, BPF_JEQ, values[--n], found, next);
	return emit_arg(p, i);
}

/* Argument i has any of these bits: refuse with EPERM. */
static unsigned emit_no_bits(struct program *p, int i, uint32_t bits)
{
	const unsigned refuse = emit_ret(p, REFUSE(EPERM)), allow = emit_ret(p, SECCOMP_RET_ALLOW);
	emit_if(p, BPF_JSET, bits, refuse, allow);
	return emit_arg(p, i);
}

static unsigned emit_action(struct program *p, enum action a)
{
	static const uint32_t families[] = { AF_UNIX, AF_INET, AF_INET6, AF_NETLINK };
	static const uint32_t typing[] = { TIOCSTI, TIOCLINUX };
	static const uint32_t query[] = { 0xffffffff };
	const uint32_t namespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER |
				    CLONE_NEWPID | CLONE_NEWNET;
	switch (a) {
	case A_ENOSYS:
		return emit_ret(p, REFUSE(ENOSYS));
	case A_ALLOW:
		return emit_ret(p, SECCOMP_RET_ALLOW);
	case A_KILL:
		break;
	case A_SOCKET:
		return emit_one_of(p, 0, families, 4, SECCOMP_RET_ALLOW, REFUSE(EAFNOSUPPORT));
	case A_CLONE:
		return emit_no_bits(p, 0, namespaces);
	case A_PROT:
		return emit_no_bits(p, 2, PROT_EXEC);
	case A_MMAP:
#ifdef KX_DYNAMIC
	{ /* the loader of the next exec maps text, never writable */
		const unsigned refuse = emit_ret(p, REFUSE(EPERM)), allow = emit_ret(p, SECCOMP_RET_ALLOW);
		const unsigned text = emit_if(p, BPF_JEQ, PROT_READ | PROT_EXEC, allow, refuse);
		emit_if(p, BPF_JSET, PROT_EXEC, text, allow);
		return emit_arg(p, 2);
	}
#else /* all of the monitor's code is in its file, which the kernel maps */
		return emit_no_bits(p, 2, PROT_EXEC);
#endif
	case A_EXEC: { /* of the monitor itself, and nothing else */
		const uint32_t self_fd[] = { (uint32_t)pvm.exe_fd, pvm.fd_max };
		if (pvm.exe_fd < 0)
			break;
		return emit_one_of(p, 0, self_fd, 2, SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS);
	}
	case A_IOCTL:
		return emit_one_of(p, 1, typing, 2, REFUSE(EPERM), SECCOMP_RET_ALLOW);
	case A_SHMAT:
		return emit_no_bits(p, 2, SHM_EXEC);
	case A_PERSONALITY:
		return emit_one_of(p, 0, query, 1, SECCOMP_RET_ALLOW, REFUSE(EPERM));
	}
	return emit_ret(p, SECCOMP_RET_KILL_PROCESS);
}

/* Code that decides among ranges [lo, hi), with the number in the accumulator. */
static unsigned emit_search(struct program *p, const struct range *r, unsigned lo, unsigned hi)
{
	if (hi - lo == 1)
		return emit_action(p, r[lo].action);
	const unsigned mid = (lo + hi) / 2, above = emit_search(p, r, mid, hi), below = emit_search(p, r, lo, mid);
	return emit_if(p, BPF_JGE, r[mid].first, above, below);
}

static void set(uint8_t *actions, const short *nrs, size_t n, enum action a)
{
	for (size_t i = 0; i < n; i++)
		if (nrs[i] < NR_CALLS)
			actions[nrs[i]] = (uint8_t)a;
}

#define COUNT(a) (sizeof(a) / sizeof(*(a)))

static void build(struct program *p)
{
	uint8_t actions[NR_CALLS + 1] = { 0 }; /* A_ENOSYS; the last stands for all beyond */
	struct range r[NR_CALLS + 1];
	unsigned n = 0;
	set(actions, from_table, COUNT(from_table), A_ALLOW);
	set(actions, own, COUNT(own), A_ALLOW);
	set(actions, never, COUNT(never), A_ENOSYS);
	set(actions, intruder, COUNT(intruder), A_KILL);
	for (size_t i = 0; i < COUNT(by_argument); i++)
		actions[by_argument[i].nr] = by_argument[i].action;
	for (unsigned nr = 0; nr <= NR_CALLS; nr++)
		if (!nr || actions[nr] != r[n - 1].action)
			r[n++] = (struct range){ nr, (enum action)actions[nr] };
	memset(p->ret, 0, sizeof p->ret);
	p->at = MAX_INSNS + 1;
	emit_search(p, r, 0, n); /* more than one: its first instruction is the last that was emitted */
	const unsigned by_number = emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr));
	emit_if(p, BPF_JEQ, AUDIT_ARCH_X86_64, by_number, emit_ret(p, SECCOMP_RET_KILL_PROCESS));
	emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, arch));
}

int seccomp_enter(struct kx_err *err)
{
	struct program p;
	build(&p);
	if (!p.at)
		return kx_err_set(err, E2BIG,
				  "seccomp: a filter of more than %d instructions (let far jumps be long ones)",
				  MAX_INSNS);
	struct sock_fprog prog = { (unsigned short)(MAX_INSNS + 1 - p.at), p.insn + p.at };
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		return kx_err_set(err, errno, "seccomp: no_new_privs: %s (use a current kernel)", strerror(errno));
	long r = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog);
	if (r < 0)
		return kx_err_set(err, errno, "seccomp: %s (the kernel needs CONFIG_SECCOMP_FILTER)", strerror(errno));
	if (r > 0)
		return kx_err_set(err, EBUSY, "seccomp: thread %ld has a filter of its own (start no threads before)",
				  r);
	return 0;
}
