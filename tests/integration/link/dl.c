/* SPDX-License-Identifier: Apache-2.0 */
/* dl.c DIRECTORY TEST: what dlopen() and its relatives do; natively and in a pVM the same text must come out. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *dir;
typedef int (*fn)(void);
typedef int *(*ifn)(void);

int shared_symbol(void) { return 100; }

static const char *in(const char *name)
{
	static __thread char path[4][4096];
	static __thread int n;
	n = (n + 1) % 4;
	snprintf(path[n], sizeof path[n], "%s/%s", dir, name);
	return path[n];
}

static void *open_(const char *name, int flags)
{
	void *h = dlopen(in(name), flags);
	if (!h)
		printf("dlopen: %s\n", dlerror());
	return h;
}

static int call(void *h, const char *name)
{
	fn f = (fn)dlsym(h, name);
	if (!f)
		printf("dlsym: %s\n", dlerror());
	return f ? f() : -1;
}

static void flags(void)
{
	void *a = open_("liba.so", RTLD_NOW);
	printf("a %d, visible %d\n", call(a, "value_a"), dlsym(RTLD_DEFAULT, "value_a") != NULL);
	printf("shared %d\n", call(a, "calls_shared_a"));
	void *again = open_("liba.so", RTLD_LAZY);
	printf("the same %d\n", a == again);
	printf("count %d %d\n", call(a, "count_a"), call(again, "count_a"));
	printf("no load %d %d\n", open_("liba.so", RTLD_NOW | RTLD_NOLOAD) == a,
	       dlopen(in("libb.so"), RTLD_NOW | RTLD_NOLOAD) != NULL);
	printf("global %d\n", open_("liba.so", RTLD_NOW | RTLD_NOLOAD | RTLD_GLOBAL) == a);
	printf("visible %d\n", dlsym(RTLD_DEFAULT, "value_a") != NULL);
	for (int i = 0; i < 4; i++) /* stays all the same: the program has looked into it */
		printf("close %d\n", dlclose(a));
	void *o = open_("libd.so", RTLD_NOW | RTLD_LOCAL);
	printf("count %d %d\n", call(o, "count_d"), open_("libd.so", RTLD_LAZY) == o);
	printf("close %d", dlclose(o));
	printf(" %d\n", dlclose(o));
	printf("loaded %d\n", dlopen(in("libd.so"), RTLD_NOW | RTLD_NOLOAD) != NULL);
	o = open_("libd.so", RTLD_NOW);
	printf("afresh %d\n", call(o, "count_d"));
	dlclose(o);
	a = open_("liba.so", RTLD_NOW | RTLD_NODELETE);
	printf("count %d\n", call(a, "count_a"));
	dlclose(a);
	a = open_("liba.so", RTLD_NOW);
	printf("stays %d\n", call(a, "count_a"));
	dlclose(a);
	void *u = open_("libu.so", RTLD_NOW);
	printf("undefined, now: %d\n", u != NULL);
	u = open_("libu.so", RTLD_LAZY);
	printf("undefined, lazy: %d\n", u ? call(u, "value_u") : -1);
#ifdef __GLIBC__
	void *d = open_("libb.so", RTLD_NOW | RTLD_DEEPBIND);
	printf("deep %d\n", call(d, "calls_shared_b"));
	dlclose(d);
#endif
	void *c = open_("libc1.so", RTLD_NOW); /* needs a, which stays */
	printf("needed %d\n", call(c, "other_c1"));
	printf("by its dependency %d\n", call(c, "value_a"));
	dlclose(c);
	void *self = dlopen(NULL, RTLD_NOW);
	printf("self %d\n", call(self, "shared_symbol"));
	printf("nothing: %s\n", dlsym(self, "no_such_symbol") ? "found" : dlerror());
}

