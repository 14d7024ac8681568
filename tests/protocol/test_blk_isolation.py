# SPDX-License-Identifier: BSD-3-Clause
"""test_copy_isolation.py for requests: a device side that reads all it has and breaks every rule sees no byte of the driver VM's
memory but what requests have it read, and changes none but what they have it write.

Every buffer of a request lies in a page of its own among canaries, byte values that nothing else here writes. So one of them in the
pool is a leak, and the driver keeps a copy of all that it wrote.
"""
import random
import re
import struct
import time

import pytest

import blk
import portclient as pc
import test_device
import test_hostdev
import vu
from test_copy import POOL, Local
from test_copy_isolation import CANARIES, PLAIN, RESERVED, foreign, host_addresses
from vubackend import Backend

SIZE, PAGE, RING = 8 << 20, 4096, 128
DATA = "zZ"  # first byte of what the device side writes, and of what the driver writes
KINDS = {"local": Local, "ivshmem": pc.Ivshmem, "shmem": pc.Shmem}
# name: driver's ring features, indirect chains, where the device side is
CASES = {
    "split": (0, False, "local"),
    "split-indirect-event": (vu.bit(vu.EVENT_IDX), True, "local"),
    "packed": (vu.bit(vu.PACKED), False, "local"),
    "packed-indirect-event-ivshmem": (vu.bit(vu.PACKED, vu.EVENT_IDX), True, "ivshmem"),
    "split-shmem": (0, False, "shmem"),
    "split-host": (0, False, "host"),
    "packed-host": (vu.bit(vu.PACKED), True, "host"),
}


class Memory(vu.Memory):
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


class Driver(blk.Driver):
    def __init__(self, path, features, indirect, rnd):
        self.rnd, self.indirect = rnd, indirect
        super().__init__(path, vu.bit(vu.VERSION_1, vu.INDIRECT, blk.FLUSH) | features, size=RING, mem=Memory(rnd))
        assert self.features & features == features
        self.mem.image[:] = self.mem.map
        self.pages = [self.mem.alloc(PAGE, PAGE) for _ in range(240)]
        self.tables = self.mem.next
        self.out, self.came = {}, 0

    def pieces(self, kind, n):
        """Each in its page, anywhere: [(offset, length, write)]."""
        sizes = [16]
        while n:
            sizes.append(min(n, self.rnd.choice([512, 512, 1024, 700, 1])))
            n -= sizes[-1]
        bufs = []
        for i, size in enumerate(sizes + [1]):
            page = self.pages.pop()
            self.mem.put(page, self.mem.canary[page:page + PAGE])
            bufs.append((page + 100 + self.rnd.randrange(1000), size, i == len(sizes) or i > 0 and kind == blk.IN))
        return bufs

    def send(self, *a, **kw):
        return super().send(*a, **kw)

    def start(self):
        """A request; False: no room."""
        kind, n = self.rnd.choice([(blk.IN, 512), (blk.IN, 4096), (blk.OUT, 700), (blk.OUT, 4096), (blk.DO_FLUSH, 0)])
        if len(self.pages) < 40 or len(self.out) > 8:
            return False
        bufs, ring = self.pieces(kind, n), self.rings[0]
        data = struct.pack("<IIQ", kind, 0, 8 * self.rnd.randrange(8)) + DATA[1].encode() * (n if kind == blk.OUT else 0)
        for off, size, write in bufs:
            if not write:
                self.mem.put(off, data[:size])
                data = data[size:]
        if self.indirect and self.mem.next > SIZE - 4096:
            if self.out:
                return False
            self.mem.next = self.tables
        token = self.came + len(self.out) + 1
        while token in self.out:
            token += 1
        self.out[token] = bufs
        ring.add(bufs, token, indirect=self.indirect)
        self.kick(0)
        return True

    def take_back(self):
        """What came back: changed where the device may write, by the device's bytes or zeroes, and nowhere else."""
        m = self.mem
        while (got := self.rings[0].get()) is not None:
            token, _, _ = got
            for off, n, write in self.out.pop(token):
                page = off & ~(PAGE - 1)
                assert m.map[page:off] == m.image[page:off] and m.map[off + n:page + PAGE] == m.image[off + n:page + PAGE], "changed beside a buffer"
                if write:
                    assert not foreign(m.map[off:off + n]), "bytes of the driver's memory came back"
                    m.image[off:off + n] = m.map[off:off + n]
                assert m.map[off:off + n] == m.image[off:off + n], "a buffer that is only to be read was changed"
                self.pages.append(page)
            self.came += 1

    def check(self):
        now, image, r = bytearray(self.mem.map), bytearray(self.mem.image), self.rings[0]
        spans = [(r.desc, 16 * r.size), (r.used, 4)] if r.packed else [(r.used, 6 + 8 * r.size)]
        spans += [(off, n) for bufs in self.out.values() for off, n, write in bufs if write]
        for off, n in spans:
            now[off:off + n] = image[off:off + n] = bytes(n)
        if now != image:
            at = next(i for i in range(SIZE) if now[i] != image[i])
            raise AssertionError(f"byte {at:#x} was changed from {image[at]:#x} to {now[at]:#x}")


def look(d, rings, pool, desc):
    """No canary in the buffers, none in the rings but by chance in addresses."""
    raw = bytes(pool)
    m = re.search(rb"[\xc1-\xc7]+", raw[rings:])
    assert not m, f"{len(m[0])} bytes of the driver's memory in the buffers at {m.start():#x}"
    shadow = bytearray(raw[:rings])
    for at in range(desc, min(desc + 16 * RING, rings), 16):
        shadow[at:at + 8] = bytes(8)
    assert not re.search(rb"[\xc1-\xc7]{2}", shadow)
    assert not host_addresses(d, raw)


