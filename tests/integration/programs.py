# SPDX-License-Identifier: Apache-2.0
"""What test_programs.py runs: one line or entry for each case. "<file" at the end of a line is standard input,
@CPU@ is the mask of a processor, "| sort" says that the lines of its standard output come in an order of the file system's (cp goes by inode numbers).

The working directory holds: text (1,000 lines), sorted1, sorted2 (for comm and join), table (tab separated), data.bin
(64 KiB), empty, d/ (a, b, link -> a, sub/c), old.txt, new.txt, fix.patch, text.gz .bz2 .xz .lzma, files.tar, files.zip,
files.cpio, lib.a, uu, sums, script.sh, ed.cmd, x.json.
"""

BUSYBOX = r"""
[ 1 -lt 2 ]
[[ abc = abc ]]
ar -t lib.a
arch
ascii
ash -c 'x=0; while [ $x -lt 2000 ]; do x=$((x+1)); done; echo $x; for f in *; do echo "$f"; done; echo "${PWD##*/}"'
ash script.sh a b
awk '{ n[NF]++; s += length($0) } END { for (i = 0; i < 40; i++) if (n[i]) print i, n[i]; print s, s / 7, toupper(substr($0, 3)) }' text
base64 data.bin
base64 -w 0 text
basename /a/b.c .c
bc -l <bc.in
bunzip2 -c text.bz2
bzcat text.bz2
bzip2 -kf text
cal 2 2020
cat text data.bin
cat - <text
chgrp 0 text
chmod 640 text d
chmod -R u+x,go-r d
chown 0:0 text
cksum text data.bin
clear
cmp text data.bin
cp -a d d2
cp text copy
cpio -t <files.cpio
cpio -i <files.cpio
crc32 text data.bin
cut -d ' ' -f 2,4 text
date -u -d @1000000000
date -u -r text +%Y-%m-%d
dc -e '2 64 ^ p'
dd if=data.bin of=out bs=1000 count=17 skip=3 conv=notrunc
diff old.txt new.txt
diff -u old.txt old.txt
diff -r d d
dirname /a/b/c
dos2unix text
du -a d
echo a b
ed text <ed.cmd
egrep -c 'a+b|line' text
expand table
expr 7 \* 6
factor 1234567890123 97
fallocate -l 10000 out
false
fgrep -n 7 text
find . -type f -size +1
find d -name '*c*' -o -type l
fold -w 30 text
getopt -o ab:c -- -a -b x y
grep -rn needle .
grep -E '^line [0-9]{2,3} (abba|aab)' text
groups
gunzip -c text.gz
gzip -c text
head -n 5 text
head -c 1000 data.bin
hexdump -C data.bin
hostid
id
id -u
ipcalc -b -n 192.168.1.7/20
kill -l
link text hard
ln -s text soft
ln text hard
ls -lA
ls -1RF
lzcat text.lzma
unlzma -c text.lzma
lzma -d -k -f text.lzma
lzop -c text
md5sum text data.bin
md5sum -c sums
mkdir -p x/y/z
mkdir d
mkfifo pipe
mknod pipe p
mkpasswd -m sha512 -S saltsalt secret
mv text moved
mv text d
nc 127.0.0.1 1
nl text
nproc
od -x data.bin
od -c text
paste sorted1 sorted2
patch -p0 -i fix.patch
printf '%5d|%-5s|%x|%b\n' 42 ab 255 'x\ty'
pwd
readlink d/link
readlink -f d/link
realpath d/../text
rev text
rm text d/a
rm -r d
rmdir d/sub
run-parts --test d
sed -n '10,20p;s/line/LINE/g;/needle/p;$p' text
sed -i s/a/b/ text
seq 1 3 100
sh -c 'echo $((3*4)); test -f text && echo yes; read a b <text; echo "$b"; set -- 1 2 3; echo $#; printf "%s\n" *'
sha1sum text data.bin
sha256sum text
sha3sum text
sha512sum text
shred -n 1 -z text
shuf -e one
shuf -i 1-1
sleep 0.05
sort text
sort -rn -k 2 text
sort -u -t ' ' -k 3 -o out text
split -l 100 text part
stat -c '%n %s %a %F %h %y' text d empty
strings data.bin
stty <text
sum text
sync
tac text
tail -n 3 text
tail -c +60000 data.bin
tar tvf files.tar
tar xf files.tar
tar cf out.tar text d
tee copy1 copy2 <text
test -d d
test -s empty
touch -d '2001-02-03 04:05' text
touch new
tr a-z A-Z <text
tr -cd 0-9 <text
true
truncate -s 12345 text
tsort <tsort.in
tty <text
uname -s -m
unexpand -a text
uniq -c sorted1
unix2dos text
unlink text
unlzma -f text.lzma
unxz -f text.xz
unzip -p files.zip
unzip -l files.zip
unzip files.zip
usleep 1000
uudecode -o - uu
uuencode name <text
wc text data.bin
wget -q -O - @HTTP@/text
which sh
whoami
xxd data.bin
xxd -r -p <hex
xz -d -c text.xz
xzcat text.xz
ash -c 'seq 5 | sort -r | head -n 2; (exit 3); echo $?; x=$(echo sub); echo $x; yes | head -n 3; f=$(mktemp ./fXXXXXX) && test -f $f && rm $f && echo made'
ash -c 'sleep 9 & kill $!; wait $! 2>/dev/null; echo $?; for i in 1 2 3; do (exit $i) & done; wait; renice -n 3 $$; nice; exec echo last'
awk 'BEGIN { system("echo x; exit 3"); "echo y" | getline z; print z; print "b\na" | "sort"; close("sort"); print "end" }'
chroot / /bin/echo in
env -i A=1 /bin/busybox env
find d -type f -exec cksum {} ;
find d -type f -exec echo {} +
flock lock echo locked
flock lock -c 'echo by shell; exit 4'
fdisk -l data.bin
hostname
ionice -c 2 -n 3 ionice
ip addr show lo
less text
linux64 uname -m
more text
nice -n 5 nice
nohup echo x
setpriv --nnp echo x
ash -c 'setsid echo x; echo $?'
su -c 'echo $0 x' root
sysctl -n kernel.ostype
tar czf out.tgz d
taskset @CPU@ echo x
time -f %C echo x
timeout 100 echo x
timeout -s KILL 0.1 sleep 9
ts fixed <sorted1
xargs -n 20 echo <sorted1
zcat text.gz
"""

