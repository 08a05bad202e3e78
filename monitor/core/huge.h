/* SPDX-License-Identifier: Apache-2.0 */
/* 2 MiB pages: for programs that write much between their forks, never for the monitor itself. */
#ifndef KX_HUGE_H
#define KX_HUGE_H
#include <stdbool.h>
#include <stdint.h>

/*
 * Such a program's memory of 2 MiB and more gets 2 MiB pages, as far as it is in use, and so does what it maps from here
 * on: a fork copies a table entry for each page, KVM drops one, and both take a fault for each page that is written. In a
 * process of one thread, while nobody waits for it: takes some ms.
 */
void huge_for_forks(void);
/* It was done here, or in the process that this one was forked from. */
bool huge_by_forks(void);
/* The program has asked for 4 KiB pages somewhere: it knows better. */
void huge_refused(void);
bool huge_is_refused(void);
/*
 * `len` bytes at `start` are the monitor's, who uses a little of each 2 MiB: no such page of the host's there, also where it
 * gives them to whoever does not ask (transparent_hugepage/enabled: always, as Debian has it). Before they are touched.
 */
void huge_never(void *start, uint64_t len);
#endif