class Rogue:
    """The device side's hands, wherever it is: pool, and where the shadow ring lies in it (split)."""

    def __init__(self, rnd, pool, desc, avail, used, size, ring_doorbell):
        self.rnd, self.pool, self.desc, self.avail, self.used, self.size, self.bell = rnd, pool, desc, avail, used, size, ring_doorbell
        self.at = self.gave = 0

    def u16(self, at):
        return struct.unpack_from("<H", self.pool, at)[0]

    def take(self, q=0):
        """The next chain: (head, [(offset in the pool, length, write)])."""
        if self.u16(self.avail + 2) == self.at:
            return None
        head = i = self.u16(self.avail + 4 + 2 * (self.at % self.size))
        self.at = (self.at + 1) & 0xffff
        chain = []
        while True:
            addr, n, flags, i = struct.unpack_from("<QIHH", self.pool, self.desc + 16 * (i % self.size))
            chain.append((addr - self.base, n, bool(flags & 2)))
            if not flags & 1 or len(chain) > 40:
                return head, chain

    def give(self, head, length):
        at = self.used + 4 + 8 * (self.gave % self.size)
        self.pool[at:at + 8] = struct.pack("<II", head, length)
        self.gave = (self.gave + 1) & 0xffff
        self.pool[self.used + 2:self.used + 4] = struct.pack("<H", self.gave)
        self.bell()

    def honest(self, got):
        head, chain = got
        total = 0
        for off, n, write in chain:
            data = bytes(self.pool[off:off + n])
            if write:
                self.pool[off:off + n] = DATA[0].encode() * n
                total += n
            else:
                assert not foreign(data)
        off, n, _ = chain[-1]
        self.pool[off + n - 1] = 0
        self.give(head, total)

    def wild(self, got):
        """Part of what it may write, any length, an id that it does not have, or what it may not write as well."""
        head, chain = got
        rnd = self.rnd
        for off, n, write in chain:
            if (write or rnd.random() < 0.5) and rnd.random() < 0.7 and 0 <= off <= len(self.pool) - n:
                k = rnd.randrange(n + 1)
                self.pool[off:off + k] = DATA[0].encode() * k
        self.give(head if rnd.random() < 0.95 else rnd.randrange(self.size), rnd.choice([0, 1, 513, 4097, 70000, 0xffffffff]))

    def scribble(self, end):
        for _ in range(8):
            at = self.rnd.randrange(end - 8)
            self.pool[at:at + 8] = self.rnd.choice([self.rnd.randbytes(8), bytes(8), b"\xff" * 8]).translate(PLAIN)


def port_rogue(d, kind, rnd):
    p = KINDS[kind](d.sock("ab", "device"))
    disk = blk.Disk(p)
    disk.attach()
    s = p.wait(lambda s: s.up and s.queues and s.queues[0].flags & pc.STARTED)
    q = s.queues[0]
    size = s.windows[0][0]
    pool = memoryview(p.live[1, s.windows[0][1]][1])[-size:] if isinstance(p, pc.Shmem) else memoryview(p.mem)[POOL:POOL + size]
    r = Rogue(rnd, pool, q.desc - POOL, q.avail - POOL, q.used - POOL, q.size, lambda: pc.one(p.doorbells[q.doorbell]))
    r.base, r.rings = POOL, s.regions[0][1]
    return p, r


class Host(Backend):
    """A back-end on the host whose ring is in the test's hands."""

    def process(self, q):
        pass

    def rogue(self, rnd):
        (gpa, size, uva, m), r = self.regions[0], self.rings[0]

        def bell():
            try:
                pc.one(r.call)
            except OSError:
                pass  # the daemon has taken the queue away
        gue = Rogue(rnd, memoryview(m), r.desc - uva, r.avail - uva, r.used - uva, r.num, bell)
        gue.base, gue.rings = gpa, 7 * PAGE
        return gue


def lap(d, drv, r, wild):
    """wild: no rule holds. Else all is served, and what the pool holds is looked at meanwhile."""
    end = time.monotonic() + 90
    came, n = drv.came, 0
    while drv.came < came + 30 if not wild else n < 60:
        n += 1
        drv.start()
        got = r.take()
        if got:
            look(d, r.rings, r.pool, r.desc)
            (r.wild if wild else r.honest)(got)
        if wild and n > 20 and n % 4 == 0:
            r.scribble(r.rings)
        drv.take_back()
        assert time.monotonic() < end, f"{drv.came - came} of 30 requests came back"
    look(d, r.rings, r.pool, r.desc)


@pytest.mark.parametrize("case", CASES)
def test_isolation(make_daemon, case):
    features, indirect, kind = CASES[case]
    rnd = random.Random(case)
    d = make_daemon()
    d.run.mkdir(exist_ok=True)
    keys = {"Profile_Capacity": "64K", "Device_PoolSize": "1M"}
    if kind == "host":
        test_hostdev.link(d, **keys)
    else:
        test_device.link(d, "copy", Device_Attachment=kind, **keys)
    d.start()
    with Driver(d.sock("ab", "driver"), features, indirect, rnd) as drv:
        for i in range(4):
            wild = i % 2 == 1
            if kind == "host":
                with Host(d.sock("ab", "device"), sectors=128) as b:
                    d.wait(lambda: b.rings.get(0) and b.rings[0].enabled and b.rings[0].call >= 0 and b.regions)
                    lap(d, drv, b.rogue(rnd), wild)
            else:
                p, r = port_rogue(d, kind, rnd)
                with p:
                    lap(d, drv, r, wild)
            d.wait(lambda: not d.stats("ab")["device"]["online"])
            drv.take_back()
            drv.check()
        assert drv.alive() and drv.came > 60
