#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Every group of commands of Redis 7: a server in a pVM and a native one are told the same and must say the same.

test_redis.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.

A line of a script is a command, perhaps after "NAME:", a client of its own, and after one word that says more:
sort (an answer in no certain order), num (numbers don't count), send (without waiting for the answer), recv (that one,
or a message that comes by itself), same (the answer is not to be compared; the command must not fail).
"""
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import collection, certificate, need, options, silent, until, write  # noqa: E402

args = lib.arguments()
tests, test, long_test = collection()


class Error(str):
    def __repr__(self):
        return f"error {str(self)!r}"


class Client:
    """A connection; answers are str (bytes where that can't be), int, None, list, dict, Error."""

    def __init__(self, address, tls=None):
        if isinstance(address, str):
            self.s = socket.socket(socket.AF_UNIX)
            self.s.settimeout(lib.limit(180))
            self.s.connect(address)
        else:
            self.s = socket.create_connection(address if isinstance(address, tuple) else ("127.0.0.1", address), lib.limit(180))
        if tls:
            self.s = tls.wrap_socket(self.s)
        self.f = self.s.makefile("rb")

    def recv(self):
        line = self.f.readline()
        if not line:
            raise EOFError("closed")
        kind, rest = line[:1], line[1:-2].decode()
        if kind in b"$=":
            return None if rest == "-1" else text(self.f.read(int(rest) + 2)[:-2])
        if kind in b"*~>":
            return None if rest == "-1" else [self.recv() for _ in range(int(rest))]
        if kind == b"%":
            return dict((str(self.recv()), self.recv()) for _ in range(int(rest)))
        return {b"-": Error, b":": int, b"+": str, b"_": lambda _: None, b"#": lambda x: x == "t", b",": float,
                b"(": int}[kind](rest)

    def send(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.s.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words))

    def __call__(self, *words):
        self.send(*words)
        return self.recv()

    def close(self):
        self.f.close()
        self.s.close()


def text(b):
    try:
        return b.decode()
    except UnicodeDecodeError:
        return b


def words_of(line):
    """As redis-cli splits a line: "..." has escapes, '...' has none."""
    lexer = re.findall(r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|\S+', line)
    return [w[1:-1].encode().decode("unicode_escape").encode("latin-1") if w[0] == '"' else w[1:-1] if w[0] == "'" else w
            for w in lexer]


def script(address, lines):
    """[(line, answer)] of the lines of a script."""
    clients, said, control = {}, [], None
    for line in lines.strip().splitlines():
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        m = re.match(r"(?:(\w+): )?(?:(sort|num|send|recv|same|sleep) ?)?(.*)", line)
        name, how, words = m[1] or "", m[2], words_of(m[3])
        if how == "sleep":
            time.sleep(float(words[0]))
            continue
        if name not in clients:
            clients[name] = Client(address)
        c = clients[name]
        if how == "send":
            control = control or Client(address)
            before = blocked(control)
            c.send(*words)
            # The next line finds it waiting, or busy, or done.
            until(f"the server has {line!r}", lambda: select.select([c.s], [], [], 0)[0] or blocked(control) != before)
            continue
        if how != "recv":
            c.send(*words)
        answer = c.recv()
        if how == "sort":
            answer = in_order(answer)
        elif how == "num":
            answer = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", repr(answer))
        elif how == "same":
            answer = "failed: " + answer if isinstance(answer, Error) else "not compared"
        said.append((line, answer))
    for c in [*clients.values(), *([control] if control else [])]:
        c.close()
    return said


def blocked(control):
    """How many clients wait; None: a script has the server busy."""
    info = control("INFO", "clients")
    return None if isinstance(info, Error) else int(re.search(r"blocked_clients:(\d+)", info)[1])


def in_order(answer):
    if isinstance(answer, list):
        return sorted((in_order(a) for a in answer), key=repr)
    return {k: in_order(answer[k]) for k in sorted(answer)} if isinstance(answer, dict) else answer


class Pair:
    """A native server and one in a pVM, each with a directory of its own. both(fn): fn of each gives the same."""

    def __init__(self, d, *more, tls=False):
        self.d, self.more, self.servers, self.tls = d, more, [], tls

    def __enter__(self):
        for where in ("native", "pvm"):
            self.servers.append(Redis(f"{self.d}/{where}", where == "pvm", *self.more, tls=self.tls))
            self.servers[-1].start()
        return self

    def both(self, fn, what):
        a, b = (fn(s) for s in self.servers)
        if isinstance(a, list) and isinstance(b, list):
            for x, y in zip(a, b):
                expect(y, x, what)
        expect(b, a, what)
        return a

    def scripts(self, *scripts):
        for lines in scripts:
            said = self.both(lambda s: script(s.port, lines), "in the pVM")
            wrong = [s for s in said if isinstance(s[1], str) and s[1].startswith("failed: ")]
            expect(wrong, [], "must not fail")

    def __exit__(self, *exc):
        for s in self.servers:
            s.stop()
            if s.pvm and not exc[0]:
                expect(s.s.status, 0, f"the server's end: {s.log}")
                silent(s.log)


class Redis:
    def __init__(self, d, pvm, *more, tls=False):
        self.d, self.pvm, self.port, self.tls = d, pvm, lib.free_port(), lib.free_port() if tls else 0
        if not os.path.isdir(d):
            os.mkdir(d)
        self.more = list(more)
        if tls:
            self.more += ["--tls-port", str(self.tls)]
        self.c = self.s = None

    def start(self):
        argv = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.d, "--save", "",
                "--enable-debug-command", "yes", "--enable-module-command", "no", "--unixsocket", f"{self.d}/sock",
                "--repl-diskless-sync-delay", "0", *self.more]
        self.s = lib.Server(lib.pvm(argv, *options(os.path.dirname(self.d))) if self.pvm else argv, self.port, cwd="/")
        self.s.__enter__()
        self.c = Client(self.port)
        until("loaded", lambda: "\nloading:0" in self("INFO", "persistence"), 180)

    def __call__(self, *words):
        r = self.c(*words)
        if isinstance(r, Error):
            raise AssertionError(f"{'pVM' if self.pvm else 'native'}: {words[0]}: {r}")
        return r

    def info(self, section, field):
        return re.search(rf"^{field}:(.*?)\r?$", self("INFO", section), re.M)[1]

    def stop(self):
        if self.s:
            self.c.close()
            if self.s.p.poll() is None:
                self.s.p.send_signal(signal.SIGTERM)
                try:
                    self.s.p.wait(lib.limit(90))
                except subprocess.TimeoutExpired:
                    pass
            self.s.log.seek(0)
            self.log = self.s.log.read().decode(errors="replace")
            self.s.__exit__()


