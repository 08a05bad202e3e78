#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# deps.sh [demo|bench]: install what the build and the tests (the demo, the benchmarks) need and this Debian lacks. Only
# root installs. Packages that can't be had are named, and are no failure: the tests that need them say so. Starts no
# services.
set -u
build='gcc make libc6-dev libzydis-dev libsodium-dev libseccomp-dev pkg-config binutils'
tests='musl-tools clang clang-format libclang-rt-dev busybox-static redis-server redis-tools memcached sqlite3 lua5.4
	perl python3 python3-numpy openjdk-17-jdk-headless g++ gawk tcl curl jq bc dc zip unzip zstd file git openssl
	stress-ng rt-tests strace procps psmisc util-linux iproute2
	nsd knot unbound dnsmasq-base dnsperf bind9-dnsutils nghttp2-client python3-uvloop
	slirp4netns gdb nginx postgresql apache2 openssh-server openssh-client libpython3.11-testsuite chromium valgrind
	qemu-system-x86 linux-image-cloud-amd64 cpio
	bochs bochs-term bochsbios vgabios isolinux syslinux-common xorriso'
# What `make bench` compares with.
bench='apache2-utils bubblewrap crun runc'

missing()
{
	local p
	for p in "$@"; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
	done
}

command -v node >/dev/null || tests="$tests nodejs"
if ! command -v dpkg-query >/dev/null; then
	echo "deps: not a Debian system; needed: $(echo $build $tests)"
	exit 0
fi
case ${1:-} in
demo) need=$(missing $build redis-server redis-tools python3 procps) ;;
bench) need=$(missing $build $tests $bench) ;;
*) need=$(missing $build $tests) ;;
esac
[ -n "$need" ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "deps: missing, and only root can install:" $need
	exit 0
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
	trap 'rm -f $policy' EXIT
	printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
get="apt-get -qq -o Dpkg::Use-Pty=0 -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2"
log=$(mktemp)
# Debian's headless Java wants this where manual pages are left out.
mkdir -p /usr/share/man/man1
$get update >"$log" 2>&1 </dev/null || echo "deps: apt-get update: $(tail -1 "$log")"
if ! $get install -y --no-install-recommends $need >"$log" 2>&1 </dev/null; then
	for p in $need; do # one that is not found stops them all
		$get install -y --no-install-recommends "$p" >"$log" 2>&1 </dev/null || echo "deps: $p: $(tail -1 "$log")"
	done
fi
rm -f "$log"
still=$(missing $need)
[ -z "$still" ] || echo "deps: still missing:" $still
exit 0
