# SPDX-License-Identifier: BSD-3-Clause
"""What copy mode is for: a device VM's program that reads its whole aperture and tries every command and ring corruption sees no
byte of the driver VM's memory that was not sent to it, and changes none that was not offered.

The driver's memory is full of byte values that nothing else here ever writes, so that a single one of them in the aperture is
a leak; and of all that the driver wrote there is a copy, so that any other byte in its memory was written by somebody else.
"""
import bisect
import random
import re
import struct
import time

import pytest

import portclient as pc
import vu
from test_copy import PATH, POOL, Device, Local

SIZE, PAGE, RING = 6 << 20, 4096, 128
# Not in frames, headers, lengths, ids (below RING) or indices (few packets a run); what the device side makes up goes through PLAIN.
RESERVED = bytes(range(0xc1, 0xc8))
CANARIES = bytes(RESERVED[i % len(RESERVED)] for i in range(256))
PLAIN = bytes(0 if i in RESERVED else i for i in range(256))
MRG = vu.BASIC | vu.bit(vu.NET_MRG_RXBUF)
# name: what the driver negotiates, whether its chains are indirect, and over what the device side is attached
CASES = {
    "split": (MRG, False, "local"),
    "split-indirect": (MRG, True, "local"),
    "packed": (MRG | vu.bit(vu.PACKED), False, "local"),
    "packed-indirect-event-shmem": (MRG | vu.bit(vu.PACKED, vu.EVENT_IDX), True, "shmem"),
    "event-ivshmem": (MRG | vu.bit(vu.EVENT_IDX), False, "ivshmem"),
    "not-mergeable-in-order": (vu.BASIC | vu.bit(vu.IN_ORDER), True, "local"),
    "packed-in-order": (MRG | vu.bit(vu.PACKED, vu.IN_ORDER, vu.EVENT_IDX), False, "local"),
}
KINDS = {"local": Local, "ivshmem": pc.Ivshmem, "shmem": pc.Shmem}


class Memory(vu.Memory):
    """Canaries everywhere, each depending on its place; image has what the driver wrote, and nothing of what others did."""

    def __init__(self, rnd):
        super().__init__(SIZE)
        self.canary = rnd.randbytes(SIZE).translate(CANARIES)
        self.map[:] = self.canary
        self.image = bytearray(self.canary)

    def w(self, fmt, off, *v):
        super().w(fmt, off, *v)
        struct.pack_into("<" + fmt, self.image, off, *v)

    def put(self, off, data):
        self.map[off:off + len(data)] = data
        self.image[off:off + len(data)] = data

    def refresh(self, page):
        self.put(page, self.canary[page:page + PAGE])