# Applets not run beyond --help, and why.
BUSYBOX_HELP = {
    "a server or a daemon": "crond crontab fakeidentd httpd inetd runsvdir ssl_client start-stop-daemon svc svok tcpsvd telnetd "
    "logger syslogd klogd logread",
    "starts a system, or a program that is not there": "run-init switch_root mim dpkg dpkg-deb rpm rpm2cpio",
    "needs a terminal or a console": "chvt cttyhack deallocvt dumpkmap fgconsole getty kbd_mode loadfont loadkmap login "
    "microcom openvt passwd reset resize setkeycodes sulogin telnet top vi watch",
    "needs devices, or changes the machine": "acpid adjtimex blkdiscard blockdev brctl depmod devmem eject fatattr fbset "
    "fdflush fdformat findfs freeramdisk fsck fsfreeze fstrim hdparm hwclock i2cdetect i2cdump i2cget i2cset "
    "i2ctransfer insmod losetup lsmod lsscsi lsusb lspci mdev mkdosfs mke2fs mkfs.vfat mkswap modinfo modprobe mount mt "
    "nameif nuke partprobe pivot_root rdate resume rmmod setserial swapoff swapon tunctl ubirename uevent umount "
    "vconfig watchdog nologin dmesg mkfs.ext2 tune2fs nsenter unshare",
    "another personality than 0, which a pVM does not have": "linux32",
    "needs a network beyond the loopback interface": "arp arping ftpget ftpput ifconfig ifup ifdown ipneigh ping ping6 "
    "nslookup ntpd route tftp traceroute traceroute6 udhcpc udhcpc6 udhcpd tc dnsdomainname dumpleases zcip whois",
    "shows other processes, users or mounts, which a pVM does not see": "df free fuser iostat killall killall5 last "
    "logname lsof mpstat netstat nmeter pgrep pidof pkill pmap ps pstree pwdx uptime w who",
    "run by a shell above": "mktemp renice setsid yes",
    "no sample to try it with": "busybox uncompress",
}
# Not run at all: on a busybox that ignored --help these would act.
BUSYBOX_NEVER = "halt init linuxrc poweroff reboot"

COREUTILS = r"""
arch
b2sum text
base32 text
base64 data.bin
basenc --base16 text
basename /usr/lib/x.so .so
cat text
chgrp 0 text
chmod -v 700 text
chown -v 0:0 text
cksum -a sha224 text
comm sorted1 sorted2
cp -av d copy | sort
cp --reflink=auto data.bin copy
csplit text 100 200 {3}
cut -c 3-9 text
date -u -d '2020-02-29 +1 year' +%s
dd if=data.bin bs=4096 count=3 status=none
dir -l --time-style=full-iso
dircolors -b
dirname a/b
du -ab d
echo -e 'a\tb'
env A=1
expand table
expr length abcdef
factor 600851475143
false
fmt -w 40 text
fold -s -w 20 text
groups
head -n -990 text
id
join sorted1 sorted2
link text l
ln -sv text l
ls -lAR --time-style=full-iso
ls --sort=size -1
md5sum text data.bin
md5sum -c sums
mkdir -pv x/y
mkfifo -m 600 pipe
mknod pipe p
mv -v text d/
nl -ba text
nproc
numfmt --to=iec 1234567
od -t d4 data.bin
paste -s -d, sorted1
pathchk -p a/b
pr -t -2 text
printenv LC_ALL
printf '%s %q\n' a 'b c'
ptx sorted1
pwd
readlink -v d/link
realpath d/link
rm -rv d
rmdir -v d/sub
seq -w 1 0.25 9
sha1sum text
sha256sum data.bin
sha384sum text
sha512sum text
shred -n 1 -z -u text
shuf --random-source=data.bin text
sleep 0.05
sort -n -k 2 text
sort --parallel=2 -S 1M -r text
split -n 7 data.bin
stat -c '%n %s %a %F %h %y %U %G' text d
stty -a
sum text
sync -f text
tac text
tail -n +995 text
tee copy <text
test -L d/link
touch -d 2001-01-01 text
tr -s a-z <text
true
truncate -s 1M text
tsort <tsort.in
tty
uname -s -m -o
unexpand -a text
uniq -c sorted1
unlink text
vdir --time-style=full-iso d
wc -lwmc text
whoami
chroot / echo in
env -i A=1 printenv
hostid
install -m 700 -D text x/y/copy
nice -n 4 nice
nohup echo x
sort --compress-program=gzip -S 20K text
split -n 3 --filter='wc -c' data.bin
stdbuf -oL echo x
timeout 100 echo x
timeout -s KILL 0.1 sleep 9
"""