STRINGS = r"""
SET k v
SET k w NX
SET k w XX GET
SET k 10 EX 100 KEEPTTL
SET k 10 PX 100000
GETEX k PERSIST
TTL k
APPEND k 5
STRLEN k
INCR k
INCRBY k 41
DECRBY k 7
INCRBYFLOAT k 0.25
GETRANGE k 0 3
SETRANGE k 8 "\x00\xff tail"
GET k
MSET a 1 b 2 c 3
MSETNX c 1 z 2
MGET a b c z
GETSET a x
GETDEL a
GET a
SUBSTR b 0 -1
LCS b c
MSET x ohmytext y mynewtext
LCS x y IDX MINMATCHLEN 4 WITHMATCHLEN
PSETEX p 100000 v
SETEX p 100 v
SET bad v EX 0
INCR x
GET
NOSUCH a b
OBJECT ENCODING b
OBJECT ENCODING x
OBJECT REFCOUNT x
OBJECT FREQ x
COPY x x2
RENAME x2 x3
RENAMENX x3 y
EXISTS x y x2 x3
TYPE x
TOUCH x y nope
UNLINK x y
DBSIZE
same RANDOMKEY
sort KEYS *
SETBIT bm 7 1
SETBIT bm 100003 1
GETBIT bm 7
BITCOUNT bm
BITCOUNT bm 0 7 BIT
BITPOS bm 1
BITPOS bm 0 0 -1 BYTE
BITOP NOT bn bm
BITOP XOR bx bm bn
BITCOUNT bx
BITFIELD bf SET u8 0 200 INCRBY i5 100 1 GET u4 0 OVERFLOW SAT INCRBY u2 102 3 OVERFLOW FAIL INCRBY u2 102 1
BITFIELD_RO bf GET i8 0
PFADD h1 a b c d e f g
PFADD h2 e f g h i
PFCOUNT h1
PFCOUNT h1 h2
PFMERGE h3 h1 h2
PFCOUNT h3
GET h3
PFDEBUG ENCODING h3
PFSELFTEST
EXPIRE b 100
EXPIRE b 50 GT
EXPIRE b 50 LT
EXPIRE b 50 NX
EXPIREAT c 4000000000
EXPIRETIME c
PEXPIRETIME c
PEXPIREAT c 4000000000123
PTTL nope
PERSIST c
PERSIST c
SET short v PX 30
sleep 0.1
GET short
EXISTS short
num TIME
ECHO hello
PING
PING x
SWAPDB 0 1
SELECT 1
sort KEYS *
MOVE b 2
DBSIZE
SELECT 99
SWAPDB 0 1
LOLWUT VERSION 5 1 1 1
"""

