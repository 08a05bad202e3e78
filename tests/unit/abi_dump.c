/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prints the binary contract between monitor and LibOS: constants, the layout of every struct of kx_abi.h, and
 * every hypercall. Its committed output is abi/abi.golden, which changes only together with KX_ABI_VERSION.
 * Fails when a struct has a member that is not listed here: the listed ones must leave no gap beyond alignment.
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include "../../abi/kx_abi.h"
#include "../../abi/kx_hcall.h"

static const char *const kinds[] = {
	[KX_A_NONE] = "NONE",   [KX_A_FD] = "FD",       [KX_A_ATFD] = "ATFD",       [KX_A_FDN] = "FDN",
	[KX_A_FDNEW] = "FDNEW", [KX_A_PATH] = "PATH",   [KX_A_PATHE] = "PATHE",     [KX_A_PATHO] = "PATHO",
	[KX_A_STR] = "STR",     [KX_A_IN] = "IN",       [KX_A_OUT] = "OUT",         [KX_A_IOVI] = "IOVI",
	[KX_A_IOVO] = "IOVO",   [KX_A_INS] = "INS",     [KX_A_OUTS] = "OUTS",       [KX_A_INOUTS] = "INOUTS",
	[KX_A_INSO] = "INSO",   [KX_A_OUTSO] = "OUTSO", [KX_A_INOUTSO] = "INOUTSO", [KX_A_PTR] = "PTR",
	[KX_A_ADDR] = "ADDR",   [KX_A_INT] = "INT",     [KX_A_UINT] = "UINT",       [KX_A_SIZE] = "SIZE",
	[KX_A_OFF] = "OFF",     [KX_A_MODE] = "MODE",   [KX_A_SIG] = "SIG",         [KX_A_FLAGS] = "FLAGS",
};
_Static_assert(sizeof(kinds) / sizeof(kinds[0]) == KX_A_FLAGS + 1, "every kind has a name");

static const struct row {
	int nr;
	const char *name, *handler;
	unsigned flags;
	struct kx_arg_desc arg[6];
} rows[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) \
	{ nr, #name, #handler, flags, { a0, a1, a2, a3, a4, a5 } },
#include "../../abi/hypercalls.def"
};

static int bad;
static size_t end; /* of the member printed last */

static size_t align_up(size_t v, size_t a) { return (v + a - 1) / a * a; }

static void member(const char *s, const char *m, size_t off, size_t size, size_t align)
{
	printf("\t%-4zu %-5zu %s\n", off, size, m);
	if (off != align_up(end, align)) {
		fprintf(stderr, "abi_dump: struct %s: a member before %s is not listed\n", s, m);
		bad = 1;
	}
	end = off + size;
}

static void struct_end(const char *s, size_t size, size_t align)
{
	if (align_up(end, align) != size) {
		fprintf(stderr, "abi_dump: struct %s: a member after the last is not listed\n", s);
		bad = 1;
	}
	end = 0;
}

#define C(x) printf("%-24s %#" PRIx64 "\n", #x, (uint64_t)(x))
#define SIZE(s) printf("\nstruct %s: %zu bytes, aligned to %zu\n", #s, sizeof(struct s), _Alignof(struct s))
#define AT(s, m) (((struct s *)0)->m)
#define M(s, m) member(#s, #m, offsetof(struct s, m), sizeof(AT(s, m)), _Alignof(__typeof__(AT(s, m))))
#define END(s) struct_end(#s, sizeof(struct s), _Alignof(struct s))

