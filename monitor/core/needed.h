/* SPDX-License-Identifier: Apache-2.0 */
/* The files that a program's start maps: itself, its interpreter, and the closure of what they need (DT_NEEDED). */
#ifndef KX_NEEDED_H
#define KX_NEEDED_H

#include <stddef.h>
#include <stdint.h>

#define NEEDED_FILES 256

/* Call fn for each name that the file needs. dirs, if it is not NULL: its own search path, or "". */
void needed_of(int fd, uint64_t size, void (*fn)(const char *name), char *dirs, size_t dirs_size);

/*
 * Call fn for each file, with its path on the host; below root when that is not NULL. program: an absolute path, below
 * root; a script stands for its interpreter. library_path: $LD_LIBRARY_PATH or NULL. It is an estimate of what the dynamic
 * linker will find (it knows no ld.so.cache and no subdirectories for CPUs); what is wrong with a file ends nothing. Nothing
 * in the files is believed: sizes and offsets are checked, loops end. fn returns 0 to go on.
 */
void needed_each(const char *root, const char *program, const char *library_path,
		 int (*fn)(void *arg, const char *path), void *arg);
#endif
