/* SPDX-License-Identifier: Apache-2.0 */
#include "family.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "../../abi/kx_ipc.h"
#include "../../abi/kx_pipe.h"
#include "../../util/procstat.h"
#include "../dev/procfs.h"
#include "fsize.h"
#include "keeper.h"
#include "pvm.h"
#include "stats.h"
#include "thread.h"

#define SLOTS_END (sizeof(struct family_table) + FAMILY_MAX * sizeof(struct family_slot))
#define CHANGING_AT (SLOTS_END + sizeof(struct stats_family))
#define TABLE_SIZE (CHANGING_AT + FAMILY_MAX * sizeof(uint32_t))
#define FUTEXES_AT ((TABLE_SIZE + 4095) & ~4095ul) /* in the file: a page that guests map, and nothing else of it */
#define PIPES_AT ((FUTEXES_AT + sizeof(struct kx_futexes) + 0x1fffff) & ~0x1fffffull)
#define IPC_AT (PIPES_AT + KX_PIPE_SIZE)
#define PID_MASK (((family_key)1 << FAMILY_PID_BITS) - 1)

static struct family_table *table;
static uint32_t *changing; /* by slot */
static int own_slot;
static struct {
	dev_t dev;
	ino_t ino;
} ipc_ns; /* the family's; ino 0: not looked at yet */

static pid_t key_pid(family_key k) { return (pid_t)(k & PID_MASK); }
static uint64_t key_start(family_key k) { return (k & ~FAMILY_RESERVED) >> FAMILY_PID_BITS; }
static family_key make_key(pid_t pid, uint64_t start)
{
	return ((family_key)pid & PID_MASK) | (start << FAMILY_PID_BITS & ~FAMILY_RESERVED);
}