class Driver(vu.Nic):
    """Every buffer lies in a page of its own, with canaries before, behind and between its pieces."""

    def __init__(self, path, features, indirect, rnd):
        super().__init__(path, features | vu.bit(vu.NET_MQ), size=RING, pairs=2, mem=Memory(rnd), fill=False, indirect=indirect)
        assert self.features & features == features
        self.rnd, self.n, self.got = rnd, 0, 0
        self.mem.image[:] = self.mem.map  # rings that were set up; nobody had any buffer until now
        self.pages = [[self.mem.alloc(PAGE, PAGE) for _ in range(20)] for _ in range(2)]
        for pair in (0, 1):
            for _ in range(24):
                self.offer(pair, self.mem.alloc(PAGE, PAGE))
            self.kick(2 * pair)

    def pieces(self, page, sizes, write):
        at, bufs = page + 500 + self.rnd.randrange(100), []
        for n in sizes:
            bufs.append((at, n, write))
            at += n + 1 + self.rnd.randrange(30)
        return bufs

    def offer(self, pair, page):
        self.mem.refresh(page)
        bufs = self.pieces(page, self.rnd.choice([[1500], [1500], [100, 900], [12, 1500], [5, 40, 1300]]), True)
        self.rings[2 * pair].add(bufs, page, indirect=self.indirect and len(bufs) > 1)

    def transmit(self, pair, plain=False):
        """A packet of this pair; what was in it. None: all buffers are out. plain: in one piece, and nobody is told."""
        self.reclaim(pair)
        if not self.pages[pair]:
            return None
        self.n += 1
        frame = bytes([2] * 12) + b"\x88\xb5%06d" % self.n + b"pq"[pair:pair + 1] * self.rnd.choice([40, 41, 88, 100, 700, 1300])
        page, whole = self.pages[pair].pop(), bytes(12) + frame
        self.mem.refresh(page)
        cut = [] if plain else self.rnd.choice([[], [], [12], [5, 12, 50]])
        edges = [0] + cut + [len(whole)]
        bufs = self.pieces(page, [b - a for a, b in zip(edges, edges[1:])], False)
        for (off, n, _), a in zip(bufs, edges):
            self.mem.put(off, whole[a:a + n])
        self.rings[2 * pair + 1].add(bufs, page, indirect=self.indirect and len(bufs) > 1)
        if not plain:
            self.kick(2 * pair + 1)
        return frame

    def reclaim(self, pair=0):
        while (got := self.rings[2 * pair + 1].get()) is not None:
            assert got[2] == 0, "a transmit buffer that was written to"
            self.pages[pair].append(got[0])

    def receive(self, pair):
        """What came, each buffer unchanged behind its used length, and all of it the device side's."""
        mem, came = self.mem, []
        while (got := self.rings[2 * pair].get()) is not None:
            page, bufs, length = got
            assert length <= sum(n for _, n, _ in bufs)
            data, left = b"", length
            for off, n, _ in bufs:
                k = min(left, n)
                data += mem.map[off:off + k]
                assert mem.map[off + k:off + n] == mem.image[off + k:off + n], f"changed behind the {length} bytes that came"
                left -= k
            assert not foreign(data), f"bytes of the driver's memory in what came: {data}"
            came.append(data)
            self.got += length > 0
            self.check_around(page, bufs)
            self.offer(pair, page)
        if came:
            self.kick(2 * pair)
        return came

    def check_around(self, page, bufs):
        at = page
        for off, n, _ in bufs + [(page + PAGE, 0, True)]:
            assert self.mem.map[at:off] == self.mem.image[at:off], f"changed beside a buffer: {at:#x} to {off:#x}"
            at = off + n

    def check(self):
        """No byte is another than the driver wrote, but what devices write into rings. For when nobody serves them."""
        now, image = bytearray(self.mem.map), bytearray(self.mem.image)
        for r in self.rings.values():
            for off, n in [(r.desc, 16 * r.size), (r.used, 4)] if r.packed else [(r.used, 6 + 8 * r.size)]:
                now[off:off + n] = image[off:off + n] = bytes(n)
        if now != image:
            at = next(i for i in range(SIZE) if now[i] != image[i])
            raise AssertionError(f"byte {at:#x} was changed from {image[at]:#x} to {now[at]:#x}")


def foreign(data):
    return len(data.translate(None, RESERVED)) != len(data)


def host_addresses(d, data):
    """Words of data that point into the daemon's address space."""
    with open(f"/proc/{d.proc.pid}/maps") as f:
        lines = [line.split() for line in f]
    spans = sorted(tuple(int(x, 16) for x in line[0].split("-")) for line in lines if line[1].startswith("r"))
    # Not what AddressSanitizer has beside it: terabytes, and their lowest part, into which small numbers would point.
    spans = [(a, b) for a, b in spans if a >= 1 << 32 and b - a < 1 << 40]
    starts = [a for a, _ in spans]
    found = []
    for word in set(memoryview(data).cast("Q")):
        i = bisect.bisect(starts, word) - 1
        if i >= 0 and word < spans[i][1]:
            found.append(hex(word))
    return found


