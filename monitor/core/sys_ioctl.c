/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ioctl: only requests in the table, each with what its argument is. Structs go through host copies. Requests
 * with pointers or descriptors inside have a handler of their own. Everything else is ENOTTY, so that a driver's
 * interface that nobody looked at can't be reached.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../util/log.h"
#include "family.h"
#include "hcall.h"
#include "thread.h"

/* Requests whose macro needs a struct that libc's headers do not have, and sizes of the kernel's structs. */
#define REQ_TCGETS2 0x802c542au
#define REQ_TCSETS2 0x402c542bu
#define REQ_TCSETSW2 0x402c542cu
#define REQ_TCSETSF2 0x402c542du
#define REQ_SIOCGSTAMP_NEW 0x80108906u
#define REQ_SIOCGSTAMPNS_NEW 0x80108907u
#define REQ_SIOCGSTAMP_OLD 0x8906u
#define REQ_SIOCGSTAMPNS_OLD 0x8907u
#define REQ_TFD_SET_TICKS 0x40085400u
#define REQ_RNDGETENTCNT 0x80045200u
#define TERMIOS_BYTES 36
#define TERMIOS2_BYTES 44
#define TERMIO_BYTES 18
#define IFREQ_BYTES 40
#define STRUCT_MAX 256
#define LIST_MAX 65536u

enum {
	NONE, /* no argument, or one that means nothing */
	VAL,  /* a number */
	IN,
	OUT,
	INOUT,  /* struct of `size` bytes */
	DENY,   /* known and refused: EPERM */
	CUSTOM, /* `fn` */
};

struct req {
	unsigned nr;
	unsigned char dir, block;
	unsigned short size;
	int64_t (*fn)(struct hcall *c, int fd, uint64_t arg);
};

static int64_t call(const struct req *q, int fd, uint64_t arg)
{
	if (q->block)
		return HB6(SYS_ioctl, fd, q->nr, arg, 0, 0, 0);
	return HC6(SYS_ioctl, fd, q->nr, arg, 0, 0, 0);
}

/* ---- requests with a check or something embedded ------------------------------------------------------------ */

/* The terminal's foreground may only be given to the caller's own group. */
static int64_t set_foreground(struct hcall *c, int fd, uint64_t arg)
{
	pid_t pgrp;
	(void)c;
	long r = HC6(SYS_ioctl, fd, TIOCGPGRP, &pgrp, 0, 0, 0); /* EBADF and ENOTTY come before EPERM */
	if (r < 0)
		return r;
	if (guest_read(&pgrp, arg, sizeof pgrp))
		return -EFAULT;
	if (pgrp != getpgrp() && !family_has(pgrp))
		return pgrp < 0 ? -EINVAL : -EPERM;
	/* From the background it stops the process with SIGTTOU, unless blocked or ignored. */
	return HB6(SYS_ioctl, fd, TIOCSPGRP, &pgrp, 0, 0, 0);
}

/* SIOCSPGRP, FIOSETOWN: as F_SETOWN. */
static int64_t set_owner(struct hcall *c, int fd, uint64_t arg)
{
	int who;
	if (guest_read(&who, arg, sizeof who))
		return -EFAULT;
	if (who == INT_MIN)
		return -EINVAL;
	if (!fd_owner_allowed(who < 0, who < 0 ? -who : who))
		return -EPERM;
	return HC6(SYS_ioctl, fd, (unsigned)c->arg[1], &who, 0, 0, 0);
}

/* Never with the argument that takes a terminal away from another session. */
static int64_t set_ctty(struct hcall *c, int fd, uint64_t arg)
{
	(void)c, (void)arg;
	return HC6(SYS_ioctl, fd, TIOCSCTTY, 0, 0, 0, 0);
}

static int64_t pt_peer(struct hcall *c, int fd, uint64_t arg)
{
	(void)c;
	return fd_result(HC6(SYS_ioctl, fd, TIOCGPTPEER, (int)arg, 0, 0, 0));
}

static int64_t clone_file(struct hcall *c, int fd, uint64_t arg)
{
	(void)c;
	return fd_is_guest((int)arg) ? HB6(SYS_ioctl, fd, FICLONE, (int)arg, 0, 0, 0) : -EBADF;
}

static int64_t clone_range(struct hcall *c, int fd, uint64_t arg)
{
	struct file_clone_range r;
	(void)c;
	if (guest_read(&r, arg, sizeof r))
		return -EFAULT;
	if (r.src_fd < 0 || r.src_fd > INT_MAX || !fd_is_guest((int)r.src_fd))
		return -EBADF;
	return HB6(SYS_ioctl, fd, FICLONERANGE, &r, 0, 0, 0);
}