static family_key load(unsigned i) { return __atomic_load_n(&table->slot[i].key, __ATOMIC_ACQUIRE); }
static bool swap(unsigned i, family_key old, family_key new)
{
	return __atomic_compare_exchange_n(&table->slot[i].key, &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static unsigned used(void)
{
	unsigned n = __atomic_load_n(&table->used, __ATOMIC_ACQUIRE);
	return n < FAMILY_MAX ? n : FAMILY_MAX;
}

unsigned family_cpus(void) { return table->cpus; }

uint32_t *family_birth(int slot) { return &table->slot[slot].birth; }
uint64_t *family_failed_ns(void) { return &table->failed_ns; }
uint64_t *family_unserved(void) { return &table->unserved; }
uint32_t *family_reapers(void) { return &table->reapers; }

uint64_t family_pipes_offset(void) { return PIPES_AT; }
uint64_t family_ipc_offset(void) { return IPC_AT; }

uint64_t family_queues(uint64_t dev)
{
	if (dev)
		__atomic_store_n(&table->queues, dev, __ATOMIC_SEQ_CST);
	return __atomic_load_n(&table->queues, __ATOMIC_SEQ_CST);
}

int family_init(int fd, struct kx_err *err)
{
	bool new = fd < 0;
	if (new) {
		struct fsize limit;
		fsize_lift(&limit);
		fd = memfd_create("kylinx-family", MFD_CLOEXEC);
		int r = fd < 0 || ftruncate(fd, (off_t)(IPC_AT + KX_IPC_SIZE));
		fsize_drop(&limit);
		if (r && errno == EFBIG)
			return kx_err_set(err, EFBIG, "file size: the hard limit is too low (raise `ulimit -Hf` to %u)",
					  (unsigned)((IPC_AT + KX_IPC_SIZE) / 512 + 1));
		if (r)
			return kx_err_set(err, errno, "family: no memory for its table: %s (free some memory)",
					  strerror(errno));
	}
	table = mmap(NULL, TABLE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (table == MAP_FAILED)
		return kx_err_set(err, errno, "family: cannot map its table: %s (free some memory)", strerror(errno));
	if (new) {
		table->magic = FAMILY_MAGIC;
		table->slot_size = sizeof(struct family_slot);
		cpu_set_t set;
		table->cpus = sched_getaffinity(0, sizeof set, &set) ? 1 : (uint32_t)CPU_COUNT(&set);
	} else if (table->magic != FAMILY_MAGIC || table->slot_size != sizeof(struct family_slot)) {
		return kx_err_set(err, EINVAL, "family: its table is of another version (use the kylinx that it runs)");
	}
	stats_share((struct stats_family *)((uint8_t *)table + SLOTS_END));
	changing = (uint32_t *)((uint8_t *)table + CHANGING_AT);
	int r = fd_keep(&pvm.family_fd, fd);
	return r ? kx_err_set(err, -r, "family: no descriptor left (raise `ulimit -n`)") : 0;
}

int family_map_futexes(void *at)
{
	void *p = mmap(at, sizeof(struct kx_futexes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, pvm.family_fd,
		       FUTEXES_AT);
	return p == MAP_FAILED ? -errno : 0;
}

/* ---- who a pid is ------------------------------------------------------------------------------------------------ */

/* By a descriptor of our own, where no other thread of the guest's can be: before the program runs, in a new child. */
static int text_read(const char *name, char *text, size_t len)
{
	fd_limit_lift();
	long fd = HC6(SYS_openat, pvm.proc_fd >= 0 ? pvm.proc_fd : AT_FDCWD, name, O_RDONLY | O_CLOEXEC, 0, 0, 0);
	fd_limit_drop();
	if (fd < 0)
		return (int)fd;
	long n = HC6(SYS_read, fd, text, len - 1, 0, 0, 0);
	HC6(SYS_close, fd, 0, 0, 0, 0, 0);
	text[n > 0 ? n : 0] = 0;
	return (int)n;
}

/* Start time of a process, and whether it is a zombie. 0, or -errno. */
static int stat_read(const char *name, bool own, uint64_t *start, bool *zombie)
{
	char text[1024];
	int n = own ? text_read(name, text, sizeof text) : procfs_peek(name, text, sizeof text);
	if (n <= 0)
		return n ? n : -ESRCH;
	struct proc_stat s;
	if (proc_stat_read(text, &s) || s.n < STAT_START)
		return -EIO;
	*zombie = proc_stat_ended(&s);
	*start = s.f[STAT_START];
	return 0;
}

enum state { GONE, HERE, UNKNOWN };

/* By its namespace. UNKNOWN: that can't be seen. */
static enum state look_inside(pid_t pid)
{
	char name[48];
	struct stat st;
	if (!ipc_ns.ino && HC6(SYS_newfstatat, pvm.proc_fd, "self/ns/ipc", &st, 0, 0, 0) == 0) {
		ipc_ns.dev = st.st_dev;
		ipc_ns.ino = st.st_ino;
	}
	snprintf(name, sizeof name, "%d/ns/ipc", pid);
	long r = HC6(SYS_newfstatat, pvm.proc_fd, name, &st, 0, 0, 0);
	if (r)
		return UNKNOWN;
	return st.st_ino == ipc_ns.ino && st.st_dev == ipc_ns.dev ? HERE : GONE;
}

/* One that ends has no namespaces any more some time before it is a zombie. It was there a moment ago. */
static bool is_ending(pid_t pid)
{
	char name[48];
	struct stat st;
	snprintf(name, sizeof name, "%d/ns/ipc", pid);
	return HC6(SYS_newfstatat, pvm.proc_fd, name, &st, 0, 0, 0) == -ENOENT;
}

static enum state look(family_key key)
{
	char name[48];
	struct stat st;
	pid_t pid = key_pid(key);
	uint64_t start;
	bool zombie;
	if (pid == my_pid())
		return HERE;
	if (pvm.proc_fd < 0) /* still starting, alone */
		return UNKNOWN;
	enum state s = look_inside(pid);
	if (s != UNKNOWN)
		return s;
	/* To open its files takes a thread (procfs.h): not of one that was waited for. */
	snprintf(name, sizeof name, "%d/stat", pid);
	if (HC6(SYS_newfstatat, pvm.proc_fd, name, &st, 0, 0, 0) == -ENOENT)
		return GONE;
	int r = stat_read(name, false, &start, &zombie);
	if (r == -ENOENT || r == -ESRCH)
		return GONE;
	if (r == 0 && !zombie)
		zombie = is_ending(pid);
	if (r < 0 || !key_start(key))
		return r == 0 && zombie ? HERE : UNKNOWN; /* to be taken for a zombie's harms nobody */
	return start == key_start(key) ? HERE : GONE;
}

/* Is slot i a member's? What is dead is swept, a reservation of a dead parent's too. */
static bool member(unsigned i, family_key key)
{
	enum state s = look(key);
	if (s == GONE)
		swap(i, key, 0);
	return s == HERE && !(key & FAMILY_RESERVED);
}

/* ---- entries ----------------------------------------------------------------------------------------------------- */

static family_key own_key(bool known)
{
	uint64_t start = 0;
	bool zombie;
	if (known && stat_read(pvm.proc_fd >= 0 ? "self/stat" : "/proc/self/stat", true, &start, &zombie))
		start = 0;
	return make_key((pid_t)host_call(SYS_getpid, 0, 0, 0, 0, 0, 0), start);
}

/* Has it ended, and was waited for, or need not be? As far as that can be seen at little cost. */
static bool is_gone(pid_t pid)
{
	char name[32];
	struct stat st;
	snprintf(name, sizeof name, "%d", pid);
	return pvm.proc_fd >= 0 && HC6(SYS_newfstatat, pvm.proc_fd, name, &st, 0, 0, 0) == -ENOENT;
}

/* Where many are, a new one frees more places than it takes: else children that nobody waits for would fill the table, and
 * each look at it would take longer than the one before. */
static void sweep_some(void)
{
	for (unsigned n = used(), steps = 0, looks = 0; steps < FAMILY_CROWD && looks < 2; steps++) {
		unsigned i = __atomic_fetch_add(&table->swept, 1, __ATOMIC_RELAXED) % n;
		family_key k = load(i);
		looks += k != 0;
		if (k && is_gone(key_pid(k)))
			swap(i, k, 0);
	}
}

static int take(family_key key)
{
	for (int sweep = 0; sweep < 2; sweep++) {
		for (unsigned i = 0; i < FAMILY_MAX; i++) {
			if (i == FAMILY_CROWD && !sweep)
				sweep_some();
			family_key old = load(i);
			if (old && sweep && !member(i, old))
				old = load(i);
			if (old || !swap(i, 0, key))
				continue;
			uint32_t n = __atomic_load_n(&table->used, __ATOMIC_ACQUIRE);
			while (n <= i && !__atomic_compare_exchange_n(&table->used, &n, i + 1, false, __ATOMIC_SEQ_CST,
								      __ATOMIC_SEQ_CST))
				;
			changing[i] = 0;
			return (int)i;
		}
	}
	return -EAGAIN;
}

/* Where the calling process is. A child of vfork has its parent's memory. */
static void set_slot(int slot)
{
	if (is_vfork_child())
		self->family_slot = slot;
	else
		own_slot = slot;
}

static void set_exe(struct family_slot *s)
{
	size_t n = strnlen(pvm.exe, sizeof pvm.exe);
	memset(s->exe, 0, sizeof s->exe);
	if (n < sizeof s->exe)
		memcpy(s->exe, pvm.exe, n);
}

static int find(pid_t pid)
{
	unsigned n = used();
	for (unsigned i = 0; i < n; i++) {
		family_key k = load(i);
		if (key_pid(k) == pid && !(k & FAMILY_RESERVED))
			return (int)i;
	}
	return -1;
}

int family_enter(bool from_host)
{
	int i = take(own_key(true));
	if (i < 0)
		return i;
	set_slot(i);
	table->slot[i].from_host = from_host;
	memset(table->slot[i].exe, 0, sizeof table->slot[i].exe);
	return 0;
}

int family_reserve(void)
{
	int i = take(make_key(my_pid(), 0) | FAMILY_RESERVED);
	if (i >= 0) {
		table->slot[i].from_host = 0;
		memset(table->slot[i].exe, 0, sizeof table->slot[i].exe);
	}
	return i;
}

void family_spare(int slot, pid_t pid)
{
	table->slot[slot].birth = (uint32_t)pid;
	__atomic_store_n(&table->slot[slot].from_host, FAMILY_SPARE, __ATOMIC_RELEASE);
}

void family_cancel(int slot)
{
	family_key k = load((unsigned)slot);
	if (k & FAMILY_RESERVED)
		swap((unsigned)slot, k, 0);
}

void family_born(int slot, pid_t pid)
{
	family_key k = load((unsigned)slot);
	__atomic_add_fetch(&table->forks, 1, __ATOMIC_RELAXED);
	if (k & FAMILY_RESERVED) /* else the child was quicker */
		swap((unsigned)slot, k, make_key(pid, 0));
}

static int due_slot = -1;

void family_settle(void)
{
	int i = due_slot;
	due_slot = -1;
	family_key mine = own_key(true);
	swap((unsigned)i, make_key(key_pid(mine), 0), mine);
}

bool family_is_due(void) { return due_slot >= 0; }

static void child_enter(int slot, family_key mine)
{
	family_key k = load((unsigned)slot);
	set_slot(slot);
	set_exe(&table->slot[slot]);
	while ((k & FAMILY_RESERVED || k == make_key(key_pid(mine), 0)) && !swap((unsigned)slot, k, mine))
		k = load((unsigned)slot);
}

void family_child(int slot, bool known) { child_enter(slot, own_key(known)); }

void family_child_later(int slot)
{
	due_slot = slot;
	child_enter(slot, own_key(false));
}

void family_set_exe(void)
{
	family_key mine = own_key(true);
	int i = find(key_pid(mine));
	if (i < 0)
		return;
	set_slot(i);
	__atomic_store_n(&changing[i], 0, __ATOMIC_SEQ_CST); /* what threads were in that the exec has ended */
	set_exe(&table->slot[i]);
	swap((unsigned)i, make_key(key_pid(mine), 0), mine);
}

uint32_t *family_changing(void) { return &changing[is_vfork_child() ? self->family_slot : own_slot]; }

/* Nobody has reaped it, perhaps never will. One whose first thread alone has ended is not gone. */
static bool is_corpse(pid_t pid)
{
	char name[32], text[1024];
	struct proc_stat s;
	snprintf(name, sizeof name, "%d/stat", pid);
	return procfs_peek(name, text, sizeof text) > 0 && !proc_stat_read(text, &s) && proc_stat_ended(&s) &&
	       s.f[STAT_THREADS] <= 1;
}

bool family_changes(void)
{
	unsigned n = used();
	bool some = false;
	for (unsigned i = 0; i < n && !some; i++) {
		uint32_t in = __atomic_load_n(&changing[i], __ATOMIC_SEQ_CST);
		family_key k = in ? load(i) : 0;
		if (!k)
			continue;
		enum state s = look(k);
		if (s == GONE)
			swap(i, k, 0);
		some = s != GONE && (key_pid(k) == my_pid() || !is_corpse(key_pid(k)));
	}
	return some;
}

bool family_exe(pid_t pid, char *out, size_t len)
{
	int i = find(pid);
	if (i < 0 || !len)
		return false;
	size_t n = strnlen(table->slot[i].exe, sizeof table->slot[i].exe - 1);
	if (!n || n >= len)
		return false;
	memcpy(out, table->slot[i].exe, n);
	out[n] = 0;
	return *out == '/';
}

void family_dump_done(void)
{
	int i = find(my_pid());
	if (i >= 0)
		__atomic_or_fetch(&table->slot[i].from_host, FAMILY_DUMPED, __ATOMIC_SEQ_CST);
}

bool family_dumped(pid_t pid)
{
	int i = find(pid);
	return i >= 0 && __atomic_load_n(&table->slot[i].from_host, __ATOMIC_SEQ_CST) & FAMILY_DUMPED;
}

void family_remove(pid_t pid)
{
	unsigned n = used();
	for (unsigned i = 0; i < n; i++) {
		family_key k = load(i);
		if (key_pid(k) == pid && !(k & FAMILY_RESERVED))
			member(i, k);
	}
}

bool family_has(pid_t pid)
{
	unsigned n = used();
	if (pid <= 0)
		return false;
	for (unsigned i = 0; i < n; i++) {
		family_key k = load(i);
		if (key_pid(k) == pid && !(k & FAMILY_RESERVED) && member(i, k))
			return true;
	}
	return false;
}

int family_seen(pid_t pid)
{
	int i = find(pid);
	enum state s = i < 0 || pvm.proc_fd < 0 ? GONE : look_inside(pid);
	return s == HERE ? 1 : s == GONE ? 0 : -1;
}

/* The process of a thread, by the host's procfs. */
static pid_t owner_look(pid_t tid)
{
	char name[32], text[512];
	snprintf(name, sizeof name, "%d/status", tid);
	if (procfs_peek(name, text, sizeof text) < 0)
		return 0;
	char *at = strstr(text, "\nTgid:");
	return at ? atoi(at + 6) : 0;
}

pid_t family_owner(pid_t tid)
{
	if (tid <= 0)
		return 0;
	if (tid == my_pid() || thread_is_ours(tid))
		return my_pid();
	if (family_has(tid))
		return tid;
	pid_t owner = owner_look(tid);
	return family_has(owner) ? owner : 0;
}

int family_each(void (*fn)(pid_t pid, void *arg), void *arg)
{
	int count = 0;
	unsigned n = used();
	for (unsigned i = 0; i < n; i++) {
		family_key k = load(i);
		if (k && !(k & FAMILY_RESERVED) && member(i, k)) {
			fn(key_pid(k), arg);
			count++;
		}
	}
	return count;
}
