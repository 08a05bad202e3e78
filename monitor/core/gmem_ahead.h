/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a dynamic linker is going to ask for, made before it asks: kx_libfile.h. The mappings are made by the same code as
 * if it had asked, so what they are, and whether a policy allows them, is no different. A policy's refusal is not told
 * here: the linker's own call comes to it.
 *
 * The guest says how many it has asked for: the others are undone, all together end in what it could have done by calls.
 */
#ifndef KX_GMEM_AHEAD_H
#define KX_GMEM_AHEAD_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kx_libnext_file;

/* The process has one thread, and that has just opened fd, whose first bytes are head: a library. Where it is mapped; 0: it
 * is not. */
uint64_t gmem_ahead_library(const uint8_t *head, size_t len, int fd);
/* ... a file that is mapped as a whole; once: to be read and unmapped. */
uint64_t gmem_ahead_whole(int fd, uint64_t size, bool once);
/* The same for file i of kx_libnext.h (libnext.c); whole: its size, if it is mapped so, and once as above. */
uint64_t gmem_ahead_next(unsigned i, const uint8_t *head, size_t len, int fd, uint64_t whole, bool once,
			 struct kx_libnext_file *out);
/* That one is the one just opened now. fd: the program's. */
void gmem_ahead_next_open(unsigned i, int fd);
/* It has been asked for and closed; or it was not. */
void gmem_ahead_next_end(unsigned i, bool asked);
bool gmem_ahead_next_apart(uint64_t start, uint64_t len);
bool gmem_ahead_is_musl(void);
/* Memory that is read-only once it is relocated. */
void gmem_ahead_relro(uint64_t start, uint64_t end);
/* ... and that a linker reads first, of a private mapping of a file that is read-only. */
void gmem_ahead_read(uint64_t start, uint64_t end);

extern bool gmem_ahead_more; /* gmem_ahead_next() will be called again at once */
extern bool gmem_ahead_any;  /* there is something to settle */
/* A call nr of the guest's has come: make true what it was told. */
void gmem_ahead_settle(uint64_t nr, const uint64_t arg[6]);
#endif