HASHES_LISTS_SETS = r"""
HSET h a 1 b 2 c 3
HSETNX h a 9
HGET h a
HMGET h a b z
HINCRBY h a 10
HINCRBYFLOAT h b 1.5
sort HGETALL h
HLEN h
HSTRLEN h b
HEXISTS h q
HDEL h c q
sort HKEYS h
sort HVALS h
HRANDFIELD h 0
sort HRANDFIELD h 5 WITHVALUES
HSCAN h 0 MATCH * COUNT 100
OBJECT ENCODING h
CONFIG SET hash-max-listpack-entries 2
HSET h d 4 e 5
OBJECT ENCODING h
sort HSCAN h 0 COUNT 100
HGET nope x
RPUSH l a b c d e
LPUSH l z
LPUSHX nope a
RPUSHX l f
LRANGE l 0 -1
LINDEX l -2
LINSERT l BEFORE c bb
LSET l 0 zz
LREM l 1 bb
LPOS l d
LPOS l a RANK -1 COUNT 0 MAXLEN 10
LTRIM l 1 -2
LLEN l
LPOP l 2
RPOP l
RPOPLPUSH l l2
LMOVE l2 l LEFT RIGHT
LMPOP 2 l l2 RIGHT COUNT 10
LPOP l
LLEN l
LSET nope 0 x
DEBUG QUICKLIST-PACKED-THRESHOLD 10b
RPUSH big 0123456789012345 0123456789 x
LRANGE big 0 -1
OBJECT ENCODING big
DEBUG QUICKLIST-PACKED-THRESHOLD 0
b: send BLPOP q 0
RPUSH q one two
b: recv
b: send BRPOP nope q 5
b: recv
b: send BLMOVE q q2 LEFT RIGHT 0
c: send BRPOPLPUSH q q2 0
RPUSH q three
b: recv
RPUSH q four
c: recv
LRANGE q2 0 -1
b: send BLMPOP 0 2 q r RIGHT COUNT 2
MULTI
RPUSH r 1 2 3
LPOP r
EXEC
b: recv
LRANGE r 0 -1
b: BLPOP q 0.05
b: send BLPOP q 0
DEL r
SET q notalist
DEL q
RPUSH q end
b: recv
SADD s a b c d
SADD s a e
SREM s e
sort SMEMBERS s
SCARD s
SISMEMBER s a
SMISMEMBER s a z b
SADD t c d e f
sort SINTER s t
sort SUNION s t
sort SDIFF s t
SINTERSTORE u s t
SUNIONSTORE v s t
SDIFFSTORE w s t
SINTERCARD 2 s t LIMIT 1
SMOVE s t a
sort SRANDMEMBER t 10
SRANDMEMBER t 0
sort SPOP t 10
EXISTS t
sort SSCAN v 0 COUNT 100
SADD ints 5 3 1 9 1000000000000
SMEMBERS ints
OBJECT ENCODING ints
SADD ints x
OBJECT ENCODING ints
SADD l x
SORT v ALPHA
MSET w_1 3 w_2 2 w_3 1 d_1 one d_2 two d_3 three
RPUSH ids 1 2 3
SORT ids BY w_* GET d_* GET #
SORT ids DESC LIMIT 0 2 STORE sorted
LRANGE sorted 0 -1
SORT_RO ids
"""

ZSETS_GEO = r"""
ZADD z 1 a 2 b 3 c 4 d 5 e
ZADD z NX 9 a 6 f
ZADD z XX CH 10 a
ZADD z GT CH 5 a
ZADD z INCR 2.5 b
ZCARD z
ZSCORE z b
ZMSCORE z a b q
ZRANK z c
ZREVRANK z c
ZCOUNT z (3 +inf
ZRANGE z 0 -1 WITHSCORES
ZRANGE z 3 10 BYSCORE LIMIT 1 2
ZRANGE z 0 -1 REV
ZRANGESTORE zz z 0 2
ZREVRANGE z 0 1
ZRANGEBYSCORE z -inf (5 WITHSCORES
ZREVRANGEBYSCORE z 10 1 LIMIT 0 2
ZINCRBY z 0.1 c
ZREM z f q
ZPOPMIN z
ZPOPMAX z 2
ZADD lex 0 a 0 b 0 c 0 d
ZRANGEBYLEX lex [b +
ZREVRANGEBYLEX lex + (b
ZLEXCOUNT lex - +
ZREMRANGEBYLEX lex [a [b
ZADD y 1 b 10 c 20 x
ZUNION 2 z y WITHSCORES
ZINTER 2 z y WEIGHTS 2 3 AGGREGATE MAX WITHSCORES
ZDIFF 2 z y
ZUNIONSTORE o1 2 z y
ZINTERSTORE o2 2 z y AGGREGATE MIN
ZDIFFSTORE o3 2 y z
ZINTERCARD 2 z y
ZMPOP 2 none y MIN COUNT 2
ZREMRANGEBYRANK o1 0 0
ZREMRANGEBYSCORE o1 -inf 5
ZRANGE o1 0 -1 WITHSCORES
ZSCAN o1 0
ZRANDMEMBER nope
b: send BZPOPMIN q1 q2 0
ZADD q2 5 five 6 six
b: recv
b: send BZPOPMAX q2 0
b: recv
b: send BZMPOP 0 1 q3 MAX COUNT 2
ZADD q3 1 a 2 b 3 c
b: recv
b: BZPOPMIN none 0.03
ZADD f inf i -inf j 1e300 k 0.1 m
ZRANGE f 0 -1 WITHSCORES
ZADD f nan x
OBJECT ENCODING f
CONFIG SET zset-max-listpack-entries 2
ZADD f 3 n
OBJECT ENCODING f
ZRANGE f 0 -1 WITHSCORES
GEOADD g 13.361389 38.115556 Palermo 15.087269 37.502669 Catania 2.35 48.85 Paris
GEODIST g Palermo Catania km
GEOHASH g Palermo Catania
GEOPOS g Palermo nope
GEORADIUS g 15 37 200 km WITHDIST WITHCOORD WITHHASH ASC
GEORADIUSBYMEMBER g Palermo 2000 km DESC COUNT 2
GEOSEARCH g FROMLONLAT 15 37 BYBOX 400 400 km ASC WITHDIST
GEOSEARCHSTORE g2 g FROMMEMBER Paris BYRADIUS 3000 km STOREDIST
ZRANGE g2 0 -1
GEOADD g 200 100 bad
"""