# Programs of other packages; a line is skipped when its program is not installed.
TOOLS = r"""
awk 'BEGIN { for (i = 0; i < 200000; i++) s += i % 7; print s }'
bc -l <bc.in
bzip2 -kfv9 text
cmp -l old.txt new.txt
curl -s @HTTP@/text
curl -s -d @text @HTTP@/echo
dash script.sh a b
bash script.sh a b
bash -c 'declare -A m; for i in {1..500}; do m[$i]=$((i*i)); done; echo ${m[500]} ${#m[@]}; [[ abc =~ b(.) ]] && echo ${BASH_REMATCH[1]}'
dc -e '10k 2 v p'
diff -u old.txt new.txt
file text data.bin d text.gz files.tar /bin/ls
find . -newer old.txt -printf '%p %s %m\n'
gawk '{ print length }' text
git --no-pager diff --no-index --stat old.txt new.txt
git hash-object text data.bin
grep -c line text
grep -P '(?<=line )\d+7\b' text
gzip -kf9 text
gzip -dc text.gz
jq '.list[] | select(.n > 2) | .s' x.json
nm lib.a
objdump -d -j .text /bin/true
openssl dgst -sha256 text data.bin
openssl enc -aes-256-ctr -pbkdf2 -k key -S 0011223344556677 -in text -out out
openssl prime 2147483647
patch -p0 -i fix.patch
readelf -hlS /bin/ls
sed -E 's/([a-z]+) ([0-9]+)/\2 \1/' text
strings -n 6 /bin/true
tar cvf out.tar --sort=name --owner=0 --group=0 d text
tar xvpf files.tar
xz -kf -T 2 text
xz -dc text.xz
zstd -q -T2 text -o out.zst
zip -X -q out.zip text
unzip -o files.zip
tclsh script.tcl
bash -c 'cat text | tee >(wc -l) | sort -u | head -n 2; diff <(seq 4) <(seq 5)'
bash -c 'trap "echo chld" CHLD; (exit 3); echo $?'
bash -c 'printf "all: a b\n\techo done\na b:\n\techo \$@ >\$@\n" >Makefile; make -s -j2; cat a b'
find d -type f -exec md5sum {} ;
lua5.4 -e 'print(io.popen("echo x; cat text | wc -l"):read("a")); print(os.execute("exit 3"))'
node -e 'const c = require("child_process"); console.log(c.execSync("echo x; cat text | wc -l").toString()); console.log(c.spawnSync("sh", ["-c", "kill -9 $$"]).signal); c.fork("-").on("exit", () => console.log("end"))'
perl -e 'print `echo x`; system("exit 3"); print $? >> 8, "\n"; open(P, "|sort") and print P "b\na\n"; close P; $p = fork() // die; exit 7 unless $p; waitpid $p, 0; print $? >> 8, "\n"'
python3 -c 'import multiprocessing as m, subprocess as s; print(s.run("cat text | wc -l", shell=True, capture_output=True).stdout, s.run(["sh", "-c", "kill -9 $$"]).returncode, m.Pool(3).map(abs, range(-9, 0)))'
tar czf out.tgz --sort=name d
xargs -P 3 -n 20 true <sorted1
xargs -n 20 echo <sorted1
"""

SQLITE = r"""
.bail on
pragma journal_mode = wal;
create table t (id integer primary key, k text, v real, b blob);
begin;
insert into t with recursive n(i) as (select 1 union all select i + 1 from n where i < 100000)
	select i, 'key' || (i * 7919 % 100003), i / 3.0, zeroblob(i % 64) from n;
commit;
create index tk on t (k);
select count(*), sum(id), round(avg(v), 6), sum(length(b)), min(k), max(k) from t;
select id, k from t where k between 'key5000' and 'key5003' order by k;
update t set v = v * 2 where id % 10 = 0;
delete from t where id % 3 = 0;
select count(*), round(sum(v), 3) from t;
select substr(k, 1, 4) g, count(*) from t group by g order by g;
vacuum;
pragma integrity_check;
pragma wal_checkpoint(truncate);
"""

LUA = {
    "tables, strings, closures": r"""
local t = {}
for i = 1, 100000 do t[i] = (i * 7919) % 100003 end
table.sort(t)
print(#t, t[1], t[50000], t[100000], string.format("%.10g %s %q", math.pi, ("x"):rep(5), "a\nb"))
local n = 0
for w in io.open("text"):read("a"):gmatch("%a+") do n = n + #w end
print(n, select("#", table.unpack(t, 1, 200)))
""",
    "coroutines, errors, files": r"""
local co = coroutine.wrap(function() for i = 1, 1000 do coroutine.yield(i * i) end end)
local s = 0
for _ = 1, 1000 do s = s + co() end
print(s, pcall(error, { code = 3 }), select(2, pcall(function() return nil + 1 end)))
local f = assert(io.open("out.lua.txt", "w"))
for i = 1, 1000 do f:write(i, "\n") end
f:close()
print(io.open("nosuch"), os.rename("out.lua.txt", "renamed"), os.getenv("LC_ALL"), os.time({ year = 2000, month = 1, day = 1 }))
collectgarbage()
os.exit(7)
""",
}