class Hostile:
    """A device side that has nothing to lose."""

    def __init__(self, p, rnd, answers):
        self.p, self.rnd, self.answers = p, rnd, answers
        self.seq, self.at, self.runs = 0, {}, {}
        # Where shadow rings are: in every run the same place.
        self.state = p.wait(lambda s: s.up and len(s.queues) == 4 and all(q.flags & pc.STARTED and q.flags & pc.ENABLED for q in s.queues))
        self.rings = self.state.regions[0][1]
        assert [r[4] for r in self.state.regions] == [3, 1, 2]
        # A mapping that outlives the window: no guest has one, so much the better.
        self.pool = memoryview(p.live[1, self.state.windows[0][1]][1] if isinstance(p, pc.Shmem) else p.mem)[-self.state.windows[0][0]:]

    def aperture(self):
        """All that the device VM can read: control block, what lies between it and the pool, the pool."""
        if isinstance(self.p, pc.Shmem):
            return bytes(self.p.mem), b"", bytes(self.pool)
        raw = bytes(self.p.mem)
        return raw[:pc.CTRL], raw[pc.CTRL:POOL], raw[POOL:]

    def look(self, d=None):
        if isinstance(self.p, pc.Shmem):
            assert len(self.p.live) <= 2, "more is mapped than control block and pool"
        assert all(kind in (0, 3 if isinstance(self.p, pc.Shmem) else 1) for _, _, _, kind, _ in self.p.state().windows)
        control, hole, pool = self.aperture()
        # Counters and addresses may take one of the values; two of them side by side they do not.
        assert not (m := re.search(rb"[\xc1-\xc7]{2}", control)), f"the control block shows {m[0]} at {m.start():#x}"
        rings = bytearray(pool[:self.rings])
        for q in self.state.queues:  # addresses of buffers: their second byte is any
            at = q.desc - POOL
            rings[at + 1:at + 16 * q.size:16] = bytes(q.size)
        for name, data in ("between control block and pool", hole), ("in the shadow rings", rings), ("in the buffers", pool[self.rings:]):
            if foreign(data):
                m = re.search(rb"[\xc1-\xc7]+", data)
                raise AssertionError(f"{len(m[0])} bytes of the driver's memory {name} at {m.start():#x}")
        if d:
            assert not host_addresses(d, pool)

    # -- commands: valid ones above all, at the wrong time

    def say(self, opcode, *args, wait=True, again=False, must=False):
        """Status of the answer. Not each of its commands has one; must: this one has."""
        if not again:
            self.seq += 1
            while foreign(struct.pack("<I", self.seq)):
                self.seq += 1
        self.p.command_raw(self.seq, opcode, *args)
        end = time.monotonic() + (pc.limit(5) if must else 0.3)
        while wait and time.monotonic() < end:
            a = self.p.state().answer
            if a[0] == self.seq:
                if not again:
                    self.answers.add((a[1], a[2]))
                return a[2]
            self.p.idle()
        return None

    def command(self):
        rnd, s = self.rnd, self.p.state()
        q = rnd.randrange(4)
        run = s.queues[q].run if len(s.queues) > q else 1
        kind = rnd.randrange(12)
        if kind < 4:
            what = (pc.ATTACH, rnd.choice([pc.ABI, pc.ABI, pc.ABI, pc.ABI, 2, 0x10001]), rnd.choice([PATH, PATH, pc.ALL, PATH & ~vu.bit(vu.EVENT_IDX), 0]),
                    0, rnd.choice([1, 1, 1, 0, 2]))
        elif kind < 5:
            what = (pc.DETACH,)
        elif kind < 8:
            what = (pc.QUEUE_STOPPED, q, max(run + rnd.choice([0, 0, 0, -1, 1]), 0), rnd.choice([0, 1, 77, 0x8000, 0xffff, 0x80058005]), rnd.randrange(5))
        elif kind < 11:
            what = (pc.SYNC, max(s.regions_generation + rnd.choice([0, 0, -1, 1]), 0))
        else:
            what = (rnd.randrange(9), *[int.from_bytes(rnd.randbytes(8).translate(PLAIN), "little") for _ in range(4)])
        # Some are not waited for, so that the next one comes over them; some come twice under one number, or another one does.
        self.say(*what, wait=rnd.random() < 0.6)
        if rnd.random() < 0.2:
            self.say(*rnd.choice([what, (pc.DETACH,), (pc.ATTACH, pc.ABI, PATH, 0, 1)]), again=True)

    # -- rings

    def give_back(self, q):
        """Whatever the next buffer of a ring is, full, with some length and number of buffers. The ring may be rubble."""
        e = self.state.queues[q]
        pool, at = self.pool, self.at.get(q, 0)
        # Seldom one that it does not have: that ends the queue's run.
        if struct.unpack_from("<H", pool, e.avail - POOL + 2)[0] == at and self.rnd.random() < 0.97:
            return
        head, = struct.unpack_from("<H", pool, e.avail - POOL + 4 + 2 * (at % e.size))
        addr, n = struct.unpack_from("<QI", pool, e.desc - POOL + 16 * (head % e.size))
        off = addr - POOL
        if 12 < n < 4096 and 0 <= off < len(pool) - n:
            hdr = struct.pack("<BB8xH", self.rnd.choice([0, 0, 0, 1]), self.rnd.choice([0, 0, 0, 1, 0x81]), self.rnd.choice([0, 1, 1, 2, 3, 40]))
            pool[off:off + n] = hdr + b"z" * (n - 12)
        length = self.rnd.choice([0xffffffff, 70000, n + 64, n, n, 26, 12, 11, 0])
        used = e.used - POOL + 4 + 8 * (at % e.size)
        pool[used:used + 8] = struct.pack("<II", head, length & 0xffffffff).translate(PLAIN)
        pool[e.used - POOL:e.used - POOL + 4].cast("H")[1] = (at + 1) & 0xffff
        self.at[q] = at + 1

    def scribble(self, n):
        pool, rnd = self.pool, self.rnd
        for _ in range(n):
            at = rnd.randrange(self.rings if rnd.random() < 0.9 else len(pool) - 8)
            v = rnd.choice([rnd.randbytes(8), bytes(8), b"\xff" * 8, struct.pack("<Q", rnd.randrange(1 << 24))])
            pool[min(at, len(pool) - 8):][:8] = v.translate(PLAIN)

    def ring(self):
        """All doorbells. New runs begin at the start of their rings."""
        for i, q in enumerate(self.p.state().queues):
            if self.runs.get(i) != q.run:
                self.runs[i], self.at[i] = q.run, 0
            pc.one(self.p.doorbells[q.doorbell])


