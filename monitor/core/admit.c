/* SPDX-License-Identifier: Apache-2.0 */
#include "admit.h"
#include "../../util/grow.h"
#include "elf.h"
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>
#include "../../util/log.h"
#include "fsize.h"
#include "gmem.h"
#include "gmem_pages.h"
#include "keeper.h"
#include "maps.h"
#include "sign.h"
#include "store.h"

#define PAGE 4096ull
#define FILE_MAX (512ll << 20)
#define IMAGES_MAX 512
#define CODE_MAX 16   /* executable segments of a file */
#define PHDRS_MAX 256 /* as many as are looked at */
#define ASK_AGAIN 10  /* seconds */
#define SEALS (F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL)

#ifndef F_SEAL_SEAL
#define F_ADD_SEALS 1033
#define F_GET_SEALS 1034
#define F_SEAL_SEAL 1
#define F_SEAL_SHRINK 2
#define F_SEAL_GROW 4
#define F_SEAL_WRITE 8
#endif

struct image {
	uint64_t dev, ino, size;     /* of the file, when it was looked at */
	uint64_t maps_dev, maps_ino; /* by which the kernel's list of mappings names it; */
	bool maps_known;             /* else stat(2)'s */
	int64_t mtime_ns, ctime_ns;
	uid_t uid;
	mode_t mode;
	int fd; /* of the copy; -1 = none: the file itself is mapped */
	uint64_t copy_dev, copy_ino;
	struct {
		uint64_t start, end; /* whole pages of the file */
	} code[CODE_MAX];
	unsigned nr_code;
	bool elf;
	unsigned verdict[POLICY_WAY_OTHER + 1]; /* 1 + enum policy_verdict, 0 = not asked for yet */
	time_t until[POLICY_WAY_OTHER + 1];     /* how long it holds: signatures and keys have their time */
	int held;                               /* by mappings, or by being the program's */
	bool listed, update;                    /* update: the copy is one that was made for an update */
	bool hashed, sig_read;                  /* facts.sha256 is known; and the signature */
	struct image_facts facts;
	char sig[SIGN_MAX];
	size_t sig_size;
	size_t own; /* where in path its name begins by which the process calls it */
	char path[];
};

bool admit_on;
uint64_t admit_refused, admit_warned;
uint64_t admit_copied, admit_hashed;
static int policy_fd = -1;
static struct policy *policy;
static struct admit_subject who_runs;
static struct image **images;
static unsigned nr_images, cap_images;
static __thread enum policy_way way_now = POLICY_WAY_OTHER;
static __thread bool ahead;
static char loader_path[PATH_MAX];
static uint64_t loader_start, loader_end;

/* ---- the policy of a family -------------------------------------------------------------------------------------- */

int admit_fd(void) { return policy_fd; }

bool admit_wants_copies(void) { return policy && policy_needs_bytes(policy, NULL); }

int admit_adopt(int fd, struct kx_err *err)
{
	struct stat st;
	if (fd < 0)
		return 0;
	if (fcntl(fd, F_GET_SEALS) != SEALS || fstat(fd, &st) || fd_keep(&policy_fd, fd))
		return kx_err_set(err, EINVAL, "policy: not what the family was started with (start it again)");
	void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, policy_fd, 0);
	if (p == MAP_FAILED || !(policy = policy_adopt(p, (size_t)st.st_size)))
		return kx_err_set(err, EINVAL, "policy: cannot be taken over: %s (start the family again)",
				  p == MAP_FAILED ? strerror(errno) : "it is damaged");
	return 0;
}