STREAMS = r"""
XADD s 1-1 a 1
XADD s 1-* b 2
XADD s 2 c 3 d 4
XADD s 1 bad x
XADD s NOMKSTREAM 3-0 e 5
XADD none NOMKSTREAM * e 5
XLEN s
XRANGE s - +
XRANGE s (1-1 + COUNT 1
XREVRANGE s + - COUNT 2
XREAD COUNT 2 STREAMS s 0
b: send XREAD BLOCK 0 STREAMS s $
XADD s 5-0 woke up
b: recv
XGROUP CREATE s g 0
XGROUP CREATE s g 0
XGROUP CREATE new g $ MKSTREAM
XGROUP CREATECONSUMER s g alice
XREADGROUP GROUP g alice COUNT 2 STREAMS s >
XREADGROUP GROUP g bob COUNT 1 STREAMS s >
XREADGROUP GROUP g alice STREAMS s 0
XACK s g 1-1
XPENDING s g
num XPENDING s g - + 10
num XPENDING s g IDLE 0 - + 10 bob
XCLAIM s g bob 0 1-2 JUSTID
XAUTOCLAIM s g carol 0 0 COUNT 10
XREADGROUP GROUP g carol NOACK STREAMS s >
b: send XREADGROUP GROUP g dave BLOCK 0 STREAMS s >
XADD s 6-0 for dave
b: recv
XINFO STREAM s
num XINFO STREAM s FULL
num XINFO CONSUMERS s g
XINFO GROUPS s
XGROUP DELCONSUMER s g carol
XGROUP SETID s g 2-0 ENTRIESREAD 3
XINFO GROUPS s
XDEL s 2-0
XTRIM s MAXLEN 2
XTRIM s MINID ~ 1
XADD s MAXLEN = 2 9-0 x y
XRANGE s - +
XSETID s 20-0
b: send XREADGROUP GROUP g dave BLOCK 0 STREAMS s >
b: recv
b: send XREADGROUP GROUP g dave BLOCK 0 STREAMS s >
XGROUP DESTROY s g
b: recv
XREADGROUP GROUP nope x STREAMS s >
OBJECT ENCODING s
"""

PUBSUB = r"""
a: SUBSCRIBE one two
a: recv
b: PSUBSCRIBE t* [no]*
b: recv
c: SSUBSCRIBE shard
PUBLISH one hello
PUBLISH two world
PUBLISH nobody x
SPUBLISH shard s
a: recv
a: recv
b: recv
b: recv
c: recv
sort PUBSUB CHANNELS
PUBSUB NUMSUB one two three
PUBSUB NUMPAT
PUBSUB SHARDCHANNELS
PUBSUB SHARDNUMSUB shard none
a: PING
a: GET x
a: UNSUBSCRIBE one
a: UNSUBSCRIBE
b: PUNSUBSCRIBE t*
c: SUNSUBSCRIBE
PUBLISH one again
CONFIG SET notify-keyspace-events KEA
n: PSUBSCRIBE __key*__:*
SET k v
n: recv
n: recv
EXPIRE k 100
n: recv
n: recv
RPUSH l a
n: recv
n: recv
PEXPIRE k 20
n: recv
n: recv
n: recv
n: recv
HSET h a 1
n: recv
n: recv
LPOP l
n: recv
n: recv
n: recv
n: recv
XADD st 1-1 a b
n: recv
n: recv
RENAME h h2
n: recv
n: recv
n: recv
n: recv
CONFIG SET notify-keyspace-events ""
3: HELLO 3 SETNAME three
3: HSET hh a 1
3: HGETALL hh
3: SUBSCRIBE x
3: ZADD zz 1.5 a
3: ZRANGE zz 0 -1 WITHSCORES
3: SMEMBERS none
3: CLIENT TRACKING ON
3: GET hh2
SET hh2 v
3: recv
3: GET hh2
3: CLIENT CACHING YES
3: CLIENT TRACKINGINFO
3: CLIENT TRACKING OFF
3: DEBUG PROTOCOL ATTRIB
"""
PUBSUB = PUBSUB.replace("3: DEBUG PROTOCOL ATTRIB\n", "3: DEBUG PROTOCOL BIGNUM\n3: DEBUG PROTOCOL DOUBLE\n3: DEBUG PROTOCOL TRUE\n")

