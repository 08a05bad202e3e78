/* SPDX-License-Identifier: Apache-2.0 */
/* kylinx run: from the command line to a struct kx_config. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "../monitor/core/pvm.h"
#include "cli.h"

#define MAX_CPUS 1024
#define MIN_MEMORY (1ull << 20)
#define SEE "see `kylinx help run`"

const char cmd_run_help[] =
	"Usage: kylinx run [OPTION...] [--] PROGRAM [ARG...]\n"
	"\n"
	"Run PROGRAM in a virtual machine of its own. Input, output, terminal, signals, working directory and exit\n"
	"status are as if PROGRAM ran directly.\n"
	"\n"
	"Options:\n"
	"  --memory SIZE            limit its private memory (bytes, or with K, M, G)\n"
	"  --cpus N                 show it N processors\n"
	"  --root DIR               use DIR as its root directory, read-only\n"
	"  --volume SRC:DST[:ro]    show it SRC of the host as DST; may be repeated\n"
	"  --env NAME=VALUE         set an environment variable; may be repeated\n"
	"  --net host|private|none  the host's network (default), one of its own that reaches the outside, or only a\n"
	"                           loopback interface\n"
	"  -p, --publish [IP:]PORT:PORT[/udp]\n"
	"                           lead a port of the host to one of its private network; may be repeated\n"
	"  --io auto|exit|poll      answer system calls by what pays (default), only by exits of the virtual machine, "
	"or\n"
	"                           by a thread that polls whenever there is a second processor\n"
	"  --policy FILE|off        let it execute only what the policy in FILE allows (see kylinx-policy(5))\n"
	"  --name NAME              name its family, for logs and `kylinx ps`\n"
	"  --strace[=FILE]          write its system calls to standard error, or FILE\n"
	"  --stats[=FILE]           write statistics to standard error, or FILE, at its end\n"
	"  --log LEVEL              error, warn (default), info or debug\n"
	"  --help                   print this\n"
	"\n"
	"Options end at PROGRAM. It sees /usr, /etc, its own directory and the working directory read-only; /tmp,\n"
	"/run, /var, /home and /root are empty and its own. Give it more with --volume.\n"
	"\n"
	"Exit status: the program's. 125 if KylinX failed, 126 if PROGRAM cannot be executed, 127 if it is not\n"
	"found.\n";

enum option {
	OPT_MEMORY,
	OPT_CPUS,
	OPT_ROOT,
	OPT_VOLUME,
	OPT_ENV,
	OPT_NET,
	OPT_PUBLISH,
	OPT_IO,
	OPT_POLICY,
	OPT_NAME,
	OPT_STRACE,
	OPT_STATS,
	OPT_LOG,
	OPT_HELP,
};

enum { ARG_NONE, ARG_NEEDED, ARG_OPTIONAL /* only as --option=value */ };

static const struct {
	const char *name;
	int arg;
} options[] = {
	[OPT_MEMORY] = { "memory", ARG_NEEDED },   [OPT_CPUS] = { "cpus", ARG_NEEDED },
	[OPT_ROOT] = { "root", ARG_NEEDED },       [OPT_VOLUME] = { "volume", ARG_NEEDED },
	[OPT_ENV] = { "env", ARG_NEEDED },         [OPT_NET] = { "net", ARG_NEEDED },
	[OPT_NAME] = { "name", ARG_NEEDED },       [OPT_STRACE] = { "strace", ARG_OPTIONAL },
	[OPT_STATS] = { "stats", ARG_OPTIONAL },   [OPT_LOG] = { "log", ARG_NEEDED },
	[OPT_IO] = { "io", ARG_NEEDED },           [OPT_POLICY] = { "policy", ARG_NEEDED },
	[OPT_PUBLISH] = { "publish", ARG_NEEDED }, [OPT_HELP] = { "help", ARG_NONE },
};

#define NR_OPTIONS ((int)(sizeof(options) / sizeof(*options)))

static int memory_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	uint64_t n = 0;
	const char *p = s;
	unsigned shift = 0;
	for (; *p >= '0' && *p <= '9'; p++)
		if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n))
			return kx_err_set(err, ERANGE, "--memory %s: too large (give less than 508G)", s);
	if (p == s)
		return kx_err_set(err, EINVAL, "--memory %s: not a size (give a number, with K, M or G)", s);
	switch (*p) {
	case 'k':
	case 'K':
		shift = 10;
		break;
	case 'm':
	case 'M':
		shift = 20;
		break;
	case 'g':
	case 'G':
		shift = 30;
		break;
	}
	if (p[shift ? 1 : 0])
		return kx_err_set(err, EINVAL, "--memory %s: not a size (give a number, with K, M or G)", s);
	if (n > (uint64_t)KX_USER_END >> shift)
		return kx_err_set(err, ERANGE, "--memory %s: too large (give less than 508G)", s);
	if (n << shift < MIN_MEMORY)
		return kx_err_set(err, ERANGE, "--memory %s: too small (give at least 1M)", s);
	cfg->memory = n << shift;
	return 0;
}

