/* SPDX-License-Identifier: Apache-2.0 */
/* The library of test_relink.c, in two versions. */
static int own = 5;
int shared = V;
__thread int of_thread = 3;
static int *const points[] = { &own, &shared };
static int *volatile to_own = &own;

int version(void);
int version(void) { return V; }

int next(void);
int next(void) { return ++*to_own; }

int is_sound(void);
int is_sound(void) { return to_own == &own && points[0] == &own && points[1] == &shared && of_thread == 3; }
