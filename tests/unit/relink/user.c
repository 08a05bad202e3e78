/* SPDX-License-Identifier: Apache-2.0 */
/* A library that uses the one of test_relink.c. */
int version(void);
int next(void);
int is_sound(void);
int user_version(void);
int user_next(void);
int user_is_sound(void);
int (*user_next_now(void))(void);

int user_version(void) { return version(); }
int user_next(void) { return next(); }
int (*user_next_now(void))(void) { return next; }
int user_is_sound(void) { return is_sound(); }
