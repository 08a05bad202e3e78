/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: one verb, one function. */
#ifndef KX_CLI_H
#define KX_CLI_H
#include <stdbool.h>
#include "../util/build.h"
#include "../util/err.h"

#define CLI_FAILED 125 /* KylinX itself failed */

/* args[0] is the verb. Returns the exit status; on failure err says why (exit_code 0 means CLI_FAILED). */
struct cli_verb {
	const char *name, *summary;
	const char *help; /* what `kylinx help VERB` prints */
	int (*run)(int argc, char **argv, struct kx_err *err);
	bool starts; /* programs, which inherit the actions of signals */
};

/* Print to standard output; an error there (a full disk, a closed pipe) is the command's. 0 or -errno. */
int cli_print(const char *text, struct kx_err *err);

int cmd_run(int argc, char **argv, struct kx_err *err);
int cmd_ps(int argc, char **argv, struct kx_err *err);
int cmd_kill(int argc, char **argv, struct kx_err *err);
int cmd_exec(int argc, char **argv, struct kx_err *err);
int cmd_update(int argc, char **argv, struct kx_err *err);
int cmd_lib(int argc, char **argv, struct kx_err *err);
int cmd_bench(int argc, char **argv, struct kx_err *err);
extern const char cmd_run_help[], cmd_ps_help[], cmd_kill_help[], cmd_exec_help[], cmd_update_help[], cmd_bench_help[],
	cmd_lib_help[];

struct kx_config;
/* One more --publish. 0, or -errno and err. */
int publish_add(struct kx_config *cfg, const char *text, struct kx_err *err);
/* The caller's environment with room for extra variables, and one of them, NAME=VALUE, set in it. */
char **cli_env_copy(int extra);
int cli_env_set(struct kx_config *cfg, char *s, struct kx_err *err);
#endif
