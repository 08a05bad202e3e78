/* SPDX-License-Identifier: Apache-2.0 */
/* Prints docs/hypercalls.md from abi/hypercalls.def. */
#include <stdio.h>
#include <string.h>
#include "../../abi/kx_abi.h"
#include "../../abi/kx_hcall.h"

static const struct row {
	int nr;
	const char *name, *handler;
	unsigned flags;
	const char *doc;
	struct kx_arg_desc arg[6];
} rows[] = {
#define KX_CALL(nr, name, handler, flags, doc, a0, a1, a2, a3, a4, a5) \
	{ nr, #name, #handler, flags, doc, { a0, a1, a2, a3, a4, a5 } },
#include "../../abi/hypercalls.def"
};
#define NR_ROWS (sizeof(rows) / sizeof(rows[0]))

/* Kind, and what its number means: NULL none, else a format for the meaning. */
static const struct {
	const char *name, *aux, *doc;
} kinds[] = {
	[KX_A_NONE] = { "", NULL, "" },
	[KX_A_FD] = { "FD", NULL, "descriptor in use; the monitor's own are EBADF" },
	[KX_A_ATFD] = { "ATFD", NULL, "the same, or AT_FDCWD" },
	[KX_A_FDN] = { "FDN", NULL, "descriptor, or -1" },
	[KX_A_FDNEW] = { "FDNEW", NULL, "number to install a descriptor at" },
	[KX_A_PATH] = { "PATH", "dir", "path, copied once, relative to the argument named or the working directory" },
	[KX_A_PATHE] = { "PATHE", "dir", "the same; may be empty (AT_EMPTY_PATH)" },
	[KX_A_PATHO] = { "PATHO", "dir", "the same; may be NULL" },
	[KX_A_STR] = { "STR", NULL, "string that is no path, copied once" },
	[KX_A_IN] = { "IN", "len", "buffer that the call reads, as long as the argument that is named" },
	[KX_A_OUT] = { "OUT", "len", "buffer that the call writes, of that length" },
	[KX_A_IOVI] = { "IOVI", "len", "array of struct iovec that the call reads from, with that many elements" },
	[KX_A_IOVO] = { "IOVO", "len", "array of struct iovec that the call writes to" },
	[KX_A_INS] = { "INS", "bytes", "struct of so many bytes that the call reads" },
	[KX_A_OUTS] = { "OUTS", "bytes", "struct that the call writes" },
	[KX_A_INOUTS] = { "INOUTS", "bytes", "struct that the call reads and writes" },
	[KX_A_INSO] = { "INSO", "bytes", "as INS; may be NULL" },
	[KX_A_OUTSO] = { "OUTSO", "bytes", "as OUTS; may be NULL" },
	[KX_A_INOUTSO] = { "INOUTSO", "bytes", "as INOUTS; may be NULL" },
	[KX_A_PTR] = { "PTR", NULL, "pointer (or number, by the call's command) that the handler checks" },
	[KX_A_ADDR] = { "ADDR", NULL, "address that the monitor does not dereference as such" },
	[KX_A_INT] = { "INT", NULL, "32-bit signed number" },
	[KX_A_UINT] = { "UINT", NULL, "32-bit unsigned number" },
	[KX_A_SIZE] = { "SIZE", NULL, "64-bit unsigned number" },
	[KX_A_OFF] = { "OFF", NULL, "64-bit signed number" },
	[KX_A_MODE] = { "MODE", NULL, "permission bits" },
	[KX_A_SIG] = { "SIG", NULL, "signal number" },
	[KX_A_FLAGS] = { "FLAGS", "set", "bits; the set names the symbols that `--strace` prints" },
};
_Static_assert(sizeof(kinds) / sizeof(kinds[0]) == KX_A_FLAGS + 1, "every kind is described");

static void print_arg(const struct row *r, int i)
{
	const struct kx_arg_desc *a = &r->arg[i];
	const char *aux = kinds[a->kind].aux;

	printf("%s%s %s", i ? ", " : "", kinds[a->kind].name, a->name);
	if (!aux)
		return;
	if (!strcmp(aux, "set"))
		printf(" (%s)", a->set);
	else if (!strcmp(aux, "bytes"))
		printf(" (%d)", a->aux);
	else if (a->aux >= 0)
		printf(" (%s)", r->arg[a->aux].name);
}

static void print_flags(unsigned flags)
{
	static const char *const names[] = { "BLOCK", "RESTART", "NORESTART", "LOCAL" };
	const char *sep = "";
	int i;

	for (i = 0; i < 4; i++) {
		if (flags >> i & 1) {
			printf("%s%s", sep, names[i]);
			sep = " ";
		}
	}
}

static void print_rows(int own)
{
	unsigned i;
	int a;

	printf("| number | name | arguments | handler | flags | |\n|---:|---|---|---|---|---|\n");
	for (i = 0; i < NR_ROWS; i++) {
		const struct row *r = &rows[i];

		if ((r->nr >= 1024) != own)
			continue;
		printf("| %d | `%s` | ", r->nr, r->name);
		for (a = 0; a < 6 && r->arg[a].kind != KX_A_NONE; a++)
			print_arg(r, a);
		printf(" | %s | ", r->handler);
		print_flags(r->flags);
		printf(" | %s |\n", r->doc);
	}
}

int main(void)
{
	unsigned k;

	printf("<!-- Generated from abi/hypercalls.def by tests/unit/gen_hcall_doc.c. Do not edit. -->\n"
	       "# Hypercalls\n\n"
	       "ABI version %d. The LibOS makes a hypercall for each system call that it can't answer itself. The\n"
	       "monitor copies the number and the six arguments once, checks every argument by its kind, and calls\n"
	       "the handler. A system call without a row here is ENOSYS: one log line, and a count in\n"
	       "`--stats`.\n\n"
	       "## Columns\n\n"
	       "**handler**: `FWD` is the host's call of the same number, made with the checked and translated\n"
	       "arguments; otherwise the function `hc_<handler>` of the monitor. `eperm` refuses.\n\n"
	       "**flags**\n\n"
	       "| flag | meaning |\n|---|---|\n"
	       "| BLOCK | may sleep on the host |\n"
	       "| RESTART | restarted after a signal handler with SA_RESTART (signal(7)) |\n"
	       "| NORESTART | EINTR whenever a handler ran |\n"
	       "| LOCAL | normally answered in the LibOS, without an exit |\n\n"
	       "**argument kinds**\n\n"
	       "| kind | meaning |\n|---|---|\n",
	       KX_ABI_VERSION);
	for (k = KX_A_NONE + 1; k <= KX_A_FLAGS; k++)
		printf("| %s | %s |\n", kinds[k].name, kinds[k].doc);
	printf("\n## Linux's calls\n\nNumbered as on x86-64.\n\n");
	print_rows(0);
	printf("\n## KylinX's own\n\nMade by the LibOS only for itself.\n\n");
	print_rows(1);
	return 0;
}
