/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A library whose second version keeps its state in another form, and carries it over with hooks:
 *   gcc -shared -fPIC -DVERSION=1 -Wl,-soname,libcount.so.1 -o libcount.so.1 update.c
 *   gcc -shared -fPIC -DVERSION=2 -Wl,-soname,libcount.so.1 -o new.so update.c
 *   kylinx update PID new.so
 */
#include <kylinx.h>

struct state {
	long count;
};

#if VERSION == 1
static struct state now;
long count(void) { return ++now.count; }
void *kylinx_update_prepare(void) { return &now; }
int kylinx_update_commit(void *from)
{
	now = *(struct state *)from;
	return 0;
}
#else
static long history[16];
static struct state now;
long count(void)
{
	history[now.count % 16] = now.count;
	return ++now.count;
}
void *kylinx_update_prepare(void) { return &now; }
int kylinx_update_commit(void *from)
{
	now = *(struct state *)from;
	return now.count < 0; /* refuse what cannot be */
}
#endif