PERL = {
    "hashes, regular expressions, sort": r"""
my %n; open my $f, "<", "text" or die; while (<$f>) { $n{$_}++ for /\w+/g }
print join(" ", map { "$_=$n{$_}" } (sort { $n{$b} <=> $n{$a} || $a cmp $b } keys %n)[0..9]), "\n";
my $s = 0; $s += $_ ** 2 for 1..200000; printf "%d %.6f %s\n", $s, sqrt 2, scalar reverse "abc";
""",
    "files, stat, signals": r"""
use strict; use warnings; use Time::HiRes qw(ualarm); use POSIX qw(floor strftime);
mkdir "pd" or die $!; for my $i (1..50) { open my $f, ">", "pd/$i" or die $!; print $f $i x $i }
opendir my $d, "pd" or die; print scalar(grep { !/^\./ } readdir $d), " ", -s "pd/50", "\n"; unlink glob "pd/*"; rmdir "pd" or die;
my $got = 0; $SIG{ALRM} = sub { $got++ }; ualarm 20000; select undef, undef, undef, 5; print "alarm $got\n";
local $SIG{USR1} = sub { print "usr1\n" }; kill USR1 => $$;
print strftime("%Y-%m-%d", gmtime 0), " ", floor(-1.5), "\n"; $! = 2; print "$!\n"; exit 3;
""",
    "threads, digests, JSON": r"""
use threads; use threads::shared; use Digest::SHA qw(sha256_hex); use JSON::PP; use Storable qw(dclone);
my $sum :shared = 0; my @t = map { my $n = $_; threads->create(sub { for (1..1000) { lock $sum; $sum += $n } }) } 1..4;
$_->join for @t; print "$sum ", sha256_hex("a" x 100000), "\n";
print JSON::PP->new->canonical->encode(dclone({ b => [1, 2, { c => undef }], a => "\x{263a}" })), "\n";
""",
    "sockets": r"""
use IO::Socket::INET; use IO::Select; my $l = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1") or die $!;
my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $l->sockport) or die $!; my $s = $l->accept;
print $c "hello\n"; $c->flush; print scalar(IO::Select->new($s)->can_read(5)), "\n"; print scalar <$s>; close $c; print defined(<$s>) ? 1 : 0, "\n";
""",
}