static void dump_constants(void)
{
	printf("version %d\n\n", KX_ABI_VERSION);
	C(KX_SPACE_SIZE), C(KX_USER_MIN), C(KX_USER_END), C(KX_LIBOS_BASE), C(KX_LIBOS_SIZE), C(KX_VDSO_BASE);
	C(KX_VVAR_BASE), C(KX_CPUID_BASE), C(KX_BOOT_BASE), C(KX_SITES_BASE), C(KX_SITES_MAX), C(KX_AREA_BASE),
		C(KX_AREA_SIZE);
	C(KX_AREA_MAX), C(KX_SYS_BASE), C(KX_PORT_HCALL), C(KX_PORT_PANIC), C(KX_PORT_LAST);
	C(KX_T_SELF), C(KX_T_ENTRY), C(KX_T_FRAME_TOP), C(KX_T_FRAME), C(KX_T_USER_RSP), C(KX_T_RESUME), C(KX_T_WORK);
	C(KX_T_CALL), C(KX_T_CPUID), C(KX_ORIG_CPUID), C(KX_CPUID_INDEXED), C(KX_CPUID_MAX);
	C(KX_BATCH_BASE), C(KX_BATCH_FDS), C(KX_BATCH_SOCKS), C(KX_BATCH_CTX), C(KX_BATCH_CTXS), C(KX_BATCH_TX);
	C(KX_BATCH_TX_SIZE), C(KX_BATCH_RX), C(KX_BATCH_RX_SIZE), C(KX_BATCH_SEND_MAX), C(KX_BATCH_FILES),
		C(KX_BATCH_AHEAD), C(KX_BATCH_PEERS), C(KX_BATCH_PEERS_MAX), C(KX_BATCH_FILE_MAX), C(KX_AHEAD_MAX),
		C(KX_AHEAD_ZEROS), C(KX_AHEAD_NONE), C(KX_AHEAD_OFFERED), C(KX_AHEAD_TAKEN), C(KX_BREC_FILE),
		C(KX_BREC_CLOSE), C(KX_BREC_ADD), C(KX_BREC_OPT), C(KX_BREC_DEL), C(KX_BREC_MOD), C(KX_EPOLL_UNKNOWN),
		C(KX_EPOLL_NONE), C(KX_BOPT_NONBLOCK), C(KX_BATCH_LOCALS), C(KX_BOPT_TCP), C(KX_BOPT_SOCKET);
	C(KX_RX_VALID), C(KX_RX_SHORT), C(KX_RX_EMPTY), C(KX_RX_EOF);
	C(KX_WORK_SIGNAL), C(KX_WORK_MORE), C(KX_ERESTART), C(KX_ERESTART_NOHAND);
	C(KX_PATH_LIBOS), C(KX_PATH_MONITOR), C(KX_PATH_SLOW), C(KX_PATH_POLL);
}

