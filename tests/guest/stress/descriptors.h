/* SPDX-License-Identifier: Apache-2.0 */
/* Stressors of descriptors and files. Part of stress.c. */
#ifndef KX_GUEST_STRESS_DESCRIPTORS_H
#define KX_GUEST_STRESS_DESCRIPTORS_H
#include "stress.h"

/* ---- descriptors ---------------------------------------------------------------------------------------------- */

static inline uint64_t st_poll(void)
{
	uint64_t ops = 0;
	int fd[16][2];
	struct pollfd p[16];
	for (int i = 0; i < 16; i++) {
		must(pipe(fd[i]) == 0);
		p[i] = (struct pollfd){ .fd = fd[i][0], .events = POLLIN };
	}
	for (; !over(); ops++) {
		unsigned set = (unsigned)below(65536);
		for (int i = 0; i < 16; i++)
			if (set >> i & 1)
				must(write(fd[i][1], &ops, 8) == 8);
		int n = poll(p, 16, 0);
		expect(n == __builtin_popcount(set), "poll gives %d of %d", n, __builtin_popcount(set));
		for (int i = 0; i < 16; i++) {
			uint64_t v = 0;
			expect(p[i].revents == (set >> i & 1 ? POLLIN : 0), "pipe %d: events %#x", i, p[i].revents);
			if (set >> i & 1)
				expect(read(fd[i][0], &v, 8) == 8 && v == ops, "pipe %d: %lu, not %lu", i, v, ops);
		}
		if (ops % 256 == 0) {
			uint64_t t = now();
			n = poll(p, 16, 2);
			expect(n == 0 && now() - t >= 2000000, "poll of 2 ms gives %d after %lu ns", n, now() - t);
		}
	}
	for (int i = 0; i < 16; i++) {
		close(fd[i][1]);
		expect(poll(p + i, 1, -1) == 1 && p[i].revents == POLLHUP, "no writer: events %#x", p[i].revents);
		close(fd[i][0]);
	}
	return ops;
}

static inline uint64_t st_epoll(void)
{
	uint64_t ops = 0, v;
	int fd[16][2], ep = epoll_create1(EPOLL_CLOEXEC);
	must(ep >= 0);
	for (int i = 0; i < 16; i++) {
		/* Edge-triggered and level-triggered ones. */
		struct epoll_event e = { EPOLLIN | (i & 1 ? EPOLLET : 0), { .u64 = (uint64_t)i << 32 | 7 } };
		must(socketpair(AF_UNIX, SOCK_STREAM, 0, fd[i]) == 0);
		must(epoll_ctl(ep, EPOLL_CTL_ADD, fd[i][0], &e) == 0);
	}
	for (; !over(); ops++) {
		unsigned set = (unsigned)below(65536), seen = 0;
		struct epoll_event e[20];
		for (int i = 0; i < 16; i++)
			if (set >> i & 1)
				must(write(fd[i][1], &ops, 8) == 8);
		int n = epoll_wait(ep, e, 20, 0);
		for (int k = 0; k < n; k++)
			seen |= (e[k].data.u64 & 7) == 7 ? 1u << (e[k].data.u64 >> 32) : ~0u;
		expect(seen == set, "events of %#x, not of %#x", seen, set);
		n = epoll_wait(ep, e, 20, 0);
		expect(n == __builtin_popcount(set & 0x5555), "a second time %d events, not %d", n,
		       __builtin_popcount(set & 0x5555));
		for (int i = 0; i < 16; i++)
			if (set >> i & 1)
				expect(read(fd[i][0], &v, 8) == 8 && v == ops, "socket %d: %lu, not %lu", i, v, ops);
		expect(epoll_wait(ep, e, 20, 0) == 0, "events after all was read");
	}
	for (int i = 0; i < 16; i++) {
		close(fd[i][0]);
		close(fd[i][1]);
	}
	close(ep);
	return ops;
}

static inline void *eventfd_peer(void *arg)
{
	int *fd = arg;
	uint64_t v, sum = 0;
	while (read(fd[0], &v, 8) == 8 && v < 1ul << 40) {
		sum += v;
		must(write(fd[1], &v, 8) == 8);
	}
	return (void *)sum;
}

