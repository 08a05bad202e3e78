#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""nsd, knot, unbound and dnsmasq in pVMs: what dig gets from each is what it gets from the same server natively.

test_dig.py [KYLINX] [--only PATTERN]; prints TAP, ends nonzero on a failure.
"""
import os
import random
import re
import shutil
import socket
import struct
import sys
import time

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import expect  # noqa: E402
from servers import collection, need, options, silent, until, write  # noqa: E402

args = lib.arguments()
tests, test, long_test = collection()


ZONE = r"""$ORIGIN example.test.
$TTL 3600
@ SOA ns1 admin 2024010101 3600 900 604800 300
@ NS ns1
@ NS ns2
@ MX 10 mail
@ MX 20 mail2
@ A 192.0.2.1
@ AAAA 2001:db8::1
@ TXT "v=spf1 -all"
@ CAA 0 issue "ca.test"
@ DNSKEY 256 3 13 oJMRESz5E4gYzS/q6XDrvU1qMPYIjCWzJaOau8XNEZeqCYKD5ar0IRd8KqXXFJkqmVfRvMGPmM1x8fGAa2XhSA==
ns1 A 192.0.2.2
ns1 AAAA 2001:db8::2
ns2 A 192.0.2.3
mail A 192.0.2.4
mail2 A 192.0.2.5
www CNAME @
chain1 CNAME chain2
chain2 CNAME www
out CNAME elsewhere.invalid.
*.wild TXT "wildcard"
*.wild A 192.0.2.9
a.b.c.empty A 192.0.2.10
_sip._tcp SRV 10 60 5060 mail
_sip._tcp SRV 20 60 5060 mail2
naptr NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@example.test!" .
_443._tcp.www TLSA 3 1 1 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
ssh SSHFP 4 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
info HINFO "x86-64" "Linux"
rp RP admin txt
loc LOC 52 22 23.000 N 4 53 32.000 E -2.00m 0.00m 10000m 10m
svc HTTPS 1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.1
svcb SVCB 0 www
uri URI 10 1 "https://example.test/path"
afs AFSDB 1 mail
dn DNAME other
x.other A 192.0.2.20
cert CERT 1 12179 3 AAECAwQF
odd TYPE65280 \# 4 0a000001
quoted TXT "a \"quote\" and \\ and \200" "second" ""
many A 198.51.100.1
sub NS ns.sub
ns.sub A 192.0.2.30
secure NS ns.secure
secure DS 12345 13 2 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
ns.secure AAAA 2001:db8::30
1.2.0.192 PTR www
""" + "".join(f"many A 198.51.100.{i}\n" for i in range(2, 101)) \
    + "".join(f'big TXT "{i:03} {"x" * 200}"\n' for i in range(30)) + "long TXT " + " ".join(f'"{"y" * 250}"' for _ in range(8)) + "\n"
NAMES = """example.test SOA, example.test NS, example.test MX, example.test A, example.test AAAA, example.test TXT, example.test CAA,
example.test DNSKEY, example.test ANY, ns1.example.test A, ns1.example.test AAAA, ns1.example.test MX, www.example.test A,
www.example.test CNAME, chain1.example.test AAAA, out.example.test A, q.wild.example.test TXT, q.r.wild.example.test A,
wild.example.test A, b.c.empty.example.test A, none.example.test A, _sip._tcp.example.test SRV, naptr.example.test NAPTR,
_443._tcp.www.example.test TLSA, ssh.example.test SSHFP, info.example.test HINFO, rp.example.test RP, loc.example.test LOC,
svc.example.test HTTPS, svcb.example.test SVCB, uri.example.test URI, afs.example.test AFSDB, x.dn.example.test A,
cert.example.test CERT, odd.example.test TYPE65280, quoted.example.test TXT, many.example.test A, big.example.test TXT,
long.example.test TXT, a.sub.example.test A, secure.example.test DS, x.secure.example.test AAAA, 1.2.0.192.example.test PTR,
WwW.ExAmPlE.tEsT A, other.invalid A, version.bind CH TXT, example.test CH A"""
QUERIES = [q.split() for q in NAMES.replace("\n", " ").split(", ")]
WAYS = [[], ["+tcp"], ["+noedns", "+ignore"], ["+noedns"], ["+bufsize=512", "+ignore"], ["+bufsize=4096", "+dnssec"]]


class Dns:
    """A DNS server; its files are in d."""

    def __init__(self, name, d, pvm=True, conf=None, port=None):
        self.name, self.d, self.port, self.pvm = name, f"{d}/{name}", port or lib.free_port(), pvm
        os.makedirs(self.d, exist_ok=True)
        conf = conf or globals()[f"{name}_conf"](self)
        argv = {"nsd": ["/usr/sbin/nsd", "-d", "-c"], "knot": ["/usr/sbin/knotd", "-c"],
                "unbound": ["/usr/sbin/unbound", "-d", "-c"], "dnsmasq": ["/usr/sbin/dnsmasq", "-k", "-C"]}[name]
        argv.append(write(self.d, "conf", conf.format(d=self.d, port=self.port)))
        self.server = lib.Server(lib.pvm(argv, *options(self.d)) if pvm else argv, self.port, cwd="/")

    def __enter__(self):
        self.server.__enter__()
        return self

    def __exit__(self, *exc):
        self.server.log.seek(0)
        log = self.server.log.read().decode(errors="replace")
        self.server.__exit__()
        if self.pvm and not exc[0]:
            silent(log)
            expect(self.server.status, 0, f"{self.name}'s end")


def nsd_conf(s):
    write(s.d, "zone", ZONE)
    return """server:
 ip-address: 127.0.0.1@{port}
 ip-address: ::1@{port}
 username: ""
 pidfile: {d}/pid
 database: ""
 zonesdir: {d}
 xfrdfile: {d}/xfrd
 xfrdir: {d}
 zonelistfile: {d}/zones
 logfile: {d}/log
 server-count: 2
 reuseport: yes
 nsid: "ascii_server"
 answer-cookie: yes
 tcp-timeout: 30
 rrl-ratelimit: 0