def join(d, kind):
    p = KINDS[kind](d.sock("ab", "device"))
    assert p.attach(PATH) == pc.OK
    return p


class Polling(Device):
    """Kicks are test_copy.py's."""

    def take(self, timeout=5):
        end = time.monotonic() + pc.limit(timeout)
        while (got := self.p.take(self.entry, self.at)) is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        return got


def honest(nic, p):
    """Packets of both pairs, both ways."""
    devs = {q: Polling(p, q) for q in range(4)}
    for i in range(12):
        sent = nic.transmit(i & 1)
        assert sent is None or devs[(i & 1) * 2 + 1].packet() == sent
    for pair in (0, 1):
        rx, data = devs[2 * pair], b"y" * 90
        rx_bufs, head = rx.take()
        p.view(rx_bufs[0][0], 102)[:] = bytes(10) + b"\1\0" + data
        rx.back(head, 102)
        end = time.monotonic() + pc.limit(10)
        while not (came := nic.receive(pair)):
            assert time.monotonic() < end
            time.sleep(0.002)
        assert came == [bytes(10) + b"\1\0" + data]


@pytest.mark.parametrize("case", CASES)
def test_isolation(make_daemon, case):
    features, indirect, kind = CASES[case]
    rnd, answers = random.Random(case), set()
    d = make_daemon()
    d.write("vhost-pci.conf", "[Daemon]\nBusyPollMicroseconds=0\n")  # asleep until it is told, so that there are bursts
    d.link("ab", device="stranger", Device_Endpoint="port", Device_Attachment=kind, Link_Queues=2, Device_PoolSize="2M")
    d.start()
    with Driver(d.sock("ab", "driver"), features, indirect, rnd) as nic:
        for lap in range(5):
            d.wait(lambda: not [nic.reclaim(pair) for pair in (0, 1) if len(nic.pages[pair]) < 20])
            with join(d, kind) as p:
                h = Hostile(p, rnd, answers)
                honest(nic, p)
                for i in range(16):
                    nic.transmit(i & 1, plain=i >= 4)  # the most of them a burst
                nic.kick(1)
                nic.kick(3)
                time.sleep(0.01)
                h.look(d)
                if lap % 2:  # says that it let go of a queue, or all, and goes on with them
                    assert h.say(pc.QUEUE_STOPPED, 2, h.state.queues[2].run, 4711, 0, must=True) == pc.OK
                    h.say(pc.SYNC, p.state().regions_generation, must=True)
                else:
                    assert h.say(pc.DETACH, must=True) == pc.OK
                    assert h.say(pc.ATTACH, pc.ABI, PATH, 0, 1, must=True) == pc.OK
                for step in range(40):
                    nic.transmit(step & 1)
                    for q in (step % 4, 0, 2):
                        h.give_back(q)
                    if step % 3 == 0:
                        h.command()
                    if step > 10:
                        h.scribble(8)
                    h.ring()
                    nic.receive(step & 1)
                time.sleep(0.01)
                h.look()
            d.wait(lambda: not d.stats("ab")["device"]["online"])
            for pair in (0, 1):
                nic.receive(pair)
            nic.check()
        assert {(op, pc.OK) for op in (pc.ATTACH, pc.DETACH, pc.QUEUE_STOPPED, pc.SYNC)} <= answers, answers
        assert nic.alive() and nic.got > 10
        with join(d, kind) as p:  # and still of use
            Hostile(p, rnd, answers).look()
            honest(nic, p)