static int64_t if_list(struct hcall *c, int fd, uint64_t arg)
{
	struct ifconf conf;
	(void)c;
	if (guest_read(&conf, arg, sizeof conf))
		return -EFAULT;
	uint64_t list = (uint64_t)conf.ifc_buf;
	if (conf.ifc_len < 0)
		return -EINVAL;
	conf.ifc_buf = NULL;
	if ((unsigned)conf.ifc_len > LIST_MAX)
		conf.ifc_len = LIST_MAX;
	if (list) {
		conf.ifc_buf = calloc(1, conf.ifc_len + 1);
		if (!conf.ifc_buf)
			return -ENOMEM;
	}
	int64_t r = HC6(SYS_ioctl, fd, SIOCGIFCONF, &conf, 0, 0, 0);
	if (r >= 0 && list && guest_write(list, conf.ifc_buf, conf.ifc_len))
		r = -EFAULT;
	free(list ? conf.ifc_buf : NULL);
	/* The guest's pointer stays as it was; only the length in front of it is told. */
	if (r >= 0 && guest_write(arg, &conf.ifc_len, sizeof conf.ifc_len))
		r = -EFAULT;
	return r;
}

/* The answer is cut at LIST_MAX bytes; callers go on where it ended. */
static int64_t extent_map(struct hcall *c, int fd, uint64_t arg)
{
	struct fiemap head, *map;
	unsigned most = (LIST_MAX - sizeof head) / sizeof(struct fiemap_extent);
	(void)c;
	if (guest_read(&head, arg, sizeof head))
		return -EFAULT;
	unsigned n = head.fm_extent_count < most ? head.fm_extent_count : most;
	map = calloc(1, sizeof head + n * sizeof(struct fiemap_extent));
	if (!map)
		return -ENOMEM;
	*map = head;
	map->fm_extent_count = n;
	int64_t r = HC6(SYS_ioctl, fd, FS_IOC_FIEMAP, map, 0, 0, 0);
	unsigned got = map->fm_mapped_extents < n ? map->fm_mapped_extents : n;
	map->fm_extent_count = head.fm_extent_count;
	/* Also after an error: fm_flags then says what was not understood. */
	if (guest_write(arg, map, sizeof head + (r >= 0 ? got * sizeof(struct fiemap_extent) : 0)))
		r = -EFAULT;
	free(map);
	return r;
}

static int64_t not_supported(struct hcall *c, int fd, uint64_t arg)
{
	(void)c, (void)fd, (void)arg;
	return -EOPNOTSUPP;
}

/* ---- the table ---------------------------------------------------------------------------------------------- */