static void errors(void)
{
	static const char *const names[] = { "none.so",  "empty.so", "text.so",   "cut.so",
					     "wrong.so", ".",        "none/x.so", "machine.so" };
	for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
		void *h = dlopen(in(names[i]), RTLD_NOW);
		printf("%s: %s\n", names[i], h ? "loaded" : dlerror());
	}
	printf("flags: %s\n", dlopen(in("liba.so"), 0) ? "loaded" : dlerror());
	printf("error is gone: %d\n", dlerror() == NULL);
	printf("name: %s\n", dlopen("libnot-there-at-all.so.9", RTLD_LAZY) ? "loaded" : dlerror());
}

#ifdef __GLIBC__
static void ifuncs(void)
{
	void *a = open_("liba.so", RTLD_NOW), *l = open_("libb.so", RTLD_LAZY);
	printf("%d %d %d\n", call(a, "picked_a"), call(a, "calls_picked_a"), call(a, "calls_own_a"));
	printf("%d %d %d\n", call(l, "picked_b"), call(l, "calls_picked_b"), call(l, "calls_own_b"));
	printf("gnu2 %d\n", call(open_("libg.so", RTLD_NOW), "calls_picked_g"));
}

static void spaces(void)
{
	void *a = open_("liba.so", RTLD_NOW), *o[4];
	printf("count %d\n", call(a, "count_a"));
	for (int i = 0; i < 4; i++) {
		Lmid_t id = 0;
		o[i] = dlmopen(LM_ID_NEWLM, in("liba.so"), RTLD_NOW);
		if (!o[i] || dlinfo(o[i], RTLD_DI_LMID, &id)) {
			printf("dlmopen: %s\n", dlerror());
			return;
		}
		printf("space %ld: %d %d\n", (long)id, call(o[i], "count_a"), call(o[i], "calls_shared_a"));
		void *b = dlmopen(id, in("libc1.so"), RTLD_LAZY);
		printf("another in it: %d, same %d\n", b ? call(b, "other_c1") : -1,
		       dlmopen(id, in("liba.so"), RTLD_NOW | RTLD_NOLOAD) == o[i]);
		printf("tls %d\n", call(o[i], "tls_next_a"));
	}
	printf("count %d\n", call(a, "count_a"));
	for (int i = 3; i >= 0; i--)
		printf("close %d %d\n", i, dlclose(o[i]));
}

static void info(void)
{
	void *a = open_("liba.so", RTLD_NOW);
	struct link_map *m, *found;
	char origin[4096];
	Dl_serinfo size;
	Dl_info i;
	const Elf64_Sym *sym;
	size_t mod = 0;
	int r = dlinfo(a, RTLD_DI_LINKMAP, &m);
	printf("map %d %s\n", r, strrchr(m->l_name, '/'));
	r = dlinfo(a, RTLD_DI_ORIGIN, origin);
	printf("origin %d %d\n", r, strcmp(origin, dir));
	printf("search %d", dlinfo(a, RTLD_DI_SERINFOSIZE, &size));
	Dl_serinfo *s = malloc(size.dls_size);
	dlinfo(a, RTLD_DI_SERINFOSIZE, s);
	printf(" %d", dlinfo(a, RTLD_DI_SERINFO, s));
	for (unsigned k = 0; k < s->dls_cnt; k++)
		printf(" %s", s->dls_serpath[k].dls_name);
	r = dlinfo(a, RTLD_DI_TLS_MODID, &mod);
	printf("\ntls module %d %d\n", r, mod > 0);
	void *f = dlsym(a, "value_a");
	r = dladdr((char *)f + 1, &i);
	printf("dladdr %d %s %s %d %d\n", r, strrchr(i.dli_fname, '/'), i.dli_sname, i.dli_saddr == f,
	       i.dli_fbase == (void *)m->l_addr);
	r = dladdr1(f, &i, (void **)&sym, RTLD_DL_SYMENT);
	printf("dladdr1 %d %d\n", r, sym->st_size > 0);
	r = dladdr1(f, &i, (void **)&found, RTLD_DL_LINKMAP);
	printf("dladdr1 %d %d\n", r, found == m);
	printf("of nothing %d\n", dladdr(origin, &i));
	printf("next %d\n", ((void *(*)(const char *))dlsym(a, "next_a"))("malloc") != NULL);
	void *v = open_("libv.so", RTLD_NOW);
	for (int k = 0; k < 3; k++) {
		fn g = (fn)dlvsym(v, "f", k == 0 ? "OLD" : k == 1 ? "NEW" : "NEWER");
		printf("dlvsym %d %s\n", g ? g() : -1, g ? "" : dlerror());
	}
	printf("default %d, hidden %d %d\n", call(v, "f"), call(v, "calls_hidden"), dlsym(v, "hidden_f") != NULL);
}

