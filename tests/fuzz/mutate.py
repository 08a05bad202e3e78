#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""mutate.py SEEDFILE OUTDIR COUNT SEED: write mutated copies of an ELF file, OUTDIR/m00000 and on.

The same SEED makes the same files. Changed are fields of the ELF header, fields of program headers, and random
bytes. What these files do when they run is unknown, so a file with the bytes of vmcall or vmmcall, which would leave
a nested hypervisor for the one below it, is never written (another mutation takes its place).
"""
import os
import random
import struct
import sys

FORBIDDEN = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")
EHDR = [(4, 1), (5, 1), (6, 1), (7, 1), (16, 2), (18, 2), (20, 4), (24, 8), (32, 8), (40, 8), (48, 4), (52, 2),
        (54, 2), (56, 2), (58, 2), (60, 2), (62, 2)]
PHDR = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)]


def forbidden(data):
    """The bytes are there, or could come about where a changed header maps one page behind another."""
    if any(b in data for b in FORBIDDEN):
        return True
    pages = [data[i:i + 4096] for i in range(0, len(data), 4096)]
    return any(any(p.endswith(b[:k]) for p in pages) and any(p.startswith(b[k:]) for p in pages)
               for b in FORBIDDEN for k in (1, 2))


def value(rng, old, size, width):
    return rng.choice([
        0, -1, 1 << rng.randrange(width * 8), (1 << rng.randrange(width * 8)) - 1, size + rng.randrange(-64, 65),
        old + rng.randrange(-16, 17), old ^ 1 << rng.randrange(width * 8), -rng.randrange(0x10000), old & ~0xfff,
        old + 0x1000 * rng.randrange(-4, 5), 0x7f00000000 + rng.randrange(-0x2000, 0x2000),
        rng.randrange(size + 1), rng.getrandbits(width * 8)])


def set_field(rng, data, off, width):
    if off + width > len(data):
        return
    old = int.from_bytes(data[off:off + width], "little")
    new = value(rng, old, len(data), width) & ((1 << width * 8) - 1)
    data[off:off + width] = new.to_bytes(width, "little")


def mutate(rng, seed):
    data = bytearray(seed)
    phoff, phnum = 64, 8
    if len(data) >= 64:
        phoff, = struct.unpack_from("<Q", data, 32)
        phnum, = struct.unpack_from("<H", data, 56)
    for _ in range(rng.randrange(1, 5)):
        kind = rng.randrange(10)
        if kind < 2:
            set_field(rng, data, *rng.choice(EHDR))
        elif kind < 6 and phnum:
            off, width = rng.choice(PHDR)
            set_field(rng, data, phoff + 56 * rng.randrange(phnum) + off, width)
        elif kind < 9 and data:
            for _ in range(rng.randrange(1, 32)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        else:
            del data[rng.randrange(len(data) + 1):]
    return bytes(data)


def main():
    if len(sys.argv) != 5:
        sys.exit("usage: mutate.py SEEDFILE OUTDIR COUNT SEED")
    with open(sys.argv[1], "rb") as f:
        seed = f.read()
    out, count, rng = sys.argv[2], int(sys.argv[3]), random.Random(int(sys.argv[4], 0))
    if forbidden(seed):
        sys.exit(f"mutate.py: {sys.argv[1]} contains the bytes of vmcall or vmmcall (take another seed file)")
    os.makedirs(out, exist_ok=True)
    done = dropped = 0
    while done < count:
        data = mutate(rng, seed)
        if forbidden(data):
            dropped += 1
            continue
        path = os.path.join(out, f"m{done:05}")
        with open(path, "wb") as f:
            f.write(data)
        os.chmod(path, 0o755)
        done += 1
    print(f"mutate.py: {done} files, {dropped} dropped")


if __name__ == "__main__":
    main()