static void dump_structs(void)
{
	SIZE(kx_frame);
	M(kx_frame, r15), M(kx_frame, r14), M(kx_frame, r13), M(kx_frame, r12), M(kx_frame, rbp), M(kx_frame, rbx);
	M(kx_frame, r11), M(kx_frame, r10), M(kx_frame, r9), M(kx_frame, r8), M(kx_frame, rdi), M(kx_frame, rsi);
	M(kx_frame, rdx), M(kx_frame, rcx), M(kx_frame, rax), M(kx_frame, orig_rax), M(kx_frame, rip);
	M(kx_frame, rflags), M(kx_frame, rsp);
	END(kx_frame);

	SIZE(kx_call);
	M(kx_call, nr), M(kx_call, arg), M(kx_call, ret);
	END(kx_call);

	SIZE(kx_sigaction);
	M(kx_sigaction, handler), M(kx_sigaction, flags), M(kx_sigaction, restorer), M(kx_sigaction, mask);
	END(kx_sigaction);

	SIZE(kx_signal);
	M(kx_signal, signo), M(kx_signal, forced), M(kx_signal, info), M(kx_signal, trapno), M(kx_signal, err);
	M(kx_signal, cr2);
	END(kx_signal);

	SIZE(kx_thread);
	M(kx_thread, self), M(kx_thread, entry), M(kx_thread, frame_top), M(kx_thread, frame), M(kx_thread, user_rsp);
	M(kx_thread, resume), M(kx_thread, work), M(kx_thread, slow), M(kx_thread, sigmask), M(kx_thread, host_mask);
	M(kx_thread, tid), M(kx_thread, cpu), M(kx_thread, altstack_sp), M(kx_thread, altstack_size);
	M(kx_thread, altstack_flags), M(kx_thread, index), M(kx_thread, clear_tid), M(kx_thread, panic_msg);
	M(kx_thread, in_call), M(kx_thread, call), M(kx_thread, cpuid_entry), M(kx_thread, sig),
		M(kx_thread, saved_mask);
	M(kx_thread, has_saved_mask), M(kx_thread, yield_count), M(kx_thread, pid), M(kx_thread, vfork),
		M(kx_thread, actions), M(kx_thread, rand_key), M(kx_thread, rand_buf);
	M(kx_thread, rand_left), M(kx_thread, rand_gen), M(kx_thread, rand_bytes), M(kx_thread, rseq),
		M(kx_thread, rseq_len), M(kx_thread, rseq_sig), M(kx_thread, mm_cid), M(kx_thread, pad);
	M(kx_thread, futex_slot), M(kx_thread, pad2), M(kx_thread, spin_skip), M(kx_thread, spin_fails);
	M(kx_thread, robust_ready);
	M(kx_thread, sigwait), M(kx_thread, hand);
	END(kx_thread);

	SIZE(kx_shared);
	M(kx_shared, version), M(kx_shared, pid), M(kx_shared, ppid), M(kx_shared, fork_gen), M(kx_shared, uid);
	M(kx_shared, euid), M(kx_shared, gid), M(kx_shared, egid), M(kx_shared, trace), M(kx_shared, xsave_size);
	M(kx_shared, xfeatures), M(kx_shared, nr_threads), M(kx_shared, no_local_time), M(kx_shared, cpuids),
		M(kx_shared, cpuids_real), M(kx_shared, local_calls);
	M(kx_shared, nr_sites), M(kx_shared, sites_seq), M(kx_shared, sigaction), M(kx_shared, rt_handlers),
		M(kx_shared, futex_waiters), M(kx_shared, rseq_on), M(kx_shared, ppid_asked);
	M(kx_shared, futex_outside), M(kx_shared, ppid_stale);
	M(kx_shared, batch), M(kx_shared, dgram), M(kx_shared, batched), M(kx_shared, fpage_seq), M(kx_shared, pad);
	M(kx_shared, fpage);
	END(kx_shared);

	SIZE(kx_futexes);
	M(kx_futexes, waiters), M(kx_futexes, outside), M(kx_futexes, cpus), M(kx_futexes, exit_cost),
		M(kx_futexes, sizes_asked), M(kx_futexes, mapped_outside), M(kx_futexes, resized), M(kx_futexes, ended),
		M(kx_futexes, pad), M(kx_futexes, nap);
	END(kx_futexes);

	SIZE(kx_bsock);
	M(kx_bsock, rx), M(kx_bsock, buf), M(kx_bsock, owner), M(kx_bsock, credit), M(kx_bsock, gen),
		M(kx_bsock, epoch), M(kx_bsock, turn), M(kx_bsock, fresh), M(kx_bsock, tcp), M(kx_bsock, epoll),
		M(kx_bsock, pad);
	END(kx_bsock);

	SIZE(kx_bseek);
	M(kx_bseek, size), M(kx_bseek, calls), M(kx_bseek, ticket), M(kx_bseek, resized), M(kx_bseek, fd),
		M(kx_bseek, uses);
	END(kx_bseek);

	SIZE(kx_bctx);
	M(kx_bctx, head), M(kx_bctx, tail), M(kx_bctx, exits), M(kx_bctx, mark), M(kx_bctx, turn), M(kx_bctx, said),
		M(kx_bctx, epoll), M(kx_bctx, drained), M(kx_bctx, drained_at), M(kx_bctx, file), M(kx_bctx, accepted),
		M(kx_bctx, accepted_at), M(kx_bctx, news);
	END(kx_bctx);

	SIZE(kx_bahead);
	M(kx_bahead, calls), M(kx_bahead, state), M(kx_bahead, epoll), M(kx_bahead, nr), M(kx_bahead, spoilt);
	M(kx_bahead, zeros), M(kx_bahead, fresh), M(kx_bahead, fresh_events), M(kx_bahead, pad), M(kx_bahead, event);
	END(kx_bahead);

	SIZE(kx_bevent);
	M(kx_bevent, data), M(kx_bevent, events), M(kx_bevent, fd);
	END(kx_bevent);
	SIZE(kx_bname);
	M(kx_bname, fd), M(kx_bname, gen), M(kx_bname, len), M(kx_bname, pad), M(kx_bname, addr);
	END(kx_bname);
	SIZE(kx_bopt);
	M(kx_bopt, level), M(kx_bopt, name), M(kx_bopt, value), M(kx_bopt, pad);
	END(kx_bopt);

	SIZE(kx_bfile);
	M(kx_bfile, size), M(kx_bfile, fd), M(kx_bfile, uses), M(kx_bfile, calls);
	END(kx_bfile);

	SIZE(kx_badd);
	M(kx_badd, data), M(kx_badd, events), M(kx_badd, epoll);
	END(kx_badd);

	SIZE(kx_bfrom);
	M(kx_bfrom, offset), M(kx_bfrom, fd), M(kx_bfrom, len);
	END(kx_bfrom);

	SIZE(kx_brec);
	M(kx_brec, fd), M(kx_brec, gen), M(kx_brec, len), M(kx_brec, flags), M(kx_brec, ticket), M(kx_brec, pad);
	END(kx_brec);

	SIZE(kx_batch);
	M(kx_batch, ticket), M(kx_batch, selfish), M(kx_batch, pad), M(kx_batch, calls), M(kx_batch, pad2),
		M(kx_batch, ctx_of);
	END(kx_batch);

	SIZE(kx_vvar);
	M(kx_vvar, seq), M(kx_vvar, valid), M(kx_vvar, tsc_base), M(kx_vvar, mult), M(kx_vvar, max_delta);
	M(kx_vvar, real_ns), M(kx_vvar, mono_ns), M(kx_vvar, boot_ns), M(kx_vvar, tai_ns), M(kx_vvar, raw_tsc_base);
	M(kx_vvar, raw_mult), M(kx_vvar, raw_ns), M(kx_vvar, cpu), M(kx_vvar, pad), M(kx_vvar, fast);
	END(kx_vvar);

	SIZE(kx_site);
	M(kx_site, start), M(kx_site, tramp), M(kx_site, len), M(kx_site, tramp_len), M(kx_site, sys_off);
	member("kx_site", "n:7, cpuid:1", offsetof(struct kx_site, sys_off) + 1, 1, 1), M(kx_site, map);
	END(kx_site);

	SIZE(kx_cpuid_entry);
	M(kx_cpuid_entry, function), M(kx_cpuid_entry, index), M(kx_cpuid_entry, flags), M(kx_cpuid_entry, eax);
	M(kx_cpuid_entry, ebx), M(kx_cpuid_entry, ecx), M(kx_cpuid_entry, edx), M(kx_cpuid_entry, pad);
	END(kx_cpuid_entry);

	SIZE(kx_cpuid);
	M(kx_cpuid, n), M(kx_cpuid, pad), M(kx_cpuid, entry);
	END(kx_cpuid);
}

static void dump_arg(const struct kx_arg_desc *d)
{
	printf(" %s:%s", d->name, kinds[d->kind]);
	if (d->kind == KX_A_FLAGS)
		printf("(%s)", d->set);
	else if (d->kind >= KX_A_PATH && d->kind <= KX_A_INOUTSO && d->kind != KX_A_STR)
		printf("(%d)", d->aux);
}

static void dump_rows(void)
{
	unsigned i;
	int a;

	printf("\nhypercalls: %zu\n", sizeof(rows) / sizeof(rows[0]));
	for (i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		const struct row *r = &rows[i];

		printf("%d %s %s %u", r->nr, r->name, r->handler, r->flags);
		for (a = 0; a < 6 && r->arg[a].kind != KX_A_NONE; a++)
			dump_arg(&r->arg[a]);
		putchar('\n');
		if (i && r->nr <= rows[i - 1].nr) {
			fprintf(stderr, "abi_dump: row %d %s is out of order or a duplicate\n", r->nr, r->name);
			bad = 1;
		}
	}
}

int main(void)
{
	dump_constants();
	dump_structs();
	dump_rows();
	return bad;
}