static int block_seal(const void *block, size_t len)
{
	struct fsize limit;
	int fd = memfd_create("kylinx-policy", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	fsize_lift(&limit);
	size_t done = 0;
	while (fd >= 0 && done < len) {
		ssize_t n = write(fd, (const char *)block + done, len - done);
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	fsize_drop(&limit);
	if (fd >= 0 && done == len && !fcntl(fd, F_ADD_SEALS, SEALS))
		return fd;
	int e = errno;
	if (fd >= 0)
		close(fd);
	return -e;
}

int admit_begin(const struct kx_config *cfg, struct kx_err *err)
{
	struct policy *p = NULL;
	size_t len;
	int r = policy_open(cfg->policy, &p, err);
	if (r || !p)
		return r;
	const void *block = policy_block(p, &len);
	int fd = block_seal(block, len);
	policy_free(p);
	if (fd < 0)
		return kx_err_set(err, -fd, "policy: no memory for it: %s (free some memory)", strerror(-fd));
	return admit_adopt(fd, err);
}

/* ---- the root directory ------------------------------------------------------------------------------------------ */

static struct admit_root root;
/* Children of vfork have roots of their own, in the memory of their parent. What is left of one is told by its root. */
#define CHILDREN 16
static struct {
	pid_t pid;
	struct admit_root root;
} of_child[CHILDREN];
static unsigned next_child;

void admit_root_adopt(const struct admit_root *from) { root = *from; }

void admit_root_begin(void)
{
	struct stat st;
	if (!policy || stat("/", &st))
		return;
	root = (struct admit_root){ st.st_dev, st.st_ino, st.st_dev, st.st_ino, "" };
}

static bool is_root(const struct admit_root *r, const struct stat *st)
{
	return r->ino && st->st_dev == r->dev && st->st_ino == r->ino;
}

static enum { ASKED, HELD, KNOWN } root_held;
static const struct admit_root *root_known;

void admit_root_hold(bool on) { root_held = on ? HELD : ASKED; }

static const struct admit_root *root_look(void)
{
	struct stat st;
	if (stat("/", &st))
		return NULL;
	for (unsigned i = 0; is_vfork_child() && i < CHILDREN; i++)
		if (of_child[i].pid == my_pid() && is_root(&of_child[i].root, &st))
			return &of_child[i].root;
	return is_root(&root, &st) ? &root : NULL;
}

/* NULL: the process is somewhere else. */
static const struct admit_root *root_now(void)
{
	const struct admit_root *r = root_held == KNOWN ? root_known : root_look();
	if (root_held == HELD) {
		root_known = r;
		root_held = KNOWN;
	}
	return r;
}

const struct admit_root *admit_root(void)
{
	static const struct admit_root unknown;
	const struct admit_root *r = root_now();
	return r ? r : &unknown;
}

static const char *root_prefix(void)
{
	const struct admit_root *r = root_now();
	return r ? r->prefix : NULL;
}

static void root_set(const struct admit_root *new)
{
	if (!is_vfork_child()) {
		root = *new;
		return;
	}
	unsigned i = __atomic_fetch_add(&next_child, 1, __ATOMIC_SEQ_CST) % CHILDREN;
	of_child[i].pid = 0;
	of_child[i].root = *new;
	__atomic_store_n(&of_child[i].pid, my_pid(), __ATOMIC_RELEASE);
}

int64_t admit_chroot(const char *path)
{
	char link[32], name[PATH_MAX] = "";
	struct admit_root new = *admit_root();
	struct stat to, now;
	if (!policy)
		return HC6(SYS_chroot, path, 0, 0, 0, 0, 0);
	new.top = root.top;
	new.top_ino = root.top_ino;
	fd_limit_lift();
	int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	fd_limit_drop();
	snprintf(link, sizeof link, "thread-self/fd/%d", fd);
	ssize_t n = fd < 0 ? -1 : readlinkat(pvm.proc_fd, link, name, sizeof name - 1);
	bool known = new.ino &&n > 0 && *name == '/' && !fstat(fd, &to);
	if (fd >= 0)
		close(fd);
	int64_t r = HC6(SYS_chroot, path, 0, 0, 0, 0, 0);
	if (r)
		return r;
	/* It may have become another directory meanwhile; or the way out. */
	if (stat("/", &now)) {
		new.ino = 0;
	} else if (root.top_ino && now.st_dev == root.top && now.st_ino == root.top_ino) {
		new = (struct admit_root){ now.st_dev, now.st_ino, root.top, root.top_ino, "" };
	} else if (known && now.st_dev == to.st_dev && now.st_ino == to.st_ino &&
		   strlen(new.prefix) + (size_t)n < sizeof new.prefix) {
		new.dev = now.st_dev;
		new.ino = now.st_ino;
		if (strcmp(name, "/"))
			strcat(new.prefix, name);
	} else {
		new.ino = 0;
	}
	root_set(&new);
	return 0;
}

/* ---- a program --------------------------------------------------------------------------------------------------- */

void admit_ask_for(struct admit_subject *who, const char *program)
{
	const char *prefix = policy ? root_prefix() : "";
	if (snprintf(who->program, sizeof who->program, "%s%s", prefix ? prefix : "(unknown)", program) >=
	    (int)sizeof who->program)
		who->program[0] = 0;
	who->s = (struct policy_subject){ .program = who->program,
					  .family = pvm.cfg->name ? pvm.cfg->name : "",
					  .uid = geteuid() };
	who->active = policy && policy_active(policy, &who->s);
	who->bytes = who->active && policy_needs_bytes(policy, &who->s);
}

/* ---- images ------------------------------------------------------------------------------------------------------ */

static int64_t ns_of(const struct timespec *t) { return t->tv_sec * 1000000000ll + t->tv_nsec; }

static bool is_file(const struct image *m, const struct stat *st)
{
	return m->dev == st->st_dev && m->ino == st->st_ino && m->size == (uint64_t)st->st_size &&
	       m->mtime_ns == ns_of(&st->st_mtim) && m->ctime_ns == ns_of(&st->st_ctim);
}

static bool is_copy(const struct image *m, const struct stat *st)
{
	return m->fd >= 0 && m->copy_dev == st->st_dev && m->copy_ino == st->st_ino;
}

/* Does the number mean the copy here? */
static bool copy_at_hand(const struct image *m)
{
	struct stat st;
	return m->fd < 0 || (!fstat(m->fd, &st) && is_copy(m, &st));
}

bool admit_is_of(const struct image *m, const struct stat *st)
{
	return (m->dev == st->st_dev && m->ino == st->st_ino) || is_copy(m, st);
}

/* path: as it is called now, since rules may ask for that; NULL: by any name. */
static struct image *image_find(const struct stat *st, const char *path)
{
	for (unsigned i = 0; i < nr_images; i++)
		if (is_copy(images[i], st) || (is_file(images[i], st) && (images[i]->fd >= 0) == who_runs.bytes &&
					       copy_at_hand(images[i]) && (!path || !strcmp(images[i]->path, path))))
			return images[i];
	return NULL;
}

void admit_image_free(struct image *m)
{
	if (!m || m->listed)
		return;
	if (m->fd >= 0 && copy_at_hand(m))
		close(m->fd);
	free(m);
}

void admit_hold(struct image *m, int by) { m->held += by; }

/* Those that nothing maps any more go; of updates alone, or all. */
static void images_drop(bool updates)
{
	unsigned k = 0;
	for (unsigned i = 0; i < nr_images; i++) {
		images[i]->listed = images[i]->held > 0 || (updates && !images[i]->update);
		if (images[i]->listed)
			images[k++] = images[i];
		else
			admit_image_free(images[i]);
	}
	nr_images = k;
}

static bool image_list(struct image *m)
{
	if (m->listed)
		return true;
	if (nr_images >= IMAGES_MAX)
		images_drop(false);
	if (!kx_room(images, cap_images, nr_images + 1, 32))
		return false;
	images[nr_images++] = m;
	return m->listed = true;
}

/* Path in the view; from *own on by which the process calls it. Memory has a name, too, but no place: false. */
static bool path_of(int fd, const struct stat *st, char path[PATH_MAX], size_t *own)
{
	const char *prefix = root_prefix();
	char name[32];
	if (!prefix)
		prefix = "(unknown)"; /* no plain path: no rule allows it */
	*own = strlen(prefix);
	strcpy(path, prefix);
	/* The longer way for those alone that may have descriptors of their own. */
	snprintf(name, sizeof name, my_tid() == my_pid() ? "self/fd/%d" : "thread-self/fd/%d", fd);
	ssize_t n = pvm.proc_fd >= 0 ? readlinkat(pvm.proc_fd, name, path + *own, PATH_MAX - 1 - *own) : -1;
	path[*own + (n > 0 ? (size_t)n : 0)] = 0;
	if ((n <= 0 && *own) || n >= (ssize_t)(PATH_MAX - 1 - *own)) /* none, as of a path that is too long; or cut */
		path[0] = '?';
	return S_ISREG(st->st_mode) && (st->st_nlink || strncmp(path + *own, "/memfd:", 7));
}

/* What is no file is no signature. 0, or -errno: it can't be read now. */
static int sig_load(struct image *m, int fd)
{
	struct stat st;
	ssize_t n = 0;
	m->sig_size = 0;
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return 0;
	while (m->sig_size < sizeof m->sig &&
	       (n = pread(fd, m->sig + m->sig_size, sizeof m->sig - m->sig_size, (off_t)m->sig_size)) > 0)
		m->sig_size += (size_t)n;
	if (n >= 0)
		return 0;
	m->sig_size = 0;
	return -errno;
}

static void read_sig(struct image *m)
{
	char name[PATH_MAX + sizeof SIGN_SUFFIX];
	struct stat st;
	snprintf(name, sizeof name, "%s" SIGN_SUFFIX, m->path + m->own);
	if (m->path[m->own] != '/' || stat(name, &st) ||
	    !S_ISREG(st.st_mode)) /* an open of a device would do something */
		return;
	fd_limit_lift();
	int fd = open(name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	fd_limit_drop();
	if (fd < 0)
		return;
	sig_load(m, fd);
	close(fd);
}

/* The whole file at this moment, in memory that nobody can change from then on. */
static int copy_fill(int from, uint64_t size)
{
	fd_limit_lift();
	int fd = memfd_create("kylinx-image", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	fd = fd < 0 ? -errno : fd_hide(fd);
	fd_limit_drop();
	off_t off = 0;
	int r = fd < 0 ? fd : 0;
	while (!r && (uint64_t)off < size) {
		ssize_t n = sendfile(fd, from, &off, size - (uint64_t)off);
		if (n < 0 && errno != EINTR)
			r = -errno;
		else if (!n) /* it became shorter */
			r = -ETXTBSY;
	}
	if (!r && fcntl(fd, F_ADD_SEALS, SEALS))
		r = -errno;
	if (r && fd >= 0)
		close(fd);
	return r ? r : fd;
}

static int copy_make(int from, uint64_t size)
{
	struct fsize limit;
	__atomic_fetch_add(&admit_copied, 1, __ATOMIC_RELAXED);
	fsize_lift(&limit);
	int r = copy_fill(from, size);
	fsize_drop(&limit);
	return r;
}

/* What the store has of it. */
static int copy_stored(const struct stat *st, struct image *m)
{
	int fd = store_copy_open(st, m->facts.sha256);
	if (fd < 0)
		return fd;
	fd_limit_lift();
	fd = fd_hide(fd);
	fd_limit_drop();
	m->hashed = fd >= 0;
	return fd;
}

/* What of the file is code by its program headers. Headers that are not there name none. -errno: they can't be read now. */
static int code_find(struct image *m, int fd)
{
	struct {
		Elf64_Ehdr eh;
		Elf64_Phdr behind[ELF_PHDRS_READ];
	} head; /* program headers are behind the header, usually */
	ssize_t n = pread(fd, &head, sizeof head, 0);
	if (n < 0)
		return -errno;
	const Elf64_Ehdr eh = head.eh;
	m->elf = n >= (ssize_t)sizeof eh && !memcmp(eh.e_ident, ELFMAG, SELFMAG);
	if (!m->elf || eh.e_phentsize != sizeof(Elf64_Phdr) || eh.e_phnum > PHDRS_MAX || eh.e_phoff > INT64_MAX / 2)
		return 0;
	struct elf_phdrs phdrs = { .fd = fd, .phoff = eh.e_phoff };
	if (eh.e_phoff == sizeof eh) {
		phdrs.got = n - (ssize_t)sizeof eh;
		memcpy(phdrs.read, head.behind, sizeof phdrs.read);
	}
	for (unsigned i = 0; i < eh.e_phnum && m->nr_code < CODE_MAX; i++) {
		const Elf64_Phdr *p = elf_phdr(&phdrs, i);
		if (!p)
			return phdrs.got < 0 ? -errno : 0;
		const Elf64_Phdr ph = *p;
		if (ph.p_type != PT_LOAD || !(ph.p_flags & PF_X) || !ph.p_filesz || ph.p_offset >= m->size ||
		    ph.p_filesz > m->size - ph.p_offset)
			continue;
		m->code[m->nr_code].start = ph.p_offset & -PAGE;
		m->code[m->nr_code++].end = (ph.p_offset + ph.p_filesz + PAGE - 1) & -PAGE;
	}
	return 0;
}

uint64_t admit_code_end(const struct image *m, uint64_t off, uint64_t len)
{
	if (!m->elf)
		return off + len;
	for (unsigned i = 0; i < m->nr_code; i++)
		if (m->code[i].start <= off && off < m->code[i].end)
			return m->code[i].end - off < len ? m->code[i].end : off + len;
	return off;
}

/* passing: it is asked about, and nothing is mapped of it. */
static int image_make(int fd, const struct stat *st, const char *path, size_t own, bool bytes, bool passing,
		      struct image **out)
{
	struct stat copy = { 0 };
	size_t len = strlen(path) + 1;
	if (bytes && st->st_size > FILE_MAX)
		return -EFBIG;
	struct image *m = calloc(1, sizeof *m + len);
	if (!m)
		return -ENOMEM;
	*m = (struct image){ .dev = st->st_dev,
			     .ino = st->st_ino,
			     .size = (uint64_t)st->st_size,
			     .mtime_ns = ns_of(&st->st_mtim),
			     .ctime_ns = ns_of(&st->st_ctim),
			     .uid = st->st_uid,
			     .mode = st->st_mode,
			     .maps_dev = st->st_dev,
			     .maps_ino = st->st_ino,
			     .maps_known = passing || major(st->st_dev),
			     .own = own,
			     .fd = -1 };
	memcpy(m->path, path, len);
	int r = 0;
	if (bytes) {
		if (!m->maps_known) /* the file itself is mapped nowhere */
			maps_file(fd, st, &m->maps_dev, &m->maps_ino);
		m->maps_known = true;
		m->fd = r = copy_stored(st, m);
		if (m->fd < 0)
			m->fd = r = copy_make(fd, m->size);
		if (r >= 0)
			r = fstat(m->fd, &copy) ? -errno : 0;
		m->copy_dev = copy.st_dev;
		m->copy_ino = copy.st_ino;
	}
	if (r >= 0)
		r = code_find(m, bytes ? m->fd : fd);
	if (r < 0) {
		if (m->fd >= 0)
			close(m->fd);
		free(m);
		return r;
	}
	*out = m;
	return 0;
}

/* ---- decisions --------------------------------------------------------------------------------------------------- */

/* One line and one count for each refusal. */
static int verdict_tell(enum policy_verdict v, const char *why, bool tell)
{
	if (v == POLICY_DENY) {
		__atomic_fetch_add(&admit_refused, 1, __ATOMIC_RELAXED);
		if (tell)
			kx_log(KX_LOG_ERROR, "policy", "%s", why);
	} else if (v == POLICY_WARN) {
		__atomic_fetch_add(&admit_warned, 1, __ATOMIC_RELAXED);
		kx_log(KX_LOG_WARN, "policy", "%s", why);
	}
	return v == POLICY_DENY ? -EACCES : 0;
}

static enum policy_verdict image_ask(const struct admit_subject *who, struct image *m, enum policy_way way,
				     const char *loader, char why[POLICY_WHY])
{
	void *p = NULL;
	if (m->fd >= 0 && m->size && !m->facts.size) {
		p = mmap(NULL, m->size, PROT_READ, MAP_PRIVATE, m->fd, 0);
		if (p == MAP_FAILED) {
			snprintf(why, POLICY_WHY, "%s: no memory to look at it: free some, and try again", m->path);
			return POLICY_DENY;
		}
	}
	if (m->fd >= 0 && !m->facts.size) {
		uint8_t sha256[SIGN_HASH];
		memcpy(sha256, m->facts.sha256, sizeof sha256);
		if (m->hashed) {
			image_facts_elf(p, m->size, &m->facts);
			memcpy(m->facts.sha256, sha256, sizeof sha256);
		} else {
			__atomic_fetch_add(&admit_hashed, 1, __ATOMIC_RELAXED);
			image_facts(p, m->size, &m->facts);
		}
	}
	if (m->fd >= 0 && !m->sig_read) {
		m->sig_read = true;
		if (!m->sig_size)
			read_sig(m);
	}
	struct policy_image i = { .bytes = p,
				  .size = m->size,
				  .facts = m->fd >= 0 ? &m->facts : NULL,
				  .path = m->path,
				  .uid = m->uid,
				  .mode = m->mode,
				  .way = way,
				  .loader = loader,
				  .sig = m->sig_size ? m->sig : NULL,
				  .sig_size = m->sig_size };
	enum policy_verdict v = policy_image(policy, &who->s, &i, why);
	if (p)
		munmap(p, m->size);
	return v;
}

int admit_judge(const struct admit_subject *who, struct image *m, enum policy_way way, const char *loader, bool tell,
		char why[POLICY_WHY])
{
	enum policy_verdict v = m ? image_ask(who, m, way, loader, why) : policy_anonymous(policy, &who->s, why);
	if (m) {
		m->verdict[way] = 1 + v;
		m->until[way] = time(NULL) + ASK_AGAIN;
	}
	return verdict_tell(v, why, tell);
}

/* Another number for it, out of the guest's reach. */
static int fd_again(int fd)
{
	fd_limit_lift();
	int n = fcntl(fd, F_DUPFD_CLOEXEC, (int)pvm.fd_limit), e = errno;
	fd_limit_drop();
	return n < 0 ? -e : n;
}

int admit_take(const struct admit_subject *who, int *fd, struct image **out, char why[POLICY_WHY])
{
	char path[PATH_MAX];
	struct stat st;
	size_t own;
	int r = fstat(*fd, &st) ? -errno : 0;
	*out = NULL;
	if (r || !path_of(*fd, &st, path, &own))
		return r;
	r = image_make(*fd, &st, path, own, who->bytes, who->passing, out);
	if (!r && (*out)->fd >= 0) {
		int own = fd_again((*out)->fd);
		r = own < 0 ? own : 0;
		if (!r) {
			close(*fd);
			*fd = own;
		} else {
			admit_image_free(*out);
			*out = NULL;
		}
	}
	if (r)
		snprintf(why, POLICY_WHY, "%.160s: cannot be looked at: %s", path, strerror(-r));
	return r;
}

void admit_enter(const struct admit_subject *who, struct image **program, struct image **interp)
{
	who_runs = *who;
	who_runs.s.program = who_runs.program;
	admit_on = who->active;
	struct image **const both[] = { program, interp };
	for (int i = 0; i < 2; i++)
		if (admit_on && *both[i] && image_list(*both[i])) {
			(*both[i])->held++;
			*both[i] = NULL;
		}
}

void admit_way(enum policy_way way) { way_now = way; }

void admit_loader(const char *path, uint64_t start, uint64_t end)
{
	snprintf(loader_path, sizeof loader_path, "%s", path);
	loader_start = start;
	loader_end = end;
}

const char *admit_loader_path(void) { return loader_path; }

bool admit_call_is_loaders(void)
{
	if (!self || !self->area)
		return false;
	uint64_t rip = __atomic_load_n(&frame_of(self)->rip, __ATOMIC_RELAXED);
	return rip >= loader_start && rip < loader_end;
}

bool admit_call_of_loader(void) { return self && self->hcall && admit_call_is_loaders(); }

/* Where the call in progress came from, as the guest has it. */
static enum policy_way way_of_call(void)
{
	if (way_now != POLICY_WAY_OTHER)
		return way_now;
	return admit_call_of_loader() ? POLICY_WAY_LOADER : POLICY_WAY_OTHER;
}

void admit_ahead(bool on) { ahead = on; }

int admit_memory(const char *what)
{
	char why[POLICY_WHY], line[POLICY_WHY + 32];
	enum policy_verdict v = policy_anonymous(policy, &who_runs.s, why);
	if (v == POLICY_ALLOW)
		return 0;
	if (ahead)
		return -EACCES;
	snprintf(line, sizeof line, "%s: %s", what, why);
	return verdict_tell(v, line, true);
}

static int image_judge(struct image *m, enum policy_way way)
{
	char why[POLICY_WHY];
	if (m->verdict[way] == 1 + POLICY_WARN || (m->verdict[way] == 1 + POLICY_ALLOW && time(NULL) < m->until[way]))
		return 0;
	if (ahead) {
		if (image_ask(&who_runs, m, way, *loader_path ? loader_path : NULL, why) != POLICY_ALLOW)
			return -EACCES;
		m->verdict[way] = 1 + POLICY_ALLOW;
		m->until[way] = time(NULL) + ASK_AGAIN;
		return 0;
	}
	return admit_judge(&who_runs, m, way, *loader_path ? loader_path : NULL, true, why);
}

int admit_file(int fd, struct image **out)
{
	char path[PATH_MAX], line[POLICY_WHY];
	struct stat st;
	size_t own;
	*out = NULL;
	int r = file_stat(fd, &st);
	if (r)
		return r;
	bool place = path_of(fd, &st, path, &own);
	struct image *m = image_find(&st, path);
	if (!m) {
		if (!place)
			return admit_memory(S_ISREG(st.st_mode) ? "memfd" : "mmap");
		if ((r = image_make(fd, &st, path, own, who_runs.bytes, false, &m))) {
			snprintf(line, sizeof line, "%.160s: cannot be looked at: %s", path, strerror(-r));
			if (!ahead)
				verdict_tell(POLICY_DENY, line, true);
			return r;
		}
	}
	r = image_judge(m, way_of_call());
	if (!r && !image_list(m))
		r = -ENOMEM;
	if (r)
		admit_image_free(m);
	else
		*out = m;
	return r;
}

struct image *admit_known(int fd)
{
	char path[PATH_MAX];
	struct stat st;
	size_t own;
	if (file_stat(fd, &st))
		return NULL;
	/* A file by another of its names is another one, as for who asks what is mapped. */
	return image_find(&st, st.st_nlink > 1 && path_of(fd, &st, path, &own) ? path : NULL);
}

int admit_map_fd(const struct image *m, int fd)
{
	struct stat st;
	if (m->fd < 0 || (!fstat(fd, &st) && is_copy(m, &st)))
		return fd;
	return copy_at_hand(m) ? m->fd : -1;
}

int admit_again(struct image *m) { return image_judge(m, POLICY_WAY_OTHER); }

static void name_put(const struct image *m, char path[168])
{
	const char *own = m->path + m->own;
	snprintf(path, 168, "%s", strlen(own) < 168 ? own : "");
}

bool admit_name(int fd, char path[168])
{
	struct stat st;
	if (!admit_on || fstat(fd, &st))
		return false;
	for (unsigned i = 0; i < nr_images; i++)
		if (is_copy(images[i], &st)) {
			name_put(images[i], path);
			return true;
		}
	return false;
}

bool admit_is_numbered(const struct image *m) { return m->maps_known; }

void admit_number(struct image *m, uint64_t dev, uint64_t ino)
{
	if (m->maps_known)
		return;
	m->maps_dev = dev;
	m->maps_ino = ino;
	m->maps_known = true;
}

void admit_origin(const struct image *m, uint64_t *dev, uint64_t *ino, char path[168])
{
	*dev = m->maps_dev;
	*ino = m->maps_ino;
	name_put(m, path);
}

/* ---- an update --------------------------------------------------------------------------------------------------- */

int admit_update(int fd, int sig_fd, char why[POLICY_WHY])
{
	char path[PATH_MAX] = "";
	struct image *m = NULL;
	struct stat st;
	size_t own;
	*why = 0;
	pthread_mutex_lock(&pvm.mm_lock);
	int r = fstat(fd, &st) ? -errno : 0;
	if (!r && !path_of(fd, &st, path, &own)) {
		r = admit_memory("update");
		snprintf(why, POLICY_WHY, "the new version is memory, and jit is deny");
		if (!r)
			r = fd_again(fd);
	} else if (!r) {
		/* Always a copy: it is read before it is mapped, and both must be the same. */
		r = image_make(fd, &st, path, own, true, false, &m);
		if (!r)
			m->update = true;
		if (!r && sig_fd >= 0)
			r = sig_load(m, sig_fd);
		if (!r)
			r = admit_judge(&who_runs, m, POLICY_WAY_LOADER, *loader_path ? loader_path : NULL, true, why);
		if (!r && !image_list(m))
			r = -ENOMEM;
		if (!r)
			r = fd_again(m->fd);
		if (r < 0)
			admit_image_free(m);
	}
	if (r < 0 && !*why)
		snprintf(why, POLICY_WHY, "%.160s: cannot be looked at: %s", *path ? path : "the new version",
			 strerror(-r));
	pthread_mutex_unlock(&pvm.mm_lock);
	return r;
}

void admit_update_over(void)
{
	pthread_mutex_lock(&pvm.mm_lock);
	gmem_images_let_go();
	images_drop(true);
	pthread_mutex_unlock(&pvm.mm_lock);
}

int admit_fds(int (*fn)(int *where))
{
	int r = 0;
	for (unsigned i = 0; i < nr_images && !r; i++)
		if (images[i]->fd >= 0 && copy_at_hand(images[i]))
			r = fn(&images[i]->fd);
	return r;
}