TRANSACTIONS_SCRIPTS = r"""
MULTI
SET a 1
INCR a
GET a
EXEC
MULTI
SET a 5
DISCARD
GET a
MULTI
INCR a
NOSUCH
EXEC
MULTI
INCR a
LPUSH a x
EXEC
WATCH a
b: SET a 100
MULTI
SET a 1
EXEC
WATCH a
MULTI
SET a 1
EXEC
WATCH a
UNWATCH
EXEC
DISCARD
MULTI
MULTI
EXEC
EVAL "return {1, 2, 'x', KEYS[1], ARGV[1]}" 1 k v
EVAL "return redis.call('SET', KEYS[1], ARGV[1])" 1 k v
EVAL "return redis.pcall('NOSUCH')" 0
EVAL "return redis.call('LPUSH', 'k', 1)" 0
EVAL "return redis.error_reply('MINE own')" 0
EVAL "return {double = 3.5, ok = 'x'}" 0
EVAL "return cjson.encode({1, 2, {a = 'b'}})" 0
EVAL "return cmsgpack.unpack(cmsgpack.pack({1, 2, 3}))" 0
EVAL "return bit.bxor(255, 15)" 0
EVAL "return struct.unpack('>I4', struct.pack('>I4', 77))" 0
EVAL "local s = 0 for i = 1, 200000 do s = s + i end return tostring(s)" 0
EVAL "return redis.sha1hex('abc')" 0
EVAL "x = 1" 0
EVAL "return string.rep('ab', 100000):len()" 0
EVAL_RO "return redis.call('SET', 'k', 1)" 0
SCRIPT LOAD "return ARGV[1] * 2"
EVALSHA 7f923f79fe76194c868d7e1d0820de36700eb649 0 21
SCRIPT EXISTS 7f923f79fe76194c868d7e1d0820de36700eb649 0000000000000000000000000000000000000000
SCRIPT FLUSH
EVALSHA 7f923f79fe76194c868d7e1d0820de36700eb649 0 21
FUNCTION LOAD "#!lua name=lib\nredis.register_function('add', function(k, a) return redis.call('INCRBY', k[1], a[1]) end)\nredis.register_function{function_name='ro', callback=function(k) return redis.call('GET', k[1]) end, flags={'no-writes'}}"
FCALL add 1 n 5
FCALL add 1 n 37
FCALL_RO ro 1 n
FCALL_RO add 1 n 1
sort FUNCTION LIST
FUNCTION DUMP
FUNCTION STATS
FUNCTION DELETE lib
FCALL add 1 n 5
FUNCTION FLUSH
l: send EVAL "while true do end" 0
GET a
SCRIPT KILL
l: recv
GET a
"""

SERVER = r"""
CLIENT SETNAME me
CLIENT GETNAME
num CLIENT ID
num CLIENT INFO
num CLIENT LIST TYPE normal
CLIENT NO-EVICT ON
CLIENT PAUSE 50 WRITE
CLIENT UNPAUSE
CLIENT REPLY ON
CLIENT GETREDIR
b: PING
b: send BLPOP none 0
CLIENT KILL TYPE pubsub
same CLIENT UNBLOCK 1
sort CONFIG GET maxmemory*
CONFIG SET maxmemory 100mb maxmemory-policy allkeys-lru
sort CONFIG GET maxmemory-policy maxmemory
CONFIG SET maxmemory 0 maxmemory-policy noeviction
CONFIG SET nosuch 1
CONFIG SET maxclients 200
CONFIG GET maxclients
CONFIG SET maxclients 10000
CONFIG GET maxclients
CONFIG RESETSTAT
CONFIG GET save
COMMAND COUNT
COMMAND GETKEYS MSET a 1 b 2
COMMAND INFO GET
sort COMMAND DOCS GET
sort COMMAND LIST FILTERBY ACLCAT geo
DEBUG SLEEP 0.02
DEBUG SET-ACTIVE-EXPIRE 1
DEBUG STRINGMATCH-LEN 1000 a*b*c
DEBUG CHANGE-REPL-ID
DEBUG LISTPACK nope
SET obj value
num DEBUG OBJECT obj
DEBUG DIGEST
DEBUG DIGEST-VALUE obj
DEBUG SDSLEN obj
DEBUG POPULATE 1000 pre 20
DEBUG DIGEST
DEBUG RELOAD
DEBUG DIGEST
DBSIZE
DEBUG HTSTATS-KEY obj
MEMORY USAGE obj
MEMORY USAGE pre:1
MEMORY PURGE
same MEMORY STATS
same MEMORY DOCTOR
same MEMORY MALLOC-STATS
LATENCY RESET
CONFIG SET latency-monitor-threshold 1000
SLOWLOG RESET
CONFIG SET slowlog-log-slower-than 1000000
DEBUG SLEEP 1.1
num LATENCY HISTORY command
same LATENCY LATEST
same LATENCY DOCTOR
LATENCY RESET command
same LATENCY HISTOGRAM set
SLOWLOG LEN
num SLOWLOG GET 1
same OBJECT IDLETIME obj
OBJECT HELP
DUMP obj
RESTORE copy 0 "\x00\x05value\x0a\x00\x1c\xb2\xd1\xc2\xac\xf5\xf7\xf6"
DUMP none
ACL WHOAMI
sort ACL CAT scripting
same ACL GENPASS
ACL SETUSER bob on >secret ~b:* &ch* +@read +set
ACL GETUSER bob
ACL LIST
sort ACL USERS
u: AUTH bob wrong
u: AUTH bob secret
u: ACL WHOAMI
u: SET b:1 x
u: SET c:1 x
u: GET b:1
u: STRLEN b:1
u: PUBLISH other x
u: CONFIG GET save
ACL DRYRUN bob SET c:1 v
num ACL LOG
ACL LOG RESET
ACL SETUSER bob resetkeys %R~r:* (+get ~sel:*)
ACL GETUSER bob
ACL DELUSER bob
WAIT 0 10
ROLE
num LASTSAVE
RESET
same INFO everything
same INFO modules cpu commandstats
FLUSHDB ASYNC
DBSIZE
SHUTDOWN ABORT
REPLICAOF NO ONE
CLUSTER INFO
MODULE LIST
FAILOVER ABORT
num MONITOR
"""


