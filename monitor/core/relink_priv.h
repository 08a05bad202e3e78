/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of relink.h's module share. None of it is for others. */
#ifndef KX_RELINK_PRIV_H
#define KX_RELINK_PRIV_H
#include "relink.h"
#include <elf.h>
#include <time.h>
#include "gmem.h"
#include "sweep.h"

#define PAGE 4096ull
#define PIECE 4096 /* of variables, at a time */
#define UP(x) (((x) + PAGE - 1) & -PAGE)
#define DOWN(x) ((x) & -PAGE)
#define IMAGES_MAX 1024
#define RELS_MAX (1u << 21)
#define DYN_MAX 256
#define PHDRS_MAX 64
#define NEEDED_MAX 128
#define SAID_MAX 40
#define CALLS_MAX 4096
#define DATA_OF_COMPILER 24 /* bytes of variables that each library has */

#ifndef DT_RELR
#define DT_RELRSZ 35
#define DT_RELR 36
#endif

struct version {
	uint32_t name; /* into str; 0 = none */
	uint32_t hash;
	uint32_t file; /* into str, of one that is needed; 0 = its own */
	bool hidden;
};

struct image {
	uint64_t map; /* its struct link_map; 0: not in the list */
	uint64_t base, dyn;
	uint64_t start, end; /* whole pages */
	uint64_t phdr;
	Elf64_Phdr ph[PHDRS_MAX];
	unsigned nr_ph;
	Elf64_Dyn d[DYN_MAX];
	unsigned nr_d;
	bool adjusted; /* addresses in the dynamic section are absolute, as glibc leaves them */
	char *str;
	uint64_t str_size;
	Elf64_Sym *sym;
	uint16_t *ver;
	uint32_t nr_sym;
	struct version *vers;
	unsigned nr_vers;
	Elf64_Rela *rel;
	size_t nr_rel;
	uint32_t *bucket, *chain, nr_bucket; /* our own hash of the defined symbols */
	const char *soname;
	uint32_t needed[NEEDED_MAX];
	unsigned nr_needed;
	uint64_t eh_hdr, relro, relro_end, data, data_file_end, data_end; /* data: writable and not the linker's */
	const Elf64_Phdr *tls;
};

struct word {
	uint64_t at, old, new;
};

#define SEGMENTS_MAX 8

/* Versions that the program does not use any more, and that something may still point to (retire.h). */
struct retired {
	struct retired *next;
	uint64_t base, dyn, start, end;
	uint64_t aux, aux_len; /* of tables for ld.so */
	uint64_t print;        /* of the image as it was read (image_print()) */
	bool has_file;         /* the file that it was mapped from is known: */
	uint8_t file[32];      /* its SHA-256 */
	size_t file_len;
	bool partial; /* only its constants are mapped */
	struct {
		uint64_t start, end;
		bool code; /* or variables, or has pointers to some; else constants */
	} seg[SEGMENTS_MAX];
	unsigned nr_seg; /* 0: more than that */
};
extern struct retired *relink_retired;

/* A word of the new version that waits for the result of a resolver. */
struct pending {
	uint64_t at, add;
	unsigned call;
};

/* An entry of ld.so's list of objects. */
struct listed {
	uint64_t map, base, dyn;
};

struct relink {
	relink_say_fn say;
	void *arg;
	unsigned flags;
	struct listed *list;
	unsigned nr_list;
	struct image *img;
	unsigned nr_img;
	unsigned nr_listed; /* of them in ld.so's list; behind them come the retired */
	struct image new;
	struct image *old, *loader;
	uint64_t r_debug;
	struct word *word;
	size_t nr_word, cap_word;
	size_t nr_object_words;
	uint64_t *page; /* pages made writable for the time being */
	size_t nr_page;
	uint64_t mapped, mapped_len;         /* where the new version is, when it was mapped for this */
	struct retired *note_old, *note_new; /* of both versions, for when it is made */
	struct retired *reuse;               /* the mapping of the new version was there already: */
	uint8_t *own;                        /* its variables as they were, since something may still use them */
	bool own_lost;                       /* they are others by now */
	uint64_t aux, aux_len;               /* in the guest: tables for ld.so */
	bool whole_state;
	uint8_t *state; /* the old data, as it was at the last look */
	size_t state_len;
	uint8_t *stale; /* by piece of it: 0 = has not been written since it was copied */
	bool state_noted;
	uint32_t (*pair)[2]; /* by word of the data: relocation + 1 in the old and in the new version, 0 = none */
	uint64_t tls_mod, tls_off;
	bool tls_known;
	struct relink_call *call;
	struct pending *pending; /* for the results of the first calls */
	unsigned nr_call, nr_pending;
	struct relink_call *done; /* resolvers that have run */
	unsigned nr_done, batch;
	char *copy; /* of the file, */
	size_t copy_len;
	struct timespec copy_time; /* and when that was written to */
	uint8_t file[32];          /* its SHA-256 */
	unsigned said;
	uint64_t bytes;
	uint64_t changed;
	struct sweep *sweep; /* of pointers in the program's memory; NULL: needs none */
	bool same_image;     /* both versions have everything at the same places */
};

/* As <link.h>'s. */
struct debug {
	int32_t version, pad;
	uint64_t map, brk;
	uint32_t state, pad2;
	uint64_t ldbase;
};
struct map_head {
	uint64_t addr, name, ld, next, prev;
};

static inline const Elf64_Dyn *dyn_entry(const struct image *m, int64_t tag)
{
	const Elf64_Dyn *found = NULL;
	for (unsigned i = 0; i < m->nr_d; i++)
		if (m->d[i].d_tag == tag)
			found = &m->d[i];
	return found;
}

