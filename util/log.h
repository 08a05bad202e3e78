/* SPDX-License-Identifier: Apache-2.0 */
/* One-line log to stderr: "kylinx: level pvm=<pid>[,name] module: text". Async-signal-safe; at most 10 lines a second
 * and call site (a guest can trigger some), the rest are counted and the count is told with the next line. */
#ifndef KX_LOG_H
#define KX_LOG_H

enum kx_log_level { KX_LOG_ERROR, KX_LOG_WARN, KX_LOG_INFO, KX_LOG_DEBUG };

struct kx_log_site {
	long second;
	unsigned count, dropped;
};

/* Lines above `level` are dropped; KX_LOG_WARN at start. fd: where to write; the caller keeps it open. name: put
 * after the pid, NULL = none; the caller keeps it. */
void kx_log_init(enum kx_log_level level, int fd, const char *name);
/* Write to fd from now on. */
void kx_log_use(int fd);
/* By name ("error", "warn", "info", "debug"), NULL = warn; -1 when there is no such level. */
int kx_log_level_find(const char *name);

__attribute__((format(printf, 4, 5))) void kx_log_at(struct kx_log_site *site, enum kx_log_level level,
						     const char *module, const char *fmt, ...);

#define kx_log(level, module, ...) \
	do { \
		static struct kx_log_site site_; \
		kx_log_at(&site_, level, module, __VA_ARGS__); \
	} while (0)
#endif