@test
def commands():
    """Strings, hashes, lists, sets, ordered sets, geo, streams, pub/sub, transactions, scripts, administration"""
    need("redis-server", root=False)
    with lib.Dir() as d, Pair(d, "--busy-reply-threshold", "200") as p:
        for lines in (STRINGS, HASHES_LISTS_SETS, ZSETS_GEO, STREAMS, PUBSUB, TRANSACTIONS_SCRIPTS, SERVER):
            p.scripts(lines, "FLUSHALL")


FILL = """for i = 1, 300 do
redis.call('SET', 's' .. i, string.rep(i .. ':', i)) redis.call('HSET', 'h' .. i % 7, i, i) redis.call('RPUSH', 'l' .. i % 5, i)
redis.call('SADD', 't' .. i % 3, i, 'm' .. i) redis.call('ZADD', 'z' .. i % 4, i / 3, i) redis.call('PFADD', 'hll', i)
redis.call('XADD', 'st', i .. '-1', 'f', i) redis.call('SET', 'e' .. i, i, 'EX', 100000)
redis.call('GEOADD', 'g', i / 10, i / 20, 'p' .. i) redis.call('SETBIT', 'bm', i * 3, 1) end
redis.call('XGROUP', 'CREATE', 'st', 'grp', 0) redis.call('XREADGROUP', 'GROUP', 'grp', 'c', 'COUNT', 5, 'STREAMS', 'st', '>')
return redis.call('DBSIZE')"""


@long_test
def persistence():
    """SAVE, BGSAVE, AOF with and without RDB preamble, rewrite: each loaded by the other kind of server"""
    need("redis-server", root=False)
    with lib.Dir() as d:
        for preamble in ("yes", "no"):
            with Pair(d, "--aof-use-rdb-preamble", preamble) as p:
                for s in p.servers:
                    s("FLUSHALL")
                    s("EVAL", FILL, 0)
                    s("CONFIG", "SET", "appendonly", "yes")
                    until("AOF", lambda: s.info("persistence", "aof_rewrite_in_progress") == "0" and
                          s.info("persistence", "aof_rewrite_scheduled") == "0")
                    s("RPUSH", "after", 1, 2, 3)
                    s("BGREWRITEAOF")
                    until("AOF", lambda: s.info("persistence", "aof_rewrite_in_progress") == "0")
                    expect(s.info("persistence", "aof_last_bgrewrite_status"), "ok", "rewrite")
                    s("INCR", "later")
                    s("DEBUG", "LOADAOF")
                    s("BGSAVE")
                    until("RDB", lambda: s.info("persistence", "rdb_bgsave_in_progress") == "0")
                    expect(s.info("persistence", "rdb_last_bgsave_status"), "ok", "RDB")
                    s("SAVE")
                digest = p.both(lambda s: (s("DBSIZE"), s("DEBUG", "DIGEST")), "digest")
            os.rename(f"{d}/native", f"{d}/x")  # each gets what the other has written
            os.rename(f"{d}/pvm", f"{d}/native")
            os.rename(f"{d}/x", f"{d}/pvm")
            with Pair(d, "--appendonly", "yes") as p:
                expect(p.both(lambda s: (s("DBSIZE"), s("DEBUG", "DIGEST")), "AOF"), digest, "AOF")
            with Pair(d) as p:
                expect(p.both(lambda s: (s("DBSIZE"), s("DEBUG", "DIGEST")), "RDB"), digest, "RDB")
        for f in ("native", "pvm"):
            for tool, path in (("redis-check-rdb", "dump.rdb"), ("redis-check-aof", "appendonlydir/appendonly.aof.manifest")):
                r = lib.run(lib.pvm([tool, f"{d}/{f}/{path}"], *options(d)) if f == "native" else [tool, f"{d}/{f}/{path}"])
                expect(r.status, 0, f"{tool}: {r.why()}")


def synced(replica, master):
    until("in step", lambda: replica.info("replication", "master_link_status") == "up" and
          replica.info("replication", "master_repl_offset") == master.info("replication", "master_repl_offset"))


