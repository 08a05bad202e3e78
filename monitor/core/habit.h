/* SPDX-License-Identifier: Apache-2.0 */
/* Whether a process forks out of habit: one child soon after the other. */
#ifndef KX_HABIT_H
#define KX_HABIT_H
#include <stdbool.h>

/* A child was made, of whatever kind. */
void habit_born(void);
/* The last two of this process followed each other soon. */
bool habit_forks(void);
#endif
