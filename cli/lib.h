/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of `kylinx lib` share. */
#ifndef KX_LIB_H
#define KX_LIB_H
#include <stdbool.h>
#include <stdio.h>
#include "../monitor/core/keys.h"

#define LIB_SEE "see `kylinx help lib`"

/* An option --name, or --name VALUE; what it was given is kept. */
struct lib_option {
	const char *name;
	const char **value; /* NULL: it has none, and is noted in set */
	bool *set;
};

/* Take the options out of argv[1..argc); the rest moves to argv[0..]. Returns how many are left, or -EINVAL. */
int lib_options(int argc, char **argv, const struct lib_option *options, struct kx_err *err);
/* Note a change in the history of the store; what was done is said when that is not possible. 0 or -errno. */
int lib_note(const char *event, const char *object, const char *detail, struct kx_err *err);
/* The caller's keyring. */
int lib_keyring_path(char out[4096], struct kx_err *err);
/* A date of an option; the text that is no date is an error. */
int lib_date(const char *option, const char *value, int64_t now, int64_t *out, struct kx_err *err);
/* Print what was written to a memory stream, and free it. The status for the command. */
int lib_print_free(FILE *o, char **text, struct kx_err *err);

/* The signature of a file: 1: good, 0: there is none, -1: it is bad. Says in one line what it found. */
int lib_signature(const char *path, const struct keyring *k, char line[400], struct sign_manifest *m);
/* The whole of a regular file, read-only, to be unmapped (size > 0). 0 or -errno with err set. */
int lib_map(const char *path, void **p, size_t *size, struct kx_err *err);

/* Keys as lines, or as elements of an array of JSON. */
void lib_show_keys(FILE *o, const struct sign_key *key, unsigned nr, bool json);

/* args[0] is the command. Each returns the exit status. */
int lib_keygen(int argc, char **argv, struct kx_err *err);
int lib_sign(int argc, char **argv, struct kx_err *err);
int lib_trust(int argc, char **argv, struct kx_err *err);
int lib_revoke(int argc, char **argv, struct kx_err *err);
int lib_policy(int argc, char **argv, struct kx_err *err);
#endif
