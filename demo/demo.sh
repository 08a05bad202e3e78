#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A Redis server of the distribution in a pVM: used, looked at, measured against a native one. `make demo` runs it.
# KYLINX=PATH chooses another kylinx.
set -Eeuo pipefail
cd "$(dirname "$0")/.."
KYLINX=${KYLINX:-build/kylinx}
KEYS=10000
ROUNDS=3
tool=(python3 demo/demo_tool.py)
began=$SECONDS
dir=
pvm=
native=

say() { printf '\n[%3d s] %s\n' $((SECONDS - began)) "$*"; }
ok() { printf '  ok: %s\n' "$*"; }
fail() {
	printf '\nFAILED: %s\n' "$*" >&2
	if [ -n "$dir" ] && [ -s "$dir/pvm.log" ]; then
		printf -- '--- last lines of the pVM:\n' >&2
		tail -n 15 "$dir/pvm.log" >&2
	fi
	exit 1
}

cleanup() {
	local pid
	for pid in $pvm $native; do
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	[ -z "$dir" ] || rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 1' INT TERM HUP
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

cli() { timeout 20 redis-cli -h 127.0.0.1 -p "$@"; }

# wait_pong PORT PID NAME
wait_pong() {
	local deadline=$((SECONDS + 20))
	until [ "$(cli "$1" ping 2>/dev/null || true)" = PONG ]; do
		kill -0 "$2" 2>/dev/null || fail "$3 ended before it answered"
		[ $SECONDS -lt $deadline ] || fail "$3 did not answer a PING within 20 s"
		sleep 0.02
	done
}

pss_kib() { awk '/^Pss:/ { print $2 }' "/proc/$1/smaps_rollup"; }

# load PORT NAME
load() {
	"${tool[@]}" sets "$seed" $KEYS | cli "$1" --pipe >"$dir/pipe.log" 2>&1 || fail "$2: redis-cli --pipe: $(tail -n 1 "$dir/pipe.log")"
	grep -q "errors: 0, replies: $KEYS" "$dir/pipe.log" || fail "$2: $(tail -n 1 "$dir/pipe.log")"
}

# gone PID PORT: neither the process nor its port is there any more
gone() {
	[ ! -d "/proc/$1" ] || fail "process $1 is still there"
	if (: <"/dev/tcp/127.0.0.1/$2") 2>/dev/null; then
		fail "port $2 is still open"
	fi
}

# ---- what it needs ------------------------------------------------------------------------------------------------
for p in redis-server redis-cli redis-benchmark python3; do
	command -v $p >/dev/null || fail "$p is not installed (run \`make demo\`, or tests/deps.sh demo)"
done
[ -x "$KYLINX" ] || fail "$KYLINX is not built (run \`make\`)"
[ -w /dev/kvm ] || fail "/dev/kvm cannot be opened (load the kvm module; add the user to the group kvm)"
dir=$(mktemp -d "${TMPDIR:-/tmp}/kylinx-demo.XXXXXX")
mkdir "$dir/data" "$dir/native"
pvm_port=$("${tool[@]}" port)
native_port=$("${tool[@]}" port)
while [ "$native_port" = "$pvm_port" ]; do native_port=$("${tool[@]}" port); done
seed=$RANDOM$RANDOM
conf=(--bind 127.0.0.1 --save "" --appendonly no --daemonize no)

# ---- a small program ----------------------------------------------------------------------------------------------
say "A small program, start to exit: kylinx run -- /bin/echo hello"
"${tool[@]}" start 21 "$KYLINX"

# ---- a server -----------------------------------------------------------------------------------------------------
say "The distribution's redis-server, unmodified, in a pVM"
printf '  kylinx run --name demo --stats=FILE --volume DIR:DIR -- redis-server --port %s %s\n' "$pvm_port" "..."
t0=${EPOCHREALTIME/[.,]/}
"$KYLINX" run --name "demo-$pvm_port" --stats="$dir/stats.json" --volume "$dir/data:$dir/data" -- \
	redis-server --port "$pvm_port" "${conf[@]}" --dir "$dir/data" >"$dir/pvm.log" 2>&1 </dev/null &
pvm=$!
wait_pong "$pvm_port" $pvm "the pVM"
t1=${EPOCHREALTIME/[.,]/}
ok "answers PING $(((t1 - t0) / 1000)) ms after its start"

say "The host's redis-cli writes $KEYS keys and reads every one back"
load "$pvm_port" "the pVM"
ok "$KEYS keys written (redis-cli --pipe)"
"${tool[@]}" gets $KEYS | cli "$pvm_port" >"$dir/got" || fail "reading the keys back"
"${tool[@]}" values "$seed" $KEYS >"$dir/want"
cmp -s "$dir/got" "$dir/want" || fail "a value came back wrong: $(diff "$dir/want" "$dir/got" | sed -n 2,3p | tr '\n' ' ')"
[ "$(cli "$pvm_port" dbsize)" = $KEYS ] || fail "DBSIZE is not $KEYS"
ok "$KEYS values read back, each as it was written"

say "It is a process ..."
[ "$(cli "$pvm_port" info server | tr -d '\r' | sed -n 's/^process_id://p')" = $pvm ] ||
	fail "the server's own pid is not that of kylinx, $pvm"
ok "pid $pvm on the host, and the server's own getpid() says so, too"
printf '  %s\n' "$(ps -o pid,nlwp,stat,rss,args -p $pvm | cut -c1-100 | sed '2s/^/  /')"

say "... and a virtual machine"
vms=$(find "/proc/$pvm/fd" -lname 'anon_inode:kvm-vm' | wc -l)
vcpus=$(find "/proc/$pvm/fd" -lname 'anon_inode:kvm-vcpu:*' -printf '%l\n' | sed 's/anon_inode://' | sort -V | tr '\n' ' ')
[ "$vms" = 1 ] || fail "process $pvm holds $vms VMs, not one"
[ -n "$vcpus" ] || fail "process $pvm has no vCPU"
ok "it holds one KVM VM (anon_inode:kvm-vm) with the vCPUs $vcpus"
ok "its threads on the host: $(cat /proc/$pvm/task/*/comm | tr '\n' ' ')"
[ "$(readlink "/proc/$pvm/ns/mnt")" != "$(readlink /proc/self/ns/mnt)" ] || fail "the pVM has the host's mounts"
grep -q '^Seccomp:[[:space:]]*2' "/proc/$pvm/status" || fail "no seccomp filter is in force"
grep -q '^NoNewPrivs:[[:space:]]*1' "/proc/$pvm/status" || fail "no_new_privs is not set"
ok "mounts of its own, seccomp filter, no_new_privs, effective capabilities $(awk '/^CapEff/ { print $2 }' "/proc/$pvm/status")"

say "The same server as a native process, loaded with the same keys"
redis-server --port "$native_port" "${conf[@]}" --dir "$dir/native" >"$dir/native.log" 2>&1 </dev/null &
native=$!
wait_pong "$native_port" $native "the native server"
load "$native_port" "the native server"
ok "memory (PSS): pVM $(pss_kib $pvm) KiB, native $(pss_kib $native) KiB"

say "redis-benchmark against both by turns: 50 connections, median of $ROUNDS rounds, requests per second"
# bench SERVER PORT RUN ROUND OPTION...
bench() {
	local out=$dir/bench.$1.$3.$4 port=$2
	shift 4
	timeout 60 redis-benchmark -h 127.0.0.1 -p "$port" -t set,get -c 50 --csv "$@" >"$out" 2>"$dir/bench.err" ||
		fail "redis-benchmark on port $port: $(tail -n 1 "$dir/bench.err")"
}
for ((round = 0; round < ROUNDS; round++)); do
	bench pvm "$pvm_port" P1 $round -n 20000
	bench native "$native_port" P1 $round -n 20000
	bench pvm "$pvm_port" P16 $round -n 100000 -P 16
	bench native "$native_port" P16 $round -n 100000 -P 16
done
"${tool[@]}" table "$dir" $ROUNDS P1 P16

say "Both are told to end"
pid_pvm=$pvm pid_native=$native
cli "$pvm_port" shutdown nosave >/dev/null 2>&1 || true
cli "$native_port" shutdown nosave >/dev/null 2>&1 || true
for ((i = 0; i < 500; i++)); do
	kill -0 $pvm 2>/dev/null || kill -0 $native 2>/dev/null || break
	sleep 0.02
done
! kill -0 $pvm 2>/dev/null || fail "the pVM did not end within 10 s of SHUTDOWN"
! kill -0 $native 2>/dev/null || fail "the native server did not end within 10 s of SHUTDOWN"
status=0
wait $pvm || status=$?
pvm=
[ $status = 0 ] || fail "the pVM ended with status $status"
wait $native || status=$?
native=
[ $status = 0 ] || fail "the native server ended with status $status"
gone $pid_pvm "$pvm_port"
gone $pid_native "$native_port"
ok "exit status 0; processes, VM and ports are gone"

say "What the pVM did (--stats)"
"${tool[@]}" stats "$dir/stats.json"

printf '\nDEMO PASSED in %d s\n' $((SECONDS - began))
