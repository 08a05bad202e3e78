/* SPDX-License-Identifier: Apache-2.0 */
/* See strace_priv.h: the line of the trace, and the numbers, symbols and strings that stand in it. */
#include "strace_priv.h"
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "../../util/log.h"
#include "../../util/quiet.h"
#include "strace_names.h"

#define TAIL_ROOM 640 /* of the line, kept for the result */

static int trace_fd = -1;
static bool told; /* that it is not complete */

int strace_fd(void) { return __atomic_load_n(&trace_fd, __ATOMIC_RELAXED); }
void strace_adopt(int fd) { fd_keep(&trace_fd, fd); }

int strace_init(const char *file)
{
	int fd = file ? open(file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644)
		      : fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);

	if (fd < 0)
		return -errno;
	return fd_keep(&trace_fd, fd);
}

/* ---- The line ------------------------------------------------------------------------------------------- */

void emit(struct line *l, const char *s, size_t n)
{
	if (n > l->limit - l->len) {
		n = l->limit - l->len;
		l->cut = true;
	}
	memcpy(l->buf + l->len, s, n);
	l->len += n;
}

void puts_(struct line *l, const char *s) { emit(l, s, strlen(s)); }

void put(struct line *l, const char *fmt, ...)
{
	char tmp[256];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(tmp, sizeof(tmp), fmt, ap);
	va_end(ap);
	if (n > 0)
		emit(l, tmp, (size_t)n < sizeof(tmp) ? (size_t)n : sizeof(tmp) - 1);
}

void line_start(struct line *l, struct thread *t)
{
	l->len = 0;
	l->limit = sizeof(l->buf) - TAIL_ROOM;
	l->cut = false;
	l->row = NULL;
	l->nr = ~0ull;
	l->ret = 0;
	if (pvm.next_index > 1 || pvm.nr_threads > 1 || pvm.has_family)
		put(l, "[pid %d] ", t ? (int)t->tid : (int)my_pid());
}

/* From here on the room kept for the result may be used. */
void line_tail(struct line *l)
{
	if (l->cut)
		l->limit += 3, puts_(l, "...");
	l->limit = sizeof(l->buf) - 64;
}

/* One write, so that threads' lines don't mix. */
void line_end(struct line *l)
{
	int fd = __atomic_load_n(&trace_fd, __ATOMIC_RELAXED);

	l->buf[l->len++] = '\n';
	if (write_quietly(fd, l->buf, l->len) >= 0) /* of a part alone the next line will say why */
		return;
	if (errno != EPIPE && !__atomic_exchange_n(&told, true, __ATOMIC_RELAXED))
		kx_log(KX_LOG_WARN, "strace", "the trace is not complete: %s", strerror(errno));
	if (errno == EPIPE)
		__atomic_store_n(&trace_fd, -1, __ATOMIC_RELAXED);
}

/* ---- Numbers and symbols -------------------------------------------------------------------------------- */

void put_ptr(struct line *l, uint64_t v)
{
	if (v)
		put(l, "%#" PRIx64, v);
	else
		puts_(l, "NULL");
}

void put_hex(struct line *l, uint64_t v) { put(l, v ? "%#" PRIx64 : "%" PRIx64, v); }

void put_set(struct line *l, const struct symset *set, uint64_t v)
{
	const struct sym *s;
	uint64_t num;
	bool any = false;

	if (!set->wide)
		v = (uint32_t)v;
	num = v & set->mask;
	for (s = set->tab; *s->name; s++) {
		if (!(s->v & ~set->mask) && s->v == num && (set->mask || !v)) {
			puts_(l, s->name);
			num = 0;
			any = true;
			break;
		}
	}
	if (set->mask == KX_ENUM) {
		if (!any)
			put_hex(l, v);
		return;
	}
	v &= ~set->mask;
	for (s = set->tab; *s->name; s++) {
		if (!s->v || (s->v & set->mask) || (v & s->v) != s->v)
			continue;
		put(l, "%s%s", any ? "|" : "", s->name);
		v &= ~s->v;
		any = true;
	}
	if (v | num)
		put(l, "%s%#" PRIx64, any ? "|" : "", v | num);
	else if (!any)
		puts_(l, "0");
}

/* Without "SIG": what stands in a signal set. */
void put_sigabbrev(struct line *l, unsigned sig)
{
	const char *name = sig == SIGIO ? "IO" : sig < 32 ? sigabbrev_np((int)sig) : NULL; /* not POLL */

	if (name)
		puts_(l, name);
	else if (sig == 32)
		puts_(l, "RTMIN");
	else if (sig > 32 && sig <= 64)
		put(l, "RT_%u", sig - 32);
	else
		put(l, "%u", sig);
}

void put_sig(struct line *l, unsigned sig)
{
	if (sig >= 1 && sig <= 64)
		puts_(l, "SIG");
	else {
		put(l, "%d", (int)sig);
		return;
	}
	put_sigabbrev(l, sig);
}

