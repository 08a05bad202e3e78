/* SPDX-License-Identifier: Apache-2.0 */
/* Counted checks of a unit test, each with a message for its failure. */
#ifndef KX_UNIT_CHECK_H
#define KX_UNIT_CHECK_H
#include <stdio.h>

static int checks, failures;

#define CHECK(cond, ...) \
	do { \
		checks++; \
		if (!(cond)) { \
			failures++; \
			fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #cond); \
			fprintf(stderr, __VA_ARGS__); \
			fputc('\n', stderr); \
		} \
	} while (0)
#endif
