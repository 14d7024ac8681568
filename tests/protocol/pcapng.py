# SPDX-License-Identifier: BSD-3-Clause
"""Reads a capture file as the pcapng specification describes it, and is strict: what it does not know is an error."""
import struct

SHB, IDB, ISB, EPB = 0x0a0d0d0a, 1, 5, 6


def options(data):
    out, at = {}, 0
    while at < len(data):
        code, n = struct.unpack_from("<HH", data, at)
        at += 4
        if code == 0:
            assert n == 0 and at == len(data)
            break
        assert code not in out, code
        out[code] = data[at:at + n]
        assert data[at + n:at + (n + 3 & ~3)] == bytes(-n % 4)
        at += n + 3 & ~3
    return out


def blocks(data):
    at = 0
    while at < len(data):
        kind, total = struct.unpack_from("<II", data, at)
        assert total % 4 == 0 and total >= 12 and at + total <= len(data), (hex(kind), total)
        assert struct.unpack_from("<I", data, at + total - 4)[0] == total
        yield kind, data[at + 8:at + total - 4]
        at += total


class Packet:
    def __init__(self, body):
        self.interface, hi, lo, caplen, self.length = struct.unpack_from("<IIIII", body)
        self.ns = hi << 32 | lo
        self.data = body[20:20 + caplen]
        o = options(body[20 + (caplen + 3 & ~3):])
        assert set(o) <= {1, 2, 4, 6}
        self.flags, = struct.unpack("<I", o[2])
        self.queue = struct.unpack("<I", o[6])[0] if 6 in o else None
        self.lost = struct.unpack("<Q", o[4])[0] if 4 in o else 0
        self.comment = o[1].decode() if 1 in o else None
        self.direction = {1: "in", 2: "out"}[self.flags & 3]


class File:
    def __init__(self, data):
        kinds = list(blocks(data))
        assert [k for k, _ in kinds[:2]] == [SHB, IDB]
        magic, major, minor, length = struct.unpack_from("<IHHq", kinds[0][1])
        assert (magic, major, minor, length) == (0x1a2b3c4d, 1, 0, -1)
        linktype, _, self.snaplen = struct.unpack_from("<HHI", kinds[1][1])
        assert linktype == 1
        self.interface = options(kinds[1][1][8:])
        assert self.interface[9] == b"\x09"
        self.packets = [Packet(b) for k, b in kinds[2:] if k == EPB]
        assert all(p.interface == 0 for p in self.packets)
        stats = [b for k, b in kinds[2:] if k == ISB]
        assert len(self.packets) + len(stats) == len(kinds) - 2
        self.stats = None
        if stats:
            assert len(stats) == 1 and kinds[-1][0] == ISB
            o = options(stats[0][12:])
            self.stats = {name: struct.unpack("<Q", o[c])[0] for name, c in (("received", 4), ("dropped", 5), ("accepted", 6))}