static inline uint64_t dyn_value(const struct image *m, int64_t tag)
{
	const Elf64_Dyn *d = dyn_entry(m, tag);
	return d ? d->d_un.d_val : 0;
}

static inline uint64_t dyn_address(const struct image *m, int64_t tag)
{
	const Elf64_Dyn *d = dyn_entry(m, tag);
	if (!d)
		return 0;
	return d->d_un.d_ptr < m->base ? d->d_un.d_ptr + m->base : d->d_un.d_ptr;
}

static inline const char *str_at(const struct image *m, uint64_t off) { return off < m->str_size ? m->str + off : ""; }

static inline bool is_defined(const Elf64_Sym *s)
{
	return s->st_shndx != SHN_UNDEF && s->st_shndx != SHN_ABS && ELF64_ST_BIND(s->st_info) != STB_LOCAL &&
	       ELF64_ST_TYPE(s->st_info) != STT_SECTION && ELF64_ST_TYPE(s->st_info) != STT_FILE;
}

static inline unsigned type_of(const Elf64_Sym *s)
{
	unsigned t = ELF64_ST_TYPE(s->st_info);
	return t == STT_GNU_IFUNC || t == STT_NOTYPE ? STT_FUNC : t == STT_COMMON ? STT_OBJECT : t;
}

static inline uint64_t address_of(const struct image *m, uint32_t sym) { return m->base + m->sym[sym].st_value; }

static inline bool inside(const struct image *m, uint64_t a) { return a >= m->start && a < m->end; }

static inline uint64_t data_len(const struct image *m) { return m->data_end > m->data ? m->data_end - m->data : 0; }

static inline bool binds(unsigned type)
{
	return type == R_X86_64_GLOB_DAT || type == R_X86_64_JUMP_SLOT || type == R_X86_64_64;
}

/* Is the file that r->copy was read from as it was then? */
bool relink_file_is_still(const struct relink *r, int fd);
/* A line for the user. */
__attribute__((format(printf, 2, 3))) void relink_say(struct relink *r, const char *fmt, ...);
/* Says that this ld.so's records are not understood: -EOPNOTSUPP. */
int relink_unknown_loader(struct relink *r, const char *what);

/* ---- relink_image.c: objects as they lie in the guest, and ld.so's list of them ------------------------------------- */
/* phdr 0: where the ELF header at the base says. */
int image_read(struct image *m, uint64_t map, uint64_t base, uint64_t dyn, uint64_t phdr, unsigned nr_ph);
/* One that the monitor has mapped: by these program headers, up to PHDRS_MAX, which its memory can't change. */
int image_read_mapped(struct image *m, uint64_t base, uint64_t dyn, uint64_t phdr, const Elf64_Phdr *ph,
		      unsigned nr_ph);
void image_free(struct image *m);
/* Tells one image from another at the same place. */
uint64_t image_print(const struct image *m);
/* How many bytes of the guest may be copied from now on. */
void image_budget(uint64_t bytes);
/* The version of a symbol, "" = none. */
const char *image_version_name(const struct image *m, uint32_t sym);
/* 0 = none. A version that is asked for must be there; without one, a default version will do. */
uint32_t image_find_symbol(const struct image *m, const char *name, const char *version);
int relink_read_list(struct relink *r);
/* How many libraries of that name are loaded outside of that list (dlmopen). */
unsigned relink_other_spaces(const struct relink *r, const char *soname);
bool relink_list_unchanged(const struct relink *r);

/* ---- relink_map.c: the new version in memory, and whether it has the same interface --------------------------------- */
int relink_map_new(struct relink *r, int fd);
int relink_compare(struct relink *r);

/* ---- relink_reloc.c: relocation of the new version, and what is bound to the old one -------------------------------- */
int relink_word_add(struct relink *r, uint64_t at, uint64_t old, uint64_t new);
/* A word of the new version: written at once when nobody has it yet, else with all others. */
int relink_new_word(struct relink *r, uint64_t at, uint64_t v);
int relink_call_add(struct relink *r, uint64_t fn, unsigned *out);
/* What the old version's thread-local storage is, by its struct link_map. */
void relink_find_tls(struct relink *r, const uint64_t *map, size_t words);
int relink_relocate(struct relink *r);
int relink_exported_resolvers(struct relink *r);
/* The exported function at an address of the old version, in the new one. */
uint64_t relink_translate(const struct relink *r, uint64_t v);
int relink_bindings(struct relink *r);

/* ---- relink_state.c: variables, and pointers to the library ---------------------------------------------------------- */
int relink_plan_state(struct relink *r);
/* Segments alike, and the same code: then every place in one has its counterpart in the other. */
bool relink_same_image(const struct relink *r);
/* The variables of a version that was in use before are kept until it is again: from before the first change to them, which is
 * when all stands where they are carried over. relink_own_back(): they are as they were. */
int relink_own_keep(struct relink *r);
void relink_own_back(struct relink *r);
/* Its data as it is in its file. */
int relink_fresh_data(struct relink *r);
int relink_plan_constructors(struct relink *r);
int relink_copy_whole(struct relink *r, bool all);
int relink_copy_named(struct relink *r);
int relink_plan_sweep(struct relink *r);

/* ---- relink_ld.c: ld.so's own records -------------------------------------------------------------------------------- */
int relink_adjust_dynamic(struct relink *r);
int relink_move_map(struct relink *r);
int relink_move_unwind(struct relink *r);
#endif
