/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a path to a program that is ready to run: opens and checks the file (ELF or #! script) and its interpreter,
 * maps both, makes the stack with arguments, environment and auxiliary vector.
 *
 * Two steps, so that execve(2) can still return an error: load_prepare() checks everything that can be known
 * beforehand and changes nothing; load_commit() maps, into a guest space without any program. When it fails, what
 * is mapped is a half program: the process must end.
 *
 * The first thread starts at load_result.entry with rsp = load_result.sp (16-aligned, argc there), rdx = 0 (no
 * function for atexit) and all other general registers 0, rflags = 0x202, x87 control word 0x37f, MXCSR 0x1f80,
 * fs base 0.
 */
#ifndef KX_LOAD_H
#define KX_LOAD_H
#include <stdbool.h>
#include <stdint.h>
#include "../../util/err.h"

#define LOAD_STRING_MAX 131072         /* an argument or environment string, with its NUL (as Linux) */
#define LOAD_SCRIPT_DEPTH 5            /* scripts interpreted by scripts */
#define LOAD_BRK_GAP (32ull << 20)     /* random bytes between program and heap, below this */
#define LOAD_STACK_RANDOM (4ull << 30) /* the stack's top is at most this far below KX_USER_END */
#define LOAD_STACK_GUARD (1ull << 20)  /* inaccessible bytes below the stack */

struct load_plan;

struct load_result {
	uint64_t entry; /* interpreter's, or the program's when it has none */
	uint64_t sp;
	uint64_t prog_base;   /* relocation of the program (0 unless position-independent) */
	uint64_t interp_base; /* the same of the interpreter */
	uint64_t prog_entry;  /* AT_ENTRY */
};

/*
 * Open and check. path: as seen from the pVM; also AT_EXECFN. exe_fd: -1, or a descriptor of the program
 * (execveat(2) with AT_EMPTY_PATH), which stays the caller's; path then only names it. argv, envp: NULL-terminated
 * arrays in host memory that live until load_free(). On success *plan is the caller's, for load_free().
 *
 * Returns 0 or -errno as execve(2) would (ENOENT, EACCES, ENOEXEC, ELIBBAD, ELOOP, E2BIG, ...), with err->exit_code
 * 127 when something is not found and 126 when it can't be run.
 */
int load_prepare(const char *path, int exe_fd, char **argv, char **envp, struct load_plan **plan, struct kx_err *err);

/*
 * Map what was prepared; set pvm.exe, comm, arg_start to env_end, stack_top (end of the stack's mapping),
 * brk_start (by gmem_set_brk()) and auxv. Returns 0 or -errno with err set.
 */
int load_commit(struct load_plan *plan, struct load_result *out, struct kx_err *err);

void load_free(struct load_plan *plan);
/* True when an interpreter will open the file by its name again. */
bool load_is_script(const struct load_plan *plan);

/* All three. */
int load_program(const char *path, char **argv, char **envp, struct load_result *out, struct kx_err *err);
#endif
