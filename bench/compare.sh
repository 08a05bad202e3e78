#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# compare.sh COMMIT: build that commit beside this tree and measure the two by turns.
set -eu
base=${1:?"usage: make bench-compare BASE=commit"}
build=${BUILD:-build}
commit=$(git rev-parse --verify --quiet "$base^{commit}") || {
	echo "kylinx: bench-compare: $base: no such commit (give BASE=commit)" >&2
	exit 125
}
dir=$build/bench/base
trap 'git worktree remove --force "$dir" 2>/dev/null || true' EXIT
git worktree remove --force "$dir" 2>/dev/null || true
git worktree add --quiet --detach "$dir" "$commit"
make -C "$dir" all >&2
BUILD=$build python3 bench/run.py --base "$PWD/$dir/build/kylinx" --out "$build/bench/compare"