PYTHON = {
    "threads, queues, locks": r"""
import queue, threading
q, out, lock = queue.Queue(), [], threading.Lock()
def work():
    while (n := q.get()) is not None:
        with lock:
            out.append(n * n)
ts = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in ts]
[q.put(i) for i in range(5000)]
[q.put(None) for _ in ts]
[t.join() for t in ts]
print(len(out), sum(out))
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as ex:
    print(sum(ex.map(lambda x: x % 13, range(10000))))
""",
    "ssl context and handshake in memory": r"""
import ssl
c = ssl.create_default_context()
print(ssl.OPENSSL_VERSION, c.verify_mode, len(c.get_ciphers()) > 5)
a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
o = c.wrap_bio(a, b, server_hostname="localhost")
try:
    o.do_handshake()
except ssl.SSLWantReadError:
    print("client hello", b.read()[:3])
""",
    "sqlite3": r"""
import sqlite3
d = sqlite3.connect("py.db")
d.execute("create table t (a integer primary key, b text)")
with d:
    d.executemany("insert into t (b) values (?)", ((str(i * i),) for i in range(20000)))
print(d.execute("select count(*), sum(a), max(length(b)) from t where b like '%6'").fetchone())
print(d.execute("pragma integrity_check").fetchone())
d.close()
""",
    "asyncio server and clients": r"""
import asyncio
async def serve(r, w):
    while data := await r.readline():
        w.write(data.upper())
        await w.drain()
    w.close()
async def client(port, n):
    r, w = await asyncio.open_connection("127.0.0.1", port)
    total = 0
    for i in range(20):
        w.write(b"line %d of %d\n" % (i, n))
        total += len(await r.readline())
    w.close()
    return total
async def main():
    s = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = s.sockets[0].getsockname()[1]
    print(await asyncio.gather(*(client(port, n) for n in range(20))))
    await asyncio.sleep(0.02)
    try:
        await asyncio.wait_for(asyncio.sleep(10), 0.05)
    except asyncio.TimeoutError:
        print("timeout")
    print(await asyncio.to_thread(sum, range(1000)))
    s.close()
asyncio.run(main())
""",
    "numpy": r"""
import numpy as np
a = np.arange(250000, dtype=np.float64).reshape(500, 500) % 97
print(a.sum(), (a @ a.T).trace(), np.sort(a.ravel())[:3], np.fft.fft(a[0]).real[:2].round(6))
x = np.linalg.solve(a + np.eye(500) * 1000, np.ones(500))
print(x.sum().round(10), np.random.default_rng(1).integers(0, 100, 5))
np.save("a.npy", a)
print(np.load("a.npy", mmap_mode="r")[499, 499])
""",
    "signals, timers, selectors": r"""
import os, select, selectors, signal, socket, time
got = []
signal.signal(signal.SIGALRM, lambda *a: got.append("alrm"))
signal.setitimer(signal.ITIMER_REAL, 0.02)
time.sleep(0.2)
while not got:
    time.sleep(0.01)
signal.signal(signal.SIGUSR1, lambda *a: got.append("usr1"))
os.kill(os.getpid(), signal.SIGUSR1)
print(got, signal.sigtimedwait([signal.SIGUSR2], 0.01))
a, b = socket.socketpair()
s = selectors.DefaultSelector()
s.register(a, selectors.EVENT_READ)
print(s.select(0.01))
b.send(b"x")
print(len(s.select(1)), a.recv(10), select.select([], [b], [], 1)[1] == [b])
r, w = os.pipe()
os.set_blocking(r, False)
try:
    os.read(r, 1)
except BlockingIOError as e:
    print(e)
""",
    "files, mmap, ctypes": r"""
import ctypes, fcntl, mmap, os, pathlib, shutil, stat, tempfile
p = pathlib.Path("pd")
p.mkdir()
for i in range(100):
    (p / f"f{i:03}").write_text("x" * i)
print(sorted(f.name for f in p.glob("f0?1")), sum(f.stat().st_size for f in p.iterdir()))
with open("m", "w+b") as f:
    f.truncate(1 << 20)
    with mmap.mmap(f.fileno(), 0) as m:
        m[4096:4101] = b"hello"
        m.flush()
    f.seek(4096)
    print(f.read(5))
    fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print(os.pread(f.fileno(), 3, 4097), oct(stat.S_IMODE(os.fstat(f.fileno()).st_mode)))
libc = ctypes.CDLL(None, use_errno=True)
libc.strtol.restype = ctypes.c_long
print(libc.strtol(b"123abc", None, 10), libc.open(b"/nosuch", 0), ctypes.get_errno())
cb = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))(lambda a, b: a[0] - b[0])
arr = (ctypes.c_int * 5)(5, 3, 1, 4, 2)
libc.qsort(arr, 5, 4, cb)
print(list(arr))
with tempfile.NamedTemporaryFile(dir=".") as t:
    print(os.path.getsize(t.name), os.access(t.name, os.W_OK))
shutil.copytree("d", "pd/copy", symlinks=True)
shutil.rmtree("pd")
print(os.listdir("d/sub"), os.readlink("d/link"))
""",
    "shared memory, processes' own view": r"""
import os, platform, resource, sys, threading
import _posixshmem, mmap
name = f"/kylinx-compat-{os.getpid()}"
fd = _posixshmem.shm_open(name, os.O_CREAT | os.O_RDWR, mode=0o600)
os.ftruncate(fd, 10000)
m = mmap.mmap(fd, 10000)
m[:5] = b"hello"
print(os.pread(_posixshmem.shm_open(name, os.O_RDONLY, mode=0), 5, 0))
_posixshmem.shm_unlink(name)
print(os.getpid() == int(os.readlink("/proc/self")), platform.machine(), os.getcwd() == os.readlink("/proc/self/cwd"))
print(open("/proc/self/cmdline", "rb").read().split(b"\0")[0], "[stack]" in open("/proc/self/maps").read())
print(resource.getrlimit(resource.RLIMIT_STACK)[0] > 0, threading.active_count(), len(os.sched_getaffinity(0)) == os.cpu_count())
print(sorted(os.listdir("/proc/self/fd"))[:3])
""",
    "wide use of the standard library": r"""
import bz2, collections, csv, datetime, decimal, email, fractions, hashlib, heapq, html, http.client, io, itertools, json
import lzma, pickle, random, re, statistics, struct, tarfile, textwrap, unicodedata, urllib.parse, uuid, xml.etree.ElementTree as ET
import zipfile, zlib
data = open("data.bin", "rb").read()
for m in (zlib, bz2, lzma):
    assert m.decompress(m.compress(data)) == data
print(hashlib.sha256(data).hexdigest(), hashlib.blake2b(data).hexdigest()[:16], zlib.crc32(data))
print(json.dumps({"a": [1, 2.5, None, "\u263a"]}), decimal.Decimal(2).sqrt(), fractions.Fraction(1, 3) + 1)
print(random.Random(1).random(), statistics.stdev(range(100)), uuid.uuid5(uuid.NAMESPACE_DNS, "x"))
print(datetime.datetime.fromtimestamp(0, datetime.timezone.utc), re.sub(r"(\w)(\d)", r"\2\1", "a1b2"))
print(ET.tostring(ET.fromstring("<a><b c='1'/></a>")), unicodedata.name("\u263a"), pickle.loads(pickle.dumps({1: (2, 3)})))
print(tarfile.open("files.tar").getnames(), zipfile.ZipFile("files.zip").namelist(), 2 ** 200 % 1000007)
""",
    "exceptions end with a traceback": "import sys\ndef f(n):\n    return f(n - 1) if n else 1 / 0\nf(3)\n",
    "deep recursion, large memory": r"""
import sys
sys.setrecursionlimit(20000)
def f(n):
    return n and 1 + f(n - 1)
print(f(9000))
x = [bytearray(1 << 20) for _ in range(200)]
for b in x:
    b[::4096] = b"x" * 256
del x[::2]
print(len(x), sum(b[4096] for b in x))
""",
    "abort": "import os, sys\nprint('before', flush=True)\nos.abort()\n",
}