remote-control:
 control-enable: no
zone:
 name: example.test
 zonefile: zone
 provide-xfr: 127.0.0.1 NOKEY
"""


def knot_conf(s, zone="", more=""):
    write(s.d, "zone", ZONE)
    return """server:
 rundir: {d}
 listen: [127.0.0.1@{port}, ::1@{port}]
 udp-workers: 2
 tcp-workers: 2
 background-workers: 2
 identity: who
 version: none
 nsid: server
 tcp-idle-timeout: 30
database:
 storage: {d}/db
 journal-db-max-size: 64M
log:
 - target: {d}/log
   any: info
""" + more + """acl:
 - id: all
   address: 127.0.0.1
   action: [transfer, update, notify]
zone:
 - domain: example.test
   file: {d}/zone
   acl: all
""" + zone


def unbound_conf(s, more=""):
    write(s.d, "zone", ZONE)
    return """server:
 interface: 127.0.0.1@{port}
 interface: ::1@{port}
 port: {port}
 username: ""
 chroot: ""
 directory: {d}
 pidfile: {d}/pid
 logfile: {d}/log
 use-syslog: no
 num-threads: 2
 so-reuseport: yes
 do-daemonize: no
 do-not-query-localhost: no
 rrset-roundrobin: no
 hide-version: yes
 answer-cookie: yes
 module-config: "iterator"
 local-zone: "test." nodefault
 local-zone: "static.test." static
 local-data: "static.test. A 192.0.2.77"
""".replace(" answer-cookie: yes\n", "") + (more or """auth-zone:
 name: example.test
 zonefile: {d}/zone
 for-upstream: no
 for-downstream: yes
""") + "remote-control:\n control-enable: no\n"


def dnsmasq_conf(s, more=""):
    return """port={port}
