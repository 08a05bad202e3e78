/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The linker's part of an online update (update.c): reads the list of objects that the guest's ld.so keeps, maps a new
 * version of one of them beside the old one, relocates it, and makes a list of every word that has to change so that
 * the program uses the new one. All of that happens while the program runs; relink_apply() changes the words while it
 * stands still.
 *
 * Everything that is read, the new file included, may be anything: it is copied once, bounds are checked, loops end.
 * What is written goes through guest_write() and to the guest alone.
 */
#ifndef KX_RELINK_H
#define KX_RELINK_H
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct relink;

/* A line for the user. */
typedef void (*relink_say_fn)(void *arg, const char *fmt, va_list ap);

#define RELINK_RESET 1u /* the library's own variables start anew when they can't be carried over */

/*
 * fd: the new version, for reading. Nothing that the program can see has changed when it returns. 0 and *out, to be
 * given to relink_apply() any number of times and then to relink_done(); or -errno, with the reason said unless that is
 * all there is to say (relink_lacks(): memory, descriptors, the disk).
 */
bool relink_lacks(int e);
int relink_prepare(int fd, unsigned flags, relink_say_fn say, void *arg, struct relink **out);

/*
 * Functions that must run in the guest before the new version can be used, batch by batch: resolvers of IFUNCs, then
 * constructors. The caller puts the results in and asks for the next batch, until *nr is 0; NULL then when something is
 * wrong. After that comes relink_bind(), without which there is no relink_apply().
 */
struct relink_call {
	uint64_t fn, arg[3], result;
};
struct relink_call *relink_calls(struct relink *r, unsigned *nr);
int relink_bind(struct relink *r);
/* The hooks of both versions (kylinx.h), 0 = none. */
struct relink_hooks {
	uint64_t prepare, abort, commit;
};
struct relink_hooks relink_hooks(const struct relink *r);
/* A function at this address of the guest makes the exit KX_PORT_RETURN; behind it are 64 zero bytes. 0 = no memory. */
uint64_t relink_return_stub(void);
/* Is pc in libc, ld.so, or who else defines malloc: where a thread may hold a lock that a function would want? */
bool relink_is_runtime(const struct relink *r, uint64_t pc);

/* Is pc in the version that is to be replaced, or in ld.so? */
enum relink_place { RELINK_ELSEWHERE, RELINK_OLD, RELINK_LOADER };
enum relink_place relink_where(const struct relink *r, uint64_t pc);
/* Unwind tables of the object that holds pc (unwind_find_fn). */
uint64_t relink_unwind_table(uint64_t pc, void *r);
/* Name of the function at pc, as far as the symbols tell. */
void relink_name(const struct relink *r, uint64_t pc, char *out, unsigned size);

/*
 * Everything stands still, the caller holds pvm.mm_lock: move over. 0; -EAGAIN: the program has loaded or unloaded
 * something since it was prepared, prepare again; other -errno: nothing is changed.
 */
int relink_apply(struct relink *r);
/* After relink_apply(), everything still stands: as it was. relink_apply() may be called again; what relink_ahead() has found
 * is lost. */
void relink_undo(struct relink *r);
/*
 * After relink_bind(): must the program's memory be looked through for pointers to the library? Then relink_note() notes
 * from there on what is written (-errno: can't be), and relink_ahead() and relink_again() do most of it while the program
 * runs. relink_again(): how many pages had been written meanwhile.
 */
bool relink_looks(const struct relink *r);
int relink_note(struct relink *r);
void relink_ahead(struct relink *r);
size_t relink_again(struct relink *r);
/* After relink_apply(), everything still stands: a register's value as the new version has it. */
uint64_t relink_register(const struct relink *r, uint64_t v);
/* After the program goes on: give back what is not needed. kept: relink_apply() has succeeded. */
void relink_done(struct relink *r, bool kept);
/* In place of relink_done(), where a function of the new version is still running: nothing is changed, and all that it uses
 * stays for ever. */
void relink_leave(struct relink *r);
/* Where the word is that had changed when relink_apply() said -EAGAIN; 0: the list of objects had. */
uint64_t relink_changed(const struct relink *r);
/* For the report: library, words changed, bytes of state carried over. */
const char *relink_soname(const struct relink *r);
void relink_counts(const struct relink *r, unsigned *words, unsigned *bytes, unsigned *versions);
#endif
