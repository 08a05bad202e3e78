/* SPDX-License-Identifier: Apache-2.0 */
/* Variables that others point to. */
int cells[64] = { 1 };
static int *first = cells;
int *cell_at(int i) { return first + i; }
int version(void) { return V; }
