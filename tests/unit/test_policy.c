/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Policies, signatures, keys: decisions from blocks, and hostile files of every kind that is read. Works in a
 * directory of its own; all random numbers come from one seed.
 *
 *	test_policy [SEED [ROUNDS]]
 */
#include "policy/hostile.h"
#include "policy/rules.h"
#include "policy/signed.h"

int main(int argc, char **argv)
{
	if (argc > 1)
		seed = strtoull(argv[1], NULL, 0);
	if (argc > 2)
		rounds = atoi(argv[2]);
	umask(022);
	if (!mkdtemp(dir) || setenv("KYLINX_CONFIG", dir, 1))
		return 2;
	test_sha256();
	test_globs();
	test_versions();
	test_files();
	test_sections();
	test_conditions();
	test_builtin();
	test_keyring();
	test_signatures();
	test_flips();
	test_headers();
	test_real();
	test_blocks();
	test_texts();
	DIR *d = opendir(dir);
	struct dirent *e;
	while (d && (e = readdir(d)))
		unlinkat(dirfd(d), e->d_name, 0);
	if (d)
		closedir(d);
	rmdir(dir);
	printf("test_policy: %d checks, %d failed\n", checks, failures);
	return failures ? 1 : 0;
}
