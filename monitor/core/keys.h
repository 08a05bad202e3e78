/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keys on disk, outside of the jail. The keyring is a directory: NAME.pub for each key that is trusted, and `revoked`,
 * which names keys and files that are not to be used any more. What is written gets its name when it is whole and synced;
 * writers take turns by a lock.
 *
 * All of it is text of the form of signatures (sign.h):
 *	NAME.pub	kylinx-public-key 1, key HEX, from SECONDS, expires SECONDS
 *	revoked		kylinx-revoked 1, then lines of `key ID SECONDS` or `sha256 HEX SECONDS`
 *	a secret key	kylinx-secret-key 1, seed HEX
 */
#ifndef KX_KEYS_H
#define KX_KEYS_H
#include "../../util/err.h"
#include "sign.h"

struct revoked_key {
	uint8_t id[SIGN_ID];
	int64_t time;
};
struct revoked_file {
	uint8_t sha256[SIGN_HASH];
	int64_t time;
};

struct keyring {
	char path[4096];
	struct sign_key *key; /* in the order of their names */
	struct revoked_key *revoked_key;
	struct revoked_file *revoked_file;
	unsigned nr, nr_revoked_keys, nr_revoked_files;
	int dir, lock; /* descriptors, -1: none */
};

/* $KYLINX_CONFIG, else /etc/kylinx for root, else $XDG_CONFIG_HOME/kylinx or ~/.config/kylinx. 0; -ENOENT:
 * there is no place, or none is wanted (KYLINX_CONFIG is empty); -EINVAL: it is no absolute path. */
int config_dir(char out[4096]);
/*
 * Open a file (or directory) that decides: it, all directories above it and all links on the way must be the caller's or
 * root's, and others must not be able to write them. Returns a descriptor, or -errno with err set, -ENOENT included.
 */
int trusted_open(const char *path, bool directory, struct kx_err *err);
/* A regular file of at most max bytes, NUL-terminated; *out is freed by the caller. */
int file_read(int fd, const char *shown, size_t max, char **out, size_t *len, struct kx_err *err);
/* Write a file whole or not at all, and sync it. fresh: fails with EEXIST where there is one. Who is killed while it replaces
 * one can leave PATH.new, which the next who does it removes. */
int file_replace(const char *path, const void *data, size_t len, unsigned mode, bool fresh, struct kx_err *err);

/* Read a keyring. -ENOENT with err set: there is none. */
int keyring_read(const char *dir, struct keyring *k, struct kx_err *err);
/* For changes: makes it when there is none, and keeps others from changing it till keyring_free(). -EWOULDBLOCK: somebody
 * else does, for ten seconds by now. */
int keyring_edit(const char *dir, struct keyring *k, struct kx_err *err);
void keyring_free(struct keyring *k);
const struct sign_key *keyring_by_name(const struct keyring *k, const char *name);
const struct sign_key *keyring_by_id(const struct keyring *k, const uint8_t id[SIGN_ID]);
/* 0: it is not. */
int64_t keyring_file_revoked(const struct keyring *k, const uint8_t sha256[SIGN_HASH]);
int64_t keyring_key_revoked(const struct keyring *k, const uint8_t id[SIGN_ID]);
/* Add a key, or change how long one is valid. As the editor. */
int keyring_trust(struct keyring *k, const struct sign_key *key, struct kx_err *err);
/* One of both, the other NULL. 1: done, 0: it was revoked already. */
int keyring_revoke(struct keyring *k, const uint8_t *id, const uint8_t *sha256, int64_t now, struct kx_err *err);

bool key_name_valid(const char *name);
int key_public_read(const char *path, struct sign_key *out, struct kx_err *err);
/* Make a pair: path (mode 0600) and path.pub. */
int key_make(const char *path, struct sign_key *out, struct kx_err *err);
int key_secret_read(const char *path, uint8_t seed[SIGN_SEED], struct kx_err *err);

/* YYYY-MM-DD (UTC), Nd (days from now), or never (0). */
bool date_parse(const char *s, int64_t now, int64_t *out);
/* YYYY-MM-DD HH:MM:SS UTC, without the time at midnight; "never". */
void date_show(int64_t t, char out[32]);
#endif