static void relocated_text(void)
{
	void *h = open_("libtext.so", RTLD_NOW);
	printf("moved %d, pid %d\n", call(h, "moved"), call(h, "direct") == getpid());
	printf("close %d\n", dlclose(h));
	h = open_("libtext.so", RTLD_LAZY | RTLD_GLOBAL);
	printf("moved %d, pid %d\n", call(h, "moved"), call(h, "direct") == getpid());
	pid_t p = fork();
	if (!p)
		_exit(call(h, "direct") == getpid() ? call(h, "moved") & 127 : 1);
	int st;
	waitpid(p, &st, 0);
	printf("child %#x\n", st);
	printf("stack %d\n", open_("libstack.so", RTLD_NOW) != NULL);
}
#endif

static int object(struct dl_phdr_info *i, size_t size, void *arg)
{
	const char *base = strrchr(i->dlpi_name, '/');
	uintptr_t fn = (uintptr_t)arg;
	bool holds = false;
	unsigned load = 0, rest = 0;
	(void)size;
	if (strstr(i->dlpi_name, "vdso"))
		return 0;
	for (int k = 0; k < i->dlpi_phnum; k++) {
		const Elf64_Phdr *p = &i->dlpi_phdr[k];
		load += p->p_type == PT_LOAD;
		rest |= p->p_type == PT_DYNAMIC ? 1 : p->p_type == PT_GNU_RELRO ? 2 : 0;
		holds |= p->p_type == PT_LOAD && fn - i->dlpi_addr - p->p_vaddr < p->p_memsz;
	}
	printf(" %s %u %u%s%s\n", base ? base + 1 : i->dlpi_name, load, rest, i->dlpi_tls_data ? " tls" : "",
	       holds ? " here" : "");
	return 0;
}

