/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "quiet.h"

static enum kx_log_level log_level = KX_LOG_WARN;
static int log_fd = 2;
static const char *log_name;
static const char *const level_names[] = { "error", "warn", "info", "debug" };

void kx_log_init(enum kx_log_level level, int fd, const char *name)
{
	log_level = level;
	log_fd = fd;
	log_name = name;
}

void kx_log_use(int fd) { log_fd = fd; }

int kx_log_level_find(const char *name)
{
	for (int i = 0; name && i < 4; i++)
		if (!strcmp(name, level_names[i]))
			return i;
	return name ? -1 : KX_LOG_WARN;
}

/* True when the line may be printed; counts it either way. Races between threads lose a count at worst. */
static int within_rate(struct kx_log_site *site)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	if (site->second != now.tv_sec) {
		site->second = now.tv_sec;
		site->count = 0;
	}
	if (++site->count <= 10)
		return 1;
	site->dropped++;
	return 0;
}

void kx_log_at(struct kx_log_site *site, enum kx_log_level level, const char *module, const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	if (level > log_level || !within_rate(site))
		return;
	int n = snprintf(line, sizeof line, "kylinx: %s pvm=%d%s%.64s %s: ", level_names[level], (int)getpid(),
			 log_name ? "," : "", log_name ? log_name : "", module);
	va_start(ap, fmt);
	n += vsnprintf(line + n, sizeof line - n, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof line - 40)
		n = sizeof line - 40;
	if (site->dropped) {
		n += snprintf(line + n, sizeof line - n, " (%u more not shown)", site->dropped);
		site->dropped = 0;
	}
	line[n++] = '\n';
	write_quietly(log_fd, line, (size_t)n);
}