static const struct req table[] = {
	/* Terminals. Those that wait for output, or stop a background process with SIGTTOU, may block. */
	{ TCGETS, OUT, 0, TERMIOS_BYTES, 0 },
	{ TCSETS, IN, 1, TERMIOS_BYTES, 0 },
	{ TCSETSW, IN, 1, TERMIOS_BYTES, 0 },
	{ TCSETSF, IN, 1, TERMIOS_BYTES, 0 },
	{ REQ_TCGETS2, OUT, 0, TERMIOS2_BYTES, 0 },
	{ REQ_TCSETS2, IN, 1, TERMIOS2_BYTES, 0 },
	{ REQ_TCSETSW2, IN, 1, TERMIOS2_BYTES, 0 },
	{ REQ_TCSETSF2, IN, 1, TERMIOS2_BYTES, 0 },
	{ TCGETA, OUT, 0, TERMIO_BYTES, 0 },
	{ TCSETA, IN, 1, TERMIO_BYTES, 0 },
	{ TCSETAW, IN, 1, TERMIO_BYTES, 0 },
	{ TCSETAF, IN, 1, TERMIO_BYTES, 0 },
	{ TCSBRK, VAL, 1, 0, 0 },
	{ TCSBRKP, VAL, 1, 0, 0 },
	{ TCXONC, VAL, 1, 0, 0 },
	{ TCFLSH, VAL, 1, 0, 0 },
	{ TIOCSBRK, NONE, 1, 0, 0 },
	{ TIOCCBRK, NONE, 1, 0, 0 },
	{ TIOCGWINSZ, OUT, 0, sizeof(struct winsize), 0 },
	{ TIOCSWINSZ, IN, 0, sizeof(struct winsize), 0 },
	{ TIOCGPGRP, OUT, 0, sizeof(int), 0 },
	{ TIOCSPGRP, CUSTOM, 0, 0, set_foreground },
	{ TIOCGSID, OUT, 0, sizeof(int), 0 },
	{ TIOCSCTTY, CUSTOM, 0, 0, set_ctty },
	{ TIOCNOTTY, NONE, 0, 0, 0 },
	{ TIOCGPTN, OUT, 0, sizeof(int), 0 },
	{ TIOCSPTLCK, IN, 0, sizeof(int), 0 },
	{ TIOCGPTLCK, OUT, 0, sizeof(int), 0 },
	{ TIOCGPTPEER, CUSTOM, 0, 0, pt_peer },
	{ TIOCGDEV, OUT, 0, sizeof(int), 0 },
	{ TIOCEXCL, NONE, 0, 0, 0 },
	{ TIOCNXCL, NONE, 0, 0, 0 },
	{ TIOCGEXCL, OUT, 0, sizeof(int), 0 },
	{ TIOCOUTQ, OUT, 0, sizeof(int), 0 },
	{ TIOCMGET, OUT, 0, sizeof(int), 0 },
	{ TIOCMSET, IN, 0, sizeof(int), 0 },
	{ TIOCMBIS, IN, 0, sizeof(int), 0 },
	{ TIOCMBIC, IN, 0, sizeof(int), 0 },
	{ TIOCPKT, IN, 0, sizeof(int), 0 },
	{ TIOCGPKT, OUT, 0, sizeof(int), 0 },
	{ TIOCGETD, OUT, 0, sizeof(int), 0 },
	{ TIOCGSOFTCAR, OUT, 0, sizeof(int), 0 },
	{ TIOCSSOFTCAR, IN, 0, sizeof(int), 0 },
	{ TIOCSTI, DENY, 0, 0, 0 },
	{ TIOCLINUX, DENY, 0, 0, 0 },
	{ TIOCCONS, DENY, 0, 0, 0 },
	{ TIOCSETD, DENY, 0, 0, 0 },
	/* Any descriptor. FIONREAD is TIOCINQ, SIOCOUTQ is TIOCOUTQ. */
	{ FIONREAD, OUT, 0, sizeof(int), 0 },
	{ FIONBIO, IN, 0, sizeof(int), 0 },
	{ FIOASYNC, IN, 0, sizeof(int), 0 },
	{ FIOCLEX, NONE, 0, 0, 0 },
	{ FIONCLEX, NONE, 0, 0, 0 },
	{ FIOQSIZE, OUT, 0, sizeof(uint64_t), 0 },
	{ FIOGETOWN, OUT, 0, sizeof(int), 0 },
	{ FIOSETOWN, CUSTOM, 0, 0, set_owner },
	{ REQ_TFD_SET_TICKS, IN, 0, sizeof(uint64_t), 0 },
	{ REQ_RNDGETENTCNT, OUT, 0, sizeof(int), 0 },
	/* Sockets and interfaces: reading only */
	{ SIOCGPGRP, OUT, 0, sizeof(int), 0 },
	{ SIOCSPGRP, CUSTOM, 0, 0, set_owner },
	{ SIOCATMARK, OUT, 0, sizeof(int), 0 },
	{ SIOCOUTQNSD, OUT, 0, sizeof(int), 0 },
	{ REQ_SIOCGSTAMP_OLD, OUT, 0, 16, 0 },
	{ REQ_SIOCGSTAMPNS_OLD, OUT, 0, 16, 0 },
	{ REQ_SIOCGSTAMP_NEW, OUT, 0, 16, 0 },
	{ REQ_SIOCGSTAMPNS_NEW, OUT, 0, 16, 0 },
	{ SIOCGIFCONF, CUSTOM, 0, 0, if_list },
	{ SIOCGIFNAME, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFFLAGS, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFADDR, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFDSTADDR, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFBRDADDR, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFNETMASK, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFMETRIC, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFMTU, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFHWADDR, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFINDEX, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFTXQLEN, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCGIFMAP, INOUT, 0, IFREQ_BYTES, 0 },
	{ SIOCETHTOOL, CUSTOM, 0, 0, not_supported },
	{ SIOCSIFNAME, DENY, 0, 0, 0 },
	{ SIOCSIFLINK, DENY, 0, 0, 0 },
	{ SIOCSIFFLAGS, DENY, 0, 0, 0 },
	{ SIOCSIFADDR, DENY, 0, 0, 0 },
	{ SIOCSIFDSTADDR, DENY, 0, 0, 0 },
	{ SIOCSIFBRDADDR, DENY, 0, 0, 0 },
	{ SIOCSIFNETMASK, DENY, 0, 0, 0 },
	{ SIOCSIFMETRIC, DENY, 0, 0, 0 },
	{ SIOCSIFMEM, DENY, 0, 0, 0 },
	{ SIOCSIFMTU, DENY, 0, 0, 0 },
	{ SIOCSIFHWADDR, DENY, 0, 0, 0 },
	{ SIOCSIFHWBROADCAST, DENY, 0, 0, 0 },
	{ SIOCSIFENCAP, DENY, 0, 0, 0 },
	{ SIOCSIFSLAVE, DENY, 0, 0, 0 },
	{ SIOCSIFPFLAGS, DENY, 0, 0, 0 },
	{ SIOCSIFTXQLEN, DENY, 0, 0, 0 },
	{ SIOCSIFMAP, DENY, 0, 0, 0 },
	{ SIOCADDRT, DENY, 0, 0, 0 },
	{ SIOCDELRT, DENY, 0, 0, 0 },
	{ SIOCDARP, DENY, 0, 0, 0 },
	{ SIOCSARP, DENY, 0, 0, 0 },
	/* Files. The flags and version requests say long and mean int. */
	{ FICLONE, CUSTOM, 0, 0, clone_file },
	{ FICLONERANGE, CUSTOM, 0, 0, clone_range },
	{ FIDEDUPERANGE, CUSTOM, 0, 0, not_supported },
	{ FS_IOC_FIEMAP, CUSTOM, 0, 0, extent_map },
	{ FS_IOC_GETFLAGS, OUT, 0, sizeof(int), 0 },
	{ FS_IOC_SETFLAGS, IN, 0, sizeof(int), 0 },
	{ FS_IOC_GETVERSION, OUT, 0, sizeof(int), 0 },
	{ FS_IOC_FSGETXATTR, OUT, 0, sizeof(struct fsxattr), 0 },
	{ FS_IOC_FSSETXATTR, IN, 0, sizeof(struct fsxattr), 0 },
	{ FS_IOC_GETFSLABEL, OUT, 0, FSLABEL_MAX, 0 },
	{ FIGETBSZ, OUT, 0, sizeof(int), 0 },
	{ FIBMAP, INOUT, 0, sizeof(int), 0 },
	{ BLKGETSIZE64, OUT, 0, sizeof(uint64_t), 0 },
	{ BLKGETSIZE, OUT, 0, sizeof(uint64_t), 0 },
	{ BLKSSZGET, OUT, 0, sizeof(int), 0 },
	{ BLKPBSZGET, OUT, 0, sizeof(int), 0 },
	{ BLKBSZGET, OUT, 0, sizeof(int), 0 },
	{ BLKROGET, OUT, 0, sizeof(int), 0 },
	{ BLKIOMIN, OUT, 0, sizeof(int), 0 },
	{ BLKIOOPT, OUT, 0, sizeof(int), 0 },
	{ BLKALIGNOFF, OUT, 0, sizeof(int), 0 },
	{ BLKROTATIONAL, OUT, 0, sizeof(short), 0 },
	{ BLKSECTGET, OUT, 0, sizeof(short), 0 },
	{ BLKRAGET, OUT, 0, sizeof(uint64_t), 0 },
};

