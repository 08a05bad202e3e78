/* SPDX-License-Identifier: Apache-2.0 */
/* A library with two versions of one function, and one that hides what it doesn't export. */
__attribute__((symver("f@OLD"))) int f_old(void) { return 1; }
__attribute__((symver("f@@NEW"))) int f_new(void) { return 2; }
int hidden_f(void) { return 3; }
int calls_hidden(void) { return hidden_f(); }
