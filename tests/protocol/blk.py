# SPDX-License-Identifier: BSD-3-Clause
"""A virtio-blk driver (vhost-user front-end) and a disk (device side of a port) in Python, for tests.

Written from virtio 1.3, 5.2, and docs/spec.md, not from the C code.
"""
import os
import select
import struct
import time

import portclient as pc
import vu

BLK = 2
SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES = 1, 2, 5, 6, 9, 10, 11, 12, 13, 14
IN, OUT, DO_FLUSH = 0, 1, 4
OK, IOERR, UNSUPP = 0, 1, 2
CONFIG, BACKEND = 7, 8
PROFILE = 10            # status of an answer
REASON_PROFILE = 13
CAPACITY, WCE = 0, 32   # offsets in the config space
FEATURES = vu.bit(SEG_MAX, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES)
PF_INFLIGHT = 12
PF = vu.bit(vu.PF_MQ, vu.PF_REPLY_ACK, vu.PF_BACKEND_REQ, vu.PF_CONFIG, PF_INFLIGHT, vu.PF_MEM_SLOTS, vu.PF_STATUS)


def config(sectors, blk_size=512, length=60):
    c = bytearray(length)
    struct.pack_into("<Q", c, CAPACITY, sectors)
    struct.pack_into("<I", c, 12, 126)
    struct.pack_into("<I", c, 20, blk_size)
    c[WCE] = 1
    return bytes(c)


class Driver(vu.Frontend):
    """Sends requests; waits for them."""

    def __init__(self, path, features=vu.bit(vu.VERSION_1, vu.INDIRECT) | FEATURES, queues=1, size=128, mem=None, inflight=None,
                 rings=None, protocol=PF, mem_size=16 << 20):
        super().__init__(path)
        self.negotiate(features, protocol=protocol)
        self.size = size
        self.inflight = inflight
        if self.protocol >> PF_INFLIGHT & 1:
            self.set_inflight(queues)
        self.set_memory(mem or vu.Memory(mem_size))
        cls = vu.PackedRing if self.features >> vu.PACKED & 1 else vu.SplitRing
        for q in range(queues):
            ring = rings[q] if rings else cls(self.mem, size)
            self.start_ring(q, ring, base=ring.used_idx if rings else None)
        self.open = {}
        self.done = {}

    def set_inflight(self, queues):
        import array
        import socket
        desc = struct.pack("<QQHHI", 0, 0, queues, self.size, 0)
        if self.inflight is None:
            self.send(vu.GET_INFLIGHT_FD, desc, need_reply=False)
            fds = array.array("i")
            data, anc, _, _ = self.sock.recvmsg(12 + 24, socket.CMSG_SPACE(4))
            for _, _, d in anc:
                fds.frombytes(d[:4])
            size, off, n, qs = struct.unpack_from("<QQHH", data, 12)
            assert size and n == queues and qs == self.size
            self.inflight = fds[0], size, off
        fd, size, off = self.inflight
        self.tell(vu.SET_INFLIGHT_FD, struct.pack("<QQHHI", size, off, queues, self.size, 0), [fd])

    def ask(self, *a, **kw):
        return super().ask(*a, **kw)

    def request(self, kind, sector, data=b"", length=0, q=0, cut=4096, indirect=False, kick=True):
        """Starts one; its number."""
        hdr = self.mem.alloc(16)
        struct.pack_into("<IIQ", self.mem.map, hdr, kind, 0, sector)
        bufs = [(hdr, 16, False)]
        n = len(data) or length
        buf = self.mem.alloc(n, 512) if n else 0
        self.mem.map[buf:buf + n] = data or b"\xee" * n
        bufs += [(buf + i, min(cut, n - i), kind == IN) for i in range(0, n, cut)]
        status = self.mem.alloc(1)
        self.mem.map[status:status + 1] = b"\xff"
        bufs.append((status, 1, True))
        token = len(self.open) + len(self.done)
        while token in self.open or token in self.done:
            token += 1
        self.open[token] = (q, kind, buf, n, status)
        self.rings[q].add(bufs, token, indirect=indirect)
        if kick:
            self.kick(q)
        return token

    def reap(self):
        for q, ring in self.rings.items():
            while (got := ring.get()) is not None:
                token, _, length = got
                _, kind, buf, n, status = self.open.pop(token)
                self.done[token] = (self.mem.map[status], bytes(self.mem.map[buf:buf + n]) if kind == IN else b"", length)

    def wait(self, token, timeout=60):
        """(status, data) of a request."""
        end = time.monotonic() + timeout
        while token not in self.done:
            self.reap()
            assert time.monotonic() < end, f"request {token} was not answered; {len(self.open)} are open"
            if token not in self.done:
                select.select([r.call_fd for r in self.rings.values()], [], [], 0.005)
        return self.done[token][:2]

    def alone(self, *a, **kw):
        """Starts one and waits for it. Its memory is free again, so that a test may do this for as long as it likes."""
        mark = self.mem.next if not self.open else None
        got = self.wait(self.request(*a, **kw))
        if mark is not None:
            self.mem.next = mark
        return got

    def write(self, sector, data, **kw):
        assert self.alone(OUT, sector, data, **kw)[0] == OK

    def read(self, sector, length, **kw):
        status, data = self.alone(IN, sector, length=length, **kw)
        assert status == OK
        return data