static const struct req *find(unsigned nr)
{
	for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
		if (table[i].nr == nr)
			return &table[i];
	return NULL;
}

static int64_t with_struct(const struct req *q, int fd, uint64_t arg)
{
	uint64_t buf[STRUCT_MAX / 8] = { 0 };
	if (q->dir != OUT && guest_read(buf, arg, q->size))
		return -EFAULT;
	int64_t r = call(q, fd, (uint64_t)buf);
	if (r >= 0 && q->dir != IN && guest_write(arg, buf, q->size))
		return -EFAULT;
	return r;
}

int64_t hc_ioctl(struct hcall *c)
{
	int fd = (int)c->arg[0];
	unsigned nr = (unsigned)c->arg[1];
	const struct req *q = find(nr);
	int64_t r;
	if (q && q->dir >= IN && q->dir <= INOUT)
		return with_struct(q, fd, c->arg[2]);
	if (q && (q->dir == NONE || q->dir == VAL))
		return call(q, fd, q->dir == VAL ? c->arg[2] : 0);
	if (q && q->dir == CUSTOM && q->fn != not_supported)
		return q->fn(c, fd, c->arg[2]);
	r = HC6(SYS_fcntl, fd, F_GETFL, 0, 0, 0, 0);
	if (r < 0 || r & O_PATH)
		return -EBADF;
	if (q)
		return q->dir == DENY ? -EPERM : q->fn(c, fd, c->arg[2]);
	kx_log(KX_LOG_INFO, "ioctl", "request %#x is not known: ENOTTY", nr);
	return -ENOTTY;
}
