/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sharedtext pvm: children die of SIGKILL while their lists of robust locks name words of the LibOS's text that hold their
 * number, to which the host's kernel writes where it can. Their parent's text stays what it was. Natively there is none.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "../../../abi/kx_abi.h"

#define TEXT_BYTES (32 << 10) /* of the image, which is longer */
#define CHILDREN 2500
#define ENOUGH 4

static const uint32_t *const text = (const uint32_t *)KX_LIBOS_BASE;
static uint32_t before[TEXT_BYTES / 4];

static void die_with(const uint32_t *word)
{
	static struct robust_list_head head;
	head.list.next = &head.list;
	head.list_op_pending = (struct robust_list *)word;
	syscall(SYS_set_robust_list, &head, sizeof head);
	kill(getpid(), SIGKILL);
	pause();
}

static const uint32_t *word_of(uint32_t tid)
{
	for (size_t i = 0; i < TEXT_BYTES / 4; i++)
		if ((text[i] & FUTEX_TID_MASK) == tid)
			return &text[i];
	return NULL;
}

int main(int argc, char **argv)
{
	int hit = 0, status;
	if (argc < 2 || strcmp(argv[1], "pvm")) {
		puts("skipped natively");
		return 0;
	}
	memcpy(before, text, sizeof before);
	for (int i = 0; i < CHILDREN && hit < ENOUGH; i++) {
		pid_t pid = fork();
		if (!pid) {
			const uint32_t *word = word_of((uint32_t)getpid());
			if (word)
				die_with(word);
			_exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) != pid)
			return 1;
		hit += WIFSIGNALED(status);
		if (memcmp(before, text, sizeof before)) {
			printf("FAIL: the LibOS was changed by child %d\n", pid);
			return 1;
		}
	}
	if (!hit) {
		printf("no child had a number that is a word of the LibOS's\n");
		return 77;
	}
	printf("ok: %d children\n", hit);
	return 0;
}