static int cpus_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	char *end;
	errno = 0;
	long n = strtol(s, &end, 10);
	if (*s < '0' || *s > '9' || *end || errno || n < 1 || n > MAX_CPUS)
		return kx_err_set(err, EINVAL, "--cpus %s: not a number of processors (give 1 to %d)", s, MAX_CPUS);
	cfg->cpus = (int)n;
	return 0;
}

static int root_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	struct stat st;
	if (stat(s, &st) || (!S_ISDIR(st.st_mode) && (errno = ENOTDIR)))
		return kx_err_set(err, errno, "--root %s: %s (give the directory of a root file system)", s,
				  strerror(errno));
	cfg->root = s;
	return 0;
}

static bool has_dotdot(const char *p)
{
	for (; (p = strstr(p, "..")); p++)
		if (p[-1] == '/' && (!p[2] || p[2] == '/'))
			return true;
	return false;
}

static int volume_add(struct kx_config *cfg, char *s, struct kx_err *err)
{
	struct kx_volume *v = &cfg->volumes[cfg->nr_volumes];
	char *copy = strdup(s), *dst, *mode;
	if (!copy)
		return kx_err_set(err, ENOMEM, "--volume %s: no memory (free some)", s);
	if (cfg->nr_volumes == (int)(sizeof(cfg->volumes) / sizeof(*cfg->volumes)))
		return kx_err_set(err, E2BIG, "--volume %s: too many volumes (give at most %d)", s, cfg->nr_volumes);
	dst = strchr(copy, ':');
	if (!dst || dst == copy || !dst[1] || dst[1] == ':')
		return kx_err_set(err, EINVAL, "--volume %s: not a volume (give SRC:DST or SRC:DST:ro)", s);
	*dst++ = 0;
	if ((mode = strchr(dst, ':'))) {
		*mode++ = 0;
		if (strcmp(mode, "ro") && strcmp(mode, "rw"))
			return kx_err_set(err, EINVAL, "--volume %s: unknown mode '%s' (give SRC:DST or SRC:DST:ro)", s,
					  mode);
	}
	if (*dst != '/' || has_dotdot(dst))
		return kx_err_set(err, EINVAL, "--volume %s: DST is not an absolute path without .. (give it as /...)",
				  s);
	if (access(copy, F_OK))
		return kx_err_set(err, errno, "--volume %s: %s: %s (check SRC)", s, copy, strerror(errno));
	*v = (struct kx_volume){ .src = copy, .dst = dst, .ro = mode && !strcmp(mode, "ro") };
	cfg->nr_volumes++;
	return 0;
}

/* cfg->envp is ours from the first --env on, with room for more entries. */
int cli_env_set(struct kx_config *cfg, char *s, struct kx_err *err)
{
	const char *eq = strchr(s, '=');
	size_t n = 0, name;
	if (!eq || eq == s)
		return kx_err_set(err, EINVAL, "--env %s: not a variable (give NAME=VALUE)", s);
	name = (size_t)(eq - s) + 1;
	for (; cfg->envp[n]; n++)
		if (!strncmp(cfg->envp[n], s, name)) {
			cfg->envp[n] = s;
			return 0;
		}
	cfg->envp[n] = s;
	cfg->envp[n + 1] = NULL;
	return 0;
}

static int net_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	cfg->net_none = !strcmp(s, "none");
	cfg->net_private = !strcmp(s, "private");
	if (!cfg->net_none && !cfg->net_private && strcmp(s, "host"))
		return kx_err_set(err, EINVAL, "--net %s: unknown network (give host, private or none)", s);
	return 0;
}

static int io_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	static const char *const modes[] = { [KX_IO_AUTO] = "auto", [KX_IO_EXIT] = "exit", [KX_IO_POLL] = "poll" };
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (!strcmp(s, modes[i])) {
			cfg->io = (int)i;
			return 0;
		}
	return kx_err_set(err, EINVAL, "--io %s: unknown way (give auto, exit or poll)", s);
}

static int name_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	static const char ok[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-";
	size_t n = strlen(s);
	if (!n || n > 64 || strspn(s, ok) != n || *s == '-' || *s == '.' || strspn(s, "0123456789") == n)
		return kx_err_set(
			err, EINVAL,
			"--name %s: not a name (give 1 to 64 letters, digits, '_', '.' or '-', not digits alone)", s);
	cfg->name = s;
	return 0;
}

static int log_set(struct kx_config *cfg, const char *s, struct kx_err *err)
{
	static const char *const levels[] = { "error", "warn", "info", "debug" };
	for (size_t i = 0; i < sizeof(levels) / sizeof(*levels); i++)
		if (!strcmp(s, levels[i])) {
			cfg->log_level = levels[i];
			return 0;
		}
	return kx_err_set(err, EINVAL, "--log %s: unknown level (give error, warn, info or debug)", s);
}

