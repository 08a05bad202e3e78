/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of `kylinx ps` share. */
#ifndef KX_PS_H
#define KX_PS_H
#include <stdio.h>
#include "families.h"

/* A string of any bytes as JSON's. */
void put_json(FILE *f, const char *s, size_t len);
/* One line for a terminal, at most so many characters. */
void put_line(FILE *f, const char *s, size_t len, int width);

/* The IPC objects of families (only: of that one; NULL: of all). 0 or -errno with err set. */
int ps_ipc(FILE *o, const struct families *all, const struct family *only, bool json, struct kx_err *err);
#endif
