/* SPDX-License-Identifier: Apache-2.0 */
/* Loaded and unloaded again and again. */
long other(void);
static long value = 42;
long other(void) { return value; }
