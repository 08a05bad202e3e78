/* SPDX-License-Identifier: Apache-2.0 */
/* A program for docs/examples/update.c: counts at each line, and tells what kylinx.h knows of its process. */
#include <kylinx.h>
#include <stdio.h>
#include <unistd.h>

long count(void);

int main(void)
{
	char line[16];
	struct kylinx_stats s = { 0 };
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		int r = kylinx_stats(&s, sizeof s);
		printf("%ld %d %d %d %d\n", count(), kylinx_is_pvm(), kylinx_id() == getpid(), r,
		       r || (s.threads == 1 && s.sites > 0));
	}
	return 0;
}