static inline uint64_t st_eventfd(void)
{
	uint64_t ops = 0, sum = 0, v;
	int fd[2] = { eventfd(0, 0), eventfd(0, 0) }, sem = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
	must(fd[0] >= 0 && fd[1] >= 0 && sem >= 0);
	pthread_t peer = start(eventfd_peer, fd);
	for (; !over(); ops++) {
		uint64_t want = 1 + below(1000);
		must(write(fd[0], &want, 8) == 8);
		must(read(fd[1], &v, 8) == 8);
		expect(v == want, "%lu, not %lu, came back", v, want);
		sum += want;
		for (int i = 0; i < 3; i++)
			expect(read(sem, &v, 8) == 8 && v == 1, "semaphore");
		expect(read(sem, &v, 8) < 0 && errno == EAGAIN, "semaphore below 0");
		v = 3;
		must(write(sem, &v, 8) == 8);
	}
	void *r;
	v = 1ul << 40;
	must(write(fd[0], &v, 8) == 8);
	pthread_join(peer, &r);
	expect((uint64_t)r == sum, "the peer counted %lu, not %lu", (uint64_t)r, sum);
	close(fd[0]);
	close(fd[1]);
	close(sem);
	return ops;
}

static inline uint64_t st_memfd(void)
{
	uint64_t ops = 0;
	for (; !over(); ops++) {
		size_t len = 1 + below(sizeof(buf[0]));
		struct stat st;
		int fd = memfd_create("stress", MFD_ALLOW_SEALING | MFD_CLOEXEC);
		must(fd >= 0 && ftruncate(fd, (off_t)len) == 0);
		unsigned char *p = mmap(NULL, len, RW, MAP_SHARED, fd, 0);
		must(p != MAP_FAILED);
		fill(p, len, ops);
		must(pread(fd, buf[0], len, 0) == (ssize_t)len);
		expect(differs(buf[0], len, ops) == len, "the file differs at %zu", differs(buf[0], len, ops));
		fill(buf[1], len, ops + 1);
		must(pwrite(fd, buf[1], len, 0) == (ssize_t)len);
		expect(differs(p, len, ops + 1) == len, "the mapping differs at %zu", differs(p, len, ops + 1));
		must(munmap(p, len) == 0 && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE) == 0);
		expect(pwrite(fd, "x", 1, 0) < 0 && errno == EPERM, "a write after the seal");
		expect(ftruncate(fd, 0) < 0 && errno == EPERM, "truncation after the seal");
		expect(mmap(NULL, len, RW, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EPERM,
		       "a mapping after the seal");
		must(fstat(fd, &st) == 0 && close(fd) == 0);
		expect(st.st_size == (off_t)len, "size %ld", (long)st.st_size);
	}
	return ops;
}

/* ---- files ---------------------------------------------------------------------------------------------------- */

#define FILE_LEN (256 * 1024)

static inline uint64_t st_file(void)
{
	static unsigned char model[FILE_LEN];
	char a[256], b[256];
	uint64_t ops = 0;
	size_t size = 0;
	int fd = open(path(a, "file", 0), O_RDWR | O_CREAT | O_TRUNC, 0600);
	must(fd >= 0);
	for (; !over(); ops++) {
		size_t len = 1 + below(8192), at = below(FILE_LEN - len);
		switch (below(5)) {
		case 0: /* past the end: a hole of zeros */
		case 1:
			fill(model + at, len, ops);
			must(pwrite(fd, model + at, len, (off_t)at) == (ssize_t)len);
			size = at + len > size ? at + len : size;
			break;
		case 2:
			must(ftruncate(fd, (off_t)at) == 0);
			if (at < size)
				memset(model + at, 0, size - at);
			size = at;
			break;
		case 3: {
			must(lseek(fd, 0, SEEK_END) == (off_t)size);
			len = size + len > FILE_LEN ? FILE_LEN - size : len;
			fill(model + size, len, ops);
			struct iovec {
				void *p;
				size_t n;
			} v[2] = { { model + size, len / 2 }, { model + size + len / 2, len - len / 2 } };
			must(syscall(SYS_writev, fd, v, 2) == (ssize_t)len);
			size += len;
			break;
		}
		default:
			must(rename(a, path(b, "renamed", 0)) == 0 && rename(b, a) == 0);
		}
		at = below(FILE_LEN);
		ssize_t n = pread(fd, buf[0], 16384, (off_t)at), want = at >= size          ? 0
									: size - at < 16384 ? (ssize_t)(size - at)
											    : 16384;
		expect(n == want, "read of %zd bytes at %zu of %zu, not %zd", n, at, size, want);
		expect(n <= 0 || !memcmp(buf[0], model + at, (size_t)n), "other content at %zu", at);
	}
	struct stat st;
	must(fsync(fd) == 0 && close(fd) == 0 && stat(a, &st) == 0 && unlink(a) == 0);
	expect((size_t)st.st_size == size, "size %ld, not %zu", (long)st.st_size, size);
	return ops;
}