void put_mode(struct line *l, unsigned mode)
{
	if (mode & S_IFMT) {
		put_set(l, &ss_filetype, mode & ~07777u);
		puts_(l, "|");
		mode &= 07777;
		puts_(l, mode & S_ISUID ? "S_ISUID|" : "");
		puts_(l, mode & S_ISGID ? "S_ISGID|" : "");
		puts_(l, mode & S_ISVTX ? "S_ISVTX|" : "");
		mode &= 0777;
	}
	put(l, "%#03o", mode);
}

void put_fd(struct line *l, int fd)
{
	if (fd == AT_FDCWD)
		puts_(l, "AT_FDCWD");
	else
		put(l, "%d", fd);
}

void put_clone_flags(struct line *l, uint64_t v)
{
	if ((v & ~0xffull) || !(v & 0xff))
		put_set(l, &ss_clone, v & ~0xffull);
	if (v & 0xff) {
		puts_(l, v & ~0xffull ? "|" : "");
		put_sig(l, v & 0xff);
	}
}

/* ---- Strings and buffers -------------------------------------------------------------------------------- */

/* `next`: whether bytes that are not in b follow (an octal escape must then have all its digits). */
void put_escaped(struct line *l, const uint8_t *b, size_t n, bool next)
{
	static const char from[] = "\n\t\r\v\f\"\\", to[] = "ntrvf\"\\";
	char out[64 * 4];
	size_t i, o = 0;
	const char *p;

	for (i = 0; i < n && i < 64; i++) {
		bool digit = i + 1 < n ? b[i + 1] >= '0' && b[i + 1] <= '9' : next;

		if (b[i] && (p = strchr(from, b[i]))) {
			out[o++] = '\\';
			out[o++] = to[p - from];
		} else if (b[i] >= 0x20 && b[i] < 0x7f) {
			out[o++] = (char)b[i];
		} else {
			out[o++] = '\\';
			if (digit || b[i] >= 0100)
				out[o++] = (char)('0' + (b[i] >> 6));
			if (digit || b[i] >= 010)
				out[o++] = (char)('0' + (b[i] >> 3 & 7));
			out[o++] = (char)('0' + (b[i] & 7));
		}
	}
	emit(l, out, o);
}

static void put_sample(struct line *l, uint64_t gva, uint64_t n, bool hex)
{
	uint8_t b[DATA_SHOWN];
	size_t m = n < sizeof(b) ? n : sizeof(b);

	if (!gva || guest_read(b, gva, m)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "\"");
	if (!hex)
		put_escaped(l, b, m, false);
	for (size_t i = 0; hex && i < m; i++)
		put(l, "\\x%02x", b[i]);
	puts_(l, n > m ? "\"..." : "\"");
}

/* n bytes at gva, of which DATA_SHOWN are shown. */
void put_data(struct line *l, uint64_t gva, uint64_t n) { put_sample(l, gva, n, false); }

/* The same, each byte in hexadecimal. */
void put_bytes(struct line *l, uint64_t gva, uint64_t n) { put_sample(l, gva, n, true); }

/* A string up to its NUL, of at most PATH_SHOWN bytes; read page-wise as it may end just before a hole. */
void put_str(struct line *l, uint64_t gva)
{
	uint8_t b[64];
	size_t done = 0, m, n;
	bool end = false;

	for (; !end && done < PATH_SHOWN; done += n) {
		n = 64 - ((gva + done) & 63);
		if (!gva || gva + done < gva || guest_read(b, gva + done, n))
			break;
		if (!done)
			puts_(l, "\"");
		m = strnlen((char *)b, n);
		end = m < n;
		put_escaped(l, b, m, !end);
	}
	if (done)
		puts_(l, end ? "\"" : "\"...");
	else
		put_ptr(l, gva);
}

/* A string of which DATA_SHOWN bytes are shown. */
void put_str_short(struct line *l, uint64_t gva)
{
	uint8_t b[DATA_SHOWN + 1];
	size_t n = 0;

	while (n < sizeof(b) && !guest_read(b + n, gva + n, 1) && b[n])
		n++;
	if (!n && guest_read(b, gva, 1)) {
		put_ptr(l, gva);
		return;
	}
	puts_(l, "\"");
	put_escaped(l, b, n < DATA_SHOWN ? n : DATA_SHOWN, false);
	puts_(l, n > DATA_SHOWN ? "\"..." : "\"");
}

/* A fixed char array. */
void put_chars(struct line *l, const char *s, size_t max)
{
	size_t n = strnlen(s, max), i;

	puts_(l, "\"");
	for (i = 0; i < n; i += 64)
		put_escaped(l, (const uint8_t *)s + i, n - i < 64 ? n - i : 64, n - i > 64);
	puts_(l, "\"");
}