static int file_set(bool *on, const char **file, const char *option, const char *value, struct kx_err *err)
{
	if (value && !*value)
		return kx_err_set(err, EINVAL, "--%s=: no file (give --%s or --%s=FILE)", option, option, option);
	*on = true;
	*file = value;
	return 0;
}

static int option_set(struct kx_config *cfg, enum option o, char *value, struct kx_err *err)
{
	switch (o) {
	case OPT_MEMORY:
		return memory_set(cfg, value, err);
	case OPT_CPUS:
		return cpus_set(cfg, value, err);
	case OPT_ROOT:
		return root_set(cfg, value, err);
	case OPT_VOLUME:
		return volume_add(cfg, value, err);
	case OPT_ENV:
		return cli_env_set(cfg, value, err);
	case OPT_NET:
		return net_set(cfg, value, err);
	case OPT_PUBLISH:
		return publish_add(cfg, value, err);
	case OPT_IO:
		return io_set(cfg, value, err);
	case OPT_POLICY:
		cfg->policy = value;
		return 0;
	case OPT_NAME:
		return name_set(cfg, value, err);
	case OPT_STRACE:
		return file_set(&cfg->strace, &cfg->strace_file, "strace", value, err);
	case OPT_STATS:
		return file_set(&cfg->stats, &cfg->stats_file, "stats", value, err);
	case OPT_LOG:
		return log_set(cfg, value, err);
	case OPT_HELP:
		break;
	}
	return 0;
}

/* "--name" or "--name=value" at argv[*i], which moves past what was taken. Returns enum option, or -1 and err. */
static int option_next(int argc, char **argv, int *i, char **value, struct kx_err *err)
{
	char *s = argv[(*i)++], *eq;
	size_t n;
	int o;
	if (!strcmp(s, "-h"))
		return OPT_HELP;
	if (!strncmp(s, "-p", 2)) {
		*value = s[2] ? s + 2 : *i < argc ? argv[(*i)++] : NULL;
		if (*value)
			return OPT_PUBLISH;
		kx_err_set(err, EINVAL, "-p: needs a value (" SEE ")");
		return -1;
	}
	eq = strchr(s, '=');
	n = eq ? (size_t)(eq - s) : strlen(s);
	for (o = 0; o < NR_OPTIONS; o++)
		if (s[1] == '-' && strlen(options[o].name) == n - 2 && !strncmp(options[o].name, s + 2, n - 2))
			break;
	if (o == NR_OPTIONS) {
		kx_err_set(err, EINVAL, "%.*s: unknown option (" SEE ")", (int)n, s);
		return -1;
	}
	*value = eq ? eq + 1 : NULL;
	if (eq && options[o].arg == ARG_NONE) {
		kx_err_set(err, EINVAL, "--%s: takes no value (" SEE ")", options[o].name);
		return -1;
	}
	if (!eq && options[o].arg == ARG_NEEDED) {
		if (*i >= argc) {
			kx_err_set(err, EINVAL, "--%s: needs a value (" SEE ")", options[o].name);
			return -1;
		}
		*value = argv[(*i)++];
	}
	return o;
}

char **cli_env_copy(int extra)
{
	size_t n = 0;
	while (environ[n])
		n++;
	char **envp = malloc((n + (size_t)extra + 1) * sizeof(*envp));
	if (envp)
		memcpy(envp, environ, (n + 1) * sizeof(*envp));
	return envp;
}

int cmd_run(int argc, char **argv, struct kx_err *err)
{
	static struct kx_config cfg; /* lives as long as the pVM */
	int i = 1;
	bool net = false;
	char *value = NULL;
	if (!(cfg.envp = cli_env_copy(argc))) {
		kx_err_set(err, ENOMEM, "run: no memory (free some)");
		return CLI_FAILED;
	}
	while (i < argc && argv[i][0] == '-' && argv[i][1]) {
		if (!strcmp(argv[i], "--")) {
			i++;
			break;
		}
		int o = option_next(argc, argv, &i, &value, err);
		if (o == OPT_HELP)
			return cli_print(cmd_run_help, err) ? CLI_FAILED : 0;
		if (o < 0 || option_set(&cfg, (enum option)o, value, err))
			return CLI_FAILED;
		net = net || o == OPT_NET;
	}
	if (cfg.nr_publish && net && !cfg.net_private) {
		kx_err_set(err, EINVAL,
			   "--publish: only a private network has ports to publish (give --net private, or no --net)");
		return CLI_FAILED;
	}
	cfg.net_private = cfg.net_private || cfg.nr_publish;
	if (i >= argc) {
		kx_err_set(err, EINVAL, "run: no program given (" SEE ")");
		return CLI_FAILED;
	}
	cfg.program = argv[i];
	cfg.argv = argv + i;
	pvm_run(&cfg, err);
	return CLI_FAILED;
}
