/* SPDX-License-Identifier: Apache-2.0 */
/* SysV segments. Part of ipc.c. */
#ifndef KX_GUEST_IPC_SHM_H
#define KX_GUEST_IPC_SHM_H
#include "ipc.h"

static inline void shm(void)
{
	SECTION("shmget");
	key_t k = 0x4b580001;
	int id, id2;
	struct shmid_ds ds;
	R(shmget(k, 4096, 0600));
	R(shmget(k, 0, IPC_CREAT | 0600));
	R((id = shmget(k, 5000, IPC_CREAT | 0640)) >= 0);
	R(shmget(k, 4096, IPC_CREAT | IPC_EXCL | 0600));
	R(shmget(k, 5000, 0600) == id);
	R(shmget(k, 5001, 0600));
	R(shmget(k, 0, 0) == id);
	R(shmget(k, 1, 0) == id);
	R(shmget(IPC_PRIVATE, ~0ul, IPC_CREAT | 0600));
	R((id2 = shmget(IPC_PRIVATE, 4096, 0600)) != id);
	R(shmctl(id2, IPC_RMID, NULL));
	R(shmctl(id2, IPC_RMID, NULL));
	SECTION("shmctl");
	R(shmctl(id, IPC_STAT, &ds));
	R(ds.shm_segsz);
	R(ds.shm_nattch);
	R(ds.shm_perm.mode);
	R(ds.shm_perm.uid == geteuid() && ds.shm_perm.cuid == geteuid() && ds.shm_perm.gid == getegid());
	R(ds.shm_perm.__key == k);
	R(ds.shm_cpid == getpid());
	R(ds.shm_lpid);
	R(ds.shm_atime == 0 && ds.shm_dtime == 0 && ds.shm_ctime != 0);
	R(shmctl(id, IPC_STAT, BAD));
	R(shmctl(id, IPC_SET, BAD));
	R(shmctl(-1, IPC_STAT, &ds));
	R(shmctl(id, 99, &ds));
	ds.shm_perm.mode = 0604;
	R(shmctl(id, IPC_SET, &ds));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_perm.mode == 0604);
	struct shminfo info;
	struct shm_info used;
	R(shmctl(0, IPC_INFO, (void *)&info) >= 0 && info.shmmni > 0 && info.shmmax > 0 && info.shmmin == 1);
	R(shmctl(0, SHM_INFO, (void *)&used) >= 0 && used.used_ids >= 1 && used.shm_tot >= 2);
	int top = shmctl(0, SHM_INFO, (void *)&used), seen = 0;
	for (int i = 0; i <= top; i++)
		seen += shmctl(i, SHM_STAT, &ds) == id && ds.shm_segsz == 5000;
	R(seen);
	for (int i = seen = 0; i <= top; i++)
		seen += shmctl(i, SHM_STAT_ANY, &ds) == id;
	R(seen);
	R(shmctl(-1, SHM_STAT, &ds));
	SECTION("shmat");
	char *p, *q;
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R((long)shmat(-1, NULL, 0));
	R((long)shmat(id, p + 1, 0));
	R((long)shmat(id, p, 0));
	R((long)shmat(id, NULL, SHM_REMAP));
	R(shmat(id, p, SHM_REMAP) == p);
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1 && ds.shm_lpid == getpid() && ds.shm_atime);
	char *room = mmap(NULL, 65536, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	R((long)shmat(id, room + 8192, 0));
	R((long)shmat(id, room + 8192 + 100, SHM_REMAP));
	R(shmat(id, room + 8192 + 100, SHM_RND | SHM_REMAP) == room + 8192);
	room[8192 + 8191] = 0;
	R(IN_CHILD(room[8192 + 8192] = 0));
	R(shmdt(room + 8192));
	R(shmdt(room + 8192));
	R(munmap(room, 65536));
	R(shmdt(p + 1));
	R(p[4999] + p[8191]);
	R((q = shmat(id, NULL, SHM_RDONLY)) != (void *)-1 && q != p);
	strcpy(p, "one");
	R(strcmp(q, "one"));
	R(IN_CHILD(q[0] = 1));
	R(mprotect(q, 4096, PROT_READ | PROT_WRITE));
	R(IN_CHILD(if (strcmp(p, "one")) _exit(1); strcpy(p + 4, "two")));
	R(strcmp(q + 4, "two"));
	R(IN_CHILD(R(shmctl(id, IPC_STAT, &ds)); R(ds.shm_nattch)));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2);
	R(IN_CHILD(shmdt(p); shmdt(q); R(shmdt(p)); R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2)));
	R(munmap(q, 4096));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 2);
	R(shmdt(q));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	R(mprotect(p, 4096, PROT_NONE));
	R(shmdt(p));
	R(msync(p, 8192, MS_ASYNC));
	/* in parts, one of them gone */
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R(munmap(p, 4096));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	R(shmdt(p));
	R(msync(p + 4096, 4096, MS_ASYNC));
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R(mprotect(p + 4096, 4096, PROT_READ));
	R(shmdt(p));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 0);
	R(msync(p + 4096, 4096, MS_ASYNC));
	R((p = shmat(id, NULL, SHM_EXEC)) != (void *)-1);
	strcpy(p, "one");
	R(IN_CHILD(pid_t c = vfork(); if (!c) _exit(shmctl(id, IPC_STAT, &ds) || ds.shm_nattch != 2); status_of(c)));
	SECTION("shm, others");
	R(AS_NOBODY(R((long)shmat(id, NULL, 0)); R(shmat(id, NULL, SHM_RDONLY) != (void *)-1); R(shmget(k, 1, 0006));
		    R(shmget(k, 1, 0004) >= 0); R(shmctl(id, IPC_STAT, &ds)); R(shmctl(id, IPC_SET, &ds));
		    R(shmctl(id, IPC_RMID, NULL)); R(shmctl(id, SHM_LOCK, NULL))));
	ds.shm_perm.mode = 0600;
	R(shmctl(id, IPC_SET, &ds));
	R(AS_NOBODY(R(shmctl(id, IPC_STAT, &ds)); R((long)shmat(id, NULL, SHM_RDONLY)); R(shmget(k, 1, 0004));
		    R(shmget(k, 1, 0) >= 0)));
	if (geteuid() == 0) {
		ds.shm_perm.uid = 65534;
		R(shmctl(id, IPC_SET, &ds));
		R(AS_NOBODY(R(shmctl(id, IPC_STAT, &ds)); R(ds.shm_perm.uid); R(ds.shm_perm.cuid);
			    R(shmctl(id, IPC_SET, &ds))));
	}
	SECTION("shm, removed");
	R(shmctl(id, IPC_RMID, NULL));
	R(shmctl(id, IPC_STAT, &ds));
	R(ds.shm_perm.mode & SHM_DEST);
	R(ds.shm_perm.__key);
	R(shmget(k, 1, 0));
	R(strcmp(p, "one"));
	R((q = shmat(id, NULL, 0)) != (void *)-1 && !strcmp(q, "one"));
	R(shmdt(q));
	R((id2 = shmget(k, 100, IPC_CREAT | 0600)) != id);
	R(IN_CHILD(R(shmat(id2, NULL, 0) != (void *)-1)));
	R(IN_CHILD(shmat(id2, NULL, 0); raise(SIGKILL)));
	R(shmctl(id2, IPC_STAT, &ds) == 0 && ds.shm_nattch == 0);
	R(shmctl(id2, IPC_RMID, NULL));
	R(shmctl(id2, IPC_STAT, &ds));
	R(shmdt(p));
	R(shmctl(id, IPC_STAT, &ds));
	R((long)shmat(id, NULL, 0));
	/* its creator's end does not remove it, and an exec detaches */
	R(IN_CHILD(if (shmget(k, 100, IPC_CREAT | 0600) < 0) _exit(1)));
	R((id = shmget(k, 0, 0)) >= 0);
	R((p = shmat(id, NULL, 0)) != (void *)-1);
	R(IN_CHILD(execl("/bin/true", "true", NULL)));
	R(shmctl(id, IPC_STAT, &ds) == 0 && ds.shm_nattch == 1);
	R(shmctl(id, IPC_RMID, NULL));
	R(shmdt(p));
	R(ftok("/bin/sh", 'k') == ftok("/bin/sh", 'k') && ftok("/bin/sh", 'k') != ftok("/bin/sh", 'l'));
	R(ftok("/nonexistent", 'k'));
}
#endif