static inline uint64_t st_dir(void)
{
	uint64_t ops = 0;
	char top[256], name[600];
	for (; !over(); ops++) {
		int n = 1 + (int)below(40), seen = 0, sum = 0;
		must(mkdir(path(top, "dir", ops), 0700) == 0);
		for (int i = 0; i < n; i++) {
			snprintf(name, sizeof(name), "%s/e%d", top, i);
			if (i & 1)
				must(mkdir(name, 0700) == 0);
			else
				must(close(open(name, O_CREAT | O_EXCL | O_WRONLY, 0600)) == 0);
		}
		expect(mkdir(name, 0700) < 0 && errno == EEXIST, "mkdir of what exists");
		DIR *d = opendir(top);
		must(d);
		for (struct dirent *e; (e = readdir(d));) {
			int i;
			if (sscanf(e->d_name, "e%d", &i) != 1)
				continue;
			seen++;
			sum += i;
			expect(e->d_type == DT_UNKNOWN || e->d_type == (i & 1 ? DT_DIR : DT_REG), "type of %s",
			       e->d_name);
		}
		closedir(d);
		expect(seen == n && sum == n * (n - 1) / 2, "%d of %d names", seen, n);
		expect(rmdir(top) < 0 && errno == ENOTEMPTY, "rmdir of a full directory");
		for (int i = 0; i < n; i++) {
			snprintf(name, sizeof(name), "%s/e%d", top, i);
			must((i & 1 ? rmdir(name) : unlink(name)) == 0);
		}
		must(rmdir(top) == 0);
		expect(access(top, F_OK) < 0 && errno == ENOENT, "it is still there");
	}
	return ops;
}

static inline uint64_t st_link(void)
{
	uint64_t ops = 0;
	char base[256], name[256], got[256];
	int fd = open(path(base, "base", 0), O_CREAT | O_RDWR | O_TRUNC, 0600);
	must(fd >= 0 && write(fd, "base", 4) == 4);
	for (; !over(); ops++) {
		struct stat a, b;
		unsigned n = 1 + (unsigned)below(8);
		for (unsigned i = 0; i < n; i++)
			must(link(base, path(name, "hard", i)) == 0);
		must(fstat(fd, &a) == 0 && stat(name, &b) == 0);
		expect(a.st_nlink == n + 1 && a.st_ino == b.st_ino, "%u links, not %u", (unsigned)a.st_nlink, n + 1);
		for (unsigned i = 0; i < n; i++)
			must(unlink(path(name, "hard", i)) == 0);
		must(symlink(base, path(name, "soft", 0)) == 0);
		ssize_t len = readlink(name, got, sizeof(got));
		expect(len == (ssize_t)strlen(base) && !memcmp(got, base, (size_t)len), "readlink gives %zd bytes",
		       len);
		must(lstat(name, &b) == 0 && S_ISLNK(b.st_mode) && stat(name, &b) == 0 && b.st_ino == a.st_ino);
		must(unlink(name) == 0 && symlink(name, name) == 0);
		expect(open(name, O_RDONLY) < 0 && errno == ELOOP, "a link to itself");
		must(unlink(name) == 0);
	}
	close(fd);
	unlink(base);
	return ops;
}

#endif