class Disk:
    """Serves a port's queues from memory, request by request, as slowly and as wrongly as a test wants."""

    def __init__(self, p, queues=1, sectors=8192, features=FEATURES, tell=True, store=None, cfg=None):
        self.p, self.n = p, queues
        self.store = store if store is not None else bytearray(512 * sectors)
        self.features = features | vu.bit(vu.VERSION_1, vu.INDIRECT, vu.EVENT_IDX, vu.PROTOCOL)
        self.config = cfg or config(len(self.store) // 512)
        self.full_len = True     # report how much was written, else 0
        self.at, self.given, self.runs = {}, {}, {}
        if tell:
            assert self.describe() == pc.OK

    def describe(self):
        c = self.config
        for off in range(0, len(c), 104):
            part = c[off:off + 104]
            words = struct.unpack("<13Q", part.ljust(104, b"\0"))
            assert self.p.command(CONFIG, off, len(part), *words) == pc.OK
        return self.p.command(BACKEND, self.features, 0, BLK, self.n, len(c))

    def attach(self):
        assert self.p.attach(self.features, type=BLK) == pc.OK
        return self

    def up(self):
        s = self.p.wait(lambda s: s.up and any(q.flags & pc.STARTED for q in s.queues))
        for q, e in enumerate(s.queues):
            if e.flags & pc.STARTED and self.runs.get(q) != e.run:
                self.runs[q] = e.run
                self.at[q] = self.given[q] = e.base
        return self

    def take(self, q=0, timeout=None):
        """The next request: (head, bufs, kind, sector), or None."""
        e = self.p.state().queues[q]
        end = time.monotonic() + (pc.limit(5) if timeout is None else timeout)
        while (got := self.p.take(e, self.at[q])) is None:
            if time.monotonic() > end:
                return None
            pc.raised(self.p.signals[e.kick_signal], 0.02)
            self.p.drain()
        self.at[q] += 1
        bufs, head = got
        hdr = b"".join(bytes(self.p.view(a, l)) for a, l, w in bufs if not w)
        kind, _, sector = struct.unpack_from("<IIQ", hdr)
        return head, bufs, kind, sector

    def back(self, head, length, q=0):
        e = self.p.state().queues[q]
        self.p.give_back(e, self.given[q], head, length)
        self.given[q] += 1
        pc.one(self.p.doorbells[e.doorbell])

    def answer(self, got, q=0, status=OK, length=None):
        head, bufs, kind, sector = got
        out = b"".join(bytes(self.p.view(a, l)) for a, l, w in bufs if not w)[16:]
        ins = [(a, l) for a, l, w in bufs if w]
        total = sum(l for _, l in ins)
        if kind == OUT:
            self.store[512 * sector:512 * sector + len(out)] = out
        data = bytes(self.store[512 * sector:512 * sector + total - 1]) if kind == IN else b""
        data = data.ljust(total - 1, b"\0") + bytes([status])
        for a, l in ins:
            self.p.view(a, l)[:] = data[:l]
            data = data[l:]
        self.back(head, (total if self.full_len else 0) if length is None else length, q)

    def serve(self, n, q=0):
        for _ in range(n):
            got = self.take(q)
            assert got, "no request came"
            self.answer(got, q)


def pattern(n, seed=0):
    return b"".join(struct.pack("<II", seed, i) for i in range(n // 8))