listen-address=127.0.0.1,::1
bind-interfaces
no-resolv
no-hosts
user=root
pid-file={d}/pid
host-record=example.test,192.0.2.1,2001:db8::1
host-record=many.example.test,192.0.2.1
mx-host=example.test,mail.example.test,10
txt-record=example.test,v=spf1 -all
txt-record=quoted.example.test,a b,second
srv-host=_sip._tcp.example.test,mail.example.test,5060,10,60
naptr-record=naptr.example.test,100,10,u,E2U+sip,!^.*$!sip:info@example.test!,
caa-record=example.test,0,issue,ca.test
cname=www.example.test,example.test
ptr-record=1.2.0.192.example.test,www.example.test
dns-rr=odd.example.test,65280,0a000001
local=/example.test/
address=/wild.example.test/192.0.2.9
""" + "".join(f"txt-record=big.example.test,{i:03} {'x' * 200}\n" for i in range(5)) + more


def dig(port, *more, host="127.0.0.1"):
    r = lib.run(["dig", f"@{host}", "-p", str(port), "+nocmd", "+nostats", "+time=60", "+tries=1", *more])
    text = re.sub(r"\bid: \d+", "id", (r.out + r.err).decode(errors="replace"))
    return r.status, re.sub(r"COOKIE: \w{16}\w*( \(good\))?", "COOKIE", text).replace(str(port), "PORT")


def answers(port, fresh=False):
    """What dig gets for QUERIES in WAYS, [(way, sorted lines)]."""
    out = []
    for way in WAYS:
        one = ["+nocookie", *way]
        status, text = dig(port, *[w for q in QUERIES for w in (*one, *q)])
        out += [((way, status), "")] + [((way, i), sorted(part.splitlines()))
                                        for i, part in enumerate(text.split(";; Got answer:"))]
    for more in (["+nsid", "example.test"], ["+cookie", "example.test"], ["+subnet=192.0.2.0/24", "example.test"],
                 ["+ednsopt=65001:abcd", "example.test"], ["+edns=9", "+noednsneg", "example.test"],
                 ["+opcode=4", "example.test"], ["+nordflag", "www.example.test"], ["+cdflag", "www.example.test"],
                 ["+ednsflags=0x80", "example.test"], ["+padding=128", "+nocookie", "example.test"], ["+keepalive", "+tcp", "example.test"]):
        out.append((more, sorted(dig(port, *more)[1].splitlines())))
    out.append(("IPv6", sorted(dig(port, "+nocookie", "example.test", "MX", host="::1")[1].splitlines())))
    for more in (["AXFR"], ["IXFR=2024010101"], ["IXFR=1"]):
        out.append((more, sorted(dig(port, "+nocookie", "example.test", *more)[1].splitlines())))
    return out


def query(name, kind=1, id=0, flags=0x100):
    return struct.pack(">6H", id, flags, 1, 0, 0, 0) + b"".join(
        bytes([len(x)]) + x.encode() for x in name.split(".")) + b"\0" + struct.pack(">2H", kind, 1)


def raw(port):
    """Datagrams and streams that dig does not send: what comes back."""
    out = []
    r = random.Random(1)
    good = query("www.example.test", id=7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as u:
        u.connect(("127.0.0.1", port))
        u.settimeout(lib.limit(60))
        for i, bad in enumerate((b"", b"\0", good[:11], good[:12], good[:-1], good + b"more", good[:4] + b"\0\2" + good[6:], good[:2] + b"\x85\0" + good[4:],
                    good[:12] + b"\xc0\x0c" + good[-4:], good[:12] + b"\x3f" * 70, bytes(r.randrange(256) for _ in range(300)),
                    query("x" * 63 + "." + "y" * 63 + ".example.test", id=9), b"\0" * 1500)):
            time.sleep(0.12)  # unbound answers only so many errors in a second
            u.send(bad)
            u.send(query("www.example.test", id=1000 + i))  # whose answer comes after any to the other
            got = [u.recv(65536)]
            while got[-1][:2] != struct.pack(">H", 1000 + i):
                got.append(u.recv(65536))
            out.append((bad[:20], got[:-1]))
        waiting, good_ones = set(), 0
        for i in range(600):  # 50 at a time
            u.send(query("www.example.test", id=i))
            waiting.add(i)
            while len(waiting) >= 50 or (i == 599 and waiting):
                answer = u.recv(65536)
                waiting.remove(struct.unpack(">H", answer[:2])[0])
                good_ones += answer[3] & 15 == 0
        out.append(("answers to a burst", good_ones))
    with socket.create_connection(("127.0.0.1", port), lib.limit(60)) as t, t.makefile("rb") as f, \
            socket.create_connection(("127.0.0.1", port), lib.limit(60)) as slow, socket.create_connection(("127.0.0.1", port), lib.limit(60)) as half:
        slow.sendall(b"\0")
        half.sendall(struct.pack(">H", len(good)) + good)
        half.shutdown(socket.SHUT_WR)
        data = b"".join(struct.pack(">H", len(q)) + q for q in (query(n, k, i) for i, (n, k) in enumerate(
            [("www.example.test", 1), ("example.test", 15), ("big.example.test", 16), ("nothing.example.test", 1)] * 10)))
        for i in range(0, len(data), 100):  # pipelined, in pieces
            t.sendall(data[i:i + 100])
        pipelined = {}
        for _ in range(40):
            a = f.read(struct.unpack(">H", f.read(2))[0])
            pipelined[struct.unpack(">H", a[:2])[0]] = (len(a), a[3] & 15, a[6:8])
        out.append(("pipelined", sorted(pipelined.items())))
        a = half.recv(65536)
        out.append(("half-closed", a[2:4] == b"" or a[4:6]))
        slow.sendall(bytes([len(good)]) + good)
        out.append(("slow", slow.recv(65536)[4:6]))
    return out


def compare(name):
    need({"knot": "knotd"}.get(name, name), "dig")
    got = []
    for pvm in (False, True):
        with lib.Dir() as d:
            with Dns(name, d, pvm) as s:
                got.append(answers(s.port) + raw(s.port))
    for a, b in zip(*got):
        expect(b, a, f"{name} in a pVM")
    text = str(got[0])
    assert text.count("NOERROR") > 100 and "198.51.100.1" in text or name == "dnsmasq", text[:300]
    assert " tc " in text and (name in ("unbound", "dnsmasq") or "2024010101" in text), "not what was to be tried"


@long_test
def nsd():
    compare("nsd")


@long_test
def knot():
    compare("knot")


@long_test
def unbound():
    compare("unbound")


@long_test
def dnsmasq():
    compare("dnsmasq")


def ask(port, name, kind, *more):
    return dig(port, "+short", "+nocookie", *more, name, kind)[1].strip()


@test
def between_pvms():
    """knot signs and takes updates; nsd has the zone from it; unbound validates; dnsmasq forwards: four pVMs"""
    need("nsd", "knotd", "unbound", "dnsmasq", "dig", "nsupdate")
    with lib.Dir() as d:
        ports = {n: lib.free_port() for n in ("nsd", "knot")}
        key = "hmac-sha256:tsig:c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"
        k = type("S", (), {"d": f"{d}/knot"})
        os.makedirs(f"{k.d}/db")
        conf = knot_conf(k, " " * 3 + "notify: second\n   dnssec-signing: on\n   dnssec-policy: p\n   zonefile-sync: -1\n   zonefile-load: difference\n   journal-content: all\n",
                         f"key:\n - id: tsig\n   algorithm: hmac-sha256\n   secret: {key.split(':')[2]}\nremote:\n - id: second\n   address: 127.0.0.1@{ports['nsd']}\n"
                         "policy:\n - id: p\n   single-type-signing: on\n   algorithm: ecdsap256sha256\n   nsec3: on\n")
        conf = conf.replace("   address: 127.0.0.1\n", "   key: tsig\n").replace(
            "zone:\n", " - id: open\n   address: 127.0.0.1\n   action: transfer\nzone:\n").replace("acl: all", "acl: [all, open]")
        write(k.d, "zone", re.sub("(?m)^@ DNSKEY.*\n", "", ZONE))
        n = type("S", (), {"d": f"{d}/nsd"})
        os.mkdir(n.d)
        second = nsd_conf(n).replace(" zonefile: zone\n", f" request-xfr: 127.0.0.1@{ports['knot']} NOKEY\n allow-notify: 127.0.0.1 NOKEY\n")
        os.unlink(f"{n.d}/zone")
        with Dns("knot", d, conf=conf, port=ports["knot"]) as primary:
            until("signed", lambda: "RRSIG" in dig(primary.port, "+dnssec", "example.test", "SOA")[1])
            anchor = ask(primary.port, "example.test", "DNSKEY")
            with Dns("nsd", d, conf=second, port=ports["nsd"]) as secondary:
                until("transferred", lambda: ask(secondary.port, "www.example.test", "A").endswith("192.0.2.1"))
                u = type("S", (), {"d": f"{d}/unbound"})
                os.mkdir(u.d)
                write(u.d, "anchor", f"example.test. IN DNSKEY {anchor}\n")
                conf = unbound_conf(u, f"stub-zone:\n name: example.test\n stub-addr: 127.0.0.1@{secondary.port}\n")
                conf = conf.replace('"iterator"', '"validator iterator"\n trust-anchor-file: {d}/anchor')
                with Dns("unbound", d, conf=conf) as validating:
                    text = dig(validating.port, "+dnssec", "www.example.test", "A")[1]
                    assert re.search("flags: [a-z ]*\\bad\\b", text) and "192.0.2.1" in text, text
                    text = dig(validating.port, "+dnssec", "none.example.test", "A")[1]
                    assert re.search("flags: [a-z ]*\\bad\\b", text) and "NXDOMAIN" in text and "NSEC3" in text, text
                    for i in range(3):
                        serial = int(ask(primary.port, "example.test", "SOA").split()[2])
                        r = lib.run(["nsupdate", "-y", key], stdin=f"server 127.0.0.1 {primary.port}\nzone example.test\n"
                                    f"update add new{i}.example.test 60 A 192.0.2.{100 + i}\nsend\n".encode())
                        expect(r.status, 0, f"nsupdate: {r.why()}")
                        until("at the second", lambda: ask(secondary.port, f"new{i}.example.test", "A") == f"192.0.2.{100 + i}")
                        assert int(ask(secondary.port, "example.test", "SOA").split()[2]) > serial
                        expect(ask(validating.port, f"new{i}.example.test", "A"), f"192.0.2.{100 + i}", "validated")
                    r = lib.run(["nsupdate"], stdin=f"server 127.0.0.1 {primary.port}\nzone example.test\nupdate add bad.example.test 60 A 1.2.3.4\nsend\n".encode())
                    assert r.status and re.search(b"REFUSED|NOTAUTH", r.err), f"update without the key: {r.why()}"
                    m = type("S", (), {"d": f"{d}/dnsmasq"})
                    os.mkdir(m.d)
                    conf = dnsmasq_conf(m, f"server=/example.test/127.0.0.1#{validating.port}\n").replace("local=/example.test/\n", "")
                    with Dns("dnsmasq", d, conf=conf) as forwarder:
                        for way in ([], ["+tcp"], ["+bufsize=1232"]):
                            expect(ask(forwarder.port, "new1.example.test", "A", *way), "192.0.2.101", "by all four")
                            expect(len(ask(forwarder.port, "long.example.test", "TXT", *way)), 8 * 253 - 1, "a long one by all four")
                time.sleep(0.1)
        shutil.rmtree(d, ignore_errors=True)
        os.mkdir(d)


if __name__ == "__main__":
    sys.exit(lib.run_tests(tests, args.only, slow=0))
