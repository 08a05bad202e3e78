/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx: choose the verb, print its error, exit with its status. */
#include "../monitor/core/exec.h"
#include "cli.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

static int cmd_help(int argc, char **argv, struct kx_err *err);

static const char help_help[] = "Usage: kylinx help [COMMAND]\n"
				"\n"
				"Describe KylinX, or one command.\n";

static const struct cli_verb verbs[] = {
	{ "run", "run a program in a pVM", cmd_run_help, cmd_run, true },
	{ "ps", "list families of pVMs", cmd_ps_help, cmd_ps, false },
	{ "kill", "send a signal to a pVM or a family", cmd_kill_help, cmd_kill, false },
	{ "exec", "run a program in a family that runs", cmd_exec_help, cmd_exec, true },
	{ "update", "replace a shared library in programs that run", cmd_update_help, cmd_update, false },
	{ "lib", "the store of prepared libraries", cmd_lib_help, cmd_lib, false },
	{ "bench", "measure pVMs against processes", cmd_bench_help, cmd_bench, true },
	{ "help", "describe a command", help_help, cmd_help, false },
};

#define NR_VERBS (sizeof(verbs) / sizeof(*verbs))

static const struct cli_verb *verb_find(const char *name)
{
	for (size_t i = 0; i < NR_VERBS; i++)
		if (!strcmp(verbs[i].name, name))
			return &verbs[i];
	return NULL;
}

int cli_print(const char *text, struct kx_err *err)
{
	size_t n = strlen(text);
	while (n) {
		ssize_t w = write(STDOUT_FILENO, text, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w < 0)
			return kx_err_set(err, errno, "standard output: %s (check where it goes)", strerror(errno));
		text += w;
		n -= (size_t)w;
	}
	return 0;
}

static int usage(struct kx_err *err)
{
	char text[8192]; /* more than all verbs need */
	int n = snprintf(text, sizeof(text),
			 "Usage: kylinx COMMAND [ARG...]\n"
			 "\n"
			 "Run unmodified Linux programs, each in a virtual machine that behaves like a process.\n"
			 "\n"
			 "Commands:\n");
	for (size_t i = 0; i < NR_VERBS; i++)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "  %-10s %s\n", verbs[i].name, verbs[i].summary);
	snprintf(text + n, sizeof(text) - (size_t)n,
		 "\n"
		 "Options:\n"
		 "  --help     print this\n"
		 "  --version  print the version\n"
		 "\n"
		 "`kylinx help COMMAND` says more about a command.\n");
	return cli_print(text, err) ? CLI_FAILED : 0;
}

static int unknown(const char *name, struct kx_err *err)
{
	kx_err_set(err, EINVAL, "%s: unknown command (see `kylinx help`)", name);
	return CLI_FAILED;
}

static int cmd_help(int argc, char **argv, struct kx_err *err)
{
	if (argc > 1 && (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h")))
		return cli_print(help_help, err) ? CLI_FAILED : 0;
	if (argc < 2)
		return usage(err);
	const struct cli_verb *v = verb_find(argv[1]);
	if (!v)
		return unknown(argv[1], err);
	if (argc > 2) {
		kx_err_set(err, EINVAL, "help: too many arguments (name one command)");
		return CLI_FAILED;
	}
	return cli_print(v->help, err) ? CLI_FAILED : 0;
}

static int dispatch(int argc, char **argv, struct kx_err *err)
{
	if (argc < 2) {
		kx_err_set(err, EINVAL, "command: none given (see `kylinx help`)");
		return CLI_FAILED;
	}
	if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h"))
		return usage(err);
	if (!strcmp(argv[1], "--version"))
		return cli_print("kylinx " KX_VERSION "\n", err) ? CLI_FAILED : 0;
	if (argv[1][0] == '-') {
		kx_err_set(err, EINVAL, "%s: unknown option (see `kylinx help`)", argv[1]);
		return CLI_FAILED;
	}
	const struct cli_verb *v = verb_find(argv[1]);
	if (!v)
		return unknown(argv[1], err);
	if (!v->starts) /* a write beyond the limit of files is an error like others */
		signal(SIGXFSZ, SIG_IGN);
	return v->run(argc - 1, argv + 1, err);
}

/* Options name files to be written, and variables where keys and policies are: whoever starts it is trusted with all of its
 * rights. */
static bool has_rights_of_its_file(struct kx_err *err)
{
	struct stat st;
	if (!getauxval(AT_SECURE) || stat("/proc/self/exe", &st) || !(st.st_mode & (S_ISUID | S_ISGID)))
		return false;
	kx_err_set(err, EPERM, "kylinx: its file is setuid or setgid, and it is not made for that (chmod ug-s)");
	return true;
}

int main(int argc, char **argv)
{
	struct kx_err err = { .code = 0 };
	int status = CLI_FAILED;
	if (has_rights_of_its_file(&err))
		;
	else if (argc == 2 && !strcmp(argv[0], EXEC_NAME))
		exec_resume(atoi(argv[1]), &err);
	else
		status = dispatch(argc, argv, &err);
	if (!err.code)
		return status;
	for (char *c = err.msg; *c; c++) /* what the user typed may have anything in it; the message is one line */
		if ((unsigned char)*c < ' ' || *c == 127)
			*c = '?';
	dprintf(STDERR_FILENO, "kylinx: %s\n", err.msg);
	return err.exit_code ? err.exit_code : CLI_FAILED;
}