NODE = {
    "JIT loop": r"""
function f(n) { let a = 0, b = 1; for (let i = 0; i < n; i++) { [a, b] = [b, (a + b) % 1000007]; } return a; }
let s = 0; for (let i = 0; i < 3000; i++) s = (s + f(i)) % 1000007;
class P { constructor(x) { this.x = x; } get y() { return this.x * 2; } }
let t = 0; for (let i = 0; i < 3e6; i++) t += new P(i & 7).y;
console.log(s, t, [3, 1, 2].sort().join(), 2n ** 100n);
""",
    "http server and client": r"""
const http = require('http');
const server = http.createServer((q, r) => { let n = 0; q.on('data', d => n += d.length).on('end', () => r.end(q.url + ' ' + n)); });
server.listen(0, '127.0.0.1', async () => {
  const agent = new http.Agent({ keepAlive: true, maxSockets: 8 });
  const get = i => new Promise((ok, bad) => { const q = http.request({ host: '127.0.0.1', port: server.address().port, path: '/' + i,
    method: 'POST', agent }, r => { let s = ''; r.on('data', d => s += d).on('end', () => ok(s)); }); q.on('error', bad); q.end('x'.repeat(i * 100)); });
  const all = await Promise.all([...Array(200).keys()].map(get));
  console.log(all.length, all[0], all[199]); agent.destroy(); server.close(() => console.log('closed'));
});
""",
    "files": r"""
const fs = require('fs'), p = require('fs/promises');
(async () => {
  await p.mkdir('nd/x', { recursive: true });
  await Promise.all([...Array(100).keys()].map(i => p.writeFile('nd/f' + i, 'y'.repeat(i))));
  const names = await p.readdir('nd'); let n = 0; for (const f of names) n += (await p.stat('nd/' + f)).isFile() ? 1 : 0;
  console.log(names.length, n, fs.readFileSync('nd/f99').length, fs.readlinkSync('d/link'));
  await new Promise(ok => fs.createReadStream('data.bin').pipe(fs.createWriteStream('nd/copy')).on('finish', ok));
  console.log(fs.readFileSync('nd/copy').equals(fs.readFileSync('data.bin')));
  await p.rm('nd', { recursive: true }); try { fs.openSync('nd'); } catch (e) { console.log(e.code); }
})();
""",
    "worker threads, Atomics": r"""
const { Worker, isMainThread, workerData, parentPort } = require('worker_threads');
if (isMainThread) {
  const a = new Int32Array(new SharedArrayBuffer(8)); let left = 4;
  for (let i = 0; i < 4; i++) new Worker(__filename, { workerData: a }).on('message', m => { if (m !== 'done') throw m; })
    .on('exit', c => { if (--left === 0) console.log('sum', a[0], c); });
} else { for (let i = 0; i < 100000; i++) Atomics.add(workerData, 0, 1); parentPort.postMessage('done'); }
""",
    "zlib and crypto": r"""
const z = require('zlib'), c = require('crypto'), d = require('fs').readFileSync('data.bin');
for (const [f, g] of [['deflateSync', 'inflateSync'], ['gzipSync', 'gunzipSync'], ['brotliCompressSync', 'brotliDecompressSync']])
  console.log(f, z[g](z[f](d)).equals(d));
console.log(c.createHash('sha256').update(d).digest('hex'), c.pbkdf2Sync('a', 'b', 1000, 16, 'sha512').toString('hex'));
const k = Buffer.alloc(32, 1), e = c.createCipheriv('aes-256-gcm', k, Buffer.alloc(12)); console.log(e.update('text', 'utf8', 'hex') + e.final('hex'));
c.randomBytes(32, (x, b) => { console.log(b.length); z.gzip(d, (x, b) => z.gunzip(b, (x, r) => console.log(r.equals(d)))); });
const { publicKey, privateKey } = c.generateKeyPairSync('ec', { namedCurve: 'P-256' });
console.log(c.verify('sha256', d, publicKey, c.sign('sha256', d, privateKey)));
""",
    "timers, streams, errors": r"""
setImmediate(() => { console.log('immediate'); const t = Date.now(); setTimeout(() => { console.log('late', Date.now() - t >= 499); }, 500); });
process.nextTick(() => console.log('tick')); Promise.resolve().then(() => console.log('microtask'));
process.on('exit', c => console.log('exit', c)); process.exitCode = 5;
process.on('SIGUSR2', () => { console.log('usr2'); }); process.kill(process.pid, 'SIGUSR2');
""",
    "uncaught error": "console.log(1); setTimeout(() => { null.x; }, 10);\n",
    "WebAssembly": r"""
const b = new Uint8Array([0,97,115,109,1,0,0,0,1,7,1,96,2,127,127,1,127,3,2,1,0,7,7,1,3,97,100,100,0,0,10,9,1,7,0,32,0,32,1,106,11]);
WebAssembly.instantiate(b).then(({ instance }) => { let s = 0; for (let i = 0; i < 1e6; i++) s = instance.exports.add(s, i); console.log(s); });
""",
}

JAVA = r"""
import java.net.*; import java.nio.file.*; import java.util.*; import java.util.concurrent.*; import java.util.stream.*;
public class Compat {
	static volatile int x;
	public static void main(String[] a) throws Exception {
		ExecutorService ex = Executors.newFixedThreadPool(4);
		List<Future<Long>> fs = new ArrayList<>();
		for (int t = 0; t < 8; t++) { final int n = t; fs.add(ex.submit(() -> LongStream.range(0, 1000000).map(i -> i * n % 7).sum())); }
		long s = 0; for (Future<Long> f : fs) s += f.get(); ex.shutdown();
		System.out.println(s + " " + IntStream.range(0, 100000).parallel().filter(i -> i % 3 == 0).count());
		byte[][] keep = new byte[64][]; for (int i = 0; i < 4000; i++) keep[i % 64] = new byte[100000]; System.gc();
		Path p = Paths.get("java.txt"); Files.write(p, Collections.nCopies(1000, "line")); System.out.println(Files.lines(p).count()); Files.delete(p);
		try (ServerSocket l = new ServerSocket(0, 5, InetAddress.getLoopbackAddress())) {
			Thread c = new Thread(() -> { try (Socket k = new Socket(l.getInetAddress(), l.getLocalPort())) { k.getOutputStream().write("hi\n".getBytes()); } catch (Exception e) { System.out.println(e); } });
			c.start(); try (Socket k = l.accept()) { System.out.println(new String(k.getInputStream().readAllBytes()).trim()); } c.join();
		}
		try { Object o = null; o.hashCode(); } catch (NullPointerException e) { System.out.println("NPE"); }
		try { deep(0); } catch (StackOverflowError e) { System.out.println("SOE"); }
		Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
		System.exit(4);
	}
	static int deep(int n) { return deep(n + 1) + x; }
}
"""