static void objects(void)
{
	void *a = open_("liba.so", RTLD_NOW), *b = open_("libb.so", RTLD_NOW);
	dl_iterate_phdr(object, dlsym(a, "value_a"));
	call(b, "tls_next_b");
	dlclose(a);
	dl_iterate_phdr(object, dlsym(b, "value_b"));
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

static void *libs[8];
static pthread_barrier_t all;

static void *waiter(void *arg)
{
	int me = (int)(long)arg, *seen[8];
	long sum = 0;
	for (int round = 0; round < 3; round++) {
		pthread_barrier_wait(&all); /* loaded */
		for (int k = 0; k < 8; k++) {
			char name[32];
			if (!libs[k])
				continue;
			snprintf(name, sizeof name, "tls_next_%c", "abdegift"[k]);
			for (int i = 0; i <= me; i++)
				sum = sum * 31 + ((fn)dlsym(libs[k], name))();
			snprintf(name, sizeof name, "tls_where_%c", "abdegift"[k]);
			seen[k] = ((ifn)dlsym(libs[k], name))();
			sum = sum * 31 + *seen[k];
		}
		pthread_barrier_wait(&all); /* used */
	}
	return (void *)(sum & 0xffffff);
}

static void tls(void)
{
	static const char *const names[] = { "liba.so", "libb.so", "libd.so", "libe.so", "libg.so" };
	pthread_t t[4], late;
	void *r;
	pthread_barrier_init(&all, NULL, 5);
	for (long i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, waiter, (void *)i);
	for (int round = 0; round < 3; round++) {
		for (unsigned k = 0; k < sizeof names / sizeof *names; k++)
			libs[k] = open_(names[k], k & 1 ? RTLD_LAZY : RTLD_NOW);
		pthread_barrier_wait(&all);
		pthread_barrier_wait(&all);
		for (unsigned k = 0; round < 2 && k < 3; k++) /* and others come in their place */
			if (libs[k])
				printf("close %d\n", dlclose(libs[k]));
	}
	for (int i = 0; i < 4; i++) {
		pthread_join(t[i], &r);
		printf("thread %d: %ld\n", i, (long)r);
	}
	pthread_create(&late, NULL, (void *(*)(void *))dlsym(libs[0], "tls_where_a"), NULL);
	pthread_join(late, &r);
	printf("its own: %d\n", r != ((ifn)dlsym(libs[0], "tls_where_a"))());
	pid_t p = fork();
	if (!p) {
		printf("child: %d %d\n", call(libs[0], "tls_next_a"), call(libs[4], "tls_next_g"));
		fflush(stdout);
		_exit(0);
	}
	waitpid(p, NULL, 0);
}

static void *loader(void *arg)
{
	static const char *const names[] = { "liba.so", "libb.so", "libd.so", "libg.so", "libc1.so" };
	unsigned seed = (unsigned)(long)arg * 77 + 1;
	long bad = 0;
	for (int i = 0; i < 30; i++) {
		unsigned k = rand_r(&seed) % 5;
		void *h = dlopen(in(names[k]), i & 1 ? RTLD_NOW : RTLD_LAZY);
		char name[32];
		snprintf(name, sizeof name, "value_%.*s", (int)strlen(names[k]) - 6, names[k] + 3);
		fn f = h ? (fn)dlsym(h, name) : NULL;
		snprintf(name, sizeof name, "tls_next_%.*s", (int)strlen(names[k]) - 6, names[k] + 3);
		fn g = h ? (fn)dlsym(h, name) : NULL;
		bad += !f || !g || f() != (int)(k + 1) || g() < 1000;
		bad += h && dlclose(h);
	}
	return (void *)bad;
}

static void many(void)
{
	pthread_t t[6];
	void *r;
	for (long i = 0; i < 6; i++)
		pthread_create(&t[i], NULL, loader, (void *)i);
	for (int i = 0; i < 6; i++) {
		pthread_join(t[i], &r);
		printf("thread %d: %ld wrong\n", i, (long)r);
	}
}

static void order(void)
{
	void *c = open_("libc1.so", RTLD_NOW);
	((void (*)(void))dlsym(c, "atexit_c1"))();
	printf("close %d\n", dlclose(c));
	void *n = open_("libn.so", RTLD_NOW); /* its constructor opens b */
	printf("n %d\n", n ? call(n, "value_n") : -1);
	printf("close %d\n", n ? dlclose(n) : -1);
	void *w = open_("libw.so", RTLD_NOW);
	printf("w %d\n", w ? call(w, "value_w") : -1);
	pid_t p = fork();
	if (!p) {
		void *d = open_("libd.so", RTLD_NOW);
		((void (*)(void))dlsym(d, "atexit_d"))();
		exit(d ? call(d, "value_d") : 99);
	}
	int st;
	waitpid(p, &st, 0);
	printf("child %#x\n", st);
	c = open_("libc1.so", RTLD_NOW);
	((void (*)(void))dlsym(c, "atexit_c1"))();
	/* What is open is ended at exit. */
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*fn)(void);
	} tests[] = {
		{ "flags", flags },   { "errors", errors }, { "objects", objects }, { "tls", tls },
		{ "many", many },     { "order", order },
#ifdef __GLIBC__
		{ "ifuncs", ifuncs }, { "spaces", spaces }, { "info", info },       { "text", relocated_text },
#endif
	};
	setvbuf(stdout, NULL, _IONBF, 0);
	dir = argv[1];
	for (unsigned i = 0; argc > 2 && i < sizeof tests / sizeof *tests; i++)
		if (!strcmp(tests[i].name, argv[2])) {
			tests[i].fn();
			return 0;
		}
	return 2;
}
