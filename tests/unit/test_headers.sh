#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Each header of the tree is self-contained and guarded: it compiles alone, twice, with every compiler at hand.
# Headers of the LibOS compile freestanding. Exit status 1 when one doesn't.
cd "$(dirname "$0")/../.." || exit 2
flags='-std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Werror -fsyntax-only -x c -'
failed=0 n=0 used=
for cc in gcc clang; do
	if ! command -v $cc >/dev/null; then
		echo "test_headers: $cc: SKIP, not installed"
		continue
	fi
	used="$used $cc"
	for h in $(find abi bench cli libos monitor store tests util -name '*.h' 2>/dev/null | sort); do
		case $h in
		libos/*) extra=-ffreestanding ;;
		*) extra= ;;
		esac
		n=$((n + 1))
		# shellcheck disable=SC2086
		if ! printf '#include "%s"\n#include "%s"\n' "$h" "$h" | $cc $extra -I. $flags; then
			echo "test_headers: $h does not compile alone with $cc"
			failed=$((failed + 1))
		fi
	done
done
if [ -z "$used" ]; then
	exit 2
fi
echo "test_headers: $n compiled with$used, $failed failed"
[ $failed -eq 0 ]