@test
def replication():
    """Native master and pVM replica and the reverse: full, diskless, partial; failover; MIGRATE, DUMP and RESTORE"""
    need("redis-server", root=False)
    with lib.Dir() as d, Pair(d, "--repl-timeout", "60") as p:
        for master, replica in (p.servers, p.servers[::-1]):
            for diskless in ("yes", "no"):
                master("CONFIG", "SET", "repl-diskless-sync", diskless)
                replica("CONFIG", "SET", "repl-diskless-load", "swapdb" if diskless == "yes" else "disabled")
                master("FLUSHALL")
                master("EVAL", FILL, 0)
                replica("REPLICAOF", "127.0.0.1", master.port)
                synced(replica, master)
                master("MULTI")
                for i in range(50):
                    master("SET", f"live{i}", "x" * i)
                master("EXEC")
                expect(master("WAIT", 1, 60000), 1, "WAIT")
                synced(replica, master)
                expect(replica("DEBUG", "DIGEST"), master("DEBUG", "DIGEST"), "digest")
                assert isinstance(replica.c("SET", "x", 1), Error), "a replica that writes"
                full = int(master.info("stats", "sync_full"))
                replica("CLIENT", "KILL", "TYPE", "master")
                master("INCR", "while-away")
                synced(replica, master)
                expect((int(master.info("stats", "sync_full")), replica("GET", "while-away")), (full, "1"), "partial")
                assert int(master.info("stats", "sync_partial_ok")) > 0
                if diskless == "yes":
                    replica("REPLICAOF", "NO", "ONE")
            master("FAILOVER", "TO", "127.0.0.1", replica.port)
            until("failover", lambda: master("ROLE")[0] == "slave" and replica("ROLE")[0] == "master")
            synced(master, replica)
            replica("SET", "new-master", 1)
            synced(master, replica)
            expect(master("GET", "new-master"), "1", "the former master")
            master("REPLICAOF", "NO", "ONE")
            master("FLUSHALL")
        a, b = p.servers
        for x, y in ((a, b), (b, a)):
            x("FLUSHALL")
            y("FLUSHALL")
            x("EVAL", FILL, 0)
            digest, keys = x("DEBUG", "DIGEST"), sorted(x("KEYS", "*"))
            for k in keys[:100]:
                y("RESTORE", k, 0, x("DUMP", k))
            assert str(y.c("RESTORE", keys[0], 0, x("DUMP", keys[0]))).startswith("BUSYKEY")
            y("FLUSHALL")
            for i in range(0, len(keys), 100):
                expect(x("MIGRATE", "127.0.0.1", y.port, "", 0, 60000, "REPLACE", "KEYS", *keys[i:i + 100]), "OK", "MIGRATE")
            expect((x("DBSIZE"), y("DBSIZE"), y("DEBUG", "DIGEST")), (0, len(keys), digest), "after MIGRATE")