# C programs: name -> (source, compilers' options that make variants)
C_MIX = r"""
#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
static __thread int tls = 3;
static sigjmp_buf jb;
static void *volatile fault_at;
static void on_segv(int s, siginfo_t *i, void *c) { (void)s; (void)c; fault_at = i->si_addr; siglongjmp(jb, 1); }
static pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
static long sum;
static void *work(void *p) { for (int i = 0; i < 1000; i++) { pthread_mutex_lock(&m); sum += (long)p + tls; pthread_mutex_unlock(&m); } tls = 9; return p; }
static int cmp(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }
__attribute__((constructor)) static void first(void) { puts("constructor"); }
static void last(void) { puts("atexit"); }
int main(int argc, char **argv)
{
	pthread_t t[4]; void *r; int v[1000]; char buf[100]; struct stat st; struct timespec ts;
	setlocale(LC_ALL, ""); atexit(last);
	for (long i = 0; i < 4; i++) if (pthread_create(&t[i], 0, work, (void *)i)) return 10;
	for (int i = 0; i < 4; i++) pthread_join(t[i], &r);
	printf("%d %s sum %ld tls %d last %ld\n", argc, argv[1], sum, tls, (long)r);
	for (int i = 0; i < 1000; i++) v[i] = i * 7919 % 1009;
	qsort(v, 1000, sizeof(int), cmp);
	printf("%d %d %.12f %g %a\n", v[0], v[999], sin(1.0) + exp(0.5), pow(2, 0.5), 0.1);
	struct sigaction sa = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO }; sigaction(SIGSEGV, &sa, 0);
	if (!sigsetjmp(jb, 1)) *(volatile int *)0x123450 = 1;
	printf("fault %p\n", (void *)fault_at);
	char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); mprotect(p + 4096, 4096, PROT_READ);
	if (!sigsetjmp(jb, 1)) p[5000] = 1;
	printf("fault %ld\n", (long)((char *)fault_at - p));
	int f = open("text", O_RDONLY); printf("%ld %d\n", (long)read(f, buf, 20), fstat(f, &st)); write(1, buf, 20); printf("%ld\n", (long)st.st_size);
	errno = 0; f = open("/nosuch", O_RDONLY); printf("%d %s\n", f, strerror(errno)); clock_gettime(CLOCK_REALTIME, &ts);
	char *big = malloc(64 << 20); memset(big, 1, 64 << 20); printf("%d %d %s\n", big[1 << 25], ts.tv_sec > 1600000000, getenv("LC_ALL")); free(big);
	char name[64]; snprintf(name, sizeof(name), "%s", strrchr(argv[0], '/') + 1); printf("%s\n", name);
	fprintf(stderr, "to stderr\n");
	return 42;
}
"""
C_AVX512 = r"""
#include <immintrin.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
/* Vector and mask registers survive system calls, with all threads busy. */
__attribute__((target("avx512f"))) static void *work(void *arg)
{
	__m512i a = _mm512_set1_epi64((long)arg), s = _mm512_setzero_si512(); __m512d d = _mm512_set1_pd(1.0); long out[8];
	for (int i = 0; i < 200000; i++) { __mmask8 k = (__mmask8)i; s = _mm512_mask_add_epi64(s, k, s, a); d = _mm512_fmadd_pd(d, _mm512_set1_pd(0.999), _mm512_set1_pd(0.5));
		if (i % 1000 == 0) { register __m512i z asm("zmm31") = s; asm volatile("kmovw %1, %%k5" : "+v"(z) : "r"(i)); getppid(); unsigned k5; asm volatile("kmovw %%k5, %0" : "=r"(k5), "+v"(z)); if ((k5 ^ (unsigned)i) & 0xffff) { puts("mask lost"); return 0; } s = z; } }
	_mm512_storeu_si512(out, s); for (int i = 0; i < 8; i++) out[0] += i ? out[i] : 0; double e[8]; _mm512_storeu_pd(e, d);
	return (void *)(out[0] + (long)(e[7] * 1000));
}
int main(void)
{
	pthread_t t[4]; void *r;
	if (!__builtin_cpu_supports("avx512f")) { puts("no AVX-512"); return 1; }
	for (long i = 0; i < 4; i++) pthread_create(&t[i], 0, work, (void *)(i + 1));
	for (int i = 0; i < 4; i++) { pthread_join(t[i], &r); printf("%ld\n", (long)r); }
	return 0;
}
"""
C_OPENMP = r"""
#include <omp.h>
#include <stdio.h>
int main(void)
{
	long s = 0; int seen = 0; static double a[1000000];
	omp_set_num_threads(4);
#pragma omp parallel for reduction(+ : s) schedule(dynamic, 1000)
	for (int i = 0; i < 1000000; i++) { a[i] = i * 0.5; s += i % 17; }
#pragma omp parallel
	{
#pragma omp atomic
		seen++;
#pragma omp barrier
#pragma omp single
		printf("threads %d\n", seen);
	}
#pragma omp parallel
#pragma omp single
	for (int i = 0; i < 100; i++)
#pragma omp task
#pragma omp atomic
		s += i;
	printf("%ld %.1f\n", s, a[999999]);
	return 0;
}
"""
C_RODATA = r"""
#include <stdio.h>
/* Constants that look like system calls, next to code: with -z noseparate-code in the executable segment. */
#define B(n) 0xb8, n, 0, 0, 0, 0x0f, 5, n, 0, n, 7, n ^ 3, 0, 0, 0x0f, 5, 0, 0, 0, 0, 0, 0, 0, 8
#define B4(n) B(n), B(n + 1), B(n + 2), B(n + 3)
extern const unsigned char t[];
const unsigned char t[] = { B4(0), B4(4), B4(39), B4(60), B4(96), B4(180), B4(228) };
int main(void)
{
	for (unsigned i = 0; i < sizeof(t); i++)
		printf("%02x%c", t[i], i % 24 == 23 ? 10 : 32);
	return 0;
}
"""
C_DLOPEN = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(void)
{
	void *h = dlopen("./libkx.so", RTLD_NOW); int (*f)(int) = h ? (int (*)(int))dlsym(h, "twice") : 0;
	if (!f) { puts(dlerror()); return 1; }
	printf("%d %d\n", f(21), f(4)); printf("%s\n", dlopen("./nosuch.so", RTLD_NOW) ? "?" : "refused"); return dlclose(h);
}
"""
C_LIB = "__thread int calls;\nint twice(int n);\nint twice(int n) { calls++; return 2 * n + calls; }\n"
CXX = r"""
#include <atomic>
#include <future>
#include <iostream>
#include <map>
#include <stdexcept>
#include <thread>
#include <vector>
struct D { ~D() { std::cout << "destroyed\n"; } };
static int deep(int n) { D d; if (!n) throw std::runtime_error("deep"); return deep(n - 1) + 1; }
int main()
{
	std::vector<std::future<long>> v; std::atomic<int> n{0}; std::map<std::string, int> m;
	for (int i = 0; i < 8; i++) v.push_back(std::async(std::launch::async, [i, &n] { n++; if (i == 7) throw std::logic_error("seven"); return long(i) * i; }));
	long s = 0; for (auto &f : v) try { s += f.get(); } catch (const std::exception &e) { std::cout << e.what() << "\n"; }
	try { deep(3); } catch (const std::exception &e) { std::cout << e.what() << "\n"; }
	for (int i = 0; i < 1000; i++) m[std::to_string(i % 37)]++;
	std::cout << s << " " << n << " " << m["5"] << " " << m.size() << std::endl;
	thread_local D t; (void)t; throw 3;
}
"""

# name, source, command ("OUT" is the program), file that must exist
BUILDS = [
    ("glibc, PIE", C_MIX, "gcc -O2 -pie -fPIE -pthread -o OUT SRC -lm"),
    ("glibc, not PIE", C_MIX, "gcc -O2 -no-pie -fno-pie -pthread -o OUT SRC -lm"),
    ("glibc, static", C_MIX, "gcc -O2 -static -pthread -o OUT SRC -lm"),
    ("glibc, static PIE", C_MIX, "gcc -O2 -static-pie -fPIE -pthread -o OUT SRC -lm"),
    ("glibc, lazy binding, no CET, RELRO off", C_MIX, "gcc -O0 -Wl,-z,lazy,-z,norelro -fcf-protection=none -pthread -o OUT SRC -lm"),
    ("glibc, clang", C_MIX, "clang -O2 -pthread -o OUT SRC -lm"),
    ("glibc, stack protector, -g3", C_MIX, "gcc -O1 -g3 -fstack-protector-all -pthread -o OUT SRC -lm"),
    ("musl, dynamic", C_MIX, "musl-gcc -O2 -pthread -o OUT SRC"),
    ("musl, dynamic, not PIE", C_MIX, "musl-gcc -O2 -no-pie -fno-pie -pthread -o OUT SRC"),
    ("musl, static", C_MIX, "musl-gcc -O2 -static -no-pie -fno-pie -pthread -o OUT SRC"),
    ("musl, static PIE", C_MIX, "musl-gcc -O2 -static-pie -fPIE -pthread -o OUT SRC"),
    ("OpenMP", C_OPENMP, "gcc -O2 -fopenmp -o OUT SRC"),
    ("AVX-512 in threads", C_AVX512, "gcc -O2 -pthread -o OUT SRC"),
    ("constants in the executable segment", C_RODATA, "gcc -O2 -Wl,-z,noseparate-code -o OUT SRC"),
    ("dlopen", C_DLOPEN, "gcc -O2 -o OUT SRC -ldl"),
    ("C++ exceptions, threads, futures", CXX, "g++ -O2 -pthread -x c++ -o OUT SRC"),
]

# Scripts run by their #! line.
SCRIPTS = {
    "#!/usr/bin/lua5.4": "print(arg[0] and #arg, arg[1], arg[2])",
    "#!/usr/bin/perl -w": 'print scalar(@ARGV), " @ARGV\\n"; exit 9;',
    "#!/usr/bin/python3 -S": "import sys\nprint(sys.argv[1:], sys.flags.no_site)",
    "#!/bin/busybox sh": 'echo "$#" "$@"',
    "#!/bin/sh": 'echo "$#" "$@"; exit 5',
    "#!/usr/bin/awk -f": "BEGIN { print ARGC, ARGV[1] }",
}
