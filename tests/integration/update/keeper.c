/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Commands on standard input, one answer each. "v": version. "p", "c", "d": take a pointer to a local function of the
 * library into a cell of the heap, call it, drop it; "P", "C", "D": to a constant. "x": take a pointer to an exported
 * function, "X": call it. "a": register a function with atexit(3). "h": make one the handler of SIGUSR1, "H": the default
 * again. "mFILE": how that file is mapped. "q": the end.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int version(void);
int (*pointer(void))(int);
void (*at_exit_pointer(void))(void);
const int *constant(void);

struct cell {
	int (*fn)(int);
	const int *constant;
	int (*exported)(void);
};

/* Not a trace of what is taken is left in the caller's frame. */
static __attribute__((noinline)) void take(struct cell *c, char what)
{
	if (what == 'p')
		c->fn = pointer();
	else if (what == 'P')
		c->constant = constant();
	else if (what == 'x')
		c->exported = version;
	else if (what == 'a')
		atexit(at_exit_pointer());
	else if (what == 'h')
		signal(SIGUSR1, (void (*)(int))at_exit_pointer());
}

/* What earlier calls have left below is written over. */
static __attribute__((noinline)) void clear_stack(void)
{
	volatile char b[65536];
	for (size_t i = 0; i < sizeof b; i++)
		b[i] = 0;
}

/* Protections of the mappings of a file, as the program sees them. */
static void tell_maps(char *name)
{
	static char text[512];
	FILE *f = fopen("/proc/self/maps", "r");
	name[strcspn(name, "\n")] = 0;
	while (f && fgets(text, sizeof text, f)) {
		char *s = strrchr(text, '/'), prot[8];
		if (s && (s[strcspn(s, "\n")] = 0, !strcmp(s + 1, name)) && sscanf(text, "%*s %7s", prot) == 1)
			printf("%s ", prot);
	}
	printf("\n");
	fclose(f);
}

int main(void)
{
	static char line[16];
	struct cell *volatile c = calloc(1, sizeof *c);
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("ready\n");
	while (fgets(line, sizeof line, stdin)) {
		switch (*line) {
		case 'v':
			printf("%d\n", version());
			break;
		case 'c':
			printf("%d\n", c->fn(10));
			break;
		case 'C':
			printf("%d\n", *c->constant + c->constant[3]);
			break;
		case 'X':
			printf("%d\n", c->exported());
			break;
		case 'd':
			c->fn = NULL;
			printf("dropped\n");
			break;
		case 'D':
			c->constant = NULL;
			printf("dropped\n");
			break;
		case 'H':
			signal(SIGUSR1, SIG_DFL);
			printf("dropped\n");
			break;
		case 'm':
			tell_maps(line + 1);
			break;
		case 'q':
			printf("bye\n");
			return 0;
		default:
			take(c, *line);
			printf("taken\n");
		}
		clear_stack();
	}
	return 1;
}