@long_test
def sentinel_and_crash():
    """DEBUG SEGFAULT: the same report and the same death; redis-sentinel sees a master"""
    need("redis-server", root=False)
    ends = []
    with lib.Dir() as d:
        for where in ("native", "pvm"):
            s = Redis(f"{d}/{where}", where == "pvm")
            s.start()
            s.c.send("DEBUG", "SEGFAULT")
            status = s.s.p.wait(lib.limit(60))
            s.stop()
            ends.append((status, [x for x in ("crashed by signal: 11", "STACK TRACE DONE", "INFO OUTPUT", "CLIENT LIST OUTPUT",
                                              "FAST MEMORY TEST", "DUMPING CODE AROUND PC", "redis-server")
                                  if x in s.log]))
        expect(ends[1], ends[0], "a crash")
        assert len(ends[0][1]) > 4, ends
        s = Redis(f"{d}/native", False)
        s.start()
        port = lib.free_port()
        conf = write(f"{d}/pvm", "sentinel.conf", f"port {port}\nbind 127.0.0.1\nsentinel monitor m 127.0.0.1 {s.port} 1\n"
                     "sentinel down-after-milliseconds m 300\n")
        try:
            with lib.Server(lib.pvm(["redis-server", conf, "--sentinel"], *options(d)), port, cwd="/"):
                c = Client(port)
                expect(c("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "m"), ["127.0.0.1", str(s.port)], "master")
                until("master is seen", lambda: "flags:master" in str(c("SENTINEL", "MASTER", "m")).replace("', '", ":"))
                os.kill(s.s.p.pid, signal.SIGSTOP)
                until("seen to be down", lambda: "s_down" in str(c("SENTINEL", "MASTER", "m")))
                os.kill(s.s.p.pid, signal.SIGCONT)
                until("seen to be up", lambda: "s_down" not in str(c("SENTINEL", "MASTER", "m")))
                c.close()
        finally:
            s.stop()


@long_test
def cluster():
    """Three masters, one in a pVM, and a replica in another: slots, MOVED, ASK, resharding, failover"""
    need("redis-server", "redis-cli", root=False)
    nodes = []
    with lib.Dir() as d:
        try:
            for i, pvm in enumerate((False, True, False, True)):
                bus = lib.free_port()
                nodes.append(Redis(f"{d}/{i}", pvm, "--cluster-enabled", "yes", "--cluster-node-timeout", "2000",
                                   "--cluster-port", str(bus), "--cluster-announce-bus-port", str(bus)))
                nodes[-1].bus = bus
                nodes[-1].start()
            ids = [n("CLUSTER", "MYID") for n in nodes]
            for n in nodes[1:]:
                n("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, nodes[0].bus)
            for i, n in enumerate(nodes[:3]):
                n("CLUSTER", "ADDSLOTSRANGE", i * 5461, 16383 if i == 2 else i * 5461 + 5460)
            until("all know all", lambda: all("cluster_known_nodes:4" in i and "cluster_state:ok" in i
                                              for i in (n("CLUSTER", "INFO") for n in nodes)))
            nodes[3]("CLUSTER", "REPLICATE", ids[1])
            until("replica", lambda: nodes[3].info("replication", "master_link_status") == "up")
            expect(nodes[0]("CLUSTER", "KEYSLOT", "{user}.x"), nodes[1]("CLUSTER", "KEYSLOT", "{user}.y"), "slot")

            def owner(key):
                return nodes[min(nodes[0]("CLUSTER", "KEYSLOT", key) // 5461, 2)]
            for i in range(200):
                owner(f"key{i}")("SET", f"key{i}", i)
            key = next(f"key{i}" for i in range(200) if owner(f"key{i}") is nodes[1])
            slot = nodes[0]("CLUSTER", "KEYSLOT", key)
            expect(nodes[0].c("GET", key), Error(f"MOVED {slot} 127.0.0.1:{nodes[1].port}"), "MOVED")
            expect([str(n.c("MGET", "a", "b"))[:9] for n in nodes[:2]], ["CROSSSLOT"] * 2, "CROSSSLOT")
            r = lib.run(["redis-cli", "-c", "-p", str(nodes[0].port), "get", key])
            expect(r.out.decode().strip(), key[3:], f"redis-cli -c {r.why()}")
            nodes[0]("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[1])  # the slot goes from the pVM to a native server
            nodes[1]("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[0])
            keys = nodes[1]("CLUSTER", "GETKEYSINSLOT", slot, 100)
            expect(len(keys), nodes[1]("CLUSTER", "COUNTKEYSINSLOT", slot), "keys of the slot")
            nodes[1]("MIGRATE", "127.0.0.1", nodes[0].port, "", 0, 60000, "KEYS", *keys)
            expect(nodes[1].c("GET", key), Error(f"ASK {slot} 127.0.0.1:{nodes[0].port}"), "ASK")
            nodes[0]("ASKING")
            expect(nodes[0]("GET", key), key[3:], "asked")
            for n in nodes[:3]:
                n("CLUSTER", "SETSLOT", slot, "NODE", ids[0])
            expect(nodes[0]("GET", key), key[3:], "the new owner")
            until("shards", lambda: len(nodes[1]("CLUSTER", "SHARDS")) == 3)
            nodes[3]("CLUSTER", "FAILOVER")
            until("failover", lambda: nodes[3]("ROLE")[0] == "master" and nodes[1]("ROLE")[0] == "slave")
            until("in order", lambda: lib.run(["redis-cli", "--cluster", "check", f"127.0.0.1:{nodes[0].port}"]).status == 0)
        finally:
            for n in nodes:
                n.stop()
        for n in nodes:
            if n.pvm:
                silent(n.log)


@test
def tls_and_unix():
    """TLS with client certificates, replication over TLS, a unix socket, pipelines and large values over each"""
    need("redis-server", "openssl", root=False)
    with lib.Dir() as d:
        certificate(d)
        tls = ["--tls-cert-file", f"{d}/cert", "--tls-key-file", f"{d}/key", "--tls-ca-cert-file", f"{d}/cert"]
        context = ssl.create_default_context(cafile=f"{d}/cert")
        context.check_hostname = False
        with Pair(d, *tls, tls=True) as p:
            refused = []
            for s in p.servers:
                try:
                    c = Client(s.tls, context)
                    c("PING")
                    refused.append(False)
                except (OSError, EOFError):
                    refused.append(True)
            expect(refused, [True, True], "without a certificate")
            context.load_cert_chain(f"{d}/cert", f"{d}/key")
            for s in p.servers:
                for c in (Client(s.tls, context), Client(f"{s.d}/sock"), Client(s.port)):
                    big = os.urandom(3_000_000)
                    expect(c("SET", "big", big), "OK", "SET")
                    expect(c("GET", "big"), big, "GET of 3 MB")
                    c.s.sendall(b"".join(b"*2\r\n$4\r\nINCR\r\n$1\r\nn\r\n" for _ in range(3000)))
                    expect([c.recv() for _ in range(3000)][-1] % 3000, 0, "pipeline")
                    c.s.sendall(b"PING\r\nSET inline 'a b'\r\nGET inline\r\n")
                    expect([c.recv() for _ in range(3)], ["PONG", "OK", "a b"], "inline")
                    c.s.sendall(b"*1\r\n$bad\r\n")
                    expect(c.recv(), Error("ERR Protocol error: invalid bulk length"), "protocol")
                    try:
                        c.recv()
                        raise AssertionError("not closed")
                    except EOFError:
                        pass
                    c.close()
            a, b = p.servers
            for x, y in ((a, b), (b, a)):
                y("CONFIG", "SET", "tls-replication", "yes")
                y("REPLICAOF", "127.0.0.1", x.tls)
                synced(y, x)
                expect(y("DEBUG", "DIGEST"), x("DEBUG", "DIGEST"), "TLS replication")
                y("REPLICAOF", "NO", "ONE")


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, slow=0))
